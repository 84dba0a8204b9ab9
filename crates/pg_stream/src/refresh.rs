//! One refresh of one stream table: manual, scheduled and initial refreshes all run this.
//!
//! In this order, each step relying on the ones before:
//!
//! 1. lock the stream table against other refreshes,
//! 2. lock the sources (TRUNCATE and rewrites are not MVCC, so a snapshot taken before the lock
//!    could see an empty table),
//! 3. take the snapshot S,
//! 4. read the frontier at S, and from the buffers what S sees and the frontier has not consumed,
//! 5. run the stages and apply their changes, as the stream table's owner,
//! 6. hand the change on to those that read this stream table,
//! 7. store the new frontier and the history row,
//! 8. remove what everybody has consumed.
//!
//! All of it is one transaction, so a change is applied exactly once or not at all. [`run`] does it
//! for one stream table. Whoever refreshes several at one snapshot takes the steps himself: 1 and 2
//! for all of them, 3, then 4 to 7 for each after those that it reads, and 8 for all.

mod advance;
mod definition;
mod delta;
mod differential;
mod explain;
mod full;
mod guard;
mod runnable;
mod seal;
mod single;
mod statements;
mod storage;
mod verify;

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    rc::Rc,
};

use pgrx::{
    PgSqlErrorCode,
    datum::TimestampWithTimeZone,
    pg_sys::{Datum, Oid},
};
use pgstream_core::frontier::Frontier;
use pgstream_ivm::plan::Source;

use self::{
    advance::State,
    definition::{Definition, Differential, TrackedSource},
    delta::Counts,
};
pub use self::{
    advance::{Reader, clean_buffer, is_numbered, next_refresh_id, readers},
    explain::explain,
    seal::resealed,
    storage::{create, protect},
    verify::verify,
};
use crate::{
    capture::{self, delta::Seen},
    catalog,
    error::Error,
    fault::{self, Step},
    lower::Refusal,
    monitor::alert,
    pg::{
        access::{self, Quiet, Roles},
        progress::{Phase, Progress},
        relation,
        security::Identity,
        snapshot::Snapshot,
        spi::Session,
        store::Store,
        subtransaction::{self, Avoidable},
        table,
        time::{self, Stopwatch},
    },
    restore,
    settings::{self, UserTriggers},
};

/// Who asked for a refresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitiatedBy {
    Scheduler,
    Manual,
    Initial,
}

/// What a refresh did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    NoData,
    Full,
    Differential,
    /// Rebuilt because the definition of something that the query uses changed.
    Reinitialize,
}

impl Action {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoData => "NO_DATA",
            Self::Full => "FULL",
            Self::Differential => "DIFFERENTIAL",
            Self::Reinitialize => "REINITIALIZE",
        }
    }
}

impl InitiatedBy {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scheduler => "SCHEDULER",
            Self::Manual => "MANUAL",
            Self::Initial => "INITIAL",
        }
    }
}

/// The result of a refresh.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub action: Action,
    pub inserted: u64,
    pub updated: u64,
    pub deleted: u64,
    /// Whether the frontier has to move.
    has_consumed: bool,
}

impl Outcome {
    fn is_empty(&self) -> bool {
        self.inserted + self.updated + self.deleted == 0
    }
}

/// Why what is stored is laid out and computed anew.
#[derive(Clone, Debug)]
pub enum Cause {
    /// The definition of something that the query uses changed.
    Definition,
    /// What is stored may not be what the last refresh left. Others who read the stream table have
    /// not been told of what happened to it, so their next refresh computes everything anew.
    Damage(String),
    /// Somebody wants it.
    Asked,
}

/// Who refreshes.
#[derive(Clone, Copy, Debug)]
pub struct Occasion {
    pub by: InitiatedBy,
    /// The row of the history that announced it.
    pub announced: Option<i64>,
    /// A moment before the snapshot.
    pub data_timestamp: TimestampWithTimeZone,
}

/// Refreshes a stream table. The caller has checked privileges and status.
pub fn run(pgs_id: i64, by: InitiatedBy) -> Result<Outcome, Error> {
    run_for(pgs_id, by, None)
}

