//! FROM and WHERE: leaves, joined one after the other.
//!
//! The conditions of inner joins and those of WHERE are one conjunction. Each conjunct is put as low
//! as its columns allow: on a leaf as a filter, else on a join. Leaves are joined in the order of
//! FROM, but one that a condition connects comes before one that would make a cross product.
//!
//! An outer join is one item among those that are joined. Its ON stays with it, but for conjuncts
//! about the side that is filled up with NULLs: they decide which of its rows are looked at. Only
//! conditions about the other side may move below it. Where a condition drops the rows that are filled
//! up with NULLs, the outer join is a simpler one to begin with, as PostgreSQL's planner has it too.

use std::collections::{BTreeMap, BTreeSet};

use pgstream_ivm::plan::{Column, Plan, Scan, Source, Version};
use pgstream_ivm::scalar::{Scalar, Segment};

use super::expression::{Places, place, scalar};
use super::inventory::{Relation, RelationKind};
use super::lateral::{self, Laterals};
use super::refusal::{Refusal, check_expression};
use super::select::{self, Select, columns_of};
use super::sub_link::{self, Attaching, Domain};
use super::{HIDDEN_COLUMNS, Lowering, Scope, recursion, rights};
use crate::pg::access::Permission;
use crate::pg::deparse::quote;
use crate::pg::member;
use crate::pg::node::{ColumnRef, Entry, EntryKind, From as Tree, Join, Node, Query};
use crate::pg::query::{all_of, check_depth, generation_expression};
use crate::pg::table::{self, Attribute, Table};
use crate::pg::types::{self, Oid};

/// More leaves than this are refused: each one adds a term to the delta of every join above.
const MAX_LEAVES: usize = 512;

/// More rows of VALUES than this are refused.
const MAX_VALUES: usize = 1000;

/// The rows of FROM and WHERE, and where the columns of the range table are in them.
pub struct From {
    pub plan: Plan,
    pub places: Places,
    /// What domains were taken from: `plan` as it was then, the narrowest first. Its columns are the first
    /// ones still, and no condition has dropped rows since, so that the next domain need not be taken from
    /// all that was attached meanwhile.
    pub narrower: Vec<Plan>,
}

impl From {
    pub fn new(plan: Plan, places: Places) -> Self {
        Self { plan, places, narrower: Vec::new() }
    }
}

/// What is joined: a table or a sub-query, or an outer join.
pub enum Item<'a> {
    Leaf(usize),
    /// The right side of a LEFT JOIN that is LATERAL without tables, and its ON.
    OuterLateral(usize, Option<Node<'a>>),
    Outer(Box<Outer<'a>>),
}

/// `optional` is filled up with NULLs, in a FULL JOIN `preserved` too.
pub struct Outer<'a> {
    preserved: Side<'a>,
    optional: Side<'a>,
    is_full: bool,
    on: Vec<Node<'a>>,
}

impl<'a> Outer<'a> {
    /// Whether something in it refers to items before it or to queries around. A FULL JOIN cannot be
    /// joined to these first.
    fn refers_outside(&self, scope: &Scope<'_, 'a>) -> bool {
        let sides = [&self.preserved, &self.optional];
        let own: BTreeSet<usize> = sides.iter().flat_map(|it| it.entries()).collect();
        let is_outside = |it: ColumnRef| it.levels_up > 0 || !own.contains(&it.entry);
        let conditions = sides.iter().flat_map(|it| it.all_conditions());
        let queries = own.iter().filter_map(|it| Some(lateral_query(scope, *it)?.node()));
        let mut nodes = conditions.chain(self.on.iter().copied()).chain(queries);
        !self.is_full && nodes.any(|it| it.free_columns().into_iter().any(is_outside))
    }
}

/// Items that are joined by inner joins, and the conditions on them.
#[derive(Default)]
pub struct Side<'a> {
    pub items: Vec<Item<'a>>,
    pub conditions: Vec<Node<'a>>,
}

impl<'a> Side<'a> {
    /// Adds a tree of FROM.
    pub fn gather(&mut self, query: Query<'a>, tree: Node<'a>) -> Result<(), Refusal> {
        check_depth();
        match tree.as_from() {
            Some(Tree::Entry(entry)) => self.items.push(Item::Leaf(entry)),
            Some(Tree::Items { items, condition }) => {
                items.into_iter().try_for_each(|it| self.gather(query, it))?;
                self.conditions.extend(condition.into_iter().flat_map(Node::conjuncts));
            }
            Some(Tree::Join { kind: Join::Inner, left, right, condition }) => {
                self.gather(query, left)?;
                self.gather(query, right)?;
                self.conditions.extend(condition.into_iter().flat_map(Node::conjuncts));
            }
            Some(Tree::Join { kind, left, right, condition }) => {
                if let (Join::Left, Some(Tree::Entry(entry))) = (kind, right.as_from())
                    && lateral::is_outer(query, entry, condition)
                {
                    self.gather(query, left)?;
                    self.items.push(Item::OuterLateral(entry, condition));
                    return Ok(());
                }
                let (mut preserved, mut optional) = (Self::default(), Self::default());
                let sides = if kind == Join::Right { (right, left) } else { (left, right) };
                preserved.gather(query, sides.0)?;
                optional.gather(query, sides.1)?;
                let on = condition.into_iter().flat_map(Node::conjuncts).collect();
                let outer = Outer { preserved, optional, is_full: kind == Join::Full, on };
                self.items.push(Item::Outer(Box::new(outer)));
            }
            None => return Err(Refusal::without_rule("this kind of FROM")),
        }
        Ok(())
    }

