//! Beginning and ending the capture of a source.
//!
//! A plain table has one trigger for each statement kind, with transition tables, because those are
//! only allowed for a single event; that is the cheapest way. Where rows may be changed by a
//! statement on another relation (partitions, inheritance), only row triggers see all of them: the
//! one on a partitioned table is copied by PostgreSQL to each partition, now and later.
//!
//! Replication applies changes without firing statement triggers, so a row trigger that fires only
//! then stands in for them. TRUNCATE fires the triggers of each table that it empties.
//!
//! The triggers of a source whose changes are decoded from the write-ahead log are there, but off.

use std::ffi::CStr;

use pgrx::{PgSqlErrorCode, ereport, pg_sys::Oid};

use super::decoding::{self, Decoding, Mode};
use crate::{
    fault::{self, Step},
    pg::{
        buffer::{self, Buffer, OWN_COLUMNS, Side},
        decode,
        event::OwnCommands,
        lock::{self, Lock},
        member, name,
        own::{OwnRow, OwnTable, Value},
        relation,
        security::Identity,
        snapshot::Snapshot,
        source::{self, Column, Kind, Source, Trigger, command_done, quoted},
        spi, wake,
    },
    settings,
};

/// Captures the attributes `columns` of `source` from now on, for the stream table `consumer`. On
/// return no writer is open whose changes are not captured: take the snapshot that populates after.
pub fn track(source: Oid, columns: &[i16], consumer: i64) {
    let _identity = Identity::superuser();
    check(source);
    decoding::leave_if_unfit(source);
    if !is_captured(source, columns) {
        keep_writers_out(source);
        create_buffer(source, columns);
        note(source).tell_others(source);
        Triggers::of(source).make_right(source);
        note(source);
    }
    register(source, consumer);
    note(source).tell_others(source);
    // Nothing joins it any more. A command about what has just joined may wait for this one already.
    if source::members(source, Lock::None).len() > 1 {
        lock::giving_in(|| source::members(source, Lock::AccessShare));
    }
    // It may have changed over since the dependency was noted.
    if decode::is_possible() {
        decoding::describe(source);
    }
}

/// Locks what [`track`] is going to lock, apart from what is noted of the source.
pub fn prepare(source: Oid, columns: &[i16]) {
    let _identity = Identity::superuser();
    check(source);
    if decoding::is_unfit(source) || !is_captured(source, columns) {
        keep_writers_out(source);
    }
}

fn is_captured(source: Oid, columns: &[i16]) -> bool {
    Triggers::of(source).are_right() && has_columns(source, columns)
}

/// Who has read the source before may get in the way of a command that waits for readers to end: it gives in.
fn keep_writers_out(source: Oid) {
    // Now, so that little is left when writers wait.
    Decoding::of(source).let_finish();
    // To drop a trigger asks for more, which nobody can give in to any more when writers wait.
    let name = source::sql_name(source);
    let drops = Triggers::of(source).surplus.into_iter().any(|it| Some(it.1) == name);
    let lock = if drops { Lock::AccessExclusive } else { Lock::ShareRowExclusive };
    lock::giving_in(|| {
        lock::relation(source, lock);
        source::members(source, Lock::ShareRowExclusive);
    });
}

/// What [`refit`] is going to find. Locks what that is going to lock, apart from what is noted.
pub fn examine(source: Oid) -> Refit {
    let _identity = Identity::superuser();
    let is_unfit = decoding::is_unfit(source);
    if is_unfit {
        lock::relation(source, Lock::ShareRowExclusive);
    }
    let triggers = Triggers::after_command(source);
    triggers.lock();
    let noted = Noted::of(source);
    let found = noted.map(|it| it.compare(source, &Noted::current(source))).unwrap_or_default();
    let has_changed = is_unfit || triggers.concern(source) || found.has_other_triggers;
    Refit { has_changed, moved: found.moved }
}

