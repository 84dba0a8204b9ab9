//! Refreshing a unit: stream tables that belong together, in one transaction at one snapshot.
//!
//! Each table of several has a subtransaction of its own. One that fails is recorded, those of the
//! unit that read it are held up until the next pass, and the others go on. A table that somebody
//! else has locked is not a failure: it is tried again soon. One that reads what a trigger on another one
//! has changed, where that is decoded after the commit, is refreshed by a second transaction. Should the transaction fail as a whole
//! (at its commit, say), the tables are refreshed one by one: isolation goes before simultaneity.
//!
//! Before that, a transaction of its own adds a row with the status RUNNING to the history for each
//! table that has something to do, so that others see it, and a crash leaves a trace.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeSet, HashMap, HashSet},
};

use pgrx::{
    PgSqlErrorCode,
    datum::TimestampWithTimeZone,
    pg_sys::{Oid, panic::ErrorReport},
    prelude::PgLogLevel,
};
use pgstream_core::{schedule::Micros, status::Status};

use crate::{
    catalog,
    error::Error,
    pg::{
        lock, notify,
        progress::Progress,
        relation,
        snapshot::Snapshot,
        spi,
        subtransaction::{Failure, attempt},
        time::{self, Stopwatch},
        worker,
    },
    refresh::{self, Action, Cause, Done, InitiatedBy, Occasion, Ready},
    scheduler::memory,
    settings,
};

/// How long to wait for a lock when a refresh has begun, in milliseconds: giving up costs more then.
const MIDWAY_PATIENCE: u32 = 5000;

/// What came of the refresh of one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Changed,
    Unchanged,
    /// Recorded in the catalog.
    Failed,
    /// Somebody else held a lock.
    InTheWay,
    /// A table that it reads was not refreshed.
    HeldUp,
}

/// What a scheduler has to know about the refresh of one table.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    pub verdict: Verdict,
    /// Whether only changes of its sources, which are captured, can change the table.
    pub follows_changes: bool,
    pub took: Micros,
}

const VERDICTS: [Verdict; 5] =
    [Verdict::Changed, Verdict::Unchanged, Verdict::Failed, Verdict::InTheWay, Verdict::HeldUp];

impl Report {
    fn failed(verdict: Verdict) -> Self {
        Self { verdict, follows_changes: false, took: 0 }
    }

    /// As one number, which is not 0.
    pub fn to_number(self) -> u64 {
        let verdict = VERDICTS.iter().position(|it| *it == self.verdict).expect("all are listed");
        let took = u64::try_from(self.took.clamp(0, 1 << 48)).expect("not negative");
        took << 8 | u64::from(self.follows_changes) << 7 | (verdict as u64 + 1)
    }

    pub fn from_number(number: u64) -> Option<Self> {
        Some(Self {
            verdict: *VERDICTS.get(((number & 0x7f) as usize).checked_sub(1)?)?,
            follows_changes: number & 0x80 != 0,
            took: i64::try_from(number >> 8).ok()?,
        })
    }
}

/// Refreshes the tables, given each after those that it reads, and waits for locks on them and their
/// sources for `patience` milliseconds. `begins` is told whose turn it is.
/// The reports are those of the tables, in their order. The sources whose changes were consumed are
/// added to `consumed`.
pub fn refresh(
    tables: &[i64],
    patience: u32,
    begins: &dyn Fn(usize),
    consumed: &mut HashSet<Oid>,
) -> Vec<Report> {
    let prospects = announce(tables);
    let findings = Findings::default();
    let unit =
        Unit { tables, patience, prospects: &prospects, begins, offset: 0, findings: &findings };
    let mut reports = unit.refresh();
    // In each round at least the first one is refreshed.
    let mut postponed = findings.postponed.take();
    while !postponed.is_empty() {
        let tables: Vec<i64> = postponed.iter().map(|it| tables[*it]).collect();
        let begins = |index: usize| begins(postponed[index]);
        let round = Unit { tables: &tables, begins: &begins, ..unit };
        for (report, position) in round.refresh().into_iter().zip(&postponed) {
            reports[*position] = report;
        }
        postponed = findings.postponed.take().into_iter().map(|it| postponed[it]).collect();
    }
    consumed.extend(findings.consumed.take());
    reports
}

