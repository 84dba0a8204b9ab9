//! Random histories of the test tables.

use std::collections::BTreeSet;

use pgstream_ivm::{
    model::{Content, History, Row, Value, ZSet},
    plan::Source,
    testing::{Kind, TABLES, Table},
};

use crate::tape::Tape;

fn value(tape: &mut Tape<'_>, kind: Kind, nullable: bool) -> Value {
    let specials = ["NaN", "Infinity", "-Infinity"];
    let first = usize::from(!nullable);
    match (kind, first + tape.pick(8 - first)) {
        (_, 0) => Value::Null,
        (Kind::Integer, it) => Value::Int([0, 1, 2, 3, 1, 2, 1, -1][it]),
        (Kind::Numeric, 7) => Value::numeric(specials[tape.pick(3)]),
        (Kind::Numeric, it) => Value::numeric(["0", "1.0", "1.00", "2", "2.50", "-0.125", "1"][it]),
        (Kind::Price, it) => {
            Value::numeric(["0.00", "1.00", "2.50", "0.10", "1.00", "2.50", "9.99", "-1.25"][it])
        }
        (Kind::Text, it) => Value::text(["", "x", "y", "z", "#0", "it's", "x", "NULL"][it]),
    }
}

fn rows(tape: &mut Tape<'_>, table: &Table, most: usize) -> Vec<Row> {
    let count = tape.pick(most + 1);
    let columns = table.columns;
    (0..count)
        .map(|_| columns.iter().map(|(_, kind, nullable)| value(tape, *kind, *nullable)).collect())
        .collect()
}

/// The rows, the later ones of those with the same key left out.
fn keyed(table: &Table, rows: Vec<Row>) -> ZSet {
    let mut seen = BTreeSet::new();
    let is_first = |row: &Row| {
        table.key.is_none_or(|key| {
            seen.insert(key.iter().map(|it| row[*it].canonical()).collect::<Row>())
        })
    };
    let mut is_first = is_first;
    rows.into_iter().filter(|it| is_first(it)).collect()
}

/// What follows `history`: some tables stay, some are emptied, some change.
pub fn next(tape: &mut Tape<'_>, history: &History) -> History {
    let mut next = history.settled();
    for table in &TABLES {
        let source = table.source();
        let old = next.content(&source).old.clone();
        let new = match tape.pick(5) {
            0 => old.clone(),
            1 if tape.pick(2) == 1 => ZSet::default(),
            _ => {
                let mut new: Vec<Row> = Vec::new();
                for row in old.rows() {
                    if tape.pick(3) > 0 {
                        new.push(row.clone());
                    }
                }
                new.extend(rows(tape, table, 3));
                keyed(table, new)
            }
        };
        next.set(&source, Content { old, new });
    }
    next
}

/// First contents.
pub fn beginning(tape: &mut Tape<'_>) -> History {
    let mut history = History::default();
    for table in &TABLES {
        let new = rows(tape, table, 5);
        let new = keyed(table, new);
        history.set(&table.source(), Content { old: ZSet::default(), new });
    }
    history
}

/// The sources that changed, and any others for which `extra` holds.
pub fn superset(history: &History, extra: u8) -> impl Fn(&Source) -> bool {
    let changed: Vec<bool> = TABLES
        .iter()
        .enumerate()
        .map(|(i, it)| history.content(&it.source()).is_changed() || extra & (1 << i) != 0)
        .collect();
    move |source| match source {
        Source::Table { oid, .. } => changed[*oid as usize - 1],
        Source::Stage(_) => unreachable!("tables only"),
    }
}
