//! What a query refers to, wherever in it: relations, functions, samples.

mod settings;

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::pg::access::Permission;
use crate::pg::node::{ColumnRef, EntryKind, Kind, Node, Query, Step, SubLinkKind};
use crate::pg::query;
use crate::pg::table;
use crate::pg::types::{self, Oid, RowTypes, Volatility};

/// A relation that a query refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// `pg_class.oid`.
    pub oid: Oid,
    /// Qualified and quoted.
    pub name: String,
    /// What it is.
    pub kind: RelationKind,
    /// The columns read: attribute number and name.
    pub columns: Vec<(i16, String)>,
    /// Whether it goes with its session.
    pub is_temporary: bool,
}

/// What a relation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RelationKind {
    /// A table or partitioned table; stream tables are tables, too.
    Table,
    /// A view; its query has been put in its place.
    View,
    MaterializedView,
    ForeignTable,
    /// A sequence and such.
    Other,
}

/// See the module.
#[derive(Default)]
pub struct Inventory {
    /// Each relation once, in the order of their first mention.
    pub relations: Vec<Relation>,
    pub is_sampled: bool,
    /// The first volatile function, with its place.
    pub volatile: Option<(String, Option<i32>)>,
    /// The first system column that can change without a change that is captured, with its place.
    pub unstable_column: Option<(&'static str, Option<i32>)>,
    /// What is read with whose rights.
    pub permissions: Vec<Permission>,
    /// CURRENT_USER, which is the owner in every refresh.
    pub names_user: bool,
    /// Whether there is an ARRAY(sub-query) without ORDER BY.
    pub has_unordered_array: bool,
    /// Whether a value in it is of a type that no column of a table can have, such as an anonymous row.
    pub has_unstorable: bool,
    /// The row types of which it makes or reads values, and those of what is in them.
    pub row_types: RowTypes,
    /// Digests of the expressions of virtual columns of all tables.
    pub expressions: Vec<u64>,
    types: HashSet<Oid>,
    functions: HashSet<Oid>,
    session_values: bool,
    /// Whether a path into JSON may give a time the offset that its zone has today.
    takes_offset: bool,
    converts: bool,
    /// Types whose values are read, and written, as texts by what takes values of all types.
    read: HashSet<Oid>,
    written: HashSet<Oid>,
    /// Types of what may be a field of an anonymous row.
    fields: HashSet<Oid>,
    /// Whether it makes or reads JSON or XML by clauses of their own.
    constructs: bool,
}

impl Inventory {
    /// Qualified names of the functions that PostgreSQL did not bring.
    pub fn functions_used(&self) -> Vec<String> {
        let foreign = self.functions.iter().filter(|it| !types::is_builtin(**it));
        let names: BTreeSet<String> = foreign.map(|it| types::function_name(*it)).collect();
        names.into_iter().collect()
    }

    /// Whether a function is STABLE.
    pub fn uses_stable(&self) -> bool {
        self.session_values
            || self.names_user
            || self.functions.iter().any(|it| types::volatility(*it) == Volatility::Stable)
    }

    /// Whether it searches by whatever `default_text_search_config` says.
    pub fn uses_default_search(&self) -> bool {
        let searches = |name: &str| {
            name == "get_current_ts_config"
                || name.starts_with("ts_")
                || name.contains("tsvector")
                || name.contains("tsquery")
        };
        self.functions.iter().any(|it| {
            types::volatility(*it) == Volatility::Stable
                && types::builtin_function(*it).is_some_and(|it| searches(&it))
        })
    }

