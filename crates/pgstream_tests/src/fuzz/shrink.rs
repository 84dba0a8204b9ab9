//! Making a failing case small: take something out, see whether it still fails the same way.
//!
//! A smaller case need not be meaningful: where taking a part out breaks the rest, the case fails
//! in another way, or not at all, and is dropped.

use std::time::{Duration, Instant};

use super::{
    case::{Case, Failure, Oracle, Step},
    query::{Body, From, On, Query, Select},
    schema::Key,
};
use crate::database::Database;

const PATIENCE: Duration = Duration::from_secs(90);

/// The smallest case found that fails like the given one, and how it fails.
pub fn shrink(
    case: &Case,
    failure: &Failure,
    database: &Database,
    oracle: &Oracle,
) -> (Case, Failure) {
    let deadline = Instant::now() + PATIENCE;
    let (mut best, mut best_failure) = (case.clone(), failure.clone());
    let mut progress = true;
    while progress && Instant::now() < deadline {
        progress = false;
        let mut number = 0;
        // After a success go on at the same place: what came before did not help a moment ago.
        while let Some(smaller) = candidates(&best, &best_failure).into_iter().nth(number) {
            if Instant::now() > deadline {
                break;
            }
            let outcome = smaller.run(database, oracle);
            match outcome.failure {
                Some(again) if again.kind == best_failure.kind => {
                    if again.kind == "crash" {
                        database.wait_until_up();
                    }
                    (best, best_failure) = (smaller, again);
                    progress = true;
                }
                other => {
                    if other.is_some_and(|it| it.kind == "crash") {
                        database.wait_until_up();
                    }
                    number += 1;
                }
            }
        }
    }
    (best, best_failure)
}

/// Cases with one thing less, the greatest things first.
fn candidates(case: &Case, failure: &Failure) -> Vec<Case> {
    let mut all = Vec::new();
    let mut add = |change: &dyn Fn(&mut Case)| {
        let mut smaller = case.clone();
        change(&mut smaller);
        all.push(smaller);
    };
    for at in (0..case.stream_tables.len()).rev() {
        let name = case.stream_tables[at].name.clone();
        if name != failure.stream_table {
            add(&|it| {
                it.stream_tables.remove(at);
                for round in &mut it.rounds {
                    let refresh = Step::Refresh(name.clone());
                    round.retain(|step| {
                        *step != refresh && !matches!(step, Step::Other(it) if **it == refresh)
                    });
                }
            });
        }
    }
    for at in (0..case.rounds.len()).rev() {
        add(&|it| {
            it.rounds.remove(at);
            for one in &mut it.stream_tables {
                one.round -= usize::from(one.round > at);
            }
        });
        // Two rounds become one.
        if at > 0 {
            add(&|it| {
                let steps = it.rounds.remove(at);
                it.rounds[at - 1].extend(steps);
                for one in &mut it.stream_tables {
                    one.round -= usize::from(one.round >= at);
                }
            });
        }
    }
    add(&|it| {
        for round in &mut it.rounds {
            round.retain(|step| !matches!(step, Step::Other(_)));
        }
    });
    for at in (0..case.views.len()).rev() {
        add(&|it| {
            it.views.remove(at);
        });
    }
    for at in (0..case.tables.len()).rev() {
        let name = &case.tables[at].name;
        add(&|it| {
            let table = it.tables.remove(at);
            for round in &mut it.rounds {
                round.retain(|step| !matches!(step, Step::Sql(sql) if mentions(sql, &table.name)));
            }
        });
        // All changes of one table.
        add(&|it| {
            for round in &mut it.rounds {
                round.retain(|step| !matches!(step, Step::Sql(sql) if mentions(sql, name)));
            }
        });
    }
    for (round, steps) in case.rounds.iter().enumerate() {
        // A transaction becomes its statements, or goes.
        for (start, end) in transactions(steps) {
            add(&|it| {
                it.rounds[round].drain(start..=end);
            });
            add(&|it| {
                it.rounds[round].remove(end);
                it.rounds[round].remove(start);
            });
        }
        for at in (0..steps.len()).rev() {
            add(&|it| {
                it.rounds[round].remove(at);
            });
        }
    }
    for table in 0..case.tables.len() {
        let count = case.tables[table].rows.len();
        if count > 3 {
            add(&|it| {
                it.tables[table].rows.truncate(count / 2);
            });
            add(&|it| {
                it.tables[table].rows.drain(..count / 2);
            });
        }
        for at in (0..count).rev() {
            add(&|it| {
                it.tables[table].rows.remove(at);
            });
        }
    }
    for (at, one) in case.stream_tables.iter().enumerate() {
        for query in smaller_queries(&one.query) {
            add(&|it| it.stream_tables[at].query = query.clone());
        }
    }
    for (at, view) in case.views.iter().enumerate() {
        for query in smaller_queries(&view.query) {
            add(&|it| it.views[at].query = query.clone());
        }
    }
    for (at, table) in case.tables.iter().enumerate() {
        if table.partition_by.is_some() {
            add(&|it| it.tables[at].partition_by = None);
        }
        if table.key != Key::None {
            add(&|it| it.tables[at].key = Key::None);
        } else if table.partition_by.is_none() {
            for column in (0..table.columns.len()).rev() {
                add(&|it| {
                    it.tables[at].columns.remove(column);
                    for row in &mut it.tables[at].rows {
                        row.remove(column);
                    }
                });
            }
        }
    }
    let size = |it: &Case| it.script(failure).len() + it.rounds.len();
    let current = size(case);
    all.retain(|it| size(it) < current);
    all
}

