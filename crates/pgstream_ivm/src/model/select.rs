//! Runs SELECT statements in memory.
//!
//! It knows as much of SELECT as the printed statements use, and is as strict as PostgreSQL where
//! that finds mistakes: names are resolved by scope, ambiguous and unknown names, equal aliases,
//! and ungrouped columns are errors.

use std::collections::BTreeMap;

use crate::model::{
    Row,
    expression::{Context, Expression, Scope, sort_order},
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
    query.run(Scope { database: Some(database), outer: None })
}

/// Branches of UNION ALL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query(Vec<Select>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Select {
    items: Vec<Item>,
    from: Vec<FromItem>,
    condition: Option<Expression>,
    grouping: Vec<Expression>,
    having: Option<Expression>,
    first: Option<First>,
    limit: Option<Expression>,
}

/// ORDER BY with FETCH FIRST.
#[derive(Clone, Debug, PartialEq, Eq)]
struct First {
    /// The columns, and whether their order is descending.
    order: Vec<(Expression, bool)>,
    count: usize,
    has_ties: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Item {
    All(String),
    One(Expression, String),
}

/// The first source, joined to the others from left to right.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FromItem {
    first: Source,
    joins: Vec<Join>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Join {
    is_left: bool,
    right: Source,
    on: Option<Expression>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Table(String, String),
    Query(Query, String),
    Joined(Box<FromItem>),
    /// `LATERAL (query) AS alias (columns)`.
    Lateral(Query, String, Vec<String>),
    /// `generate_series(first, last) AS alias (column)`.
    Series(Box<[Expression; 2]>, String, Vec<String>),
}

impl Parser {
    pub(super) fn query(&mut self) -> Query {
        let mut branches = vec![self.select()];
        while self.accept_words(&["UNION", "ALL"]) {
            if self.accept("(") {
                // A branch that the planner shall leave alone.
                branches.push(self.select());
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
            self.comma_separated(Self::joined_sources)
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
        let first = self.accept_words(&["ORDER", "BY"]).then(|| self.first());
        if self.accept_words(&["OFFSET"]) {
            assert_eq!(self.take(), Token::Number("0".to_owned()));
        }
        let limit = self.accept_words(&["LIMIT"]).then(|| self.expression());
        Select { items, from, condition, grouping, having, first, limit }
    }

    fn first(&mut self) -> First {
        let order = self.comma_separated(|it| (it.expression(), it.accept_words(&["DESC"])));
        self.expect_words(&["FETCH", "FIRST"]);
        let Token::Number(count) = self.take() else { panic!("a number expected") };
        self.expect_words(&["ROWS"]);
        let has_ties = self.accept_words(&["WITH", "TIES"]);
        if !has_ties {
            self.expect_words(&["ONLY"]);
        }
        First { order, count: count.parse().expect("a number"), has_ties }
    }

    fn ends_select_list(&self) -> bool {
        match self.peek() {
            None | Some(Token::Symbol(")")) => true,
            Some(Token::Word(word)) => matches!(word.as_str(), "FROM" | "WHERE" | "UNION"),
            _ => false,
        }
    }

    fn item(&mut self) -> Item {
        if let Some(alias) = self.accept_all_of() {
            return Item::All(alias);
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

    fn joined_sources(&mut self) -> FromItem {
        let first = self.source();
        let mut joins = Vec::new();
        loop {
            let is_left = self.accept_words(&["LEFT", "JOIN"]);
            if !is_left && self.accept_words(&["CROSS", "JOIN"]) {
                joins.push(Join { is_left, right: self.source(), on: None });
                continue;
            }
            if !is_left && !self.accept_words(&["JOIN"]) {
                return FromItem { first, joins };
            }
            let right = self.source();
            self.expect_words(&["ON"]);
            joins.push(Join { is_left, right, on: Some(self.expression()) });
        }
    }

    fn source(&mut self) -> Source {
        if self.accept_words(&["LATERAL"]) {
            self.expect("(");
            let query = self.query();
            self.expect(")");
            let alias = self.alias().expect("an alias");
            return Source::Lateral(query, alias, self.column_aliases());
        }
        if self.accept_words(&["generate_series"]) {
            self.expect("(");
            let first = self.expression();
            self.expect(",");
            let last = self.expression();
            self.expect(")");
            let alias = self.alias().expect("an alias");
            return Source::Series(Box::new([first, last]), alias, self.column_aliases());
        }
        if !self.accept("(") {
            self.accept_words(&["ONLY"]);
            let mut name = self.name();
            while self.accept(".") {
                name = format!("{name}.{}", self.name());
            }
            let alias = self.alias().unwrap_or_else(|| name.clone());
            return Source::Table(name, alias);
        }
        if !matches!(self.peek(), Some(Token::Word(it)) if it == "SELECT") {
            let item = self.joined_sources();
            assert!(!item.joins.is_empty(), "parentheses stand around a join");
            self.expect(")");
            return Source::Joined(Box::new(item));
        }
        let query = self.query();
        self.expect(")");
        Source::Query(query, self.alias().unwrap_or_default())
    }

    fn column_aliases(&mut self) -> Vec<String> {
        if !self.accept("(") {
            return Vec::new();
        }
        let names = self.comma_separated(Self::name);
        self.expect(")");
        names
    }

    fn alias(&mut self) -> Option<String> {
        self.accept_words(&["AS"]).then(|| self.name())
    }
}

impl Query {
    /// The rows; `scope` is what the query stands in.
    pub fn run(&self, scope: Scope<'_>) -> Relation {
        let mut results = self.0.iter().map(|it| it.run(scope));
        let mut all = results.next().expect("at least one branch");
        for next in results {
            assert_eq!(all.columns.len(), next.columns.len(), "branches of UNION ALL");
            all.rows.extend(next.rows);
        }
        all
    }
}

impl Source {
    fn run<'a>(&self, scope: Scope<'a>) -> Product<'a> {
        let (relation, alias) = match self {
            Self::Table(name, alias) => {
                let database = scope.database.expect("a query has tables");
                let relation = database.get(name);
                let relation = relation
                    .unwrap_or_else(|| panic!("no relation {name} among {:?}", database.keys()));
                (relation.clone(), alias)
            }
            // It does not see its neighbours in FROM.
            Self::Query(query, alias) => (query.run(scope), alias),
            Self::Joined(item) => return item.run(scope),
            Self::Lateral(query, alias, columns) => {
                (Relation { columns: columns.clone(), ..query.run(scope) }, alias)
            }
            Self::Series(ends, alias, columns) => {
                let row = Row::new();
                let rows = [&row];
                let context = Context { scope, ..Context::of(&[], &rows) };
                let rows = match ends.each_ref().map(|it| it.evaluate(context)) {
                    [Value::Null, _] | [_, Value::Null] => Vec::new(),
                    [first, last] => {
                        (first.to_int()..=last.to_int()).map(|it| vec![Value::Int(it)]).collect()
                    }
                };
                (Relation { columns: columns.clone(), rows }, alias)
            }
        };
        let names = relation.columns.into_iter().map(|it| (alias.clone(), it)).collect();
        Product { names, rows: relation.rows, scope }
    }
}

/// The rows of a FROM list, with qualified names.
struct Product<'a> {
    names: Vec<(String, String)>,
    rows: Vec<Row>,
    scope: Scope<'a>,
}

impl Product<'_> {
    /// Joins each row with those of a source that sees it, if the source is LATERAL.
    fn join_source(self, source: &Source, on: Option<&Expression>, is_left: bool) -> Self {
        if !matches!(source, Source::Lateral(..)) {
            let right = source.run(self.scope);
            return self.join(right, on, is_left);
        }
        let joined = |row: &Row| {
            let rows = [row];
            let context = Context { scope: self.scope, ..Context::of(&self.names, &rows) };
            let right = source.run(Scope { outer: Some(&context), ..self.scope });
            let right = Product { names: right.names, rows: right.rows, scope: self.scope };
            let (names, rows) = (self.names.clone(), vec![row.clone()]);
            let joined = Product { names, rows, scope: self.scope }.join(right, on, is_left);
            (joined.names, joined.rows)
        };
        let (names, _) = joined(&vec![Value::Null; self.names.len()]);
        let rows = self.rows.iter().flat_map(|it| joined(it).1).collect();
        Self { names, rows, scope: self.scope }
    }