/// Makes the triggers of a captured table right again, after a command that may have changed them,
/// or the tables that inherit from it. What happened before without them is not captured: rebuild.
pub fn refit(source: Oid) -> Refit {
    let _identity = Identity::superuser();
    decoding::leave_if_unfit(source);
    // The decoder looks whether it may be decoded from now on.
    wake::scheduler_at_commit();
    let triggers = Triggers::after_command(source);
    let found = note(source);
    let has_changed = triggers.concern(source) || found.has_other_triggers;
    triggers.make_right(source);
    give_up_columns(source);
    note(source);
    Refit { has_changed, moved: found.moved }
}

/// Makes the triggers of a source fire as they should. It is locked against writers.
pub(super) fn make_right(source: Oid) {
    Triggers::of(source).make_right(source);
}

/// What [`refit`] found.
pub struct Refit {
    /// Whether the triggers on the source itself were not right, or those on others were changed.
    pub has_changed: bool,
    /// The tables that came or went since the last time.
    pub moved: Vec<Oid>,
}

pub(super) const TRACKING: &CStr = c"pgs_change_tracking";
pub(super) const TRACKING_KEY: &CStr = c"pgs_change_tracking_pkey";

/// Who reads the changes of `source`, in the order of their numbers.
pub fn consumers(source: Oid) -> Vec<i64> {
    let mut consumers = Vec::new();
    OwnTable::open(TRACKING, Lock::AccessShare).find(
        TRACKING_KEY,
        ("source_relid", source),
        &Snapshot::latest(),
        |row| consumers = row.get("tracked_by_pgs_ids").unwrap_or_default(),
    );
    consumers.sort_unstable();
    consumers
}

/// Whether a table has joined or left `source`, with its rows, since the triggers were made right, or
/// its triggers were changed, or `source` has joined another one, through which it is changed without
/// firing its statement triggers.
pub fn has_other_members(source: Oid) -> bool {
    let has_new_parent = || {
        let fires_by_statement = |it: &Trigger| it.name == trigger_name(source, "_upd");
        source::has_parent(source)
            && own_triggers(&Source::open(source, Lock::None), source)
                .iter()
                .any(fires_by_statement)
    };
    // Again, since that may have been committed between the two looks.
    differ(source) && differ(source) || has_new_parent()
}

/// A partition that is being detached differs until it is gone: what those write who do not see that
/// yet counts as a change of the source, so each refresh meanwhile must rebuild, and the first one after.
fn differ(source: Oid) -> bool {
    let latest = Snapshot::latest();
    // A detached partition is gone for those who look after that, and not for others.
    let current = || latest.with_own_changes(|| source::members(source, Lock::None));
    Noted::of(source)
        .is_some_and(|noted| noted.members != current() || noted.has_other_triggers(source))
}

/// What was known of the tables that belong to a source.
struct Noted {
    members: Vec<Oid>,
    triggers: String,
}

impl Noted {
    fn read(row: &OwnRow) -> Option<Self> {
        Some(Self { members: row.get("members")?, triggers: row.get("triggers")? })
    }

    fn of(source: Oid) -> Option<Self> {
        let mut noted = None;
        OwnTable::open(TRACKING, Lock::AccessShare).find(
            TRACKING_KEY,
            ("source_relid", source),
            &Snapshot::latest(),
            |row| noted = Self::read(row),
        );
        noted
    }

    /// As it would have to be noted now, with the partitions that are leaving.
    fn current(source: Oid) -> Self {
        let mut members =
            Snapshot::latest().with_own_changes(|| source::members(source, Lock::None));
        members.append(&mut source::leaving(&members));
        let triggers = digest(source, &members);
        Self { members, triggers }
    }

    fn has_other_triggers(&self, source: Oid) -> bool {
        self.triggers != digest(source, &self.members)
    }

    /// What has changed until now.
    fn compare(&self, source: Oid, current: &Self) -> Found {
        let came = current.members.iter().filter(|it| !self.members.contains(it));
        let went = self.members.iter().filter(|it| !current.members.contains(it));
        let moved: Vec<Oid> = came.chain(went).copied().collect();
        // What was there before is compared. Where nothing moved, that is what is noted from now on.
        let has_other_triggers = if moved.is_empty() {
            self.triggers != current.triggers
        } else {
            self.has_other_triggers(source)
        };
        Found { moved, has_other_triggers }
    }
}