    /// Makes simpler joins of outer ones, where conditions drop rows that are filled up with NULLs: as
    /// those `above` do with NULLs for one of these entries.
    pub fn reduce(&mut self, above: &BTreeSet<usize>) {
        check_depth();
        let mut not_null = not_null(&self.conditions);
        not_null.extend(above);
        let mut waiting = std::mem::take(&mut self.items);
        waiting.reverse();
        while let Some(item) = waiting.pop() {
            let Item::Outer(mut outer) = item else {
                self.items.push(item);
                continue;
            };
            let is_present = |side: &Self| !side.entries().is_disjoint(&not_null);
            if outer.is_full && is_present(&outer.optional) {
                std::mem::swap(&mut outer.preserved, &mut outer.optional);
            }
            outer.is_full &= !is_present(&outer.preserved);
            if outer.is_full || !is_present(&outer.optional) {
                self.items.push(Item::Outer(outer));
                continue;
            }
            let Outer { preserved, optional, on, .. } = *outer;
            let conditions = [on, preserved.conditions, optional.conditions].concat();
            not_null.extend(self::not_null(&conditions));
            self.conditions.extend(conditions);
            // All of them anew, as there are more conditions now.
            let mut items = std::mem::take(&mut self.items);
            items.extend(preserved.items.into_iter().chain(optional.items));
            waiting.extend(items.into_iter().rev());
        }
        for item in &mut self.items {
            if let Item::Outer(outer) = item {
                let (of_preserved, of_optional) = match outer.is_full {
                    true => (BTreeSet::new(), BTreeSet::new()),
                    false => (not_null.clone(), self::not_null(&outer.on)),
                };
                outer.preserved.reduce(&of_preserved);
                outer.optional.reduce(&of_optional);
            }
        }
    }

    /// All conditions, of outer joins below too.
    pub fn all_conditions(&self) -> Vec<Node<'a>> {
        let mut all = self.conditions.clone();
        for item in &self.items {
            if let Item::Outer(outer) = item {
                all.extend(&outer.on);
                all.extend(outer.preserved.all_conditions());
                all.extend(outer.optional.all_conditions());
            }
        }
        all
    }

    /// The entries that are items by themselves, with ON for those that are outer.
    pub fn leaves(&self) -> Vec<(usize, Option<Option<Node<'a>>>)> {
        let leaves = |item: &Item<'a>| match item {
            Item::Leaf(entry) => vec![(*entry, None)],
            Item::OuterLateral(entry, condition) => vec![(*entry, Some(*condition))],
            Item::Outer(outer) => {
                let sides = [&outer.preserved, &outer.optional];
                sides.into_iter().flat_map(Side::leaves).collect()
            }
        };
        self.items.iter().flat_map(leaves).collect()
    }

    fn entries(&self) -> BTreeSet<usize> {
        self.items.iter().flat_map(Item::entries).collect()
    }

    /// Takes out the conditions with sub-queries, but for those of outer joins.
    pub fn take_late(&mut self) -> Vec<Node<'a>> {
        self.conditions.extract_if(.., |it| sub_link::is_in(*it)).collect()
    }
}

/// The entries of which no row of NULLs satisfies the conditions.
fn not_null(conditions: &[Node<'_>]) -> BTreeSet<usize> {
    conditions.iter().flat_map(|it| it.entries_not_null()).collect()
}

impl<'a> Item<'a> {
    /// The entries that LATERAL items in it refer to, but for those in it.
    fn reads(&self, scope: &Scope<'_, 'a>, used: &Used<'_, 'a>) -> BTreeSet<usize> {
        let own = self.entries();
        let reads = |entry: &usize| match used.laterals.get(entry) {
            Some(item) => item.reads.iter().map(|it| it.0).collect(),
            None => lateral_query(scope, *entry).map_or(Vec::new(), |it| it.node().free_columns()),
        };
        let entries = own.iter().flat_map(reads).filter(|it| it.levels_up == 0).map(|it| it.entry);
        entries.filter(|it| !own.contains(it)).collect()
    }

    fn entries(&self) -> BTreeSet<usize> {
        match self {
            Self::Leaf(entry) | Self::OuterLateral(entry, _) => BTreeSet::from([*entry]),
            Self::Outer(outer) => {
                let mut entries = outer.preserved.entries();
                entries.extend(outer.optional.entries());
                entries
            }
        }
    }
}

/// Lowers FROM and WHERE, with the columns that `select` uses.
pub fn lower<'a>(
    lowering: &mut Lowering,
    scope: &Scope<'_, 'a>,
    select: &Select<'a>,
) -> Result<From, Refusal> {
    let mut columns = used_columns(select);
    for entry in select.from.entries() {
        let read = lateral_query(scope, entry).map(|it| it.node().free_column_nodes());
        for (column, node) in read.into_iter().flatten().filter(|it| it.0.levels_up == 0) {
            columns.entry(column.entry).or_default().insert(column.attribute, node);
        }
    }
    let used = Used { columns, laterals: &select.laterals };
    let domain = scope.domain.map(Domain::rows);
    let rows = lower_side(lowering, scope, &used, &select.from, (domain, Vec::new()))?;
    // An item without rows may have dropped some, and what stands above is not evaluated for these.
    Ok(From::new(rows.plan, rows.places))
}

