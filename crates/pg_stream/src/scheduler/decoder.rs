//! The decoder of one database: reads the changes of sources from the write-ahead log into their
//! buffers, and lets sources change over between triggers and that (ADR 0021).
//!
//! It holds the database's replication slot. What it has decoded it writes in a transaction that also
//! notes up to where, and only then tells the slot; after a crash it passes over what is written already.
//! It waits for nobody for long: writers wait behind it when a source changes over.

use std::{collections::HashMap, panic::AssertUnwindSafe};

use pgrx::{
    PgSqlErrorCode, PgTryBuilder,
    pg_sys::{self, Oid},
};
use pgstream_core::schedule::{Micros, SECOND};

use crate::{
    capture::{
        self,
        decoding::{self, Decoding, Mode},
    },
    catalog,
    monitor::alert,
    pg::{
        buffer::{self, Action, Buffer, Image, Writer},
        decode::{self, Columns, Decoder, Lsn, Noted},
        lock::{self, Lock},
        member, relation,
        shmem::{self, Slot},
        spi, time,
        worker::{self, Failure, Wait},
    },
    refresh,
    settings::{self, CdcMode},
};

pub const NAME: &str = "pg_stream decoder";

/// How often to look for new records of the log when nobody asks, in milliseconds.
const PAUSE: i64 = 100;
/// How often to look whether a source should be captured in another way.
const LOOK: Micros = SECOND;
/// The same when none should, as far as is known.
const LONG_LOOK: Micros = 10 * SECOND;
/// How long a source that changes over may keep its writers waiting at a time, in milliseconds.
const PATIENCE: u32 = 200;
/// After decoding has failed so many times in a row the slot counts as lost.
const MOST_ATTEMPTS: u32 = 3;
/// How much of the log is confirmed at a time, and how often.
const CONFIRM_BYTES: Lsn = 1 << 20;
const CONFIRM_INTERVAL: Micros = 10 * SECOND;