/// Removes changes that everybody has consumed. Two refreshes that end at the same time leave them
/// to each other, since neither sees how far the other has come.
pub fn clean(sources: &HashSet<Oid>) {
    let result = worker::transaction(c"pg_stream: cleaning change buffers", || {
        worker::set_patience(worker::PATIENCE);
        for source in sources {
            if refresh::readers(*source).len() > 1 {
                refresh::clean_buffer(*source);
            }
        }
    });
    if let Err(failure) = result {
        pgrx::log!("pg_stream: cannot clean change buffers: {}", failure.message);
    }
}

/// Those that would see one source in several ways wait until all are refreshed together again.
fn one_by_one(unit: &Unit<'_>) -> Vec<Report> {
    let all: BTreeSet<i64> = unit.tables.iter().copied().collect();
    let torn = worker::transaction(c"pg_stream: looking for what must wait", || {
        memory::schedules().torn(&all)
    });
    let torn = torn.unwrap_or(all);
    let alone = |(offset, table): (usize, &i64)| {
        let one = Unit { tables: std::slice::from_ref(table), offset, ..*unit };
        if torn.contains(table) {
            return one.hold_up_alone();
        }
        match one.transaction() {
            Ok(mut reports) => reports.remove(0),
            Err(failure) => one.fail_alone(&failure),
        }
    };
    unit.tables.iter().enumerate().map(alone).collect()
}

/// What is known before the refresh.
#[derive(Default)]
struct Prospects {
    /// By table the row of the history that announced it.
    announced: HashMap<i64, i64>,
    /// By table those of the unit that it reads.
    reads: HashMap<i64, Vec<i64>>,
}

/// Announces the refresh of the tables that have something to do.
fn announce(tables: &[i64]) -> Prospects {
    let result = worker::transaction(c"pg_stream: looking for changes", || {
        worker::set_patience(worker::PATIENCE);
        let mut prospects = Prospects { reads: reads(tables), ..Prospects::default() };
        for table in tables {
            let sources = prospects.reads.get(table).into_iter().flatten();
            let may_change = sources.into_iter().any(|it| prospects.announced.contains_key(it));
            // Whatever is wrong comes to light when it is refreshed.
            if let Ok(Ok(Some(row))) = attempt(|| refresh::announce(*table, may_change)) {
                prospects.announced.insert(*table, row);
            }
        }
        if !prospects.announced.is_empty() {
            worker::commit_durably();
        }
        prospects
    });
    result.unwrap_or_default()
}

/// Who of `tables` reads whom of them.
fn reads(tables: &[i64]) -> HashMap<i64, Vec<i64>> {
    let mut reads: HashMap<i64, Vec<i64>> = HashMap::new();
    if tables.len() > 1 {
        spi::run(
            "SELECT d.pgs_id, s.pgs_id FROM pgstream.pgs_dependencies d \
             JOIN pgstream.pgs_stream_tables s ON s.pgs_relid = d.source_relid \
             WHERE d.pgs_id = ANY ($1) AND s.pgs_id = ANY ($1)",
            &[tables.to_vec().into()],
            |row| {
                let (Some(reader), Some(source)) = (row.get(0), row.get(1)) else { return };
                reads.entry(reader).or_default().push(source);
            },
        );
    }
    reads
}

#[derive(Clone, Copy)]
struct Unit<'a> {
    tables: &'a [i64],
    patience: u32,
    prospects: &'a Prospects,
    begins: &'a dyn Fn(usize),
    /// The position of the first table among all.
    offset: usize,
    findings: &'a Findings,
}