/// What of FROM is used.
struct Used<'s, 'a> {
    /// The columns of each entry, with a reference to each.
    columns: BTreeMap<usize, BTreeMap<i16, Node<'a>>>,
    laterals: &'s Laterals<'a>,
}

/// Lowers a side, which starts with what is `joined` already, and to which `more` conditions apply.
fn lower_side<'a>(
    lowering: &mut Lowering,
    scope: &Scope<'_, 'a>,
    used: &Used<'_, 'a>,
    side: &Side<'a>,
    (mut joined, more): (Option<From>, Vec<Condition<'a>>),
) -> Result<From, Refusal> {
    check_depth();
    let (late, plain): (Vec<_>, Vec<_>) =
        side.conditions.iter().copied().partition(|it| sub_link::is_in(*it));
    let mut conditions: Vec<Condition<'a>> =
        plain.into_iter().map(Condition::new).chain(more).collect();
    let mut waiting: Vec<&Item<'a>> = side.items.iter().collect();
    let mut present: BTreeSet<usize> = joined.iter().map(|_| OUTSIDE).collect();
    while !waiting.is_empty() {
        let has_inputs = |item: &&Item<'a>| item.reads(scope, used).is_subset(&present);
        let connects = |item: &&Item<'a>| {
            has_inputs(item) && conditions.iter().any(|it| it.connects(&present, &item.entries()))
        };
        let next = waiting.iter().position(connects);
        let next = next.or_else(|| waiting.iter().position(has_inputs)).unwrap_or(0);
        let item = waiting.remove(next);
        let entries = item.entries();
        if let Item::Leaf(entry) | Item::OuterLateral(entry, _) = item
            && let Some(lateral) = used.laterals.get(entry)
        {
            present.extend(entries);
            let columns = used.columns.get(entry).cloned().unwrap_or_default();
            let left = joined.take().unwrap_or_else(unit);
            let expanded = lateral::lower(left, lateral, *entry, (scope.query, &columns))?;
            joined = Some(filtered(expanded, &mut conditions, &present)?);
            continue;
        }
        if let Item::Leaf(entry) = item
            && let Some(query) = lateral_query(scope, *entry)
        {
            present.extend(entries);
            let attributes = used.columns.get(entry).map(attribute_list).unwrap_or_default();
            let on = ready(&mut conditions, &present);
            let left = joined.take().unwrap_or_else(unit);
            let item = (query, *entry, attributes.as_slice());
            joined = Some(sub_link::lateral(lowering, scope, left, item, false, &on)?);
            continue;
        }
        let next = match item {
            Item::Leaf(entry) | Item::OuterLateral(entry, _) => {
                let columns = used.columns.get(entry).cloned().unwrap_or_default();
                lower_leaf(lowering, scope, *entry, &columns.into_keys().collect())?
            }
            // (X × A) ⟕ B = X × (A ⟕ B), so that what refers to X finds it.
            Item::Outer(outer) if joined.is_some() && outer.refers_outside(scope) => {
                let seed = joined.take();
                let next = lower_outer(lowering, scope, used, outer, (seed, &mut conditions))?;
                present.extend(entries);
                joined = Some(filtered(next, &mut conditions, &present)?);
                continue;
            }
            Item::Outer(outer) => {
                lower_outer(lowering, scope, used, outer, (None, &mut conditions))?
            }
        };
        let next = filtered(next, &mut conditions, &entries)?;
        present.extend(entries);
        joined = Some(match joined {
            None => next,
            Some(left) => join(left, next, &mut conditions, &present)?,
        });
    }
    let joined = filtered_by_rest(joined.unwrap_or_else(unit), conditions)?;
    select::check_size(&joined.plan, 1)?;
    if late.is_empty() {
        return Ok(joined);
    }
    let mut attaching = Attaching::new(lowering, scope, joined);
    attaching.filter(&late)?;
    Ok(attaching.into_from())
}

fn unit() -> From {
    From::new(Plan::Unit, Places::new())
}

fn attribute_list(columns: &BTreeMap<i16, Node<'_>>) -> Vec<i16> {
    columns.keys().copied().collect()
}

