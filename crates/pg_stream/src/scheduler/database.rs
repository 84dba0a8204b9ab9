//! The scheduler of one database: asks `pgstream_core::decide` what is due, gives it to its
//! workers, and sleeps until the next time, the next commit that matters, or the end of a refresh.
//!
//! It never waits: not for a refresh, and not for a lock for longer than a moment. Where no worker
//! process can be had, it refreshes by itself.

use std::collections::HashSet;

use pgrx::{datum::TimestampWithTimeZone, pg_sys};
use pgstream_core::{
    decide::{Decision, Unit},
    schedule::{Micros, SECOND},
};

use crate::{
    pg::{
        job, member, relation,
        shmem::{self, Slot, State},
        spi, time,
        worker::{self, Failure, Started, Wait},
    },
    scheduler::{
        LONGEST_SLEEP, decoder,
        memory::Memory,
        pool::{Dispatch, Finished, Pool},
        shortest_sleep,
        unit::{self, Report, Verdict},
        watch::Watch,
    },
    settings,
};

/// How often old history is removed.
const PRUNE_INTERVAL: Micros = 3600 * SECOND;
/// The pause before the catalog is read again when it could not be, in milliseconds.
const CATALOG_PAUSE: i64 = 1000;
/// The pause before a decoder that ended is started again.
const DECODER_PAUSE: Micros = 2 * SECOND;

#[pgrx::pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pg_stream_scheduler_main(argument: pg_sys::Datum) {
    let slot = shmem::slot(argument.value());
    worker::at_exit(Some(on_exit), argument.value());
    worker::begin(Some(slot.database()), c"pg_stream scheduler");
    slot.enter();
    if slot.held_until() > time::now() {
        slot.detach(State::Ended);
        worker::end();
    }
    // Those that were prepared before a restart.
    slot.note_prepared(true);
    slot.start_looking();
    match has_extension(slot) {
        Ok(true) => {
            slot.set_state(State::Running);
            // It starts one scheduler at a time.
            shmem::wake_launcher();
        }
        Ok(false) => retire(slot),
        Err(_) => worker::end(),
    }
    let wait = Wait::new(c"PgStreamSchedulerMain");
    let pool = Pool::new(slot.database());
    let mut scheduler = Scheduler {
        slot,
        memory: Memory::default(),
        pool,
        pruned_at: 0,
        decoder: None,
        is_decoder_used: false,
        decoder_not_before: 0,
        lacks_process: false,
        is_blind: false,
        argument: argument.value(),
    };
    let mut watch = Watch::default();
    let started = time::current();
    let mut has_recovered = recover(started);
    loop {
        let milliseconds = scheduler.pass();
        let now = time::since_epoch();
        let until_watch = (watch.pass(slot.generation(), now) - now) / 1000 + 1;
        has_recovered = has_recovered || recover(started);
        worker::sleep(milliseconds.min(until_watch), wait);
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn on_exit(_code: std::ffi::c_int, argument: pg_sys::Datum) {
    let slot = shmem::slot(argument.value());
    // One that could not even connect is left as it is, for the launcher to tell.
    if slot.state() == State::Running {
        slot.detach(State::Ended);
    }
    // PostgreSQL tells only the one that has started this process.
    shmem::wake_launcher();
    job::dismiss_workers();
}

/// Whether the database has the extension. If no transaction is prepared that may have created it,
/// only those matter from now on that are known to.
fn has_extension(slot: &Slot) -> Result<bool, Failure> {
    let prepared = slot.prepared();
    let label = c"pg_stream: looking for the extension";
    let has_prepared = worker::transaction(label, has_prepared)?;
    // In a transaction of its own, which sees whatever was not prepared any more.
    let has_extension = worker::transaction(label, || member::extension().is_some())?;
    if !has_extension && !has_prepared {
        slot.settle(prepared);
    }
    Ok(has_extension)
}

/// Whether a transaction of this database is prepared.
fn has_prepared() -> bool {
    let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_prepared_xacts \
               WHERE database = pg_catalog.current_database())";
    spi::get_one::<bool>(sql, &[]) == Some(true)
}

/// Ends where the extension does not exist any more. Another look at it begins afresh.
fn leave(slot: &Slot) -> ! {
    shmem::want(slot.database());
    retire(slot);
}

/// Ends where the extension does not exist, until somebody creates it.
fn retire(slot: &Slot) -> ! {
    decoder::drop_unused_slot(slot.database());
    slot.detach(State::Unneeded);
    worker::end();
}

struct Scheduler {
    slot: &'static Slot,
    memory: Memory,
    pool: Pool,
    pruned_at: Micros,
    decoder: Option<Started>,
    /// As the catalog has it.
    is_decoder_used: bool,
    decoder_not_before: Micros,
    /// Whether there was no process for it the last time.
    lacks_process: bool,
    /// Whether the catalog could not be read the last time.
    is_blind: bool,
    /// What a worker of this database is started with.
    argument: usize,
}