/// What an error does not tell.
#[derive(Default)]
struct Findings {
    /// Trying again is useless until somebody changes a definition.
    is_lasting: Cell<bool>,
    /// Tables that do not hold what they should. Where one shows in the middle of a transaction,
    /// that is tried again and begins with laying them out anew, before the snapshot for all.
    damaged: RefCell<HashMap<i64, String>>,
    is_new: Cell<bool>,
    /// The positions of tables to be refreshed by the next transaction.
    postponed: RefCell<Vec<usize>>,
    /// Sources whose changes were consumed.
    consumed: RefCell<HashSet<Oid>>,
}

/// One table of a unit, as far as it got.
struct Member {
    id: i64,
    started: TimestampWithTimeZone,
    ready: Option<Ready>,
    done: Option<Done>,
    report: Option<Report>,
}

impl Unit<'_> {
    fn refresh(&self) -> Vec<Report> {
        match self.transaction() {
            Ok(reports) => reports,
            Err(failure) if self.tables.len() == 1 => vec![self.fail_alone(&failure)],
            Err(failure) => {
                pgrx::log!(
                    "pg_stream: refreshing stream tables together failed: {}",
                    failure.message
                );
                self.findings.postponed.take();
                one_by_one(self)
            }
        }
    }

    /// All tables in one transaction, tried again for each that turns out to be damaged.
    fn transaction(&self) -> Result<Vec<Report>, Failure> {
        loop {
            let result = self.try_transaction();
            if !self.findings.is_new.take() {
                return result;
            }
        }
    }

    fn try_transaction(&self) -> Result<Vec<Report>, Failure> {
        self.findings.postponed.take();
        worker::transaction(c"REFRESH STREAM TABLE", || {
            let mut members: Vec<Member> = self
                .tables
                .iter()
                .map(|id| Member {
                    id: *id,
                    started: time::current(),
                    ready: None,
                    done: None,
                    report: None,
                })
                .collect();
            worker::set_patience(self.patience);
            self.lock(&mut members);
            worker::set_patience(self.patience.max(MIDWAY_PATIENCE));
            let data_timestamp = time::current();
            let snapshot = self.prepare(&mut members);
            self.hold_up_torn(&mut members, &snapshot);
            self.run(&mut members, &snapshot, data_timestamp);
            let mut cleaned = HashSet::new();
            for done in members.iter().filter_map(|it| it.done.as_ref()) {
                self.findings.consumed.borrow_mut().extend(done.consumed());
                // What stays is removed next time.
                if let Err(failure) = self.attempt(|| done.clean_up(&mut cleaned)) {
                    pgrx::log!("pg_stream: cannot clean change buffers: {}", failure.message);
                }
            }
            members.into_iter().map(|it| it.report.expect("each got one")).collect()
        })
    }

    /// In a subtransaction, unless the table is alone: then its failure is the transaction's.
    fn attempt<T>(&self, work: impl FnOnce() -> T) -> Result<T, Failure> {
        if self.tables.len() == 1 { Ok(work()) } else { attempt(work) }
    }

    /// Locks the tables in the order of their numbers, then their sources.
    fn lock(&self, members: &mut [Member]) {
        let mut order: Vec<usize> = (0..members.len()).collect();
        order.sort_by_key(|it| members[*it].id);
        for index in order {
            let member = &mut members[index];
            if !relation::try_lock_stream_table(member.id) {
                let failure = Failure {
                    code: PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
                    message: "refresh skipped: another session has locked the stream table"
                        .to_owned(),
                };
                self.fail(member, &failure);
            }
        }
        self.each(members, |member| {
            let _progress = Progress::start(member.id, time::now());
            self.raise(lock::letting_go(|| refresh::lock_sources(member.id)));
        });
    }

    /// Gives the snapshot for all tables, after what has to be built anew was.
    fn prepare(&self, members: &mut [Member]) -> Snapshot {
        let snapshot = Snapshot::for_refresh();
        self.each(members, |member| {
            let definition = self.raise(refresh::lock_sources(member.id));
            let damage = self.findings.damaged.borrow().get(&member.id).cloned();
            let cause = damage.map(Cause::Damage);
            member.ready = Some(self.raise(Ready::at(definition, &snapshot, cause)));
        });
        let is_rebuilt = |it: &Member| it.ready.as_ref().is_some_and(Ready::is_rebuilt);
        if members.iter().any(is_rebuilt) { Snapshot::latest() } else { snapshot }
    }

    /// Holds up those that would show some of a source's changes without others, since a table of
    /// another unit was left behind when its unit was committed.
    fn hold_up_torn(&self, members: &mut [Member], snapshot: &Snapshot) {
        let is_tip = |it: &Member| it.ready.as_ref().is_some_and(Ready::reads_several);
        if !members.iter().any(is_tip) {
            return;
        }
        let mut left_behind = BTreeSet::new();
        let arg = self.tables.to_vec().into();
        spi::ask_at(include_str!("left_behind.sql"), &[arg], snapshot, |row| {
            left_behind.extend(row.get::<i64>(0));
        });
        if left_behind.is_empty() {
            return;
        }
        let torn = memory::schedules().torn(&left_behind);
        for member in members.iter_mut().filter(|it| it.report.is_none() && torn.contains(&it.id)) {
            self.hold_up(member, "a stream table below it was left behind");
            member.report = Some(Report::failed(Verdict::InTheWay));
        }
    }

    fn run(
        &self,
        members: &mut [Member],
        snapshot: &Snapshot,
        data_timestamp: TimestampWithTimeZone,
    ) {
        let (mut lost, mut postponed) = (HashSet::new(), HashSet::new());
        for (index, member) in members.iter_mut().enumerate() {
            if member.report.is_none() {
                let sources = self.prospects.reads.get(&member.id);
                let reads = |some: &HashSet<i64>| {
                    sources.is_some_and(|it| it.iter().any(|it| some.contains(it)))
                };
                let has_own_undecoded =
                    || member.ready.as_ref().is_some_and(Ready::has_own_undecoded);
                if reads(&lost) {
                    self.hold_up(member, "a stream table that it reads could not be refreshed");
                } else if member.ready.as_ref().is_some_and(Ready::is_overtaken) {
                    self.hold_up(member, "a trigger has just refreshed it");
                } else if reads(&postponed) || has_own_undecoded() {
                    self.postpone(index, member);
                    postponed.insert(member.id);
                    continue;
                }
            }
            if member.report.is_some() {
                lost.insert(member.id);
                continue;
            }
            self.begin(index, member);
            let clock = Stopwatch::start();
            member.started = clock.started_at();
            let occasion = Occasion {
                by: InitiatedBy::Scheduler,
                announced: self.announced(member.id),
                data_timestamp,
            };
            let ready = member.ready.take().expect("prepared without a failure");
            let is_rebuilt = ready.is_rebuilt();
            let result = self.attempt(|| {
                let progress = Progress::start(member.id, clock.started());
                let result = ready.run(snapshot, &occasion, &clock, &progress);
                if let Err(Error::Broken { what, .. }) = &result
                    && ready.can_be_rebuilt()
                {
                    self.findings.damaged.borrow_mut().insert(member.id, what.clone());
                    self.findings.is_new.set(true);
                }
                self.raise(result)
            });
            if self.findings.is_new.get() {
                pgrx::error!("a stream table is damaged");
            }
            match result {
                Ok(done) => {
                    let is_empty = done.outcome.action == Action::NoData;
                    member.report = Some(Report {
                        verdict: if is_empty { Verdict::Unchanged } else { Verdict::Changed },
                        follows_changes: done.follows_changes(),
                        took: time::now() - clock.started(),
                    });
                    member.done = Some(done);
                }
                Err(failure) => {
                    self.fail(member, &failure);
                    lost.insert(member.id);
                    if is_rebuilt {
                        still_to_be_filled(member.id);
                    }
                }
            }
        }
    }

    /// Does something for each table that has not failed yet.
    fn each(&self, members: &mut [Member], work: impl Fn(&mut Member)) {
        for (index, member) in members.iter_mut().enumerate() {
            if member.report.is_some() {
                continue;
            }
            self.begin(index, member);
            let result = self.attempt(|| work(member));
            if let Err(failure) = result {
                self.fail(member, &failure);
            }
        }
    }

    /// It is the turn of a table.
    fn begin(&self, index: usize, member: &Member) {
        (self.begins)(self.offset + index);
        worker::show_activity(&format!(
            "REFRESH STREAM TABLE {}",
            catalog::display_name(member.id)
        ));
    }

    fn announced(&self, id: i64) -> Option<i64> {
        self.prospects.announced.get(&id).copied()
    }

    fn raise<T>(&self, result: Result<T, Error>) -> T {
        result.unwrap_or_else(|error| {
            let is_lasting =
                matches!(error, Error::Refused(_) | Error::QueryLost(_) | Error::Cyclic { .. });
            self.findings.is_lasting.set(is_lasting);
            ErrorReport::from(error).report(PgLogLevel::ERROR);
            unreachable!("an error was raised")
        })
    }

    fn fail(&self, member: &mut Member, failure: &Failure) {
        let is_lasting = self.findings.is_lasting.take();
        let announced = self.announced(member.id);
        member.report = Some(record(member.id, announced, member.started, failure, is_lasting));
    }

    /// Records that the transaction of the only table failed.
    fn fail_alone(&self, failure: &Failure) -> Report {
        let id = self.tables[0];
        let is_lasting = self.findings.is_lasting.take();
        let recorded = worker::transaction(c"pg_stream: recording a failure", || {
            record(id, self.announced(id), time::current(), failure, is_lasting)
        });
        recorded.unwrap_or_else(|failure| {
            pgrx::warning!("pg_stream cannot record a failed refresh: {}", failure.message);
            Report::failed(Verdict::Failed)
        })
    }

    /// Leaves the only table to a later pass.
    fn hold_up_alone(&self) -> Report {
        let id = self.tables[0];
        if let Some(row) = self.announced(id) {
            let reason = "refresh skipped: it waits until all that it reads is refreshed with it";
            let result = worker::transaction(c"pg_stream: recording a skipped refresh", || {
                skip(id, Some(row), time::current(), reason);
            });
            if let Err(failure) = result {
                pgrx::log!("pg_stream cannot record a skipped refresh: {}", failure.message);
            }
        }
        Report::failed(Verdict::HeldUp)
    }

    fn hold_up(&self, member: &mut Member, reason: &str) {
        let reason = format!("refresh skipped: {reason}");
        if let Some(row) = self.announced(member.id) {
            skip(member.id, Some(row), member.started, &reason);
        }
        self.leave(member);
    }

    /// Leaves a table to the next transaction.
    fn postpone(&self, index: usize, member: &mut Member) {
        self.findings.postponed.borrow_mut().push(index);
        self.leave(member);
    }

    fn leave(&self, member: &mut Member) {
        member.report = Some(Report::failed(Verdict::HeldUp));
        if member.ready.take().is_some_and(|it| it.is_rebuilt()) {
            still_to_be_filled(member.id);
        }
    }
}

