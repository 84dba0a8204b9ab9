//! GROUP BY, aggregates and HAVING.
//!
//! With grouping sets there is one aggregate a set, and their sum; see [`super::grouping_sets`].
//! What stands above finds the same columns as over one aggregate: the keys, the calls.
//!
//! Below the aggregate stands a projection: the grouping expressions first, then the columns that
//! the aggregates read. PostgreSQL marks grouping expressions in the select list and in HAVING as
//! columns of a range table entry of their own, so nothing has to be matched here. Columns that
//! are neither grouped nor aggregated depend on a grouped primary key; they are one more key each,
//! which changes no group, or, where their type has no equality, an aggregate.

use std::collections::BTreeMap;

use pgstream_ivm::plan::{AggregateCall, AggregateFunction, Column, End, Plan};
use pgstream_ivm::scalar::{Scalar, Segment, Type};

use super::expand;
use super::expression::{Places, place, scalar};
use super::from::{From, columns_in};
use super::grouping_sets::Set;
use super::refusal::Refusal;
use super::select::Select;
use crate::pg::node::{Aggregate, ColumnRef, Kind, Node, SortGroup, Step, Target, input};
use crate::pg::types;

/// The groups, with the select list over them.
pub struct Grouped<'a> {
    pub plan: Plan,
    pub targets: Vec<Node<'a>>,
}

/// Lowers the grouping of `select` over the rows of FROM and WHERE.
pub fn lower<'a>(from: From, select: &Select<'a>) -> Result<Grouped<'a>, Refusal> {
    let parts = Parts::of(select);
    parts.aggregates.iter().try_for_each(|it| check_direct_arguments(*it, select))?;
    let (from, expanded) = expand::lower_keys(from, &select.keys, place)?;
    let below = Below::new(from, select, &parts, &expanded)?;
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
    let all_keys: Set = (0..select.keys.len()).collect();
    let sets = match &select.sets {
        Some(sets) => sets.clone(),
        None => vec![all_keys.clone()],
    };
    if calls.is_empty() && parts.dependent.is_empty() && sets.iter().any(Set::is_empty) {
        calls.push(count_rows());
    }
    let above = Above::new(select, &parts, below.keys.len(), calls.len());
    let groups = if parts.groupings.is_empty() && sets == [all_keys] {
        Plan::Aggregate { input: Box::new(below.plan), keys: below.keys, calls }
    } else {
        let of_set = |set: &Set| grouped_by(set, &below, &calls, (select, &parts));
        Plan::Sum { inputs: sets.iter().map(of_set).collect() }
    };
    let plan = match select.having {
        Some(having) => {
            let predicate = scalar(above.place(having)?, &groups.schema());
            Plan::Filter { input: Box::new(groups), predicate }
        }
        None => groups,
    };
    // With two columns of GROUP BY that are the same expression, PostgreSQL takes the one that the
    // target stands for.
    let target = |target: &Target<'a>| {
        let is_key = |it: &SortGroup| it.reference == target.reference;
        match select.grouping.iter().position(is_key) {
            Some(key) => {
                let it = target.expression;
                Ok(input(key, it.type_oid(), it.typmod(), it.collation()))
            }
            None => above.place(target.expression),
        }
    };
    let targets = select.targets.iter().map(target);
    Ok(Grouped { plan, targets: targets.collect::<Result<_, _>>()? })
}

/// The groups by the keys in `set`: all keys, NULL where they are not in the set, the calls, and
/// the values of GROUPING.
fn grouped_by(
    set: &Set,
    below: &Below,
    calls: &[AggregateCall],
    (select, parts): (&Select<'_>, &Parts<'_>),
) -> Plan {
    let has = |key: &usize| *key >= select.keys.len() || set.contains(key);
    let keys: Vec<usize> = below.keys.iter().copied().filter(has).collect();
    let input = Box::new(below.plan.clone());
    let aggregate = Plan::Aggregate { input, keys: keys.clone(), calls: calls.to_vec() };
    let (schema, output) = (below.plan.schema(), aggregate.schema());
    let column = |at: usize| (Scalar::column(at, &output[at]), output[at].name.clone());
    let key = |key: &usize| match keys.iter().position(|it| it == key) {
        Some(at) => column(at),
        None => (null(&schema[*key]), schema[*key].name.clone()),
    };
    let keys_and_nulls = below.keys.iter().map(key);
    let results = (keys.len()..output.len()).map(column);
    let groupings =
        parts.groupings.iter().map(|it| (grouping(&it.1, set, select), "grouping".to_owned()));
    let columns = keys_and_nulls.chain(results).chain(groupings).collect();
    Plan::Project { input: Box::new(aggregate), columns }
}

