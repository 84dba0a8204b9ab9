//! What a backend knows about a stream table, loaded once and dropped when anything that it was
//! made from changes.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    ffi::{CStr, CString},
    mem::ManuallyDrop,
    rc::Rc,
};

use pgrx::pg_sys::Oid;
use pgstream_ivm::{
    aggregate,
    look_up::{self, Ordered},
    plan::Source,
    sql::{Storage, quote, quote_qualified},
    stage::{self, Pipeline, Stage},
};

use crate::{
    capture, catalog,
    error::Error,
    lower::{self, Relation, Rights},
    pg::{
        access::{self, Permission},
        name, relation,
        security::LocalSettings,
        spi,
        store::StoreColumn,
        types::RowTypes,
    },
    refresh::{delta, seal, statements::Statements},
    settings,
};

/// A stream table as a refresh sees it.
pub struct Definition {
    pub pgs_id: i64,
    pub relation: Oid,
    pub view: Oid,
    /// Schema and name of the stream table, quoted.
    pub table: String,
    /// Names of the visible columns, unquoted.
    pub columns: Vec<String>,
    /// Settings under which the query is evaluated; empty when it does not depend on any.
    pub settings: Vec<(CString, CString)>,
    /// Whether it searches texts by the configuration that these name.
    pub uses_default_search: bool,
    /// `None` in FULL mode.
    pub differential: Option<Differential>,
    /// Tables that the query reads, as far as they must be locked.
    pub locked: Vec<Oid>,
    /// The same with their partitions and children.
    pub with_partitions: Vec<Oid>,
    /// What has the row types whose values the query makes or reads, and shows their fields' names.
    pub with_row_types: Vec<Oid>,
    /// What lowering found that the query reads.
    pub dependencies: Vec<Relation>,
    /// Whether unique indexes of users restrict the rows.
    pub has_unique_indexes: bool,
    /// Prepared statements.
    pub statements: RefCell<Statements>,
    /// Whether the label is known to say what the query is since this was loaded.
    pub is_described: Cell<bool>,
}

/// How a stream table is maintained incrementally.
pub struct Differential {
    pub pipeline: Pipeline,
    /// One for each stage.
    pub storages: Vec<Storage>,
    pub sources: Vec<TrackedSource>,
    /// Whether the result can change although no source does. Then every refresh evaluates the
    /// whole query.
    pub depends_on_moment: bool,
    /// Changes whenever what is stored would have to be laid out differently.
    pub fingerprint: String,
    /// Sources of which a part is read: see [`lower::Lowered::parts`].
    pub parts: Vec<Oid>,
    /// What the query reads, and with whose rights.
    pub permissions: Vec<Permission>,
    /// Who reads each source.
    readers: Vec<(Oid, Oid)>,
    /// Whether the plan can be another one although nothing tells so: see [`recheck`].
    pub depends_on_role: bool,
    /// What was asked about the owner's rights: with other answers it can be another one, too.
    rights: Rights,
    /// For marks and outer joins the orders that find the matches of a row, where one has an index.
    pub matches: Vec<Vec<Ordered>>,
    /// The seal of the tables as they were when this was loaded: see [`super::seal`].
    pub seal: Option<String>,
    /// Whether a table has joined or left one of the sources, with its rows, or has other triggers.
    pub has_other_members: bool,
}

/// A table whose changes are captured for this stream table.
#[derive(Clone, Debug)]
pub struct TrackedSource {
    pub relation: Oid,
    /// Attribute numbers that some scan reads, ascending.
    pub attributes: Vec<i16>,
}

impl Differential {
    /// Whether to look up the matches of each row in one of these orders, after so many rows of their
    /// table have changed. A limit makes PostgreSQL read the table instead where so many rows are
    /// equal that it expects to meet one soon; it would read all of it for each row without a match.
    pub fn looks_up(&self, orders: &[Ordered], changed: u64) -> bool {
        if !self.matches.iter().any(|it| it == orders) {
            return false;
        }
        let table = orders.first().and_then(|it| table_of(&it.source, &self.storages));
        table.is_some_and(|table| {
            let rows = |it: &Ordered| relation::rows_per_value(table, attribute(&it.source, it.by));
            let rows = orders.iter().filter_map(rows).reduce(f64::min);
            rows.is_some_and(|it| it * 4.0 < f64::from(relation::pages(table)))
                && delta::prefers_look_ups(table, changed)
        })
    }