fn mentions(sql: &str, table: &str) -> bool {
    sql.contains(&format!(" {table} "))
        || sql.contains(&format!(" {table}."))
        || sql.contains(&format!(" {table}_p"))
        || sql.ends_with(&format!(" {table}"))
}

/// Where transactions begin and end.
fn transactions(steps: &[Step]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut begin = None;
    for (at, step) in steps.iter().enumerate() {
        if let Step::Control(sql) = step {
            if sql.starts_with("BEGIN") {
                begin = Some(at);
            } else if (sql == "COMMIT" || sql == "ROLLBACK")
                && let Some(start) = begin.take()
            {
                found.push((start, at));
            }
        }
    }
    found
}

fn smaller_queries(query: &Query) -> Vec<Query> {
    let mut all = Vec::new();
    for at in 0..query.ctes.len() {
        let mut without = query.clone();
        without.ctes.remove(at);
        all.push(without);
        for body in smaller_bodies(&query.ctes[at].1) {
            let mut smaller = query.clone();
            smaller.ctes[at].1 = body;
            all.push(smaller);
        }
    }
    all.extend(
        smaller_bodies(&query.body)
            .into_iter()
            .map(|body| Query { ctes: query.ctes.clone(), body }),
    );
    all
}

fn smaller_bodies(body: &Body) -> Vec<Body> {
    match body {
        Body::Select(select) => smaller_selects(select).into_iter().map(Body::Select).collect(),
        Body::UnionAll(branches) => {
            let mut all: Vec<_> = branches.iter().cloned().map(Body::Select).collect();
            for at in 0..branches.len() {
                if branches.len() > 2 {
                    let mut fewer = branches.clone();
                    fewer.remove(at);
                    all.push(Body::UnionAll(fewer));
                }
                for select in smaller_selects(&branches[at]) {
                    let mut smaller = branches.clone();
                    smaller[at] = select;
                    all.push(Body::UnionAll(smaller));
                }
            }
            // One item less in all branches.
            for item in 0..branches[0].items.len() {
                let mut smaller = branches.clone();
                for branch in &mut smaller {
                    if item < branch.items.len() {
                        branch.items.remove(item);
                    }
                }
                all.push(Body::UnionAll(smaller));
            }
            all
        }
    }
}

