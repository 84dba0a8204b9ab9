//! GROUP BY, aggregates and HAVING.
//!
//! With grouping sets there is one aggregate a set, and their sum; see [`super::grouping_sets`].
//! What stands above finds the same columns as over one aggregate: the keys, the calls.
//!
//! Below the aggregate stands a projection: the grouping expressions first, then the columns that
//! the aggregates read. PostgreSQL marks grouping expressions in the select list and in HAVING as
//! columns of a range table entry of their own, so nothing has to be matched here. Columns that
//! are neither grouped nor aggregated depend on a grouped primary key; they are one more key each,
//! which changes no group, or an aggregate, where their type has no equality, or where tables that
//! inherit may repeat the key.

use std::collections::BTreeMap;

use pgstream_ivm::aggregate;
use pgstream_ivm::plan::{AggregateCall, AggregateFunction, Column, End, Plan};
use pgstream_ivm::scalar::{Scalar, Segment, Type};

use super::expression::{Places, place, scalar};
use super::from::From;
use super::grouping_sets::Set;
use super::lateral;
use super::refusal::Refusal;
use super::select::{Select, check_group_width, check_size};
use super::{Lowering, open};
use crate::pg::node::{
    Aggregate, ColumnRef, EntryKind, Kind, Node, Query, SortGroup, Step, column,
};
use crate::pg::{table, types};

/// Lowers the grouping of `select` over the rows of FROM and WHERE. The prefix comes first, as further
/// keys; aggregates in the select list and in HAVING become columns.
pub fn lower<'a>(
    lowering: &mut Lowering,
    from: From,
    select: &mut Select<'a>,
) -> Result<From, Refusal> {
    let parts = Parts::of(select)?;
    parts.aggregates.iter().try_for_each(|it| check_direct_arguments(*it, select))?;
    let (from, expanded) = with_sets(from, &select.keys)?;
    let below = Below::new(from, select, &parts, &expanded)?;
    let schema = below.plan.schema();
    let mut calls: Vec<AggregateCall> = Vec::new();
    for aggregate in &parts.aggregates {
        let (mut call, placed) = aggregate_call(*aggregate, &below.places, &schema)?;
        open::note_aggregate(lowering, &below.plan, &below.keys, placed);
        let target = select.targets.iter().find(|it| it.expression.equals(aggregate.node()));
        if let Some(target) = target {
            call.name.clone_from(&target.name);
        }
        calls.push(call);
    }
    for column in &parts.unequal {
        calls.push(any_value(&schema, below.places[column]));
    }
    let state: usize = calls.iter().map(|it| aggregate::state(it).len()).sum();
    check_group_width(below.keys.len() + calls.len() + state)?;
    let all_keys: Set = (0..select.keys.len()).collect();
    let sets = match &select.sets {
        Some(sets) => sets.clone(),
        None => vec![all_keys.clone()],
    };
    let constant_keys = below.keys.len() - select.keys.len();
    if calls.is_empty() && constant_keys == 0 && sets.iter().any(Set::is_empty) {
        calls.push(count_rows());
    }
    let places = places_above(select, &parts, below.keys.len(), calls.len());
    let plan = if parts.groupings.is_empty() && sets == [all_keys] {
        Plan::Aggregate { input: Box::new(below.plan), keys: below.keys, calls }
    } else {
        check_size(&below.plan, sets.len())?;
        let of_set = |set: &Set| grouped_by(set, &below, &calls, (select, &parts));
        Plan::Sum { inputs: sets.iter().map(of_set).collect() }
    };
    for target in &mut select.targets {
        // Of two equal columns of GROUP BY it is the one that the target stands for.
        let is_key = |it: &SortGroup| it.reference == target.reference;
        let key = select.grouping.iter().position(is_key);
        target.expression = match (key, select.group_entry) {
            (Some(key), Some(entry)) => column(group_column(entry, key), target.expression),
            _ => parts.with_columns(target.expression),
        };
    }
    select.having = select.having.map(|it| parts.with_columns(it));
    Ok(From::new(plan, places))
}

/// The rows of `from` with those of the set-returning keys, and where these are.
fn with_sets<'a>(from: From, keys: &[Node<'a>]) -> Result<(From, BTreeMap<usize, usize>), Refusal> {
    if !keys.iter().any(|it| it.returns_set()) {
        return Ok((from, BTreeMap::new()));
    }
    let named = |(index, key): (usize, &Node<'a>)| {
        Ok((place(*key, &from.places)?, format!("key{}", index + 1)))
    };
    let keys = keys.iter().enumerate().map(named).collect::<Result<Vec<_>, Refusal>>()?;
    let (plan, expanded) = lateral::lower_sets(from.plan, &keys);
    Ok((From::new(plan, from.places), expanded))
}