/// The sub-query at an entry that refers to items before it or to queries around.
fn lateral_query<'a>(scope: &Scope<'_, 'a>, entry: usize) -> Option<Query<'a>> {
    match scope.query.entry(entry)?.kind() {
        EntryKind::SubQuery(query) if !query.node().free_columns().is_empty() => Some(query),
        _ => None,
    }
}

/// Lowers an outer join, with those of the conditions `above` that can move below it. Its preserved
/// side starts with the seed.
fn lower_outer<'a>(
    lowering: &mut Lowering,
    scope: &Scope<'_, 'a>,
    used: &Used<'_, 'a>,
    outer: &Outer<'a>,
    (seed, above): (Option<From>, &mut Vec<Condition<'a>>),
) -> Result<From, Refusal> {
    let (late, plain): (Vec<_>, Vec<_>) =
        outer.on.iter().copied().partition(|it| sub_link::is_in(*it));
    let mut on: Vec<Condition<'a>> = plain.into_iter().map(Condition::new).collect();
    let (mut on_preserved, mut on_optional) = (Vec::new(), Vec::new());
    if !outer.is_full {
        on_preserved = take_ready(above, &outer.preserved.entries());
        if let [Item::Leaf(entry)] = outer.optional.items.as_slice()
            && let Some(query) = lateral_query(scope, *entry)
        {
            if let Some(condition) = late.first() {
                return Err(sub_query_in_on(*condition));
            }
            let side = (seed, on_preserved);
            let left = lower_side(lowering, scope, used, &outer.preserved, side)?;
            let attributes = used.columns.get(entry).map(attribute_list).unwrap_or_default();
            let item = (query, *entry, attributes.as_slice());
            return sub_link::lateral(lowering, scope, left, item, true, &outer.on);
        }
        on_optional = take_ready(&mut on, &outer.optional.entries());
    }
    let preserved = lower_side(lowering, scope, used, &outer.preserved, (seed, on_preserved))?;
    let optional = lower_side(lowering, scope, used, &outer.optional, (None, on_optional))?;
    let (preserved, optional, pairs) =
        attach_late(lowering, scope, outer, (preserved, optional), (&late, &mut on))?;
    if !pairs.is_empty() {
        return of_pairs(lowering, scope, (preserved, optional), (on, &pairs));
    }
    let (places, schema) = side_by_side(&preserved, &optional);
    let on: Vec<_> = on.into_iter().map(|it| it.expression).collect();
    let on = match all_of(&on) {
        Some(condition) => Some(scalar(place(condition, &places)?, &schema)),
        None => None,
    };
    if outer.is_full {
        return Ok(From::new(Plan::full_join(preserved.plan, optional.plan, on), places));
    }
    let (left, right) = (Box::new(preserved.plan), Box::new(optional.plan));
    let plan = Plan::LeftJoin { left, right, on };
    Ok(From { plan, places, narrower: preserved.narrower })
}

/// Adds what sub-queries in ON become to the sides that they refer to. What is about the optional side
/// alone is a condition on that; the rest is left to the join. The conditions with sub-queries that refer
/// to both sides are given back.
fn attach_late<'a>(
    lowering: &mut Lowering,
    scope: &Scope<'_, 'a>,
    outer: &Outer<'a>,
    (mut preserved, mut optional): (From, From),
    (late, on): (&[Node<'a>], &mut Vec<Condition<'a>>),
) -> Result<(From, From, Vec<Node<'a>>), Refusal> {
    let mut pairs = Vec::new();
    let entries = outer.optional.entries();
    let is_optional = |it: &ColumnRef| it.levels_up == 0 && entries.contains(&it.entry);
    let is_about_optional = |it: &Node<'a>| it.free_columns().iter().all(is_optional);
    let is_about_preserved = |it: &Node<'a>| !it.free_columns().iter().any(is_optional);
    for condition in late {
        let links = sub_link::links(*condition);
        if !links.iter().all(|it| is_about_optional(it) || is_about_preserved(it)) {
            if outer.is_full {
                return Err(sub_query_in_on(*condition));
            }
            pairs.push(*condition);
            continue;
        }
        let mut attaching = Attaching::new(lowering, scope, optional);
        if is_about_optional(condition) && !outer.is_full {
            attaching.filter(std::slice::from_ref(condition))?;
            optional = attaching.into_from();
            continue;
        }
        let condition = attaching.condition_of(*condition, &is_about_optional)?;
        optional = attaching.into_from();
        let mut attaching = Attaching::new(lowering, scope, preserved);
        on.push(Condition::new(attaching.condition_of(condition, &|_| true)?));
        preserved = attaching.into_from();
    }
    Ok((preserved, optional, pairs))
}

