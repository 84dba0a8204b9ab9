//! GROUP BY, aggregates and HAVING.
//!
//! Below the aggregate stands a projection: the grouping expressions first, then the columns that
//! the aggregates read. PostgreSQL marks grouping expressions in the select list and in HAVING as
//! columns of a range table entry of their own, so nothing has to be matched here. Columns that
//! are neither grouped nor aggregated depend on a grouped primary key; they are one more key each,
//! which changes no group, or, where their type has no equality, an aggregate.

use pgstream_ivm::plan::{AggregateCall, AggregateFunction, Column, End, Plan};
use pgstream_ivm::scalar::{Scalar, Segment, Type};

use super::expression::{Places, place, scalar};
use super::from::{From, columns_in};
use super::refusal::Refusal;
use super::select::Select;
use crate::pg::node::{Aggregate, ColumnRef, Kind, Node, Step};
use crate::pg::types;

/// The groups, with the select list over them.
pub struct Grouped<'a> {
    pub plan: Plan,
    pub targets: Vec<Node<'a>>,
}

/// Lowers the grouping of `select` over the rows of FROM and WHERE.
pub fn lower<'a>(from: From, select: &Select<'a>) -> Result<Grouped<'a>, Refusal> {
    let parts = Parts::of(select);
    let below = Below::new(from, select, &parts)?;
    let schema = below.plan.schema();
    let mut calls: Vec<AggregateCall> = Vec::new();
    for aggregate in &parts.aggregates {
        let mut call = aggregate_call(*aggregate, &below.places, &schema)?;
        let target = select.targets.iter().find(|it| it.expression.equals(aggregate.node()));
        if let Some(target) = target {
            call.name.clone_from(&target.name);
        }
        calls.push(call);
    }
    for column in &parts.unequal {
        calls.push(any_value(&schema, below.places[&column.0]));
    }
    if calls.is_empty() && below.keys.is_empty() {
        calls.push(count_rows());
    }
    let above = Above::new(select, &parts, below.keys.len());
    let aggregate = Plan::Aggregate { input: Box::new(below.plan), keys: below.keys, calls };
    let plan = match select.having {
        Some(having) => {
            let predicate = scalar(above.place(having)?, &aggregate.schema());
            Plan::Filter { input: Box::new(aggregate), predicate }
        }
        None => aggregate,
    };
    let targets = select.targets.iter().map(|it| above.place(it.expression));
    Ok(Grouped { plan, targets: targets.collect::<Result<_, _>>()? })
}

