//! Runs SELECT statements in memory.
//!
//! It knows as much of SELECT as the printed statements use, and is as strict as PostgreSQL where
//! that finds mistakes: names are resolved by scope, ambiguous and unknown names, equal aliases,
//! and ungrouped columns are errors.

use std::collections::BTreeMap;

use crate::model::{
    Row,
    expression::{Context, Expression},
    lexer::Token,
    parser::Parser,
    value::Value,
};

/// A table or a result: a bag of rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Relation {
    /// Unquoted names.
    pub columns: Vec<String>,
    /// The rows.
    pub rows: Vec<Row>,
}

/// Tables by name, as the name is printed.
pub type Database = BTreeMap<String, Relation>;

/// Runs `sql`.
pub fn run(sql: &str, database: &Database) -> Relation {
    let mut parser = Parser::new(sql);
    let query = parser.query();
    parser.finish();
    query.run(database)
}

/// Branches of UNION ALL.
struct Query(Vec<Select>);

struct Select {
    items: Vec<Item>,
    from: Vec<FromItem>,
    condition: Option<Expression>,
    grouping: Vec<Expression>,
    having: Option<Expression>,
}

enum Item {
    All(String),
    One(Expression, String),
}

struct FromItem {
    source: Source,
    alias: String,
    joins: Vec<Join>,
}

struct Join {
    is_left: bool,
    source: Source,
    alias: String,
    on: Expression,
}

enum Source {
    Table(String),
    Query(Box<Query>),
}

impl Parser {
    fn query(&mut self) -> Query {
        let mut branches = vec![self.select()];
        while self.accept_words(&["UNION", "ALL"]) {
            if self.accept("(") {
                // A branch that the planner shall leave alone.
                branches.push(self.select());
                self.expect_words(&["OFFSET"]);
                assert_eq!(self.take(), Token::Number("0".to_owned()));
                self.expect(")");
            } else {
                branches.push(self.select());
            }
        }
        Query(branches)
    }

    fn select(&mut self) -> Select {
        self.expect_words(&["SELECT"]);
        let items =
            if self.ends_select_list() { Vec::new() } else { self.comma_separated(Self::item) };
        let from = if self.accept_words(&["FROM"]) {
            self.comma_separated(Self::from_item)
        } else {
            Vec::new()
        };
        let condition = self.accept_words(&["WHERE"]).then(|| self.expression());
        let grouping = if self.accept_words(&["GROUP", "BY"]) {
            self.comma_separated(Self::expression)
        } else {
            Vec::new()
        };
        let having = self.accept_words(&["HAVING"]).then(|| self.expression());
        Select { items, from, condition, grouping, having }
    }

    fn ends_select_list(&self) -> bool {
        match self.peek() {
            None | Some(Token::Symbol(")")) => true,
            Some(Token::Word(word)) => matches!(word.as_str(), "FROM" | "WHERE" | "UNION"),
            _ => false,
        }
    }

    fn item(&mut self) -> Item {
        if self.accept_words(&["h"]) {
            self.expect(".");
            if self.accept("*") {
                return Item::All("h".to_owned());
            }
            let name = self.name();
            return Item::One(Expression::Column(Some("h".to_owned()), name.clone()), name);
        }
        let expression = self.expression();
        let name = match &expression {
            _ if self.accept_words(&["AS"]) => self.name(),
            Expression::Column(_, name) => name.clone(),
            _ => "?column?".to_owned(),
        };
        Item::One(expression, name)
    }

    fn name(&mut self) -> String {
        match self.take() {
            Token::Word(name) | Token::Quoted(name) => name,
            other => panic!("a name expected, not {other:?}"),
        }
    }

    fn from_item(&mut self) -> FromItem {
        let (source, alias) = self.source();
        let mut joins = Vec::new();
        loop {
            let is_left = self.accept_words(&["LEFT", "JOIN"]);
            if !is_left && !self.accept_words(&["JOIN"]) {
                return FromItem { source, alias, joins };
            }
            let (source, alias) = self.source();
            self.expect_words(&["ON"]);
            joins.push(Join { is_left, source, alias, on: self.expression() });
        }
    }

    fn source(&mut self) -> (Source, String) {
        let (source, mut alias) = if self.accept("(") {
            let query = self.query();
            self.expect(")");
            (Source::Query(Box::new(query)), String::new())
        } else {
            self.accept_words(&["ONLY"]);
            let mut name = self.name();
            while self.accept(".") {
                name = format!("{name}.{}", self.name());
            }
            (Source::Table(name.clone()), name)
        };
        if self.accept_words(&["AS"]) {
            alias = self.name();
        }
        (source, alias)
    }
}

impl Query {
    fn run(&self, database: &Database) -> Relation {
        let mut results = self.0.iter().map(|it| it.run(database));
        let mut all = results.next().expect("at least one branch");
        for next in results {
            assert_eq!(all.columns.len(), next.columns.len(), "branches of UNION ALL");
            all.rows.extend(next.rows);
        }
        all
    }
}

impl Source {
    fn run(&self, database: &Database) -> Relation {
        match self {
            Self::Table(name) => database
                .get(name)
                .unwrap_or_else(|| panic!("no relation {name} among {:?}", database.keys()))
                .clone(),
            Self::Query(query) => query.run(database),
        }
    }
}

/// The rows of a FROM list, with qualified names.
struct Product {
    names: Vec<(String, String)>,
    rows: Vec<Row>,
}

impl Product {
    fn add_names(&mut self, alias: &str, relation: &Relation) {
        assert!(
            self.names.iter().all(|(owner, _)| owner != alias),
            "table name {alias} specified more than once"
        );
        self.names.extend(relation.columns.iter().map(|it| (alias.to_owned(), it.clone())));
    }