/// A digest of the triggers that capture `source` on other tables, with the versions of their catalog
/// rows: who switches one off and on again leaves another one.
fn digest(source: Oid, members: &[Oid]) -> String {
    if members == [source] {
        return String::new();
    }
    spi::ask_one(
        "SELECT pg_catalog.md5(pg_catalog.string_agg( \
             pg_catalog.concat_ws(' ', oid, xmin, tgenabled), ',' ORDER BY oid)) \
         FROM pg_catalog.pg_trigger \
         WHERE tgrelid = ANY ($2) AND tgrelid <> $1 AND tgfoid = 'pgstream.capture'::pg_catalog.regproc \
         AND pg_catalog.encode(tgargs, 'escape') = $1::text || '\\000'",
        &[source.into(), members.to_vec().into()],
    )
    .unwrap_or_default()
}

/// How the tables that belong to a source differed from what was noted.
#[derive(Default)]
struct Found {
    /// Those that came or went.
    moved: Vec<Oid>,
    /// Whether there were other triggers on those that were there before.
    has_other_triggers: bool,
}

impl Found {
    /// Has all that read `source` rebuilt, where that is the first to be seen of the change.
    fn tell_others(&self, source: Oid) {
        if self.moved.is_empty() && !self.has_other_triggers {
            return;
        }
        spi::run(
            "UPDATE pgstream.pgs_change_tracking SET surprises = surprises + 1 \
             WHERE source_relid = $1",
            &[source.into()],
            |_| {},
        );
        command_done();
    }
}

/// Notes which tables belong to `source`, and their triggers.
fn note(source: Oid) -> Found {
    let current = Noted::current(source);
    let tracking = OwnTable::open(TRACKING, Lock::RowExclusive);
    if Noted::of(source)
        .is_some_and(|it| it.members == current.members && it.triggers == current.triggers)
    {
        return Found::default();
    }
    let Some(row) = tracking.lock_newest(TRACKING_KEY, ("source_relid", source)) else {
        return Found::default();
    };
    // Again, since somebody else may have been waited for.
    let current = Noted::current(source);
    let noted = Noted::read(&row);
    tracking.update(
        &row,
        &[
            Value::new("members", current.members.clone()),
            Value::new("triggers", current.triggers.clone()),
        ],
    );
    drop(tracking);
    command_done();
    noted.map(|it| it.compare(source, &current)).unwrap_or_default()
}

/// As [`track`] for a stream table, whose refresh writes the buffer.
pub fn track_stream_table(source: Oid, columns: &[i16], consumer: i64) {
    let _identity = Identity::superuser();
    if !has_columns(source, columns) {
        lock::relation(source, Lock::ShareRowExclusive);
        create_buffer(source, columns);
    }
    register(source, consumer);
}

/// As [`prepare`], for [`track_stream_table`].
pub fn prepare_stream_table(source: Oid, columns: &[i16]) {
    let _identity = Identity::superuser();
    if !has_columns(source, columns) {
        lock::relation(source, Lock::ShareRowExclusive);
    }
}

/// As [`prepare`], for [`untrack`] by all these. A plain DROP TABLE has the stream table already, which a
/// writer of the source may want to read: it gives in.
pub fn prepare_to_untrack(source: Oid, leaving: &[i64]) {
    let has_others = || consumers(source).iter().any(|it| !leaving.contains(it));
    if relation::exists(source) && !has_others() {
        lock::giving_in(|| {
            lock::relation(source, Lock::AccessExclusive);
            source::members(source, Lock::AccessExclusive);
        });
    }
}

/// Ends the capture of `source` for `consumer`; what nobody else needs is dropped.
pub fn untrack(source: Oid, consumer: i64) {
    let _identity = Identity::superuser();
    let buffer = source::sql_name(buffer::of_source(source));
    let decoding = Decoding::of(source);
    spi::run(
        "UPDATE pgstream.pgs_change_tracking \
         SET tracked_by_pgs_ids = pg_catalog.array_remove(tracked_by_pgs_ids, $2) \
         WHERE source_relid = $1",
        &[source.into(), consumer.into()],
        |_| {},
    );
    let unused = spi::run(
        "DELETE FROM pgstream.pgs_change_tracking \
         WHERE source_relid = $1 AND tracked_by_pgs_ids = '{}'",
        &[source.into()],
        |_| {},
    );
    if unused == 0 {
        return;
    }
    if relation::exists(source) {
        drop_triggers(source);
    }
    decoding.let_finish();
    if let Some(buffer) = buffer {
        member::drop_table(&buffer);
    }
    fault::point(Step::SourceReleased);
}

