//! Creating what a stream table is stored in.

use pgrx::pg_sys::Oid;
use pgstream_ivm::{
    look_up::{Ordered, look_ups, orders},
    plan::Source,
    sql::{COUNT, ROW_ID, Storage, quote_qualified},
    stage::{Head, Stage},
};

use crate::{
    capture, catalog,
    ddl::drop::drop_stages,
    error::Error,
    fault::{self, Step},
    pg::{
        access::Roles,
        event::OwnCommands,
        lock::{self, Lock},
        member, name, relation,
        security::Identity,
        snapshot::Snapshot,
        spi,
        spi::Session,
        store::type_length,
        time::Stopwatch,
        types,
    },
    refresh::{
        self, Action, InitiatedBy, Occasion, advance, definition,
        definition::{Definition, Differential},
        delta::Counts,
        full, seal,
    },
};

/// Creates the table, inner stages and capture for a stream table that is in the catalog with its
/// hidden view, and fills it unless `initialize` is false. The table is owned by `owner`.
pub fn create(pgs_id: i64, owner: Oid, initialize: bool) -> Result<Oid, Error> {
    let clock = Stopwatch::start();
    let _superuser = Identity::superuser();
    let own = OwnCommands::begin();
    relation::lock_stream_table(pgs_id);
    let relation = create_table(pgs_id, owner)?;
    fault::point(Step::TableCreated);
    let definition = definition::of(pgs_id)?;
    if initialize {
        refresh::refuse_temporary_children(&definition)?;
        refresh::refuse_running_statements(&definition)?;
    }
    definition.hold_text_search();
    if let Some(differential) = &definition.differential {
        let _place = relation::lie_beside(relation);
        set_count_column(relation, &definition.table, differential);
        create_stages(&definition, differential, owner);
        track(pgs_id, differential);
    }
    let fingerprint = definition.differential.as_ref().map(|it| it.fingerprint.clone());
    spi::run(
        "UPDATE pgstream.pgs_stream_tables SET fingerprint = $2 WHERE pgs_id = $1",
        &[pgs_id.into(), fingerprint.into()],
        |_| {},
    );
    // Before the rows: whoever switches capture off and on while they come alters it.
    seal::renew(&definition);
    // What the query calls is not ours.
    drop(own);
    if initialize {
        for source in &definition.locked {
            relation::lock_for_reading(*source);
        }
        // Fresh also under REPEATABLE READ: capture starts here, not at the transaction's start.
        let snapshot = Snapshot::latest();
        let frontier = snapshot.frontier();
        let _session = Session::open();
        let inserted = {
            let _owner = Identity::restricted(owner);
            let _settings = definition.enter_settings()?;
            let _roles = Roles::enter(definition.roles());
            full::fill(&definition, definition.differential.as_ref(), &snapshot)?
        };
        let outcome = refresh::outcome(Action::Full, Counts { inserted, ..Counts::default() });
        let occasion = Occasion {
            by: InitiatedBy::Initial,
            announced: None,
            data_timestamp: clock.started_at(),
        };
        advance::store(&definition, &outcome, &frontier, (&occasion, None), &clock, &snapshot);
    }
    let _own = OwnCommands::begin();
    let _place = relation::lie_beside(relation);
    let tables = definition.differential.iter().flat_map(|it| &it.storages);
    let tables = tables.filter(|it| it.inline.is_none());
    let tables: Vec<&str> = tables.map(|it| it.table.as_str()).collect();
    for table in
        tables.iter().copied().chain(tables.is_empty().then_some(definition.table.as_str()))
    {
        index_row_id(table);
    }
    definition.differential.iter().for_each(index_stages);
    fault::point(Step::IndexesCreated);
    // The fresh indexes and statistics must be seen by the first refresh.
    definition::forget(pgs_id);
    fault::point(Step::Finished);
    Ok(relation)
}