/// The groups by the keys in `set`: all keys, NULL where they are not in the set, the calls, and
/// the values of GROUPING.
fn grouped_by(
    set: &Set,
    below: &Below,
    calls: &[AggregateCall],
    (select, parts): (&Select<'_>, &Parts<'_>),
) -> Plan {
    let prefix = select.prefix.len();
    let has = |position: &usize| match position.checked_sub(prefix) {
        Some(key) if key < select.keys.len() => set.contains(&key),
        _ => true,
    };
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
    Scalar { scale: column.scale, ..Scalar::null(&column.ty) }
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
    let columns: Vec<_> = arguments.into_iter().flat_map(Node::free_columns).collect();
    let is_grouped = columns.iter().all(|it| Some(it.entry) == select.group_entry);
    let words = if !is_grouped {
        "a direct argument of an ordered-set aggregate that is not grouped by"
    } else if select.sets.is_some() && !columns.is_empty() {
        "a direct argument of an ordered-set aggregate over grouping sets"
    } else {
        return Ok(());
    };
    Err(Refusal::without_rule(words).at(aggregate.node().location()))
}

/// What the select list and HAVING are made of.
struct Parts<'a> {
    /// The different aggregate calls.
    aggregates: Vec<Aggregate<'a>>,
    /// Columns outside of aggregates that are not grouped: those that have one value in a group, and
    /// those without equality, or of which any value is meant.
    dependent: Vec<ColumnRef>,
    unequal: Vec<ColumnRef>,
    /// The different GROUPING(…), with their arguments.
    groupings: Vec<(Node<'a>, Vec<u32>)>,
}

impl<'a> Parts<'a> {
    fn of(select: &Select<'a>) -> Result<Self, Refusal> {
        let mut parts = Self {
            aggregates: Vec::new(),
            dependent: Vec::new(),
            unequal: Vec::new(),
            groupings: Vec::new(),
        };
        let outputs = select.targets.iter().map(|it| it.expression).chain(select.having);
        for output in outputs {
            parts.take(output, select)?;
        }
        Ok(parts)
    }

    fn take(&mut self, expression: Node<'a>, select: &Select<'a>) -> Result<(), Refusal> {
        let group_entry = select.group_entry;
        let mut refusal = None;
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
            Kind::Column(column) if column.levels_up == 0 && Some(column.entry) != group_entry => {
                let is_one = types::equality(node.type_oid()).is_some()
                    && !is_inherited(select.query, column.entry);
                let list = if is_one { &mut self.dependent } else { &mut self.unequal };
                if !list.contains(&column) {
                    list.push(column);
                }
                Step::Over
            }
            // It sees the groups only.
            Kind::SubLink(words) => {
                let own = node.free_columns().into_iter().filter(|it| it.levels_up == 0);
                if own.into_iter().any(|it| Some(it.entry) != group_entry) {
                    refusal = Some(Refusal::without_rule(words).at(node.location()));
                }
                Step::Over
            }
            _ => Step::Into,
        });
        refusal.map_or(Ok(()), Err)
    }

    /// `expression` with columns in the place of aggregates and GROUPING.
    fn with_columns(&self, expression: Node<'a>) -> Node<'a> {
        expression.replace(&mut |node| match node.kind() {
            Kind::Aggregate(_) => {
                let call = self.aggregates.iter().position(|it| it.node().equals(node))?;
                Some(column(call_column(call), node))
            }
            Kind::Grouping(_) => {
                let grouping = self.groupings.iter().position(|it| it.0.equals(node))?;
                Some(column(grouping_column(grouping), node))
            }
            _ => None,
        })
    }
}

/// Whether an entry is a table with tables that inherit from it, which its primary key is not about.
fn is_inherited(query: Query<'_>, entry: usize) -> bool {
    match query.entry(entry).map(|it| it.kind()) {
        Some(EntryKind::Relation { oid, children: true, .. }) => {
            let table = table::look(oid);
            table.has_children && !table.is_partitioned
        }
        _ => false,
    }
}

/// The calls stand in a range table entry that no query has.
fn call_column(call: usize) -> ColumnRef {
    ColumnRef { entry: 1 << 24, attribute: call as i16 + 1, levels_up: 0 }
}