    /// Whether the result may depend on settings. What users call IMMUTABLE often does.
    pub fn follows_settings(&self) -> bool {
        self.uses_stable()
            || self.converts
            || self.functions.iter().any(|it| !types::is_builtin(*it) || types::is_conversion(*it))
    }
}

/// Built-in STABLE functions by the beginning of their names whose result depends on more than
/// their arguments and the settings: on the time, on the session, or on the catalog.
const MOMENTARY: [&str; 25] = [
    "now",
    "transaction_timestamp",
    "statement_timestamp",
    "current_",
    "session_user",
    "pg_",
    "has_",
    "row_security_active",
    "txid_",
    "inet_",
    "to_reg",
    "reg",
    "obj_description",
    "col_description",
    "shobj_description",
    "format_type",
    "table_to_",
    "query_to_",
    "schema_to_",
    "database_to_",
    "system_user",
    "getpgusername",
    "mxid_age",
    "aclitem",
    "oidvectortypes",
];

/// Whether the result of a function can change although no setting does. `age` with one argument counts
/// from today, so it is taken to do that whatever its arguments; the offset of a `timetz` is that of today.
fn is_momentary(function: Oid) -> bool {
    types::volatility(function) == Volatility::Stable
        && types::builtin_function(function).is_none_or(|name| {
            name == "age"
                || types::result_type(function) == types::TIMETZ
                || MOMENTARY.iter().any(|it| name.starts_with(it))
        })
}

impl Inventory {
    /// Whether the result can change although neither a source nor a setting changes.
    pub fn depends_on_moment(&self) -> bool {
        let reads = |ty: &Oid| is_momentary(types::input_function(*ty));
        let writes = |ty: &Oid| is_momentary(types::output_function(*ty));
        self.session_values
            || self.takes_offset
            || self.functions.iter().any(|it| is_momentary(*it))
            || self.parts(&self.read).iter().any(reads)
            || self.parts(&self.written).iter().any(writes)
    }

