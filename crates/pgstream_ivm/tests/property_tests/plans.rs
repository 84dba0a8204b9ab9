//! Random plans.

use pgstream_ivm::{
    plan::Plan,
    testing::{
        aggregate, cross_join, filter, join, left_join, mark, project, scan, scan_columns,
        union_all, window,
    },
};

use crate::tape::Tape;

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
            let mut call = match tape.pick(11) {
                1 => format!("count(#{any})"),
                2 | 3 if !addable.is_empty() => format!("sum(#{})", tape.choose(&addable)),
                4 if !addable.is_empty() => format!("avg(#{})", tape.choose(&addable)),
                5 if !groupable.is_empty() => format!("min(#{})", tape.choose(&groupable)),
                6 if !groupable.is_empty() => format!("max(#{})", tape.choose(&groupable)),
                7 => format!("count(DISTINCT #{any})"),
                8 if !addable.is_empty() => format!("sum(DISTINCT #{})", tape.choose(&addable)),
                9 => format!("bool_and({})", predicate(tape, &input, 1)),
                10 => format!("bool_or({})", predicate(tape, &input, 1)),
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

fn windowed(tape: &mut Tape<'_>, input: Plan) -> Plan {
    let width = input.schema().len();
    if width == 0 {
        return input;
    }
    let partition: Vec<usize> = (0..tape.pick(3)).map(|_| tape.pick(width)).collect();
    let keys: Vec<String> = partition.iter().map(|it| format!("#{it}")).collect();
    let by =
        if keys.is_empty() { String::new() } else { format!("PARTITION BY {} ", keys.join(", ")) };
    let addable = columns_of(&input, &[23, 1700]);
    let calls: Vec<String> = (0..=tape.pick(2))
        .map(|_| {
            let any = tape.pick(width);
            let call = match tape.pick(7) {
                1 => format!("count(#{any})"),
                2 if !addable.is_empty() => format!("sum(#{})", tape.choose(&addable)),
                3 => "dense_rank()".to_owned(),
                4 => "row_number()".to_owned(),
                5 => format!("lag(#{any})"),
                6 => format!("lead(#{any})"),
                _ => "rank()".to_owned(),
            };
            let order = match tape.pick(3) {
                1 => format!("ORDER BY #{any}, #{} DESC", tape.pick(width)),
                2 => String::new(),
                _ => format!("ORDER BY #{}", tape.pick(width)),
            };
            format!("{call} OVER ({by}{order})")
        })
        .collect();
    let calls: Vec<&str> = calls.iter().map(String::as_str).collect();
    let plan = window(input, &partition, &calls, None);
    if tape.pick(3) < 2 {
        return plan;
    }
    let predicate = predicate(tape, &plan, 1);
    let number = plan.schema().len() - 1;
    match tape.pick(3) {
        1 => filter(plan, &predicate),
        2 if columns_of(&plan, &INTEGERS).contains(&number) => {
            filter(project(plan, &[&format!("#{number}"), "#0"]), "#0 = 1 OR #0 IS NULL")
        }
        _ => {
            let Plan::Window { input, .. } = plan else { unreachable!("just made") };
            window(*input, &partition, &calls, Some(&predicate))
        }
    }
}

/// EXISTS as a value, as a condition, and under OR.
fn marked(tape: &mut Tape<'_>, left: Plan, right: Plan, on: &str) -> Plan {
    let width = left.schema().len();
    let integers = columns_of(&left, &INTEGERS);
    let marked = mark(left, right, on);
    match tape.pick(4) {
        0 => filter(marked, &format!("#{width}")),
        1 => filter(marked, &format!("NOT #{width}")),
        2 => filter(marked, &format!("#{width} OR {} = 1", operand(tape, &integers))),
        _ => marked,
    }
}

fn grow(tape: &mut Tape<'_>, depth: usize, shape: &mut Shape) -> Plan {
    let choice = if depth == 0 { 0 } else { tape.pick(16) };
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
        10..=13 if shape.leaves > 1 => {
            let left = grow(tape, depth - 1, shape);
            let right = grow(tape, depth - 1, shape);
            let on = predicate(tape, &cross_join(left.clone(), right.clone()), 1);
            if choice < 12 { left_join(left, right, &on) } else { marked(tape, left, right, &on) }
        }
        14 | 15 if shape.has_aggregates => {
            let input = grow(tape, depth - 1, shape);
            windowed(tape, input)
        }
        _ => {
            shape.leaves = shape.leaves.saturating_sub(1);
            leaf(tape)
        }
    }
}

/// A plan without aggregates and windows.
pub fn stateless(bytes: &[u8]) -> Plan {
    grow(&mut Tape::new(bytes), 4, &mut Shape { leaves: 3, has_aggregates: false })
}

/// A plan with everything.
pub fn whole(bytes: &[u8]) -> Plan {
    grow(&mut Tape::new(bytes), 5, &mut Shape { leaves: 3, has_aggregates: true })
}
