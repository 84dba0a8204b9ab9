//! Random sub-queries in expressions.

use super::{
    construct::Construct,
    expression::{Column, Scope, bool_expression, expression},
    query::Generator,
    syntax::{Body, Order, Query, Select, Sql},
    value::Type,
};

impl Generator<'_> {
    /// A condition, with sub-queries now and then.
    pub fn condition(&mut self, scope: &Scope, depth: usize) -> Sql {
        if !self.sub_query(24) {
            return bool_expression(scope, 2, self.random).into();
        }
        let link = self.sub_link(scope, depth);
        if self.random.chance(60) {
            return link;
        }
        self.met(Construct::UnderOr);
        let other = bool_expression(scope, 1, self.random).into();
        match self.random.below(6) {
            0 => Sql::of("(NOT {})", [link]),
            1 => Sql::of("({} OR {})", [other, link]),
            2 => Sql::of("CASE WHEN {} THEN {} ELSE true END", [link, other]),
            3 => Sql::of("(({}) IS NOT TRUE)", [link]),
            4 if self.sub_query(100) => {
                let second = self.sub_link(scope, depth);
                Sql::of("({} OR {})", [link, second])
            }
            _ => Sql::of("({} OR {})", [link, other]),
        }
    }

    /// EXISTS, IN, op ANY, op ALL, or a comparison with a scalar sub-query.
    pub fn sub_link(&mut self, scope: &Scope, depth: usize) -> Sql {
        let depth = depth.min(1);
        let column = (!scope.0.is_empty()).then(|| scope.any(self.random));
        let column = column.filter(|it| it.kind.has_equality());
        let choice = self.random.below(10);
        let Some(column) = column.filter(|_| choice > 1) else {
            let (query, _) = self.inside(scope, |it| it.query(depth, false));
            let is_negated = self.random.chance(50);
            self.met(if is_negated { Construct::NotExists } else { Construct::Exists });
            return Sql::around(if is_negated { "NOT EXISTS ({})" } else { "EXISTS ({})" }, query);
        };
        if choice == 2 {
            let (value, kind) = self.scalar(scope, depth);
            let operator = self.operator();
            let other = expression(scope, kind, 0, self.random).into();
            return Sql::of(&format!("({{}} {operator} {{}})"), [other, value]);
        }
        if choice == 8 {
            return self.row_comparison(scope, &column, depth);
        }
        let operand = if self.random.chance(75) {
            column.sql
        } else {
            expression(scope, column.kind, 1, self.random)
        };
        let mut columns = vec![("c1".to_owned(), column.kind)];
        let mut operand: Sql = operand.into();
        if choice < 5 && self.random.chance(20) {
            let second = scope.any(self.random);
            columns.push(("c2".to_owned(), second.kind));
            operand = Sql::of("({}, {})", [operand, second.sql.into()]);
        }
        let query = self.inside(scope, |it| it.query_of(&columns, depth));
        let operator = self.operator();
        let (template, construct) = match choice {
            9 => (format!("({{}} {operator} ANY (ARRAY({{}})))"), Construct::ArrayOf),
            3 => ("({} IN ({}))".to_owned(), Construct::In),
            4 => ("({} NOT IN ({}))".to_owned(), Construct::NotIn),
            5 | 6 => (format!("({{}} {operator} ANY ({{}}))"), Construct::Any),
            _ => (format!("({{}} {operator} ALL ({{}}))"), Construct::All),
        };
        self.met(construct);
        Sql::with_query(&template, operand, query)
    }

    /// A row against the only one of a sub-query.
    fn row_comparison(&mut self, scope: &Scope, first: &Column, depth: usize) -> Sql {
        let second = scope.any(self.random);
        let columns = vec![("c1".to_owned(), first.kind), ("c2".to_owned(), second.kind)];
        let mut query = self.inside(scope, |it| it.query_of(&columns, depth));
        // Otherwise several rows are an error.
        if limit_to_one(&mut query) {
            self.is_open |= first.kind.is_open() || second.kind.is_open();
            self.met(Construct::Limit);
        } else {
            self.may_fail = true;
        }
        self.met(Construct::RowCompare);
        let row = Sql::of("({}, {})", [first.sql.clone().into(), second.sql.into()]);
        Sql::with_query(&format!("({{}} {} ({{}}))", self.operator()), row, query)
    }

    fn operator(&mut self) -> &'static str {
        const OPERATORS: [&str; 7] = ["=", "=", "<>", "<", "<=", ">", ">="];
        OPERATORS[self.random.below(OPERATORS.len())]
    }

    /// A condition in HAVING: keys may be named, and aggregates.
    pub fn sub_link_over_group(&mut self, keys: &Scope, depth: usize) -> Sql {
        if self.random.chance(50) {
            return self.sub_link(keys, depth);
        }
        self.met(Construct::Scalar);
        let query = self.one_row(keys, "count(*)".to_owned(), depth);
        Sql::around("count(*) <= ({})", query)
    }

    /// A scalar sub-query.
    pub fn scalar(&mut self, scope: &Scope, depth: usize) -> (Sql, Type) {
        let depth = depth.min(1);
        if self.random.chance(14) {
            return self.array(scope, depth);
        }
        self.met(Construct::Scalar);
        if self.random.chance(22) {
            let column = self.outer_or(scope).unwrap_or(Type::Int);
            let columns = vec![("c1".to_owned(), column)];
            let mut query = self.inside(scope, |it| it.query_of(&columns, depth));
            // Otherwise several rows are an error.
            let is_one = self.random.chance(75) && limit_to_one(&mut query);
            self.may_fail |= !is_one;
            if is_one {
                self.is_open |= column.is_open();
                self.met(Construct::Limit);
            } else if self.random.chance(60) {
                return (self.left_out(scope, column, query), column);
            }
            return (Sql::around("({})", query), column);
        }
        let query = |it: &mut Self| {
            let (from, inner) = it.from(depth);
            let mut select = Select { from: Some(from), ..Select::default() };
            it.add_where(&mut select, &inner, depth);
            let (sql, kind) = it.aggregate(&inner);
            select.items.push((sql.into(), "c1".to_owned()));
            if it.random.chance(15) {
                it.met(Construct::Having);
                let outer = it.outer.of(Type::Int, it.random).unwrap_or_else(|| "1".to_owned());
                select.having.push(format!("count(*) <> {outer}").into());
            }
            (select, kind)
        };
        let (select, kind) = self.inside(scope, query);
        let query = Query { ctes: Vec::new(), body: Body::Select(Box::new(select)) };
        (Sql::around("({})", query), kind)
    }

    /// A scalar sub-query that some rows do not need.
    fn left_out(&mut self, scope: &Scope, kind: Type, query: Query) -> Sql {
        let other = expression(scope, kind, 1, self.random).into();
        if self.random.chance(50) {
            return Sql::with_query("coalesce({}, ({}))", other, query);
        }
        let condition = bool_expression(scope, 1, self.random).into();
        let case = Sql::of("CASE WHEN {} THEN {} ELSE", [condition, other]);
        Sql::with_query("{} ({}) END", case, query)
    }

    /// An array in the order of what it holds, or how long it is.
    fn array(&mut self, scope: &Scope, depth: usize) -> (Sql, Type) {
        self.met(Construct::ArrayOf);
        let kind = self.outer_or(scope).unwrap_or(Type::Int);
        let columns = vec![("c1".to_owned(), kind)];
        let mut query = self.inside(scope, |it| it.query_of(&columns, depth));
        // As text, equal values of other images would be seen in the order that they happen to have.
        if !kind.is_array() && kind.has_equality() && !kind.is_open() && order_by_all(&mut query) {
            return (Sql::around("ARRAY({})::text", query), Type::Text);
        }
        if kind.is_array() {
            // Arrays of several dimensions must be of one length.
            return (Sql::around("(SELECT count(*) FROM ({}) AS q)", query), Type::BigInt);
        }
        (Sql::around("cardinality(ARRAY({}))", query), Type::Int)
    }

    fn outer_or(&mut self, scope: &Scope) -> Option<Type> {
        (!scope.0.is_empty()).then(|| scope.any(self.random).kind)
    }

    fn one_row(&mut self, scope: &Scope, item: String, depth: usize) -> Query {
        let query = |it: &mut Self| {
            let (from, inner) = it.from(depth.min(1));
            let mut select = Select { from: Some(from), ..Select::default() };
            it.add_where(&mut select, &inner, 0);
            select.items.push((item.into(), "c1".to_owned()));
            select
        };
        let select = self.inside(scope, query);
        Query { ctes: Vec::new(), body: Body::Select(Box::new(select)) }
    }
}

/// Whether that was possible.
fn limit_to_one(query: &mut Query) -> bool {
    let is_ordered = order_by_all(query);
    if let Body::Select(select) = &mut query.body
        && is_ordered
    {
        select.limit = Some("LIMIT 1".to_owned());
    }
    is_ordered
}

/// Whether that was possible.
fn order_by_all(query: &mut Query) -> bool {
    let Body::Select(select) = &mut query.body else {
        return false;
    };
    let directions = vec![""; select.items.len()];
    select.order.get_or_insert(Order { directions, first: Vec::new() });
    true
}
