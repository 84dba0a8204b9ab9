//! What disturbs: changes of definitions, refreshes by hand, cancels, terminations, crashes.

use std::{sync::atomic::Ordering, time::Instant};

use super::{Lasting, Soak, pause, random, world};
use crate::{
    oracle::{self, Comparison},
    server::kill_9,
};

/// Columns, indexes, partitions and stream tables that come and go.
pub fn definitions(soak: &Soak) {
    let mut random = random(soak, 100);
    let mut session = Lasting::new(soak);
    let mut number = 0;
    while !soak.is_over() {
        let active = soak.active();
        number += 1;
        let sql = match random.below(8) {
            0 => "ALTER TABLE sale ADD COLUMN IF NOT EXISTS extra int DEFAULT 7".to_owned(),
            1 => "ALTER TABLE sale DROP COLUMN IF EXISTS extra".to_owned(),
            2 => "CREATE INDEX IF NOT EXISTS some_index ON event (kind)".to_owned(),
            3 => "DROP INDEX IF EXISTS some_index".to_owned(),
            4 => "BEGIN; ALTER TABLE measure DETACH PARTITION measure_1;
                  UPDATE measure_1 SET value = value + 1; INSERT INTO measure_1 VALUES (3, 0, 0);
                  ALTER TABLE measure ATTACH PARTITION measure_1 FOR VALUES IN (3, 4); COMMIT"
                .to_owned(),
            5 => {
                let query = *random.pick(&[
                    "SELECT id, region FROM customer WHERE credit > 50",
                    "SELECT region, count(*) AS n FROM sale_full GROUP BY region",
                    "SELECT kind, max(amount) AS m FROM event GROUP BY kind HAVING count(*) > 2",
                    "SELECT e.kind, r.n FROM events e JOIN per_region r ON r.region = e.kind",
                ]);
                let schedule = *random.pick(&["1s", "5s", "*/2 * * * * *"]);
                let initialize = random.chance(70);
                format!(
                    "SELECT pgstream.create_stream_table('extra_{number}', $q${query}$q$, '{schedule}', initialize => {initialize})"
                )
            }
            6 => "SELECT pgstream.drop_stream_table(pgs_name) FROM
                  (SELECT pgs_name FROM pgstream.pgs_stream_tables WHERE pgs_name ~ '^extra_' ORDER BY pgs_id LIMIT 1) q"
                .to_owned(),
            _ => {
                let mode = *random.pick(&["FULL", "DIFFERENTIAL"]);
                format!("SELECT pgstream.alter_stream_table('kinds', refresh_mode => '{mode}')")
            }
        };
        // So that a lock that it waits for does not keep everybody else waiting for long.
        let result = session.run(&format!("SET lock_timeout = '2s'; {sql}"));
        soak.note("definition", &sql, &result, &["42P01"]);
        drop(active);
        pause(random.between(100, 1500));
    }
}

/// The way in which changes are captured, back and forth, and decoders that are ended.
pub fn capture(soak: &Soak) {
    let mut random = random(soak, 400);
    let mut session = Lasting::new(soak);
    while !soak.is_over() {
        let active = soak.active();
        let mode = *random.pick(&["trigger", "auto", "auto", "wal"]);
        let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'pg_stream decoder'";
        let sql = match random.below(3) {
            0 => kill.to_owned(),
            _ => format!("ALTER SYSTEM SET pg_stream.cdc_mode = {mode}"),
        };
        let result = session.run(&sql).and_then(|()| session.run("SELECT pg_reload_conf()"));
        soak.note("change of capture", &sql, &result, &[]);
        drop(active);
        pause(random.between(2000, 8000));
    }
}

/// What a refresh is refused for a while: a stream table that rests, or a decoder that does not run.
const NOT_NOW: [&str; 2] = ["55000", "58000"];

