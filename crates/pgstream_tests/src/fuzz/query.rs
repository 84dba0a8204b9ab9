//! Random queries: a small syntax tree whose expressions are texts.
//!
//! Every column reference is qualified by an alias that is unique in the query, so that a part
//! can be taken out, when shrinking, together with all that mentions its alias.

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
    fn of(&self, kind: Type, random: &mut Random) -> Option<String> {
        let fitting: Vec<_> = self.0.iter().filter(|column| column.kind == kind).collect();
        (!fitting.is_empty()).then(|| random.pick(&fitting).sql.clone())
    }

    fn any(&self, random: &mut Random) -> Column {
        random.pick(&self.0).clone()
    }
}

/// Something that FROM can name.
#[derive(Clone, Debug)]
pub struct Source {
    pub name: String,
    pub columns: Vec<(String, Type)>,
    /// Columns of one name have one type in all such sources.
    pub is_table: bool,
}

#[derive(Clone, Debug)]
pub struct Query {
    pub ctes: Vec<(String, Body)>,
    pub body: Body,
}

#[derive(Clone, Debug)]
pub enum Body {
    Select(Select),
    UnionAll(Vec<Select>),
}

#[derive(Clone, Debug, Default)]
pub struct Select {
    pub distinct: bool,
    /// Expression and name.
    pub items: Vec<(String, String)>,
    pub from: Option<From>,
    pub wheres: Vec<String>,
    pub group: Vec<String>,
    pub having: Vec<String>,
}

#[derive(Clone, Debug)]
pub enum From {
    Named { name: String, alias: String },
    Sub { query: Box<Query>, alias: String },
    Join { left: Box<From>, right: Box<From>, on: On },
}

#[derive(Clone, Debug)]
pub enum On {
    Conditions(Vec<String>),
    Cross,
    Using(String),
    Natural,
}

impl std::fmt::Display for Query {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (number, (name, body)) in self.ctes.iter().enumerate() {
            let with = if number == 0 { "WITH" } else { "," };
            write!(f, "{with} {name} AS ({body}) ")?;
        }
        write!(f, "{}", self.body)
    }
}

impl std::fmt::Display for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Select(select) => write!(f, "{select}"),
            Self::UnionAll(branches) => {
                let texts: Vec<_> = branches.iter().map(ToString::to_string).collect();
                write!(f, "{}", texts.join(" UNION ALL "))
            }
        }
    }
}

impl std::fmt::Display for Select {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let items: Vec<_> =
            self.items.iter().map(|(sql, name)| format!("{sql} AS {name}")).collect();
        let distinct = if self.distinct { "DISTINCT " } else { "" };
        write!(f, "SELECT {distinct}{}", items.join(", "))?;
        if let Some(from) = &self.from {
            write!(f, " FROM {from}")?;
        }
        for (keyword, parts, glue) in [
            ("WHERE", &self.wheres, " AND "),
            ("GROUP BY", &self.group, ", "),
            ("HAVING", &self.having, " AND "),
        ] {
            if !parts.is_empty() {
                write!(f, " {keyword} {}", parts.join(glue))?;
            }
        }
        Ok(())
    }
}

impl std::fmt::Display for From {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Named { name, alias } => write!(f, "{name} AS {alias}"),
            Self::Sub { query, alias } => write!(f, "({query}) AS {alias}"),
            Self::Join { left, right, on } => {
                let right = match **right {
                    Self::Join { .. } => format!("({right})"),
                    _ => right.to_string(),
                };
                match on {
                    On::Conditions(parts) if parts.is_empty() => {
                        write!(f, "{left} JOIN {right} ON true")
                    }
                    On::Conditions(parts) => {
                        write!(f, "{left} JOIN {right} ON {}", parts.join(" AND "))
                    }
                    On::Cross => write!(f, "{left} CROSS JOIN {right}"),
                    On::Using(name) => write!(f, "{left} JOIN {right} USING ({name})"),
                    On::Natural => write!(f, "{left} NATURAL JOIN {right}"),
                }
            }
        }
    }
}

/// A random query, and whether it leaves open which of several equal values it returns.
pub struct Generated {
    pub query: Query,
    pub columns: Vec<(String, Type)>,
    pub is_open: bool,
}

pub fn random_query(sources: &[Source], random: &mut Random) -> Generated {
    let mut generator =
        Generator { random, sources: sources.to_vec(), aliases: 0, ctes: 0, is_open: false };
    let depth = generator.random.weighted(&[45, 40, 15]);
    let (query, columns) = generator.query(depth);
    let is_open = generator.is_open;
    Generated { query, columns, is_open }
}

