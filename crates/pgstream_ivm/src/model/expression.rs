//! Expressions: what tests know of SQL scalars and aggregates.
//!
//! The crate proper never looks into a scalar's text. Tests must, to compute anything, so this
//! module reads the small part of PostgreSQL's grammar that the printed statements and the test
//! plans use, with PostgreSQL's precedences and three-valued logic.

use std::{cmp::Ordering, collections::BTreeSet};

use crate::model::{
    Row,
    select::{Database, Query},
    value::Value,
};

/// An expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// A constant.
    Literal(Value),
    /// A column of a scalar's input, by position.
    Hole(usize),
    /// A column in SQL text, with its qualifier.
    Column(Option<String>, String),
    /// `NOT x`.
    Not(Box<Expression>),
    /// `- x`.
    Negated(Box<Expression>),
    /// `x <operator> y`.
    Binary(&'static str, Box<Expression>, Box<Expression>),
    /// `x IS NULL`.
    IsNull(Box<Expression>),
    /// `CASE x WHEN … THEN … ELSE … END`, with or without `x`.
    Case {
        /// `x`.
        operand: Option<Box<Expression>>,
        /// WHEN and THEN.
        arms: Vec<(Expression, Expression)>,
        /// ELSE.
        otherwise: Box<Expression>,
    },
    /// `x::type`.
    Cast(Box<Expression>, String),
    /// `x IN (…)`.
    In(Box<Expression>, Vec<Expression>),
    /// `ROW(…)`.
    Record(Vec<Expression>),
    /// `EXISTS (…)`.
    Exists(Box<Query>),
    /// A sub-select in the place of a value.
    Scalar(Box<Query>),
    /// A function or an aggregate.
    Call(Call),
    /// A window function.
    Over(Box<Over>),
}

/// `f(…) OVER (PARTITION BY … ORDER BY …)`, with the default frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Over {
    /// What is called.
    pub call: Call,
    /// PARTITION BY.
    pub partition: Vec<Expression>,
    /// ORDER BY, with whether DESC follows.
    pub order: Vec<(Expression, bool)>,
}

/// A function call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Without `pg_catalog`.
    pub name: String,
    /// None for `f(*)`.
    pub arguments: Vec<Expression>,
    /// Whether DISTINCT stands before the arguments.
    pub is_distinct: bool,
    /// FILTER (WHERE …).
    pub filter: Option<Box<Expression>>,
}

/// The functions that take rows.
const AGGREGATES: [&str; 10] = [
    "count",
    "sum",
    "avg",
    "min",
    "max",
    "any_value",
    "bool_and",
    "bool_or",
    "stddev",
    "pgstream.scale_counts",
];

impl Call {
    /// Whether it takes rows.
    pub fn is_aggregate(&self) -> bool {
        AGGREGATES.contains(&self.name.as_str())
    }
}

/// What an expression is evaluated over.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Qualifier and name of each column of a row.
    pub names: &'a [(String, String)],
    /// One row, or all rows of a group.
    pub rows: &'a [&'a Row],
    /// The GROUP BY expressions, if there is grouping.
    pub grouping: Option<&'a [Expression]>,
    /// All rows, for window functions, and which of them the row is.
    pub among: (&'a [&'a Row], usize),
    /// What the expression stands in.
    pub scope: Scope<'a>,
}

/// What stands around an expression of a query.
#[derive(Clone, Copy, Default)]
pub struct Scope<'a> {
    /// The tables; scalars of plans have none.
    pub database: Option<&'a Database>,
    /// Where the columns are looked for that the query itself does not have.
    pub outer: Option<&'a Context<'a>>,
}

impl<'a> Context<'a> {
    /// For columns of these names.
    pub fn of(names: &'a [(String, String)], rows: &'a [&'a Row]) -> Self {
        Self { names, rows, grouping: None, among: (&[], 0), scope: Scope::default() }
    }

    fn ungrouped(self, rows: &'a [&'a Row]) -> Self {
        Self { rows, grouping: None, ..self }
    }

    fn column(&self, qualifier: Option<&str>, name: &str) -> &'a Value {
        let fits = |(owner, column): &(String, String)| {
            column == name && qualifier.is_none_or(|it| it == owner)
        };
        let Some(place) = self.names.iter().position(fits) else {
            let Some(outer) = self.scope.outer else {
                panic!("no column {qualifier:?} {name} in {:?}", self.names)
            };
            return outer.column(qualifier, name);
        };
        assert!(self.grouping.is_none(), "{qualifier:?} {name} must appear in GROUP BY");
        assert!(
            !self.names[place + 1..].iter().any(fits),
            "column {qualifier:?} {name} is ambiguous in {:?}",
            self.names
        );
        &self.rows[0][place]
    }
}

