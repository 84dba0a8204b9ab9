//! What a dump brings back becomes stream tables again.
//!
//! A dump holds the stream tables as tables, their queries as the hidden views, our catalog and
//! history, and the triggers; it holds no change buffers and no hidden state. OIDs and snapshots
//! mean nothing in another database, so a row of the catalog comes in without them. It gets the new
//! OIDs, by name, as soon as the trigger that guards the stream table is there, which pg_restore
//! creates when all tables and their rows are. The next refresh rebuilds the rest: it begins to
//! capture, and computes the query anew, so what was written in between does not matter.
//!
//! A dump without data has no rows of the catalog, and one of selected tables or schemas has no hidden
//! views either. But the security label of each stream table comes wherever the table does, and says all
//! there is to know of it. What it names may be missing, or not yet for its owner to read, so the next
//! refresh tries again to make the hidden view.
//!
//! Only its owner can set the label of a table and have it become a stream table, which gets him no more
//! than creating one.
//!
//! pg_upgrade keeps the OIDs and copies all tables as files; only the triggers are new.

use std::collections::HashMap;

use pgrx::{
    datum::TimestampWithTimeZone,
    pg_sys::{Oid, panic::ErrorReport},
    prelude::*,
};
use pgstream_core::{mode::RefreshMode, name::QualifiedName, schedule::Schedule};
use pgstream_ivm::sql::quote_qualified;
use serde_json::Value;

use crate::{
    capture,
    catalog::{self, StreamTable},
    ddl,
    error::{Error, rephrased},
    lower,
    pg::{
        deparse::PortableSettings,
        dump,
        event::{Class, Command, OwnCommands},
        label,
        lock::{self, Lock},
        member, name, relation,
        security::{Identity, LocalSettings},
        source::{self, Source, command_done},
        spi,
        subtransaction::{self, Failure},
        wake,
    },
    refresh, settings,
};

/// The trigger `pg_stream_describe`, after a change of what a label says.
#[pg_trigger(sql = false)]
fn describe_stream_table<'a>(
    trigger: &'a pgrx::PgTrigger<'a>,
) -> Result<Option<PgHeapTuple<'a, impl WhoAllocated>>, pgrx::datum::TryFromDatumError> {
    trigger
        .new()
        .and_then(|row| row.get_by_name::<i64>("pgs_id").ok().flatten())
        .into_iter()
        .for_each(describe);
    Ok(None::<PgHeapTuple<'a, AllocatedByRust>>)
}

/// Makes the label of a stream table say what it is. PostgreSQL locks the tables of a query to print
/// it: where somebody else does not let it, the label stays until the next refresh, and the locks are
/// not kept.
pub fn describe(id: i64) {
    let _superuser = Identity::superuser();
    command_done();
    let Some(view) = catalog::by_id(id).and_then(|it| it.view) else { return };
    let changed = subtransaction::unless_locked(|| {
        subtransaction::undone(|| {
            // Otherwise it may be gone when its turn comes.
            if !lock::try_relation(view, Lock::AccessShare) {
                return None;
            }
            let _no_waiting = LocalSettings::new(&[(c"lock_timeout".into(), c"1".into())]);
            let _settings = PortableSettings::enter();
            let mut changed = None;
            spi::ask(include_str!("restore/describe.sql"), &[id.into(), view.into()], |row| {
                changed = row.get::<Oid>(0).zip(row.get::<String>(1));
            });
            changed
        })
    });
    if let Some((table, text)) = changed.flatten() {
        label::set(table, &text);
    }
}

/// After ALTER: queries that name the object may read otherwise now.
pub fn follow_names(command: &Command) {
    let objects = match command.class {
        Class::Trigger | Class::Rule => return,
        Class::Schema | Class::Extension => {
            catalog::all().iter().for_each(|it| describe(it.id));
            return;
        }
        // A column has the same name in all that inherit it.
        Class::Relation => source::members(command.object, Lock::None),
        Class::Other(_) => vec![command.object],
    };
    let mut readers = Vec::new();
    spi::ask(
        include_str!("restore/named.sql"),
        &[command.class.oid().into(), objects.into()],
        |row| readers.extend(row.get::<i64>(0)),
    );
    readers.into_iter().for_each(describe);
}