/// The outer join as the pairs for which everything holds, and the rows of the preserved side that are in
/// none, with NULLs. Whether a row is in a pair is told by its key.
fn of_pairs<'a>(
    lowering: &mut Lowering,
    scope: &Scope<'_, 'a>,
    (preserved, optional): (From, From),
    (mut on, late): (Vec<Condition<'a>>, &[Node<'a>]),
) -> Result<From, Refusal> {
    let key = preserved.plan.key().ok_or_else(|| sub_query_in_on(late[0]))?;
    let (schema, optional_schema) = (preserved.plan.schema(), optional.plan.schema());
    let width = schema.len() + optional_schema.len();
    let rows = preserved.plan.clone();
    let entries = on.iter().flat_map(|it| it.entries.iter().copied()).collect();
    let joined = join(preserved, optional, &mut on, &entries)?;
    let mut attaching = Attaching::new(lowering, scope, filtered_by_rest(joined, on)?);
    attaching.filter(late)?;
    let From { plan, mut places, .. } = attaching.into_from();
    places.retain(|_, position| *position < width);
    let pairs = plan.columns(0..width);
    let same = |(index, position): (usize, &usize)| {
        sub_link::same(&schema[*position], *position, &schema[*position], schema.len() + index)
    };
    let same: Vec<Scalar> = key.iter().enumerate().map(same).collect();
    let alone =
        Plan::semi_join(rows, pairs.clone().columns(key), sub_link::conjunction(&same), false);
    let alone = alone.with_nulls_for(optional_schema);
    Ok(From::new(Plan::Sum { inputs: vec![pairs, alone] }, places))
}

fn sub_query_in_on(condition: Node<'_>) -> Refusal {
    let words = "a sub-query in the condition of this outer join that refers to both sides";
    Refusal::without_rule(words).at(condition.location())
}

/// Stands for the queries around; entries count from 1.
const OUTSIDE: usize = 0;

/// A conjunct, and the entries whose columns it reads.
struct Condition<'a> {
    expression: Node<'a>,
    entries: BTreeSet<usize>,
}

impl<'a> Condition<'a> {
    fn new(expression: Node<'a>) -> Self {
        let entry = |it: ColumnRef| if it.levels_up == 0 { it.entry } else { OUTSIDE };
        let entries = expression.free_columns().into_iter().map(entry).collect();
        Self { expression, entries }
    }

    /// Whether it would join `entries` to those that are `present`.
    fn connects(&self, present: &BTreeSet<usize>, entries: &BTreeSet<usize>) -> bool {
        self.entries.iter().any(|it| entries.contains(it))
            && self.entries.iter().any(|it| present.contains(it))
            && self.entries.iter().all(|it| entries.contains(it) || present.contains(it))
    }
}

/// Takes out the conditions that these entries suffice for.
fn take_ready<'a>(
    conditions: &mut Vec<Condition<'a>>,
    present: &BTreeSet<usize>,
) -> Vec<Condition<'a>> {
    conditions
        .extract_if(.., |it| !it.entries.is_empty() && it.entries.is_subset(present))
        .collect()
}

fn ready<'a>(conditions: &mut Vec<Condition<'a>>, present: &BTreeSet<usize>) -> Vec<Node<'a>> {
    take_ready(conditions, present).into_iter().map(|it| it.expression).collect()
}

fn filtered(
    from: From,
    conditions: &mut Vec<Condition<'_>>,
    present: &BTreeSet<usize>,
) -> Result<From, Refusal> {
    let ready = ready(conditions, present);
    filter(from, &ready)
}

fn filtered_by_rest(from: From, conditions: Vec<Condition<'_>>) -> Result<From, Refusal> {
    let rest: Vec<_> = conditions.into_iter().map(|it| it.expression).collect();
    filter(from, &rest)
}

fn filter(from: From, conditions: &[Node<'_>]) -> Result<From, Refusal> {
    let Some(condition) = all_of(conditions) else { return Ok(from) };
    let predicate = scalar(place(condition, &from.places)?, &from.plan.schema());
    let plan = Plan::Filter { input: Box::new(from.plan), predicate };
    Ok(From::new(plan, from.places))
}

fn join(
    left: From,
    right: From,
    conditions: &mut Vec<Condition<'_>>,
    present: &BTreeSet<usize>,
) -> Result<From, Refusal> {
    let (places, schema) = side_by_side(&left, &right);
    let on = match all_of(&ready(conditions, present)) {
        Some(condition) => Some(scalar(place(condition, &places)?, &schema)),
        None => None,
    };
    let plan = Plan::InnerJoin { left: Box::new(left.plan), right: Box::new(right.plan), on };
    Ok(From::new(plan, places))
}

/// Where the columns of both are in a join of them, and all of those.
fn side_by_side(left: &From, right: &From) -> (Places, Vec<Column>) {
    let mut schema = left.plan.schema();
    let width = schema.len();
    let mut places = left.places.clone();
    places.extend(right.places.iter().map(|(column, position)| (*column, position + width)));
    schema.extend(right.plan.schema());
    (places, schema)
}

fn used_columns<'a>(select: &Select<'a>) -> BTreeMap<usize, BTreeMap<i16, Node<'a>>> {
    let mut used: BTreeMap<usize, BTreeMap<i16, Node<'a>>> = BTreeMap::new();
    let read = select.expressions().into_iter().flat_map(Node::free_column_nodes);
    let by_laterals = select.laterals.values().flat_map(|it| it.reads.iter().copied());
    for (column, node) in read.chain(by_laterals).filter(|it| it.0.levels_up == 0) {
        used.entry(column.entry).or_default().insert(column.attribute, node);
    }
    used
}

