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

use super::expression::place;
use super::from::From;
use super::refusal::{Refusal, check_expression, check_rows, column_words};
use crate::pg::node::{ColumnRef, EntryKind, Kind, Node, Query, Step};
use crate::pg::{deparse, item, query as analysis, types};

/// An item of FROM that reads no table.
pub struct Lateral<'a> {
    /// `SELECT FROM <entry>`, with references to columns of the query around it one level up.
    query: Query<'a>,
    /// Columns of the query around it, and of those around that, with a reference to each.
    pub reads: Vec<(ColumnRef, Node<'a>)>,
    /// Whether it is the right side of a LEFT JOIN.
    outer: bool,
}

/// Such items by their place in the range table.
pub type Laterals<'a> = BTreeMap<usize, Lateral<'a>>;

/// Whether a LEFT JOIN with entry `position` on its right and this condition is such an item.
pub fn is_outer(query: Query<'_>, position: usize, condition: Option<Node<'_>>) -> bool {
    let item = item::of_entry(query, position);
    item.is_some_and(|it| !reads_tables(it)) && condition.is_none_or(|it| !has_query(it))
}

/// The item that entry `position` is, if it is one rather than rows by themselves. `outer` is ON, if
/// it is the right side of a LEFT JOIN.
pub fn of<'a>(
    query: Query<'a>,
    position: usize,
    outer: Option<Option<Node<'a>>>,
) -> Result<Option<Lateral<'a>>, Refusal> {
    let is_function = match query.entry(position).map(|it| it.kind()) {
        Some(EntryKind::Function | EntryKind::TableFunction) => true,
        Some(EntryKind::SubQuery(inner)) if outer.is_some() || !analysis::is_closed(inner) => false,
        _ => return Ok(None),
    };
    let Some(mut item) = item::of_entry(query, position) else { return Ok(None) };
    if let Some(condition) = outer.flatten() {
        check_expression(condition)?;
        item = item::with_condition(item, position, condition);
    }
    if reads_tables(item) {
        // A sub-query over tables has rules of its own.
        let words = "a sub-query in the arguments of a function in FROM";
        return if is_function { Err(Refusal::without_rule(words)) } else { Ok(None) };
    }
    check_rows(item)?;
    let reads = item.node().free_column_nodes();
    for (column, node) in &reads {
        if let Some(words) = column_words(*column) {
            return Err(Refusal::without_rule(words).at(node.location()));
        }
    }
    Ok(Some(Lateral { query: item, reads, outer: outer.is_some() }))
}

fn has_query(expression: Node<'_>) -> bool {
    let mut found = false;
    expression.visit(&mut |node| {
        found |= matches!(node.kind(), Kind::Query(_));
        Step::Into
    });
    found
}

/// Whether a table is named in it, or a WITH item of a query around it.
fn reads_tables(item: Query<'_>) -> bool {
    let mut found = false;
    item.node().visit_levels(&mut |node, levels| {
        if let Kind::Query(query) = node.kind() {
            found |= query.entries().into_iter().any(|entry| match entry.kind() {
                EntryKind::Relation { .. } => true,
                EntryKind::CommonTable { levels_up, .. } => levels_up > levels,
                _ => false,
            });
        }
        Step::Into
    });
    found
}

/// Each row of `from` with each row of the item, which is entry `position`, with these of its
/// columns.
pub fn lower<'a>(
    from: From,
    item: &Lateral<'a>,
    position: usize,
    (query, used): (Query<'a>, &BTreeMap<i16, Node<'a>>),
) -> Result<From, Refusal> {
    let From { plan, mut places, narrower } = from;
    let width = plan.schema().len();
    let mut columns = Vec::new();
    for (index, (attribute, node)) in used.iter().enumerate() {
        let column = ColumnRef { entry: position, attribute: *attribute, levels_up: 0 };
        if *attribute <= 0 {
            let words = "a whole row of a function in FROM";
            return Err(Refusal::without_rule(words).at(node.location()));
        }
        let name = query.entry(position).and_then(|it| it.column_name(*attribute));
        columns.push(column_of(*node, name.unwrap_or_default()));
        places.insert(column, width + index);
    }
    let outputs: Vec<Node<'a>> = used.values().copied().collect();
    let select = item::with_outputs(item.query, &outputs);
    let placed = place(select.node(), &places)?;
    let Kind::Query(select) = placed.kind() else { return Err(Refusal::without_rule("LATERAL")) };
    let plan = expand(plan, &deparse::query(select), columns, item.outer);
    Ok(From { plan, places, narrower })
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

/// The rows of `input` with those of the set-returning ones among expressions over inputs, in
/// lockstep, and where each of these is.
pub fn lower_sets(
    input: Plan,
    expressions: &[(Node<'_>, String)],
) -> (Plan, BTreeMap<usize, usize>) {
    let is_set = |it: &usize| expressions[*it].0.returns_set();
    let sets: Vec<usize> = (0..expressions.len()).filter(is_set).collect();
    if sets.is_empty() {
        return (input, BTreeMap::new());
    }
    let width = input.schema().len();
    let texts: Vec<String> =
        sets.iter().map(|it| deparse::expression(expressions[*it].0)).collect();
    let column = |it: &usize| column_of(expressions[*it].0, expressions[*it].1.clone());
    let columns = sets.iter().map(column).collect();
    let plan = expand(input, &format!("SELECT {}", texts.join(", ")), columns, false);
    (plan, sets.iter().enumerate().map(|(index, it)| (*it, width + index)).collect())
}
