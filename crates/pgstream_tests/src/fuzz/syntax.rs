//! A small syntax tree of queries, whose expressions are texts around sub-queries.
//!
//! Every column reference is qualified by an alias that is unique in the query, so that a part
//! can be taken out, when shrinking, together with all that mentions its alias.

use std::fmt;

/// An expression.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sql(pub Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    Text(String),
    /// An operand: when shrinking, it may stand for the whole.
    Part(Sql),
    Query(Box<Query>),
}

impl Sql {
    /// A template whose `{}` are operands, in order.
    pub fn of(template: &str, parts: impl IntoIterator<Item = Self>) -> Self {
        Self::fill(template, parts.into_iter().map(Piece::Part))
    }

    /// A template with an operand and a sub-query, of which the template says the places.
    pub fn with_query(template: &str, operand: Self, query: Query) -> Self {
        Self::fill(template, [Piece::Part(operand), Piece::Query(Box::new(query))].into_iter())
    }

    /// A template around a sub-query.
    pub fn around(template: &str, query: Query) -> Self {
        Self::fill(template, [Piece::Query(Box::new(query))].into_iter())
    }

    fn fill(template: &str, mut pieces: impl Iterator<Item = Piece>) -> Self {
        let mut all = Vec::new();
        for (number, text) in template.split("{}").enumerate() {
            if number > 0 {
                all.push(pieces.next().expect("as many operands as places"));
            }
            all.push(Piece::Text(text.to_owned()));
        }
        Self(all)
    }
}

impl From<String> for Sql {
    fn from(text: String) -> Self {
        Self(vec![Piece::Text(text)])
    }
}

