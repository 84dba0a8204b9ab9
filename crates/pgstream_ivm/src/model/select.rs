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
    query.run(database, &Scope::default())
}

/// The row of the query around it that a LATERAL item sees.
#[derive(Clone, Debug, Default)]
struct Scope {
    names: Vec<(String, String)>,
    row: Row,
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
    first: Operand,
    joins: Vec<Join>,
}

struct Join {
    is_left: bool,
    operand: Operand,
    on: Expression,
}

/// `source AS alias (columns)`.
struct Operand {
    source: Source,
    alias: String,
    /// Names for the first columns.
    columns: Vec<String>,
    is_lateral: bool,
}

enum Source {
    Table(String),
    Query(Box<Query>),
    /// `generate_series(first, last)`.
    Series(Expression, Expression),
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
        let first = self.operand();
        let mut joins = Vec::new();
        loop {
            let is_left = self.accept_words(&["LEFT", "JOIN"]);
            if !is_left && !self.accept_words(&["JOIN"]) {
                return FromItem { first, joins };
            }
            let operand = self.operand();
            self.expect_words(&["ON"]);
            joins.push(Join { is_left, operand, on: self.expression() });
        }
    }

    fn operand(&mut self) -> Operand {
        let mut is_lateral = self.accept_words(&["LATERAL"]);
        let (source, mut alias) = if self.accept("(") {
            let query = self.query();
            self.expect(")");
            (Source::Query(Box::new(query)), String::new())
        } else if self.accept_words(&["generate_series"]) {
            is_lateral = true;
            self.expect("(");
            let first = self.expression();
            self.expect(",");
            let last = self.expression();
            self.expect(")");
            (Source::Series(first, last), "generate_series".to_owned())
        } else {
            self.accept_words(&["ONLY"]);
            let mut name = self.name();
            while self.accept(".") {
                name = format!("{name}.{}", self.name());
            }
            (Source::Table(name.clone()), name)
        };
        let mut columns = Vec::new();
        if self.accept_words(&["AS"]) {
            alias = self.name();
            if self.accept("(") {
                columns = self.comma_separated(Self::name);
                self.expect(")");
            }
        }
        Operand { source, alias, columns, is_lateral }
    }
}

impl Query {
    fn run(&self, database: &Database, scope: &Scope) -> Relation {
        let mut results = self.0.iter().map(|it| it.run(database, scope));
        let mut all = results.next().expect("at least one branch");
        for next in results {
            assert_eq!(all.columns.len(), next.columns.len(), "branches of UNION ALL");
            all.rows.extend(next.rows);
        }
        all
    }
}

impl Operand {
    fn run(&self, database: &Database, scope: &Scope) -> Relation {
        let mut relation = match &self.source {
            Source::Table(name) => database
                .get(name)
                .unwrap_or_else(|| panic!("no relation {name} among {:?}", database.keys()))
                .clone(),
            Source::Query(query) if self.is_lateral => query.run(database, scope),
            Source::Query(query) => query.run(database, &Scope::default()),
            Source::Series(first, last) => {
                let context = Context { names: &scope.names, rows: &[&scope.row], grouping: None };
                let ends = (first.evaluate(context), last.evaluate(context));
                let rows = match ends {
                    (Value::Null, _) | (_, Value::Null) => Vec::new(),
                    (first, last) => {
                        (first.to_int()..=last.to_int()).map(|it| vec![Value::Int(it)]).collect()
                    }
                };
                Relation { columns: vec!["generate_series".to_owned()], rows }
            }
        };
        for (name, new) in relation.columns.iter_mut().zip(&self.columns) {
            name.clone_from(new);
        }
        relation
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

    /// Joins each row with the rows of `operand` for which the condition is true.
    fn join(self, operand: &Operand, database: &Database, join: Option<&Join>) -> Self {
        let scope = |row: &Row| Scope { names: self.names.clone(), row: row.clone() };
        let nothing = vec![Value::Null; self.names.len()];
        let fixed = operand.run(database, &scope(&nothing));
        let mut product = Self { names: self.names.clone(), rows: Vec::new() };
        product.add_names(&operand.alias, &fixed);
        for left in &self.rows {
            let own = operand.is_lateral.then(|| operand.run(database, &scope(left)));
            let mut is_matched = false;
            for right in &own.as_ref().unwrap_or(&fixed).rows {
                let row: Row = left.iter().chain(right).cloned().collect();
                if join.is_none_or(|it| product.value(&it.on, &row) == Value::Bool(true)) {
                    is_matched = true;
                    product.rows.push(row);
                }
            }
            if !is_matched && join.is_some_and(|it| it.is_left) {
                let mut row = left.clone();
                row.resize(product.names.len(), Value::Null);
                product.rows.push(row);
            }
        }
        product
    }

    fn value(&self, expression: &Expression, row: &Row) -> Value {
        expression.evaluate(Context { names: &self.names, rows: &[row], grouping: None })
    }
}

impl FromItem {
    /// The rows of `before` with those of this item.
    fn run(&self, before: Product, database: &Database) -> Product {
        // ON cannot refer to items before this one, other than through LATERAL.
        let first = before.join(&self.first, database, None);
        self.joins
            .iter()
            .fold(first, |product, join| product.join(&join.operand, database, Some(join)))
    }
}

impl Select {
    fn run(&self, database: &Database, scope: &Scope) -> Relation {
        let mut product = Product { names: scope.names.clone(), rows: vec![scope.row.clone()] };
        for from in &self.from {
            product = from.run(product, database);
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
            product
                .rows
                .iter()
                .map(|row| items.iter().map(|(it, _)| product.value(it, row)).collect())
                .collect()
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
            let context = Context { names: &product.names, rows, grouping: Some(&self.grouping) };
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
