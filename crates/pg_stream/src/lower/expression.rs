//! Expressions over a plan's columns, and what is known of their results.

use pgstream_ivm::lex;
use pgstream_ivm::plan::Column;
use pgstream_ivm::scalar::Scalar;

use super::refusal::{self, Refusal};
use crate::pg::deparse;
use crate::pg::node::{ColumnRef, Kind, Node};
use crate::pg::query::check_depth;
use crate::pg::types;

/// Where the columns of the range table stand in a plan's output.
pub type Places = std::collections::HashMap<ColumnRef, usize>;

/// `expression` with its columns replaced by inputs.
pub fn place<'a>(expression: Node<'a>, places: &Places) -> Result<Node<'a>, Refusal> {
    let mut missing = None;
    let placed = expression.with_inputs(&mut |node, column| {
        let column = column?;
        let position = places.get(&column).copied();
        if position.is_none() {
            missing = Some(refusal::without_place(column).at(node.location()));
        }
        position
    });
    missing.map_or(Ok(placed), Err)
}

/// The scalar that an expression over inputs with these columns is.
pub fn scalar(expression: Node<'_>, columns: &[Column]) -> Scalar {
    Scalar {
        segments: lex::segments(&deparse::expression(expression)),
        ty: types::describe(expression.type_oid(), expression.typmod(), expression.collation()),
        nullable: is_nullable(expression, columns),
        scale: scale(expression, columns),
    }
}

/// Built-in functions that give NULL for a NULL only.
const TOTAL: [&str; 47] = [
    "int2pl",
    "int2mi",
    "int2mul",
    "int4pl",
    "int4mi",
    "int4mul",
    "int8pl",
    "int8mi",
    "int8mul",
    "int24pl",
    "int24mi",
    "int24mul",
    "int42pl",
    "int42mi",
    "int42mul",
    "int28pl",
    "int28mi",
    "int28mul",
    "int82pl",
    "int82mi",
    "int82mul",
    "int48pl",
    "int48mi",
    "int48mul",
    "int84pl",
    "int84mi",
    "int84mul",
    "numeric_add",
    "numeric_sub",
    "numeric_mul",
    "numeric_uminus",
    "int4um",
    "int8um",
    "int4eq",
    "int4ne",
    "int4lt",
    "int4le",
    "int4gt",
    "int4ge",
    "int8eq",
    "int8ne",
    "int8lt",
    "int8gt",
    "texteq",
    "textne",
    "numeric_eq",
    "numeric_ne",
];

/// Whether the result can be NULL; `true` when unknown.
fn is_nullable(expression: Node<'_>, columns: &[Column]) -> bool {
    check_depth();
    match expression.kind() {
        Kind::Constant { null } => null,
        Kind::Input(position) => columns.get(position).is_none_or(|it| it.nullable),
        Kind::Relabel(argument) => is_nullable(argument, columns),
        Kind::Test => false,
        Kind::Boolean { arguments, .. } => arguments.iter().any(|it| is_nullable(*it, columns)),
        Kind::Coalesce(arguments) => arguments.iter().all(|it| is_nullable(*it, columns)),
        Kind::Case(results) => {
            results.iter().any(|it| it.is_none_or(|it| is_nullable(it, columns)))
        }
        Kind::Call { function, arguments } => {
            let is_total = types::builtin_function(function).is_some_and(|name| {
                TOTAL.contains(&name.as_str()) || is_number_cast(&name, &arguments)
            });
            !is_total || arguments.iter().any(|it| is_nullable(*it, columns))
        }
        Kind::Aggregate(call) => {
            types::builtin_function(call.function()).is_none_or(|name| name != "count")
        }
        _ => true,
    }
}

fn is_number_cast(name: &str, arguments: &[Node<'_>]) -> bool {
    ["int2", "int4", "int8", "numeric"].contains(&name)
        && arguments.iter().all(|it| types::is_exact_number(it.type_oid()))
}

/// What EXTRACT gives as a number without fraction, of whatever type.
const WHOLE_FIELDS: [&str; 13] = [
    "millennium",
    "century",
    "decade",
    "year",
    "isoyear",
    "quarter",
    "month",
    "week",
    "day",
    "dow",
    "isodow",
    "doy",
    "hour",
];

/// The display scale of a numeric result, where it is the same for every row.
fn scale(expression: Node<'_>, columns: &[Column]) -> Option<u32> {
    if !types::is_numeric(expression.type_oid()) {
        return None;
    }
    check_depth();
    match expression.kind() {
        Kind::Constant { null: false } => {
            let text = expression.constant_text()?;
            let fraction = text.split_once('.').map_or("", |(_, fraction)| fraction);
            u32::try_from(fraction.len()).ok()
        }
        Kind::Input(position) => columns.get(position)?.scale,
        Kind::Relabel(argument) => scale(argument, columns),
        Kind::Coalesce(arguments) => common_scale(arguments.into_iter(), columns),
        Kind::Case(results) => common_scale(results.into_iter().flatten(), columns),
        Kind::Call { function, arguments } => {
            let name = types::builtin_function(function)?;
            match (name.as_str(), arguments.as_slice()) {
                ("numeric_add" | "numeric_sub", [a, b]) => {
                    Some(scale(*a, columns)?.max(scale(*b, columns)?))
                }
                ("numeric_mul", [a, b]) => {
                    Some(scale(*a, columns)? + scale(*b, columns)?).filter(|it| *it <= 1000)
                }
                ("numeric_uminus" | "numeric_uplus" | "numeric_abs" | "abs", [a]) => {
                    scale(*a, columns)
                }
                ("numeric", [a]) if types::is_integer(a.type_oid()) => Some(0),
                ("extract", [field, _]) => {
                    WHOLE_FIELDS.contains(&field.constant_text()?.as_str()).then_some(0)
                }
                ("numeric", [_, typmod]) => types::numeric_scale(typmod.constant_i32()?),
                _ => None,
            }
        }
        Kind::Aggregate(call) => {
            let name = types::builtin_function(call.function())?;
            match (name.as_str(), call.arguments().as_slice()) {
                ("sum", [a]) if types::is_integer(a.type_oid()) => Some(0),
                ("sum" | "min" | "max", [a]) => scale(*a, columns),
                _ => None,
            }
        }
        _ => None,
    }
}

/// The scale of all of them; NULL literals have every scale.
fn common_scale<'a>(results: impl Iterator<Item = Node<'a>>, columns: &[Column]) -> Option<u32> {
    let mut scales = results
        .filter(|it| !matches!(it.kind(), Kind::Constant { null: true }))
        .map(|it| scale(it, columns));
    let first = scales.next()??;
    scales.all(|it| it == Some(first)).then_some(first)
}