    pub fn is_last(&self, stage: usize) -> bool {
        stage + 1 == self.pipeline.stages.len()
    }

    /// Types of the values of a storage: the output, then the state.
    pub fn value_columns(&self, stage: usize) -> Vec<StoreColumn> {
        let output =
            self.pipeline.stages[stage].output.iter().enumerate().map(|(i, column)| StoreColumn {
                name: format!("v{i}"),
                ty: Oid::from(column.ty.oid),
                typmod: column.ty.typmod,
                collation: Oid::from(column.ty.collation),
            });
        let first_state = self.pipeline.stages[stage].output.len();
        let state = self.storages[stage].state.iter().enumerate().map(|(i, (_, ty))| StoreColumn {
            name: format!("v{}", first_state + i),
            ty: relation::type_named(ty),
            typmod: -1,
            collation: Oid::INVALID,
        });
        output.chain(state).collect()
    }
}

thread_local! {
    // Never dropped: at process exit PostgreSQL's memory is gone before thread locals are.
    static CACHE: ManuallyDrop<RefCell<HashMap<i64, Rc<Definition>>>> = ManuallyDrop::default();
}

/// The definition, if it is known and nothing that it was made from has changed.
pub fn cached(pgs_id: i64) -> Option<Rc<Definition>> {
    while relation::take_invalidations() {
        let doubtful: Vec<_> = CACHE.with(|cache| {
            let is_valid = |it: &Definition| !relation::was_invalidated(&it.watched());
            let is_doubtful = |it: &Definition| relation::was_invalidated(&it.with_partitions);
            let mut cache = cache.borrow_mut();
            cache.retain(|_, definition| is_valid(definition));
            cache.extract_if(|_, definition| is_doubtful(definition)).collect()
        });
        relation::forget_invalidations();
        for (id, definition) in doubtful {
            // Somebody else may have noted the triggers as they are now, which changes the seal.
            let is_same = |it: &Differential| {
                !have_other_members(&it.sources)
                    && it.seal == seal::current(definition.relation, it)
            };
            if definition.differential.as_ref().is_none_or(is_same) {
                CACHE.with(|cache| cache.borrow_mut().insert(id, definition));
            }
        }
    }
    CACHE.with(|cache| cache.borrow().get(&pgs_id).cloned())
}

/// The definition of a stream table.
pub fn of(pgs_id: i64) -> Result<Rc<Definition>, Error> {
    if let Some(found) = cached(pgs_id) {
        return Ok(found);
    }
    let definition = Rc::new(relation::watching_all(|| load(pgs_id))?);
    keep(pgs_id, Rc::clone(&definition));
    Ok(definition)
}

fn keep(pgs_id: i64, definition: Rc<Definition>) {
    relation::watch(&definition.watched());
    relation::watch(&definition.with_partitions);
    CACHE.with(|cache| cache.borrow_mut().insert(pgs_id, definition));
}

/// Loads the definition again if rights can have changed it, which no message tells of. What is
/// cached stays if it is the same.
pub fn recheck(pgs_id: i64) -> Result<(), Error> {
    let cached = of(pgs_id)?;
    let is_doubtful = |it: &&Differential| it.depends_on_role || it.rights.have_changed();
    let Some(old) = cached.differential.as_ref().filter(is_doubtful) else {
        return Ok(());
    };
    let loaded = relation::watching_all(|| load(pgs_id))?;
    let is_same = loaded.differential.as_ref().is_some_and(|new| {
        new.fingerprint == old.fingerprint
            && new.readers == old.readers
            && new.permissions == old.permissions
            && new.rights == old.rights
    });
    if !is_same {
        keep(pgs_id, Rc::new(loaded));
    }
    Ok(())
}

/// Forgets what is cached about a stream table.
pub fn forget(pgs_id: i64) {
    CACHE.with(|cache| cache.borrow_mut().remove(&pgs_id));
}