/// Computes a stream table anew, whatever is stored in it. The caller has checked privileges.
pub fn repair(pgs_id: i64) -> Result<Outcome, Error> {
    {
        let _superuser = Identity::superuser();
        relation::lock_stream_table(pgs_id);
        definition::renew_settings(pgs_id);
    }
    run_for(pgs_id, InitiatedBy::Manual, Some(Cause::Asked))
}

fn run_for(pgs_id: i64, by: InitiatedBy, cause: Option<Cause>) -> Result<Outcome, Error> {
    let clock = Stopwatch::start();
    let progress = Progress::start(pgs_id, clock.started());
    let _superuser = Identity::superuser();
    refuse_inside_itself(pgs_id)?;
    relation::lock_stream_table(pgs_id);
    fault::point(Step::StreamTableLocked);
    let definition = lock_sources(pgs_id)?;
    fault::point(Step::SourcesLocked);
    let mut snapshot = Snapshot::for_refresh();
    fault::point(Step::SnapshotTaken);
    let mut ready = Ready::at(Rc::clone(&definition), &snapshot, cause)?;
    if ready.is_rebuilt() {
        snapshot = Snapshot::latest();
    }
    // Where the snapshot is older than this statement, it is not older than the transaction.
    let is_old = relation::is_strict_transaction() && !ready.is_rebuilt();
    let data_timestamp = if is_old { time::of_transaction() } else { clock.started_at() };
    let occasion = Occasion { by, announced: None, data_timestamp };
    let mut result = ready.run(&snapshot, &occasion, &clock, &progress);
    if let Err(Error::Broken { what, .. }) = &result
        && ready.can_be_rebuilt()
    {
        ready = Ready::at(Rc::clone(&definition), &snapshot, Some(Cause::Damage(what.clone())))?;
        snapshot = Snapshot::latest();
        result = ready.run(&snapshot, &occasion, &clock, &progress);
    }
    let done = result?;
    done.clean_up(&mut HashSet::new());
    Ok(done.outcome)
}

/// A stream table that is locked, with its sources, and laid out for its definition.
pub struct Ready {
    definition: Rc<Definition>,
    state: State,
    cause: Option<Cause>,
    /// See [`advance::advances`].
    advances: u64,
}

/// A stream table that was refreshed.
pub struct Done {
    pub outcome: Outcome,
    definition: Rc<Definition>,
    frontier: Frontier,
    seen: HashMap<Oid, Vec<Seen>>,
}

impl Ready {
    /// Looks at the stream table as `snapshot` sees it, and lays out its storage anew if there is a
    /// cause to do so.
    pub fn at(
        definition: Rc<Definition>,
        snapshot: &Snapshot,
        cause: Option<Cause>,
    ) -> Result<Self, Error> {
        check_permissions(&definition);
        let state = State::read(definition.pgs_id, snapshot)?;
        fault::point(Step::StateRead);
        let cause = cause.or_else(|| state.cause_to_rebuild(&definition));
        if let Some(Cause::Damage(what)) = &cause {
            warn_of_damage(&definition, what);
        }
        let differential = definition.differential.as_ref().filter(|_| cause.is_some());
        let definition = if let Some(differential) = differential {
            storage::begin_rebuild(&definition, differential);
            lock_sources(definition.pgs_id)?
        } else {
            definition
        };
        if let Some(differential) = definition.differential.as_ref().filter(|_| cause.is_some()) {
            storage::rebuild(&definition, differential)?;
        }
        if definition.differential.is_none() && state.needs_reinit {
            catalog::set_dependencies(definition.pgs_id, &definition.dependencies);
        }
        let advances = advance::advances(definition.pgs_id);
        Ok(Self { definition, state, cause, advances })
    }

    /// Whether the stream table was refreshed since, by a trigger in this transaction: what was looked at is
    /// out of date.
    pub fn is_overtaken(&self) -> bool {
        self.advances != advance::advances(self.definition.pgs_id)
    }