/// What is laid out anew stays so when the others are committed, and the cause may show no longer.
fn still_to_be_filled(id: i64) {
    catalog::mark_for_rebuild(id, "it was laid out anew and could not be filled");
}

/// Writes down that a refresh was not tried to the end.
fn skip(id: i64, announced: Option<i64>, started: TimestampWithTimeZone, reason: &str) {
    spi::run(
        include_str!("skipped.sql"),
        &[id.into(), reason.to_owned().into(), started.into(), announced.into()],
        |_| {},
    );
}

/// Writes down that a refresh failed, or that somebody was in its way.
fn record(
    id: i64,
    announced: Option<i64>,
    started: TimestampWithTimeZone,
    failure: &Failure,
    is_lasting: bool,
) -> Report {
    let blame = Blame::of(failure);
    if blame == Blame::Others {
        skip(id, announced, started, &failure.message);
        return Report::failed(Verdict::InTheWay);
    }
    let name = catalog::display_name(id);
    pgrx::log!("pg_stream: refresh of stream table {name} failed: {}", failure.message);
    let alerts = spi::run(
        include_str!("failed.sql"),
        &[
            id.into(),
            failure.message.clone().into(),
            settings::max_consecutive_errors().into(),
            started.into(),
            (blame == Blame::Table).into(),
            announced.into(),
            notify::has_room().into(),
        ],
        |_| {},
    );
    // Of the failure, and of the suspension.
    if alerts > 1 {
        pgrx::warning!("pg_stream: stream table {name} is suspended after repeated failures");
    }
    // Where it lost its query meanwhile, it says what was dropped.
    let is_in_error = || catalog::by_id(id).is_some_and(|it| it.status == Status::Error);
    if is_lasting && !is_in_error() {
        catalog::set_status(id, Status::Error, Some(&failure.message));
    }
    Report::failed(Verdict::Failed)
}

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blame {
    Table,
    /// The server's, or an administrator's: trying again may help, suspending does not.
    Server,
    /// A lock of others.
    Others,
}