fn drop_triggers(source: Oid) {
    let members = source::members(source, Lock::AccessExclusive);
    for member in members.iter().copied() {
        let opened = Source::open(member, Lock::None);
        let (mut there, table) = (own_triggers(&opened, source), opened.sql_name());
        drop(opened);
        there.retain(|it| !it.is_clone);
        for trigger in there {
            drop_trigger(&trigger.name, &table);
        }
    }
    for (trigger, table) in stray_triggers(source, &members) {
        drop_trigger(&trigger, &table);
    }
}

fn drop_trigger(name: &str, table: &str) {
    run(&format!("DROP TRIGGER {} ON {table}", quoted(name)));
}

/// The triggers on a relation that capture `source`, whatever they are called.
fn own_triggers(on: &Source, source: Oid) -> Vec<Trigger> {
    let (function, argument) = (source::own_function(c"capture", &[]), source.to_u32().to_string());
    let mut triggers = on.triggers();
    triggers.retain(|it| it.function == function && it.arguments == [argument.as_str()]);
    triggers
}

fn is_captured_by_row(source: Oid) -> bool {
    let name = trigger_name(source, "");
    let there = own_triggers(&Source::open(source, Lock::AccessShare), source);
    there.iter().any(|it| it.name == name && it.per_row)
}

/// The sources that are captured by triggers on a relation.
pub fn captured_through(on: Oid) -> Vec<Oid> {
    let opened = Source::open(on, Lock::AccessShare);
    let triggers = opened.triggers();
    if triggers.is_empty() {
        return Vec::new();
    }
    let function = source::own_function(c"capture", &[]);
    let ours = triggers.into_iter().filter(|it| it.function == function);
    let numbers = ours.filter_map(|it| it.arguments.first()?.parse::<u32>().ok());
    let mut sources: Vec<Oid> = numbers.map(Oid::from).collect();
    sources.sort_unstable_by_key(|it| it.to_u32());
    sources.dedup();
    sources
}

/// Trigger and table of what captures `source` from relations that belong to it no longer.
fn stray_triggers(source: Oid, members: &[Oid]) -> Vec<(String, String)> {
    let mut strays = Vec::new();
    spi::ask(
        "SELECT tgname::text, tgrelid FROM pg_catalog.pg_trigger \
         WHERE tgfoid = 'pgstream.capture'::pg_catalog.regproc AND tgparentid = 0 \
         AND pg_catalog.encode(tgargs, 'escape') = $1::text || '\\000' AND tgrelid <> ALL ($2)",
        &[source.to_u32().to_string().into(), members.to_vec().into()],
        |row| {
            let name = row.get::<String>(0).expect("NOT NULL");
            let on = row.get::<Oid>(1).expect("NOT NULL");
            strays.extend(source::sql_name(on).map(|table| (name, table)));
        },
    );
    strays
}

/// Trigger and table of what was restored from a dump: it captures an OID of another database.
fn restored_triggers(members: &[Oid]) -> Vec<(String, String)> {
    let mut restored = Vec::new();
    spi::run(
        "SELECT tgname::text, tgrelid, pg_catalog.left(pg_catalog.encode(tgargs, 'escape'), -4) \
         FROM pg_catalog.pg_trigger \
         WHERE tgfoid = 'pgstream.capture'::pg_catalog.regproc AND tgparentid = 0 AND tgrelid = ANY ($1)",
        &[members.to_vec().into()],
        |row| {
            let name = row.get::<String>(0).expect("NOT NULL");
            let on = row.get::<Oid>(1).expect("NOT NULL");
            let source = row.get::<String>(2).and_then(|it| it.parse().ok()).unwrap_or(0);
            if buffer::of_source(Oid::from(source)) == Oid::INVALID {
                restored.extend(source::sql_name(on).map(|table| (name, table)));
            }
        },
    );
    restored
}