/// What the select list and HAVING are made of.
struct Parts<'a> {
    /// The different aggregate calls.
    aggregates: Vec<Aggregate<'a>>,
    /// Columns outside of aggregates that are not grouped, with equality and without.
    dependent: Vec<(ColumnRef, Node<'a>)>,
    unequal: Vec<(ColumnRef, Node<'a>)>,
}

impl<'a> Parts<'a> {
    fn of(select: &Select<'a>) -> Self {
        let mut parts = Self { aggregates: Vec::new(), dependent: Vec::new(), unequal: Vec::new() };
        let outputs = select.targets.iter().map(|it| it.expression).chain(select.having);
        for output in outputs {
            parts.take(output, select.group_entry);
        }
        parts
    }

    fn take(&mut self, expression: Node<'a>, group_entry: Option<usize>) {
        expression.visit(&mut |node| match node.kind() {
            Kind::Aggregate(aggregate) => {
                if !self.aggregates.iter().any(|it| it.node().equals(node)) {
                    self.aggregates.push(aggregate);
                }
                Step::Over
            }
            Kind::Column(column) if Some(column.entry) != group_entry => {
                let list = if types::equality(node.type_oid()).is_some() {
                    &mut self.dependent
                } else {
                    &mut self.unequal
                };
                if !list.iter().any(|it| it.0 == column) {
                    list.push((column, node));
                }
                Step::Over
            }
            _ => Step::Into,
        });
    }
}

/// The projection below the aggregate.
struct Below {
    plan: Plan,
    keys: Vec<usize>,
    /// Where the columns that aggregates read are, grouping entry included.
    places: Places,
}

impl Below {
    fn new(from: From, select: &Select<'_>, parts: &Parts<'_>) -> Result<Self, Refusal> {
        let schema = from.plan.schema();
        let mut columns = Vec::new();
        let mut places = Places::new();
        for (index, key) in select.keys.iter().enumerate() {
            let scalar = scalar(place(*key, &from.places)?, &schema);
            if let Some(entry) = select.group_entry {
                places.insert(group_column(entry, index), index);
            }
            if let Kind::Column(column) = key.kind() {
                places.insert(column, index);
            }
            let name = key_name(select, index, &scalar, &schema);
            columns.push((scalar, name));
        }
        for (column, _) in &parts.dependent {
            add_column(&from, &schema, *column, &mut columns, &mut places);
        }
        let keys = (0..columns.len()).collect();
        let read = parts.aggregates.iter().flat_map(|it| columns_in(it.node()));
        for column in read.chain(parts.unequal.iter().map(|it| it.0)) {
            if Some(column.entry) != select.group_entry {
                add_column(&from, &schema, column, &mut columns, &mut places);
            }
        }
        let plan = Plan::Project { input: Box::new(from.plan), columns };
        Ok(Self { plan, keys, places })
    }
}

fn add_column(
    from: &From,
    schema: &[Column],
    column: ColumnRef,
    columns: &mut Vec<(Scalar, String)>,
    places: &mut Places,
) {
    if let (false, Some(position)) = (places.contains_key(&column), from.places.get(&column)) {
        places.insert(column, columns.len());
        let source = &schema[*position];
        columns.push((Scalar::column(*position, source), source.name.clone()));
    }
}

fn group_column(entry: usize, index: usize) -> ColumnRef {
    ColumnRef { entry, attribute: index as i16 + 1, levels_up: 0 }
}

fn key_name(select: &Select<'_>, index: usize, scalar: &Scalar, schema: &[Column]) -> String {
    let group = select.group_entry.map(|entry| group_column(entry, index));
    let target = select.targets.iter().find(|it| match it.expression.kind() {
        Kind::Column(column) => Some(column) == group,
        _ => false,
    });
    match (target, scalar.as_column()) {
        (Some(target), _) => target.name.clone(),
        (None, Some(position)) => schema[position].name.clone(),
        (None, None) => format!("key{}", index + 1),
    }
}

/// Where things are in the output of the aggregate.
struct Above<'p, 'a> {
    parts: &'p Parts<'a>,
    places: Places,
    /// Position of the first call.
    first_call: usize,
}

impl<'p, 'a> Above<'p, 'a> {
    fn new(select: &Select<'a>, parts: &'p Parts<'a>, keys: usize) -> Self {
        let mut places = Places::new();
        if let Some(entry) = select.group_entry {
            places.extend((0..select.keys.len()).map(|it| (group_column(entry, it), it)));
        }
        let dependent = parts.dependent.iter().enumerate();
        places.extend(dependent.map(|(index, (column, _))| (*column, select.keys.len() + index)));
        let unequal = parts.unequal.iter().enumerate();
        let first = keys + parts.aggregates.len();
        places.extend(unequal.map(|(index, (column, _))| (*column, first + index)));
        Self { parts, places, first_call: keys }
    }

    fn place(&self, expression: Node<'a>) -> Result<Node<'a>, Refusal> {
        let calls = expression.with_inputs(&mut |node| match node.kind() {
            Kind::Aggregate(_) => {
                let call = self.parts.aggregates.iter().position(|it| it.node().equals(node))?;
                Some(self.first_call + call)
            }
            _ => None,
        });
        place(calls, &self.places)
    }
}

fn aggregate_call(
    aggregate: Aggregate<'_>,
    places: &Places,
    schema: &[Column],
) -> Result<AggregateCall, Refusal> {
    let call = place(aggregate.node(), places)?;
    let placed = match call.kind() {
        Kind::Aggregate(placed) => placed,
        _ => return Err(Refusal::without_rule("this aggregate")),
    };
    let function = classify(placed, schema);
    let filter = match function {
        AggregateFunction::Rescan => None,
        _ => placed.filter().map(|it| scalar(it, schema)),
    };
    let name = types::plain_function_name(aggregate.function());
    Ok(AggregateCall { call: scalar(call, schema), function, filter, name })
}

fn classify(call: Aggregate<'_>, schema: &[Column]) -> AggregateFunction {
    let Some(name) = types::builtin_function(call.function()) else {
        return AggregateFunction::Rescan;
    };
    if !call.is_normal() || call.is_ordered() {
        return AggregateFunction::Rescan;
    }
    let arguments = call.arguments();
    let extremum = |argument: Node<'_>, end| AggregateFunction::Extremum {
        argument: scalar(argument, schema),
        end,
    };
    match (name.as_str(), arguments.as_slice()) {
        ("min", [argument]) => extremum(*argument, End::Least),
        ("max", [argument]) => extremum(*argument, End::Greatest),
        _ if call.is_distinct() => AggregateFunction::Rescan,
        ("count", []) => AggregateFunction::CountRows,
        ("count", [argument]) => AggregateFunction::Count { argument: scalar(*argument, schema) },
        ("sum", [argument]) if types::is_exact_number(argument.type_oid()) => {
            AggregateFunction::Sum { argument: scalar(*argument, schema) }
        }
        ("avg", [argument]) if types::is_exact_number(argument.type_oid()) => {
            AggregateFunction::Average { argument: scalar(*argument, schema) }
        }
        _ => AggregateFunction::Rescan,
    }
}

/// Any of the values that a column has in the group, which are all the same.
fn any_value(schema: &[Column], position: usize) -> AggregateCall {
    let column = &schema[position];
    let mut call = Scalar::column(position, column);
    call.segments.insert(0, Segment::Text("any_value(".to_owned()));
    call.segments.push(Segment::Text(")".to_owned()));
    AggregateCall {
        call,
        function: AggregateFunction::Rescan,
        filter: None,
        name: column.name.clone(),
    }
}

/// `count(*)`, for an aggregate that would otherwise have no column.
fn count_rows() -> AggregateCall {
    let call = Scalar {
        segments: vec![Segment::Text("count(*)".to_owned())],
        ty: bigint(),
        nullable: false,
        scale: None,
    };
    let function = AggregateFunction::CountRows;
    AggregateCall { call, function, filter: None, name: "count".to_owned() }
}

fn bigint() -> Type {
    types::describe(types::BIGINT, -1, types::NO_COLLATION)
}