#[pgrx::pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pg_stream_decoder_main(argument: pg_sys::Datum) {
    let slot = shmem::slot(argument.value());
    worker::at_exit(Some(on_exit), argument.value());
    worker::begin(Some(slot.database()), c"pg_stream decoder");
    slot.enter_decoder();
    if slot.held_until() > time::now() {
        worker::end();
    }
    // What is lost in a crash is decoded again.
    worker::commit_asynchronously();
    worker::spill_freely();
    let wait = Wait::new(c"PgStreamDecoderMain");
    let mut process = Process {
        shared: slot,
        name: slot_name(slot.database()),
        sources: Vec::new(),
        looked_at: 0,
        generation: 0,
        given_up: HashMap::new(),
        reading: None,
        make_not_before: 0,
        mode: settings::cdc_mode(),
    };
    loop {
        let milliseconds = process.pass();
        worker::sleep(milliseconds, wait);
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn on_exit(_code: std::ffi::c_int, argument: pg_sys::Datum) {
    let slot = shmem::slot(argument.value());
    if worker::is_terminated() {
        slot.discount_decoding();
    }
    slot.leave_decoder();
}

/// The replication slot of a database.
pub fn slot_name(database: Oid) -> String {
    format!("pgstream_{}", database.to_u32())
}

/// Whether some source is decoded, or was; in a transaction.
pub fn is_used() -> bool {
    spi::get_one::<bool>(
        "SELECT EXISTS (SELECT FROM pgstream.pgs_decoder) OR EXISTS \
         (SELECT FROM pgstream.pgs_change_tracking WHERE cdc_mode <> 'TRIGGER')",
        &[],
    ) == Some(true)
}

/// Whether sources should be decoded.
pub fn is_wanted() -> bool {
    settings::cdc_mode() != CdcMode::Trigger && decode::is_possible()
}

/// A captured table.
#[derive(Clone, Copy)]
struct Source {
    oid: Oid,
    decoding: Decoding,
    is_fit: bool,
    /// Since when it is to change over.
    since: Option<Micros>,
}

struct Process {
    shared: &'static Slot,
    /// Of the replication slot.
    name: String,
    sources: Vec<Source>,
    looked_at: Micros,
    /// Of the catalog, when it was looked at.
    generation: u64,
    /// The setting at that time.
    mode: CdcMode,
    /// Sources that did not change over in time, and when.
    given_up: HashMap<Oid, Micros>,
    reading: Option<Reading>,
    /// When to try again to make a replication slot.
    make_not_before: Micros,
}

/// How far the log was read.
struct Reading {
    decoder: Decoder,
    /// What was decoded is noted and not yet written.
    is_pending: bool,
    /// Up to there, at that moment.
    target: (Lsn, i64),
    /// What the catalog says.
    written: Lsn,
    confirmed: Lsn,
    confirmed_at: Micros,
    /// Something was decoded.
    is_proven: bool,
}

impl Process {
    /// Returns for how many milliseconds to sleep.
    fn pass(&mut self) -> i64 {
        let now = time::since_epoch();
        let generation = self.shared.generation();
        let mode = settings::cdc_mode();
        let pause = if self.is_settled() { LONG_LOOK } else { LOOK };
        if now - self.looked_at >= pause || generation != self.generation || mode != self.mode {
            (self.looked_at, self.generation, self.mode) = (now, generation, mode);
            self.look();
            self.change_over(now);
            if self.reading.is_none() {
                self.begin();
            }
        }
        let Some(reading) = &mut self.reading else { return LOOK / 1000 };
        match reading.pass(self.shared) {
            Ok(()) => self.close_finished(self.shared.decoded()),
            Err(failure) => {
                if self.shared.stuck_since().is_none() {
                    pgrx::log!("pg_stream: cannot write decoded changes: {}", failure.message);
                }
                self.shared.set_stuck(time::now());
            }
        }
        PAUSE
    }

    /// Whether the slot is one that can be decoded. Where transactions have changed the catalog while it was
    /// made, PostgreSQL may not know what they have committed ("could not map filenumber").
    fn is_proven(&self) -> bool {
        self.reading.as_ref().is_some_and(|it| it.is_proven)
    }

    /// Whether every source is captured in the way that it should be.
    fn is_settled(&self) -> bool {
        let wants = is_wanted();
        let is_right = |it: &Source| match it.decoding.mode {
            Mode::Wal => wants && it.is_fit && self.reading.is_some(),
            Mode::Transitioning => false,
            Mode::Trigger => !(wants && it.is_fit) && it.decoding.until.is_none(),
        };
        self.sources.iter().all(is_right)
    }

    /// Reads the catalog. Ends where there is nothing to do.
    fn look(&mut self) {
        let read = worker::transaction(c"pg_stream: reading the catalog", || {
            member::extension().is_some().then(|| (sources(), is_wanted() || is_used()))
        });
        match read {
            Ok(Some((sources, true))) => self.sources = sources,
            Ok(_) => self.retire(),
            Err(failure) => complain("cannot read the catalog", &failure),
        }
    }

    /// Gives the replication slot up, and ends.
    fn retire(&mut self) -> ! {
        if let Some(reading) = self.reading.take() {
            reading.decoder.close();
        }
        drop_unused_slot(self.shared.database());
        // The scheduler need not start another one.
        self.shared.note_catalog();
        worker::end();
    }

    /// Takes the replication slot, making it if there is none.
    fn begin(&mut self) {
        let name = self.name.clone();
        let state = worker::transaction(c"pg_stream: looking at the replication slot", || {
            let mut state = None;
            spi::run(include_str!("slot.sql"), &[name.clone().into()], |row| {
                state = row.get::<i64>(0).map(i64::cast_unsigned);
            });
            state
        });
        match state {
            Ok(Some(_)) if self.shared.decoding_attempts() >= MOST_ATTEMPTS => {
                pgrx::warning!(
                    "pg_stream decoder gives a replication slot up that cannot be decoded"
                );
                self.make();
            }
            Ok(Some(written)) => self.open(written),
            Ok(None) => self.make(),
            Err(failure) => complain("cannot look at the replication slot", &failure),
        }
    }

    fn open(&mut self, written: Lsn) {
        let name = self.name.clone();
        self.shared.begin_decoding();
        let opened =
            worker::transaction(c"pg_stream: taking the replication slot", || Decoder::open(&name));
        let decoder = match opened {
            Ok(decoder) => decoder,
            // PostgreSQL has it half open; the process that follows begins anew.
            Err(failure) => {
                complain("cannot take the replication slot", &failure);
                let is_taken = failure.code == PgSqlErrorCode::ERRCODE_OBJECT_IN_USE;
                if is_taken || is_of_the_system(&failure) {
                    self.shared.discount_decoding();
                }
                worker::end();
            }
        };
        self.shared.discount_decoding();
        self.shared.set_decoded(written, 0);
        // Some may have waited for nothing but this.
        self.given_up.clear();
        self.reading = Some(Reading {
            decoder,
            is_pending: false,
            target: (written, 0),
            written,
            confirmed: written,
            confirmed_at: time::since_epoch(),
            is_proven: false,
        });
    }

    /// Makes the slot. What was to be decoded from an older one is lost.
    fn make(&mut self) {
        if !self.refresh_knowledge() {
            return;
        }
        let is_lost = |it: &&Source| it.decoding.is_open();
        let lost: Vec<Source> = self.sources.iter().filter(is_lost).copied().collect();
        // Whoever waits for them has locked what must be marked.
        self.shared.set_lost(!lost.is_empty());
        let mut are_back = true;
        for source in lost {
            are_back &= self.give_back(source.oid, true);
        }
        if !are_back {
            return;
        }
        self.shared.set_lost(false);
        if !drop_unused_slot(self.shared.database()) {
            return;
        }
        self.shared.forget_decoding_attempts();
        let name = self.name.clone();
        let is_early = time::since_epoch() < self.make_not_before;
        if is_early || !is_wanted() || !self.sources.iter().any(|it| it.is_fit) {
            return;
        }
        // It waits for all transactions that are running.
        worker::set_patience(timeout().unsigned_abs() * 1000);
        let made = worker::transaction(c"pg_stream: making a replication slot", || {
            spi::get_one::<String>(
                "SELECT lsn::text FROM pg_catalog.pg_create_logical_replication_slot($1, 'pg_stream')",
                &[name.clone().into()],
            )
        });
        worker::set_patience(worker::PATIENCE);
        let noted = made.and_then(|lsn| {
            worker::transaction(c"pg_stream: noting the replication slot", || {
                spi::run(
                    "INSERT INTO pgstream.pgs_decoder VALUES ($1, $2::pg_lsn)",
                    &[name.into(), lsn.into()],
                    |_| {},
                );
            })
        });
        if let Err(failure) = noted {
            complain("cannot make a replication slot", &failure);
            decode::release_slot();
            self.make_not_before = time::since_epoch() + i64::from(timeout()) * SECOND;
        } else {
            self.begin();
        }
    }

    /// Lets sources be captured in the way that they should be.
    fn change_over(&mut self, now: Micros) {
        let wants = is_wanted();
        for index in 0..self.sources.len() {
            let source = self.sources[index];
            let should = wants && source.is_fit;
            match source.decoding.mode {
                Mode::Wal if !should => _ = self.give_back(source.oid, false),
                Mode::Transitioning if !should => self.stop_waiting(source.oid),
                Mode::Trigger if should && source.decoding.until.is_none() => {
                    let pause = i64::from(timeout()) * SECOND;
                    if self.given_up.get(&source.oid).is_none_or(|it| now - it > pause) {
                        self.start_waiting(source.oid);
                    }
                }
                Mode::Transitioning => {
                    if self.is_proven() && self.take_over(source.oid) {
                        self.given_up.remove(&source.oid);
                    } else if let Some(since) = source.since
                        && now - since > i64::from(timeout()) * SECOND
                    {
                        self.given_up.insert(source.oid, now);
                        self.stop_waiting(source.oid);
                    }
                }
                Mode::Wal | Mode::Trigger => {}
            }
        }
    }

    fn start_waiting(&mut self, source: Oid) {
        self.note(source, Mode::Transitioning);
        if self.is_proven() {
            self.take_over(source);
        }
    }

    fn stop_waiting(&mut self, source: Oid) {
        pgrx::log!(
            "pg_stream: table number {} goes on being captured by triggers",
            source.to_u32()
        );
        self.note(source, Mode::Trigger);
    }

    fn note(&mut self, source: Oid, mode: Mode) {
        let noted = worker::transaction(c"pg_stream: noting how a table is captured", || {
            let since = (mode == Mode::Transitioning).then(time::current);
            spi::run(
                "UPDATE pgstream.pgs_change_tracking SET cdc_mode = $2, transition_started_at = $3 \
                 WHERE source_relid = $1 AND cdc_mode <> 'WAL'",
                &[source.into(), mode.as_str().to_owned().into(), since.into()],
                |_| {},
            );
            decoding::describe(source);
            alert::capture_changes(source, mode.as_str());
        });
        match noted {
            Ok(()) => _ = self.refresh_knowledge(),
            Err(failure) => complain("cannot note how a table is captured", &failure),
        }
    }

    /// From triggers to the log. False when somebody was in the way.
    fn take_over(&mut self, source: Oid) -> bool {
        let name = self.name.clone();
        self.switched(source, Mode::Wal, move || {
            let current = Decoding::of(source);
            // What is decoded has one beginning and one end at a time.
            let may = !current.is_open() && decoding::obstacle(source).is_none();
            if may {
                decoding::switch(source, Mode::Wal, Some(&name), false);
            }
            may
        })
    }

    /// Back to triggers. When what was to be decoded is lost, what reads the source is rebuilt.
    fn give_back(&mut self, source: Oid, is_lost: bool) -> bool {
        self.switched(source, Mode::Trigger, move || {
            let current = Decoding::of(source);
            if current.mode != Mode::Wal && !(is_lost && current.is_open()) {
                return true;
            }
            decoding::switch(source, Mode::Trigger, None, is_lost);
            if is_lost {
                let name = relation::display_name(source);
                let reason = format!("changes of {name} in the write-ahead log were lost");
                capture::consumers(source)
                    .iter()
                    .for_each(|it| catalog::mark_for_rebuild(*it, &reason));
            }
            true
        })
    }

    /// Runs `work` while nobody writes to `source` or refreshes what reads it.
    fn switched(&mut self, source: Oid, mode: Mode, work: impl FnOnce() -> bool) -> bool {
        worker::set_patience(PATIENCE);
        let result = worker::transaction(c"pg_stream: changing how a table is captured", || {
            // Whoever creates another reader just now is about to seal what triggers there are.
            if !relation::exists(source) || !relation::try_hold_changes(source) {
                return false;
            }
            let readers = capture::consumers(source);
            if !readers.iter().all(|it| relation::try_lock_stream_table(*it)) {
                return false;
            }
            lock::relation(source, Lock::ShareRowExclusive);
            let is_done = refresh::resealed(&readers, work);
            if is_done {
                alert::capture_changes(source, mode.as_str());
            }
            is_done
        });
        worker::set_patience(worker::PATIENCE);
        match result {
            Ok(is_done) => {
                if is_done {
                    pgrx::log!(
                        "pg_stream: changes of table number {} are captured {} from now on",
                        source.to_u32(),
                        if mode == Mode::Wal { "from the write-ahead log" } else { "by triggers" }
                    );
                }
                self.refresh_knowledge();
                is_done
            }
            Err(failure) => {
                pgrx::debug1!("pg_stream: a table cannot change over yet: {}", failure.message);
                false
            }
        }
    }

    /// The sources as the catalog has them after a change. Where that fails, or the change is somebody
    /// else's, what is known is old: whoever acts on it looks again in the transaction in which he does.
    fn refresh_knowledge(&mut self) -> bool {
        match worker::transaction(c"pg_stream: reading the catalog", sources) {
            Ok(sources) => {
                self.sources = sources;
                true
            }
            Err(failure) => {
                complain("cannot read the catalog", &failure);
                false
            }
        }
    }

    /// Notes that all changes of sources that went back to triggers are decoded. When that was the last
    /// one, the slot is not needed any more.
    fn close_finished(&mut self, decoded: Lsn) {
        let is_finished = |it: &Source| it.decoding.until.is_some_and(|until| until <= decoded);
        if self.sources.iter().any(is_finished) {
            let closed = worker::transaction(c"pg_stream: noting what is decoded", || {
                note_written(decoded);
                spi::run(
                    "UPDATE pgstream.pgs_change_tracking SET decoded_until = NULL \
                     WHERE decoded_until <= $1::pg_lsn",
                    &[decode::text(decoded).into()],
                    |_| {},
                );
            });
            match closed {
                Ok(()) => {
                    self.reading.iter_mut().for_each(|it| it.written = decoded);
                    self.refresh_knowledge();
                }
                Err(failure) => complain("cannot note what is decoded", &failure),
            }
        }
        let is_open = |it: &Source| it.decoding.is_open() || it.decoding.mode != Mode::Trigger;
        let is_idle = |it: &Self| !is_wanted() && !it.sources.iter().any(is_open);
        if is_idle(self) && self.refresh_knowledge() && is_idle(self) {
            self.retire();
        }
    }
}

impl Reading {
    /// Decodes what has come, and writes it.
    fn pass(&mut self, shared: &Slot) -> Result<(), Failure> {
        if !self.is_pending {
            let now = time::now();
            let target = decode::current_lsn();
            if target <= shared.decoded() {
                shared.set_decoded(shared.decoded(), now);
                return Ok(());
            }
            // After the target: whoever wants more columns of a source locks it before they are written.
            let wanted = worker::transaction(c"pg_stream: reading the catalog", wanted)?;
            let decoder = &mut self.decoder;
            shared.begin_decoding();
            let rows = worker::interruptible(c"pg_stream: decoding the write-ahead log", || {
                PgTryBuilder::new(AssertUnwindSafe(|| decoder.decode(target, wanted)))
                    .catch_others(|error| {
                        if is_of_the_system(&Failure::from(&error)) {
                            shared.discount_decoding();
                        }
                        error.rethrow()
                    })
                    .execute()
            });
            shared.forget_decoding_attempts();
            self.is_proven = true;
            self.target = (target, now);
            self.is_pending = rows > 0;
        }
        let (target, at) = self.target;
        if self.is_pending {
            let written = self.written;
            let decoder = &self.decoder;
            worker::transaction(c"pg_stream: writing decoded changes", || {
                write(decoder, written);
                note_written(target);
            })?;
            self.decoder.clear();
            self.is_pending = false;
            self.written = target;
        }
        shared.set_decoded(target, at);
        self.confirm(target)
    }

    /// Lets the server forget the log, from time to time.
    fn confirm(&mut self, target: Lsn) -> Result<(), Failure> {
        let now = time::since_epoch();
        if target - self.confirmed < CONFIRM_BYTES || now - self.confirmed_at < CONFIRM_INTERVAL {
            return Ok(());
        }
        self.confirmed_at = now;
        worker::transaction(c"pg_stream: noting what is decoded", || {
            note_written(target);
            spi::run(
                "UPDATE pgstream.pgs_dependencies SET decoder_confirmed_lsn = $1::pg_lsn \
                 WHERE cdc_mode = 'WAL'",
                &[decode::text(target).into()],
                |_| {},
            );
        })?;
        self.written = target;
        let decoder = &mut self.decoder;
        worker::interruptible(c"pg_stream: confirming what is decoded", || decoder.confirm(target));
        self.confirmed = target;
        Ok(())
    }
}

fn timeout() -> i32 {
    settings::wal_transition_timeout()
}

fn complain(what: &str, failure: &Failure) {
    pgrx::warning!("pg_stream decoder {what}: {}", failure.message);
}

/// All captured tables; in a transaction.
fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    spi::run(include_str!("sources.sql"), &[], |row| {
        let oid: Oid = row.get(0).expect("the primary key");
        found.push((oid, row.get(1).map(time::to_epoch)));
    });
    let known = |(oid, since): (Oid, Option<Micros>)| {
        let decoding = Decoding::of(oid);
        // Nobody waits for somebody who is changing it, nor does it change over before that is done.
        let is_fit = if lock::try_relation(oid, Lock::AccessShare) {
            decoding::obstacle(oid).is_none()
        } else {
            decoding.mode != Mode::Trigger
        };
        Source { oid, decoding, is_fit, since }
    };
    found.into_iter().map(known).collect()
}

