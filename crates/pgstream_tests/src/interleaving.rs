//! Several sessions, their steps in a chosen order or in every order.

use std::{
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{
    database::Database,
    oracle::{self, Comparison},
    session::{Session, SqlError},
};

/// The step that refreshes the stream table `st` and, unless it had to wait for another session,
/// compares it with the query in the same session right after.
pub const REFRESH: &str = "SELECT pgstream.refresh_stream_table('st')";

/// What became of a step.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    Done(Result<(), SqlError>),
    /// It waits for a lock that another session holds.
    Blocked,
}

/// How long a statement may take that waits for nobody.
const PATIENCE: Duration = Duration::from_secs(60);

enum Order {
    Run(String),
    Compare(String),
}

struct Worker {
    name: String,
    pid: String,
    orders: Sender<Order>,
    results: Receiver<Result<(), SqlError>>,
    thread: Option<JoinHandle<()>>,
    busy: bool,
}

impl Worker {
    fn start(database: &Database, name: &str) -> Self {
        let mut session = database.session();
        let pid = session.pid();
        let (orders, incoming) = mpsc::channel();
        let (outgoing, results) = mpsc::channel();
        let thread = thread::spawn(move || {
            for order in incoming {
                let result = match order {
                    Order::Run(sql) => session.try_run(&sql),
                    Order::Compare(query) => compare_in_session(&mut session, &query),
                };
                if outgoing.send(result).is_err() {
                    return;
                }
            }
        });
        Self { name: name.to_owned(), pid, orders, results, thread: Some(thread), busy: false }
    }
}

/// A difference is reported as an error with the code `wrong`.
fn compare_in_session(session: &mut Session, query: &str) -> Result<(), SqlError> {
    match oracle::difference(session, "st", query, Comparison::Text)? {
        None => Ok(()),
        Some(difference) => Err(SqlError {
            code: "wrong".to_owned(),
            message: format!("st differs from its query\n{difference}"),
            detail: String::new(),
            hint: String::new(),
        }),
    }
}

/// Sessions that run on threads of their own, so that one may wait for another.
pub struct Sessions {
    workers: Vec<Worker>,
    monitor: Session,
}

impl Sessions {
    pub fn new(database: &Database, names: &[&str]) -> Self {
        Self {
            workers: names.iter().map(|name| Worker::start(database, name)).collect(),
            monitor: database.session(),
        }
    }

    /// Another session, for looking from outside.
    pub fn monitor(&mut self) -> &mut Session {
        &mut self.monitor
    }

    fn worker(&mut self, name: &str) -> &mut Worker {
        self.workers.iter_mut().find(|worker| worker.name == name).expect("a session of that name")
    }

    pub fn pid(&mut self, name: &str) -> String {
        self.worker(name).pid.clone()
    }

    /// Runs a step until it is done or waits for a lock.
    #[track_caller]
    pub fn step(&mut self, name: &str, sql: &str) -> Step {
        self.order(name, Order::Run(sql.to_owned()));
        self.wait(name)
    }

    /// Runs a step until it is done, whether it has to wait or not.
    #[track_caller]
    pub fn complete(&mut self, name: &str, sql: &str) -> Result<(), SqlError> {
        match self.step(name, sql) {
            Step::Blocked => self.finish(name),
            Step::Done(result) => result,
        }
    }

    /// A step that must succeed at once.
    #[track_caller]
    pub fn run(&mut self, name: &str, sql: &str) {
        match self.step(name, sql) {
            Step::Done(Ok(())) => {}
            Step::Done(Err(error)) => panic!("{name}: {sql}\n{error}"),
            Step::Blocked => panic!("{name} waits for a lock: {sql}"),
        }
    }

    /// Compares `st` with the query in that session, whatever transaction it is in.
    #[track_caller]
    pub fn compare(&mut self, name: &str, query: &str) {
        self.order(name, Order::Compare(query.to_owned()));
        match self.wait(name) {
            Step::Done(Ok(())) => {}
            other => panic!("{name} compares with {query}: {other:?}"),
        }
    }

    /// A step that must wait for another session.
    #[track_caller]
    pub fn blocks(&mut self, name: &str, sql: &str) {
        assert_eq!(self.step(name, sql), Step::Blocked, "{name}: {sql}");
    }

    /// The end of a step that was blocked.
    #[track_caller]
    pub fn finish(&mut self, name: &str) -> Result<(), SqlError> {
        let worker = self.worker(name);
        assert!(worker.busy, "{name} does nothing");
        let result = worker.results.recv_timeout(PATIENCE).expect("the step ends");
        worker.busy = false;
        result
    }

    #[track_caller]
    fn order(&mut self, name: &str, order: Order) {
        let worker = self.worker(name);
        assert!(!worker.busy, "{name} still waits");
        worker.orders.send(order).expect("the session's thread runs");
        worker.busy = true;
    }

