//! LATERAL without tables: functions, JSON_TABLE and XMLTABLE in FROM, sub-queries that read nothing
//! but columns of items before them, and set-returning functions in the select list.
//!
//! Each is one [`Plan::Expand`], whose item PostgreSQL's deparser writes: `SELECT … FROM <the entry>`,
//! or a SELECT without FROM of the set-returning expressions. So several of them in a select list run
//! in lockstep and are padded with NULLs as PostgreSQL does it. `LEFT JOIN LATERAL … ON condition` has
//! the condition inside the item.
//!
//! The rule is linear, Δ(A × f) = ΔA × f, as `f` depends on nothing but the row; its cost follows the
//! change.

use std::collections::BTreeMap;

use pgstream_ivm::lex;
use pgstream_ivm::plan::{Column, Plan};
use pgstream_ivm::scalar::Scalar;

use super::expression::Places;
use super::from::{From, VirtualColumns};
use super::refusal::{Refusal, check_expression, column_words};
use crate::pg::node::{ColumnRef, EntryKind, Kind, Node, Query, Step};
use crate::pg::{deparse, item, query as analysis, types};

/// An item of FROM.
pub struct Item<'a> {
    /// `SELECT FROM <entry>`, with references to columns of the query around it one level up.
    query: Query<'a>,
    /// Those columns, with a reference to each.
    pub reads: Vec<(ColumnRef, Node<'a>)>,
    /// Whether it is the right side of a LEFT JOIN.
    outer: bool,
}

/// The right sides of LEFT JOIN that are items, with their conditions.
pub type OuterItems<'a> = BTreeMap<usize, Option<Node<'a>>>;

/// Whether a LEFT JOIN with entry `position` on its right and this condition is an item.
pub fn is_outer_item(query: Query<'_>, position: usize, condition: Option<Node<'_>>) -> bool {
    let item = item::of_entry(query, position, &|it| it);
    item.is_some_and(|it| reads(it).is_ok()) && condition.is_none_or(|it| !has_query(it))
}

/// The item that entry `position` is, if it is one rather than rows by themselves.
pub fn item<'a>(
    query: Query<'a>,
    position: usize,
    outer: &OuterItems<'a>,
    columns: &VirtualColumns,
) -> Result<Option<Item<'a>>, Refusal> {
    let condition = outer.get(&position);
    let is_function = match query.entry(position).map(|it| it.kind()) {
        Some(EntryKind::Function | EntryKind::TableFunction) => true,
        Some(EntryKind::SubQuery(inner)) if condition.is_some() || !analysis::is_closed(inner) => {
            false
        }
        _ => return Ok(None),
    };
    let expanded = |it| columns.expanded(it);
    let Some(mut item) = item::of_entry(query, position, &expanded) else { return Ok(None) };
    if let Some(condition) = condition.copied().flatten() {
        check_expression(condition)?;
        item = item::with_condition(item, position, columns.expanded(condition));
    }
    let reads = match reads(item) {
        Ok(reads) => reads,
        // A sub-query over tables has rules of its own.
        Err(_) if !is_function => return Ok(None),
        Err(refusal) => return Err(refusal),
    };
    if reads.iter().any(|(column, _)| columns.contains(*column)) {
        return Err(Refusal::without_rule("a virtual generated column in a LATERAL sub-query"));
    }
    Ok(Some(Item { query: item, reads, outer: condition.is_some() }))
}

fn has_query(expression: Node<'_>) -> bool {
    let mut found = false;
    expression.visit(&mut |node| {
        found |= matches!(node.kind(), Kind::Query(_));
        Step::Into
    });
    found
}