fn lower_leaf<'a>(
    lowering: &mut Lowering,
    scope: &Scope<'_, 'a>,
    position: usize,
    attributes: &BTreeSet<i16>,
) -> Result<From, Refusal> {
    let entry = scope.query.entry(position);
    let entry = entry.ok_or_else(|| Refusal::without_rule("this kind of FROM"))?;
    lowering.leaves += 1;
    if lowering.leaves > MAX_LEAVES {
        return Err(Refusal::without_rule(format!("more than {MAX_LEAVES} table references")));
    }
    let is_table = matches!(entry.kind(), EntryKind::Relation { kind: 'r' | 'p', .. });
    if attributes.contains(&0) && !is_table {
        return Err(Refusal::without_rule("a whole-row reference"));
    }
    // Column `n` of a sub-query is its `n`-th output column.
    let needed: Vec<usize> =
        attributes.iter().filter_map(|it| usize::try_from(*it - 1).ok()).collect();
    let plan = match entry.kind() {
        EntryKind::Relation { oid, kind: 'r' | 'p', children } => {
            let named = NamedTable { entry, oid, children, is_evaluated: false };
            return lower_table(lowering, &named, position, attributes);
        }
        EntryKind::SubQuery(query) => {
            let hides =
                entry.inlined_view().is_some() && rights::hides(query, &mut lowering.rights);
            let around = lowering.is_hidden;
            lowering.is_hidden |= hides;
            let plan = select::lower(lowering, query, Some(scope), Some(&needed));
            lowering.is_hidden = around;
            plan?
        }
        EntryKind::CommonTable { recursive: true, .. } => recursion::reference(lowering, &needed)?,
        EntryKind::CommonTable { name, levels_up, .. } => {
            lower_common_table(lowering, scope, &name, levels_up, &needed)?
        }
        EntryKind::Values { rows, columns } => lower_values(&rows, &columns, &needed)?,
        other => return Err(Refusal::without_rule(entry_words(&other))),
    };
    let places = attributes
        .iter()
        .enumerate()
        .map(|(at, attribute)| (column_ref(position, *attribute), at))
        .collect();
    Ok(From::new(plan, places))
}

fn column_ref(entry: usize, attribute: i16) -> ColumnRef {
    ColumnRef { entry, attribute, levels_up: 0 }
}

fn entry_words(kind: &EntryKind<'_>) -> &'static str {
    match kind {
        EntryKind::Relation { kind: 'm', .. } => "a materialized view",
        EntryKind::Relation { kind: 'f', .. } => "a foreign table",
        EntryKind::Relation { .. } => "a relation that is not a table",
        EntryKind::Function => "a function in FROM",
        EntryKind::TableFunction => "JSON_TABLE or XMLTABLE",
        _ => "this kind of FROM",
    }
}

fn lower_common_table<'a>(
    lowering: &mut Lowering,
    scope: &Scope<'_, 'a>,
    name: &str,
    levels_up: u32,
    needed: &[usize],
) -> Result<Plan, Refusal> {
    let mut home = *scope;
    for _ in 0..levels_up {
        home = *home.outer.ok_or_else(|| Refusal::without_rule("this WITH item"))?;
    }
    let item = home.query.common_table(name);
    let item = item.ok_or_else(|| Refusal::without_rule("this WITH item"))?;
    if item.recursive {
        let around = std::iter::successors(Some(scope), |it| it.outer);
        for scope in around.take(levels_up as usize + 1) {
            recursion::check_limit(scope.query)?;
        }
        let plan = recursion::lower(lowering, &item, &home, needed)?;
        return Ok(columns_of(plan, Some(needed)));
    }
    if item.references == 1 {
        return select::lower(lowering, item.query, Some(&home), Some(needed));
    }
    // The same plan for each reference, so that it can be shared.
    let plan = select::lower(lowering, item.query, Some(&home), None)?;
    Ok(columns_of(plan, Some(needed)))
}

fn lower_values(
    rows: &[Vec<Node<'_>>],
    columns: &[(Oid, i32, Oid)],
    needed: &[usize],
) -> Result<Plan, Refusal> {
    if rows.len() > MAX_VALUES {
        return Err(Refusal::without_rule(format!("VALUES with more than {MAX_VALUES} rows")));
    }
    let project = |row: &Vec<Node<'_>>| {
        let column = |at: &usize| {
            check_expression(row[*at])?;
            let (ty, typmod, collation) = columns[*at];
            let mut scalar = scalar(place(row[*at], &Places::new())?, &[]);
            scalar.ty = types::describe(ty, typmod, collation);
            Ok((scalar, format!("column{}", at + 1)))
        };
        let columns = needed.iter().map(column).collect::<Result<Vec<_>, Refusal>>()?;
        Ok(Plan::Project { input: Box::new(Plan::Unit), columns })
    };
    Ok(Plan::Sum { inputs: rows.iter().map(project).collect::<Result<_, Refusal>>()? })
}

