//! The launcher: keeps one scheduler running in each database that has the extension.
//!
//! Only a process that is connected to a database can see its extensions, so a scheduler is
//! started in each new database once and ends at once where it is not needed. CREATE EXTENSION
//! asks for it again at commit. Schedulers start one at a time, so that looking around never takes
//! all worker processes; but one that cannot get into its database does not hold up the others.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
};

use pgrx::pg_sys::{self, Oid};

use crate::{
    pg::{
        shmem::{self, Slot, State},
        time,
        worker::{self, Started, Wait},
    },
    scheduler::LONGEST_SLEEP,
};

/// The pause before a scheduler that ended, or found no process, is started again, in microseconds.
const PAUSE: i64 = 2_000_000;
/// The same for one that could not even connect.
const LONG_PAUSE: i64 = 30_000_000;
/// How long others wait for one that starts, in microseconds.
const TURN: i64 = 1_000_000;

thread_local! {
    static LAUNCHER: RefCell<Launcher> = RefCell::default();
}

#[pgrx::pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pg_stream_launcher_main(_argument: pg_sys::Datum) {
    worker::at_exit(Some(on_exit), 0);
    worker::begin(None, c"pg_stream launcher");
    let wait = Wait::new(c"PgStreamLauncherMain");
    shmem::announce_launcher();
    loop {
        let databases =
            worker::transaction(c"pg_stream: looking for databases", worker::databases).ok();
        let sleep = LAUNCHER.with_borrow_mut(|it| it.pass(databases, time::now()));
        worker::sleep(sleep, wait);
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn on_exit(_code: std::ffi::c_int, _argument: pg_sys::Datum) {
    LAUNCHER.with_borrow(Launcher::leave);
}

struct Child {
    process: Started,
    started_at: i64,
}

#[derive(Default)]
struct Launcher {
    /// With their names.
    databases: HashMap<Oid, String>,
    /// By slot.
    children: HashMap<usize, Child>,
    not_before: HashMap<usize, i64>,
    /// The slots for which there was no process the last time.
    lacking: HashSet<usize>,
}

impl Launcher {
    /// Looks after all databases; returns for how many milliseconds nothing else is to be done.
    fn pass(&mut self, databases: Option<HashMap<Oid, String>>, now: i64) -> i64 {
        if let Some(databases) = databases {
            self.databases = databases;
            self.update_slots();
        }
        self.bury(now);
        let mut next = now + LONGEST_SLEEP * 1000;
        for (index, slot) in shmem::slots() {
            if self.children.contains_key(&index) || !is_wanted(slot) {
                continue;
            }
            let mut time = slot.held_until().max(self.not_before.get(&index).copied().unwrap_or(0));
            time = time.max(self.next_turn(now));
            if time <= now {
                self.start(index, slot, now);
                // When it has found no process, again before others take those that are reserved for it.
                time = self.not_before.get(&index).copied().unwrap_or(0);
            }
            if time > now {
                next = next.min(time);
            }
        }
        (next - now) / 1000 + 1
    }

    fn update_slots(&mut self) {
        for (index, slot) in shmem::slots() {
            if !self.databases.contains_key(&slot.database()) && !self.children.contains_key(&index)
            {
                slot.free();
                self.not_before.remove(&index);
                self.lacking.remove(&index);
            }
        }
        for database in self.databases.keys() {
            if shmem::slot_of(*database).is_none() {
                shmem::want(*database);
            }
        }
    }

    /// Forgets schedulers that ended.
    fn bury(&mut self, now: i64) {
        self.children.retain(|index, child| {
            if !child.process.has_ended() {
                return true;
            }
            child.process.forget();
            let slot = shmem::slot(*index);
            let (state, pause) = match slot.state() {
                // Any transaction that was prepared may ask for it again.
                State::Unneeded if slot.is_unsettled() => (State::Unneeded, PAUSE),
                State::Unneeded => return false,
                State::Ended => (State::Ended, PAUSE),
                State::Wanted | State::Starting | State::Running => (State::Ended, LONG_PAUSE),
            };
            slot.detach(state);
            self.not_before.insert(*index, now + pause);
            false
        });
    }

    /// Those of the schedulers that have not got into their database yet.
    fn starting(&self) -> impl Iterator<Item = (&'static Slot, &Child)> {
        let children = self.children.iter().map(|(index, child)| (shmem::slot(*index), child));
        children.filter(|(slot, _)| slot.state() == State::Starting)
    }

    /// When the next one may start, if no other gets in before.
    fn next_turn(&self, now: i64) -> i64 {
        self.starting().map(|(_, child)| child.started_at + TURN).max().unwrap_or(now)
    }

    /// Nobody but this process would notice if one of them failed to start.
    fn leave(&self) {
        for (slot, child) in self.starting() {
            child.process.terminate();
            slot.set_state(State::Wanted);
        }
    }

    fn start(&mut self, index: usize, slot: &Slot, now: i64) {
        slot.set_state(State::Starting);
        let started = worker::start("pg_stream scheduler", "pg_stream_scheduler_main", index);
        match started {
            Some(process) => {
                self.children.insert(index, Child { process, started_at: now });
                self.lacking.remove(&index);
                shmem::release_processes();
            }
            None => {
                slot.set_state(State::Wanted);
                self.not_before.insert(index, now + PAUSE);
                shmem::reserve_processes();
                if self.lacking.insert(index) {
                    let name = self.databases.get(&slot.database()).map_or("", String::as_str);
                    pgrx::ereport!(
                        WARNING,
                        pgrx::PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                        format!("pg_stream cannot start the scheduler of database \"{name}\""),
                        "All background worker processes are in use. Raise max_worker_processes."
                    );
                }
            }
        }
    }
}

fn is_wanted(slot: &Slot) -> bool {
    match slot.state() {
        State::Wanted | State::Ended => true,
        State::Unneeded => slot.is_asked_again(),
        State::Starting | State::Running => false,
    }
}
