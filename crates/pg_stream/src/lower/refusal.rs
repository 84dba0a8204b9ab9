//! What is refused, in which words.

use std::ffi::CString;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::inventory::{Inventory, RelationKind};
use super::{HIDDEN_COLUMNS, limit, select};
use crate::pg::deparse::quote;
use crate::pg::node::{ColumnRef, EntryKind, Kind, Node, Query, Step};
use crate::pg::portable::compares_rows;
use crate::pg::query::PositionKeeper;
use crate::pg::types;

/// A construct that cannot be part of a stream table's query.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What it is, in the words of the manual.
    pub construct: String,
    /// The whole sentence.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Whether the query around it can still be kept up to date by evaluating it as a whole.
    pub is_evaluable: bool,
    /// The byte offset in `text`.
    pub location: Option<i32>,
    /// The user's query.
    pub text: Option<String>,
}

impl Refusal {
    /// Refused in every mode, because of `reason`.
    pub fn always(construct: impl Into<String>, reason: &str) -> Self {
        let construct = construct.into();
        let message = format!("{construct} is not supported in a stream table: {reason}");
        Self { construct, message, hint: None, is_evaluable: false, location: None, text: None }
    }

    /// Refused in DIFFERENTIAL mode, whatever is around it.
    pub fn differential(construct: impl Into<String>) -> Self {
        let construct = construct.into();
        let message = format!("{construct} is not supported in DIFFERENTIAL mode");
        let hint = Some("Rewrite the query without it, or use refresh_mode => 'FULL'.".to_owned());
        Self { construct, message, hint, is_evaluable: false, location: None, text: None }
    }

    /// There is no rule for the change of it: the query around it is evaluated as a whole.
    pub fn without_rule(construct: impl Into<String>) -> Self {
        Self { is_evaluable: true, ..Self::differential(construct) }
    }

    #[must_use]
    pub fn hint(mut self, hint: &str) -> Self {
        self.hint = Some(hint.to_owned());
        self
    }

    #[must_use]
    pub fn at(mut self, location: Option<i32>) -> Self {
        self.location = self.location.or(location);
        self
    }

    #[must_use]
    pub fn in_text(mut self, text: &str) -> Self {
        self.text = Some(text.to_owned());
        self
    }
}

/// As PostgreSQL reports it. The error points at the place in the text, where that is known.
impl From<Refusal> for ErrorReport {
    fn from(refusal: Refusal) -> Self {
        if let (Some(location), Some(text)) = (refusal.location, &refusal.text)
            && let (Ok(offset), Ok(text)) = (usize::try_from(location), CString::new(text.as_str()))
        {
            PositionKeeper::point_at(&text, offset);
        }
        let code = PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED;
        let report = Self::new(code, refusal.message, "lower");
        match refusal.hint {
            Some(hint) => report.set_hint(hint),
            None => report,
        }
    }
}

/// Refuses what no mode can take. `query` is as the user wrote it, `rewritten` with its views
/// expanded.
pub fn check_both_modes(
    query: Query<'_>,
    rewritten: Query<'_>,
    inventory: &Inventory,
) -> Result<(), Refusal> {
    if !query.is_plain_select() {
        let reason = "the defining query must be a single SELECT that changes nothing";
        return Err(Refusal::always("a data-modifying statement in WITH", reason));
    }
    let full = "it holds the full result set";
    for (clause, words) in [(query.limit(), "LIMIT"), (query.offset(), "OFFSET")] {
        if let Some(clause) = clause.filter(|it| !limit::takes_all(*it, words)) {
            let hint = "Apply it in the queries that read the stream table.";
            return Err(Refusal::always(words, full).hint(hint).at(clause.location()));
        }
    }
    let is_hidden = |it: &String| HIDDEN_COLUMNS.contains(&it.as_str());
    if let Some(name) = select::output_names(query).into_iter().find(is_hidden) {
        let reason = "the stream table has a column of that name of its own";
        let refusal = Refusal::always(format!("an output column named {name}"), reason);
        return Err(refusal.hint("Give it another name with AS."));
    }
    for target in query.targets().into_iter().filter(|it| !it.junk) {
        if let Some(row) = anonymous_whole_row(query, target.expression) {
            let construct = "a row of a stream table or of a sub-query as an output column";
            let reason = "no table can have a column of its type, which has no name";
            let hint = format!("Select its columns, {row}.*, or convert it: to_jsonb({row}).");
            let location = target.expression.location();
            return Err(Refusal::always(construct, reason).hint(&hint).at(location));
        }
    }
    if let Some(construct) = changed_by_printing(query) {
        let reason = "PostgreSQL cannot print such a query so that it keeps its meaning";
        return Err(Refusal::always(construct, reason));
    }
    if let Some(words) = compares_rows(rewritten) {
        let reason = "PostgreSQL cannot print it so that it keeps its operators";
        return Err(Refusal::always(format!("a comparison of rows {words}"), reason));
    }
    if has_row_locks(rewritten) {
        let reason = "row-level locking has no meaning for a stored result";
        return Err(Refusal::always("FOR UPDATE or FOR SHARE", reason));
    }
    if inventory.is_sampled {
        let reason = "a random sample cannot be kept up to date";
        return Err(Refusal::always("TABLESAMPLE", reason));
    }
    if let Some(relation) = inventory.relations.iter().find(|it| it.is_temporary) {
        let construct = format!("temporary table {}", relation.name);
        return Err(Refusal::always(construct, "it is visible to one session only"));
    }
    if !inventory.relations.iter().any(|it| it.kind != RelationKind::View) {
        return Err(Refusal::always("a query without a table", "its result could never change"));
    }
    Ok(())
}