/// A table as a query names it.
pub struct NamedTable<'a> {
    pub entry: Entry<'a>,
    pub oid: Oid,
    /// Whether rows of its children count as its own: not so with ONLY.
    pub children: bool,
    /// Whether PostgreSQL evaluates a query with it as a whole: then it is only the changes that count.
    pub is_evaluated: bool,
}

/// Lowers a table, which is entry `position` of the range table, with these columns and its key. What
/// is made of a row when it is read stands above the scan: virtual generated columns, and the row as
/// a whole. What only these and policies are made of does not get out of it: the owner may not be allowed
/// to read it, and much of what does is stored.
pub fn lower_table(
    lowering: &mut Lowering,
    named: &NamedTable<'_>,
    position: usize,
    asked: &BTreeSet<i16>,
) -> Result<From, Refusal> {
    let &NamedTable { entry, oid, children, is_evaluated } = named;
    let table = table::look(oid);
    check_table(entry, &table, oid)?;
    let policy = entry.policy();
    let of_policy: Vec<ColumnRef> = policy
        .map_or(Vec::new(), Node::free_columns)
        .into_iter()
        .filter(|it| it.levels_up == 0)
        .collect();
    let attributes: BTreeSet<i16> =
        asked.iter().copied().chain(of_policy.iter().map(|it| it.attribute)).collect();
    // Neither keys nor NOT NULL hold for inheriting tables.
    let inherits = table.has_children && !table.is_partitioned;
    // What its owner may not read does not get into a stream table, not even as the identity of rows.
    let may_identify = |key: &Vec<i16>| {
        !inherits
            && !lowering.is_hidden
            && lowering.rights.suffice(Permission::of_columns(oid, key))
    };
    let key = table.key.clone().filter(may_identify);
    let is_key = |number| key.iter().flatten().any(|it| *it == number);
    let is_whole = attributes.contains(&0);
    let is_asked = |it: &Attribute| is_whole || attributes.contains(&it.number);
    let mut computed = Vec::new();
    let mut inputs = BTreeSet::new();
    for column in table.columns.iter().filter(|it| it.is_virtual && is_asked(it)) {
        let expression = generation_expression(oid, column_ref(position, column.number));
        let expression = expression.ok_or_else(|| Refusal::without_rule("a virtual column"))?;
        inputs.extend(expression.free_columns().into_iter().map(|it| it.attribute));
        computed.push((column, expression));
    }
    let is_read = |it: &Attribute| is_asked(it) || inputs.contains(&it.number) || is_key(it.number);
    let read: Vec<_> = table.columns.iter().filter(|it| !it.is_virtual && is_read(it)).collect();
    let is_hidden = |it: &&&Attribute| HIDDEN_COLUMNS.contains(&it.name.as_str());
    if let Some(hidden) = read.iter().find(is_hidden).filter(|_| table.is_stream_table) {
        let words = format!("the hidden column {} of {}", hidden.name, table.sql);
        return Err(Refusal::differential(words));
    }
    let place_of = |number: i16| read.iter().position(|it| it.number == number);
    let places: Places = read
        .iter()
        .enumerate()
        .map(|(at, column)| (column_ref(position, column.number), at))
        .collect();
    let columns: Vec<Column> = read
        .iter()
        .map(|it| Column {
            name: it.name.clone(),
            ty: types::describe(it.ty, it.typmod, it.collation),
            nullable: !it.not_null || inherits,
            scale: types::is_numeric(it.ty).then(|| types::numeric_scale(it.typmod)).flatten(),
        })
        .collect();
    let policy = match policy {
        None => None,
        Some(policy) if sub_link::is_in(policy) => {
            if !is_evaluated {
                let words = format!("row-level security with a sub-query on {}", table.sql);
                return Err(Refusal::without_rule(words));
            }
            // Nobody prints it, but another policy is another plan.
            Some(Scalar::opaque_condition(format!("policy {:016x}", policy.digest())))
        }
        Some(policy) => {
            check_expression(policy)?;
            let place_of = |it: &ColumnRef| Some((*it, place_of(it.attribute)?));
            let places: Places = of_policy.iter().filter_map(place_of).collect();
            Some(scalar(place(policy, &places)?, &columns))
        }
    };
    let scan = Scan {
        source: Source::Table { oid: oid.to_u32(), sql: table.sql.clone() },
        columns,
        attributes: read.iter().map(|it| it.number.cast_unsigned().into()).collect(),
        key: key.as_ref().and_then(|key| key.iter().map(|it| place_of(*it)).collect()),
        version: Version::New,
        policy,
    };
    note_table(lowering, oid, &table, read.iter().map(|it| (it.number, it.name.clone())));
    let is_part = table.has_children && !children;
    if is_part {
        lowering.parts.insert(oid.to_u32());
    }
    let plan = if is_part { without_children(scan) } else { Plan::Scan(scan) };
    let from = From::new(plan, places);
    let row_type = is_whole.then(|| types::row_type(oid));
    let from = if computed.is_empty() && !is_whole {
        from
    } else {
        with_computed(from, &table, position, &computed, row_type)?
    };
    let is_shown = |it: i16| is_whole || asked.contains(&it) || is_key(it);
    // What is not shown would be stored.
    let hides = lowering.is_hidden || !read.iter().all(|it| is_shown(it.number));
    if is_part && hides && !is_evaluated {
        return Err(Refusal::without_rule(ONLY));
    }
    Ok(with_shown(from, is_shown))
}