impl Blame {
    fn of(failure: &Failure) -> Self {
        use PgSqlErrorCode as Code;
        match failure.code {
            Code::ERRCODE_LOCK_NOT_AVAILABLE
            | Code::ERRCODE_T_R_DEADLOCK_DETECTED
            | Code::ERRCODE_T_R_SERIALIZATION_FAILURE => Self::Others,
            _ if failure.is_like(Code::ERRCODE_INSUFFICIENT_RESOURCES)
                || failure.is_like(Code::ERRCODE_OPERATOR_INTERVENTION)
                || failure.is_like(Code::ERRCODE_SYSTEM_ERROR) =>
            {
                Self::Server
            }
            _ => Self::Table,
        }
    }
}

/// Records that a restart interrupted the refresh of a table that began before, if one was: nobody refreshes it now. One
/// that crashes the server must not be tried again at once. Of several tables that ran nobody knows
/// which it was.
pub fn record_interruption(table: i64, before: TimestampWithTimeZone) {
    let interrupted = Failure {
        code: PgSqlErrorCode::ERRCODE_CRASH_SHUTDOWN,
        message: "interrupted by a restart".to_owned(),
    };
    let mut rows = Vec::new();
    spi::run(
        "SELECT refresh_id FROM pgstream.pgs_refresh_history \
         WHERE pgs_id = $1 AND status = 'RUNNING' AND start_time < $2",
        &[table.into(), before.into()],
        |row| rows.extend(row.get::<i64>(0)),
    );
    for row in rows {
        record(table, Some(row), time::current(), &interrupted, false);
    }
}

/// Records that the process was lost which refreshed `tables`, at that moment the one at `current`.
pub fn record_loss(tables: &[i64], current: usize) {
    let lost = Failure {
        code: PgSqlErrorCode::ERRCODE_ADMIN_SHUTDOWN,
        message: "the refresh was terminated".to_owned(),
    };
    let result = worker::transaction(c"pg_stream: recording a failure", || {
        for (position, id) in tables.iter().enumerate() {
            let row: Option<i64> = spi::get_one(
                "SELECT max(refresh_id) FROM pgstream.pgs_refresh_history \
                 WHERE pgs_id = $1 AND status = 'RUNNING'",
                &[(*id).into()],
            );
            if position == current {
                record(*id, row, time::current(), &lost, false);
            } else if let Some(row) = row {
                skip(*id, Some(row), time::current(), &lost.message);
            }
        }
    });
    if let Err(failure) = result {
        pgrx::warning!("pg_stream scheduler cannot record a failure: {}", failure.message);
    }
}