    /// Whether there may be several ways to see a change.
    pub fn reads_several(&self) -> bool {
        self.definition.dependencies.len() > 1
    }

    /// Whether it reads what this transaction has changed meanwhile, by a trigger, and what is not decoded
    /// before it has been committed.
    pub fn has_own_undecoded(&self) -> bool {
        own_undecoded(&self.definition).is_some()
    }

    /// Whether the storage was laid out anew. Capture may have begun just now: only a snapshot taken
    /// after that misses nothing.
    pub fn is_rebuilt(&self) -> bool {
        self.cause.is_some()
    }

    /// Whether to lay out anew is an answer to [`Error::Broken`].
    pub fn can_be_rebuilt(&self) -> bool {
        !self.is_rebuilt() && self.definition.differential.is_some()
    }

    /// Refreshes at `snapshot`. After [`Error::Broken`] what is stored is good for nothing but to be
    /// rebuilt.
    pub fn run(
        &self,
        snapshot: &Snapshot,
        occasion: &Occasion,
        clock: &Stopwatch,
        progress: &Progress,
    ) -> Result<Done, Error> {
        let definition = &*self.definition;
        let _running = Running::begin(definition.pgs_id);
        let session = Session::open();
        // Before the buffers are read: what triggers of the stream table write comes after.
        let frontier = snapshot.frontier();
        let seen = RefCell::default();
        let refresh = Refresh { definition, snapshot, session: &session, seen: &seen, progress };
        let outcome = match &self.cause {
            Some(cause) => refresh.rebuilt(matches!(cause, Cause::Definition))?,
            None => refresh.run(&self.state)?,
        };
        progress.enter(Phase::Finishing);
        let note = match &self.cause {
            Some(Cause::Damage(what)) => Some(what.as_str()),
            _ => None,
        };
        advance::store(definition, &outcome, &frontier, (occasion, note), clock, snapshot);
        if !definition.is_described.replace(true) {
            restore::describe(definition.pgs_id);
        }
        if outcome.action != Action::NoData {
            alert::completed(definition.relation, &outcome, clock.milliseconds());
        }
        if matches!(outcome.action, Action::Full | Action::Reinitialize)
            && relation::has_user_triggers(definition.relation)
        {
            alert::refreshed_without_triggers(definition.relation, &outcome);
        }
        if self.is_rebuilt() {
            // What was cached knows the tables that are gone.
            definition::forget(definition.pgs_id);
        }
        let definition = Rc::clone(&self.definition);
        Ok(Done { outcome, definition, frontier, seen: seen.take() })
    }
}

impl Done {
    /// Removes from the buffers what everybody has consumed. To be called right before the end of
    /// the transaction. Those in `cleaned` were, by another one that was refreshed at the same snapshot.
    pub fn clean_up(&self, cleaned: &mut HashSet<Oid>) {
        if self.outcome.has_consumed {
            advance::clean_buffers(&self.definition, &self.frontier, &self.seen, cleaned);
        }
        fault::point(Step::Finished);
    }

    /// The sources whose changes were consumed.
    pub fn consumed(&self) -> Vec<Oid> {
        if self.outcome.has_consumed { self.definition.tracked_sources() } else { Vec::new() }
    }

    /// Whether only changes of its sources, which are captured, can change the stream table.
    pub fn follows_changes(&self) -> bool {
        let differential = self.definition.differential.as_ref();
        differential.is_some_and(|it| !it.depends_on_moment && !it.depends_on_role)
    }
}

/// Adds a row to the history that says that the refresh of a stream table is running, unless there
/// is nothing to do. `may_change` tells that something will be before it has its turn.
pub fn announce(pgs_id: i64, may_change: bool) -> Result<Option<i64>, Error> {
    let snapshot = Snapshot::latest();
    let state = State::read(pgs_id, &snapshot)?;
    definition::recheck(pgs_id)?;
    let definition = definition::of(pgs_id)?;
    let action = if state.cause_to_rebuild(&definition).is_some() {
        Action::Reinitialize
    } else {
        match (&definition.differential, &state.frontier) {
            (Some(it), Some(frontier)) if state.is_populated && !it.depends_on_moment => {
                let is_pending = |source: &TrackedSource| {
                    capture::delta::is_pending(source.relation, &snapshot, frontier)
                };
                if !may_change && !it.sources.iter().any(is_pending) {
                    return Ok(None);
                }
                Action::Differential
            }
            _ => Action::Full,
        }
    };
    Ok(Some(advance::announce(pgs_id, action)))
}