/// Without columns that are not shown.
fn with_shown(from: From, is_shown: impl Fn(i16) -> bool) -> From {
    let From { plan, mut places, .. } = from;
    let all = places.len();
    places.retain(|it, _| is_shown(it.attribute));
    if places.len() == all {
        return From::new(plan, places);
    }
    let shown: BTreeSet<usize> = places.values().copied().collect();
    let plan = match plan {
        Plan::Project { input, columns } => {
            let columns = columns.into_iter().enumerate().filter(|it| shown.contains(&it.0));
            Plan::Project { input, columns: columns.map(|it| it.1).collect() }
        }
        plan => plan.columns(shown.iter().copied()),
    };
    for position in places.values_mut() {
        *position = shown.range(..*position).count();
    }
    From::new(plan, places)
}

const ONLY: &str = "ONLY of a table with children";

/// The rows of a table itself. What is captured does not tell them from those of its children.
fn without_children(scan: Scan) -> Plan {
    let Source::Table { sql, .. } = &scan.source else { return Plan::Scan(scan) };
    let columns: Vec<String> = scan.columns.iter().map(|it| quote(&it.name)).collect();
    Plan::Opaque {
        sql: format!("SELECT {} FROM ONLY {sql}", columns.join(", ")),
        schema: scan.columns.clone(),
        reason: ONLY.to_owned(),
        reads: vec![Plan::Scan(scan)],
    }
}

/// Adds columns that are computed from those of a row, and the row itself as a value of `row_type`.
fn with_computed(
    from: From,
    table: &Table,
    position: usize,
    computed: &[(&Attribute, Node<'_>)],
    row_type: Option<Oid>,
) -> Result<From, Refusal> {
    let From { plan, mut places, .. } = from;
    let schema = plan.schema();
    let column = |(at, it): (usize, &Column)| (Scalar::column(at, it), it.name.clone());
    let mut columns: Vec<_> = schema.iter().enumerate().map(column).collect();
    for (column, expression) in computed {
        let value = scalar(place(*expression, &places)?, &schema);
        let ty = types::describe(column.ty, column.typmod, column.collation);
        places.insert(column_ref(position, column.number), columns.len());
        columns.push((Scalar { ty, ..value }, column.name.clone()));
    }
    if let Some(row_type) = row_type {
        let ty = types::describe(row_type, -1, types::NO_COLLATION);
        let mut segments = Vec::new();
        for column in &table.columns {
            let between = if segments.is_empty() { "ROW((" } else { "), (" };
            segments.push(Segment::Text(between.to_owned()));
            let value = &columns[places[&column_ref(position, column.number)]].0;
            segments.extend(value.segments.iter().cloned());
        }
        let start = if segments.is_empty() { "ROW(" } else { ")" };
        segments.push(Segment::Text(format!("{start})::{}", ty.sql)));
        places.insert(column_ref(position, 0), columns.len());
        let row = Scalar { segments, ty, nullable: false, scale: None };
        columns.push((row, "row".to_owned()));
    }
    Ok(From::new(Plan::Project { input: Box::new(plan), columns }, places))
}

fn check_table(entry: Entry<'_>, table: &Table, oid: Oid) -> Result<(), Refusal> {
    let obstacles = [
        (entry.is_sampled(), "TABLESAMPLE of"),
        (types::is_builtin(oid), "the system catalog"),
        // Most of what is written to them fires no triggers.
        (member::is_own(oid), "pg_stream's own table"),
        (table.is_temporary, "the temporary table"),
        (table.is_unlogged, "the unlogged table"),
        (table.has_foreign_child, "a foreign table below"),
    ];
    match obstacles.iter().find(|(found, _)| *found) {
        Some((_, words)) => Err(Refusal::differential(format!("{words} {}", table.sql))),
        None => Ok(()),
    }
}

fn note_table(
    lowering: &mut Lowering,
    oid: Oid,
    table: &Table,
    read: impl Iterator<Item = (i16, String)>,
) {
    let known = lowering.tables.entry(oid.to_u32()).or_insert_with(|| Relation {
        oid,
        name: table.sql.clone(),
        kind: RelationKind::Table,
        columns: Vec::new(),
        is_temporary: false,
    });
    for column in read {
        if !known.columns.contains(&column) {
            known.columns.push(column);
        }
    }
    known.columns.sort_unstable();
}
