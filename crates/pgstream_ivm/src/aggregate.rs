//! How each aggregate is maintained.
//!
//! | function | stored beside the result | new result from old one and change | evaluated again when |
//! |---|---|---|---|
//! | `count` | — | old + Σw | never |
//! | `sum` | number of non-NULL inputs if NULLs are possible; display scales if they vary | old + Σ w·x | the result is NaN or ±Infinity, which have no inverse |
//! | `avg` | the sum and what it needs | sum' / count' | as `sum` |
//! | `min`, `max` | — | the lesser or greater of old and inserted | the extremum itself left, no inserted value takes its place, and no index finds the next one |
//! | `bool_and`, `bool_or` | number of non-NULL inputs if NULLs are possible; number of inputs that decide (false, true) | whether there is one that decides | never |
//! | any other | — | — | always |
//!
//! Evaluating again reads the affected groups only. The rules for `count` and `sum` hold because
//! both are linear in the weights; the rule for an extremum needs a consolidated change, so that a
//! row that came and went does not count as inserted. When the extremum left, an inserted value
//! that is further out, or is its very image, still gives the result; one that is merely equal
//! (1.00 for 1.0) does not, as the result must be one of the values that are there.
//!
//! The display scale of a numeric `sum` is the largest of its current inputs. It matters for more
//! than looks: division derives its precision from it. So where inputs differ in scale, the number
//! of inputs of each scale is stored.

use crate::{
    plan::{AggregateCall, AggregateFunction, End},
    scalar::Scalar,
};

const INT2: u32 = 21;
const INT4: u32 = 23;
const NUMERIC: u32 = 1700;

/// A column that an aggregate needs beside its result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateColumn {
    /// What the column holds; part of its name.
    pub name: &'static str,
    /// SQL type.
    pub ty: &'static str,
}

const COUNT: StateColumn = StateColumn { name: "count", ty: "pg_catalog.int8" };
const INTEGER_SUM: StateColumn = StateColumn { name: "sum", ty: "pg_catalog.int8" };
const NUMERIC_SUM: StateColumn = StateColumn { name: "sum", ty: "pg_catalog.numeric" };
const DECISIVE: StateColumn = StateColumn { name: "decisive", ty: "pg_catalog.int8" };
const SCALES: StateColumn = StateColumn { name: "scales", ty: "pg_catalog.int8[]" };

/// What an aggregate stores beside its result.
pub fn state(call: &AggregateCall) -> Vec<StateColumn> {
    let (argument, is_average) = match &call.function {
        AggregateFunction::Sum { argument } => (argument, false),
        AggregateFunction::Average { argument } => (argument, true),
        AggregateFunction::Decided { argument, .. } => {
            let count = counts_inputs(call, argument).then_some(COUNT);
            return std::iter::once(DECISIVE).chain(count).collect();
        }
        _ => return Vec::new(),
    };
    let mut state = Vec::new();
    if is_average {
        state.push(if is_small_integer(argument) { INTEGER_SUM } else { NUMERIC_SUM });
    }
    if counts_inputs(call, argument) {
        state.push(COUNT);
    }
    if has_varying_scale(argument) {
        state.push(SCALES);
    }
    state
}

/// SQL that maintains one aggregate. Every list of values starts with the result, followed by the
/// state columns in the order of [`state`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maintenance {
    /// Aggregates over the rows of the body's delta, grouped by key.
    pub changes: Vec<String>,
    /// The new values.
    pub new: Vec<String>,
    /// When this is true of a group, `new` does not hold and the group is evaluated again.
    pub lost: Option<String>,
    /// The values computed from all rows of the group.
    pub rescan: Vec<String>,
}

/// Names under which the SQL finds its operands.
pub struct Operands<'a> {
    /// A column of the body.
    pub column: &'a dyn Fn(usize) -> String,
    /// A stored value, NULL for a group that does not exist yet.
    pub stored: &'a dyn Fn(usize) -> String,
    /// An element of [`Maintenance::changes`].
    pub change: &'a dyn Fn(usize) -> String,
    /// The new number of rows of the group.
    pub new_count: &'a str,
    /// For an extremum that an index finds.
    pub look_up: Option<&'a LookUp<'a>>,
}

/// How the extremum of a group is looked up.
pub struct LookUp<'a> {
    /// The sub-select of an aggregate over the rows of the group for which all of the conditions hold.
    pub select: &'a dyn Fn(&str, &[String]) -> String,
    /// What must be true of the group; `None` where nothing need be.
    pub condition: Option<String>,
}

/// Whether the change must be consolidated before this aggregate's rule holds.
pub fn needs_consolidation(call: &AggregateCall) -> bool {
    matches!(call.function, AggregateFunction::Extremum { .. })
}