/// Refuses what cannot be captured.
fn check(source: Oid) {
    let opened = Source::open(source, Lock::AccessShare);
    if opened.kind() == Kind::Other {
        refuse(&format!("changes of {} cannot be captured: it is not a table", opened.sql_name()));
    }
    if !opened.is_permanent() {
        refuse(&format!(
            "changes of {} cannot be captured: it is a temporary or unlogged table",
            opened.sql_name()
        ));
    }
}

fn refuse(message: &str) -> ! {
    ereport!(ERROR, PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED, message.to_owned());
}

fn register(source: Oid, consumer: i64) {
    let updated = spi::run(
        "UPDATE pgstream.pgs_change_tracking SET tracked_by_pgs_ids = pg_catalog.array_append( \
         pg_catalog.array_remove(tracked_by_pgs_ids, $2), $2) WHERE source_relid = $1",
        &[source.into(), consumer.into()],
        |_| {},
    );
    if updated == 0 {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
            "another transaction has just begun to capture the same changes"
        );
    }
}

fn run(sql: &str) {
    let _own = OwnCommands::begin();
    spi::run(sql, &[], |_| {});
    command_done();
}

/// The columns with these numbers.
fn chosen(source: Oid, numbers: &[i16]) -> Vec<Column> {
    let opened = Source::open(source, Lock::None);
    let all = opened.columns();
    numbers
        .iter()
        .map(|number| {
            let column = all.iter().find(|it| it.number == *number);
            column.expect("a query reads only columns that exist").clone()
        })
        .collect()
}

/// Whether the buffer is there with a place for each column, of the right type.
fn has_columns(source: Oid, numbers: &[i16]) -> bool {
    let Some(buffer) = Buffer::open(source, Lock::AccessShare) else { return false };
    chosen(source, numbers).iter().all(|it| has_column(&buffer, it))
}

fn has_column(buffer: &Buffer, column: &Column) -> bool {
    let position = buffer.columns().iter().position(|it| *it == column.number);
    position.is_some_and(|it| buffer.column_type(it) == Some(column.base_type))
}

/// PostgreSQL's own limit for a table.
const MOST_COLUMNS: usize = 1600;

/// Creates the buffer, or adds what it lacks.
fn create_buffer(source: Oid, numbers: &[i16]) {
    let columns = chosen(source, numbers);
    if let Some(column) = columns.iter().find(|it| it.is_virtual) {
        refuse(&format!(
            "changes of the virtual generated column {} cannot be captured",
            column.name
        ));
    }
    forget_lost_buffer(source);
    if !crate::capture::is_tracked(source) {
        create_empty_buffer(source);
    }
    let name = source::sql_name(buffer::of_source(source)).expect("created above");
    give_up_columns(source);
    Decoding::of(source).let_finish();
    let buffer = Buffer::open(source, Lock::AccessExclusive).expect("created above");
    let (mut places, mut names) = (buffer.columns().to_vec(), buffer.column_names());
    let images = if places.is_empty() { images_of(source) } else { buffer.images() };
    let new: Vec<&Column> = columns.iter().filter(|it| !has_column(&buffer, it)).collect();
    drop(buffer);
    if new.is_empty() {
        return;
    }
    let mut clauses = Vec::new();
    for column in new {
        places.push(column.number);
        for prefix in &["new_", "old_"][..images] {
            let name = free_name(prefix, column, &names);
            let quoted = quoted(&name);
            clauses.push(format!("ADD COLUMN {quoted} {}", column.base_type_name));
            // Of a range, ANALYZE calls a function of whoever made the type, as the buffer's owner.
            clauses.push(format!("ALTER COLUMN {quoted} SET STATISTICS 0"));
            names.push(name);
        }
    }
    if names.len() > MOST_COLUMNS {
        refuse(&format!(
            "the query uses too many columns of {} for capturing its changes",
            relation::display_name(source)
        ));
    }
    run(&format!("COMMENT ON TABLE {name} IS '{}'", buffer::comment(images, &places)));
    run(&format!("ALTER TABLE {name} {}", clauses.join(", ")));
    fault::point(Step::BufferCreated);
    debug_assert_eq!(names.len(), OWN_COLUMNS + images * places.len());
}

