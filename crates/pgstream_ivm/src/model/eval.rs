//! What a plan means.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    model::{
        Content, Database, History, Row, ZSet, expression::Expression, parser::expression, run,
        value::Value,
    },
    plan::{Plan, Source},
    recursion::ITSELF,
    scalar::Scalar,
};

/// The rows of `plan`.
pub fn eval(plan: &Plan, history: &History) -> ZSet {
    match plan {
        Plan::Unit => ZSet::from_iter([Row::new()]),
        Plan::Empty(_) => ZSet::default(),
        Plan::Scan(scan) => {
            // Attribute numbers of tables count from 1.
            let first = usize::from(matches!(scan.source, Source::Table { .. }));
            let pick =
                |row: &Row| scan.attributes.iter().map(|it| row[*it - first].clone()).collect();
            let content = history.content(&scan.source).at(scan.version);
            content.iter().map(|(row, weight)| (pick(row), weight)).collect()
        }
        Plan::Filter { input, predicate } => {
            let predicate = parsed(predicate);
            let input = eval(input, history);
            let holds = |row: &Row| predicate.evaluate_scalar(row) == Value::Bool(true);
            input
                .iter()
                .filter(|it| holds(it.0))
                .map(|(row, weight)| (row.clone(), weight))
                .collect()
        }
        Plan::Project { input, columns } => {
            let columns: Vec<_> = columns.iter().map(|(it, _)| parsed(it)).collect();
            let project = |row: &Row| columns.iter().map(|it| it.evaluate_scalar(row)).collect();
            eval(input, history).iter().map(|(row, weight)| (project(row), weight)).collect()
        }
        Plan::InnerJoin { left, right, on } => {
            let right = eval(right, history);
            let mut pairs = ZSet::default();
            for (row, weight) in eval(left, history).iter() {
                for (pair, w) in matches(row, &right, on.as_ref()).iter() {
                    pairs.add(pair.clone(), weight * w);
                }
            }
            pairs
        }
        Plan::Sum { inputs } => inputs
            .iter()
            .map(|it| eval(it, history))
            .fold(ZSet::default(), |all, next| all.plus(&next)),
        Plan::Negate(input) => eval(input, history).negated(),
        Plan::LeftJoin { left, right, on } => {
            let width = left.schema().len() + right.schema().len();
            let (left, right) = (eval(left, history), eval(right, history));
            let mut all = ZSet::default();
            for (row, weight) in left.iter() {
                let matches = matches(row, &right, on.as_ref());
                if count(&matches) == 0 {
                    let mut row = row.clone();
                    row.resize(width, Value::Null);
                    all.add(row, weight);
                }
                for (row, w) in matches.iter() {
                    all.add(row.clone(), weight * w);
                }
            }
            all
        }
        Plan::Mark { left, right, on, .. } => {
            let right = eval(right, history);
            let mark = |row: &Row| Value::Bool(count(&matches(row, &right, on.as_ref())) > 0);
            let marked = |row: &Row| row.iter().cloned().chain([mark(row)]).collect();
            eval(left, history).iter().map(|(row, weight)| (marked(row), weight)).collect()
        }
        Plan::MarkChange { left, right, change, on, .. } => {
            let (right, change) = (eval(right, history), eval(change, history));
            let mut all = ZSet::default();
            for (row, weight) in eval(left, history).iter() {
                let new = count(&matches(row, &right, on.as_ref()));
                let old = new - count(&matches(row, &change, on.as_ref()));
                let marked = |count: i64| {
                    row.iter().cloned().chain([Value::Bool(count > 0)]).collect::<Row>()
                };
                all.add(marked(new), weight);
                all.add(marked(old), -weight);
            }
            all
        }
        Plan::Expand { input, item, columns, outer } => {
            let mut expanded = ZSet::default();
            for (row, weight) in eval(input, history).iter() {
                let sql = item.print(|it| literal(&row[it]));
                let mut rows = run(&sql, &Database::new()).rows;
                if rows.is_empty() && *outer {
                    rows.push(vec![Value::Null; columns.len()]);
                }
                for added in rows {
                    expanded.add(row.iter().cloned().chain(added).collect(), weight);
                }
            }
            expanded
        }
        Plan::Window { input, calls, filter, .. } => {
            let calls: Vec<_> = calls.iter().map(|(it, _)| parsed(it)).collect();
            let filter = filter.as_ref().map(parsed);
            let input = eval(input, history);
            let rows = input.rows();
            let row = |at: usize| {
                let calls = calls.iter().map(|it| it.evaluate_window(&rows, at));
                rows[at].iter().cloned().chain(calls).collect::<Row>()
            };
            let is_kept = |row: &Row| {
                filter.as_ref().is_none_or(|it| it.evaluate_scalar(row) == Value::Bool(true))
            };
            (0..rows.len()).map(row).filter(is_kept).collect()
        }
        Plan::Recurse { base, step, is_set } => {
            // By depth; of a set, what is there already is not new.
            let news = |rows: ZSet, all: &ZSet| -> ZSet {
                let row_of = |row: &Row| row[..row.len() - 1].to_vec();
                let known: BTreeSet<Row> = all.iter().map(|it| row_of(it.0)).collect();
                let is_new = |row: &&Row| !known.contains(&row_of(row));
                rows.iter().map(|it| it.0).filter(is_new).cloned().collect()
            };
            let mut history = history.clone();
            let mut rows = eval(base, &history);
            let mut all = ZSet::default();
            loop {
                if *is_set {
                    rows = news(rows, &all);
                }
                if rows.iter().next().is_none() {
                    break;
                }
                all = all.plus(&rows);
                let content = Content { old: rows.clone(), new: rows };
                history.set(&ITSELF, content);
                rows = eval(step, &history);
            }
            all
        }
        Plan::Opaque { .. } => panic!("its query is text"),
        Plan::Aggregate { input, keys, calls } => {
            let calls: Vec<_> = calls.iter().map(|it| parsed(&it.call)).collect();
            aggregate(&eval(input, history), keys, &calls)
        }
    }
}