/// Refreshes by hand, some in a transaction in which the result is compared.
pub fn refreshes(soak: &Soak) {
    let mut random = random(soak, 200);
    let mut session = Lasting::new(soak);
    let names = world::names();
    while !soak.is_over() {
        let active = soak.active();
        let name = *random.pick(&names);
        let refresh = format!("SELECT pgstream.refresh_stream_table('{name}')");
        match random.below(6) {
            0 => {
                let sql = format!(
                    "SELECT pgstream.alter_stream_table('{name}', status => 'SUSPENDED'); SELECT pgstream.resume_stream_table('{name}')"
                );
                let result = session.run(&sql);
                soak.note("suspend and resume", &sql, &result, &[]);
            }
            1 => {
                let sql = format!("BEGIN; {refresh}; ROLLBACK");
                let result = session.run(&sql);
                soak.note("refresh rolled back", &sql, &result, &NOT_NOW);
            }
            2 | 3 => {
                let sql = format!("BEGIN ISOLATION LEVEL REPEATABLE READ; {refresh}");
                let result = session.session().try_run(&sql);
                soak.note("refresh and compare", &sql, &result, &NOT_NOW);
                if result.is_ok() {
                    compare(soak, &mut session, name);
                }
                let _ignored = session.run("COMMIT");
            }
            _ => {
                let result = session.run(&refresh);
                soak.note("refresh", &refresh, &result, &NOT_NOW);
            }
        }
        drop(active);
        pause(random.below(300));
    }
}

/// In the transaction that has refreshed it, at the same snapshot.
fn compare(soak: &Soak, session: &mut Lasting<'_>, name: &str) {
    let session = session.session();
    // A rebuild is of the latest snapshot, not of this transaction's.
    let query = session.try_rows(&format!(
        "SELECT replace(defining_query, E'\\n', ' ') FROM pgstream.pgs_stream_tables WHERE pgs_name = '{name}'
         AND NOT EXISTS (SELECT FROM pgstream.get_refresh_history('{name}', 1) WHERE action = 'REINITIALIZE')"
    ));
    let Ok(query) = query else { return };
    if query.is_empty() {
        return;
    }
    let compared = oracle::difference(session, name, &query[0], Comparison::Text);
    if let Ok(Some(difference)) = compared {
        soak.fail(format!("{name} differs from its query inside a transaction\n{difference}"));
    }
}

/// Cancels and terminates sessions and workers; kills some, and once the postmaster.
pub fn sessions(soak: &Soak, end: Instant) {
    let mut random = random(soak, 300);
    let mut session = Lasting::new(soak);
    let start = Instant::now();
    let third = end.saturating_duration_since(start) / 3;
    let mut crashes = [start + third, start + third * 2].into_iter();
    let mut next_crash = crashes.next();
    let mut is_postmaster = false;
    while !soak.is_over() {
        let active = soak.active();
        if next_crash.is_some_and(|it| it <= Instant::now()) {
            crash(soak, &mut session, is_postmaster);
            is_postmaster = true;
            next_crash = crashes.next();
        } else {
            let function =
                if random.chance(75) { "pg_cancel_backend" } else { "pg_terminate_backend" };
            // In the last third workers live, so that their memory can be watched.
            let is_calm = Instant::now() + third > end;
            let patient = if function == "pg_cancel_backend" { 50 } else { 85 };
            let whom = if is_calm || random.chance(patient) {
                "backend_type = 'client backend'"
            } else if random.chance(5) {
                "backend_type = 'pg_stream launcher'"
            } else {
                "backend_type LIKE 'pg_stream%' AND backend_type <> 'pg_stream launcher'"
            };
            let sql = format!(
                "SELECT {function}(pid) FROM
                 (SELECT pid FROM pg_stat_activity WHERE {whom} AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1) q"
            );
            let result = session.run(&sql);
            soak.note(function, &sql, &result, &[]);
        }
        drop(active);
        pause(random.between(200, 1500));
    }
}

fn crash(soak: &Soak, session: &mut Lasting<'_>, is_postmaster: bool) {
    soak.crashes.fetch_add(1, Ordering::Relaxed);
    if is_postmaster {
        soak.done("kill -9 of the postmaster");
        soak.database.server().kill();
        soak.database.server().start_again();
    } else {
        soak.done("kill -9 of a backend");
        let mut victim = soak.database.session_after_crash();
        let pid = victim.pid();
        kill_9(&pid);
        // The postmaster ends all sessions before it recovers.
        while session.session().try_run("SELECT").is_ok() {}
    }
    session.session = None;
    session.session();
}