impl Expression {
    /// The value over one row, for the printed form of a scalar.
    pub fn evaluate_scalar(&self, row: &Row) -> Value {
        self.evaluate(Context::of(&[], &[row]))
    }

    /// The value of an aggregate's printed form over the rows of a group.
    pub fn evaluate_aggregate(&self, rows: &[&Row]) -> Value {
        self.evaluate(Context { grouping: Some(&[]), ..Context::of(&[], rows) })
    }

    /// The value of a window function's printed form for one of these rows.
    pub fn evaluate_window(&self, rows: &[&Row], at: usize) -> Value {
        self.evaluate(Context { among: (rows, at), ..Context::of(&[], &[rows[at]]) })
    }

    /// Whether an aggregate occurs.
    pub fn has_aggregate(&self) -> bool {
        match self {
            Self::Call(call) => {
                call.is_aggregate() || call.arguments.iter().any(Self::has_aggregate)
            }
            Self::Literal(_)
            | Self::Hole(_)
            | Self::Column(..)
            | Self::Exists(_)
            | Self::Scalar(_)
            | Self::Over(_) => false,
            Self::Not(it) | Self::Negated(it) | Self::IsNull(it) | Self::Cast(it, _) => {
                it.has_aggregate()
            }
            Self::Binary(_, left, right) => left.has_aggregate() || right.has_aggregate(),
            Self::Case { operand, arms, otherwise } => {
                operand.as_ref().is_some_and(|it| it.has_aggregate())
                    || arms.iter().any(|(when, then)| when.has_aggregate() || then.has_aggregate())
                    || otherwise.has_aggregate()
            }
            Self::In(it, list) => it.has_aggregate() || list.iter().any(Self::has_aggregate),
            Self::Record(list) => list.iter().any(Self::has_aggregate),
        }
    }

    /// The value.
    pub fn evaluate(&self, context: Context<'_>) -> Value {
        if let Some(grouping) = context.grouping
            && grouping.contains(self)
        {
            return self.evaluate(context.ungrouped(context.rows));
        }
        let of = |it: &Self| it.evaluate(context);
        match self {
            Self::Literal(value) => value.clone(),
            Self::Hole(_) if context.grouping.is_some() => {
                panic!("{self:?} must appear in GROUP BY")
            }
            Self::Hole(position) => context.rows[0][*position].clone(),
            Self::Column(qualifier, name) => context.column(qualifier.as_deref(), name).clone(),
            Self::Exists(query) => {
                let scope = Scope { outer: Some(&context), ..context.scope };
                Value::Bool(!query.run(scope).rows.is_empty())
            }
            Self::Scalar(query) => {
                let scope = Scope { outer: Some(&context), ..context.scope };
                let mut rows = query.run(scope).rows;
                assert!(rows.len() <= 1, "more than one row returned by a subquery");
                rows.pop().map_or(Value::Null, |row| row[0].clone())
            }
            Self::Not(it) => match of(it) {
                Value::Bool(it) => Value::Bool(!it),
                other => other,
            },
            Self::Negated(it) => of(it).negated(),
            Self::IsNull(it) => Value::Bool(match of(it) {
                Value::Record(fields) => fields.iter().all(Value::is_null),
                other => other.is_null(),
            }),
            Self::Binary(operator, left, right) => binary(operator, &of(left), &of(right)),
            Self::Case { operand, arms, otherwise } => {
                let operand = operand.as_ref().map(|it| of(it));
                let chosen = arms.iter().find(|(when, _)| match &operand {
                    Some(operand) => operand.compare(&of(when)) == Some(Ordering::Equal),
                    None => of(when) == Value::Bool(true),
                });
                chosen.map_or_else(|| of(otherwise), |(_, then)| of(then))
            }
            Self::Cast(it, ty) => cast(of(it), ty),
            Self::In(it, list) => {
                let it = of(it);
                let tests = list.iter().map(|other| binary("=", &it, &of(other)));
                tests.fold(Value::Bool(false), |all, next| binary("OR", &all, &next))
            }
            Self::Record(fields) => Value::Record(fields.iter().map(of).collect()),
            Self::Over(over) => over.evaluate(context),
            Self::Call(call) if call.is_aggregate() => {
                assert!(context.grouping.is_some(), "{call:?} is not allowed here");
                call.aggregate(context)
            }
            Self::Call(call) => function(call, &call.arguments.iter().map(of).collect::<Vec<_>>()),
        }
    }
}