/// Drops the columns of the buffer whose columns of the source are gone or have another type. Nobody
/// can read them any more, and they hold on to the types.
fn give_up_columns(source: Oid) {
    let unfit = |buffer: &Buffer| {
        let positions = 0..buffer.columns().len();
        let is_unfit =
            |it: &usize| buffer.columns()[*it] > 0 && buffer.fits(*it, source) != Some(true);
        positions.filter(is_unfit).collect::<Vec<_>>()
    };
    if Buffer::open(source, Lock::AccessShare).is_none_or(|it| unfit(&it).is_empty()) {
        return;
    }
    Decoding::of(source).let_finish();
    let Some(buffer) = Buffer::open(source, Lock::AccessExclusive) else { return };
    let (mut places, names, images) =
        (buffer.columns().to_vec(), buffer.column_names(), buffer.images());
    let mut clauses = Vec::new();
    for position in unfit(&buffer) {
        places[position] = 0;
        // Dropping the type has dropped them.
        if buffer.column_type(position).is_some() {
            let first = buffer.place(position, Side::New);
            let columns = &names[first..first + images];
            clauses.extend(columns.iter().map(|it| format!("DROP COLUMN {}", quoted(it))));
        }
    }
    drop(buffer);
    let name = source::sql_name(buffer::of_source(source)).expect("it is open");
    run(&format!("COMMENT ON TABLE {name} IS '{}'", buffer::comment(images, &places)));
    if !clauses.is_empty() {
        run(&format!("ALTER TABLE {name} {}", clauses.join(", ")));
    }
}

/// A buffer that somebody has dropped took changes with it that others have not read.
fn forget_lost_buffer(source: Oid) {
    let buffer = buffer::of_source(source);
    if buffer == Oid::INVALID || relation::exists(buffer) {
        return;
    }
    spi::run(
        "WITH lost AS (DELETE FROM pgstream.pgs_change_tracking WHERE source_relid = $1 \
         RETURNING tracked_by_pgs_ids) \
         UPDATE pgstream.pgs_stream_tables \
         SET needs_reinit = true, reinit_reason = 'a change buffer was dropped' \
         FROM lost WHERE pgs_id = ANY (tracked_by_pgs_ids)",
        &[source.into()],
        |_| {},
    );
    command_done();
}

/// How many columns a new buffer has for each captured one: two, if that is enough for all columns of
/// the source.
fn images_of(source: Oid) -> usize {
    let columns = Source::open(source, Lock::None).columns();
    if OWN_COLUMNS + 2 * columns.len() <= MOST_COLUMNS { 2 } else { 1 }
}

fn create_empty_buffer(source: Oid) {
    let schema = settings::change_buffer_schema();
    let schema = schema.as_ref().and_then(|it| it.to_str().ok()).unwrap_or("pgstream_changes");
    let exists = source::schema_exists(schema);
    let schema = quoted(schema);
    let name = format!("{schema}.changes_{}", source.to_u32());
    if !exists {
        run(&format!("CREATE SCHEMA {schema}"));
    }
    let _place = relation::lie_beside(source);
    run(&format!(
        "CREATE TABLE {name} (action \"char\", xid xid8, lsn pg_lsn, ordinal bigint) USING heap"
    ));
    member::adopt(&name);
    spi::run(
        "INSERT INTO pgstream.pgs_change_tracking \
             (source_relid, slot_name, tracked_by_pgs_ids, buffer_relid) \
         VALUES ($1, $2, '{}', $3::pg_catalog.regclass)",
        &[source.into(), trigger_name(source, "").into(), name.into()],
        |_| {},
    );
    command_done();
}

/// The longest name of PostgreSQL, in bytes.
const LONGEST_NAME: usize = 63;

/// A name for a column of the buffer that is not taken.
fn free_name(prefix: &str, column: &Column, taken: &[String]) -> String {
    let plain = format!("{prefix}{}", column.name);
    if plain.len() <= LONGEST_NAME && !taken.contains(&plain) {
        return plain;
    }
    (0..)
        .map(|attempt| {
            let suffix = match attempt {
                0 => format!("_{}", column.number),
                _ => format!("_{}_{attempt}", column.number),
            };
            let mut end = plain.len().min(LONGEST_NAME - suffix.len());
            while !plain.is_char_boundary(end) {
                end -= 1;
            }
            format!("{}{suffix}", &plain[..end])
        })
        .find(|it| !taken.contains(it))
        .expect("there are more numbers than columns")
}

