//! Checkpoints: everybody stops, and every stream table is refreshed and compared with its query.

use std::time::{Duration, Instant};

use super::{Soak, pause, world};
use crate::{
    oracle::{self, Comparison},
    session::{Session, SqlError},
};

/// From one checkpoint to the next.
const INTERVAL: Duration = Duration::from_secs(20);
/// How long a refresh may be refused.
const PATIENCE: Duration = Duration::from_secs(30);

pub fn at_checkpoints(soak: &Soak, end: Instant) {
    let mut next = Instant::now() + INTERVAL;
    while Instant::now() < end {
        pause(200);
        if Instant::now() >= next {
            checkpoint(soak);
            next = Instant::now() + INTERVAL;
        }
    }
}

fn checkpoint(soak: &Soak) {
    let stopped = soak.activity.write().expect("no thread panics with the lock");
    let mut session = soak.database.session_after_crash();
    end_prepared_transactions(&mut session);
    compare_all(soak, &mut session);
    soak.done("checkpoint");
    drop(stopped);
}

/// After all threads have ended.
pub fn at_the_end(soak: &Soak) {
    checkpoint(soak);
    let mut session = soak.database.session_after_crash();
    // A second pass, for what reads the stream tables that the first one has changed.
    compare_all(soak, &mut session);
    for buffer in session.rows("SELECT buffer_relid::regclass FROM pgstream.pgs_change_tracking") {
        let rows = session.value(&format!("SELECT count(*) FROM {buffer}"));
        if rows != "0" {
            soak.fail(format!("{rows} changes are left in {buffer}"));
        }
    }
    summarize(soak, &mut session);
    drop_all(soak, &mut session);
    let log = soak.database.server().log();
    for line in log.lines().filter(|it| {
        it.contains("PANIC") || it.contains("panicked") || it.contains("was terminated by signal")
    }) {
        // What was killed on purpose is signal 9.
        if !line.contains("signal 9") {
            soak.fail(format!("the server's log has: {line}"));
        }
    }
}

/// Those that a crash or a cancel has left.
fn end_prepared_transactions(session: &mut Session) {
    let open =
        session.rows("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()");
    for (index, name) in open.iter().enumerate() {
        let end = if index % 2 == 0 { "COMMIT" } else { "ROLLBACK" };
        session.run(&format!("{end} PREPARED '{name}'"));
    }
}

/// In the order of creation, so each comes after those that it reads.
fn compare_all(soak: &Soak, session: &mut Session) {
    let tables = session.rows(
        "SELECT pgs_name, status, coalesce(error_message, '') FROM pgstream.pgs_stream_tables ORDER BY pgs_id",
    );
    for table in tables {
        let parts: Vec<&str> = table.splitn(3, '|').collect();
        let (name, status, reason) = (parts[0], parts[1], parts[2]);
        if status == "ERROR" {
            soak.fail(format!("{name} is in error: {reason}"));
        }
        if status == "SUSPENDED" {
            session.run(&format!("SELECT pgstream.resume_stream_table('{name}')"));
            let is_given_up = session.value(&format!(
                "SELECT needs_reinit AND reinit_reason LIKE '%buffer_limit_mb' FROM pgstream.pgs_stream_tables WHERE pgs_name = '{name}'"
            ));
            soak.done(match (name == world::SLEEPER, is_given_up.as_str()) {
                (true, "t") => "sleeper resumed, whose changes were given up",
                (true, _) => "sleeper resumed",
                _ => "other resumed at a checkpoint",
            });
        }
        let query = session.value(&format!(
            "SELECT replace(defining_query, E'\\n', ' ') FROM pgstream.pgs_stream_tables WHERE pgs_name = '{name}'"
        ));
        if let Err(error) = refresh(soak, session, name) {
            soak.fail(format!("{name} cannot be refreshed at a checkpoint: {error}"));
            continue;
        }
        match oracle::difference(session, name, &query, Comparison::Text) {
            Ok(None) => {}
            Ok(Some(difference)) => soak.fail(format!(
                "{name} differs from its query at a checkpoint\n{difference}{}",
                session
                    .rows(&format!("SELECT * FROM pgstream.get_refresh_history('{name}', 5)"))
                    .join("\n")
            )),
            Err(error) => soak.fail(format!("{name} cannot be compared: {error}")),
        }
    }
    world::sleep(session);
}

/// While a lost slot is given up, a refresh is refused with the hint to try again.
fn refresh(soak: &Soak, session: &mut Session, name: &str) -> Result<(), SqlError> {
    let begun = Instant::now();
    loop {
        let result = session.try_run(&format!("SELECT pgstream.refresh_stream_table('{name}')"));
        match result {
            Err(error) if error.code == "55P03" && begun.elapsed() < PATIENCE => {
                soak.done("refresh tried again at a checkpoint");
                pause(100);
            }
            result => return result,
        }
    }
}

fn summarize(soak: &Soak, session: &mut Session) {
    let mut notes = session.rows(
        "SELECT format('%s %s by %s: %s, median %s ms, longest %s ms', action, status, initiated_by, count(*),
                round(1000 * percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM end_time - start_time))),
                round(1000 * max(extract(epoch FROM end_time - start_time))))
         FROM pgstream.pgs_refresh_history GROUP BY action, status, initiated_by ORDER BY 1",
    );
    notes.extend(session.rows(
        "SELECT format('failed %s x %s', count(*), left(error_message, 100)) FROM pgstream.pgs_refresh_history
         WHERE status = 'FAILED' GROUP BY error_message ORDER BY count(*) DESC LIMIT 10",
    ));
    soak.report(|it| it.notes.append(&mut notes));
}

/// Dropping all leaves nothing behind.
fn drop_all(soak: &Soak, session: &mut Session) {
    let names =
        session.rows("SELECT pgs_name FROM pgstream.pgs_stream_tables ORDER BY pgs_id DESC");
    for name in names {
        session.run(&format!("SELECT pgstream.drop_stream_table('{name}')"));
    }
    let left = session.value(
        "SELECT (SELECT count(*) FROM pgstream.pgs_dependencies),
                (SELECT count(*) FROM pgstream.pgs_change_tracking),
                (SELECT count(*) FROM pg_class WHERE relnamespace IN ('pgstream_state'::regnamespace, 'pgstream_changes'::regnamespace)),
                (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'pg\\_stream\\_cdc\\_%')",
    );
    if left != "0|0|0|0" {
        soak.fail(format!(
            "dropping all has left (dependencies, captures, hidden tables, triggers): {left}"
        ));
    }
}