/// What the query calls the item of FROM of which the expression is a whole row without a type's name.
fn anonymous_whole_row(query: Query<'_>, expression: Node<'_>) -> Option<String> {
    match expression.kind() {
        Kind::Column(ColumnRef { attribute: 0, entry, .. })
            if types::is_record(expression.type_oid()) =>
        {
            Some(quote(&query.entry(entry)?.name()))
        }
        _ => None,
    }
}

/// What makes the text that PostgreSQL prints for a query mean something else.
fn changed_by_printing(query: Query<'_>) -> Option<&'static str> {
    if has_equal_keys(query) {
        return Some("an expression that is twice among grouping sets");
    }
    if has_equal_names(query, &[]) {
        return Some("a row as a whole that has two columns of one name");
    }
    check_rows(query)
        .is_err()
        .then_some("a row of a join as a whole beside aggregates, or by the name of its USING")
}

/// Whether a row is used as a whole whose columns do not have names of their own: printed, they get some.
fn has_equal_names(query: Query<'_>, outer: &[Query<'_>]) -> bool {
    let queries = [outer, &[query]].concat();
    let (mut is_inside, mut found) = (false, false);
    query.node().visit(&mut |node| {
        match node.kind() {
            Kind::Query(inner) if is_inside => {
                found |= has_equal_names(inner, &queries);
                return Step::Over;
            }
            Kind::Query(_) => is_inside = true,
            Kind::Column(ColumnRef { attribute: 0, entry, levels_up })
                if types::is_record(node.type_oid()) =>
            {
                let level = usize::try_from(levels_up).expect("a count");
                let holder = queries.iter().rev().nth(level);
                let names = holder.and_then(|it| it.entry(entry)).map(|it| it.column_names());
                let names = names.unwrap_or_default();
                found |= (1..names.len()).any(|at| names[..at].contains(&names[at]));
            }
            _ => {}
        }
        Step::Into
    });
    found
}

fn has_row_locks(query: Query<'_>) -> bool {
    let mut found = false;
    query.node().visit(&mut |node| {
        if let Kind::Query(query) = node.kind() {
            found |= query.has_row_locks();
        }
        Step::Into
    });
    found
}

/// Whether two columns of grouping sets somewhere in the query are the same expression. The text
/// that PostgreSQL prints for it does not tell the two apart.
pub fn has_equal_keys(query: Query<'_>) -> bool {
    let mut found = false;
    query.node().visit(&mut |node| {
        if let Kind::Query(query) = node.kind()
            && query.has_grouping_sets()
        {
            let keys = query.entries().into_iter().find_map(|it| match it.kind() {
                EntryKind::Group(keys) => Some(keys),
                _ => None,
            });
            let keys = keys.unwrap_or_default();
            found |= (1..keys.len()).any(|at| keys[..at].iter().any(|it| it.equals(keys[at])));
        }
        Step::Into
    });
    found
}

/// Refuses what DIFFERENTIAL mode cannot take wherever it stands.
pub fn check_differential(inventory: &Inventory) -> Result<(), Refusal> {
    for relation in &inventory.relations {
        let words = match relation.kind {
            RelationKind::MaterializedView => "materialized view",
            RelationKind::ForeignTable => "foreign table",
            RelationKind::Other => "relation",
            RelationKind::Table | RelationKind::View => continue,
        };
        let hint = "Its changes cannot be captured. Use refresh_mode => 'FULL'.";
        return Err(Refusal::differential(format!("{words} {}", relation.name)).hint(hint));
    }
    if let Some((name, location)) = &inventory.unstable_column {
        let construct = format!("the system column {name}");
        let hint = "It can change although nothing else in its row does. Use refresh_mode => 'FULL', \
                    where a column of the stream table needs another name (AS).";
        return Err(Refusal::differential(construct).hint(hint).at(*location));
    }
    if let Some((name, location)) = &inventory.volatile {
        let construct = format!("volatile function {name}");
        let hint = "Its result differs from call to call. Use refresh_mode => 'FULL'.";
        return Err(Refusal::differential(construct).hint(hint).at(*location));
    }
    Ok(())
}

/// Refuses clauses of one query.
pub fn check_clauses(query: Query<'_>) -> Result<(), Refusal> {
    let clauses = [(query.has_row_locks(), "FOR UPDATE or FOR SHARE")];
    match clauses.iter().find(|(found, _)| *found) {
        Some((_, words)) => Err(Refusal::without_rule(*words)),
        None => Ok(()),
    }
}