pub(super) fn trigger_name(source: Oid, suffix: &str) -> String {
    format!("pg_stream_cdc_{}{suffix}", source.to_u32())
}

fn truncate_name(source: Oid) -> String {
    format!("pg_stream_cdc_truncate_{}", source.to_u32())
}

/// A trigger that must be on a relation.
struct Wanted {
    on: Oid,
    table: String,
    name: String,
    event: &'static str,
    level: Level,
    /// When it fires, as in `pg_trigger`.
    enabled: u8,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Row,
    Statement { transition_tables: &'static str },
}

impl Wanted {
    /// Whether this is the trigger, firing at the right time or not.
    fn is(&self, trigger: &Trigger) -> bool {
        self.name == trigger.name && trigger.per_row == (self.level == Level::Row)
    }

    fn create(&self, source: Oid) {
        let Self { table, event, .. } = self;
        let name = quoted(&self.name);
        let level = match self.level {
            Level::Row => "FOR EACH ROW".to_owned(),
            Level::Statement { transition_tables } => {
                format!("{transition_tables} FOR EACH STATEMENT")
            }
        };
        run(&format!(
            "CREATE TRIGGER {name} AFTER {event} ON {table} {level} \
             EXECUTE FUNCTION pgstream.capture('{}')",
            source.to_u32()
        ));
        if self.enabled != ENABLED_AT_FIRST {
            enable(self.on, &self.name, self.enabled);
        }
    }
}

/// When a fresh trigger fires, as in `pg_trigger`: not for replication.
const ENABLED_AT_FIRST: u8 = b'O';
/// When the triggers of a table whose changes are decoded fire.
const DISABLED: u8 = b'D';
/// When the row triggers on a partitioned table fire, and their copies on the partitions.
const ENABLED_ALWAYS: u8 = b'A';

fn enable(on: Oid, trigger: &str, enabled: u8) {
    Source::open(on, Lock::ShareRowExclusive).set_trigger(trigger, enabled);
    command_done();
}

/// What triggers capture a source, compared with those that are there.
struct Triggers {
    missing: Vec<Wanted>,
    /// Trigger and table.
    surplus: Vec<(String, String)>,
    /// As [`Self::surplus`], on tables that belong to the source no longer. They do no harm.
    stray: Vec<(String, String)>,
    /// Table, trigger, and when it should fire.
    switched: Vec<(Oid, String, u8)>,
}

impl Triggers {
    /// Of all that inherit from `source`, which is locked or the command in progress has changed.
    fn of(source: Oid) -> Self {
        Self::for_way(source, Way::of(source))
    }

    /// As [`Self::of`]. A row trigger sees all without children, too: unless the command in progress has locked
    /// the source against all, it leaves that to the next rebuild, rather than wait for readers and writers, who
    /// may wait for it.
    fn after_command(source: Oid) -> Self {
        let way = Way::of(source);
        let is_kept = way == Way::ByStatement
            && !lock::is_held(source, Lock::AccessExclusive)
            && is_captured_by_row(source);
        Self::for_way(source, if is_kept { Way::ByRow } else { way })
    }

    fn for_way(source: Oid, way: Way) -> Self {
        let members = source::members(source, Lock::AccessShare);
        let is_decoded = Decoding::of(source).mode == Mode::Wal;
        let mut triggers = Self {
            missing: Vec::new(),
            surplus: Vec::new(),
            stray: stray_triggers(source, &members),
            switched: Vec::new(),
        };
        for member in members.iter().copied() {
            let opened = Source::open(member, Lock::None);
            let (table, there) = (opened.sql_name(), own_triggers(&opened, source));
            let mut wanted = way.wanted(source, member, &table);
            if is_decoded {
                wanted.iter_mut().for_each(|it| it.enabled = DISABLED);
            }
            for trigger in there {
                let enabled = match wanted.iter().position(|it| it.is(&trigger)) {
                    Some(found) => wanted.swap_remove(found).enabled,
                    None if trigger.is_clone => ENABLED_ALWAYS,
                    None => {
                        triggers.surplus.push((trigger.name, table.clone()));
                        continue;
                    }
                };
                if trigger.enabled != enabled {
                    triggers.switched.push((member, trigger.name, enabled));
                }
            }
            triggers.missing.append(&mut wanted);
        }
        triggers.surplus.append(&mut restored_triggers(&members));
        triggers
    }