    /// The result of a busy session if it comes before the session waits for a lock.
    fn wait(&mut self, name: &str) -> Step {
        let mut waited = Duration::ZERO;
        loop {
            let pause = Duration::from_millis(20);
            let worker = self.worker(name);
            match worker.results.recv_timeout(pause) {
                Ok(result) => {
                    worker.busy = false;
                    return Step::Done(result);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => panic!("the thread of {name} is gone"),
            }
            let pid = worker.pid.clone();
            let blocked = self.monitor.value(&format!(
                "SELECT count(*) FROM pg_stat_activity
                 WHERE pid = {pid} AND wait_event_type = 'Lock' AND cardinality(pg_blocking_pids(pid)) > 0"
            ));
            if blocked == "1" {
                return Step::Blocked;
            }
            waited += pause;
            assert!(waited < PATIENCE, "{name} neither ends nor waits for a lock");
        }
    }

    fn is_busy(&mut self, name: &str) -> bool {
        self.worker(name).busy
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            if worker.busy {
                let sql = format!("SELECT pg_terminate_backend({})", worker.pid);
                let _ignored = self.monitor.try_run(&sql);
            }
            let (closed, _) = mpsc::channel();
            worker.orders = closed;
            if let Some(thread) = worker.thread.take() {
                let _ignored = thread.join();
            }
        }
    }
}

/// Two or three sessions over the stream table `st`.
#[derive(Clone, Copy, Debug)]
pub struct Interleaving<'a> {
    pub tables: &'a str,
    pub query: &'a str,
    /// The steps of each session; [`REFRESH`] is one.
    pub sessions: &'a [&'a [&'a str]],
}

/// Errors by which PostgreSQL asks to try again, and what follows them in a transaction.
const TRY_AGAIN: &[&str] = &["40001", "40P01", "55P03", "25P02"];

/// Runs the steps in every order that keeps each session's own, and compares after each refresh
/// and at the end.
#[track_caller]
pub fn check_interleavings(interleaving: Interleaving<'_>) {
    let database = Database::new();
    let names = ["a", "b", "c"];
    let names = &names[..interleaving.sessions.len()];
    let mut sessions = Sessions::new(&database, names);
    let counts: Vec<_> = interleaving.sessions.iter().map(|steps| steps.len()).collect();
    for (number, order) in orders(&counts).iter().enumerate() {
        let schema = format!("CREATE SCHEMA p{number}; SET search_path = p{number}");
        sessions.monitor().run(&schema);
        sessions.monitor().run(interleaving.tables);
        sessions.monitor().create("st", interleaving.query);
        for name in names {
            sessions.run(name, &format!("SET search_path = p{number}"));
        }
        let story = run_order(&mut sessions, names, interleaving, order);
        sessions.monitor().refresh("st");
        if let Err(error) = compare_in_session(sessions.monitor(), interleaving.query) {
            panic!("after the last refresh: {error}\n{story}");
        }
        sessions.monitor().run("SELECT pgstream.drop_stream_table('st')");
    }
}

/// Returns what happened, for messages.
#[track_caller]
fn run_order(
    sessions: &mut Sessions,
    names: &[&str],
    interleaving: Interleaving<'_>,
    order: &[usize],
) -> String {
    let mut story = String::new();
    let mut next = vec![0; names.len()];
    let mut rest: Vec<usize> = order.to_vec();
    while !rest.is_empty() {
        // The first step whose session does not wait; when all wait, somebody must end.
        let free = rest.iter().position(|&who| !sessions.is_busy(names[who]));
        let Some(at) = free else {
            let who = rest[0];
            let result = sessions.finish(names[who]);
            note(&mut story, names[who], "(ends)", &result);
            continue;
        };
        let who = rest.remove(at);
        let sql = interleaving.sessions[who][next[who]];
        next[who] += 1;
        let alone = names.iter().all(|name| !sessions.is_busy(name));
        match sessions.step(names[who], sql) {
            Step::Blocked => story.push_str(&format!("{}: {sql} -- waits\n", names[who])),
            Step::Done(result) => {
                note(&mut story, names[who], sql, &result);
                if sql == REFRESH && result.is_ok() && alone {
                    sessions.order(names[who], Order::Compare(interleaving.query.to_owned()));
                    let result = sessions.wait(names[who]);
                    assert_eq!(result, Step::Done(Ok(())), "\n{story}");
                }
            }
        }
        for name in names {
            if sessions.is_busy(name)
                && let Step::Done(result) = sessions.wait(name)
            {
                note(&mut story, name, "(ends)", &result);
            }
        }
    }
    for name in names {
        if sessions.is_busy(name) {
            let result = sessions.finish(name);
            note(&mut story, name, "(ends)", &result);
        }
        sessions.run(name, "ROLLBACK");
    }
    story
}

#[track_caller]
fn note(story: &mut String, name: &str, sql: &str, result: &Result<(), SqlError>) {
    match result {
        Ok(()) => story.push_str(&format!("{name}: {sql}\n")),
        Err(error) => {
            story.push_str(&format!("{name}: {sql} -- {error}\n"));
            assert!(TRY_AGAIN.contains(&error.code.as_str()), "\n{story}");
        }
    }
}

/// Every order of the steps of sessions with so many steps each.
fn orders(counts: &[usize]) -> Vec<Vec<usize>> {
    if counts.iter().all(|&count| count == 0) {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for who in 0..counts.len() {
        if counts[who] > 0 {
            let mut rest = counts.to_vec();
            rest[who] -= 1;
            all.extend(orders(&rest).into_iter().map(|mut tail| {
                tail.insert(0, who);
                tail
            }));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::orders;

    #[test]
    fn every_order_keeps_the_order_of_each_session() {
        assert_eq!(orders(&[2, 1]), [[0, 0, 1], [0, 1, 0], [1, 0, 0]]);
        assert_eq!(orders(&[2, 2]).len(), 6);
    }
}
