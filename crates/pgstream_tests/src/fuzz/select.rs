//! Random SELECTs.

use super::{
    construct::Construct,
    expression::{Column, Scope, bool_expression, expression},
    query::{Columns, Generator},
    syntax::{Body, Distinct, Grouping, Order, Select, Sql},
    value::{RATIO, Type},
};

impl Generator<'_> {
    pub fn select(&mut self, depth: usize, is_top: bool) -> (Select, Columns) {
        let (from, scope) = self.from(depth);
        let mut select = Select { from: Some(from), ..Select::default() };
        self.add_where(&mut select, &scope, depth);
        let mut columns = Columns::new();
        match self.random.weighted(&[34, 9, 8, 26, 9, 14]) {
            kind @ 0..=2 => {
                for _ in 0..self.random.between(1, 4) {
                    let (sql, kind) = self.item_or_scalar(&scope, depth);
                    push_item(&mut select, &mut columns, sql, kind);
                }
                match kind {
                    1 => self.distinct(&mut select, &columns),
                    2 => self.distinct_on(&mut select, &columns, &scope),
                    _ if self.random.chance(9) => {
                        self.set_returning(&mut select, &mut columns, &scope)
                    }
                    _ => {}
                }
            }
            3 => self.grouped(&mut select, &mut columns, &scope, depth),
            4 => {
                self.met(Construct::NoGroup);
                self.aggregates(&mut select, &mut columns, &scope, depth);
            }
            _ => {
                for _ in 0..self.random.between(1, 2) {
                    let (sql, kind) = self.item(&scope);
                    push_item(&mut select, &mut columns, sql.into(), kind);
                }
                self.windows(&mut select, &mut columns, &scope);
            }
        }
        if !is_top && select.order.is_none() && self.random.chance(14) {
            self.limit(&mut select, &columns);
        }
        (select, columns)
    }

    /// A SELECT whose columns have the given types.
    pub fn select_of(&mut self, columns: &Columns, depth: usize) -> Body {
        let (from, scope) = self.from(depth);
        let mut select = Select { from: Some(from), ..Select::default() };
        self.add_where(&mut select, &scope, depth);
        for (name, kind) in columns {
            let sql = expression(&scope, *kind, 1, self.random);
            select.items.push((sql.into(), name.clone()));
        }
        match self.random.weighted(&[72, 14, 14]) {
            1 => self.distinct(&mut select, columns),
            2 => self.limit(&mut select, columns),
            _ => {}
        }
        Body::Select(Box::new(select))
    }

    pub fn add_where(&mut self, select: &mut Select, scope: &Scope, depth: usize) {
        let many = self.random.weighted(&[50, 38, 12]);
        for _ in 0..many {
            let condition = self.condition(scope, depth);
            select.wheres.push(condition);
        }
        if !self.outer.0.is_empty() && self.random.chance(70) {
            self.correlate(select, scope);
        }
    }

    /// Conditions between the columns in FROM and those of the enclosing queries.
    fn correlate(&mut self, select: &mut Select, scope: &Scope) {
        let pairs: Vec<_> = self
            .outer
            .0
            .iter()
            .flat_map(|outer| scope.0.iter().map(move |inner| (outer, inner)))
            .filter(|(outer, inner)| outer.kind == inner.kind && outer.kind.has_equality())
            .map(|(outer, inner)| (outer.sql.clone(), inner.sql.clone()))
            .collect();
        if pairs.is_empty() {
            return;
        }
        self.met(Construct::Correlated);
        for _ in 0..self.random.weighted(&[0, 75, 25]) {
            let (outer, inner) = self.random.pick(&pairs).clone();
            let operator = match self.random.weighted(&[80, 8, 6, 6]) {
                1 => "<",
                2 => "<>",
                3 => "IS NOT DISTINCT FROM",
                _ => "=",
            };
            select.wheres.push(format!("{inner} {operator} {outer}").into());
        }
    }

    pub fn item(&mut self, scope: &Scope) -> (String, Type) {
        let column = scope.any(self.random);
        if self.random.chance(60) {
            (column.sql, column.kind)
        } else if self.random.chance(20) {
            (bool_expression(scope, 1, self.random), Type::Bool)
        } else {
            (expression(scope, column.kind, 2, self.random), column.kind)
        }
    }

    /// An item that may have a sub-query in it, or a column of an enclosing query.
    fn item_or_scalar(&mut self, scope: &Scope, depth: usize) -> (Sql, Type) {
        if self.sub_query(13) {
            self.met(Construct::SubQueryInList);
            return if self.random.chance(35) {
                (self.sub_link(scope, depth), Type::Bool)
            } else {
                self.scalar(scope, depth)
            };
        }
        if !self.outer.0.is_empty() && self.random.chance(12) {
            self.met(Construct::Correlated);
            let column = self.outer.any(self.random);
            return (column.sql.into(), column.kind);
        }
        let (sql, kind) = self.item(scope);
        (sql.into(), kind)
    }

    fn distinct(&mut self, select: &mut Select, columns: &Columns) {
        self.met(Construct::Distinct);
        self.is_open |= columns.iter().any(|it| it.1.is_open());
        select.distinct = Distinct::All;
    }

    fn distinct_on(&mut self, select: &mut Select, columns: &Columns, scope: &Scope) {
        self.met(Construct::DistinctOn);
        let most = columns.len().min(2);
        select.distinct = Distinct::On(self.random.between(1, most));
        self.order(select, columns);
        if let Some(order) = &mut select.order
            && self.random.chance(60)
        {
            let (sql, _) = self.item(scope);
            if sql.contains('.') {
                order.first.push(sql.into());
            }
        }
    }

    fn limit(&mut self, select: &mut Select, columns: &Columns) {
        self.met(Construct::Limit);
        self.order(select, columns);
        let many = self.random.between(0, 4);
        let limit = match self.random.below(5) {
            0 => format!("OFFSET {many}"),
            1 => format!("LIMIT {many} OFFSET {}", self.random.between(1, 2)),
            2 => format!("FETCH FIRST {} ROWS WITH TIES", many.max(1)),
            _ => format!("LIMIT {}", many.max(1)),
        };
        select.limit = Some(limit);
    }

    fn order(&mut self, select: &mut Select, columns: &Columns) {
        self.is_open |= columns.iter().any(|it| it.1.is_open());
        let words = ["", "", " DESC", " NULLS FIRST", " DESC NULLS LAST"];
        let directions = columns.iter().map(|_| *self.random.pick(&words)).collect();
        select.order = Some(Order { directions, first: Vec::new() });
    }

    fn set_returning(&mut self, select: &mut Select, columns: &mut Columns, scope: &Scope) {
        self.met(Construct::SetReturningItem);
        let number = scope.of(Type::Int, self.random);
        let text = scope.of(Type::Text, self.random);
        let (sql, kind) = match (number, text) {
            (Some(number), _) => (format!("generate_series(1, {number} % 4)"), Type::Int),
            (_, Some(text)) => (format!("unnest(string_to_array({text}, NULL))"), Type::Text),
            _ => ("generate_series(1, 2)".to_owned(), Type::Int),
        };
        push_item(select, columns, sql.into(), kind);
        if self.random.chance(25) {
            push_item(select, columns, "unnest(ARRAY[1, 2, NULL])".into(), Type::Int);
        }
    }

    fn grouped(&mut self, select: &mut Select, columns: &mut Columns, scope: &Scope, depth: usize) {
        self.met(Construct::Group);
        let mut keys = Vec::new();
        for _ in 0..self.random.between(1, 3) {
            let (sql, kind) = self.item(scope);
            if !kind.has_equality() {
                continue;
            }
            self.is_open |= kind.is_open();
            if self.random.chance(85) {
                push_item(select, columns, sql.clone().into(), kind);
            }
            let key = Sql::from(sql.clone());
            // A constant in GROUP BY would be an ordinal or an error.
            if !sql.contains('.') || select.group.contains(&key) {
                continue;
            }
            keys.push(Column { sql, kind });
            select.group.push(key);
        }
        if !select.group.is_empty() && self.random.chance(28) {
            self.grouping_sets(select, columns);
        }
        // Items that are not grouped by were constants.
        self.aggregates(select, columns, scope, depth);
        // What is above the grouping names the plain columns among the keys only.
        keys.retain(|key| !key.sql.contains(['(', ' ']));
        let keys = Scope(keys);
        if self.sub_query(10) {
            self.met(Construct::SubQueryInHaving);
            let condition = self.sub_link_over_group(&keys, depth);
            select.having.push(condition);
        }
        if self.sub_query(6) {
            self.met(Construct::SubQueryInList);
            let (sql, kind) = self.scalar(&keys, depth);
            push_item(select, columns, sql, kind);
        }
        if self.random.chance(16) {
            self.window_over_group(select, columns, &keys);
        }
    }

    fn grouping_sets(&mut self, select: &mut Select, columns: &mut Columns) {
        self.met(Construct::GroupingSets);
        let many = select.group.len();
        select.grouping = match self.random.below(3) {
            0 => Grouping::Rollup,
            1 => Grouping::Cube,
            _ => {
                let sets = self.random.between(1, 3);
                let set = |it: &mut Self| (0..many).filter(|_| it.random.chance(60)).collect();
                let mut sets: Vec<_> = (0..sets).map(|_| set(self)).collect();
                // Every key that an item names must be in one of them.
                sets.push((0..many).collect());
                Grouping::Sets(sets)
            }
        };
        if self.random.chance(50) {
            let key = self.random.pick(&select.group).to_string();
            push_item(select, columns, format!("GROUPING({key})").into(), Type::Int);
        }
    }

    fn aggregates(
        &mut self,
        select: &mut Select,
        columns: &mut Columns,
        scope: &Scope,
        depth: usize,
    ) {
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
            push_item(select, columns, sql.into(), kind);
        }
        if self.random.chance(20) {
            self.met(Construct::Having);
            let having = match self.random.below(4) {
                0 => "count(*) > 1".to_owned(),
                1 => "count(*) % 2 = 0".to_owned(),
                2 => {
                    let column = scope.any(self.random);
                    format!("count({}) < 3", column.sql)
                }
                _ => format!("bool_or({})", bool_expression(scope, 1, self.random)),
            };
            select.having.push(having.into());
        }
        // A sub-query as the argument of an aggregate.
        if self.sub_query(3) {
            self.met(Construct::SubQueryInList);
            let argument = self.sub_link(scope, depth);
            push_item(select, columns, Sql::of("bool_or({})", [argument]), Type::Bool);
        }
    }

    pub fn aggregate(&mut self, scope: &Scope) -> (String, Type) {
        let column = scope.any(self.random);
        let argument = if self.random.chance(75) {
            column.sql.clone()
        } else {
            expression(scope, column.kind, 1, self.random)
        };
        let (sql, kind) = self.aggregate_of(&argument, column.kind);
        // FILTER belongs to a call, which is not all that some are.
        let is_call = sql.ends_with(')') && !sql.starts_with('(') && !sql.contains(" - count");
        if is_call && self.random.chance(15) {
            let condition = bool_expression(scope, 1, self.random);
            (format!("{sql} FILTER (WHERE {condition})"), kind)
        } else {
            (sql, kind)
        }
    }

    fn aggregate_of(&mut self, x: &str, kind: Type) -> (String, Type) {
        let distinct = if self.random.chance(12) { "DISTINCT " } else { "" };
        let choice = self.random.weighted(&[20, 12, 25, 18, 15, 12]);
        match (choice, kind) {
            (0, _) => ("count(*)".to_owned(), Type::BigInt),
            (1, _) => (format!("count({distinct}{x})"), Type::BigInt),
            (2, Type::Int) => (format!("sum({distinct}{x})"), Type::BigInt),
            (2, Type::Float) => (format!("sum({x})"), Type::Float),
            (2, Type::BigInt | Type::Fixed | Type::Numeric) => {
                (format!("sum({distinct}{x})"), Type::Numeric)
            }
            (3, kind) if kind.has_extremes() => {
                self.met(Construct::Extremum);
                self.is_open |= kind.is_open();
                let name = if self.random.chance(50) { "min" } else { "max" };
                (format!("{name}({x})"), kind.extreme().expect("it has extremes"))
            }
            (4, Type::Float) => (format!("avg({x})"), RATIO),
            (4, kind) if kind.is_number() => (format!("avg({distinct}{x})"), Type::Numeric),
            (5 | 4 | 2, Type::Int | Type::Text | Type::Of(_)) => {
                self.met(Construct::Rescanned);
                self.rescanned(x, kind)
            }
            (5, Type::Jsonb | Type::Date) => {
                self.met(Construct::Rescanned);
                (format!("jsonb_agg({x} ORDER BY {x})"), Type::Jsonb)
            }
            (_, Type::Bool) => {
                let name = *self.random.pick(&["bool_and", "bool_or", "every"]);
                (format!("{name}({x})"), Type::Bool)
            }
            _ => (format!("count({distinct}{x})"), Type::BigInt),
        }
    }

    fn rescanned(&mut self, x: &str, kind: Type) -> (String, Type) {
        if kind == Type::Text {
            return match self.random.below(3) {
                0 => (format!("longest({x})"), Type::Text),
                _ => (format!("string_agg({x}, '/' ORDER BY {x})"), Type::Text),
            };
        }
        if kind.is_open() {
            // As text, an array would show which of two equal values it holds.
            self.is_open = true;
            return (format!("mode() WITHIN GROUP (ORDER BY {x})"), kind);
        }
        if kind != Type::Int {
            return (format!("(array_agg({x} ORDER BY {x}::text))::text"), Type::Text);
        }
        match self.random.below(9) {
            0 => (format!("array_agg({x} ORDER BY {x})::text"), Type::Text),
            6 => (format!("total({x})"), Type::Int),
            7 => (format!("count(DISTINCT {x}) - count(DISTINCT {x} % 2)"), Type::BigInt),
            8 => (format!("cume_dist(1) WITHIN GROUP (ORDER BY {x})"), RATIO),
            1 => (format!("stddev_pop({x})"), Type::Numeric),
            2 => (format!("percentile_disc(0.5) WITHIN GROUP (ORDER BY {x})"), Type::Int),
            3 => (format!("rank(2) WITHIN GROUP (ORDER BY {x})"), Type::BigInt),
            4 => (format!("mode() WITHIN GROUP (ORDER BY {x})"), Type::Int),
            _ => (format!("bit_or({x})"), Type::Int),
        }
    }
}

pub fn push_item(select: &mut Select, columns: &mut Columns, sql: Sql, kind: Type) {
    let name = format!("c{}", columns.len() + 1);
    select.items.push((sql, name.clone()));
    columns.push((name, kind));
}
