//! Sub-queries in expressions: EXISTS, IN, ANY, ALL, scalar ones, ARRAY, and comparisons with a row.
//!
//! Each becomes a column of the rows around it, so that whatever stands above sees a plain column.
//! EXISTS and the quantified ones are marks: whether a row has a match. A scalar sub-query is a
//! left join with at most one row, and so is one that a row is compared with. How many rows there are is
//! asked by the expression that uses the value, so that several are an error where it is needed only. ARRAY
//! is an aggregate. What a sub-query takes from the rows around it is a condition of that join where it
//! stands in WHERE. Where it stands deeper, the sub-query is evaluated for all rows of its *domain*, the
//! distinct values of the columns that it takes from outside, and its result, which starts with these
//! columns, is joined by them.
//!
//! Source: Neumann and Kemper, *Unnesting Arbitrary Queries*, BTW 2015.

use pgstream_ivm::plan::{AggregateCall, AggregateFunction, Column, Plan};
use pgstream_ivm::scalar::{Scalar, Segment, Type};
use pgstream_ivm::sql;

use super::expression::{Places, place, scalar};
use super::from::{self, From};
use super::group::{any_value, count_rows};
use super::refusal::{Refusal, without_place};
use super::select::{self, Select, columns_of};
use super::{Lowering, Scope};
use crate::pg::node::{
    self, BooleanOperator, ColumnRef, EntryKind, From as Tree, Kind, Node, Query, Step, SubLink,
    SubLinkKind,
};
use crate::pg::query::{self as analysis, all_of};
use crate::pg::{source, types};

/// Range table entries from here on stand for sub-queries in expressions; no query has as many.
const FIRST_ENTRY: usize = 1 << 20;

/// Stands for the output columns of a sub-query in its test.
const OUTPUTS: usize = 1 << 23;

/// Stands for the images of a domain's columns.
const IMAGES: usize = 1 << 22;

/// The distinct values that a query takes from those around it.
pub struct Domain<'a> {
    plan: Plan,
    /// What they are called inside the query; one for each column of the plan.
    nodes: Vec<Node<'a>>,
}

impl<'a> Domain<'a> {
    /// The domain as the rows that FROM starts with.
    pub fn rows(&self) -> From {
        let column = |(position, node): (usize, &Node<'a>)| match node.kind() {
            Kind::Column(column) => Some((column, position)),
            _ => None,
        };
        let places = self.nodes.iter().enumerate().filter_map(column).collect();
        From::new(self.plan.clone(), places)
    }
}

impl<'a> Scope<'_, 'a> {
    /// The columns that the query takes from those around it, as it calls them.
    pub fn domain_nodes(&self) -> &[Node<'a>] {
        self.domain.map_or(&[], |it| &it.nodes)
    }

    /// The columns of the domain.
    pub fn domain_columns(&self) -> Vec<Column> {
        self.domain.map_or_else(Vec::new, |it| it.plan.schema())
    }

    /// The positions of the domain's columns and then of these, in a plan that starts with the domain.
    pub fn after_domain(&self, columns: &[usize]) -> Vec<usize> {
        let width = self.domain_nodes().len();
        (0..width).chain(columns.iter().map(|it| width + it)).collect()
    }
}

fn output_column(attribute: i16) -> ColumnRef {
    ColumnRef { entry: OUTPUTS, attribute, levels_up: 0 }
}

/// Whether there is a sub-query in the expression that reads a table.
pub fn is_in(expression: Node<'_>) -> bool {
    !links(expression).is_empty()
}

/// The outermost sub-queries in an expression that read a table. One that does not is a function of
/// the row like any other.
pub fn links(expression: Node<'_>) -> Vec<Node<'_>> {
    let mut links = Vec::new();
    expression.visit(&mut |node| match node.as_sub_link() {
        Some(link) => {
            if reads_table(link.query) || !is_plain(link) {
                links.push(node);
                Step::Over
            } else {
                Step::Into
            }
        }
        None => Step::Into,
    });
    links
}

fn reads_table(query: Query<'_>) -> bool {
    let mut found = false;
    query.node().visit(&mut |node| {
        if let Kind::Query(query) = node.kind() {
            let is_table = |it: EntryKind<'_>| {
                matches!(it, EntryKind::Relation { .. } | EntryKind::CommonTable { .. })
            };
            found |= query.entries().into_iter().any(|it| is_table(it.kind()));
        }
        Step::Into
    });
    found
}

/// Whether no aggregate in it belongs to a query around it.
fn is_plain(link: SubLink<'_>) -> bool {
    let mut found = false;
    link.query.node().visit(&mut |node| {
        found |= matches!(node.kind(), Kind::Aggregate(call) if call.levels_up() > 0);
        Step::Into
    });
    !found
}

/// What a condition's value is needed for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    /// Whether it is true: NULL may become false.
    Truth,
    /// Whether it is false: NULL may become true.
    Falsity,
    /// The value.
    Value,
}

impl Need {
    fn negated(self) -> Self {
        match self {
            Self::Truth => Self::Falsity,
            Self::Falsity => Self::Truth,
            Self::Value => Self::Value,
        }
    }
}

/// Rows that get a column for each sub-query.
pub struct Attaching<'l, 's, 'o, 'a> {
    lowering: &'l mut Lowering,
    scope: &'s Scope<'o, 'a>,
    from: From,
    /// Sub-queries that have a column already.
    known: Vec<(Node<'a>, Need, Node<'a>)>,
}

impl<'l, 's, 'o, 'a> Attaching<'l, 's, 'o, 'a> {
    pub fn new(lowering: &'l mut Lowering, scope: &'s Scope<'o, 'a>, from: From) -> Self {
        Self { lowering, scope, from, known: Vec::new() }
    }

    pub fn into_from(self) -> From {
        self.from
    }