impl Scheduler {
    /// One look at all stream tables; returns for how many milliseconds to sleep.
    fn pass(&mut self) -> i64 {
        let now = time::since_epoch();
        for finished in self.pool.collect() {
            self.end(&finished, now);
        }
        self.slot.disarm();
        let has_catalog =
            if settings::enabled() { self.read_catalog(now) } else { self.look_at_decoder() };
        let until_decoder = self.keep_decoder(now);
        if !has_catalog {
            // No commit tells when it can be read again.
            return CATALOG_PAUSE.min(until_decoder);
        }
        if !settings::enabled() {
            return LONGEST_SLEEP.min(until_decoder);
        }
        self.settle();
        // What is decoded after this moment, the decision may not know.
        let decoded = now - (time::now() - self.slot.decoded_at());
        let mut decision = self.memory.decide(self.slot, now);
        let are_idle = self.note_idle(&decision.idle, now, decoded);
        if !decision.idle.is_empty() {
            // They are due again later.
            decision = self.memory.decide(self.slot, now);
        }
        let mut has_refreshed = false;
        for unit in &decision.units {
            match self.begin(unit, now) {
                Dispatch::Begun => {}
                Dispatch::Full => break,
                Dispatch::NoWorker => {
                    self.refresh_here(unit, now);
                    has_refreshed = true;
                }
            }
        }
        if now - self.pruned_at > PRUNE_INTERVAL {
            self.pruned_at = now;
            prune();
        }
        match (has_refreshed, are_idle) {
            (true, _) => 0,
            (false, false) => shortest_sleep(),
            (false, true) => self.sleep_after(&decision, now).min(until_decoder),
        }
    }

    /// Sees to it that there is a decoder if there is something to decode. Returns after how many
    /// milliseconds to look again.
    fn keep_decoder(&mut self, now: Micros) -> i64 {
        if let Some(process) = self.decoder.filter(|it| it.has_ended()) {
            process.forget();
            self.decoder = None;
        }
        let runs = self.decoder.is_some() || self.slot.decoder_pid().is_some();
        if runs || !(decoder::is_wanted() || self.is_decoder_used) {
            return LONGEST_SLEEP;
        }
        if now < self.decoder_not_before {
            return (self.decoder_not_before - now) / 1000 + 1;
        }
        self.decoder_not_before = now + DECODER_PAUSE;
        self.decoder = worker::start(decoder::NAME, "pg_stream_decoder_main", self.argument);
        let lacked_process = std::mem::replace(&mut self.lacks_process, self.decoder.is_none());
        if self.decoder.is_some() {
            shmem::release_processes();
            return LONGEST_SLEEP;
        }
        shmem::reserve_processes();
        if !lacked_process {
            pgrx::ereport!(
                WARNING,
                pgrx::PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                "pg_stream cannot start the decoder of a database",
                "All background worker processes are in use. Raise max_worker_processes."
            );
        }
        DECODER_PAUSE / 1000
    }

    /// Learns whether a decoder is needed, where nothing is scheduled.
    fn look_at_decoder(&mut self) -> bool {
        let used = worker::transaction(c"pg_stream: reading the catalog", || {
            member::extension().is_some().then(decoder::is_used)
        });
        let read = used.map(|it| {
            self.is_decoder_used = it.unwrap_or(false);
            it.is_some()
        });
        self.has_read(read)
    }

    /// Whether the catalog is known.
    fn read_catalog(&mut self, now: Micros) -> bool {
        if !self.memory.is_outdated(self.slot, now, LONGEST_SLEEP * 1000) {
            return true;
        }
        let generation = self.slot.generation();
        let read = worker::transaction(c"pg_stream: reading the catalog", || {
            let has_extension = member::extension().is_some();
            if has_extension {
                self.memory.read(generation, now);
                self.is_decoder_used = decoder::is_used();
            }
            has_extension
        });
        self.has_read(read)
    }

    /// Whether the catalog could be read. Ends this process when the extension is gone.
    fn has_read(&mut self, read: Result<bool, Failure>) -> bool {
        let was_blind = std::mem::replace(&mut self.is_blind, read.is_err());
        match read {
            Ok(true) => true,
            Ok(false) => leave(self.slot),
            Err(failure) => {
                if !was_blind {
                    pgrx::warning!(
                        "pg_stream scheduler cannot read its catalog: {}",
                        failure.message
                    );
                }
                self.memory.forget_catalog();
                false
            }
        }
    }

    /// Trusts the counters again when no transaction is prepared any more that did not count.
    fn settle(&self) {
        if !self.slot.is_unsettled() {
            return;
        }
        let prepared = self.slot.prepared();
        let has_prepared =
            worker::transaction(c"pg_stream: looking for transactions", has_prepared);
        if let Ok(false) = has_prepared {
            self.slot.settle(prepared);
        }
    }

