//! A writer: short and long transactions, savepoints, rollbacks, prepared transactions.

use super::{Lasting, Soak, pause, random};
use crate::fuzz::Random;

/// More rows than this are thinned out.
const MOST_ROWS: usize = 3000;

pub fn run(soak: &Soak, number: usize) {
    let mut random = random(soak, number as u64);
    let mut session = Lasting::new(soak);
    let mut round = 0;
    while !soak.is_over() {
        let active = soak.active();
        round += 1;
        transaction(soak, &mut session, &mut random, &format!("w{number}_{round}"));
        drop(active);
        pause(random.below(20));
    }
}

fn transaction(soak: &Soak, session: &mut Lasting<'_>, random: &mut Random, name: &str) {
    let kind = random.weighted(&[50, 12, 8, 8, 6, 2]);
    let (what, sql) = match kind {
        0 => ("statement", statement(random)),
        1 => {
            ("transaction", format!("BEGIN; {}; {}; COMMIT", statement(random), statement(random)))
        }
        2 => ("rollback", format!("BEGIN; {}; {}; ROLLBACK", statement(random), statement(random))),
        3 => (
            "savepoints",
            format!(
                "BEGIN; {}; SAVEPOINT a; {}; ROLLBACK TO a; {}; SAVEPOINT b; {}; RELEASE b; COMMIT",
                statement(random),
                statement(random),
                statement(random),
                statement(random)
            ),
        ),
        4 => return prepared(soak, session, random, name),
        _ => return long(soak, session, random),
    };
    let result = session.run(&sql);
    soak.note(what, &sql, &result, &DATA_ERRORS);
}

/// A key that is there already, a partition that does not exist, a value that does not fit.
const DATA_ERRORS: [&str; 3] = ["23505", "23514", "22003"];

/// Commits, or not, after something else; a checkpoint ends what a crash has left.
fn prepared(soak: &Soak, session: &mut Lasting<'_>, random: &mut Random, name: &str) {
    let sql = format!(
        "BEGIN; {}; {}; PREPARE TRANSACTION '{name}'",
        statement(random),
        statement(random)
    );
    let result = session.run(&sql);
    soak.note("prepared", &sql, &result, &DATA_ERRORS);
    if result.is_err() {
        return;
    }
    pause(random.below(200));
    let end = if random.chance(70) { "COMMIT" } else { "ROLLBACK" };
    let sql = format!("{end} PREPARED '{name}'");
    let result = session.run(&sql);
    soak.note("prepared end", &sql, &result, &[]);
}

fn long(soak: &Soak, session: &mut Lasting<'_>, random: &mut Random) {
    let level = *random.pick(&["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]);
    let mut result = session.session().try_run(&format!("BEGIN ISOLATION LEVEL {level}"));
    for _ in 0..random.between(2, 4) {
        if result.is_ok() {
            result = session.session().try_run(&statement(random));
            pause(random.below(600));
        }
    }
    let result = result.and_then(|()| session.session().try_run("COMMIT"));
    soak.note("long transaction", level, &result, &DATA_ERRORS);
    if result.is_err() {
        let _ignored = session.run("ROLLBACK");
    }
}

fn statement(random: &mut Random) -> String {
    let number = |random: &mut Random, end: usize| random.below(end).to_string();
    let n = random.between(1, 40);
    let (x, y) = (number(random, 200), number(random, 50));
    match random.weighted(&[20, 20, 14, 6, 6, 8, 6, 4, 6, 6, 6, 4, 1]) {
        0 => format!(
            "INSERT INTO sale (customer, product, quantity, note)
             SELECT ({x} + i * 7) % 210 + 1, ({y} + i) % 52 + 1, (i + {x}) % 10, repeat('x', i) FROM generate_series(1, {n}) i"
        ),
        1 => format!("UPDATE sale SET quantity = (quantity + {n}) % 10 WHERE id % 97 = {x} % 97"),
        2 => format!(
            "DELETE FROM sale WHERE id % 53 = {y} OR id IN (SELECT id FROM sale ORDER BY id OFFSET {MOST_ROWS})"
        ),
        3 => format!("UPDATE sale SET customer = {x}, note = note WHERE id % 211 = {n}"),
        4 => format!("UPDATE customer SET region = {n} % 8, credit = credit + 1 WHERE id = {x}"),
        5 => format!("INSERT INTO event SELECT i % 5, (i * {x}) % 13, jsonb_build_object('k', i % {n}) FROM generate_series(1, {n}) i"),
        6 => format!("DELETE FROM event WHERE kind = {y} % 5 AND amount < {n} % 13"),
        7 => format!("UPDATE event SET amount = amount + 1 WHERE kind = {y} % 5 AND amount < 40"),
        8 => format!("INSERT INTO edge VALUES ({n} % 25, {y} % 25) ON CONFLICT DO NOTHING"),
        9 => format!("DELETE FROM edge WHERE a = {n} % 25 OR b = {y} % 25"),
        10 => format!("INSERT INTO measure SELECT (i + {x}) % 8, i, i * {y} FROM generate_series(1, {n}) i"),
        11 => format!("UPDATE measure SET region = (region + 1) % 8 WHERE at % 17 = {n} % 17; DELETE FROM measure WHERE at % 11 = {y} % 11"),
        _ => (*random.pick(&[
            "TRUNCATE event",
            "TRUNCATE edge",
            "TRUNCATE measure",
            "DELETE FROM sale",
            "MERGE INTO product p USING (SELECT 52 AS id UNION ALL SELECT 3) s ON p.id = s.id
             WHEN MATCHED THEN UPDATE SET price = price + 1
             WHEN NOT MATCHED THEN INSERT VALUES (s.id, 'new', 1)",
        ]))
        .to_owned(),
    }
}