    /// Keeps the rows for which all these are true.
    pub fn filter(&mut self, conditions: &[Node<'a>]) -> Result<(), Refusal> {
        // Plain ones first, so that there are fewer rows to look at.
        let (late, plain): (Vec<_>, Vec<_>) = conditions.iter().partition(|it| is_in(**it));
        for condition in plain.into_iter().chain(late) {
            let condition = self.attach(condition, Need::Truth)?;
            let schema = self.from.plan.schema();
            let predicate = scalar(place(condition, &self.from.places)?, &schema);
            self.wrap(|input| Plan::Filter { input, predicate });
            self.from.narrower.clear();
        }
        Ok(())
    }

    /// Replaces sub-queries in the select list.
    pub fn targets(&mut self, select: &mut Select<'a>) -> Result<(), Refusal> {
        for target in &mut select.targets {
            target.expression = self.attach(target.expression, Need::Value)?;
        }
        Ok(())
    }

    /// Replaces sub-queries in what is grouped by and in the arguments of aggregates.
    pub fn inside_aggregates(&mut self, select: &mut Select<'a>) -> Result<(), Refusal> {
        for key in &mut select.keys {
            *key = self.attach(*key, Need::Value)?;
        }
        for target in &mut select.targets {
            target.expression = self.inside_aggregate(target.expression)?;
        }
        if let Some(having) = &mut select.having {
            *having = self.inside_aggregate(*having)?;
        }
        Ok(())
    }

    fn inside_aggregate(&mut self, expression: Node<'a>) -> Result<Node<'a>, Refusal> {
        let mut aggregates = Vec::new();
        expression.visit(&mut |node| match node.kind() {
            Kind::Aggregate(_) => {
                aggregates.push(node);
                Step::Over
            }
            Kind::SubLink(_) => Step::Over,
            _ => Step::Into,
        });
        let mut replaced = Vec::new();
        for aggregate in aggregates.into_iter().filter(|it| is_in(*it)) {
            replaced.push((aggregate, self.attach(aggregate, Need::Value)?));
        }
        if replaced.is_empty() {
            return Ok(expression);
        }
        let other = |node: Node<'a>| Some(replaced.iter().find(|it| it.0.equals(node))?.1);
        Ok(expression.replace(&mut |node| other(node)))
    }

    /// A condition that needs to be true, with columns in the place of those of its sub-queries for which
    /// `is_meant` holds.
    pub fn condition_of(
        &mut self,
        condition: Node<'a>,
        is_meant: &dyn Fn(&Node<'a>) -> bool,
    ) -> Result<Node<'a>, Refusal> {
        self.attach_those(condition, Need::Truth, is_meant)
    }

    /// `expression` with columns in the place of its sub-queries.
    fn attach(&mut self, expression: Node<'a>, need: Need) -> Result<Node<'a>, Refusal> {
        self.attach_those(expression, need, &|_| true)
    }

    fn attach_those(
        &mut self,
        expression: Node<'a>,
        need: Need,
        is_meant: &dyn Fn(&Node<'a>) -> bool,
    ) -> Result<Node<'a>, Refusal> {
        let links: Vec<_> = links(expression).into_iter().filter(is_meant).collect();
        if links.is_empty() {
            return Ok(expression);
        }
        if let Some((operator, arguments)) = expression.as_boolean() {
            let need = if operator == BooleanOperator::Not { need.negated() } else { need };
            let arguments: Result<Vec<_>, _> =
                arguments.into_iter().map(|it| self.attach_those(it, need, is_meant)).collect();
            return Ok(node::boolean(operator, &arguments?));
        }
        if expression.as_sub_link().is_some() {
            return self.column_of(expression, need);
        }
        let mut columns = Vec::new();
        for link in links {
            columns.push((link, self.column_of(link, Need::Value)?));
        }
        let other = |node: Node<'a>| Some(columns.iter().find(|it| it.0.equals(node))?.1);
        Ok(expression.replace(&mut |node| other(node)))
    }

    /// An expression over the rows' columns with the value of a sub-query.
    fn column_of(&mut self, expression: Node<'a>, need: Need) -> Result<Node<'a>, Refusal> {
        let known = self.known.iter().find(|it| it.1 == need && it.0.equals(expression));
        if let Some(known) = known {
            return Ok(known.2);
        }
        let refuse = |words: &str| Refusal::without_rule(words).at(expression.location());
        let link = expression.as_sub_link().ok_or_else(|| refuse("this sub-query"))?;
        if !is_plain(link) {
            return Err(refuse("an aggregate of an outer query"));
        }
        let value = match (link.kind, link.test) {
            (SubLinkKind::Exists, _) => {
                let position = self.exists(link.query)?;
                self.name(position, expression)
            }
            (SubLinkKind::Any, Some(test)) => {
                let position = self.any(link.query, test, need)?;
                self.name(position, expression)
            }
            (SubLinkKind::All, Some(test)) => {
                let test = node::boolean(BooleanOperator::Not, &[test]);
                let position = self.any(link.query, test, need.negated())?;
                let some = self.name(position, expression);
                node::boolean(BooleanOperator::Not, &[some])
            }
            (SubLinkKind::Scalar, _) => self.single(link.query, expression)?,
            (SubLinkKind::Array, _) => {
                let position = self.array(link.query, expression)?;
                self.name(position, expression)
            }
            (SubLinkKind::Row, Some(test)) => self.row(link.query, test)?,
            _ => return Err(refuse(link.words)),
        };
        select::check_size(&self.from.plan, 1)?;
        self.known.push((expression, need, value));
        Ok(value)
    }

    /// Calls the column at `position`, of the type of `like`, by a name of its own.
    fn name(&mut self, position: usize, like: Node<'_>) -> Node<'a> {
        let entry = FIRST_ENTRY + self.lowering.sub_links;
        self.lowering.sub_links += 1;
        let reference = ColumnRef { entry, attribute: 1, levels_up: 0 };
        self.from.places.insert(reference, position);
        node::column(reference, like)
    }

    fn wrap(&mut self, f: impl FnOnce(Box<Plan>) -> Plan) {
        let plan = std::mem::replace(&mut self.from.plan, Plan::Unit);
        self.from.plan = f(Box::new(plan));
    }

    fn width(&self) -> usize {
        self.from.plan.schema().len()
    }

    /// Adds whether `right` has a row for which `on` is true; gives the new column's position.
    fn mark(&mut self, right: Plan, on: Option<Scalar>) -> usize {
        let position = self.width();
        if on.is_none() {
            let right = Box::new(some_row(right));
            self.wrap(|left| Plan::InnerJoin { left, right, on: None });
            return position;
        }
        let mark = Column::mark();
        let right = Box::new(right);
        self.wrap(|left| Plan::Mark { left, right, on, mark });
        position
    }

    fn exists(&mut self, query: Query<'a>) -> Result<usize, Refusal> {
        if let Some((query, having)) = filtered_aggregate(query) {
            let inner = self.inner(query, &[having])?;
            let having = self.join_aggregate(inner)?[0];
            return Ok(self.computed(&[text("("), Segment::Column(having), text(") IS TRUE")]));
        }
        let inner = self.inner(query, &[])?;
        if inner.has_one_row {
            return Ok(self.computed(&[text("true")]));
        }
        let on = self.condition(&inner, &[])?;
        Ok(self.mark(inner.plan, on))
    }

    /// Adds the value of `test` ANY of the query's rows.
    fn any(&mut self, query: Query<'a>, test: Node<'a>, need: Need) -> Result<usize, Refusal> {
        if let Some((query, having)) = filtered_aggregate(query) {
            let (inner, test) = self.tested(query, test)?;
            let positions = self.join_aggregate(inner)?;
            let value = self.test_of(&positions, test)?;
            let mut segments = vec![text("CASE WHEN "), Segment::Column(positions[having])];
            segments.push(text(" THEN "));
            segments.extend(value.segments);
            segments.push(text(" ELSE false END"));
            return Ok(self.computed(&segments));
        }
        let (inner, test) = self.tested(query, test)?;
        if inner.has_one_row {
            return self.test_of_aggregate(inner, test);
        }
        let placed = self.placed_test(&inner, test)?;
        let schema = self.joined_schema(&inner);
        let value = scalar(placed, &schema);
        let on_true = self.condition(&inner, std::slice::from_ref(&value))?;
        if need == Need::Truth || !value.nullable {
            return Ok(self.mark(inner.plan, on_true));
        }
        if let Some((left, right)) = self.compared(test, &inner)? {
            if !left.nullable && !right.nullable {
                return Ok(self.mark(inner.plan, on_true));
            }
            return self.any_of_comparison(inner, on_true, left, right, need);
        }
        if need == Need::Falsity {
            let not_false = wrapped("(", &value, ") IS NOT FALSE");
            let on = self.condition(&inner, &[not_false])?;
            return Ok(self.mark(inner.plan, on));
        }
        let unknown = wrapped("(", &value, ") IS NULL");
        let on_unknown = self.condition(&inner, &[unknown])?;
        let first = self.mark(inner.plan.clone(), on_true);
        // The left columns keep their places; those of the right one moved.
        let on_unknown = on_unknown.map(|on| moved(&on, first, 1));
        let second = self.mark(inner.plan, on_unknown);
        Ok(self.computed(&[
            text("CASE WHEN "),
            Segment::Column(first),
            text(" THEN true WHEN "),
            Segment::Column(second),
            text(" THEN NULL::boolean ELSE false END"),
        ]))
    }

    /// The sub-query with all its outputs, and a test of them in which they are named.
    fn tested(&mut self, query: Query<'a>, test: Node<'a>) -> Result<(Inner, Node<'a>), Refusal> {
        let test = self.attach(test, Need::Value)?;
        let outputs: Vec<usize> = (0..select::output_names(query).len()).collect();
        let inner = self.inner(query, &outputs)?;
        let test = test.replace(&mut |node| {
            let attribute = i16::try_from(node.as_sub_link_output()?).ok()?;
            Some(node::column(output_column(attribute), node))
        });
        Ok((inner, test))
    }

    /// Adds the test of the only row of an aggregate.
    fn test_of_aggregate(&mut self, inner: Inner, test: Node<'a>) -> Result<usize, Refusal> {
        let positions = self.join_aggregate(inner)?;
        let value = self.test_of(&positions, test)?;
        Ok(self.computed(&value.segments))
    }

    /// The test with the outputs of the sub-query at these positions.
    fn test_of(&self, positions: &[usize], test: Node<'a>) -> Result<Scalar, Refusal> {
        let mut places = self.from.places.clone();
        places.extend((1..).map(output_column).zip(positions.iter().copied()));
        Ok(scalar(place(test, &places)?, &self.from.plan.schema()))
    }

    /// The value of `test` for the query's only row; NULL without a row.
    fn row(&mut self, query: Query<'a>, test: Node<'a>) -> Result<Node<'a>, Refusal> {
        let (mut inner, test) = self.tested(query, test)?;
        if inner.has_one_row {
            let position = self.test_of_aggregate(inner, test)?;
            return Ok(self.name(position, test));
        }
        if self.is_single(&inner) {
            let present = Scalar {
                segments: vec![text("true")],
                ty: boolean(),
                nullable: false,
                scale: None,
            };
            let schema = inner.plan.schema();
            inner.plan = with_column(Box::new(inner.plan), &schema, present);
            inner.outputs.push(schema.len());
        }
        let (values, count) = self.only_row(query, inner)?;
        let is_present = match count {
            Some(count) => self.is_counted_single(count),
            None => self.name(values[values.len() - 1], test),
        };
        let test = test.replace(&mut |node| match node.kind() {
            Kind::Column(ColumnRef { entry: OUTPUTS, attribute, .. }) => {
                let output = usize::try_from(attribute - 1).ok()?;
                Some(self.name(values[output], node))
            }
            _ => None,
        });
        Ok(node::only_if(is_present, test))
    }

    /// Adds the array of what the query's rows hold, in the query's order.
    fn array(&mut self, query: Query<'a>, like: Node<'a>) -> Result<usize, Refusal> {
        let refuse = || Refusal::without_rule("this ARRAY sub-query").at(like.location());
        let targets = query.targets();
        let shown = targets.iter().position(|it| !it.junk).ok_or_else(refuse)?;
        // Of these array_agg makes arrays of more dimensions, and not arrays of domains.
        let is_array = types::is_domain_over_array(targets[shown].expression.type_oid());
        if is_array || !types::is_storable(like.type_oid()) {
            return Err(refuse());
        }
        let mut needed = vec![shown];
        let mut order = String::new();
        for item in query.order() {
            let target = targets.iter().position(|it| it.reference == item.reference);
            let target = target.ok_or_else(refuse)?;
            needed.push(target);
            let operator = types::operator_sql(item.order.0).ok_or_else(refuse)?;
            let nulls = if item.order.1 { "FIRST" } else { "LAST" };
            order += &format!(
                " USING {operator} NULLS {nulls}
"
            );
        }
        let width = self.width();
        let (rows, keys, on) = if query.node().free_columns().is_empty() {
            // What is ordered by need not be among the outputs, which is all that could be evaluated as a
            // whole.
            let scope = Some(self.scope);
            (select::lower_for(self.lowering, query, scope, None, Some(&needed))?, 0, None)
        } else {
            let inner = self.inner_for_domain(query, &needed)?;
            if inner.has_one_row {
                return Err(refuse());
            }
            let on = self.condition(&inner, &[])?;
            (inner.plan, inner.outputs[0], on)
        };
        let mut call = vec![text("pg_catalog.array_agg("), Segment::Column(keys)];
        for (index, direction) in order.lines().enumerate() {
            call.push(text(if index == 0 { " ORDER BY " } else { ", " }));
            call.extend([Segment::Column(keys + 1 + index), text(direction)]);
        }
        call.push(text(")"));
        let ty = types::describe(like.type_oid(), like.typmod(), like.collation());
        let call = Scalar { segments: call, ty: ty.clone(), nullable: true, scale: None };
        let function = AggregateFunction::Rescan;
        let call = AggregateCall { call, function, filter: None, name: "array".to_owned() };
        let keys: Vec<usize> = (0..keys).collect();
        let position = width + keys.len();
        let arrays = Plan::Aggregate { input: Box::new(rows), keys, calls: vec![call] };
        if on.is_none() {
            // A stage of its own, as for a scalar one.
            let right = Box::new(if ty.equality.is_some() { arrays.distinct() } else { arrays });
            self.wrap(|left| Plan::InnerJoin { left, right, on: None });
        } else {
            self.wrap(|left| Plan::LeftJoin { left, right: Box::new(arrays), on });
        }
        let schema = self.from.plan.schema();
        let empty = format!(", '{{}}'::{})", ty.sql);
        let segments = vec![text("COALESCE("), Segment::Column(position), text(&empty)];
        let value = Scalar { segments, ty, nullable: false, scale: None };
        let position = schema.len();
        self.wrap(|input| with_column(input, &schema, value));
        Ok(position)
    }

    /// The same for a comparison that is NULL exactly when one of its sides is: whether there are
    /// rows, and whether there is a NULL among them, are looked for apart, so that the comparison
    /// itself can use an index or hashing.
    #[expect(clippy::too_many_arguments, reason = "one call, of what was taken apart")]
    fn any_of_comparison(
        &mut self,
        inner: Inner,
        is_true: Option<Scalar>,
        left: Scalar,
        right: Scalar,
        need: Need,
    ) -> Result<usize, Refusal> {
        let width = self.width();
        let mut unknown = Vec::new();
        if left.nullable {
            let on = self.condition(&inner, &[])?;
            let some = self.mark(inner.plan.clone(), on);
            unknown.push(vec![text("(")]);
            let last = unknown.last_mut().expect("just pushed");
            last.extend(wrapped("(", &left, ") IS NULL AND ").segments);
            last.push(Segment::Column(some));
            last.push(text(")"));
        }
        if right.nullable {
            let added = self.width() - width;
            let unshifted = |it: usize| it - width;
            let predicate = wrapped("(", &right.remapped(unshifted), ") IS NULL");
            let plan = Plan::Filter { input: Box::new(inner.plan.clone()), predicate };
            let on = self.condition(&inner, &[])?;
            debug_assert!(added <= 1);
            let some = self.mark(plan, on);
            unknown.push(vec![Segment::Column(some)]);
        }
        let added = self.width() - width;
        let on = is_true.map(|on| moved(&on, width, added));
        let first = self.mark(inner.plan, on);
        let unknown = unknown.join(&text(" OR "));
        let mut segments;
        if need == Need::Falsity {
            segments = vec![text("("), Segment::Column(first), text(" OR ")];
            segments.extend(unknown);
            segments.push(text(")"));
        } else {
            segments = vec![text("CASE WHEN "), Segment::Column(first), text(" THEN true WHEN ")];
            segments.extend(unknown);
            segments.push(text(" THEN NULL::boolean ELSE false END"));
        }
        Ok(self.computed(&segments))
    }

    /// The two sides of a test that is one comparison, over the joined columns: the one of the rows
    /// around, and the one of the sub-query.
    fn compared(&self, test: Node<'a>, inner: &Inner) -> Result<Option<(Scalar, Scalar)>, Refusal> {
        let test = match test.as_boolean() {
            Some((BooleanOperator::Not, arguments)) => arguments[0],
            _ => test,
        };
        let Kind::Call { function, arguments } = test.kind() else { return Ok(None) };
        let [left, right] = arguments.as_slice() else { return Ok(None) };
        let is_output = |it: &ColumnRef| it.entry == OUTPUTS;
        let sides = [left, right].map(|it| it.free_columns());
        if sides[0].iter().any(is_output)
            || !sides[1].iter().all(is_output)
            || sides[1].is_empty()
            || !types::is_comparison(function)
        {
            return Ok(None);
        }
        let schema = self.joined_schema(inner);
        let side = |it: &Node<'a>| Ok::<_, Refusal>(scalar(self.placed_test(inner, *it)?, &schema));
        Ok(Some((side(left)?, side(right)?)))
    }

    /// Adds a column that is computed from the others.
    fn computed(&mut self, segments: &[Segment]) -> usize {
        let schema = self.from.plan.schema();
        let position = schema.len();
        let value =
            Scalar { segments: segments.to_vec(), ty: boolean(), nullable: true, scale: None };
        self.wrap(|input| with_column(input, &schema, value));
        position
    }

    /// Makes the columns at these positions NULL, and calls them so, unless all conditions are true.
    fn blank(
        &mut self,
        positions: &[usize],
        names: impl Iterator<Item = ColumnRef>,
        conditions: &[Node<'a>],
    ) -> Result<(), Refusal> {
        let Some(condition) = all_of(conditions) else { return Ok(()) };
        let schema = self.from.plan.schema();
        let condition = scalar(place(condition, &self.from.places)?, &schema);
        for (position, name) in positions.iter().zip(names) {
            let schema = self.from.plan.schema();
            let column = Scalar::column(*position, &schema[*position]);
            let value = column.only_if(condition.segments.iter().cloned());
            self.from.places.insert(name, schema.len());
            self.wrap(|input| with_column(input, &schema, value));
        }
        Ok(())
    }

    /// The value of the query's only column in its only row; NULL without a row. Several rows are an error
    /// where the value is evaluated.
    fn single(&mut self, query: Query<'a>, like: Node<'a>) -> Result<Node<'a>, Refusal> {
        if let Some((query, having)) = filtered_aggregate(query) {
            let inner = self.inner(query, &[0, having])?;
            let positions = self.join_aggregate(inner)?;
            let position = self.only_if(positions[0], [Segment::Column(positions[1])]);
            return Ok(self.name(position, like));
        }
        let inner = self.inner(query, &[0])?;
        if inner.has_one_row {
            let position = self.join_aggregate(inner)?[0];
            return Ok(self.name(position, like));
        }
        let (values, count) = self.only_row(query, inner)?;
        let Some(count) = count else { return Ok(self.name(values[0], like)) };
        if self.from.plan.schema()[values[0]].ty.domain {
            // No expression can hold a NULL that the domain may forbid.
            let position = self.only_if(values[0], is_single(count));
            return Ok(self.name(position, like));
        }
        let value = self.name(values[0], like);
        Ok(node::only_if(self.is_counted_single(count), value))
    }

    /// Adds the column at `position` where the condition is true, and NULL elsewhere.
    fn only_if(&mut self, position: usize, condition: impl IntoIterator<Item = Segment>) -> usize {
        let schema = self.from.plan.schema();
        let value = Scalar::column(position, &schema[position]).only_if(condition);
        self.wrap(|input| with_column(input, &schema, value));
        schema.len()
    }

    /// Whether the count at a position is 1; an error where it is more, raised by who evaluates it.
    fn is_counted_single(&mut self, count: usize) -> Node<'a> {
        let like = node::input(0, types::BIGINT, -1, types::NO_COLLATION);
        let count = self.name(count, like);
        let function = source::own_function(c"is_single", &[types::BIGINT]);
        node::call(function, types::BOOLEAN, &[count])
    }

    /// Joins the query's only row for each of the rows around, if it has one; gives the positions of its
    /// outputs and, where it can have several rows, of a count (see [`counted`]).
    fn only_row(
        &mut self,
        query: Query<'a>,
        inner: Inner,
    ) -> Result<(Vec<usize>, Option<usize>), Refusal> {
        if self.is_single(&inner) {
            let on = self.condition(&inner, &[])?;
            return Ok((self.join_one(inner.plan, inner.outputs, on), None));
        }
        let inner = if inner.on.is_empty() {
            inner
        } else {
            // Which rows match is known for each row of the domain only.
            let outputs: Vec<usize> = (0..inner.outputs.len()).collect();
            self.inner_for_domain(query, &outputs)?
        };
        let keys = if inner.on.is_empty() { 0 } else { inner.outputs[0] };
        let on = self.condition(&inner, &[])?;
        let columns = (keys..=keys + inner.outputs.len()).collect();
        let plan = counted(inner.plan, keys, &inner.outputs);
        let mut positions = self.join_one(plan, columns, on);
        let count = positions.pop();
        Ok((positions, count))
    }

    /// Joins what has at most one row for each of the rows around; gives where these columns of it are.
    fn join_one(&mut self, plan: Plan, columns: Vec<usize>, on: Option<Scalar>) -> Vec<usize> {
        let width = self.width();
        if on.is_none() && is_one_row(&plan) {
            let plan = columns_of(plan, Some(&columns));
            // A stage of its own, so that what leaves the values alone changes nothing here.
            let have_equality = plan.schema().iter().all(|it| it.ty.equality.is_some());
            let right = Box::new(if have_equality { plan.distinct() } else { plan });
            self.wrap(|left| Plan::InnerJoin { left, right, on: None });
            return (width..width + columns.len()).collect();
        }
        self.wrap(|left| Plan::LeftJoin { left, right: Box::new(plan), on });
        columns.into_iter().map(|it| width + it).collect()
    }

    /// Joins an aggregate, which has a row for each of the rows around; gives the positions of its
    /// outputs.
    fn join_aggregate(&mut self, inner: Inner) -> Result<Vec<usize>, Refusal> {
        let width = self.width();
        let on = self.condition(&inner, &[])?;
        let schema = inner.plan.schema();
        let present =
            Scalar { segments: vec![text("true")], ty: boolean(), nullable: false, scale: None };
        let marker = width + schema.len();
        let right = Box::new(with_column(Box::new(inner.plan), &schema, present));
        self.wrap(|left| Plan::LeftJoin { left, right, on });
        let mut positions = Vec::new();
        for (output, empty) in inner.outputs.iter().zip(inner.empty) {
            let schema = self.from.plan.schema();
            positions.push(schema.len());
            let mut segments = vec![text("CASE WHEN "), Segment::Column(marker), text(" THEN ")];
            segments.extend([Segment::Column(width + output), text(" ELSE ")]);
            segments.extend(empty.segments);
            segments.push(text(" END"));
            let value = Scalar { segments, ty: empty.ty, nullable: true, scale: None };
            self.wrap(|input| with_column(input, &schema, value));
        }
        Ok(positions)
    }

    /// Whether at most one row of the sub-query matches a row around it.
    fn is_single(&self, inner: &Inner) -> bool {
        let Some(key) = inner.plan.key() else { return false };
        key.iter().all(|it| inner.matched.contains(it))
    }

    /// The conjunction of what the sub-query takes from outside and of further conditions, over the
    /// columns of the rows and then those of the sub-query.
    fn condition(&self, inner: &Inner, more: &[Scalar]) -> Result<Option<Scalar>, Refusal> {
        // Columns were added since the conditions were made.
        let shifted = |on: &Scalar| moved(on, inner.width, self.width() - inner.width);
        let conditions: Vec<Scalar> =
            inner.on.iter().map(shifted).chain(more.iter().cloned()).collect();
        Ok(conjunction(&conditions))
    }

    fn joined_schema(&self, inner: &Inner) -> Vec<Column> {
        let mut schema = self.from.plan.schema();
        schema.extend(inner.plan.schema());
        schema
    }

    fn placed_test(&self, inner: &Inner, test: Node<'a>) -> Result<Node<'a>, Refusal> {
        let mut places = self.from.places.clone();
        let width = self.width();
        for (index, position) in inner.outputs.iter().enumerate() {
            places.insert(output_column(index as i16 + 1), width + position);
        }
        place(test, &places)
    }

    /// The sub-query as a plan, with what joins it to the rows around it.
    fn inner(&mut self, query: Query<'a>, outputs: &[usize]) -> Result<Inner, Refusal> {
        if query.node().free_columns().is_empty() {
            let needed = if is_plain_rows(query) {
                outputs.to_vec()
            } else {
                (0..select::output_names(query).len()).collect()
            };
            let plan = select::lower(self.lowering, query, Some(self.scope), Some(&needed))?;
            let outputs =
                if needed == outputs { (0..outputs.len()).collect() } else { outputs.to_vec() };
            let width = self.width();
            return Ok(Inner {
                plan,
                outputs,
                on: Vec::new(),
                matched: Vec::new(),
                width,
                empty: Vec::new(),
                has_one_row: false,
            });
        }
        match self.pulled_up(query, outputs) {
            Ok(Some(inner)) => Ok(inner),
            Ok(None) => self.inner_for_domain(query, outputs),
            Err(refusal) if refusal.is_evaluable => self.inner_for_domain(query, outputs),
            Err(refusal) => Err(refusal),
        }
    }

    /// A sub-query whose references to outside are conditions of its WHERE: they become conditions
    /// of the join.
    fn pulled_up(&mut self, query: Query<'a>, outputs: &[usize]) -> Result<Option<Inner>, Refusal> {
        let is_aggregate = query.has_aggregation();
        if !is_plain_rows(query) && !is_plain_aggregate(query) {
            return Ok(None);
        }
        select::check_fit(query)?;
        let shown: Vec<usize> =
            (0..query.targets().len()).filter(|it| !query.targets()[*it].junk).collect();
        let needed: Vec<usize> = outputs.iter().map(|it| shown[*it]).collect();
        let mut select = Select::new(query, Some(&needed))?;
        let is_outer = |it: &Node<'a>| it.free_columns().iter().any(|it| it.levels_up > 0);
        let pulled: Vec<Node<'a>> =
            select.from.conditions.extract_if(.., |it| is_outer(it)).collect();
        let rest = select.expressions().iter().any(is_outer);
        if rest {
            return Ok(None);
        }
        let scope = Scope { query, outer: Some(self.scope), domain: None };
        let equalities: Vec<_> = pulled.iter().map(|it| sides(*it)).collect();
        if is_aggregate {
            // Grouped by the inner sides of the equalities, which must be all there is.
            let all: Option<Vec<_>> = equalities.into_iter().collect();
            let Some(all) = all else { return Ok(None) };
            select.prefix = all.iter().map(|it| it.0).collect();
            let from = from::lower(self.lowering, &scope, &select)?;
            let plan = select::finish(self.lowering, &scope, select, from)?;
            let width = self.width();
            let (mut on, mut places) = (Vec::new(), self.outer_places());
            for (index, (inner, _, condition)) in all.iter().enumerate() {
                let reference = output_column(index as i16 + 1);
                places.insert(reference, width + index);
                let column = node::column(reference, *inner);
                let condition = condition.replace(&mut |it| it.equals(*inner).then_some(column));
                on.push(condition);
            }
            let mut schema = self.from.plan.schema();
            schema.extend(plan.schema());
            let on = on.into_iter().map(|it| Ok(scalar(place(it, &places)?, &schema)));
            let on = on.collect::<Result<Vec<_>, Refusal>>()?;
            let empty = over_nothing(&plan, all.len(), outputs.len(), &[])?;
            let matched = (0..all.len()).collect();
            let outputs = (0..outputs.len()).map(|it| it + all.len()).collect();
            return Ok(Some(Inner { plan, outputs, on, matched, width, empty, has_one_row: true }));
        }
        // The conditions are read from the rows of FROM, the outputs are added to them.
        select.late.extend(pulled.iter().copied());
        let from = from::lower(self.lowering, &scope, &select)?;
        let late: Vec<_> = select.late.drain(..).filter(|it| !is_outer(it)).collect();
        let mut attaching = Attaching::new(self.lowering, &scope, from);
        attaching.filter(&late)?;
        attaching.targets(&mut select)?;
        let From { mut plan, places, .. } = attaching.into_from();
        let mut positions = Vec::new();
        for target in &select.targets {
            let schema = plan.schema();
            let value = scalar(place(target.expression, &places)?, &schema);
            positions.push(value.as_column().unwrap_or(schema.len()));
            if value.as_column().is_none() {
                plan = with_column(Box::new(plan), &schema, value);
            }
        }
        let width = self.width();
        let mut schema = self.from.plan.schema();
        schema.extend(plan.schema());
        let mut both = self.outer_places();
        both.extend(places.iter().map(|(column, position)| (*column, width + position)));
        let on = pulled.iter().map(|it| Ok(scalar(place(*it, &both)?, &schema)));
        let on = on.collect::<Result<Vec<_>, Refusal>>()?;
        let matched = equalities.iter().flatten().filter_map(|(inner, ..)| match inner.kind() {
            Kind::Column(column) => places.get(&column).copied(),
            _ => None,
        });
        let matched = matched.collect();
        Ok(Some(Inner {
            plan,
            outputs: positions,
            on,
            matched,
            width,
            has_one_row: false,
            empty: Vec::new(),
        }))
    }

    /// Where the columns of the rows around stand, as a sub-query of them calls them.
    fn outer_places(&self) -> Places {
        let up = |it: &ColumnRef| ColumnRef { levels_up: it.levels_up + 1, ..*it };
        self.from.places.iter().map(|(column, position)| (up(column), *position)).collect()
    }

    /// The rows as they were before what was attached to them, if they had these columns then.
    fn narrowest(&mut self, positions: &[usize]) -> Plan {
        let has_all = |plan: &&Plan| {
            let width = plan.schema().len();
            positions.iter().all(|it| *it < width)
        };
        if let Some(plan) = self.from.narrower.iter().find(has_all) {
            return plan.clone();
        }
        self.from.narrower.push(self.from.plan.clone());
        self.from.plan.clone()
    }

    /// The sub-query for each row of its domain, joined by the domain's columns.
    fn inner_for_domain(&mut self, query: Query<'a>, outputs: &[usize]) -> Result<Inner, Refusal> {
        let places = self.outer_places();
        let mut nodes: Vec<Node<'a>> = Vec::new();
        let mut positions = Vec::new();
        for (reference, node) in outer_references(query) {
            let Some(position) = places.get(&reference) else {
                return Err(without_place(reference).at(node.location()));
            };
            let column = node::column(reference, node);
            if !nodes.iter().any(|it| it.equals(column)) {
                nodes.push(column);
                positions.push(*position);
            }
        }
        let schema = self.from.plan.schema();
        if positions.iter().any(|it| schema[*it].ty.equality.is_none()) {
            return Err(Refusal::without_rule("a correlated reference of a type without equality"));
        }
        // Where a NULL finds nothing, none is looked up, and the join is by plain equality.
        let mut plan = self.narrowest(&positions);
        let mut columns = Vec::new();
        for (position, node) in positions.iter().zip(&nodes) {
            let mut column = Scalar::column(*position, &schema[*position]);
            if column.nullable && is_strict_in(query, *node) {
                let predicate = wrapped("", &column, " IS NOT NULL");
                plan = Plan::Filter { input: Box::new(plan), predicate };
                column.nullable = false;
            }
            columns.push((column, schema[*position].name.clone()));
        }
        // Equal values that look different (1.0 and 1.00) may have different results.
        let mut images = Vec::new();
        for position in positions.iter().filter(|it| !schema[**it].is_exact()) {
            let image = image(&Scalar::column(*position, &schema[*position]));
            let attribute = images.len() as i16 + 1;
            let reference = ColumnRef { entry: IMAGES, attribute, levels_up: 1 };
            let like = node::input(0, types::BIGINT, -1, types::NO_COLLATION);
            nodes.push(node::column(reference, like));
            columns.push((image.clone(), "image".to_owned()));
            images.push(image);
        }
        let plan = Plan::Project { input: Box::new(plan), columns }.distinct();
        let domain = Domain { plan, nodes };
        let scope = *self.scope;
        let plan =
            select::lower_for(self.lowering, query, Some(&scope), Some(&domain), Some(outputs))?;
        let width = self.width();
        let inner = plan.schema();
        let on = positions.iter().enumerate().map(|(index, position)| {
            same(&schema[*position], *position, &inner[index], width + index)
        });
        let mut on: Vec<Scalar> = on.collect();
        for (index, image) in images.iter().enumerate() {
            let mut same = wrapped("", image, " = ");
            same.segments.push(Segment::Column(width + positions.len() + index));
            on.push(same);
        }
        let count = positions.len() + images.len();
        let empty = if is_plain_aggregate(query) {
            over_nothing(&plan, count, outputs.len(), &positions)?
        } else {
            Vec::new()
        };
        Ok(Inner {
            plan,
            outputs: (0..outputs.len()).map(|it| it + count).collect(),
            on,
            matched: (0..count).collect(),
            width,
            has_one_row: is_plain_aggregate(query),
            empty,
        })
    }
}

/// Joins a sub-query in FROM that refers to the rows before it. `attributes` are those of its columns
/// that are used, as entry `position` of the range table; `conditions` are those of the join.
#[expect(clippy::too_many_arguments, reason = "one call, of what was taken apart")]
pub fn lateral<'a>(
    lowering: &mut Lowering,
    scope: &Scope<'_, 'a>,
    left: From,
    (query, position, attributes): (Query<'a>, usize, &[i16]),
    is_outer: bool,
    conditions: &[Node<'a>],
) -> Result<From, Refusal> {
    let outputs: Vec<usize> =
        attributes.iter().filter_map(|it| usize::try_from(*it - 1).ok()).collect();
    select::check_size(&left.plan, 1)?;
    let mut rows = Attaching::new(lowering, scope, left);
    let inner = rows.inner(query, &outputs)?;
    let column =
        |attribute: &i16| ColumnRef { entry: position, attribute: *attribute, levels_up: 0 };
    if inner.has_one_row {
        let positions = rows.join_aggregate(inner)?;
        let places = attributes.iter().map(column).zip(positions.iter().copied());
        rows.from.places.extend(places);
        if is_outer {
            rows.blank(&positions, attributes.iter().map(column), conditions)?;
        } else {
            rows.filter(conditions)?;
        }
        return Ok(rows.from);
    }
    let width = rows.width();
    let mut places = rows.from.places.clone();
    places.extend(attributes.iter().map(column).zip(inner.outputs.iter().map(|it| width + it)));
    let schema = rows.joined_schema(&inner);
    let conditions = conditions.iter().map(|it| Ok(scalar(place(*it, &places)?, &schema)));
    let conditions = conditions.collect::<Result<Vec<_>, Refusal>>()?;
    let on = rows.condition(&inner, &conditions)?;
    let right = Box::new(inner.plan);
    rows.wrap(|left| match is_outer {
        true => Plan::LeftJoin { left, right, on },
        false => Plan::InnerJoin { left, right, on },
    });
    if !is_outer && !conditions.is_empty() {
        rows.from.narrower.clear();
    }
    rows.from.places = places;
    Ok(rows.from)
}

/// Lowers a branch of a set operation that is evaluated for a domain: for each row of that.
pub fn lower_branch<'a>(
    lowering: &mut Lowering,
    query: Query<'a>,
    scope: &Scope<'_, 'a>,
    domain: &Domain<'a>,
    needed: Option<&[usize]>,
) -> Result<Plan, Refusal> {
    if is_plain_aggregate(query) {
        // Its row over nothing would be missing.
        return Err(Refusal::without_rule("this correlated aggregate"));
    }
    let deeper = |node: &Node<'a>| match node.kind() {
        Kind::Column(it) => node::column(ColumnRef { levels_up: it.levels_up + 1, ..it }, *node),
        _ => *node,
    };
    let nodes = domain.nodes.iter().map(deeper).collect();
    let domain = Domain { plan: domain.plan.clone(), nodes };
    select::lower_for(lowering, query, Some(scope), Some(&domain), needed)
}

/// A sub-query as rows to be joined.
struct Inner {
    plan: Plan,
    /// Positions of the outputs in the plan.
    outputs: Vec<usize>,
    /// What joins it, over the columns of the rows around and then its own.
    on: Vec<Scalar>,
    /// Columns of the plan that are equal to something outside.
    matched: Vec<usize>,
    /// How many columns the rows around had when the conditions were made.
    width: usize,
    /// Whether it is an aggregate, which has one row for each of the rows around.
    has_one_row: bool,
    /// The outputs of an aggregate where no row matches.
    empty: Vec<Scalar>,
}

/// The columns of queries around that `query` refers to, as it calls them, each with a node.
fn outer_references(query: Query<'_>) -> Vec<(ColumnRef, Node<'_>)> {
    query
        .node()
        .free_column_nodes()
        .into_iter()
        .map(|(column, node)| (ColumnRef { levels_up: column.levels_up + 1, ..column }, node))
        .collect()
}

/// Refuses what has a row over nothing, and is more than an aggregate: evaluated for each row of a
/// domain, that row would be missing.
pub fn check_for_domain(query: Query<'_>) -> Result<(), Refusal> {
    let has_one_row = query.has_aggregation() && query.group_by().is_empty();
    if query.has_grouping_sets() || (has_one_row && !is_plain_aggregate(query)) {
        return Err(Refusal::without_rule("this correlated aggregate"));
    }
    Ok(())
}

/// Whether the query is nothing but FROM, WHERE and a select list.
fn is_plain_rows(query: Query<'_>) -> bool {
    has_plain_clauses(query) && !query.has_aggregation()
}

/// Whether the query has one row always: aggregates without GROUP BY and HAVING.
fn is_plain_aggregate(query: Query<'_>) -> bool {
    has_plain_clauses(query)
        && query.has_aggregation()
        && query.group_by().is_empty()
        && !query.has_grouping_sets()
        && query.having().is_none()
}

/// A correlated aggregate without GROUP BY, but with HAVING, as one without, and which of its outputs is the
/// value of HAVING.
fn filtered_aggregate(query: Query<'_>) -> Option<(Query<'_>, usize)> {
    let shown = query.targets().len();
    let is_fit = has_plain_clauses(query)
        && query.group_by().is_empty()
        && !query.has_grouping_sets()
        && !query.node().free_columns().is_empty()
        && !query.targets().iter().any(|it| it.junk)
        && !query.having().is_some_and(is_in);
    let query = analysis::with_having_shown(query).filter(|_| is_fit)?;
    Some((query, shown))
}

/// Whether nothing but aggregation stands between FROM and WHERE and the select list.
fn has_plain_clauses(query: Query<'_>) -> bool {
    query.set_operations().is_none()
        && !query.has_windows()
        && !query.has_set_returning_targets()
        && query.distinct().is_empty()
        && query.limit().is_none()
        && query.offset().is_none()
}

/// Whether no row fulfils the query's WHERE when `outer`, a column from outside, is NULL, so that there
/// is no result, or that of an aggregate over nothing.
fn is_strict_in<'a>(query: Query<'a>, outer: Node<'a>) -> bool {
    if query.set_operations().is_some() || (query.has_aggregation() && query.having().is_some()) {
        return false;
    }
    if query.has_grouping_sets() || types::is_row(outer.type_oid()) {
        return false;
    }
    let conditions = match query.from().and_then(Node::as_from) {
        Some(Tree::Items { condition: Some(condition), .. }) => condition.conjuncts(),
        _ => return false,
    };
    let is_meant = |it: &Node<'a>| match it.kind() {
        Kind::Relabel(argument) => argument.equals(outer),
        _ => it.equals(outer),
    };
    conditions.into_iter().any(|it| match it.kind() {
        Kind::Call { function, arguments } => {
            types::is_comparison(function) && arguments.iter().any(is_meant)
        }
        _ => false,
    })
}

/// For `inner = outer` by the type's own equality, in whichever order: both sides, and the whole.
fn sides<'a>(condition: Node<'a>) -> Option<(Node<'a>, Node<'a>, Node<'a>)> {
    let Kind::Call { function, arguments } = condition.kind() else { return None };
    let [left, right] = arguments.as_slice() else { return None };
    let is_outer = |it: &Node<'a>| {
        let columns = it.free_columns();
        !columns.is_empty() && columns.iter().all(|it| it.levels_up > 0)
    };
    let is_inner = |it: &Node<'a>| {
        let columns = it.free_columns();
        !columns.is_empty() && columns.iter().all(|it| it.levels_up == 0)
    };
    let (inner, outer) = match (is_inner(left), is_outer(right), is_outer(left), is_inner(right)) {
        (true, true, ..) => (*left, *right),
        (_, _, true, true) => (*right, *left),
        _ => return None,
    };
    types::is_equality_of(function, inner.type_oid()).then_some((inner, outer, condition))
}