/// Printed as ROW(…) it would lose the names of its fields.
const NAMED_ROW: &str = "an anonymous row with names of its own";

/// Refuses rows, anywhere in a query, that a text cannot make.
pub fn check_rows(query: Query<'_>) -> Result<(), Refusal> {
    let mut refusal = None;
    query.node().visit(&mut |node| {
        if matches!(node.kind(), Kind::Row { is_named: true }) {
            refusal.get_or_insert_with(|| Refusal::without_rule(NAMED_ROW).at(node.location()));
        }
        Step::Into
    });
    refusal.map_or(Ok(()), Err)
}

/// Refuses what lowering cannot carry inside an expression.
pub fn check_expression(expression: Node<'_>) -> Result<(), Refusal> {
    let mut refusal = None;
    expression.visit(&mut |node| {
        let found = match node.kind() {
            Kind::Column(column) => column_words(column),
            Kind::Aggregate(call) if call.levels_up() > 0 => Some("an aggregate of an outer query"),
            Kind::Field(row)
                if matches!(row.kind(), Kind::Column(_)) && types::is_record(row.type_oid()) =>
            {
                Some("a field of an anonymous row")
            }
            Kind::Row { is_named: true } => Some(NAMED_ROW),
            _ => None,
        };
        if matches!(node.kind(), Kind::SubLink(_)) {
            return Step::Over;
        }
        let found = found.or_else(|| {
            let can_fail = |it: &Node<'_>| has_failing_sub_query(*it);
            let words = "a sub-query that can fail in an expression that may leave it out";
            skipped(node).iter().any(can_fail).then_some(words)
        });
        if let Some(words) = found {
            refusal.get_or_insert_with(|| Refusal::without_rule(words).at(node.location()));
            return Step::Over;
        }
        Step::Into
    });
    refusal.map_or(Ok(()), Err)
}

/// What PostgreSQL does not evaluate where something before it decides. A sub-query in it becomes a column
/// that is evaluated for all rows.
fn skipped(node: Node<'_>) -> Vec<Node<'_>> {
    match node.kind() {
        Kind::Case(_) => vec![node],
        Kind::Coalesce(arguments) | Kind::Boolean { arguments, .. } => {
            arguments.into_iter().skip(1).collect()
        }
        _ => Vec::new(),
    }
}

/// Whether a function fails for some arguments that are no mistakes: division, roots, logarithms, powers,
/// what reads texts, and all that PostgreSQL did not bring.
fn is_failing(function: types::Oid) -> bool {
    const PARTS: [&str; 2] = ["sqrt", "pow"];
    const WHOLE: [&str; 7] =
        ["ln", "log", "log10", "to_number", "to_date", "to_timestamp", "boolin"];
    const READ: [&str; 6] = ["_in", "int2in", "int4in", "int8in", "float4in", "float8in"];
    let Some(name) = types::builtin_function(function) else { return true };
    divides(&name)
        || PARTS.iter().any(|it| name.contains(it))
        || WHOLE.contains(&name.as_str())
        || READ.iter().any(|it| name.ends_with(it))
}

fn has_failing_sub_query(expression: Node<'_>) -> bool {
    let mut found = false;
    expression.visit(&mut |node| {
        if matches!(node.kind(), Kind::SubLink(_)) {
            found |= can_fail(node);
            return Step::Over;
        }
        Step::Into
    });
    found
}

/// Whether something in a sub-query, other than an aggregate that PostgreSQL brought, is a failing function. A
/// division by a constant other than zero is none.
fn can_fail(sub_query: Node<'_>) -> bool {
    let mut found = false;
    sub_query.visit(&mut |node| {
        let is_harmless = match node.kind() {
            Kind::Call { function, arguments } => is_safe_division(function, &arguments),
            Kind::Aggregate(call) => types::is_builtin(call.function()),
            _ => false,
        };
        found |= !is_harmless && node.functions().into_iter().any(is_failing);
        Step::Into
    });
    found
}

/// Of the name of a function that PostgreSQL brought.
fn divides(name: &str) -> bool {
    name.contains("div") || name.contains("mod")
}

fn is_safe_division(function: types::Oid, arguments: &[Node<'_>]) -> bool {
    let divisor = arguments.get(1).and_then(|it| it.constant_text()?.parse().ok());
    types::builtin_function(function).is_some_and(|name| divides(&name))
        && divisor.is_some_and(|it: f64| it != 0.0)
}

/// A column that the rows at hand do not have.
pub fn without_place(column: ColumnRef) -> Refusal {
    let correlated = (column.levels_up > 0).then_some("a correlated reference");
    Refusal::without_rule(column_words(column).or(correlated).unwrap_or("this reference"))
}

/// Why a column cannot be read, if it cannot. [`check_differential`] has refused the other system columns.
pub fn column_words(column: ColumnRef) -> Option<&'static str> {
    (column.attribute < 0).then_some("the system column tableoid")
}