impl Definition {
    /// Puts the query's settings in force, and those that suit the statements of a refresh: joins
    /// start from the change wherever it stands, are too short to be worth compiling, and look up
    /// what was written lately.
    pub fn enter_settings(&self) -> Result<LocalSettings, Error> {
        let work_mem = CString::new(format!("{}MB", settings::merge_work_mem_mb()));
        let mut settings = vec![
            (c"from_collapse_limit".to_owned(), c"16".to_owned()),
            (c"join_collapse_limit".to_owned(), c"16".to_owned()),
            (c"jit".to_owned(), c"off".to_owned()),
            (c"row_security".to_owned(), c"on".to_owned()),
            (c"random_page_cost".to_owned(), c"1.1".to_owned()),
            // It makes PostgreSQL find some of the rows only.
            (c"gin_fuzzy_search_limit".to_owned(), c"0".to_owned()),
            (c"work_mem".to_owned(), work_mem.expect("a number has no NUL")),
        ];
        settings.extend(self.settings.iter().cloned());
        LocalSettings::try_new(&settings).map_err(|at| {
            let text = |it: &CString| it.to_string_lossy().into_owned();
            let (setting, value) = (text(&settings[at].0), text(&settings[at].1));
            Error::SettingLost { table: self.table.clone(), setting, value }
        })
    }

    /// The hidden view holds on to the text search configuration that the query follows, as it does to
    /// what it names.
    pub fn hold_text_search(&self) {
        let is_held =
            |it: &&(CString, CString)| self.uses_default_search && it.0.as_c_str() == TEXT_SEARCH;
        let name = self.settings.iter().find(is_held).map(|it| it.1.to_string_lossy().into_owned());
        let config = name.and_then(catalog::text_search_config);
        relation::hold_text_search(self.view, config);
    }

    /// Whether the user put row triggers on the stream table that can change or skip rows.
    pub fn has_row_triggers(&self) -> bool {
        relation::has_before_row_triggers(self.relation)
    }

    /// Who reads and writes each table in the statements of a refresh. What a refresh writes to it also
    /// reads, whatever row-level security the owner has put on it.
    pub fn roles(&self) -> Vec<(Oid, Oid)> {
        let tables = self.tables().into_iter().map(|it| (it, access::ANYBODY));
        let readers = self.differential.iter().flat_map(|it| &it.readers).copied();
        tables.chain(readers).collect()
    }

    /// The tables that a refresh writes to.
    pub fn tables(&self) -> Vec<Oid> {
        seal::tables(self.relation, self.differential.as_ref())
    }

    fn watched(&self) -> Vec<Oid> {
        let mut watched = self.locked.clone();
        // Partitions are watched through what they belong to, of which autovacuum does not speak all the
        // time: of theirs only the triggers matter, see `cached`. Of a child that leaves, only it is told.
        let tells = |it: &&Oid| relation::kind(**it) == Some('p') || !relation::is_partition(**it);
        watched.extend(self.with_partitions.iter().filter(tells));
        watched.push(self.view);
        watched.extend(&self.with_row_types);
        watched.extend(self.tables());
        watched
    }
}

const TEXT_SEARCH: &CStr = c"default_text_search_config";

/// Has a stream table follow the settings of the session where what it followed cannot be set any more.
pub fn renew_settings(pgs_id: i64) {
    let (mut known, mut relation) = (Vec::new(), None);
    spi::ask(
        "SELECT settings, pgs_relid FROM pgstream.pgs_stream_tables WHERE pgs_id = $1",
        &[pgs_id.into()],
        |row| {
            known = row.get::<Vec<String>>(0).unwrap_or_default();
            relation = row.get::<Oid>(1);
        },
    );
    let mut renewed = Vec::new();
    for (at, pair) in pairs(known.clone()).into_iter().enumerate() {
        if LocalSettings::try_new(std::slice::from_ref(&pair)).is_ok() {
            continue;
        }
        let current = "SELECT pg_catalog.current_setting($1, true)";
        let name = known[2 * at].clone();
        if let Some(value) = spi::get_one::<String>(current, &[name.clone().into()]) {
            renewed.push(format!("{name} = '{value}' instead of '{}'", known[2 * at + 1]));
            known[2 * at + 1] = value;
        }
    }
    let Some(relation) = relation.filter(|_| !renewed.is_empty()) else { return };
    spi::run(
        "UPDATE pgstream.pgs_stream_tables SET settings = $2 WHERE pgs_id = $1",
        &[pgs_id.into(), known.into()],
        |_| {},
    );
    name::invalidate(relation);
    forget(pgs_id);
    let table = relation::display_name(relation);
    pgrx::notice!("stream table {table} follows {} from now on", renewed.join(", "));
}

