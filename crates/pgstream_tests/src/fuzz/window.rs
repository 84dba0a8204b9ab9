//! Random window functions whose results are determined.
//!
//! What depends on the order of rows is used with one window in a SELECT, which orders by all
//! columns: rows that are equal in all of them cannot be told apart.

use super::{
    construct::Construct,
    expression::Scope,
    query::{Columns, Generator},
    select::push_item,
    syntax::Select,
    value::{RATIO, Type},
};

impl Generator<'_> {
    pub fn windows(&mut self, select: &mut Select, columns: &mut Columns, scope: &Scope) {
        let partition = self.partition(scope);
        let is_ordered = scope.0.iter().all(|it| it.kind.has_equality());
        let positions = is_ordered && scope.0.len() <= 12 && self.random.chance(60);
        for _ in 0..self.random.between(1, 3) {
            let (sql, kind) = if positions && self.random.chance(60) {
                self.met(Construct::Positional);
                self.is_open |= scope.0.iter().any(|it| it.kind.is_open());
                select.window.get_or_insert_with(|| {
                    let order: Vec<_> = scope.0.iter().map(|it| it.sql.as_str()).collect();
                    format!("{partition}ORDER BY {}", order.join(", "))
                });
                self.positional(scope)
            } else {
                self.met(Construct::Window);
                let partition = self.partition(scope);
                self.by_rank_or_aggregate(scope, &partition)
            };
            let sql = match kind {
                Type::BigInt | Type::Int if self.random.chance(20) => {
                    format!("coalesce({sql}, 0) * 2")
                }
                Type::Text if self.random.chance(20) => format!("'<' || {sql}"),
                _ => sql,
            };
            push_item(select, columns, sql.into(), kind);
        }
    }

    fn partition(&mut self, scope: &Scope) -> String {
        let many = self.random.weighted(&[35, 50, 15]);
        let mut keys: Vec<_> = (0..many).map(|_| scope.any(self.random)).collect();
        keys.retain(|it| it.kind.has_equality());
        self.is_open |= keys.iter().any(|it| it.kind.is_open());
        let keys: Vec<_> = keys.into_iter().map(|it| it.sql).collect();
        if keys.is_empty() { String::new() } else { format!("PARTITION BY {} ", keys.join(", ")) }
    }

    fn positional(&mut self, scope: &Scope) -> (String, Type) {
        let x = scope.any(self.random);
        let frame = *self.random.pick(&[
            "",
            " ROWS BETWEEN 1 PRECEDING AND CURRENT ROW",
            " ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING",
            " ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING",
            " ROWS BETWEEN 2 PRECEDING AND 1 FOLLOWING EXCLUDE CURRENT ROW",
            " ROWS BETWEEN 1 FOLLOWING AND 2 FOLLOWING",
        ]);
        let framed = if frame.is_empty() { "w".to_owned() } else { format!("(w{frame})") };
        let x_sql = &x.sql;
        match self.random.below(9) {
            0 | 1 => ("row_number() OVER w".to_owned(), Type::BigInt),
            2 => ("ntile(3) OVER w".to_owned(), Type::Int),
            3 => (format!("lag({x_sql}) OVER w"), x.kind),
            4 => (format!("lead({x_sql}, 2) OVER w"), x.kind),
            5 => (format!("first_value({x_sql}) OVER {framed}"), x.kind),
            6 => (format!("last_value({x_sql}) OVER {framed}"), x.kind),
            7 => (format!("nth_value({x_sql}, 2) OVER {framed}"), x.kind),
            _ => {
                let (sql, kind) = self.aggregate_over(scope);
                (format!("{sql} OVER {framed}"), kind)
            }
        }
    }

    /// An aggregate that may be a window function: without DISTINCT and ORDER BY.
    fn aggregate_over(&mut self, scope: &Scope) -> (String, Type) {
        let x = scope.any(self.random);
        let x_sql = &x.sql;
        let (sql, kind) = match (self.random.below(4), x.kind) {
            (0, _) => ("count(*)".to_owned(), Type::BigInt),
            (1, Type::Int) => (format!("sum({x_sql})"), Type::BigInt),
            (1, Type::BigInt | Type::Fixed | Type::Numeric) => {
                (format!("sum({x_sql})"), Type::Numeric)
            }
            (2 | 1, kind) if kind.has_extremes() => {
                self.is_open |= kind.is_open();
                (format!("max({x_sql})"), kind.extreme().expect("it has extremes"))
            }
            (3, Type::Int | Type::Fixed) => (format!("avg({x_sql})"), Type::Numeric),
            _ => (format!("count({x_sql})"), Type::BigInt),
        };
        if self.random.chance(15) {
            let condition = super::expression::bool_expression(scope, 1, self.random);
            return (format!("{sql} FILTER (WHERE {condition})"), kind);
        }
        (sql, kind)
    }

    /// Peers get the same value.
    fn by_rank_or_aggregate(&mut self, scope: &Scope, partition: &str) -> (String, Type) {
        let order = scope.any(self.random);
        let direction = *self.random.pick(&["", " DESC", " NULLS FIRST"]);
        let window = format!("{partition}ORDER BY {}{direction}", order.sql);
        match self.random.below(8) {
            0 => (format!("rank() OVER ({window})"), Type::BigInt),
            1 => (format!("dense_rank() OVER ({window})"), Type::BigInt),
            2 => (format!("cume_dist() OVER ({window})"), RATIO),
            3 => (format!("percent_rank() OVER ({window})"), RATIO),
            4 | 5 => {
                let (sql, kind) = self.aggregate_over(scope);
                (format!("{sql} OVER ({partition})"), kind)
            }
            6 => {
                let (sql, kind) = self.aggregate_over(scope);
                (format!("{sql} OVER ({window})"), kind)
            }
            _ => {
                let (sql, kind) = self.aggregate_over(scope);
                let mut frames = vec![
                    "GROUPS BETWEEN 1 PRECEDING AND CURRENT ROW",
                    "GROUPS BETWEEN 1 PRECEDING AND 1 FOLLOWING EXCLUDE GROUP",
                    "RANGE BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING EXCLUDE TIES",
                    "RANGE UNBOUNDED PRECEDING EXCLUDE CURRENT ROW",
                ];
                if order.kind == Type::Int {
                    frames.push("RANGE BETWEEN 1 PRECEDING AND 2 FOLLOWING");
                }
                let frame = *self.random.pick(&frames);
                (format!("{sql} OVER ({window} {frame})"), kind)
            }
        }
    }

    /// Windows over keys and aggregates.
    pub fn window_over_group(&mut self, select: &mut Select, columns: &mut Columns, keys: &Scope) {
        self.met(Construct::WindowOverGroup);
        let partition = match keys.0.first() {
            Some(key) if self.random.chance(40) => format!("PARTITION BY {} ", key.sql),
            _ => String::new(),
        };
        let (sql, kind) = match self.random.below(4) {
            0 => (format!("rank() OVER ({partition}ORDER BY count(*))"), Type::BigInt),
            1 => (format!("sum(count(*)) OVER ({partition})"), Type::Numeric),
            2 => (format!("max(count(*)) OVER ({partition}ORDER BY count(*) DESC)"), Type::BigInt),
            _ => (format!("count(*) OVER ({partition})"), Type::BigInt),
        };
        push_item(select, columns, sql.into(), kind);
    }
}