/// The outputs of a plan with aggregates and no rows to aggregate; `prefix` columns stand before them. For
/// the first of these, which are of the domain, stand the columns of the rows around at these positions.
fn over_nothing(
    plan: &Plan,
    prefix: usize,
    outputs: usize,
    outside: &[usize],
) -> Result<Vec<Scalar>, Refusal> {
    let refuse = || Refusal::without_rule("this correlated aggregate");
    let schema = plan.schema();
    let aggregate = match plan {
        Plan::Project { input, .. } => input.as_ref(),
        _ => plan,
    };
    let Plan::Aggregate { input, keys, calls } = aggregate else { return Err(refuse()) };
    let below = input.schema();
    let output = |position: usize| {
        let value = match plan {
            Plan::Project { columns, .. } => columns[position].0.clone(),
            _ => Scalar::column(position, &schema[position]),
        };
        let mut segments = Vec::new();
        for segment in &value.segments {
            match segment {
                Segment::Text(_) => segments.push(segment.clone()),
                Segment::Column(position) if *position < outside.len() => {
                    segments.push(Segment::Column(outside[*position]));
                }
                Segment::Column(position) => {
                    let call = position.checked_sub(keys.len()).and_then(|it| calls.get(it));
                    let call = call.ok_or_else(refuse)?;
                    let nothing = call.call.print(|it| format!("(NULL::{})", below[it].ty.sql));
                    segments.push(text(&format!("(SELECT {nothing} WHERE false)")));
                }
            }
        }
        Ok(Scalar { segments, nullable: true, ..value })
    };
    (prefix..prefix + outputs).map(output).collect()
}