fn smaller_selects(select: &Select) -> Vec<Select> {
    let mut all = Vec::new();
    let mut add = |change: &dyn Fn(&mut Select)| {
        let mut smaller = select.clone();
        change(&mut smaller);
        all.push(smaller);
    };
    if let Some(from) = &select.from {
        for (smaller, gone) in smaller_froms(from) {
            add(&|it| {
                it.from = Some(smaller.clone());
                for alias in &gone {
                    forget(it, alias);
                }
            });
        }
    }
    for at in (0..select.items.len()).rev() {
        if select.items.len() > 1 {
            add(&|it| {
                it.items.remove(at);
            });
        }
    }
    for at in (0..select.wheres.len()).rev() {
        add(&|it| {
            it.wheres.remove(at);
        });
    }
    for at in (0..select.having.len()).rev() {
        add(&|it| {
            it.having.remove(at);
        });
    }
    for at in (0..select.group.len()).rev() {
        add(&|it| {
            let key = it.group.remove(at);
            if it.items.len() > 1 {
                it.items.retain(|(sql, _)| *sql != key);
            }
        });
    }
    if select.distinct {
        add(&|it| it.distinct = false);
    }
    // An expression becomes a column that it mentions.
    for (at, (sql, _)) in select.items.iter().enumerate() {
        for column in columns_in(sql) {
            if column != *sql {
                add(&|it| {
                    for key in &mut it.group {
                        if *key == *sql {
                            key.clone_from(&column);
                        }
                    }
                    it.items[at].0.clone_from(&column);
                });
            }
        }
    }
    all
}

/// The column references in an expression: `a1.c2`.
fn columns_in(sql: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for word in sql.split(|c: char| !(c.is_ascii_alphanumeric() || c == '.' || c == '_')) {
        if word.starts_with('a')
            && word[1..].starts_with(|c: char| c.is_ascii_digit())
            && word.contains('.')
            && !found.iter().any(|it| it == word)
        {
            found.push(word.to_owned());
        }
    }
    found
}

/// Takes out everything that mentions the alias.
fn forget(select: &mut Select, alias: &str) {
    let mentions =
        |sql: &str| columns_in(sql).iter().any(|it| it.starts_with(&format!("{alias}.")));
    select.items.retain(|(sql, _)| !mentions(sql));
    select.wheres.retain(|sql| !mentions(sql));
    select.group.retain(|sql| !mentions(sql));
    select.having.retain(|sql| !mentions(sql));
    if select.items.is_empty() {
        select.items.push(("1".to_owned(), "c1".to_owned()));
    }
    if let Some(from) = &mut select.from {
        forget_in_from(from, &mentions);
    }
}

fn forget_in_from(from: &mut From, mentions: &dyn Fn(&str) -> bool) {
    if let From::Join { left, right, on } = from {
        if let On::Conditions(parts) = on {
            parts.retain(|sql| !mentions(sql));
        }
        forget_in_from(left, mentions);
        forget_in_from(right, mentions);
    }
}

/// Smaller FROMs, with the aliases that they no longer have.
fn smaller_froms(from: &From) -> Vec<(From, Vec<String>)> {
    match from {
        From::Named { .. } => Vec::new(),
        From::Sub { query, alias } => {
            let mut all: Vec<_> = smaller_queries(query)
                .into_iter()
                .map(|query| {
                    (From::Sub { query: Box::new(query), alias: alias.clone() }, Vec::new())
                })
                .collect();
            // A sub-query over one source becomes the source; columns of the same name fit.
            if let Body::Select(Select { from: Some(inner), .. }) = &query.body
                && let From::Named { name, .. } = inner
            {
                all.push((From::Named { name: name.clone(), alias: alias.clone() }, Vec::new()));
            }
            all
        }
        From::Join { left, right, on } => {
            let mut all =
                vec![((**left).clone(), aliases(right)), ((**right).clone(), aliases(left))];
            for (smaller, gone) in smaller_froms(left) {
                all.push((
                    From::Join { left: Box::new(smaller), right: right.clone(), on: on.clone() },
                    gone,
                ));
            }
            for (smaller, gone) in smaller_froms(right) {
                all.push((
                    From::Join { left: left.clone(), right: Box::new(smaller), on: on.clone() },
                    gone,
                ));
            }
            if let On::Conditions(parts) = on {
                for at in 0..parts.len() {
                    let mut fewer = parts.clone();
                    fewer.remove(at);
                    all.push((
                        From::Join {
                            left: left.clone(),
                            right: right.clone(),
                            on: On::Conditions(fewer),
                        },
                        Vec::new(),
                    ));
                }
            }
            all
        }
    }
}

fn aliases(from: &From) -> Vec<String> {
    match from {
        From::Named { alias, .. } | From::Sub { alias, .. } => vec![alias.clone()],
        From::Join { left, right, .. } => [aliases(left), aliases(right)].concat(),
    }
}