    fn join(self, right: Self, on: Option<&Expression>, is_left: bool) -> Self {
        for (alias, _) in &right.names {
            assert!(
                self.names.iter().all(|(owner, _)| owner != alias),
                "table name {alias} specified more than once"
            );
        }
        let names = [self.names, right.names].concat();
        let mut product = Self { names, rows: Vec::new(), scope: self.scope };
        for left in &self.rows {
            let mut is_matched = false;
            for right in &right.rows {
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
        let context = Context::of(&self.names, std::slice::from_ref(&row));
        expression.evaluate(Context { scope: self.scope, ..context })
    }
}

impl FromItem {
    fn run<'a>(&self, scope: Scope<'a>) -> Product<'a> {
        self.joined_to(Product { names: Vec::new(), rows: vec![Vec::new()], scope })
    }

    fn joined_to<'a>(&self, before: Product<'a>) -> Product<'a> {
        let first = before.join_source(&self.first, None, false);
        self.joins.iter().fold(first, |product, join| {
            product.join_source(&join.right, join.on.as_ref(), join.is_left)
        })
    }
}

impl Select {
    fn run(&self, scope: Scope<'_>) -> Relation {
        let unit = Product { names: Vec::new(), rows: vec![Vec::new()], scope };
        let mut product = self.from.iter().fold(unit, |product, from| match from.first {
            Source::Lateral(..) => from.joined_to(product),
            _ => product.join(from.run(scope), None, false),
        });
        if let Some(condition) = &self.condition {
            let rows = std::mem::take(&mut product.rows);
            product.rows = rows
                .into_iter()
                .filter(|it| product.value(condition, it) == Value::Bool(true))
                .collect();
        }
        self.fetch_first(&mut product);
        let items = self.expanded_items(&product);
        let columns = items.iter().map(|(_, name)| name.clone()).collect();
        let is_grouped = !self.grouping.is_empty()
            || self.having.is_some()
            || items.iter().any(|(it, _)| it.has_aggregate());
        let mut rows = if is_grouped {
            self.grouped(&product, &items)
        } else {
            let rows: Vec<&Row> = product.rows.iter().collect();
            let context = |at: usize| Context {
                among: (&rows, at),
                scope: product.scope,
                ..Context::of(&product.names, &rows[at..=at])
            };
            let row = |at| items.iter().map(|(it, _)| it.evaluate(context(at))).collect();
            (0..rows.len()).map(row).collect()
        };
        if let Some(limit) = &self.limit {
            // It does not see the rows.
            let row = Row::new();
            let seen = [&row];
            let limit = limit.evaluate(Context { scope, ..Context::of(&[], &seen) }).to_int();
            rows.truncate(usize::try_from(limit).expect("a limit is not negative"));
        }
        Relation { columns, rows }
    }