/// One row: whether the plan has any.
fn some_row(plan: Plan) -> Plan {
    let count = Plan::Aggregate {
        input: Box::new(columns_of(plan, Some(&[]))),
        keys: Vec::new(),
        calls: vec![count_rows()],
    };
    let is_some = Scalar {
        segments: vec![text("("), Segment::Column(0), text(" > 0)")],
        ty: boolean(),
        nullable: false,
        scale: None,
    };
    // A stage of its own, so that a change of the count alone is none of the answer.
    let columns = vec![(is_some, "mark".to_owned())];
    Plan::Project { input: Box::new(count), columns }.distinct()
}

/// For each value of the first `keys` columns: these, the values of the only row with it, and a count of the
/// rows that is 1, 2 for several, or NULL.
fn counted(plan: Plan, keys: usize, values: &[usize]) -> Plan {
    let schema = plan.schema();
    let mut calls: Vec<_> = values.iter().map(|it| any_value(&schema, *it)).collect();
    // Without keys there is a group over nothing.
    calls.iter_mut().for_each(|it| it.call.nullable = true);
    calls.push(count_rows());
    let groups = Plan::Aggregate { input: Box::new(plan), keys: (0..keys).collect(), calls };
    let schema = groups.schema();
    let count = schema.len() - 1;
    let columns = schema.iter().enumerate().map(|(position, column)| {
        let mut value = Scalar::column(position, column);
        if position == count {
            // One more of several is no change.
            let segments = vec![text("NULLIF(LEAST("), Segment::Column(count), text(", 2), 0)")];
            value = Scalar { segments, nullable: true, ..value };
        } else if position >= keys {
            value = value.only_if([Segment::Column(count), text(" = 1")]);
        }
        (value, column.name.clone())
    });
    let columns = columns.collect();
    Plan::Project { input: Box::new(groups), columns }
}