fn load(pgs_id: i64) -> Result<Definition, Error> {
    let mut row = None;
    let mut settings = Vec::new();
    spi::ask(
        "SELECT pgs_relid, view_relid, refresh_mode = 'FULL', pgs_schema || '.' || pgs_name, settings \
         FROM pgstream.pgs_stream_tables WHERE pgs_id = $1",
        &[pgs_id.into()],
        |it| {
            settings = pairs(it.get(4).unwrap_or_default());
            row =
                Some((it.get::<Oid>(0), it.get::<Oid>(1), it.get::<bool>(2), it.get::<String>(3)));
        },
    );
    let Some((Some(relation), view, Some(is_full), Some(name))) = row else {
        return Err(Error::unknown(pgs_id));
    };
    let view = view.filter(|view| relation::exists(*view));
    let Some(view) = view else {
        return Err(Error::QueryLost(name));
    };
    relation::lock_for_reading(view);
    if !relation::exists(view) {
        // Who was waited for has made another one.
        return load(pgs_id);
    }
    catalog::check_acyclic(relation, view)?;
    let (schema, name) = relation::name(relation);
    let columns = relation::column_names(view);
    let table = quote_qualified(&schema, &name);
    let (dependencies, ignored_settings, uses_default_search);
    let mut row_types = RowTypes::default();
    let (differential, locked): (_, Vec<Oid>) = if is_full {
        (dependencies, ignored_settings, uses_default_search) = lower::look_at_view(view);
        (None, relation::tables_below(view))
    } else {
        let lowered = lower::lower_view(view)?;
        if !lowered.follows_settings {
            settings.clear();
        }
        ignored_settings = lowered.ignored_settings;
        uses_default_search = lowered.uses_default_search;
        let name = lowered.depends_on_role.then(|| name::of_role(relation::owner(relation)));
        row_types = lowered.row_types;
        let mut differential = differential(
            pgs_id,
            &table,
            &columns,
            lowered.plan,
            lowered.depends_on_moment,
            name,
            &row_types,
            &lowered.expressions,
        );
        differential.parts = lowered.parts;
        differential.permissions = lowered.permissions;
        differential.readers = lowered.readers;
        differential.depends_on_role = lowered.depends_on_role;
        differential.rights = lowered.rights;
        differential.seal = seal::current(relation, &differential);
        let locked = lowered.dependencies.iter().map(|it| it.oid).collect();
        dependencies = lowered.dependencies;
        (Some(differential), locked)
    };
    settings.retain(|(name, _)| !ignored_settings.contains(&name.as_c_str()));
    Ok(Definition {
        with_partitions: relation::with_descendants(&locked),
        pgs_id,
        relation,
        view,
        table,
        columns,
        settings,
        uses_default_search,
        differential,
        locked,
        with_row_types: row_types.values().map(|it| it.relation).collect(),
        dependencies,
        has_unique_indexes: relation::has_unique_indexes(relation),
        statements: RefCell::default(),
        is_described: Cell::default(),
    })
}

fn pairs(alternating: Vec<String>) -> Vec<(CString, CString)> {
    let text = |it: &String| CString::new(it.as_str()).expect("a setting has no NUL");
    alternating.chunks_exact(2).map(|it| (text(&it[0]), text(&it[1]))).collect()
}