    fn begin(&mut self, unit: &Unit, now: Micros) -> Dispatch {
        let most = usize::try_from(settings::max_concurrent_refreshes()).unwrap_or(1);
        let detours = self.memory.detours(&unit.tables);
        self.memory.begin(self.slot, &unit.tables, now);
        let dispatch = self.pool.dispatch(&unit.tables, detours, most, now);
        if dispatch != Dispatch::Begun {
            self.memory.give_up(&unit.tables);
        }
        dispatch
    }

    /// Without a worker.
    fn refresh_here(&mut self, unit: &Unit, now: Micros) {
        self.memory.begin(self.slot, &unit.tables, now);
        let mut consumed = HashSet::new();
        let reports = unit::refresh(&unit.tables, worker::PATIENCE, &|_| {}, &mut consumed);
        unit::clean(&consumed);
        worker::set_patience(worker::PATIENCE);
        // What was invalidated meanwhile, the refresh has learnt instead of us.
        self.memory.distrust();
        let tables = unit.tables.clone();
        let finished = Finished { tables, reports: Some(reports), current: 0 };
        self.end(&finished, time::since_epoch());
    }

    fn end(&mut self, finished: &Finished, now: Micros) {
        let lost = Report { verdict: Verdict::Failed, follows_changes: false, took: 0 };
        if finished.reports.is_none() {
            unit::record_loss(&finished.tables, finished.current);
        }
        for (position, id) in finished.tables.iter().enumerate() {
            let report = finished.reports.as_ref().and_then(|it| it.get(position));
            self.memory.end(*id, report.copied().unwrap_or(lost), now);
        }
    }

    /// Takes note of tables that are due and known to be up to date. False when it turns out that
    /// some are not.
    ///
    /// Of those whose sources are decoded it is known until the moment `decoded`.
    fn note_idle(&mut self, tables: &[i64], now: Micros, decoded: Micros) -> bool {
        if tables.is_empty() {
            return true;
        }
        let (late, prompt): (Vec<i64>, Vec<i64>) =
            tables.iter().partition(|it| self.memory.is_decoded(**it));
        let result = worker::transaction(c"pg_stream: noting that nothing has changed", || {
            let are_fresh = prompt.is_empty() || self.memory.keep_fresh(&prompt, now);
            (late.is_empty() || self.memory.keep_fresh(&late, decoded)) && are_fresh
        });
        result.unwrap_or_else(|failure| {
            pgrx::log!("pg_stream scheduler cannot move timestamps on: {}", failure.message);
            self.memory.forget_catalog();
            false
        })
    }

    fn sleep_after(&self, decision: &Decision, now: Micros) -> i64 {
        for id in &decision.wake_on_commit {
            self.slot.arm(self.memory.buffers(*id));
        }
        // What was committed before it was armed wakes nobody.
        let has_changed = |id: &i64| self.memory.may_have_changed(self.slot, *id);
        if decision.wake_on_commit.iter().any(has_changed) {
            return 0;
        }
        let until = decision.wake_at.map_or(LONGEST_SLEEP, |it| (it - now) / 1000 + 1);
        until.clamp(shortest_sleep(), LONGEST_SLEEP)
    }
}

/// After a crash, refreshes that were running are known to have failed: those of tables that nobody
/// refreshes now.
/// Returns whether that is done for all that began before this process.
fn recover(before: TimestampWithTimeZone) -> bool {
    let result = worker::transaction(c"pg_stream: recovering", || {
        let mut running: Vec<i64> = Vec::new();
        spi::run(
            "SELECT DISTINCT pgs_id FROM pgstream.pgs_refresh_history \
             WHERE status = 'RUNNING' AND start_time < $1",
            &[before.into()],
            |row| running.extend(row.get::<i64>(0)),
        );
        let is_free = |it: &i64| relation::try_lock_stream_table(*it);
        let (free, busy): (Vec<i64>, Vec<i64>) = running.into_iter().partition(is_free);
        free.into_iter().for_each(|it| unit::record_interruption(it, before));
        busy.is_empty()
    });
    result.unwrap_or_else(|failure| {
        pgrx::warning!("pg_stream scheduler cannot recover: {}", failure.message);
        true
    })
}

fn prune() {
    let days = settings::history_retention_days();
    let result = worker::transaction(c"pg_stream: pruning the history", || {
        spi::run(
            "DELETE FROM pgstream.pgs_refresh_history \
             WHERE start_time < clock_timestamp() - make_interval(days => $1)",
            &[days.into()],
            |_| {},
        )
    });
    if let Err(failure) = result {
        pgrx::warning!("pg_stream scheduler cannot prune the history: {}", failure.message);
    }
}