impl Over {
    fn evaluate(&self, context: Context<'_>) -> Value {
        let (all, at) = context.among;
        assert!(!all.is_empty(), "{self:?} is not allowed here");
        let of = |it: &Expression, row: usize| it.evaluate(context.ungrouped(&all[row..=row]));
        let key = |row: usize| -> Row {
            self.partition.iter().map(|it| of(it, row).canonical()).collect()
        };
        let order = |a: usize, b: usize| {
            let by = self.order.iter().map(|(it, is_descending)| {
                let order = sort_order(&of(it, a), &of(it, b));
                if *is_descending { order.reverse() } else { order }
            });
            by.fold(Ordering::Equal, Ordering::then)
        };
        // What ORDER BY leaves open follows the rows' images, so that it is the same everywhere.
        let mut rows: Vec<usize> = (0..all.len()).filter(|it| key(*it) == key(at)).collect();
        rows.sort_by(|a, b| order(*a, *b).then_with(|| all[*a].cmp(all[*b])).then(a.cmp(b)));
        let place = rows.iter().position(|it| *it == at).expect("a row is in its partition");
        let before = rows.iter().filter(|it| order(**it, at).is_lt()).count();
        let argument = |row: usize| of(&self.call.arguments[0], row);
        let neighbour = |row: Option<&usize>| row.map_or(Value::Null, |it| argument(*it));
        match self.call.name.as_str() {
            "row_number" => Value::Int(length(&rows[..=place])),
            "rank" => Value::Int(length(&rows[..before]) + 1),
            "dense_rank" => {
                let is_first = |it: usize| it == 0 || order(rows[it - 1], rows[it]).is_lt();
                let groups: Vec<usize> = (0..=place).filter(|it| is_first(*it)).collect();
                Value::Int(length(&groups))
            }
            "lag" => neighbour(place.checked_sub(1).map(|it| &rows[it])),
            "lead" => neighbour(rows.get(place + 1)),
            _ => {
                let in_frame = |it: &&usize| order(**it, at).is_le();
                let frame: Vec<&Row> = rows.iter().filter(in_frame).map(|it| all[*it]).collect();
                self.call.aggregate(Context { rows: &frame, ..context })
            }
        }
    }
}

/// NULLs last.
pub(super) fn sort_order(a: &Value, b: &Value) -> Ordering {
    a.compare(b).unwrap_or_else(|| a.is_null().cmp(&b.is_null()))
}

impl Call {
    fn aggregate(&self, context: Context<'_>) -> Value {
        let mut inputs = Vec::new();
        for row in context.rows {
            let rows = [*row];
            let of = |it: &Expression| it.evaluate(context.ungrouped(&rows));
            if self.filter.as_ref().is_none_or(|it| of(it) == Value::Bool(true)) {
                inputs.push(self.arguments.iter().map(of).collect::<Vec<_>>());
            }
        }
        if self.arguments.is_empty() {
            assert_eq!(self.name, "count");
            return Value::Int(length(&inputs));
        }
        inputs.retain(|it| !it[0].is_null());
        if self.is_distinct {
            let mut seen = BTreeSet::new();
            inputs.retain(|it| seen.insert(it[0].canonical()));
        }
        let values = || inputs.iter().map(|it| it[0].clone());
        let sum = || values().reduce(|a, b| a.add(&b)).unwrap_or(Value::Null);
        match self.name.as_str() {
            "count" => Value::Int(length(&inputs)),
            "sum" => sum(),
            "avg" => match sum() {
                Value::Null => Value::Null,
                sum => Value::Numeric(sum.to_numeric()).divide(&Value::Int(length(&inputs))),
            },
            "min" => values().reduce(|a, b| extremum(a, b, Ordering::Less)).unwrap_or(Value::Null),
            "max" => {
                values().reduce(|a, b| extremum(a, b, Ordering::Greater)).unwrap_or(Value::Null)
            }
            "any_value" => values().next().unwrap_or(Value::Null),
            "bool_and" => values().reduce(|a, b| binary("AND", &a, &b)).unwrap_or(Value::Null),
            "bool_or" => values().reduce(|a, b| binary("OR", &a, &b)).unwrap_or(Value::Null),
            "pgstream.scale_counts" => inputs
                .iter()
                .map(|it| counts_of(&it[0], it[1].to_int()))
                .fold(Value::Counts(Vec::new()), |all, next| add_counts(&all, &next)),
            other => panic!("the model does not compute {other}"),
        }
    }
}

fn length<T>(inputs: &[T]) -> i64 {
    i64::try_from(inputs.len()).expect("few rows")
}