/// Whether the group is evaluated again on every change.
pub fn is_rescanned(call: &AggregateCall) -> bool {
    matches!(call.function, AggregateFunction::Rescan | AggregateFunction::Distinct(_))
}

/// Writes the SQL for `call`. The weight of a row is the column `w`.
pub fn maintain(call: &AggregateCall, operands: &Operands<'_>) -> Maintenance {
    match &call.function {
        AggregateFunction::CountRows => count(call, None, operands),
        AggregateFunction::Count { argument } => count(call, Some(argument), operands),
        AggregateFunction::Sum { argument } => total(call, argument, false, operands),
        AggregateFunction::Average { argument } => total(call, argument, true, operands),
        AggregateFunction::Extremum { argument, end } => extremum(call, argument, *end, operands),
        AggregateFunction::Decided { argument, by } => decided(call, argument, *by, operands),
        AggregateFunction::Rescan | AggregateFunction::Distinct(_) => Maintenance {
            changes: Vec::new(),
            new: vec![(operands.stored)(0)],
            lost: Some("true".to_owned()),
            rescan: vec![call.call.print(operands.column)],
        },
    }
}

fn count(call: &AggregateCall, argument: Option<&Scalar>, operands: &Operands<'_>) -> Maintenance {
    let column = operands.column;
    let conditions = conditions(call, argument.filter(|it| it.nullable), column);
    let weights = if conditions.is_empty() {
        "w".to_owned()
    } else {
        format!("CASE WHEN {} THEN w ELSE 0 END", conditions.join(" AND "))
    };
    let new = sum_of(&(operands.stored)(0), &(operands.change)(0));
    Maintenance {
        changes: vec![format!("sum({weights})::int8")],
        new: vec![new],
        lost: None,
        rescan: vec![call.call.print(column)],
    }
}

fn total(
    call: &AggregateCall,
    argument: &Scalar,
    is_average: bool,
    operands: &Operands<'_>,
) -> Maintenance {
    let Operands { column, stored, change, new_count, .. } = operands;
    let is_integer = is_small_integer(argument);
    let has_count = counts_inputs(call, argument);
    let filter = filter(call, column);
    let value = argument.print(column);

    // The positions of the stored values and of the changes follow `state`.
    let sum_at = usize::from(is_average);
    let mut changes = vec![if is_integer {
        format!("sum(w * ({value})::int8){filter}::int8")
    } else {
        let value = format!("({value})::numeric");
        format!(
            "sum(CASE w WHEN 1 THEN {value} WHEN -1 THEN - {value} ELSE w * {value} END){filter}"
        )
    }];
    let mut rescan = if is_average {
        let cast = if is_integer { "::int8" } else { "::numeric" };
        vec![call.call.print(column), format!("sum(({value}){cast}){filter}{cast}")]
    } else {
        vec![call.call.print(column)]
    };

    let mut sum = sum_of(&stored(sum_at), &change(0));
    let mut state = Vec::new();
    let mut count = (*new_count).to_owned();
    if has_count {
        count = sum_of(&stored(sum_at + 1), &change(1));
        let conditions = conditions(call, Some(argument), column).join(" AND ");
        changes.push(format!("sum(CASE WHEN {conditions} THEN w ELSE 0 END)::int8"));
        rescan.push(format!("count({value}){filter}"));
        state.push(count.clone());
    }
    if has_varying_scale(argument) {
        let position = 1 + usize::from(has_count);
        let scales = format!(
            "pgstream.add_scale_counts({}, {})",
            stored(sum_at + position),
            change(position)
        );
        changes.push(format!("pgstream.scale_counts(({value})::numeric, w){filter}"));
        rescan.push(format!("pgstream.scale_counts(({value})::numeric, 1::int8){filter}"));
        sum = format!("round({sum}, pgstream.max_scale({scales}))");
        state.push(scales);
    }

    let nothing = format!("{count} = 0");
    let result = if is_average { format!("({sum})::numeric / ({count})") } else { sum.clone() };
    let mut new = vec![format!("CASE WHEN {nothing} THEN NULL ELSE {result} END")];
    if is_average {
        new.push(format!("CASE WHEN {nothing} THEN NULL ELSE {sum} END"));
    }
    new.extend(state);
    let raw_sum = sum_of(&stored(sum_at), &change(0));
    let lost = (argument.ty.oid == NUMERIC)
        .then(|| format!("({raw_sum} IN ('NaN'::numeric, 'Infinity', '-Infinity'))"));
    Maintenance { changes, new, lost, rescan }
}

