//! Making a failing case small: take something out, see whether it still fails the same way.
//!
//! A smaller case need not be meaningful: where taking a part out breaks the rest, the case fails
//! in another way, or not at all, and is dropped.

use std::time::{Duration, Instant};

use super::{
    case::{Case, Failure, Oracle, Step},
    schema::Key,
    smaller::smaller_queries,
};
use crate::database::Database;

const PATIENCE: Duration = Duration::from_secs(90);

/// The smallest case found that fails like the given one, and how it fails.
pub fn shrink(
    case: &Case,
    failure: &Failure,
    database: &Database,
    oracle: Oracle,
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
    if case.metamorphic {
        add(&|it| it.metamorphic = false);
    }
    for at in (0..case.views.len()).rev() {
        add(&|it| {
            it.views.remove(at);
        });
    }
    for at in (0..case.tables.len()).rev() {
        let table = &case.tables[at];
        add(&|it| {
            let table = it.tables.remove(at);
            for round in &mut it.rounds {
                round.retain(|step| !step.change().is_some_and(|sql| table.is_mentioned_in(sql)));
            }
        });
        // All changes of one table.
        add(&|it| {
            for round in &mut it.rounds {
                round.retain(|step| !step.change().is_some_and(|sql| table.is_mentioned_in(sql)));
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
        if one.trigger.is_some() {
            add(&|it| it.stream_tables[at].trigger = None);
        }
        if one.foreign.is_some() {
            add(&|it| it.stream_tables[at].foreign = None);
        }
    }
    for (at, view) in case.views.iter().enumerate() {
        for query in smaller_queries(&view.query) {
            add(&|it| it.views[at].query = query.clone());
        }
    }
    if let Some(security) = &case.security {
        add(&|it| it.security = None);
        for at in 0..security.statements.len() {
            let mut less = security.clone();
            less.statements.remove(at);
            add(&|it| it.security = Some(less.clone()));
        }
    }
    for (at, table) in case.tables.iter().enumerate() {
        if table.has_child {
            add(&|it| it.tables[at].has_child = false);
        }
        if table.computed.is_some() {
            add(&|it| it.tables[at].computed = None);
        }
        if table.index.is_some() {
            add(&|it| it.tables[at].index = None);
        }
        if table.computed.is_some() {
            add(&|it| it.tables[at].computed = None);
        }
        if table.partition_by.is_some() {
            add(&|it| it.tables[at].partition_by = None);
        }
        if table.key != Key::None {
            add(&|it| it.tables[at].key = Key::None);
        } else if table.partition_by.is_none() && table.index.is_none() {
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
    let size = |it: &Case| it.script(failure).len() + it.rounds.len() + usize::from(it.metamorphic);
    let current = size(case);
    all.retain(|it| size(it) < current);
    all
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