/// Whether a dump, which makes some views in two steps, has left a hidden view what it was. It may have
/// the name of one that is none of its business. One that it is going to drop it empties before.
pub fn is_same_query(view: Oid) -> bool {
    let Some(stream_table) = catalog::by_view(view) else { return true };
    let table = stream_table.relation;
    let text = catalog::query_text(view);
    relation::tables_below(view).is_empty()
        || Description::of(table).map(|it| it.definition) == text
            && relation::owner(view) == relation::owner(table)
}

/// Before somebody sets or removes the label of a relation that he owns.
pub fn check_label(table: Oid, label: Option<&str>) -> Result<(), ErrorReport> {
    // There the catalog is empty until its files are copied.
    if dump::is_binary_upgrade() {
        return Ok(());
    }
    if catalog::by_relation(table).is_some() {
        return Err(ErrorReport::new(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!(
                "cannot change the label of stream table \"{}\"",
                relation::display_name(table)
            ),
            "check_label",
        )
        .set_detail("It says what the stream table is, for dumps.")
        .set_hint("Use pgstream.alter_stream_table."));
    }
    let is_fit = label.is_none_or(|it| Description::parse(it).is_some());
    // Hidden state is none.
    let may_be_one = relation::kind(table) == Some('r') && !member::is_own(table);
    if is_fit && (label.is_none() || may_be_one) {
        return Ok(());
    }
    Err(ErrorReport::new(
        PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
        "the label does not describe a stream table",
        "check_label",
    )
    .set_hint("Only dumps set labels of pg_stream. Use pgstream.create_stream_table."))
}

/// What the label of a stream table says.
struct Description {
    /// The number that it had where it was dumped.
    id: i64,
    /// As the user wrote it.
    query: String,
    /// The text of the hidden view: every name qualified, as it was last.
    definition: String,
    schedule: Option<String>,
    mode: RefreshMode,
    /// As in the catalog: names and values alternate.
    settings: Vec<String>,
}

impl Description {
    fn parse(label: &str) -> Option<Self> {
        let json: Value = serde_json::from_str(label).ok()?;
        let text = |key: &str| json[key].as_str().map(str::to_owned);
        let schedule = text("schedule");
        if let Some(schedule) = &schedule {
            schedule.parse::<Schedule>().ok()?;
        }
        let settings = json["settings"].as_array()?.iter();
        Some(Self {
            id: json["id"].as_i64()?,
            query: text("query")?,
            definition: text("definition")?,
            schedule,
            mode: text("refresh_mode")?.parse().ok()?,
            settings: settings.filter_map(|it| it.as_str().map(str::to_owned)).collect(),
        })
    }

    fn of(table: Oid) -> Option<Self> {
        label::of(table).and_then(|it| Self::parse(&it))
    }
}

/// Why what has come from a dump is rebuilt.
const RESTORED: &str = "it was restored from a dump";