#[expect(clippy::too_many_arguments, reason = "one call, of what the catalog holds")]
fn differential(
    pgs_id: i64,
    table: &str,
    columns: &[String],
    plan: pgstream_ivm::plan::Plan,
    depends_on_moment: bool,
    owner: Option<String>,
    row_types: &RowTypes,
    expressions: &[u64],
) -> Differential {
    let mut pipeline = stage::stage(plan);
    let last = pipeline.stages.len() - 1;
    let storages: Vec<Storage> = pipeline
        .stages
        .iter()
        .enumerate()
        .map(|(index, stage)| {
            let state = state_columns(stage);
            let counted = stage.is_counted();
            let inline = pipeline.is_deferred(index).then(|| stage.body.clone());
            if index == last {
                let mut names = vec![String::new(); stage.output.len()];
                for (column, position) in columns.iter().zip(&pipeline.visible) {
                    names[*position] = quote(column);
                }
                Storage { table: table.to_owned(), columns: names, state, inline, counted }
            } else {
                let columns = (0..stage.output.len()).map(|it| format!("c{it}")).collect();
                Storage { table: stage_table(pgs_id, index), columns, state, inline, counted }
            }
        })
        .collect();
    let sources = tracked_sources(&pipeline);
    // Renaming something does not change what is stored, but for fields of values that are rows.
    let stored: Vec<_> = storages.iter().map(|it| (&it.columns, &it.state, it.counted)).collect();
    let layout = format!(
        "3 {:?} {stored:?} {owner:?} {row_types:?} {expressions:?}",
        pipeline.without_names()
    );
    let fingerprint = format!("{:016x}", xxhash_rust::xxh3::xxh3_64(layout.as_bytes()));
    // What is stored does not depend on the indexes that there are.
    look_up::indexed(&mut pipeline, &|order| has_index(order, &storages));
    let mut matches = look_up::matches(&pipeline);
    matches.retain(|orders| orders.iter().any(|it| has_index(it, &storages)));
    let has_other_members = have_other_members(&sources);
    Differential {
        pipeline,
        storages,
        sources,
        depends_on_moment,
        fingerprint,
        parts: Vec::new(),
        permissions: Vec::new(),
        readers: Vec::new(),
        depends_on_role: false,
        rights: Rights::default(),
        matches,
        seal: None,
        has_other_members,
    }
}

fn have_other_members(sources: &[TrackedSource]) -> bool {
    sources.iter().any(|it| capture::has_other_members(it.relation))
}

/// Whether an index finds the first rows in an order.
pub fn has_index(order: &Ordered, storages: &[Storage]) -> bool {
    let keys: Vec<i16> = order.keys.iter().map(|it| attribute(&order.source, *it)).collect();
    let by = attribute(&order.source, order.by);
    table_of(&order.source, storages).is_some_and(|it| relation::has_ordered_index(it, &keys, by))
}

/// The table that holds the rows of a source, if it exists.
fn table_of(source: &Source, storages: &[Storage]) -> Option<Oid> {
    match source {
        Source::Table { oid, .. } => Some(Oid::from(*oid)),
        Source::Stage(stage) => name::resolve(&storages[*stage].table),
    }
}

/// The attribute number in that table of what [`Ordered`] names.
fn attribute(source: &Source, column: usize) -> i16 {
    // The row id stands before the columns of a stage.
    let before = if matches!(source, Source::Stage(_)) { 2 } else { 0 };
    i16::try_from(column + before).expect("an attribute number")
}

/// The hidden table of an inner stage.
pub fn stage_table(pgs_id: i64, stage: usize) -> String {
    quote_qualified("pgstream_state", &format!("stage_{pgs_id}_{stage}"))
}

fn state_columns(stage: &Stage) -> Vec<(String, String)> {
    let calls = stage.group().into_iter().flat_map(|group| group.calls.iter().enumerate());
    calls
        .flat_map(|(index, call)| {
            aggregate::state(call)
                .into_iter()
                .map(move |it| (format!("s{index}_{}", it.name), it.ty.to_owned()))
        })
        .chain(stage.own_state())
        .collect()
}

fn tracked_sources(pipeline: &Pipeline) -> Vec<TrackedSource> {
    let mut sources: Vec<TrackedSource> = Vec::new();
    for scan in pipeline.stages.iter().flat_map(|stage| stage.body.scans()) {
        let Source::Table { oid, .. } = &scan.source else { continue };
        let relation = Oid::from(*oid);
        let index = sources.iter().position(|it| it.relation == relation).unwrap_or_else(|| {
            sources.push(TrackedSource { relation, attributes: Vec::new() });
            sources.len() - 1
        });
        for attribute in &scan.attributes {
            let attribute = i16::try_from(*attribute).expect("an attribute number");
            if !sources[index].attributes.contains(&attribute) {
                sources[index].attributes.push(attribute);
            }
        }
    }
    for source in &mut sources {
        source.attributes.sort_unstable();
    }
    sources
}