    fn join(
        self,
        alias: &str,
        relation: &Relation,
        on: Option<&Expression>,
        is_left: bool,
    ) -> Self {
        let mut product = Self { names: self.names, rows: Vec::new() };
        product.add_names(alias, relation);
        for left in &self.rows {
            let mut is_matched = false;
            for right in &relation.rows {
                let row: Row = left.iter().chain(right).cloned().collect();
                if on.is_none_or(|on| product.value(on, &row) == Value::Bool(true)) {
                    is_matched = true;
                    product.rows.push(row);
                }
            }
            if is_left && !is_matched {
                let mut row = left.clone();
                row.resize(product.names.len(), Value::Null);
                product.rows.push(row);
            }
        }
        product
    }

    fn value(&self, expression: &Expression, row: &Row) -> Value {
        expression.evaluate(Context::of(&self.names, &[row]))
    }
}

impl FromItem {
    fn run(&self, database: &Database) -> Product {
        let first = self.source.run(database);
        let mut product = Product { names: Vec::new(), rows: first.rows.clone() };
        product.add_names(&self.alias, &first);
        for join in &self.joins {
            let relation = join.source.run(database);
            product = product.join(&join.alias, &relation, Some(&join.on), join.is_left);
        }
        product
    }
}

impl Select {
    fn run(&self, database: &Database) -> Relation {
        let mut product = Product { names: Vec::new(), rows: vec![Vec::new()] };
        for from in &self.from {
            let next = from.run(database);
            assert!(
                next.names.iter().all(|(alias, _)| product.names.iter().all(|it| it.0 != *alias)),
                "an alias is used twice in FROM"
            );
            product.names.extend(next.names);
            product.rows = product
                .rows
                .iter()
                .flat_map(|left| {
                    next.rows.iter().map(|right| left.iter().chain(right).cloned().collect())
                })
                .collect();
        }
        if let Some(condition) = &self.condition {
            let rows = std::mem::take(&mut product.rows);
            product.rows = rows
                .into_iter()
                .filter(|it| product.value(condition, it) == Value::Bool(true))
                .collect();
        }
        let items = self.expanded_items(&product);
        let columns = items.iter().map(|(_, name)| name.clone()).collect();
        let is_grouped = !self.grouping.is_empty()
            || self.having.is_some()
            || items.iter().any(|(it, _)| it.has_aggregate());
        let rows = if is_grouped {
            self.grouped(&product, &items)
        } else {
            let rows: Vec<&Row> = product.rows.iter().collect();
            let context = |at: usize| Context {
                among: (&rows, at),
                ..Context::of(&product.names, &rows[at..=at])
            };
            let row = |at| items.iter().map(|(it, _)| it.evaluate(context(at))).collect();
            (0..rows.len()).map(row).collect()
        };
        Relation { columns, rows }
    }

    fn expanded_items(&self, product: &Product) -> Vec<(Expression, String)> {
        let mut items = Vec::new();
        for item in &self.items {
            match item {
                Item::One(expression, name) => items.push((expression.clone(), name.clone())),
                Item::All(alias) => {
                    items.extend(product.names.iter().filter(|(owner, _)| owner == alias).map(
                        |(owner, name)| {
                            (Expression::Column(Some(owner.clone()), name.clone()), name.clone())
                        },
                    ))
                }
            }
        }
        items
    }

    fn grouped(&self, product: &Product, items: &[(Expression, String)]) -> Vec<Row> {
        let mut groups: BTreeMap<Row, Vec<&Row>> = BTreeMap::new();
        if self.grouping.is_empty() {
            groups.insert(Vec::new(), Vec::new());
        }
        for row in &product.rows {
            let key = self.grouping.iter().map(|it| product.value(it, row).canonical()).collect();
            groups.entry(key).or_default().push(row);
        }
        let mut result = Vec::new();
        for rows in groups.values() {
            let context =
                Context { grouping: Some(&self.grouping), ..Context::of(&product.names, rows) };
            let is_kept =
                self.having.as_ref().is_none_or(|it| it.evaluate(context) == Value::Bool(true));
            if is_kept {
                result.push(items.iter().map(|(it, _)| it.evaluate(context)).collect());
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::{Database, Relation, run};
    use crate::model::value::Value;

    fn database() -> Database {
        let relation = |columns: &[&str], rows: &[[i64; 2]]| Relation {
            columns: columns.iter().map(|it| (*it).to_owned()).collect(),
            rows: rows.iter().map(|row| row.iter().map(|it| Value::Int(*it)).collect()).collect(),
        };
        Database::from([
            ("public.a".to_owned(), relation(&["x", "w"], &[[1, 1], [1, 2], [2, 3]])),
            ("b".to_owned(), relation(&["x", "y"], &[[1, 7]])),
        ])
    }

    fn rows(sql: &str) -> Vec<Vec<Value>> {
        run(sql, &database()).rows
    }

    #[test]
    fn groups_and_joins() {
        let one = Value::Int(1);
        assert_eq!(
            rows(
                "SELECT a.x, count(*) AS n FROM \"public\".\"a\" AS a GROUP BY a.x HAVING sum(w) > 2"
            ),
            [[one.clone(), Value::Int(2)], [Value::Int(2), one.clone()]]
        );
        assert_eq!(
            rows("SELECT t.w, b.y FROM public.a AS t LEFT JOIN b ON b.x = t.x WHERE t.w > 1"),
            [[Value::Int(2), Value::Int(7)], [Value::Int(3), Value::Null]]
        );
        assert_eq!(rows("SELECT count(*) FROM b WHERE false"), [[Value::Int(0)]]);
        assert_eq!(rows("SELECT FROM b UNION ALL SELECT FROM b"), [[], []]);
    }
}