    /// The types, and those of all that is in their values.
    fn parts(&self, types: &HashSet<Oid>) -> HashSet<Oid> {
        let mut parts = HashSet::new();
        types.iter().for_each(|it| types::collect_parts(*it, &mut parts));
        if parts.iter().any(|it| types::is_record(*it)) {
            self.fields.iter().for_each(|it| types::collect_parts(*it, &mut parts));
        }
        parts
    }
}

/// Goes through a rewritten query.
pub fn take(query: Query<'_>) -> Inventory {
    let mut inventory = Inventory { permissions: permissions(query), ..Inventory::default() };
    let mut columns: BTreeMap<u32, BTreeSet<i16>> = BTreeMap::new();
    query.node().visit(&mut |node| {
        if let Kind::Query(query) = node.kind() {
            for (oid, read) in query.columns_read() {
                columns.entry(oid.to_u32()).or_default().extend(read);
            }
            note_relations(&mut inventory, query);
        } else {
            note_columns(&mut inventory, node);
            note_functions(&mut inventory, node);
            note_conversions(&mut inventory, node);
            note_defaults(&mut inventory, node);
            note_row_types(&mut inventory, node);
            inventory.has_unstorable = inventory.has_unstorable || is_unstorable(node);
        }
        Step::Into
    });
    for relation in &mut inventory.relations {
        let read = columns.remove(&relation.oid.to_u32()).unwrap_or_default();
        relation.columns = read
            .into_iter()
            .filter_map(|number| Some((number, table::column_name(relation.oid, number)?)))
            .collect();
    }
    inventory
}

fn permissions(query: Query<'_>) -> Vec<Permission> {
    let mut permissions = Vec::new();
    query.node().visit(&mut |node| {
        if node.is_idle_common_table() {
            return Step::Over;
        }
        if let Kind::Query(query) = node.kind() {
            permissions.extend(query.permissions());
        }
        Step::Into
    });
    permissions
}

fn note_relations(inventory: &mut Inventory, query: Query<'_>) {
    for entry in query.entries() {
        inventory.is_sampled |= entry.is_sampled();
        let (oid, kind) = match (entry.kind(), entry.inlined_view()) {
            (EntryKind::Relation { oid, kind, .. }, _) => (oid, relation_kind(kind)),
            (_, Some(view)) => (view, RelationKind::View),
            _ => continue,
        };
        if !inventory.relations.iter().any(|it| it.oid == oid) {
            inventory.relations.push(Relation {
                oid,
                name: table::name(oid),
                kind,
                columns: Vec::new(),
                is_temporary: table::is_temporary(oid),
            });
            note_virtual_columns(inventory, oid);
        }
    }
}

/// PostgreSQL puts their expressions in their place when it plans.
fn note_virtual_columns(inventory: &mut Inventory, relation: Oid) {
    for attribute in table::virtual_columns(relation) {
        let column = ColumnRef { entry: 1, attribute, levels_up: 0 };
        if let Some(expression) = query::generation_expression(relation, column) {
            inventory.expressions.push(expression.digest());
            note_added(inventory, expression);
        }
    }
}

fn relation_kind(kind: char) -> RelationKind {
    match kind {
        'r' | 'p' => RelationKind::Table,
        'v' => RelationKind::View,
        'm' => RelationKind::MaterializedView,
        'f' => RelationKind::ForeignTable,
        _ => RelationKind::Other,
    }
}

/// Whether the node is where a value comes from, and its type is none of a column.
fn is_unstorable(node: Node<'_>) -> bool {
    let is_value = matches!(
        node.kind(),
        Kind::Column(_)
            | Kind::Constant { .. }
            | Kind::Call { .. }
            | Kind::Aggregate(_)
            | Kind::Field(_)
            | Kind::Row { .. }
            | Kind::Window(_)
            | Kind::SubLink(_)
    );
    is_value && !types::is_storable(node.type_oid())
}

fn note_columns(inventory: &mut Inventory, node: Node<'_>) {
    if let Kind::Column(column) = node.kind()
        && let Some(name) = table::unstable_column(column.attribute)
    {
        inventory.unstable_column.get_or_insert((name, node.location()));
    }
}

fn note_row_types(inventory: &mut Inventory, node: Node<'_>) {
    if let Some(ty) = node.made_type().filter(|it| inventory.types.insert(*it)) {
        types::collect_row_types(ty, &mut inventory.row_types);
    }
}

/// PostgreSQL adds them when it plans.
fn note_defaults(inventory: &mut Inventory, node: Node<'_>) {
    for argument in node.expanded_arguments() {
        note_added(inventory, argument);
    }
}

/// An expression that PostgreSQL adds to the query.
fn note_added(inventory: &mut Inventory, expression: Node<'_>) {
    expression.visit(&mut |node| {
        note_functions(inventory, node);
        note_conversions(inventory, node);
        Step::Into
    });
}

fn note_functions(inventory: &mut Inventory, node: Node<'_>) {
    if let Some(link) = node.as_sub_link() {
        inventory.has_unordered_array |=
            link.kind == SubLinkKind::Array && link.query.order().is_empty();
    }
    inventory.names_user |= node.is_current_user();
    inventory.converts |= node.converts();
    inventory.constructs |= node.converts() && !node.is_cast();
    inventory.session_values |= node.is_session_value() && !node.is_current_user();
    if node.is_next_value() && inventory.volatile.is_none() {
        inventory.volatile = Some(("nextval".to_owned(), node.location()));
    }
    for function in node.functions() {
        let is_new = inventory.functions.insert(function);
        let is_volatile = is_new && types::volatility(function) == Volatility::Volatile;
        if is_volatile && inventory.volatile.is_none() {
            inventory.volatile = Some((types::function_name(function), node.location()));
        }
    }
}

fn note_conversions(inventory: &mut Inventory, node: Node<'_>) {
    inventory.fields.extend(node.made_columns());
    if node.is_target() || matches!(node.kind(), Kind::Row { .. }) {
        inventory.fields.extend(node.argument_types());
        return;
    }
    let takes_offset = |path: &Node<'_>| {
        let text = path.constant_text();
        text.is_none_or(|it| it.contains("time_tz(") || it.contains("datetime("))
    };
    let paths = node.json_paths();
    // A value that is passed to a path is compared as it is.
    let passes_offset = !paths.is_empty() && node.argument_types().contains(&types::TIMETZ);
    inventory.takes_offset |= passes_offset || paths.iter().any(takes_offset);
    // One that PostgreSQL brought may be about all types, and call what reads and writes theirs.
    let functions = node.functions();
    let stable = functions
        .iter()
        .find(|it| types::is_builtin(**it) && types::volatility(**it) == Volatility::Stable);
    if stable.is_none() && !node.converts() {
        return;
    }
    inventory.written.extend(node.argument_types());
    inventory.read.extend(node.made_columns());
    let is_its_own = |ty: &Oid| {
        !types::is_record(*ty) && stable.is_some_and(|it| types::result_type(*it) == *ty)
    };
    inventory.read.extend(node.made_type().filter(|it| !is_its_own(it)));
}
