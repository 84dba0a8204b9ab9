//! Lowering: from PostgreSQL's analyzed query to a plan of core operators.
//!
//! PostgreSQL resolves names and types, expands `*`, NATURAL and USING, and inlines views; we walk
//! what it made. What cannot be maintained is refused here, with a [`Refusal`] that names it.

mod explain;
mod expression;
mod from;
mod group;
mod grouping_sets;
mod inventory;
mod lateral;
mod limit;
mod opaque;
mod open;
mod recursion;
mod refusal;
mod rights;
mod select;
mod set_operation;
mod sub_link;
mod window;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CStr;

use pgstream_ivm::plan::{Column, Plan, Source};
use pgstream_ivm::stage::stage;

use crate::pg::access::Permission;
use crate::pg::deparse::{self, PortableSettings};
use crate::pg::node::{Arena, Query};
use crate::pg::portable::portable;
use crate::pg::query::{self, NotSelect};
use crate::pg::relation;
use crate::pg::security::{Identity, LocalSettings};
use crate::pg::table;
use crate::pg::text::statement;
use crate::pg::types::{self, Oid, RowTypes};

pub use inventory::{Relation, RelationKind};
pub use refusal::Refusal;
pub use rights::Rights;

/// Columns of a stream table that are not part of its content. `*` does not mean them.
const HIDDEN_COLUMNS: [&str; 2] = [pgstream_ivm::sql::ROW_ID, pgstream_ivm::sql::COUNT];

/// A user's query that is fit for a stream table in some mode.
#[derive(Clone, Debug)]
pub struct Analyzed {
    /// The query in a form that means the same under the search path `pg_catalog, pg_temp`, with
    /// `standard_conforming_strings` on.
    pub qualified_sql: String,
    /// Names of the output columns.
    pub columns: Vec<String>,
    /// Every relation in it, in sub-queries and behind views too.
    pub relations: Vec<Relation>,
    /// Qualified names of the functions that PostgreSQL did not bring.
    pub functions_used: Vec<String>,
    /// Whether a function in it is STABLE.
    pub uses_stable: bool,
    /// Whether the result may depend on settings.
    pub follows_settings: bool,
}

/// A query as a plan.
#[derive(Clone, Debug)]
pub struct Lowered {
    /// The plan; its columns are the query's output columns.
    pub plan: Plan,
    /// What it reads: the tables with the columns that the plan scans, and the views inlined.
    pub dependencies: Vec<Relation>,
    /// Qualified names of the functions that PostgreSQL did not bring.
    pub functions_used: Vec<String>,
    /// Whether a function in it is STABLE.
    pub uses_stable: bool,
    /// Whether the result may depend on settings.
    pub follows_settings: bool,
    /// Settings that it cannot follow, of those whose values can be lost.
    pub ignored_settings: Vec<&'static CStr>,
    /// Whether it searches texts by a configuration that it does not name.
    pub uses_default_search: bool,
    /// Whether the result can change although no source does.
    pub depends_on_moment: bool,
    /// The constructs whose result depends on an order that the query leaves open.
    pub open: Vec<String>,
    /// Tables with children for which the query tells their own rows from those of the children. What is
    /// captured does not.
    pub parts: Vec<Oid>,
    /// What is read with whose rights.
    pub permissions: Vec<Permission>,
    /// Who reads each table.
    pub readers: Vec<(Oid, Oid)>,
    /// Whether the plan can be another one for reasons that no source tells: who has which rights,
    /// and what the owner is called.
    pub depends_on_role: bool,
    /// What was asked about the owner's rights.
    pub rights: Rights,
    /// The row types of which it makes or reads values: it shows what their fields are called.
    pub row_types: RowTypes,
    /// Digests of the expressions of virtual columns that what is evaluated as a whole may read: its text
    /// does not show them.
    pub expressions: Vec<u64>,
}

/// Analyzes a user's text, and refuses what no mode can take.
///
/// Errors in the text are raised as PostgreSQL raises them, with the position.
pub fn analyze_user_query(text: &str) -> Result<Analyzed, Refusal> {
    let arena = Arena::enter();
    let query = analyzed(&arena, text)?;
    let rewritten = query::rewritten(query).unwrap_or(query);
    let inventory = inventory::take(rewritten);
    refusal::check_both_modes(query, rewritten, &inventory).map_err(|it| it.in_text(text))?;
    Ok(Analyzed {
        qualified_sql: deparse::query(query),
        columns: select::output_names(query),
        functions_used: inventory.functions_used(),
        uses_stable: inventory.uses_stable(),
        follows_settings: inventory.follows_settings(),
        relations: inventory.relations,
    })
}