/// Raises the error that the query would raise if its owner ran it.
fn check_permissions(definition: &Definition) {
    if let Some(differential) = &definition.differential {
        access::check(&differential.permissions, relation::owner(definition.relation));
    }
}

/// Tells everybody who might want to know.
fn warn_of_damage(definition: &Definition, what: &str) {
    alert::reinitialized(definition.relation, what);
    pgrx::ereport!(
        WARNING,
        PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
        format!(
            "stream table {} is computed anew: {what}",
            relation::display_name(definition.relation)
        ),
        "Somebody changed it or its hidden state behind the extension's back, or this is a bug."
    );
}

/// The name of the stream table if its next refresh has to rebuild it.
pub fn must_be_rebuilt(pgs_id: i64) -> Result<Option<String>, Error> {
    definition::forget(pgs_id);
    let definition = definition::of(pgs_id)?;
    let state = State::read(pgs_id, &Snapshot::latest())?;
    Ok(state.cause_to_rebuild(&definition).map(|_| relation::display_name(definition.relation)))
}

/// Locks what the query reads, then the stream table. Locking lets changes of definition in, so it
/// repeats until the definition that was locked is the current one.
pub fn lock_sources(pgs_id: i64) -> Result<Rc<Definition>, Error> {
    let known = definition::cached(pgs_id);
    if known.is_none()
        && let Some(table) = catalog::by_id(pgs_id)
        && table.view.is_none()
        && relation::exists(table.relation)
    {
        restore::recover_query(&table)?;
    }
    // The definition is made of what the sources are, so it must not be made while they change.
    let sources = known.as_ref().map_or_else(|| catalog::sources(pgs_id), |it| it.locked.clone());
    sources.iter().for_each(|it| relation::lock_for_reading(*it));
    let table = known.map(|it| it.relation);
    let table = table.or_else(|| catalog::by_id(pgs_id).map(|it| it.relation));
    table.iter().for_each(|it| relation::lock_for_reading(*it));
    if !table.is_some_and(relation::exists) {
        return Err(Error::unknown(pgs_id));
    }
    definition::recheck(pgs_id)?;
    let mut definition = definition::of(pgs_id)?;
    loop {
        for source in &definition.locked {
            relation::lock_for_reading(*source);
        }
        let current = definition::of(pgs_id)?;
        if Rc::ptr_eq(&definition, &current) {
            break;
        }
        definition = current;
    }
    refuse_temporary_children(&definition)?;
    refuse_running_statements(&definition)?;
    Ok(definition)
}

/// In this session the query has rows that it has in no other.
fn refuse_temporary_children(definition: &Definition) -> Result<(), Error> {
    let child = definition.with_partitions.iter().find(|it| table::is_own_temporary(**it));
    child.map_or(Ok(()), |it| {
        let construct = format!("a table with the temporary child {}", table::name(*it));
        Err(Refusal::always(construct, "it is visible to one session only").into())
    })
}

/// What a statement of this session that is still running has changed is visible, and will be
/// captured when it has ended: it would count twice. So would what this transaction has changed, where
/// changes are decoded.
fn refuse_running_statements(definition: &Definition) -> Result<(), Error> {
    let is_changed = |it: &&Oid| relation::has_pending_triggers(**it);
    if let Some(source) = definition.with_partitions.iter().find(is_changed) {
        return Err(Error::StatementRunning(relation::display_name(*source)));
    }
    match own_undecoded(definition) {
        Some(source) => Err(Error::NotDecodedYet(relation::display_name(source))),
        None => Ok(()),
    }
}