fn create_table(pgs_id: i64, owner: Oid) -> Result<Oid, Error> {
    let mut names = None;
    spi::run(
        "SELECT pgs_schema, pgs_name, view_relid FROM pgstream.pgs_stream_tables WHERE pgs_id = $1",
        &[pgs_id.into()],
        |row| names = Some((row.get::<String>(0), row.get::<String>(1), row.get::<Oid>(2))),
    );
    let Some((Some(schema), Some(name), Some(view))) = names else {
        return Err(Error::unknown(pgs_id));
    };
    let table = quote_qualified(&schema, &name);
    let (view_schema, view_name) = relation::name(view);
    {
        let _owner = Identity::restricted(owner);
        for statement in [
            format!(
                "CREATE TABLE {table} USING heap WITH (fillfactor = 90) AS SELECT * FROM {} WITH NO DATA",
                quote_qualified(&view_schema, &view_name)
            ),
            format!("ALTER TABLE {table} ADD COLUMN {ROW_ID} bigint NOT NULL"),
            format!("ALTER TABLE {table} REPLICA IDENTITY FULL"),
        ] {
            spi::run(&statement, &[], |_| {});
        }
    }
    let relation: Oid = spi::get_one("SELECT $1::text::regclass::oid", &[table.clone().into()])
        .expect("just created");
    spi::run(
        "UPDATE pgstream.pgs_stream_tables SET pgs_relid = $2 WHERE pgs_id = $1",
        &[pgs_id.into(), relation.into()],
        |_| {},
    );
    relation::belongs_to(view, relation);
    protect(&table);
    Ok(relation)
}

/// Puts the trigger on a table that keeps everybody but a refresh from writing to it, also where
/// somebody has taken it off.
pub fn protect(table: &str) {
    for statement in [
        format!(
            "CREATE OR REPLACE TRIGGER pg_stream_guard \
             BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE \
             ON {table} FOR EACH STATEMENT EXECUTE FUNCTION pgstream.guard_stream_table()"
        ),
        format!("ALTER TABLE {table} ENABLE ALWAYS TRIGGER pg_stream_guard"),
    ] {
        spi::run(&statement, &[], |_| {});
    }
}

/// The stream table counts rows of groups exactly when its last stage has a head.
fn set_count_column(relation: Oid, table: &str, differential: &Differential) {
    let last = differential.storages.last().expect("at least one stage");
    let has_column = relation::column_names(relation).iter().any(|it| it == COUNT);
    // Readers wait for a change of columns, so there is none without need.
    let change = match (last.counted, has_column) {
        (true, false) => format!("ADD COLUMN {COUNT} bigint NOT NULL DEFAULT 0"),
        (false, true) => format!("DROP COLUMN {COUNT}"),
        _ => return,
    };
    spi::run(&format!("ALTER TABLE {table} {change}"), &[], |_| {});
}

fn create_stages(definition: &Definition, differential: &Differential, owner: Oid) {
    let stages = differential.pipeline.stages.iter().zip(&differential.storages);
    let inner = stages.enumerate().take(differential.storages.len() - 1);
    let owner_name = name::role(owner);
    for (index, (stage, storage)) in inner.filter(|(_, it)| it.1.inline.is_none()) {
        debug_assert_eq!(storage.table, definition::stage_table(definition.pgs_id, index));
        create_stage(stage, storage);
        protect(&storage.table);
        // It may be published together with all other tables.
        for change in ["REPLICA IDENTITY FULL", &format!("OWNER TO {owner_name}")] {
            spi::run(&format!("ALTER TABLE {} {change}", storage.table), &[], |_| {});
        }
        // The privileges that it has now belong to it, and are not dumped either.
        member::adopt(&storage.table);
        if stage.window().is_some_and(|it| !it.partition.is_empty()) {
            let column = &storage.state[0].0;
            spi::run(&format!("CREATE INDEX ON {} ({column})", storage.table), &[], |_| {});
        }
        if matches!(&stage.head, Some(Head::Recursion(head)) if head.is_set) {
            let rank = storage.columns.last().expect("the last column is the rank");
            spi::run(&format!("CREATE INDEX ON {} ({rank})", storage.table), &[], |_| {});
        }
    }
    fault::point(Step::StagesCreated);
}