fn grouping_column(grouping: usize) -> ColumnRef {
    ColumnRef { entry: (1 << 24) + 1, attribute: grouping as i16 + 1, levels_up: 0 }
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
        for (index, node) in select.prefix.iter().enumerate() {
            columns.push((
                scalar(place(*node, &from.places)?, &schema),
                format!("outer{}", index + 1),
            ));
            if let Kind::Column(column) = node.kind() {
                places.insert(column, index);
            }
        }
        for (index, key) in select.keys.iter().enumerate() {
            let scalar = match expanded.get(&index) {
                Some(position) => Scalar::column(*position, &schema[*position]),
                None => scalar(place(*key, &from.places)?, &schema),
            };
            if let Some(entry) = select.group_entry {
                places.insert(group_column(entry, index), columns.len());
            }
            if let Kind::Column(column) = key.kind() {
                places.insert(column, columns.len());
            }
            let name = key_name(select, index, &scalar, &schema);
            columns.push((scalar, name));
        }
        for column in &parts.dependent {
            add_column(&from, &schema, *column, &mut columns, &mut places);
        }
        let keys = (0..columns.len()).collect();
        let read = parts.aggregates.iter().flat_map(|it| it.node().free_columns());
        for column in read.chain(parts.unequal.iter().copied()) {
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

/// Where things are in the output of the aggregate, whose calls start at `first_call`.
fn places_above(
    select: &Select<'_>,
    parts: &Parts<'_>,
    first_call: usize,
    all_calls: usize,
) -> Places {
    let prefix = select.prefix.len();
    let mut places = Places::new();
    for (position, node) in select.prefix.iter().enumerate() {
        if let Kind::Column(column) = node.kind() {
            places.insert(column, position);
        }
    }
    if let Some(entry) = select.group_entry {
        places.extend((0..select.keys.len()).map(|it| (group_column(entry, it), prefix + it)));
    }
    let dependent = parts.dependent.iter().enumerate();
    places.extend(dependent.map(|(index, it)| (*it, prefix + select.keys.len() + index)));
    let calls = parts.aggregates.len();
    places.extend((0..calls).map(|it| (call_column(it), first_call + it)));
    let groupings = 0..parts.groupings.len();
    places.extend(groupings.map(|it| (grouping_column(it), first_call + all_calls + it)));
    let unequal = parts.unequal.iter().enumerate();
    places.extend(unequal.map(|(index, it)| (*it, first_call + calls + index)));
    places
}

fn aggregate_call<'a>(
    aggregate: Aggregate<'a>,
    places: &Places,
    schema: &[Column],
) -> Result<(AggregateCall, Aggregate<'a>), Refusal> {
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
    Ok((AggregateCall { call: scalar(call, schema), function, filter, name }, placed))
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
    let decided = |argument: Node<'_>, by| AggregateFunction::Decided {
        argument: scalar(argument, schema),
        by,
    };
    match (name.as_str(), arguments.as_slice()) {
        ("min", [argument]) => extremum(*argument, End::Least),
        ("max", [argument]) => extremum(*argument, End::Greatest),
        ("bool_and" | "every", [argument]) => decided(*argument, false),
        ("bool_or", [argument]) => decided(*argument, true),
        _ if call.is_distinct() => distinct(&name, &arguments, schema),
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

/// An aggregate of different values.
fn distinct(name: &str, arguments: &[Node<'_>], schema: &[Column]) -> AggregateFunction {
    let [argument] = arguments else { return AggregateFunction::Rescan };
    let ty = argument.type_oid();
    if types::equality(ty).is_none() || !types::is_storable(ty) {
        return AggregateFunction::Rescan;
    }
    let argument = scalar(*argument, schema);
    // Of equal values with different scales, any one may be added.
    let has_one_image = argument.ty.exact || argument.scale.is_some();
    let function = match name {
        "count" => AggregateFunction::Count { argument },
        "sum" if types::is_exact_number(ty) && has_one_image => AggregateFunction::Sum { argument },
        "avg" if types::is_exact_number(ty) && has_one_image => {
            AggregateFunction::Average { argument }
        }
        _ => return AggregateFunction::Rescan,
    };
    AggregateFunction::Distinct(Box::new(function))
}

/// Any of the values that a column has in the group, for one where they are all the same.
pub fn any_value(schema: &[Column], position: usize) -> AggregateCall {
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

/// `count(*)`.
pub fn count_rows() -> AggregateCall {
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