fn extremum(a: Value, b: Value, wanted: Ordering) -> Value {
    match b.compare(&a) {
        None if a.is_null() => b,
        Some(order) if order == wanted => b,
        _ => a,
    }
}

fn binary(operator: &str, left: &Value, right: &Value) -> Value {
    let compared = |holds: fn(Ordering) -> bool| {
        left.compare(right).map_or(Value::Null, |order| Value::Bool(holds(order)))
    };
    match operator {
        "+" => left.add(right),
        "-" => left.subtract(right),
        "*" => left.multiply(right),
        "/" => left.divide(right),
        "=" => compared(Ordering::is_eq),
        "<>" => compared(Ordering::is_ne),
        "<" => compared(Ordering::is_lt),
        "<=" => compared(Ordering::is_le),
        ">" => compared(Ordering::is_gt),
        ">=" => compared(Ordering::is_ge),
        "*=" => Value::Bool(left == right),
        "AND" => match (left, right) {
            (Value::Bool(false), _) | (_, Value::Bool(false)) => Value::Bool(false),
            (Value::Bool(true), Value::Bool(true)) => Value::Bool(true),
            _ => Value::Null,
        },
        "OR" => match (left, right) {
            (Value::Bool(true), _) | (_, Value::Bool(true)) => Value::Bool(true),
            (Value::Bool(false), Value::Bool(false)) => Value::Bool(false),
            _ => Value::Null,
        },
        other => panic!("unknown operator {other}"),
    }
}

fn cast(value: Value, ty: &str) -> Value {
    match (ty, value) {
        (_, Value::Null) => Value::Null,
        ("int8" | "bigint" | "integer" | "int4", value) => Value::Int(value.to_int()),
        ("numeric", value) => Value::Numeric(value.to_numeric()),
        ("text" | "record" | "boolean", value) => value,
        (other, _) => panic!("unknown type {other}"),
    }
}

fn function(call: &Call, arguments: &[Value]) -> Value {
    let first_of = |wanted: Ordering| {
        arguments.iter().cloned().reduce(|a, b| extremum(a, b, wanted)).expect("an argument")
    };
    match (call.name.as_str(), arguments) {
        ("coalesce", _) => {
            arguments.iter().find(|it| !it.is_null()).cloned().unwrap_or(Value::Null)
        }
        ("LEAST", _) => first_of(Ordering::Less),
        ("GREATEST", _) => first_of(Ordering::Greater),
        ("num_nonnulls", _) => {
            Value::Int(length(&arguments.iter().filter(|it| !it.is_null()).collect::<Vec<_>>()))
        }
        ("round", [value, scale]) => value.round(scale),
        ("pgstream.add_scale_counts", [a, b]) => add_counts(a, b),
        ("pgstream.max_scale", [Value::Counts(counts)]) => {
            let scale = counts.iter().rposition(|it| *it > 0);
            scale.map_or(Value::Null, |it| Value::Int(i64::try_from(it).expect("a display scale")))
        }
        ("pgstream.row_id", [_, ..]) => {
            Value::Int(key_hash(arguments) + 13 * arguments.iter().map(display_scale).sum::<i64>())
        }
        ("pgstream.key_id", [_, ..]) => Value::Int(key_hash(arguments)),
        (other, _) => panic!("no function {other} of {} arguments", arguments.len()),
    }
}

/// Few bits on purpose: a collision of different rows must be harmless. Consolidation relies on
/// the hashes of equal values with different images.
fn key_hash(values: &[Value]) -> i64 {
    let text = format!("{:?}", values.iter().map(Value::canonical).collect::<Vec<_>>());
    text.bytes().fold(7, |hash, byte| (hash * 31 + i64::from(byte)) % 13)
}

fn display_scale(value: &Value) -> i64 {
    match value {
        Value::Numeric(value) => value.scale().map_or(0, i64::from),
        _ => 0,
    }
}

fn counts_of(value: &Value, weight: i64) -> Value {
    let Some(scale) = value.to_numeric().scale() else { return Value::Counts(Vec::new()) };
    let mut counts = vec![0; scale as usize + 1];
    counts[scale as usize] = weight;
    Value::Counts(counts)
}

fn add_counts(a: &Value, b: &Value) -> Value {
    let counts = |it: &Value| match it {
        Value::Null => Vec::new(),
        Value::Counts(counts) => counts.clone(),
        other => panic!("{other:?} are not counts"),
    };
    let (mut a, b) = (counts(a), counts(b));
    a.resize(a.len().max(b.len()), 0);
    for (all, next) in a.iter_mut().zip(b) {
        *all += next;
    }
    while a.last() == Some(&0) {
        a.pop();
    }
    Value::Counts(a)
}