/// The trigger `pg_stream_restore`: a row of the catalog or the history comes in from a dump.
#[pg_trigger(sql = false)]
fn on_restored_row<'a>(
    trigger: &'a pgrx::PgTrigger<'a>,
) -> Result<Option<PgHeapTuple<'a, impl WhoAllocated>>, pgrx::datum::TryFromDatumError> {
    // It shows by the search path.
    let is_restoring = dump::is_restoring();
    let _superuser = Identity::superuser();
    let Some(row) = trigger.new() else { return Ok(None) };
    let mut row = row.into_owned();
    if let Some(refresh) = row.get_by_name::<i64>("refresh_id").ok().flatten() {
        if !is_restoring {
            // The number comes from the sequence, which a dump may have set back.
            if refresh::is_numbered(refresh) {
                row.set_by_name("refresh_id", refresh::next_refresh_id())?;
            }
            return Ok(Some(row));
        }
        // A number may belong to another stream table here, which has a history of its own.
        let is_known = spi::run(
            "SELECT FROM pgstream.pgs_refresh_history WHERE refresh_id = $1 UNION ALL \
             SELECT FROM pgstream.pgs_stream_tables \
             WHERE pgs_id = $2 AND reinit_reason IS DISTINCT FROM $3",
            &[refresh.into(), row.get_by_name::<i64>("pgs_id")?.into(), RESTORED.into()],
            |_| {},
        ) > 0;
        return Ok((!is_known).then_some(row));
    }
    let text = |column| row.get_by_name::<String>(column).ok().flatten();
    let name = QualifiedName {
        schema: text("pgs_schema").unwrap_or_default(),
        name: text("pgs_name").unwrap_or_default(),
    };
    relation::lock_name(&name);
    let id = row.get_by_name::<i64>("pgs_id")?;
    let known = spi::get_one::<bool>(
        "SELECT (pgs_schema, pgs_name) = ($2, $3) FROM pgstream.pgs_stream_tables \
         WHERE pgs_id = $1 OR (pgs_schema, pgs_name) = ($2, $3) \
         ORDER BY (pgs_schema, pgs_name) = ($2, $3) DESC",
        &[id.into(), name.schema.clone().into(), name.name.clone().into()],
    );
    match known {
        None => {}
        // The number belongs to another one.
        Some(false) => {
            let new = next_id();
            // One that has just come in, too, has not got a history by now.
            spi::run(
                "UPDATE pgstream.pgs_refresh_history SET pgs_id = $2 WHERE pgs_id = $1 AND EXISTS \
                 (SELECT FROM pgstream.pgs_stream_tables WHERE pgs_id = $1 AND reinit_reason = $3)",
                &[id.into(), new.into(), RESTORED.into()],
                |_| {},
            );
            row.set_by_name("pgs_id", new)?;
        }
        Some(true) => {
            // It came with the schema, or was there before.
            let time = |column| row.get_by_name::<TimestampWithTimeZone>(column).ok().flatten();
            spi::run(
                include_str!("restore/merge.sql"),
                &[
                    name.schema.into(),
                    name.name.into(),
                    text("status").into(),
                    text("error_message").into(),
                    row.get_by_name::<bool>("is_populated")?.into(),
                    time("data_timestamp").into(),
                    time("last_refresh_at").into(),
                    time("created_at").into(),
                ],
                |_| {},
            );
            return Ok(None);
        }
    }
    for column in ["pgs_relid", "view_relid"] {
        row.set_by_name(column, None::<Oid>)?;
    }
    for column in ["consumed", "fingerprint", "seal"] {
        row.set_by_name(column, None::<String>)?;
    }
    row.set_by_name("frontier", None::<pgrx::JsonB>)?;
    row.set_by_name("needs_reinit", true)?;
    row.set_by_name("reinit_reason", RESTORED.to_owned())?;
    Ok(Some(row))
}

/// A number that no stream table has or had, whatever a dump has made of the sequence.
fn next_id() -> i64 {
    spi::get_one(include_str!("restore/next_id.sql"), &[]).expect("one row")
}

/// The trigger `pg_stream_attach`: where several sessions restore, the table may be complete already.
#[pg_trigger(sql = false)]
fn after_restored_row<'a>(
    trigger: &'a pgrx::PgTrigger<'a>,
) -> Result<Option<PgHeapTuple<'a, impl WhoAllocated>>, pgrx::datum::TryFromDatumError> {
    let _superuser = Identity::superuser();
    let id = trigger.new().and_then(|row| row.get_by_name::<i64>("pgs_id").ok().flatten());
    let table = spi::get_one::<Oid>(
        "SELECT c.oid FROM pgstream.pgs_stream_tables AS s \
         JOIN pg_catalog.pg_namespace AS n ON n.nspname = s.pgs_schema \
         JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = s.pgs_name \
         WHERE s.pgs_id = $1 AND s.pgs_relid IS NULL",
        &[id.into()],
    );
    if let Some(table) = table.filter(|it| has_guard(*it)) {
        attach_by_name(table);
    }
    Ok(None::<PgHeapTuple<'a, AllocatedByRust>>)
}

/// The event trigger `pgstream_on_create_trigger`.
#[pg_extern(sql = false)]
fn on_create_trigger() {
    // There the catalog is empty until its files are copied.
    if dump::is_binary_upgrade() {
        return;
    }
    let mut guarded = Vec::new();
    {
        let _superuser = Identity::superuser();
        spi::run(include_str!("restore/guarded.sql"), &[], |row| guarded.extend(row.get::<Oid>(0)));
    }
    guarded.into_iter().for_each(attach);
}