/// A source with changes of this transaction that are not decoded yet.
fn own_undecoded(definition: &Definition) -> Option<Oid> {
    let tracked = definition.tracked_sources();
    tracked.into_iter().find(|it| capture::decoding::has_own_changes(*it))
}

thread_local! {
    /// The stream tables that this backend is refreshing, the innermost last: triggers and functions
    /// that run meanwhile may refresh others.
    static RUNNING: RefCell<Vec<i64>> = const { RefCell::new(Vec::new()) };
}

/// A refresh that is under way while this lives.
struct Running;

impl Running {
    fn begin(pgs_id: i64) -> Self {
        RUNNING.with_borrow_mut(|it| it.push(pgs_id));
        Self
    }
}

impl Drop for Running {
    // Also runs when an error unwinds.
    fn drop(&mut self) {
        RUNNING.with_borrow_mut(|it| _ = it.pop());
    }
}

fn refuse_inside_itself(pgs_id: i64) -> Result<(), Error> {
    if RUNNING.with_borrow(|it| it.contains(&pgs_id)) {
        return Err(Error::StatementRunning(catalog::display_name(pgs_id)));
    }
    Ok(())
}

/// What happened to the sources.
struct Deltas {
    /// For each source that changed.
    stores: HashMap<Oid, Store>,
    /// How many rows of the sources changed; an update is one.
    changed: u64,
    /// Whether there were rows in the buffers, even if they cancelled each other out.
    has_consumed: bool,
}

#[derive(Clone, Copy)]
struct Refresh<'a> {
    definition: &'a Definition,
    snapshot: &'a Snapshot,
    session: &'a Session,
    /// The rows of each buffer that was read.
    seen: &'a RefCell<HashMap<Oid, Vec<Seen>>>,
    progress: &'a Progress,
}