    /// What ORDER BY leaves open follows the rows' images, as it does in windows.
    fn fetch_first(&self, product: &mut Product<'_>) {
        let Some(First { order, count, has_ties }) = &self.first else { return };
        let mut rows = std::mem::take(&mut product.rows);
        let compare = |a: &Row, b: &Row| {
            order.iter().fold(std::cmp::Ordering::Equal, |before, (it, is_descending)| {
                let order = sort_order(&product.value(it, a), &product.value(it, b));
                before.then(if *is_descending { order.reverse() } else { order })
            })
        };
        rows.sort_by(|a, b| compare(a, b).then_with(|| a.cmp(b)));
        if let Some(last) = count.checked_sub(1).and_then(|it| rows.get(it)).cloned() {
            let ties = rows[*count..].iter().take_while(|it| compare(it, &last).is_eq()).count();
            rows.truncate(count + if *has_ties { ties } else { 0 });
        }
        product.rows = rows;
    }

    /// Expressions with their names.
    fn expanded_items(&self, product: &Product<'_>) -> Vec<(Expression, String)> {
        let mut items = Vec::new();
        for item in &self.items {
            match item {
                Item::One(expression, name) => items.push((expression.clone(), name.clone())),
                Item::All(alias) => {
                    items.extend(product.names.iter().filter(|(owner, _)| owner == alias).map(
                        |(owner, name)| {
                            let column = Expression::Column(Some(owner.clone()), name.clone());
                            (column, name.clone())
                        },
                    ))
                }
            }
        }
        items
    }

    fn grouped(&self, product: &Product<'_>, items: &[(Expression, String)]) -> Vec<Row> {
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
            let context = Context {
                grouping: Some(&self.grouping),
                scope: product.scope,
                ..Context::of(&product.names, rows)
            };
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