/// Makes a table that was restored from a dump a stream table again, if it was one. The current role
/// must own it: others may have the privilege to create triggers on it.
pub fn attach(table: Oid) {
    if dump::is_read_only() || !name::is_owned_by(table, name::current_role()) {
        return;
    }
    let _superuser = Identity::superuser();
    if !has_guard(table) {
        // With a list of tables, pg_restore leaves their triggers out.
        if Description::of(table).is_none() {
            return;
        }
        let (schema, name) = relation::name(table);
        let _own = OwnCommands::begin();
        refresh::protect(&quote_qualified(&schema, &name));
    }
    // The event trigger may have done it by now.
    if catalog::by_relation(table).is_some() {
        return;
    }
    let (schema, name) = relation::name(table);
    // Its row may be coming from the dump in another session.
    relation::lock_name(&QualifiedName { schema, name });
    if !attach_by_name(table) {
        insert_described(table);
    }
}

/// Whether the table has the trigger that every stream table has.
fn has_guard(table: Oid) -> bool {
    let guard = "SELECT FROM pg_catalog.pg_trigger \
                 WHERE tgrelid = $1 AND tgfoid = 'pgstream.guard_stream_table'::pg_catalog.regproc";
    spi::run(guard, &[table.into()], |_| {}) > 0
}

/// Whether there was a row of that name without a table.
fn attach_by_name(table: Oid) -> bool {
    let described = Description::of(table).map(|it| it.id);
    let id =
        spi::get_one::<i64>(include_str!("restore/attach.sql"), &[table.into(), described.into()]);
    let Some(stream_table) = id.and_then(catalog::by_id) else { return false };
    if let Some(view) = stream_table.view {
        relation::belongs_to(view, table);
    }
    // A stream table that was refreshed earlier took it for a table like any other.
    for reader in capture::consumers(table) {
        capture::untrack(table, reader);
        catalog::mark_for_rebuild(reader, "what it reads has become a stream table");
    }
    spi::run(
        "SELECT pg_catalog.setval('pgstream.pgs_stream_tables_pgs_id_seq', greatest(last_value, \
                    (SELECT max(pgs_id) FROM pgstream.pgs_stream_tables))) \
         FROM pgstream.pgs_stream_tables_pgs_id_seq",
        &[],
        |_| {},
    );
    name::invalidate(table);
    // The next refresh says what is missing. Another session of pg_restore may have locked a table of the
    // query and wait for the catalog: nobody looks for a deadlock so soon.
    let _missing = subtransaction::attempt(|| {
        let _soon = LocalSettings::new(&[(c"lock_timeout".into(), c"500".into())]);
        match recover_query(&stream_table) {
            // The scheduler must know at once what belongs together.
            Ok(view) => catalog::set_dependencies(stream_table.id, &lower::look_at_view(view).0),
            Err(error) => ErrorReport::from(error).report(PgLogLevel::ERROR),
        }
    });
    wake::scheduler_at_commit();
    true
}

/// Makes a row of what the label of this table says. The trigger on the row attaches the table.
fn insert_described(table: Oid) {
    let Some(description) = Description::of(table) else { return };
    let (schema, name) = relation::name(table);
    // The number matters only where the hidden view came along.
    let view = catalog::hidden_view(description.id);
    let has_own_view = view.is_some_and(|it| relation::owner(it) == relation::owner(table));
    let id = if has_own_view { description.id } else { next_id() };
    let defaults = spi::get_one::<Vec<String>>(
        "INSERT INTO pgstream.pgs_stream_tables \
         (pgs_id, pgs_schema, pgs_name, defining_query, schedule, refresh_mode, needs_reinit) \
         VALUES ($1, $2, $3, $4, $5, $6, true) RETURNING settings",
        &[
            id.into(),
            schema.into(),
            name.into(),
            description.query.into(),
            allowed(description.schedule).into(),
            description.mode.as_str().to_owned().into(),
        ],
    );
    let settings = merged(defaults.unwrap_or_default(), &description.settings);
    spi::run(
        "UPDATE pgstream.pgs_stream_tables SET settings = $2 WHERE pgs_relid = $1",
        &[table.into(), settings.into()],
        |_| {},
    );
}