/// Whether the count at a position is 1; an error where it is more.
fn is_single(count: usize) -> [Segment; 3] {
    [text("pgstream.is_single("), Segment::Column(count), text(")")]
}

/// Whether the plan has exactly one row whatever its sources hold.
fn is_one_row(plan: &Plan) -> bool {
    match plan {
        Plan::Unit => true,
        Plan::Aggregate { keys, .. } => keys.is_empty(),
        Plan::Project { input, .. } => is_one_row(input),
        _ => false,
    }
}

/// The plan with one more column.
fn with_column(input: Box<Plan>, schema: &[Column], value: Scalar) -> Plan {
    let mut columns: Vec<_> = schema
        .iter()
        .enumerate()
        .map(|(position, it)| (Scalar::column(position, it), it.name.clone()))
        .collect();
    columns.push((value, "value".to_owned()));
    Plan::Project { input, columns }
}

/// All of these in one; `None` for none.
pub fn conjunction(conditions: &[Scalar]) -> Option<Scalar> {
    let (first, rest) = conditions.split_first()?;
    if rest.is_empty() {
        return Some(first.clone());
    }
    let mut segments = Vec::new();
    for condition in conditions {
        segments.push(text(if segments.is_empty() { "(" } else { ") AND (" }));
        segments.extend(condition.segments.iter().cloned());
    }
    segments.push(text(")"));
    let nullable = conditions.iter().any(|it| it.nullable);
    Some(Scalar { segments, ty: boolean(), nullable, scale: None })
}