impl From<&str> for Sql {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl fmt::Display for Sql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|piece| match piece {
            Piece::Text(text) => f.write_str(text),
            Piece::Part(sql) => sql.fmt(f),
            Piece::Query(query) => query.fmt(f),
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    pub ctes: Vec<Cte>,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cte {
    pub name: String,
    /// The names of its columns, if it says them.
    pub columns: Vec<String>,
    pub recursive: bool,
    /// MATERIALIZED and the like.
    pub option: &'static str,
    pub body: Body,
    /// SEARCH and CYCLE.
    pub clauses: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    Select(Box<Select>),
    Set { left: Box<Body>, operator: &'static str, right: Box<Body> },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Distinct {
    #[default]
    None,
    All,
    /// ON the first items.
    On(usize),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Grouping {
    #[default]
    Plain,
    Rollup,
    Cube,
    /// Each set names keys by their position; positions that are gone are left out.
    Sets(Vec<Vec<usize>>),
}

/// ORDER BY the items, in their order, which makes the result of a LIMIT determined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// Of each item, `DESC` and the like.
    pub directions: Vec<&'static str>,
    /// What is more important than the items, except those of DISTINCT ON.
    pub first: Vec<Sql>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Select {
    pub distinct: Distinct,
    /// Expression and name.
    pub items: Vec<(Sql, String)>,
    pub from: Option<Relation>,
    pub wheres: Vec<Sql>,
    pub group: Vec<Sql>,
    pub grouping: Grouping,
    pub having: Vec<Sql>,
    pub window: Option<String>,
    pub order: Option<Order>,
    pub limit: Option<String>,
}

impl Select {
    /// Takes out an item and what depends on its position.
    pub fn remove_item(&mut self, at: usize) {
        self.items.remove(at);
        if let Some(order) = &mut self.order {
            order.directions.remove(at);
        }
        match &mut self.distinct {
            Distinct::On(1) if at == 0 => {
                self.distinct = Distinct::None;
                self.order = None;
            }
            Distinct::On(keys) if at < *keys => *keys -= 1,
            _ => {}
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Relation {
    Named {
        name: String,
        alias: String,
    },
    Sub {
        query: Box<Query>,
        alias: String,
        lateral: bool,
    },
    /// Set-returning functions, with the names of their columns.
    Function {
        sql: String,
        alias: String,
        columns: Vec<String>,
    },
    Join {
        left: Box<Relation>,
        kind: &'static str,
        right: Box<Relation>,
        on: On,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum On {
    Conditions(Vec<Sql>),
    Cross,
    Using(String),
    Natural,
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let recursive = if self.ctes.iter().any(|it| it.recursive) { " RECURSIVE" } else { "" };
        for (number, cte) in self.ctes.iter().enumerate() {
            if number == 0 {
                write!(f, "WITH{recursive} ")?;
            } else {
                write!(f, ", ")?;
            }
            let columns = match &cte.columns[..] {
                [] => String::new(),
                columns => format!("({})", columns.join(", ")),
            };
            write!(f, "{}{columns} AS {}({}) {}", cte.name, cte.option, cte.body, cte.clauses)?;
        }
        write!(f, "{}", self.body)
    }
}

impl fmt::Display for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Select(select) => write!(f, "{select}"),
            Self::Set { left, operator, right } => write!(f, "({left}) {operator} ({right})"),
        }
    }
}

impl fmt::Display for Select {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let items: Vec<_> =
            self.items.iter().map(|(sql, name)| format!("{sql} AS {name}")).collect();
        let distinct = match self.distinct {
            Distinct::None => String::new(),
            Distinct::All => "DISTINCT ".to_owned(),
            Distinct::On(keys) => format!("DISTINCT ON ({}) ", ordinals(0..keys).join(", ")),
        };
        write!(f, "SELECT {distinct}{}", items.join(", "))?;
        if let Some(from) = &self.from {
            write!(f, " FROM {from}")?;
        }
        write_list(f, "WHERE", &self.wheres, " AND ")?;
        self.write_group(f)?;
        write_list(f, "HAVING", &self.having, " AND ")?;
        if let Some(window) = &self.window {
            write!(f, " WINDOW w AS ({window})")?;
        }
        if let Some(order) = &self.order {
            let keys = match self.distinct {
                Distinct::On(keys) => keys,
                _ => 0,
            };
            let ordinal = |at: usize| format!("{}{}", at + 1, order.directions[at]);
            let mut all: Vec<_> = (0..keys).map(ordinal).collect();
            all.extend(order.first.iter().map(ToString::to_string));
            all.extend((keys..self.items.len()).map(ordinal));
            write!(f, " ORDER BY {}", all.join(", "))?;
        }
        match &self.limit {
            Some(limit) => write!(f, " {limit}"),
            None => Ok(()),
        }
    }
}

impl Select {
    fn write_group(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.grouping {
            Grouping::Plain => write_list(f, "GROUP BY", &self.group, ", "),
            Grouping::Rollup => write!(f, " GROUP BY ROLLUP ({})", list(&self.group, ", ")),
            Grouping::Cube => write!(f, " GROUP BY CUBE ({})", list(&self.group, ", ")),
            Grouping::Sets(sets) => {
                let texts: Vec<_> = sets
                    .iter()
                    .map(|set| {
                        let keys = set.iter().filter_map(|&at| self.group.get(at));
                        let keys: Vec<_> = keys.map(ToString::to_string).collect();
                        format!("({})", keys.join(", "))
                    })
                    .collect();
                write!(f, " GROUP BY GROUPING SETS ({})", texts.join(", "))
            }
        }
    }
}

fn ordinals(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|at| (at + 1).to_string()).collect()
}

fn list(parts: &[Sql], glue: &str) -> String {
    parts.iter().map(ToString::to_string).collect::<Vec<_>>().join(glue)
}

fn write_list(f: &mut fmt::Formatter<'_>, keyword: &str, parts: &[Sql], glue: &str) -> fmt::Result {
    if parts.is_empty() { Ok(()) } else { write!(f, " {keyword} {}", list(parts, glue)) }
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named { name, alias } => write!(f, "{name} AS {alias}"),
            Self::Sub { query, alias, lateral } => {
                let lateral = if *lateral { "LATERAL " } else { "" };
                write!(f, "{lateral}({query}) AS {alias}")
            }
            Self::Function { sql, alias, columns } => {
                write!(f, "{sql} AS {alias}({})", columns.join(", "))
            }
            Self::Join { left, kind, right, on } => {
                let right = match **right {
                    Self::Join { .. } => format!("({right})"),
                    _ => right.to_string(),
                };
                match on {
                    On::Conditions(parts) if parts.is_empty() => {
                        write!(f, "{left} {kind} {right} ON true")
                    }
                    On::Conditions(parts) => {
                        write!(f, "{left} {kind} {right} ON {}", list(parts, " AND "))
                    }
                    On::Cross => write!(f, "{left} CROSS JOIN {right}"),
                    On::Using(name) => write!(f, "{left} {kind} {right} USING ({name})"),
                    On::Natural => write!(f, "{left} NATURAL {kind} {right}"),
                }
            }
        }
    }
}