    /// Whether every change of a row is captured once.
    fn are_right(&self) -> bool {
        self.missing.is_empty() && self.surplus.is_empty() && self.switched.is_empty()
    }

    /// Whether something is to be done on a table itself.
    fn concern(&self, table: Oid) -> bool {
        let name = source::sql_name(table);
        self.missing.iter().any(|it| it.on == table)
            || self.surplus.iter().any(|it| Some(&it.1) == name.as_ref())
            || self.switched.iter().any(|it| it.0 == table)
    }

    /// Locks the tables on which something is to be done.
    fn lock(&self) {
        for (_, table) in self.surplus.iter().chain(&self.stray) {
            name::resolve(table).iter().for_each(|it| lock::relation(*it, Lock::AccessExclusive));
        }
        let changed = self.missing.iter().map(|it| it.on);
        for table in changed.chain(self.switched.iter().map(|it| it.0)) {
            lock::relation(table, Lock::ShareRowExclusive);
        }
    }

    fn make_right(&self, source: Oid) {
        for (trigger, table) in self.surplus.iter().chain(&self.stray) {
            drop_trigger(trigger, table);
        }
        for trigger in &self.missing {
            trigger.create(source);
        }
        for (table, trigger, enabled) in &self.switched {
            enable(*table, trigger, *enabled);
        }
    }
}

/// How the changes of a source are seen.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    ByStatement,
    ByRow,
    /// By row, with triggers that PostgreSQL copies to the partitions.
    Partitioned,
}

impl Way {
    /// For a relation that can be captured.
    pub(super) fn of(source: Oid) -> Self {
        let root = Source::open(source, Lock::AccessShare);
        if root.kind() == Kind::Partitioned {
            Self::Partitioned
        } else if root.is_partition() || source::has_children(source) || source::has_parent(source)
        {
            Self::ByRow
        } else {
            Self::ByStatement
        }
    }

    /// The triggers that must be on `member`, which is `source` or inherits from it.
    fn wanted(self, source: Oid, member: Oid, table: &str) -> Vec<Wanted> {
        const ANY: &str = "INSERT OR UPDATE OR DELETE";
        const TRUNCATE: Level = Level::Statement { transition_tables: "" };
        const INSERT: Level =
            Level::Statement { transition_tables: "REFERENCING NEW TABLE AS new" };
        const UPDATE: Level =
            Level::Statement { transition_tables: "REFERENCING OLD TABLE AS old NEW TABLE AS new" };
        const DELETE: Level =
            Level::Statement { transition_tables: "REFERENCING OLD TABLE AS old" };
        let name = |suffix| trigger_name(source, suffix);
        let mut wanted = vec![(truncate_name(source), "TRUNCATE", TRUNCATE, ENABLED_ALWAYS)];
        match self {
            Self::ByStatement => wanted.extend([
                (name(""), "INSERT", INSERT, ENABLED_AT_FIRST),
                (name("_upd"), "UPDATE", UPDATE, ENABLED_AT_FIRST),
                (name("_del"), "DELETE", DELETE, ENABLED_AT_FIRST),
                (name("_replica"), ANY, Level::Row, b'R'),
            ]),
            Self::ByRow => wanted.push((name(""), ANY, Level::Row, ENABLED_ALWAYS)),
            Self::Partitioned if member == source => {
                wanted.push((name(""), ANY, Level::Row, ENABLED_ALWAYS));
            }
            Self::Partitioned => {}
        }
        let wanted = wanted.into_iter().map(|(name, event, level, enabled)| Wanted {
            on: member,
            table: table.to_owned(),
            name,
            event,
            level,
            enabled,
        });
        wanted.collect()
    }
}