/// Whether two columns hold the same value, with NULLs counting as the same.
pub fn same(left: &Column, left_position: usize, right: &Column, right_position: usize) -> Scalar {
    let equality = left.ty.equality.as_deref().unwrap_or("=");
    let (l, r) = (Segment::Column(left_position), Segment::Column(right_position));
    let mut segments = vec![l.clone(), text(&format!(" {equality} ")), r.clone()];
    if left.nullable && right.nullable {
        // The text behind an operand.
        let is_null = |it: &Column| sql::is_null("", &it.ty);
        segments.insert(0, text("("));
        segments.extend([text(" OR ("), l, text(&is_null(left)), text(" AND "), r]);
        segments.extend([text(&is_null(right)), text("))")]);
    }
    Scalar { segments, ty: boolean(), nullable: true, scale: None }
}

/// `scalar` with the columns from `first` on `by` places further right.
fn moved(scalar: &Scalar, first: usize, by: usize) -> Scalar {
    scalar.remapped(|it| if it < first { it } else { it + by })
}

fn wrapped(before: &str, scalar: &Scalar, after: &str) -> Scalar {
    let mut segments = vec![text(before)];
    segments.extend(scalar.segments.iter().cloned());
    segments.push(text(after));
    Scalar { segments, ty: boolean(), nullable: false, scale: None }
}

/// What tells values apart that are equal.
fn image(value: &Scalar) -> Scalar {
    let value = wrapped("pgstream.row_id(", value, ")");
    Scalar { ty: bigint(), ..value }
}

fn text(text: &str) -> Segment {
    Segment::Text(text.to_owned())
}

fn boolean() -> Type {
    types::describe(types::BOOLEAN, -1, types::NO_COLLATION)
}

fn bigint() -> Type {
    types::describe(types::BIGINT, -1, types::NO_COLLATION)
}