/// Lowers the query of a view, as its owner, who will run it: to look at a query is to evaluate parts of
/// it, such as expressions of constants and of indexes.
pub fn lower_view(view: Oid) -> Result<Lowered, Refusal> {
    let _owner = Identity::restricted(relation::owner(view));
    let _settings = LocalSettings::with_row_security();
    let arena = Arena::enter();
    let query = query::of_view(&arena, view).and_then(query::rewritten).map(portable);
    let query = query.ok_or_else(|| Refusal::differential("a relation without a query"))?;
    lower(query, Some(view))
}

/// What is to be known of the query of a view that is not lowered: what it reads, in sub-queries and behind
/// views too, [`Lowered::ignored_settings`] and [`Lowered::uses_default_search`].
pub fn look_at_view(view: Oid) -> (Vec<Relation>, Vec<&'static CStr>, bool) {
    let arena = Arena::enter();
    let query = query::of_view(&arena, view).and_then(query::rewritten);
    let inventory = query.map(inventory::take).unwrap_or_default();
    let (ignored, searches) = (inventory.ignored_settings(), inventory.uses_default_search());
    (inventory.relations, ignored, searches)
}

/// Lowers a user's text.
pub fn lower_text(text: &str) -> Result<Lowered, Refusal> {
    let _settings = LocalSettings::with_row_security();
    let arena = Arena::enter();
    let query = analyzed(&arena, text)?;
    let rewritten = query::rewritten(query).map_or(query, portable);
    let inventory = inventory::take(rewritten);
    refusal::check_both_modes(query, rewritten, &inventory)
        .and_then(|()| lower(rewritten, None))
        .map_err(|it| it.in_text(text))
}

fn analyzed<'a>(arena: &'a Arena, text: &str) -> Result<Query<'a>, Refusal> {
    let c_text = statement(text);
    let query = query::analyze(arena, &c_text, &HIDDEN_COLUMNS);
    let shown = |it| portable(query::without_outputs(it, &HIDDEN_COLUMNS));
    query.map(shown).map_err(|it| {
        let construct = match it {
            NotSelect::Nothing => "an empty query",
            NotSelect::Several => "a query of several statements",
            NotSelect::Into => "SELECT INTO",
            NotSelect::Other => "a statement other than SELECT",
        };
        Refusal::always(construct, "the defining query must be a single SELECT")
    })
}

/// Lowers a rewritten query, which the current user will run; the view is the one that holds it.
fn lower(query: Query<'_>, view: Option<Oid>) -> Result<Lowered, Refusal> {
    let inventory = inventory::take(query);
    refusal::check_differential(&inventory)?;
    let _settings = PortableSettings::enter();
    let mut rights = Rights::default();
    let hiding_view = rights::hiding_view(query, &mut rights);
    let new = || Lowering { rights: rights.clone(), ..Lowering::default() };
    let by_view = |refusal: Refusal| {
        let mut lowering = new();
        opaque::lower_view(&mut lowering, query, view, refusal).map(|plan| (lowering, plan))
    };
    let by_rules = || {
        let mut lowering = new();
        let plan = select::lower(&mut lowering, query, None, None);
        plan.map(|plan| (lowering, plan)).or_else(by_view)
    };
    let as_a_whole = |refusal: Refusal| {
        let mut lowering = new();
        let plan = opaque::lower(&mut lowering, query, refusal);
        plan.map(|plan| (lowering, plan)).or_else(by_view)
    };
    let (mut lowering, mut plan) = hiding_view.map_or_else(by_rules, as_a_whole)?;
    let stores_rows = inventory.has_unstorable || !inventory.row_types.is_empty();
    if let Some(refusal) = stores_rows.then(|| unstorable(&plan)).flatten() {
        (lowering, plan) = as_a_whole(refusal)?;
    }
    let (readers, depends_on_role) = match rights::readers(&lowering.tables, &inventory.permissions)
    {
        Ok(found) => found,
        Err(refusal) => {
            (lowering, plan) = as_a_whole(refusal)?;
            (rights::readers_in_text(&lowering.tables), true)
        }
    };
    if inventory.has_unordered_array {
        lowering.open.insert("ARRAY(sub-query)".to_owned());
    }
    let views = inventory.relations.iter().filter(|it| it.kind == RelationKind::View).cloned();
    let expressions = if has_opaque(&plan) { inventory.expressions.clone() } else { Vec::new() };
    Ok(Lowered {
        expressions,
        plan,
        dependencies: lowering.tables.into_values().chain(views).collect(),
        functions_used: inventory.functions_used(),
        uses_stable: inventory.uses_stable(),
        follows_settings: inventory.follows_settings(),
        ignored_settings: inventory.ignored_settings(),
        uses_default_search: inventory.uses_default_search(),
        depends_on_moment: inventory.depends_on_moment(),
        open: lowering.open.into_iter().collect(),
        parts: lowering.parts.into_iter().map(Oid::from).collect(),
        readers,
        depends_on_role: depends_on_role || inventory.names_user,
        rights: lowering.rights,
        permissions: inventory.permissions,
        row_types: inventory.row_types,
    })
}