impl Refresh<'_> {
    fn run(&self, state: &State) -> Result<Outcome, Error> {
        let Some(differential) = &self.definition.differential else {
            let mut outcome = self.full(None, Action::Full)?;
            if state.is_populated && outcome.is_empty() {
                outcome.action = Action::NoData;
            }
            return Ok(outcome);
        };
        let Some(frontier) = state.frontier.as_ref().filter(|_| state.is_populated) else {
            return self.full(Some(differential), Action::Full);
        };
        if differential.depends_on_moment {
            let mut outcome = self.full(Some(differential), Action::Full)?;
            if outcome.is_empty() {
                outcome.action = Action::NoData;
            }
            return Ok(outcome);
        }
        match self.read_deltas(differential, frontier)? {
            None => self.full(Some(differential), Action::Full),
            Some(deltas) if deltas.stores.is_empty() => Ok(Outcome {
                has_consumed: deltas.has_consumed,
                ..outcome(Action::NoData, Counts::default())
            }),
            Some(deltas) if self.prefers_full(deltas.changed) => {
                self.full(Some(differential), Action::Full)
            }
            Some(deltas) => self.differential_or_full(differential, &deltas.stores),
        }
    }

    /// Whether so much has changed that computing the query anew is expected to be cheaper (ADR
    /// 0019). Not where triggers of users wait for what changes.
    fn prefers_full(&self, changed: u64) -> bool {
        /// Fewer are a handful, whatever part of a small table they are.
        const MANY: u64 = 10_000;
        let ratio = settings::differential_max_change_ratio();
        if changed < MANY || ratio == 0.0 || self.fires_user_triggers() {
            return false;
        }
        let rows = self.definition.with_partitions.iter().map(|it| relation::estimated_rows(*it));
        changed as f64 > ratio * rows.sum::<f64>()
    }

    fn fires_user_triggers(&self) -> bool {
        settings::user_triggers() != UserTriggers::Off
            && relation::has_user_triggers(self.definition.relation)
    }

    /// Applies the deltas. Where that can fail although the query does not, it is tried first.
    fn differential_or_full(
        &self,
        differential: &Differential,
        deltas: &HashMap<Oid, Store>,
    ) -> Result<Outcome, Error> {
        let is_unique = self.definition.has_unique_indexes;
        if !is_unique && !mixes_versions(differential, deltas) {
            let work = || self.differential(differential, deltas, true);
            // If it goes wrong, what triggers of users did must not stay. What is stored is
            // computed anew then, so without them there is nothing to undo.
            return if relation::has_user_triggers(self.definition.relation) {
                subtransaction::undone_if_error(work)
            } else {
                work()
            };
        }
        let attempt = |in_place| {
            subtransaction::unless_avoidable(|| {
                self.in_session(|it| it.differential(differential, deltas, in_place))
            })
        };
        attempt(true)
            .or_else(|failure| match failure {
                Avoidable::Conflict => attempt(false),
                Avoidable::Data => Err(failure),
            })
            .unwrap_or_else(|_| self.in_session(|it| it.full(Some(differential), Action::Full)))
    }

    /// In a session of its own, which goes with a subtransaction that fails.
    fn in_session<T>(&self, work: impl FnOnce(&Refresh<'_>) -> T) -> T {
        let session = Session::open();
        work(&Refresh { session: &session, ..*self })
    }

    /// The changes of each source that has any; `None` when one was truncated.
    fn read_deltas(
        &self,
        differential: &Differential,
        frontier: &Frontier,
    ) -> Result<Option<Deltas>, Error> {
        self.progress.enter(Phase::ReadingChanges);
        if relation::is_strict_transaction() {
            self.refuse_later_refreshes(frontier)?;
        }
        let mut deltas = Deltas { stores: HashMap::new(), changed: 0, has_consumed: false };
        for source in &differential.sources {
            if relation::is_strict_transaction()
                && capture::truncated_after(source.relation, self.snapshot)
            {
                return Err(Error::TruncatedConcurrently(relation::display_name(source.relation)));
            }
            let delta =
                capture::delta::read(source.relation, &source.attributes, self.snapshot, frontier);
            let delta = delta.ok_or_else(|| {
                let name = relation::display_name(source.relation);
                Error::broken(
                    &self.definition.table,
                    &format!("changes of {name} are not captured"),
                )
            })?;
            self.seen.borrow_mut().insert(source.relation, delta.seen);
            fault::point(Step::ChangesRead);
            if delta.truncated {
                return Ok(None);
            }
            deltas.has_consumed |= delta.consumed > 0;
            // Changes that cancel out may have moved rows between a table and its children.
            let has_moved = delta.consumed > 0 && differential.parts.contains(&source.relation);
            deltas.changed += delta.consumed.min(delta.store.rows());
            if delta.store.rows() > 0 || has_moved {
                deltas.stores.insert(source.relation, delta.store);
            }
        }
        self.progress.set_changes(deltas.stores.values().map(|it| it.rows()).sum());
        Ok(Some(deltas))
    }

    /// Decoded changes are found as they are now, so none may be missing that another refresh has
    /// consumed since the transaction began. It would have to give in at the end anyway.
    fn refuse_later_refreshes(&self, frontier: &Frontier) -> Result<(), Error> {
        let current = State::read(self.definition.pgs_id, &Snapshot::latest())?;
        if current.frontier.as_ref() == Some(frontier) {
            return Ok(());
        }
        Err(Error::RefreshedConcurrently)
    }

    fn differential(
        &self,
        differential: &Differential,
        deltas: &HashMap<Oid, Store>,
        in_place: bool,
    ) -> Result<Outcome, Error> {
        self.progress.enter(Phase::Applying);
        let wants_output = self.has_readers()?;
        let (counts, output) = {
            let _owner = Identity::restricted(relation::owner(self.definition.relation));
            let _settings = self.definition.enter_settings()?;
            let _roles = Roles::enter(self.definition.roles());
            let is_quiet = settings::user_triggers() == UserTriggers::Off;
            let _quiet = is_quiet.then(|| Quiet::enter(self.definition.relation));
            differential::run(
                self.definition,
                differential,
                deltas,
                differential::Wants { output: wants_output, in_place },
                self.snapshot,
                self.session,
                self.progress,
            )?
        };
        if let Some(output) = output {
            self.hand_on(&differential.pipeline.visible, &output);
        }
        Ok(outcome(Action::Differential, counts))
    }

    fn full(&self, differential: Option<&Differential>, action: Action) -> Result<Outcome, Error> {
        let wants_output = self.has_readers()?;
        let (counts, output) = self.evaluated(differential, wants_output)?;
        if let Some(output) = output {
            let visible: Vec<usize> = match differential {
                Some(differential) => differential.pipeline.visible.clone(),
                None => (0..self.definition.columns.len()).collect(),
            };
            self.hand_on(&visible, &output);
        }
        Ok(outcome(action, counts))
    }

    /// Evaluates the query after its storages were laid out anew.
    fn rebuilt(&self, is_trusted: bool) -> Result<Outcome, Error> {
        let differential = self.definition.differential.as_ref();
        if is_trusted {
            return self.full(differential, Action::Reinitialize);
        }
        // Readers do not know what was stored, so the difference from that tells them nothing.
        self.has_readers()?;
        let (counts, _) = self.evaluated(differential, false)?;
        capture::buffer::mark_rewritten(self.definition.relation);
        Ok(outcome(Action::Reinitialize, counts))
    }

    fn evaluated(
        &self,
        differential: Option<&Differential>,
        wants_output: bool,
    ) -> Result<(Counts, Option<Store>), Error> {
        self.progress.enter(Phase::Evaluating);
        let _owner = Identity::restricted(relation::owner(self.definition.relation));
        let _settings = self.definition.enter_settings()?;
        let _roles = Roles::enter(self.definition.roles());
        full::run(self.definition, differential, wants_output, self.snapshot, self.session)
    }

    /// Whether other stream tables read this one. They are handed what the query computes, so it
    /// must be what is stored.
    fn has_readers(&self) -> Result<bool, Error> {
        let has_readers = capture::is_tracked(self.definition.relation);
        if has_readers && self.definition.has_row_triggers() {
            return Err(Error::AlteredSource(relation::display_name(self.definition.relation)));
        }
        Ok(has_readers)
    }

    /// Appends the change of the stream table to its own change buffer.
    fn hand_on(&self, visible: &[usize], output: &Store) {
        let mut appender = capture::buffer::Appender::open(self.definition.relation);
        let mut row = vec![Datum::from(0); visible.len()];
        let mut row_nulls = vec![false; visible.len()];
        output.each(|values, nulls| {
            for (column, position) in visible.iter().enumerate() {
                row[column] = values[*position];
                row_nulls[column] = nulls[*position];
            }
            appender.append(&row, &row_nulls, values[values.len() - 1].value() as i64);
        });
        appender.finish();
        fault::point(Step::HandedOn);
    }
}