/// The pairs of a row with those of `right` for which the condition is true.
fn matches(row: &Row, right: &ZSet, on: Option<&Scalar>) -> ZSet {
    let on = on.map(parsed);
    let pair = |other: &Row| row.iter().chain(other).cloned().collect::<Row>();
    let holds =
        |pair: &Row| on.as_ref().is_none_or(|it| it.evaluate_scalar(pair) == Value::Bool(true));
    right.iter().map(|(other, weight)| (pair(other), weight)).filter(|it| holds(&it.0)).collect()
}

/// How many rows there are.
fn count(rows: &ZSet) -> i64 {
    rows.iter().map(|it| it.1).sum()
}

fn aggregate(input: &ZSet, keys: &[usize], calls: &[Expression]) -> ZSet {
    let mut groups: BTreeMap<Row, Vec<&Row>> = BTreeMap::new();
    if keys.is_empty() {
        groups.insert(Row::new(), Vec::new());
    }
    for row in input.rows() {
        let key = keys.iter().map(|it| row[*it].canonical()).collect();
        groups.entry(key).or_default().push(row);
    }
    let output = |rows: &Vec<&Row>| {
        let keys = keys.iter().map(|it| rows[0][*it].clone());
        keys.chain(calls.iter().map(|it| it.evaluate_aggregate(rows))).collect::<Row>()
    };
    groups.values().map(output).collect()
}

/// A value as SQL, as far as items of [`Plan::Expand`] read them in tests.
fn literal(value: &Value) -> String {
    match value {
        Value::Null => "NULL".to_owned(),
        Value::Int(it) => format!("({it})"),
        other => panic!("{other:?} in an item"),
    }
}

fn parsed(scalar: &Scalar) -> Expression {
    expression(&scalar.to_string())
}