fn null(column: &Column) -> Scalar {
    Scalar {
        segments: vec![Segment::Text(format!("(NULL::{})", column.ty.sql))],
        ty: column.ty.clone(),
        nullable: true,
        scale: column.scale,
    }
}

/// GROUPING(…) in a set: a bit for each argument, the last one the lowest, set where the argument
/// is not in the set.
fn grouping(references: &[u32], set: &Set, select: &Select<'_>) -> Scalar {
    let is_in_set = |reference: &u32| {
        let key = select.grouping.iter().position(|it| it.reference == *reference);
        key.is_some_and(|it| set.contains(&it))
    };
    let bits = references.iter().fold(0, |bits, it| bits << 1 | i32::from(!is_in_set(it)));
    let ty = types::describe(types::INTEGER, -1, types::NO_COLLATION);
    let segments = vec![Segment::Text(bits.to_string())];
    Scalar { segments, ty, nullable: false, scale: None }
}

/// Direct arguments of an ordered-set aggregate must be the same throughout a group.
fn check_direct_arguments(aggregate: Aggregate<'_>, select: &Select<'_>) -> Result<(), Refusal> {
    let arguments = aggregate.direct_arguments();
    let mut columns = arguments.into_iter().flat_map(columns_in).peekable();
    let has_any = columns.peek().is_some();
    let is_grouped = columns.all(|it| Some(it.entry) == select.group_entry);
    let words = match (has_any && select.sets.is_some(), is_grouped) {
        (false, true) => return Ok(()),
        (true, _) => "a direct argument of an ordered-set aggregate over grouping sets",
        (false, false) => "a direct argument of an ordered-set aggregate that is not grouped by",
    };
    Err(Refusal::without_rule(words).at(aggregate.node().location()))
}

/// What the select list and HAVING are made of.
struct Parts<'a> {
    /// The different aggregate calls.
    aggregates: Vec<Aggregate<'a>>,
    /// Columns outside of aggregates that are not grouped, with equality and without.
    dependent: Vec<(ColumnRef, Node<'a>)>,
    unequal: Vec<(ColumnRef, Node<'a>)>,
    /// The different GROUPING(…), with their arguments.
    groupings: Vec<(Node<'a>, Vec<u32>)>,
}

impl<'a> Parts<'a> {
    fn of(select: &Select<'a>) -> Self {
        let mut parts = Self {
            aggregates: Vec::new(),
            dependent: Vec::new(),
            unequal: Vec::new(),
            groupings: Vec::new(),
        };
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
            Kind::Grouping(references) => {
                if !self.groupings.iter().any(|it| it.0.equals(node)) {
                    self.groupings.push((node, references));
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
    /// `expanded` says where the set-returning keys are.
    fn new(
        from: From,
        select: &Select<'_>,
        parts: &Parts<'_>,
        expanded: &BTreeMap<usize, usize>,
    ) -> Result<Self, Refusal> {
        let schema = from.plan.schema();
        let mut columns = Vec::new();
        let mut places = Places::new();
        for (index, key) in select.keys.iter().enumerate() {
            let scalar = match expanded.get(&index) {
                Some(position) => Scalar::column(*position, &schema[*position]),
                None => scalar(place(*key, &from.places)?, &schema),
            };
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
    /// Position of the first GROUPING.
    first_grouping: usize,
}

impl<'p, 'a> Above<'p, 'a> {
    fn new(select: &Select<'a>, parts: &'p Parts<'a>, keys: usize, calls: usize) -> Self {
        let mut places = Places::new();
        if let Some(entry) = select.group_entry {
            places.extend((0..select.keys.len()).map(|it| (group_column(entry, it), it)));
        }
        let dependent = parts.dependent.iter().enumerate();
        places.extend(dependent.map(|(index, (column, _))| (*column, select.keys.len() + index)));
        let unequal = parts.unequal.iter().enumerate();
        let first = keys + parts.aggregates.len();
        places.extend(unequal.map(|(index, (column, _))| (*column, first + index)));
        Self { parts, places, first_call: keys, first_grouping: keys + calls }
    }

    fn place(&self, expression: Node<'a>) -> Result<Node<'a>, Refusal> {
        let calls = expression.with_inputs(&mut |node| match node.kind() {
            Kind::Aggregate(_) => {
                let call = self.parts.aggregates.iter().position(|it| it.node().equals(node))?;
                Some(self.first_call + call)
            }
            Kind::Grouping(_) => {
                let grouping = self.parts.groupings.iter().position(|it| it.0.equals(node))?;
                Some(self.first_grouping + grouping)
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