/// Indexes the inner stages for the rows that later ones look up, and for those that are the first
/// ones in an order.
fn index_stages(differential: &Differential) {
    let Differential { pipeline, storages, .. } = differential;
    let mut ordered = Vec::new();
    for order in orders(pipeline) {
        if let Source::Stage(index) = order.source
            && index_order(&pipeline.stages[index], &storages[index], &order)
        {
            ordered.push(order);
        }
    }
    for look_up in look_ups(pipeline) {
        if let Source::Stage(index) = look_up.source {
            // Such an index serves here as well.
            let is_there =
                |it: &Ordered| it.source == look_up.source && it.keys == look_up.attributes;
            if !ordered.iter().any(is_there) {
                index_look_up(&pipeline.stages[index], &storages[index], &look_up.attributes);
            }
        }
    }
}

/// Indexes a stage for the first rows in an order, unless its columns may be too long for that.
fn index_order(stage: &Stage, storage: &Storage, order: &Ordered) -> bool {
    let is_short = |it: &usize| {
        let column = &stage.output[*it];
        let ty = Oid::from(column.ty.oid);
        // With a scale it has a type modifier, and so not too many digits.
        let is_bounded = types::is_numeric(ty) && column.scale.is_some();
        relation::is_sortable(ty) && (type_length(ty).1 > 0 || is_bounded)
    };
    let columns: Vec<usize> = order.keys.iter().copied().chain([order.by]).collect();
    if columns.len() > 32 || !columns.iter().all(is_short) {
        return false;
    }
    let names: Vec<&str> = columns.iter().map(|it| storage.columns[*it].as_str()).collect();
    let sql = format!("CREATE INDEX ON {} ({})", storage.table, names.join(", "));
    spi::run(&sql, &[], |_| {});
    true
}

fn create_stage(stage: &Stage, storage: &Storage) {
    let output = stage.output.iter().zip(&storage.columns).map(|(column, name)| {
        let collation = relation::collation_clause(Oid::from(column.ty.collation));
        format!(", {name} {}{collation}", column.ty.sql)
    });
    let state = storage.state.iter().map(|(name, ty)| format!(", {name} {ty}"));
    let count = storage.counted.then(|| format!(", {COUNT} bigint NOT NULL"));
    let columns: String = output.chain(state).chain(count).collect();
    spi::run(
        &format!(
            "CREATE TABLE {} ({ROW_ID} bigint NOT NULL{columns}) \
             USING heap WITH (fillfactor = 90)",
            storage.table
        ),
        &[],
        |_| {},
    );
}

/// Indexes a stage for a look-up by some of its columns. A B-tree has no room for long values, so
/// columns of varying length are left out of it, or hashed where there are no others.
fn index_look_up(stage: &Stage, storage: &Storage, columns: &[usize]) {
    let ty = |it: usize| Oid::from(stage.output[it].ty.oid);
    let is_short = |it: &usize| type_length(ty(*it)).1 > 0 && relation::is_sortable(ty(*it));
    let short: Vec<&str> =
        columns.iter().filter(|it| is_short(it)).map(|it| storage.columns[*it].as_str()).collect();
    let hashed = columns.iter().find(|it| relation::is_hashable(ty(**it)));
    let sql = match (short.as_slice(), hashed) {
        ([], None) => return,
        ([], Some(column)) => {
            format!("CREATE INDEX ON {} USING hash ({})", storage.table, storage.columns[*column])
        }
        (short, _) => {
            let short = &short[..short.len().min(32)];
            format!("CREATE INDEX ON {} ({})", storage.table, short.join(", "))
        }
    };
    spi::run(&sql, &[], |_| {});
}

/// Creates the index on the row id, and tells the planner that row ids are distinct: without
/// statistics it would expect hundreds of rows for each.
fn index_row_id(table: &str) {
    spi::run(&format!("CREATE INDEX ON {table} ({ROW_ID})"), &[], |_| {});
    spi::run(include_str!("statistics.sql"), &[table.to_owned().into()], |_| {});
}