struct Generator<'a> {
    random: &'a mut Random,
    sources: Vec<Source>,
    aliases: usize,
    ctes: usize,
    is_open: bool,
}

type Columns = Vec<(String, Type)>;

impl Generator<'_> {
    fn query(&mut self, depth: usize) -> (Query, Columns) {
        let mut ctes = Vec::new();
        let outer = self.sources.len();
        if depth > 0 && self.random.chance(25) {
            let (body, columns) = self.body(depth - 1);
            self.ctes += 1;
            let name = format!("cte{}", self.ctes);
            // Twice, so that it is found more often, and used twice now and then.
            for _ in 0..self.random.between(1, 3) {
                self.sources.push(Source {
                    name: name.clone(),
                    columns: columns.clone(),
                    is_table: false,
                });
            }
            ctes.push((name, body));
        }
        let (body, columns) = self.body(depth);
        self.sources.truncate(outer);
        (Query { ctes, body }, columns)
    }

    fn body(&mut self, depth: usize) -> (Body, Columns) {
        let (select, columns) = self.select(depth);
        if !self.random.chance(14) {
            return (Body::Select(select), columns);
        }
        let mut branches = vec![select];
        for _ in 0..self.random.between(1, 2) {
            branches.push(self.select_of(&columns, depth));
        }
        (Body::UnionAll(branches), columns)
    }

    fn select(&mut self, depth: usize) -> (Select, Columns) {
        let (from, scope) = self.from(depth);
        let mut select = Select { from: Some(from), ..Select::default() };
        self.add_where(&mut select, &scope);
        let mut columns = Columns::new();
        match self.random.weighted(&[45, 13, 33, 9]) {
            kind @ (0 | 1) => {
                select.distinct = kind == 1;
                for _ in 0..self.random.between(1, 4) {
                    let (sql, kind) = self.item(&scope);
                    self.is_open |= select.distinct && kind.is_open();
                    push_item(&mut select, &mut columns, sql, kind);
                }
            }
            2 => self.grouped(&mut select, &mut columns, &scope),
            _ => self.aggregates(&mut select, &mut columns, &scope),
        }
        (select, columns)
    }

    /// A plain SELECT whose columns have the given types.
    fn select_of(&mut self, columns: &Columns, depth: usize) -> Select {
        let (from, scope) = self.from(depth);
        let mut select = Select { from: Some(from), ..Select::default() };
        self.add_where(&mut select, &scope);
        select.distinct = self.random.chance(15);
        for (name, kind) in columns {
            self.is_open |= select.distinct && kind.is_open();
            select.items.push((expression(&scope, *kind, 1, self.random), name.clone()));
        }
        select
    }

    fn add_where(&mut self, select: &mut Select, scope: &Scope) {
        let many = self.random.weighted(&[50, 35, 15]);
        for _ in 0..many {
            select.wheres.push(bool_expression(scope, 2, self.random));
        }
    }

    fn item(&mut self, scope: &Scope) -> (String, Type) {
        let column = scope.any(self.random);
        if self.random.chance(60) {
            (column.sql, column.kind)
        } else if self.random.chance(20) {
            (bool_expression(scope, 1, self.random), Type::Bool)
        } else {
            (expression(scope, column.kind, 2, self.random), column.kind)
        }
    }

    fn grouped(&mut self, select: &mut Select, columns: &mut Columns, scope: &Scope) {
        for _ in 0..self.random.between(1, 2) {
            let (sql, kind) = self.item(scope);
            self.is_open |= kind.is_open();
            if self.random.chance(85) {
                push_item(select, columns, sql.clone(), kind);
            }
            // A constant in GROUP BY would be an ordinal or an error.
            if !sql.contains('.') || select.group.contains(&sql) {
                continue;
            }
            select.group.push(sql);
        }
        // Items that are not grouped by were constants.
        self.aggregates(select, columns, scope);
    }

    fn aggregates(&mut self, select: &mut Select, columns: &mut Columns, scope: &Scope) {
        let least = usize::from(select.group.is_empty() || select.items.is_empty());
        for _ in 0..self.random.between(least, 3) {
            let (sql, kind) = self.aggregate(scope);
            let (sql, kind) = match kind {
                Type::BigInt if self.random.chance(15) => {
                    (format!("coalesce({sql}, -1) + 1"), kind)
                }
                Type::Numeric if self.random.chance(15) => {
                    (format!("{sql} / nullif(count(*), 0)"), kind)
                }
                Type::Text if self.random.chance(15) => {
                    (format!("coalesce({sql}, 'none') || count(*)"), kind)
                }
                _ => (sql, kind),
            };
            push_item(select, columns, sql, kind);
        }
        if self.random.chance(20) {
            let having = match self.random.below(4) {
                0 => "count(*) > 1".to_owned(),
                1 => "count(*) % 2 = 0".to_owned(),
                2 => {
                    let column = scope.any(self.random);
                    format!("count({}) < 3", column.sql)
                }
                _ => format!("bool_or({})", bool_expression(scope, 1, self.random)),
            };
            select.having.push(having);
        }
    }

    fn aggregate(&mut self, scope: &Scope) -> (String, Type) {
        let column = scope.any(self.random);
        let argument = if self.random.chance(75) {
            column.sql.clone()
        } else {
            expression(scope, column.kind, 1, self.random)
        };
        let (sql, kind) = self.aggregate_of(&argument, column.kind);
        if self.random.chance(15) {
            let condition = bool_expression(scope, 1, self.random);
            (format!("{sql} FILTER (WHERE {condition})"), kind)
        } else {
            (sql, kind)
        }
    }

    fn aggregate_of(&mut self, x: &str, kind: Type) -> (String, Type) {
        let distinct = if self.random.chance(12) { "DISTINCT " } else { "" };
        let choice = self.random.weighted(&[20, 12, 25, 18, 15, 10]);
        match (choice, kind) {
            (0, _) => ("count(*)".to_owned(), Type::BigInt),
            (1, _) => (format!("count({distinct}{x})"), Type::BigInt),
            (2, Type::Int) => (format!("sum({distinct}{x})"), Type::BigInt),
            (2, Type::Float) => (format!("sum({x})"), Type::Float),
            (2, Type::BigInt | Type::Fixed | Type::Numeric) => {
                (format!("sum({distinct}{x})"), Type::Numeric)
            }
            (3, kind) if kind.has_extremes() => {
                self.is_open |= kind.is_open();
                let name = if self.random.chance(50) { "min" } else { "max" };
                (format!("{name}({x})"), if kind == Type::Varchar { Type::Text } else { kind })
            }
            (4, Type::Float) => (format!("avg({x})"), Type::Float),
            (4, kind) if kind.is_number() => (format!("avg({distinct}{x})"), Type::Numeric),
            (5, Type::Int) => match self.random.below(4) {
                0 => (format!("array_agg({x} ORDER BY {x})"), Type::IntArray),
                1 => (format!("stddev_pop({x})"), Type::Numeric),
                2 => (format!("percentile_disc(0.5) WITHIN GROUP (ORDER BY {x})"), Type::Int),
                _ => (format!("bit_or({x})"), Type::Int),
            },
            (5 | 4 | 2, Type::Text) => (format!("string_agg({x}, '/' ORDER BY {x})"), Type::Text),
            (_, Type::Bool) => {
                let name = *self.random.pick(&["bool_and", "bool_or", "every"]);
                (format!("{name}({x})"), Type::Bool)
            }
            _ => (format!("count({distinct}{x})"), Type::BigInt),
        }
    }

    fn from(&mut self, depth: usize) -> (From, Scope) {
        let leaves = 1 + self.random.weighted(&[45, 36, 14, 5]);
        self.join_of(leaves, depth)
    }

    fn join_of(&mut self, leaves: usize, depth: usize) -> (From, Scope) {
        if leaves == 1 {
            let (from, scope, _) = self.leaf(depth);
            return (from, scope);
        }
        let right_leaves = if leaves > 2 && self.random.chance(20) { 2 } else { 1 };
        if leaves == 2
            && self.random.chance(18)
            && let Some(joined) = self.join_by_name()
        {
            return joined;
        }
        let (left, left_scope) = self.join_of(leaves - right_leaves, depth);
        let (right, right_scope) = self.join_of(right_leaves, depth.saturating_sub(1));
        let on = self.on(&left_scope, &right_scope);
        let scope = Scope([left_scope.0, right_scope.0].concat());
        (From::Join { left: Box::new(left), right: Box::new(right), on }, scope)
    }

    /// USING or NATURAL, between two tables that share a name.
    fn join_by_name(&mut self) -> Option<(From, Scope)> {
        let tables: Vec<_> = self.sources.iter().filter(|it| it.is_table).cloned().collect();
        if tables.is_empty() {
            return None;
        }
        let (left, right) = (self.random.pick(&tables).clone(), self.random.pick(&tables).clone());
        let shared: Vec<_> =
            left.columns.iter().filter(|column| right.columns.contains(column)).cloned().collect();
        if shared.is_empty() {
            return None;
        }
        let on = if self.random.chance(35) {
            On::Natural
        } else {
            On::Using(self.random.pick(&shared).0.clone())
        };
        let (left, left_scope) = self.named(&left);
        let (right, right_scope) = self.named(&right);
        let scope = Scope([left_scope.0, right_scope.0].concat());
        Some((From::Join { left: Box::new(left), right: Box::new(right), on }, scope))
    }

    fn on(&mut self, left: &Scope, right: &Scope) -> On {
        let pairs: Vec<_> = left
            .0
            .iter()
            .flat_map(|l| right.0.iter().map(move |r| (l, r)))
            .filter(|(l, r)| {
                l.kind == r.kind
                    || matches!(
                        (l.kind, r.kind),
                        (Type::Int, Type::BigInt)
                            | (Type::BigInt, Type::Int)
                            | (Type::Text, Type::Varchar)
                            | (Type::Int, Type::Numeric)
                    )
            })
            .collect();
        if pairs.is_empty() || self.random.chance(5) {
            return On::Cross;
        }
        let mut conditions = Vec::new();
        for _ in 0..self.random.between(1, 2) {
            let (l, r) = *self.random.pick(&pairs);
            let operator = match self.random.weighted(&[80, 8, 6, 6]) {
                1 if l.kind != Type::Jsonb => "<",
                2 => "<>",
                3 => "IS NOT DISTINCT FROM",
                _ => "=",
            };
            conditions.push(format!("{} {operator} {}", l.sql, r.sql));
            if self.random.chance(75) {
                break;
            }
        }
        if self.random.chance(12) {
            let both = Scope([left.0.clone(), right.0.clone()].concat());
            conditions.push(bool_expression(&both, 1, self.random));
        }
        On::Conditions(conditions)
    }

    fn leaf(&mut self, depth: usize) -> (From, Scope, Columns) {
        if depth > 0 && self.random.chance(45) {
            let (query, columns) = self.query(depth - 1);
            self.aliases += 1;
            let alias = format!("a{}", self.aliases);
            let scope = scope_of(&alias, &columns);
            return (From::Sub { query: Box::new(query), alias }, scope, columns);
        }
        // Later sources (stream tables, views, CTEs) twice as likely.
        let weights: Vec<_> =
            self.sources.iter().map(|it| if it.is_table { 2 } else { 3 }).collect();
        let source = self.sources[self.random.weighted(&weights)].clone();
        let (from, scope) = self.named(&source);
        (from, scope, source.columns)
    }

    fn named(&mut self, source: &Source) -> (From, Scope) {
        self.aliases += 1;
        let alias = format!("a{}", self.aliases);
        let scope = scope_of(&alias, &source.columns);
        (From::Named { name: source.name.clone(), alias }, scope)
    }
}