/// Whether the next attempt may succeed for all that is known: it was cancelled, or some resource is exhausted.
fn is_of_the_system(failure: &Failure) -> bool {
    let classes = [
        PgSqlErrorCode::ERRCODE_OPERATOR_INTERVENTION,
        PgSqlErrorCode::ERRCODE_INSUFFICIENT_RESOURCES,
    ];
    classes.into_iter().any(|it| failure.is_like(it))
}

/// What to note of which source; in a transaction. Read anew each time: what is passed over is lost.
fn wanted() -> HashMap<Oid, Columns> {
    let mut open: Vec<Oid> = Vec::new();
    spi::run(
        "SELECT source_relid FROM pgstream.pgs_change_tracking \
         WHERE cdc_mode = 'WAL' OR decoded_until IS NOT NULL",
        &[],
        |row| open.extend(row.get::<Oid>(0)),
    );
    open.into_iter().filter_map(|it| Some((it, buffer::committed_columns(it)?))).collect()
}

/// Writes what was decoded into the buffers, except what was written before a restart.
fn write(decoder: &Decoder, written: Lsn) {
    let mut targets: HashMap<Oid, Option<Target>> = HashMap::new();
    decoder.each(|noted| {
        if noted.commit > written {
            let new = || Target::open(noted.source, &decoder.noted_columns(noted.source));
            if let Some(target) = targets.entry(noted.source).or_insert_with(new) {
                target.write(noted);
            }
        }
    });
    targets.into_values().flatten().for_each(|it| it.writer.finish());
}