/// Tracks what is read, and nothing else. Each source is locked by what is noted of it, so all are taken in one
/// order, after the locks on tables.
fn track(pgs_id: i64, differential: &Differential) {
    lock_sources(pgs_id, differential);
    let mut all = no_longer_read(pgs_id, differential);
    all.extend(differential.sources.iter().map(|it| it.relation));
    all.sort_unstable_by_key(|it| it.to_u32());
    for source in all {
        let Some(read) = differential.sources.iter().find(|it| it.relation == source) else {
            capture::untrack(source, pgs_id);
            continue;
        };
        if is_stream_table(source) {
            capture::track_stream_table(source, &read.attributes, pgs_id);
        } else {
            capture::track(source, &read.attributes, pgs_id);
        }
        fault::point(Step::SourceTracked);
    }
}

fn no_longer_read(pgs_id: i64, differential: &Differential) -> Vec<Oid> {
    let mut tracked = catalog::tracked_sources(pgs_id);
    tracked.retain(|it| !differential.sources.iter().any(|read| read.relation == *it));
    tracked
}

fn lock_sources(pgs_id: i64, differential: &Differential) {
    for source in &differential.sources {
        relation::keep_changes(source.relation);
        if is_stream_table(source.relation) {
            capture::prepare_stream_table(source.relation, &source.attributes);
        } else {
            capture::prepare(source.relation, &source.attributes);
        }
    }
    for source in no_longer_read(pgs_id, differential) {
        capture::prepare_to_untrack(source, &[pgs_id]);
    }
}

fn is_stream_table(relation: Oid) -> bool {
    spi::get_one::<i64>(
        "SELECT pgs_id FROM pgstream.pgs_stream_tables WHERE pgs_relid = $1",
        &[relation.into()],
    )
    .is_some()
}

/// Keeps other changes of definition from asking for a rebuild while one is under way: they ask for
/// another one after it. Whoever knows the definition from before must look again. As those do, it locks
/// tables before; should they wait for each other all the same, this one gives in.
pub fn begin_rebuild(definition: &Definition, differential: &Differential) {
    let pgs_id = definition.pgs_id;
    lock::relation(definition.relation, Lock::ShareRowExclusive);
    lock_sources(pgs_id, differential);
    const ROW: &str = "SELECT FROM pgstream.pgs_stream_tables WHERE pgs_id = $1 FOR UPDATE";
    let lock = |sql: &str| spi::run(sql, &[pgs_id.into()], |_| {});
    if lock(&format!("{ROW} SKIP LOCKED")) == 0 {
        lock::giving_in(|| lock(ROW));
    }
    definition::forget(pgs_id);
    fault::point(Step::RebuildBegun);
}

/// Lays out inner stages and capture anew, for a definition that is not the one they were made for.
pub fn rebuild(definition: &Definition, differential: &Differential) -> Result<(), Error> {
    let _own = OwnCommands::begin();
    let _place = relation::lie_beside(definition.relation);
    // At once: from now on the sources stay made of the tables that have been locked.
    track(definition.pgs_id, differential);
    catalog::set_dependencies(definition.pgs_id, &definition.dependencies);
    // Dumps and pg_upgrade do not keep this.
    relation::belongs_to(definition.view, definition.relation);
    catalog::hold_joined_columns(definition.view);
    definition.hold_text_search();
    drop_stages(definition.pgs_id);
    fault::point(Step::StagesDropped);
    let owner = relation::owner(definition.relation);
    protect(&definition.table);
    set_count_column(definition.relation, &definition.table, differential);
    create_stages(definition, differential, owner);
    let inner = &differential.storages[..differential.storages.len() - 1];
    for storage in inner.iter().filter(|it| it.inline.is_none()) {
        index_row_id(&storage.table);
    }
    index_stages(differential);
    seal::renew(definition);
    // What it knew of the sources' triggers and partitions has changed.
    definition::forget(definition.pgs_id);
    Ok(())
}