fn scope_of(alias: &str, columns: &Columns) -> Scope {
    Scope(
        columns
            .iter()
            .map(|(name, kind)| Column { sql: format!("{alias}.{name}"), kind: *kind })
            .collect(),
    )
}

fn push_item(select: &mut Select, columns: &mut Columns, sql: String, kind: Type) {
    let name = format!("c{}", columns.len() + 1);
    select.items.push((sql, name.clone()));
    columns.push((name, kind));
}

/// An expression of the type over the scope.
pub fn expression(scope: &Scope, kind: Type, depth: usize, random: &mut Random) -> String {
    let leaf = |random: &mut Random| match scope.of(kind, random) {
        Some(column) if random.chance(80) => column,
        _ if random.chance(5) => format!("NULL::{}", kind.sql()),
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
        Type::Fixed | Type::Varchar | Type::Char | Type::Uuid | Type::IntArray => a,
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
    match random.below(9) {
        0 => format!("({x} IS NULL)"),
        1 => format!("({x} IS NOT NULL)"),
        2 => format!("({x} IS DISTINCT FROM {other})"),
        3 => format!("({x} IN ({other}, {}))", kind.literal(random)),
        4 if kind != Type::Jsonb && kind != Type::Bool => {
            format!("({x} BETWEEN {} AND {other})", kind.literal(random))
        }
        5 if kind == Type::Text => format!("({x} LIKE 'a%')"),
        5 if kind == Type::Bool => format!("({x} IS NOT TRUE)"),
        6 => format!("({x} <> {other})"),
        7 if kind != Type::Jsonb => format!("({x} > {other})"),
        8 if kind != Type::Jsonb => format!("({x} <= {other})"),
        _ => format!("({x} = {other})"),
    }
}