/// The hidden view of a stream table. One that was restored without it gets it from its label, where
/// all that the query names is there again.
pub fn recover_query(stream_table: &StreamTable) -> Result<Oid, Error> {
    let StreamTable { id, relation: table, .. } = *stream_table;
    let lost = || Error::QueryLost(stream_table.name.to_string());
    if let Some(view) = stream_table.view {
        return if relation::exists(view) { Ok(view) } else { Err(lost()) };
    }
    let Some(description) = Description::of(table) else { return Err(lost()) };
    let owner = relation::owner(table);
    let (view, functions) = or_unrestorable(stream_table, || {
        let _settings = PortableSettings::enter();
        // The text is whatever the owner says that it is.
        let analyzed = {
            let _owner = Identity::restricted(owner);
            lower::analyze_user_query(&description.definition)?
        };
        // Of a dump from which only a part fits.
        catalog::drop_view(id);
        let view = catalog::create_view(id, &analyzed.qualified_sql, owner)?;
        Ok::<_, Error>((view, analyzed.functions_used))
    })?;
    relation::belongs_to(view, table);
    catalog::set_view(id, view);
    catalog::set_functions(id, &functions);
    if let Some(problem) = ddl::misfit(table, Some(view)) {
        return Err(Error::Misfit { name: stream_table.name.to_string(), problem });
    }
    Ok(view)
}

/// Says whose query cannot be made when `work` fails.
fn or_unrestorable<T>(stream_table: &StreamTable, work: impl FnOnce() -> T) -> T {
    rephrased(work, |Failure { code, message }| {
        let name = &stream_table.name;
        let text = format!("cannot restore the query of stream table \"{name}\": {message}");
        ErrorReport::new(*code, text, "recover_query").set_hint(
            "It was restored from a dump. Restore what its query uses, too, and refresh it.",
        )
    })
}

/// A schedule that one may have here.
fn allowed(schedule: Option<String>) -> Option<String> {
    let minimum = settings::min_schedule_seconds();
    match schedule.as_deref().map(str::parse) {
        Some(Ok(Schedule::Every(seconds))) if seconds < i64::from(minimum) => {
            Some(format!("{minimum}s"))
        }
        _ => schedule,
    }
}

/// `defaults` with the values that `described` has for the same names. Other names are of no concern,
/// and could do harm.
fn merged(defaults: Vec<String>, described: &[String]) -> Vec<String> {
    let values: HashMap<&String, &String> =
        described.chunks_exact(2).map(|it| (&it[0], &it[1])).collect();
    let pairs = defaults.chunks_exact(2);
    pairs.flat_map(|it| [it[0].clone(), (*values.get(&it[0]).unwrap_or(&&it[1])).clone()]).collect()
}

/// Whether a statement may write to a table that has the trigger of a stream table: it is none, but
/// was restored without its query; or it is being restored, by a role that owns it, for all can look like
/// pg_restore. Then the rows that are there already do not matter, for the next refresh replaces them.
pub fn accepts_write(table: Oid, operation: PgTriggerOperation) -> bool {
    let Some(stream_table) = catalog::by_relation(table) else {
        return relation::name(table).0 != "pgstream_state";
    };
    let is_restored = dump::is_restoring()
        && matches!(operation, PgTriggerOperation::Insert)
        && name::is_owned_by(table, name::current_role());
    if is_restored {
        let _superuser = Identity::superuser();
        catalog::mark_for_rebuild(stream_table.id, "rows were restored from a dump");
        capture::buffer::mark_rewritten(table);
    }
    is_restored
}

/// The event trigger `pgstream_keep_own_triggers`: those of our own tables always fire.
#[pg_extern(sql = false)]
fn keep_own_triggers() {
    if dump::is_binary_upgrade() {
        return;
    }
    let _superuser = Identity::superuser();
    let mut changed = Vec::new();
    spi::run(include_str!("restore/changed_triggers.sql"), &[], |row| {
        changed.extend(row.get::<Oid>(0).zip(row.get::<String>(1)));
    });
    for (table, trigger) in changed {
        Source::open(table, Lock::ShareRowExclusive).set_trigger(&trigger, b'A');
        command_done();
    }
}