fn note_written(lsn: Lsn) {
    spi::run(
        "UPDATE pgstream.pgs_decoder SET decoded_lsn = $1::pg_lsn",
        &[decode::text(lsn).into()],
        |_| {},
    );
}

/// Drops the replication slot of a database that has no use for it, unless its decoder runs still. False
/// when that failed.
pub fn drop_unused_slot(database: Oid) -> bool {
    let name = slot_name(database);
    let dropped = worker::transaction(c"pg_stream: dropping the replication slot", || {
        drop_slot(&name);
    });
    if let Err(failure) = &dropped {
        complain("cannot drop the replication slot", failure);
    }
    dropped.is_ok()
}

fn drop_slot(name: &str) {
    spi::run(
        "SELECT pg_catalog.pg_drop_replication_slot(slot_name) \
         FROM pg_catalog.pg_replication_slots WHERE slot_name = $1 AND NOT active",
        &[name.to_owned().into()],
        |_| {},
    );
    if member::extension().is_some() {
        spi::run("DELETE FROM pgstream.pgs_decoder", &[], |_| {});
    }
}

/// The buffer of a source, for changes that were noted with certain columns.
struct Target {
    writer: Writer,
    decoding: Decoding,
    /// Where each column of the buffer is among those that were noted.
    map: Vec<Option<usize>>,
    /// A column of the buffer has another type than the one that was noted.
    is_unfit: bool,
}

