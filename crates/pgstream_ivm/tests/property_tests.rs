//! The laws of the algebra, on random plans and random histories.
//!
//! A plan and a history are both read off a random tape of bytes, on which smaller bytes and
//! shorter tapes mean simpler things, so that proptest shrinks to small cases.

use std::collections::BTreeSet;

use pgstream_ivm::{
    derive::{at, delta},
    model::{Content, History, Row, Runner, Value, ZSet, eval, run},
    plan::{Plan, Source, Version},
    sql::{full_select, identified_delta},
    stage::stage,
    testing::{
        Kind, TABLES, Table, aggregate, cross_join, database, filter, join, project, scan,
        scan_columns, union_all,
    },
};
use proptest::{collection::vec, prelude::*};

/// A source of choices.
struct Tape<'a>(std::slice::Iter<'a, u8>);

impl<'a> Tape<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self(bytes.iter())
    }

    /// Below `end`; 0 when the tape has run out.
    fn pick(&mut self, end: usize) -> usize {
        self.0.next().map_or(0, |it| usize::from(*it) % end)
    }

    fn choose<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.pick(choices.len())].clone()
    }
}

fn tape(length: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..length)
}

// Histories.

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
fn next(tape: &mut Tape<'_>, history: &History) -> History {
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

fn beginning(tape: &mut Tape<'_>) -> History {
    let mut history = History::default();
    for table in &TABLES {
        let new = rows(tape, table, 5);
        let new = keyed(table, new);
        history.set(&table.source(), Content { old: ZSet::default(), new });
    }
    history
}

// Plans.

/// What a plan may hold.
#[derive(Clone, Copy)]
struct Shape {
    leaves: usize,
    has_aggregates: bool,
}

fn columns_of(plan: &Plan, oids: &[u32]) -> Vec<usize> {
    let schema = plan.schema();
    (0..schema.len()).filter(|it| oids.contains(&schema[*it].ty.oid)).collect()
}

const INTEGERS: [u32; 2] = [23, 20];

/// An operand of a comparison: an integer column or constant.
fn operand(tape: &mut Tape<'_>, integers: &[usize]) -> String {
    match tape.pick(6) {
        4 => tape.pick(3).to_string(),
        5 if !integers.is_empty() => {
            format!("(#{} + #{})", tape.choose(integers), tape.choose(integers))
        }
        _ if integers.is_empty() => "1".to_owned(),
        _ => format!("#{}", tape.choose(integers)),
    }
}

fn predicate(tape: &mut Tape<'_>, plan: &Plan, depth: usize) -> String {
    let integers = columns_of(plan, &INTEGERS);
    match tape.pick(if depth == 0 { 4 } else { 7 }) {
        1 => format!("#{} IS NULL", tape.pick(plan.schema().len().max(1))),
        2 => format!("{} <> {}", operand(tape, &integers), operand(tape, &integers)),
        3 => format!("{} < {}", operand(tape, &integers), operand(tape, &integers)),
        4 => format!(
            "({}) OR {}",
            predicate(tape, plan, depth - 1),
            predicate(tape, plan, depth - 1)
        ),
        5 => format!("NOT ({})", predicate(tape, plan, depth - 1)),
        6 => "#0 IS NULL OR NOT #0 IS NULL".to_owned(),
        _ => format!("{} = {}", operand(tape, &integers), operand(tape, &integers)),
    }
}

fn leaf(tape: &mut Tape<'_>) -> Plan {
    let name = tape.choose(&["a", "b", "c", "d", "a"]);
    match tape.pick(8) {
        6 => scan_columns(name, &[0]),
        7 => scan_columns(name, &[1, 0]),
        _ => scan(name),
    }
}

fn projection(tape: &mut Tape<'_>, input: Plan) -> Plan {
    let integers = columns_of(&input, &INTEGERS);
    let numerics = columns_of(&input, &[1700]);
    let width = input.schema().len();
    let columns: Vec<String> = (0..=tape.pick(3))
        .map(|_| match tape.pick(6) {
            3 => operand(tape, &integers),
            4 if !numerics.is_empty() => {
                format!("#{} * #{}", tape.choose(&numerics), tape.choose(&numerics))
            }
            5 => format!("CASE WHEN {} THEN 1 ELSE 0 - 1 END", predicate(tape, &input, 1)),
            _ => format!("#{}", tape.pick(width)),
        })
        .collect();
    project(input, &columns.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Two integers and a numeric, whatever `input` is.
fn narrowed(tape: &mut Tape<'_>, input: Plan) -> Plan {
    let integers = columns_of(&input, &[23]);
    let numerics = columns_of(&input, &[1700]);
    let mut one = |columns: &[usize], otherwise: &str| {
        if columns.is_empty() { otherwise.to_owned() } else { format!("#{}", tape.choose(columns)) }
    };
    let columns = [one(&integers, "2"), one(&integers, "1"), one(&numerics, "1.50")];
    project(input, &columns.each_ref().map(String::as_str))
}

/// Columns by which the result of grouping does not depend on the order of the rows.
fn groupable(plan: &Plan) -> Vec<usize> {
    columns_of(plan, &[23, 20, 25])
}

fn grouped(tape: &mut Tape<'_>, input: Plan) -> Plan {
    let groupable = groupable(&input);
    if tape.pick(4) == 3 && !groupable.is_empty() {
        let columns: Vec<String> = groupable.iter().take(3).map(|it| format!("#{it}")).collect();
        return project(input, &columns.iter().map(String::as_str).collect::<Vec<_>>()).distinct();
    }
    let keys: Vec<usize> = (0..tape.pick(3))
        .filter(|_| !groupable.is_empty())
        .map(|_| tape.choose(&groupable))
        .collect();
    let addable = columns_of(&input, &[23, 1700]);
    let calls: Vec<String> = (0..=tape.pick(3))
        .map(|_| {
            let any = tape.pick(input.schema().len());
            let mut call = match tape.pick(8) {
                1 => format!("count(#{any})"),
                2 | 3 if !addable.is_empty() => format!("sum(#{})", tape.choose(&addable)),
                4 if !addable.is_empty() => format!("avg(#{})", tape.choose(&addable)),
                5 if !groupable.is_empty() => format!("min(#{})", tape.choose(&groupable)),
                6 if !groupable.is_empty() => format!("max(#{})", tape.choose(&groupable)),
                7 => format!("count(DISTINCT #{any})"),
                _ => "count(*)".to_owned(),
            };
            if tape.pick(4) == 3 {
                call = format!("{call} FILTER (WHERE {})", predicate(tape, &input, 1));
            }
            call
        })
        .collect();
    aggregate(input, &keys, &calls.iter().map(String::as_str).collect::<Vec<_>>())
}

fn grow(tape: &mut Tape<'_>, depth: usize, shape: &mut Shape) -> Plan {
    let choice = if depth == 0 { 0 } else { tape.pick(10) };
    match choice {
        1 => {
            let input = grow(tape, depth - 1, shape);
            let predicate = predicate(tape, &input, 2);
            filter(input, &predicate)
        }
        2 => {
            let input = grow(tape, depth - 1, shape);
            projection(tape, input)
        }
        3..=5 if shape.leaves > 1 => {
            let left = grow(tape, depth - 1, shape);
            let right = grow(tape, depth - 1, shape);
            if choice == 5 && tape.pick(3) == 2 {
                return cross_join(left, right);
            }
            let on = predicate(tape, &cross_join(left.clone(), right.clone()), 1);
            join(left, right, &on)
        }
        6 | 7 if shape.leaves > 1 => {
            let left = grow(tape, depth - 1, shape);
            let right = grow(tape, depth - 1, shape);
            union_all([narrowed(tape, left), narrowed(tape, right)])
        }
        8 | 9 if shape.has_aggregates => {
            let input = grow(tape, depth - 1, shape);
            grouped(tape, input)
        }
        _ => {
            shape.leaves = shape.leaves.saturating_sub(1);
            leaf(tape)
        }
    }
}

fn stateless(bytes: &[u8]) -> Plan {
    grow(&mut Tape::new(bytes), 4, &mut Shape { leaves: 3, has_aggregates: false })
}

fn whole(bytes: &[u8]) -> Plan {
    grow(&mut Tape::new(bytes), 5, &mut Shape { leaves: 3, has_aggregates: true })
}

/// The sources that changed, and any others for which `extra` holds.
fn superset(history: &History, extra: u8) -> impl Fn(&Source) -> bool {
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

/// `SELECT row id, c0, …, w` as a Z-set, without the row ids.
fn weighted(rows: Vec<Row>) -> ZSet {
    let pair = |mut row: Row| {
        let weight = row.pop().expect("a weight").to_int();
        (row.split_off(1), weight)
    };
    rows.into_iter().map(pair).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]

    /// old + Δ = new, for every superset of what changed; and the printed SQL says the same.
    #[test]
    fn a_delta_takes_old_content_to_new(plan in tape(48), history in tape(160), extra in 0_u8..32) {
        let plan = stateless(&plan);
        let mut history_tape = Tape::new(&history);
        let history = beginning(&mut history_tape);
        let history = next(&mut history_tape, &history);
        let changed = superset(&history, extra);

        let old = eval(&at(&plan, Version::Old, &changed), &history);
        let new = eval(&at(&plan, Version::New, &changed), &history);
        let derived = delta(&plan, &changed);
        let change = eval(&derived, &history);
        prop_assert_eq!(old.plus(&change), new.clone(), "\n{}\n{}", plan, derived);
        prop_assert_eq!(derived.schema().len(), plan.schema().len());

        let database = database(&history);
        let sql = full_select(&plan, &[]);
        let rows: ZSet = run(&sql, &database).rows.into_iter().collect();
        prop_assert_eq!(rows, new, "{}", sql);
        let sql = identified_delta(&derived, plan.key().as_deref(), &[]);
        prop_assert_eq!(weighted(run(&sql, &database).rows), change, "{}", sql);
    }

    /// The printed statements of a pipeline keep each storage equal to recomputation.
    #[test]
    fn a_pipeline_keeps_up_with_recomputation(
        plan in tape(64), history in tape(400), extra in 0_u8..32,
    ) {
        let plan = whole(&plan);
        let pipeline = stage(plan.clone());
        let mut tape = Tape::new(&history);
        let mut history = beginning(&mut tape);
        let mut runner = Runner::new(pipeline, &database(&history));
        prop_assert_eq!(runner.content(), eval(&plan, &history), "\n{}", plan);
        for _ in 0..3 {
            history = next(&mut tape, &history);
            let database = database(&history);
            let before = runner.content();
            let change = runner.refresh(&database, &superset(&history, extra));
            let content = runner.content();
            prop_assert_eq!(&content, &eval(&plan, &history), "\n{}", plan);
            let stored_change = content.plus(&before.negated());
            prop_assert_eq!(
                change.iter().map(|it| it.1.abs()).sum::<i64>(),
                stored_change.iter().map(|it| it.1.abs()).sum::<i64>()
            );
            runner.check(&database);
        }
    }

    /// No two rows of a plan's content agree in its key.
    #[test]
    fn a_key_is_a_key(plan in tape(64), history in tape(160)) {
        let plan = whole(&plan);
        let history = beginning(&mut Tape::new(&history));
        if let Some(key) = plan.key() {
            prop_assert!(eval(&plan, &history).is_unique(&key), "{}", plan);
        }
    }
}