impl Definition {
    fn tracked_sources(&self) -> Vec<Oid> {
        let sources = self.differential.iter().flat_map(|it| &it.sources);
        sources.map(|it| it.relation).collect()
    }
}

/// Whether some term of a join pairs old rows of one input with new rows of another. Such a pair may
/// never have existed, and an expression can fail on it (a division by zero, say, or a scalar sub-query
/// with several rows) although the query itself never fails.
fn mixes_versions(differential: &Differential, deltas: &HashMap<Oid, Store>) -> bool {
    let mut may_change: Vec<bool> = Vec::new();
    let mut mixes = false;
    for stage in &differential.pipeline.stages {
        let changes = |source: &Source| match source {
            Source::Table { oid, .. } => deltas.contains_key(&Oid::from(*oid)),
            // A recursion reads itself.
            Source::Stage(earlier) => may_change.get(*earlier).is_none_or(|it| *it),
        };
        let changed = stage.body.scans().into_iter().filter(|it| changes(&it.source)).count();
        mixes |= stage.body.has_join() && changed > 1;
        may_change.push(changed > 0);
    }
    mixes
}

fn outcome(action: Action, counts: Counts) -> Outcome {
    Outcome {
        action,
        inserted: counts.inserted,
        updated: counts.updated,
        deleted: counts.deleted,
        has_consumed: action != Action::NoData,
    }
}