fn has_opaque(plan: &Plan) -> bool {
    matches!(plan, Plan::Opaque { .. }) || plan.inputs().into_iter().any(has_opaque)
}

/// Why hidden tables cannot have the columns that they would get: no table can, or they alone would keep
/// PostgreSQL from altering a row type.
fn unstorable(plan: &Plan) -> Option<Refusal> {
    let pipeline = stage(plan.clone());
    let last = pipeline.stages.len() - 1;
    let hidden = (0..last).filter(|it| !pipeline.is_deferred(*it));
    let hidden: Vec<&Column> = hidden.flat_map(|it| &pipeline.stages[it].output).collect();
    if !hidden.iter().all(|it| types::is_storable(Oid::from(it.ty.oid))) {
        return Some(Refusal::without_rule("grouping or storing anonymous rows"));
    }
    let of_tables = plan.scans().into_iter().filter(|it| matches!(it.source, Source::Table { .. }));
    let of_users = of_tables.flat_map(|it| &it.columns).chain(&pipeline.stages[last].output);
    let held = row_types(of_users);
    let (_, row_type) = row_types(hidden).into_iter().find(|(oid, _)| !held.contains_key(oid))?;
    let name = table::name(row_type.relation);
    Some(Refusal::without_rule(format!("grouping or storing rows of {name}")))
}

fn row_types<'a>(columns: impl IntoIterator<Item = &'a Column>) -> RowTypes {
    let mut found = RowTypes::new();
    columns.into_iter().for_each(|it| types::collect_row_types(Oid::from(it.ty.oid), &mut found));
    found
}

/// What lowering gathers on its way through a query.
#[derive(Default)]
struct Lowering {
    /// The tables scanned so far, by OID.
    tables: BTreeMap<u32, Relation>,
    /// The WITH item whose recursive part is being lowered.
    recursive: Option<Recursive>,
    /// The constructs whose result depends on an order that the query leaves open.
    open: BTreeSet<String>,
    /// See [`Lowered::parts`].
    parts: BTreeSet<u32>,
    /// What was asked about the owner's rights.
    rights: Rights,
    /// Whether it is about a view that hides what it reads from the owner: nothing but what that shows
    /// may be stored, and no row be identified by anything else.
    is_hidden: bool,
    /// How many leaves the plan has so far.
    leaves: usize,
    /// How many sub-queries in expressions have become columns.
    sub_links: usize,
}

/// A recursion, in its recursive part.
struct Recursive {
    columns: Vec<Column>,
    /// How many queries there are around it.
    depth: usize,
}

/// A query and those around it, for references to their WITH items and columns.
#[derive(Clone, Copy)]
struct Scope<'s, 'a> {
    query: Query<'a>,
    outer: Option<&'s Scope<'s, 'a>>,
    /// The rows of the queries around it for which it is evaluated, when it refers to them.
    domain: Option<&'s sub_link::Domain<'a>>,
}

impl Scope<'_, '_> {
    /// How many queries there are around what stands in it.
    fn depth(&self) -> usize {
        1 + self.outer.map_or(0, Scope::depth)
    }
}