impl Target {
    fn open(source: Oid, noted: &Columns) -> Option<Self> {
        let decoding = Decoding::of(source);
        let buffer = Buffer::open(source, Lock::RowExclusive)?;
        let place = |number: &i16| noted.iter().position(|it| it.0 == *number && *number != 0);
        let map: Vec<Option<usize>> = buffer.columns().iter().map(place).collect();
        let fits = |(position, index): (usize, &Option<usize>)| {
            index.is_none_or(|it| buffer.column_type(position) == Some(noted[it].1))
        };
        let is_unfit = !map.iter().enumerate().all(fits);
        Some(Self { writer: Writer::new(buffer), decoding, map, is_unfit })
    }

    fn write(&mut self, noted: &Noted) {
        if !self.decoding.covers(noted.commit) {
            return;
        }
        self.writer.set_origin(noted.xid, noted.commit);
        let map = &self.map;
        let image = |index: usize| {
            let row = noted.images[index].as_ref()?;
            Some(Image { values: &row.values, nulls: &row.nulls, map })
        };
        let (new, old) = (image(0), image(1));
        match (noted.action, new, old) {
            _ if self.is_unfit => self.writer.push(Action::Truncate, None, None),
            (Action::Update, Some(new), Some(old)) => self.writer.push_update(new, old),
            (action, new, old) => self.writer.push(action, new, old),
        }
    }
}