fn decided(
    call: &AggregateCall,
    argument: &Scalar,
    by: bool,
    operands: &Operands<'_>,
) -> Maintenance {
    let Operands { column, stored, change, new_count, .. } = operands;
    let value = argument.print(column);
    let is_decisive = if by { format!("({value})") } else { format!("NOT ({value})") };
    let inputs = conditions(call, Some(argument), column).join(" AND ");
    let decisive = conditions(call, None, column).into_iter().chain([is_decisive.clone()]);
    let decisive = decisive.collect::<Vec<_>>().join(" AND ");
    let mut changes = vec![format!("sum(CASE WHEN {decisive} THEN w ELSE 0 END)::int8")];
    let mut rescan = vec![call.call.print(column), format!("count(*) FILTER (WHERE {decisive})")];
    let new_decisive = sum_of(&stored(1), &change(0));
    let mut count = (*new_count).to_owned();
    let mut state = vec![new_decisive.clone()];
    if counts_inputs(call, argument) {
        changes.push(format!("sum(CASE WHEN {inputs} THEN w ELSE 0 END)::int8"));
        rescan.push(format!("count(*) FILTER (WHERE {inputs})"));
        count = sum_of(&stored(2), &change(1));
        state.push(count.clone());
    }
    let sign = if by { ">" } else { "=" };
    let result = format!("CASE WHEN {count} = 0 THEN NULL ELSE {new_decisive} {sign} 0 END");
    let new = std::iter::once(result).chain(state).collect();
    Maintenance { changes, new, lost: None, rescan }
}

fn extremum(
    call: &AggregateCall,
    argument: &Scalar,
    end: End,
    operands: &Operands<'_>,
) -> Maintenance {
    let Operands { column, stored, change, .. } = operands;
    let (function, choose, reaches, beyond) = match end {
        End::Least => ("min", "LEAST", "<=", "<"),
        End::Greatest => ("max", "GREATEST", ">=", ">"),
    };
    let value = argument.print(column);
    let conditions = conditions(call, None, column);
    let condition: String = conditions.iter().map(|it| format!(" AND {it}")).collect();
    let (stored, inserted, deleted) = (stored(0), change(0), change(1));
    let is_lost = format!(
        "({deleted} {reaches} {stored} AND NOT coalesce({inserted} {beyond} {stored} \
         OR ROW({inserted})::record *= ROW({stored})::record, false))"
    );
    let mut new = format!("{choose}({stored}, {inserted})");
    let mut lost = Some(is_lost.clone());
    if let Some(look_up) = operands.look_up {
        let found = (look_up.select)(&format!("{function}({value})"), &conditions);
        let has_key = look_up.condition.iter().map(|it| format!(" AND {it}"));
        let has_key: String = has_key.collect();
        new = format!("CASE WHEN {is_lost}{has_key} THEN {found} ELSE {new} END");
        lost = look_up.condition.as_ref().map(|it| format!("({is_lost} AND NOT ({it}))"));
    }
    Maintenance {
        changes: vec![
            format!("{function}({value}) FILTER (WHERE w > 0{condition})"),
            format!("{function}({value}) FILTER (WHERE w < 0{condition})"),
        ],
        new: vec![new],
        lost,
        rescan: vec![call.call.print(column)],
    }
}

/// ` FILTER (WHERE …)` of the call, or nothing.
fn filter(call: &AggregateCall, column: &dyn Fn(usize) -> String) -> String {
    call.filter
        .as_ref()
        .map(|filter| format!(" FILTER (WHERE {})", filter.print(column)))
        .unwrap_or_default()
}

/// What must hold for a row to be an input of the aggregate.
fn conditions(
    call: &AggregateCall,
    not_null: Option<&Scalar>,
    column: &dyn Fn(usize) -> String,
) -> Vec<String> {
    let filter = call.filter.iter().map(|it| format!("({})", it.print(column)));
    // `IS NOT NULL` would look into a composite value.
    let not_null = not_null.map(|it| format!("num_nonnulls({}) = 1", it.print(column)));
    filter.chain(not_null).collect()
}

fn sum_of(stored: &str, change: &str) -> String {
    format!("(coalesce({stored}, 0) + coalesce({change}, 0))")
}

fn is_small_integer(argument: &Scalar) -> bool {
    matches!(argument.ty.oid, INT2 | INT4)
}

/// Whether the number of inputs can differ from the number of rows.
fn counts_inputs(call: &AggregateCall, argument: &Scalar) -> bool {
    argument.nullable || call.filter.is_some()
}

fn has_varying_scale(argument: &Scalar) -> bool {
    argument.ty.oid == NUMERIC && argument.scale.is_none()
}