/// The columns of the query around `item` that it reads, unless it reads anything else.
fn reads<'a>(item: Query<'a>) -> Result<Vec<(ColumnRef, Node<'a>)>, Refusal> {
    let mut reads: Vec<(ColumnRef, Node<'a>)> = Vec::new();
    let mut refusal = None;
    item.node().visit_levels(&mut |node, levels| {
        let words = match node.kind() {
            Kind::Query(query) => reads_beyond(query, levels + 1).then_some("LATERAL"),
            Kind::Column(column) if column.levels_up > levels => Some("LATERAL"),
            Kind::Column(column) if column.levels_up == levels => {
                let column = ColumnRef { levels_up: 0, ..column };
                if !reads.iter().any(|it| it.0 == column) {
                    reads.push((column, node));
                }
                column_words(column)
            }
            _ => None,
        };
        if let Some(words) = words {
            refusal.get_or_insert_with(|| Refusal::without_rule(words).at(node.location()));
        }
        Step::Into
    });
    refusal.map_or(Ok(reads), Err)
}

/// Whether a query names a table, or a WITH item of a query that many levels up.
fn reads_beyond(query: Query<'_>, levels: u32) -> bool {
    query.entries().into_iter().any(|entry| match entry.kind() {
        EntryKind::Relation { .. } => true,
        EntryKind::CommonTable { levels_up, .. } => levels_up >= levels,
        _ => false,
    })
}

/// Each row of `from` with each row of the item, which is entry `position`, with these of its
/// columns.
pub fn lower<'a>(
    from: From,
    item: &Item<'a>,
    position: usize,
    (query, used): (Query<'a>, &BTreeMap<i16, Node<'a>>),
) -> Result<From, Refusal> {
    let From { plan, mut places } = from;
    let width = plan.schema().len();
    let mut columns = Vec::new();
    for (index, (attribute, node)) in used.iter().enumerate() {
        let column = ColumnRef { entry: position, attribute: *attribute, levels_up: 0 };
        if let Some(words) = column_words(column) {
            return Err(Refusal::without_rule(words).at(node.location()));
        }
        let name = query.entry(position).and_then(|it| it.column_name(*attribute));
        columns.push(column_of(*node, name.unwrap_or_default()));
        places.insert(column, width + index);
    }
    let outputs: Vec<Node<'a>> = used.values().copied().collect();
    let select = item::with_outputs(item.query, &outputs);
    let mut missing = false;
    let select = item::with_inputs(select, &mut |column| {
        let place = places.get(&column).copied();
        missing |= place.is_none();
        place
    });
    if missing {
        return Err(Refusal::without_rule("this reference"));
    }
    let plan = expand(plan, &deparse::query(select), columns, item.outer);
    Ok(From { plan, places })
}

/// Each row of `input` with the rows of its set-returning expressions, which are over inputs, in
/// lockstep. Their columns follow.
pub fn lower_expressions(input: Plan, expressions: &[(Node<'_>, String)]) -> Plan {
    let texts: Vec<String> =
        expressions.iter().map(|(it, _)| deparse::expression(*it)).collect();
    let columns = expressions.iter().map(|(it, name)| column_of(*it, name.clone())).collect();
    expand(input, &format!("SELECT {}", texts.join(", ")), columns, false)
}

/// A query without tables that refers to nothing outside of it.
pub fn closed(query: Query<'_>, columns: Vec<Column>) -> Plan {
    expand(Plan::Unit, &deparse::query(query), columns, false)
}

fn expand(input: Plan, sql: &str, columns: Vec<Column>, outer: bool) -> Plan {
    let item = Scalar {
        segments: lex::segments(sql),
        ty: types::describe(types::BIGINT, -1, types::NO_COLLATION),
        nullable: true,
        scale: None,
    };
    Plan::Expand { input: Box::new(input), item, columns, outer }
}

fn column_of(node: Node<'_>, name: String) -> Column {
    let ty = types::describe(node.type_oid(), node.typmod(), node.collation());
    Column { name, ty, nullable: true, scale: None }
}

/// The rows of `from` with those of the set-returning expressions among `keys`, and where each of
/// these is.
pub fn lower_keys<'a>(
    from: From,
    keys: &[Node<'a>],
    place: impl Fn(Node<'a>, &Places) -> Result<Node<'a>, Refusal>,
) -> Result<(From, BTreeMap<usize, usize>), Refusal> {
    let sets: Vec<usize> = (0..keys.len()).filter(|it| keys[*it].returns_set()).collect();
    if sets.is_empty() {
        return Ok((from, BTreeMap::new()));
    }
    let From { plan, places } = from;
    let width = plan.schema().len();
    let name = |key: &usize| format!("key{}", key + 1);
    let expression = |key: &usize| Ok((place(keys[*key], &places)?, name(key)));
    let expressions = sets.iter().map(expression).collect::<Result<Vec<_>, Refusal>>()?;
    let plan = lower_expressions(plan, &expressions);
    let found = sets.iter().enumerate().map(|(index, key)| (*key, width + index)).collect();
    Ok((From { plan, places }, found))
}
