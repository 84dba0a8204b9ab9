//! Random expressions without sub-queries.

use super::{random::Random, value::Type};

/// A column as an expression can name it.
#[derive(Clone, Debug)]
pub struct Column {
    pub sql: String,
    pub kind: Type,
}

/// The columns that an expression can name.
#[derive(Clone, Debug, Default)]
pub struct Scope(pub Vec<Column>);

impl Scope {
    pub fn of(&self, kind: Type, random: &mut Random) -> Option<String> {
        let fitting: Vec<_> = self.0.iter().filter(|column| column.kind == kind).collect();
        (!fitting.is_empty()).then(|| random.pick(&fitting).sql.clone())
    }

    /// Something of the type that can be made of a column of another type.
    fn part(&self, kind: Type, random: &mut Random) -> Option<String> {
        let parts = self.0.iter().flat_map(|column| {
            kind.parts_of(column.kind).into_iter().map(|part| part.replace("{}", &column.sql))
        });
        let parts: Vec<_> = parts.collect();
        (!parts.is_empty()).then(|| random.pick(&parts).clone())
    }

    pub fn any(&self, random: &mut Random) -> Column {
        random.pick(&self.0).clone()
    }

    pub fn and(&self, other: &Self) -> Self {
        Self([self.0.clone(), other.0.clone()].concat())
    }
}

/// An expression of the type over the scope.
pub fn expression(scope: &Scope, kind: Type, depth: usize, random: &mut Random) -> String {
    let leaf = |random: &mut Random| match scope.of(kind, random) {
        Some(column) if random.chance(80) => column,
        _ if random.chance(40)
            && let Some(part) = scope.part(kind, random) =>
        {
            part
        }
        _ if random.chance(5) && !kind.is_never_null() => format!("NULL::{}", kind.sql()),
        _ => kind.literal(random),
    };
    if depth == 0 || random.chance(35) {
        return leaf(random);
    }
    let inner = |random: &mut Random| expression(scope, kind, depth - 1, random);
    match random.below(4) {
        0 => {
            let (a, b) = (inner(random), inner(random));
            format!("coalesce({a}, {b})")
        }
        1 => {
            let condition = bool_expression(scope, depth - 1, random);
            let (a, b) = (inner(random), inner(random));
            format!("CASE WHEN {condition} THEN {a} ELSE {b} END")
        }
        _ => operation(kind, inner, random),
    }
}

/// An operation within one type, if there is a harmless one.
fn operation(kind: Type, inner: impl Fn(&mut Random) -> String, random: &mut Random) -> String {
    let a = inner(random);
    match kind {
        Type::Int => match random.below(4) {
            0 => format!("({a} + {})", inner(random)),
            1 => format!("abs({a})"),
            2 => format!("({a} % 3)"),
            _ => format!("(- {a})"),
        },
        Type::BigInt => match random.below(3) {
            0 => format!("({a} + {})", inner(random)),
            1 => format!("({a} % 5)"),
            _ => format!("nullif({a}, {})", inner(random)),
        },
        Type::Numeric => match random.below(3) {
            0 => format!("({a} + {})", inner(random)),
            1 => format!("({a} * 2)"),
            _ => format!("abs({a})"),
        },
        Type::Float => match random.below(3) {
            0 => format!("({a} + {})", inner(random)),
            1 => format!("({a} * 0.5)"),
            _ => format!("greatest({a}, {})", inner(random)),
        },
        Type::Text => match random.below(4) {
            0 => format!("({a} || {})", inner(random)),
            1 => format!("upper({a})"),
            2 => format!("left({a}, 2)"),
            _ => format!("nullif({a}, {})", inner(random)),
        },
        Type::Date => format!("({a} + 1)"),
        Type::Timestamp => format!("({a} + '1 hour'::interval)"),
        Type::Bool => format!("(NOT {a})"),
        Type::Jsonb => format!("({a} -> 'a')"),
        Type::Fixed | Type::Varchar | Type::Char | Type::Uuid | Type::Of(_) => a,
    }
}

/// A condition over the scope.
pub fn bool_expression(scope: &Scope, depth: usize, random: &mut Random) -> String {
    if depth > 0 && random.chance(25) {
        let (a, b) =
            (bool_expression(scope, depth - 1, random), bool_expression(scope, depth - 1, random));
        return match random.below(3) {
            0 => format!("({a} AND {b})"),
            1 => format!("({a} OR {b})"),
            _ => format!("(NOT {a})"),
        };
    }
    if scope.0.is_empty() {
        return "true".to_owned();
    }
    let column = scope.any(random);
    let (x, kind) = (column.sql, column.kind);
    let other = if random.chance(30) {
        expression(scope, kind, depth.min(1), random)
    } else {
        kind.literal(random)
    };
    if !kind.has_equality() {
        return format!("({x} IS {}NULL)", random.pick(&["", "NOT "]));
    }
    match random.below(9) {
        0 => format!("({x} IS NULL)"),
        1 => format!("({x} IS NOT NULL)"),
        2 => format!("({x} IS DISTINCT FROM {other})"),
        3 => format!("({x} IN ({other}, {}))", kind.literal(random)),
        4 if kind.has_order() && kind != Type::Bool => {
            format!("({x} BETWEEN {} AND {other})", kind.literal(random))
        }
        5 if kind == Type::Text => format!("({x} LIKE 'a%')"),
        5 if kind == Type::Bool => format!("({x} IS NOT TRUE)"),
        6 => format!("({x} <> {other})"),
        7 if kind.has_order() => format!("({x} > {other})"),
        8 if kind.has_order() => format!("({x} <= {other})"),
        _ => format!("({x} = {other})"),
    }
}
