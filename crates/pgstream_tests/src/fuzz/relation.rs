//! Random FROM clauses.

use super::{
    construct::Construct,
    expression::{Column, Scope, bool_expression},
    query::{Columns, Generator, Source, scope_of},
    syntax::{On, Relation, Sql},
    value::Type,
};

impl Generator<'_> {
    pub fn from(&mut self, depth: usize) -> (Relation, Scope) {
        let leaves = 1 + self.random.weighted(&[42, 38, 15, 5]);
        self.join_of(leaves, depth)
    }

    fn join_of(&mut self, leaves: usize, depth: usize) -> (Relation, Scope) {
        if leaves == 1 {
            return self.leaf(depth);
        }
        let right_leaves = if leaves > 2 && self.random.chance(25) { 2 } else { 1 };
        if leaves == 2
            && self.random.chance(15)
            && let Some(joined) = self.join_by_name()
        {
            return joined;
        }
        let (left, left_scope) = self.join_of(leaves - right_leaves, depth);
        if right_leaves == 1 && self.random.chance(22) {
            return self.join_lateral(left, left_scope, depth);
        }
        let (right, right_scope) = self.join_of(right_leaves, depth.saturating_sub(1));
        let kind = self.join_kind();
        let on = self.on(&left_scope, &right_scope, kind, depth);
        let scope = left_scope.and(&right_scope);
        (Relation::Join { left: Box::new(left), kind, right: Box::new(right), on }, scope)
    }

    fn join_kind(&mut self) -> &'static str {
        let (kind, construct) = *self.random.pick(&[
            ("JOIN", Construct::InnerJoin),
            ("JOIN", Construct::InnerJoin),
            ("JOIN", Construct::InnerJoin),
            ("LEFT JOIN", Construct::LeftJoin),
            ("LEFT JOIN", Construct::LeftJoin),
            ("RIGHT JOIN", Construct::RightJoin),
            ("FULL JOIN", Construct::FullJoin),
        ]);
        self.met(construct);
        kind
    }

    /// A sub-query or a function that sees what is to the left of it.
    fn join_lateral(&mut self, left: Relation, scope: Scope, depth: usize) -> (Relation, Scope) {
        let is_left = self.random.chance(45);
        let (right, right_scope) = if self.sub_query(60) {
            self.met(if is_left { Construct::LeftLateral } else { Construct::Lateral });
            let (query, columns) = self.inside(&scope, |it| it.query(depth.min(1), false));
            let alias = self.alias();
            let right_scope = scope_of(&alias, &columns);
            (Relation::Sub { query: Box::new(query), alias, lateral: true }, right_scope)
        } else {
            if is_left {
                self.met(Construct::LeftLateral);
            }
            self.function(&scope)
        };
        let kind = if is_left { "LEFT JOIN" } else { "JOIN" };
        let on = if self.random.chance(60) {
            On::Conditions(Vec::new())
        } else {
            self.on(&scope, &right_scope, kind, depth)
        };
        let all = scope.and(&right_scope);
        (Relation::Join { left: Box::new(left), kind, right: Box::new(right), on }, all)
    }

    /// Set-returning functions of columns in the scope, of which there may be none.
    pub fn function(&mut self, scope: &Scope) -> (Relation, Scope) {
        self.met(Construct::FunctionInFrom);
        let (mut sql, mut kinds) = self.function_call(scope);
        if self.random.chance(15) {
            self.met(Construct::RowsFrom);
            let (other, others) = self.function_call(scope);
            sql = format!("ROWS FROM ({sql}, {other})");
            kinds.extend(others);
        } else if self.random.chance(20) {
            self.met(Construct::JsonTable);
            let json = scope.of(Type::Jsonb, self.random);
            let json = json.unwrap_or_else(|| Type::Jsonb.literal(self.random));
            sql = format!(
                "JSON_TABLE({json}, '$[*]' COLUMNS (c1 text PATH '$', c2 int PATH '$.a' NULL ON ERROR))"
            );
            kinds = vec![Type::Text, Type::Int];
        }
        if !sql.starts_with("JSON_TABLE") && self.random.chance(35) {
            self.met(Construct::Ordinality);
            sql += " WITH ORDINALITY";
            kinds.push(Type::BigInt);
        }
        let columns: Columns = (1..).map(|at| format!("c{at}")).zip(kinds).collect();
        let alias = self.alias();
        let scope = scope_of(&alias, &columns);
        let columns = columns.into_iter().map(|it| it.0).collect();
        (Relation::Function { sql, alias, columns }, scope)
    }

    fn function_call(&mut self, scope: &Scope) -> (String, Vec<Type>) {
        let argument = |kind: Type, it: &mut Self| {
            scope.of(kind, it.random).unwrap_or_else(|| kind.literal(it.random))
        };
        match self.random.below(4) {
            0 => {
                let number = argument(Type::Int, self);
                (format!("generate_series(1, {number} % 4)"), vec![Type::Int])
            }
            1 => {
                let text = argument(Type::Text, self);
                (format!("unnest(string_to_array({text}, NULL))"), vec![Type::Text])
            }
            2 => {
                let json = argument(Type::Jsonb, self);
                (format!("jsonb_path_query({json}, '$[*]')"), vec![Type::Jsonb])
            }
            _ => {
                let (number, other) = (argument(Type::Int, self), argument(Type::Int, self));
                (format!("unnest(ARRAY[{number}, {other}])"), vec![Type::Int])
            }
        }
    }

    /// USING or NATURAL, between two tables that share a name.
    fn join_by_name(&mut self) -> Option<(Relation, Scope)> {
        let tables: Vec<_> = self.sources.iter().filter(|it| it.is_table).cloned().collect();
        if tables.is_empty() {
            return None;
        }
        let (left, right) = (self.random.pick(&tables).clone(), self.random.pick(&tables).clone());
        let mut shared: Vec<_> =
            left.columns.iter().filter(|column| right.columns.contains(column)).cloned().collect();
        // Rows of which a part has no equality fail only where two of them meet.
        let is_comparable = |it: &(String, Type)| it.1.has_equality();
        let are_comparable = shared.iter().all(is_comparable);
        shared.retain(is_comparable);
        if shared.is_empty() {
            return None;
        }
        self.met(Construct::JoinUsing);
        let on = if are_comparable && self.random.chance(35) {
            On::Natural
        } else {
            On::Using(self.random.pick(&shared).0.clone())
        };
        let kind = self.join_kind();
        let (left, left_scope) = self.named(&left);
        let (right, right_scope) = self.named(&right);
        let scope = left_scope.and(&right_scope);
        Some((Relation::Join { left: Box::new(left), kind, right: Box::new(right), on }, scope))
    }

    pub fn on(&mut self, left: &Scope, right: &Scope, kind: &'static str, depth: usize) -> On {
        let is_full = kind == "FULL JOIN";
        let pairs: Vec<_> = left
            .0
            .iter()
            .flat_map(|l| right.0.iter().map(move |r| (l, r)))
            .filter(|(l, r)| is_joinable(l, r))
            .collect();
        if pairs.is_empty() || self.random.chance(5) {
            return if kind == "JOIN" { On::Cross } else { On::Conditions(Vec::new()) };
        }
        let mut conditions: Vec<Sql> = Vec::new();
        for _ in 0..self.random.between(1, 2) {
            let (l, r) = *self.random.pick(&pairs);
            let operator = match self.random.weighted(&[76, 10, 7, 7]) {
                _ if is_full => "=",
                1 => "<",
                2 => "<>",
                3 => "IS NOT DISTINCT FROM",
                _ => "=",
            };
            if operator != "=" {
                self.met(Construct::NonEquiJoin);
            }
            conditions.push(format!("{} {operator} {}", l.sql, r.sql).into());
            if self.random.chance(75) {
                break;
            }
        }
        let both = left.and(right);
        if self.random.chance(22) {
            let scope = *self.random.pick(&[left, right, &both]);
            conditions.push(bool_expression(scope, 1, self.random).into());
        }
        if self.sub_query(8) {
            self.met(Construct::SubQueryInJoin);
            // About one side more often, for which there are rules. PostgreSQL can do FULL JOIN with
            // conditions that it can merge or hash only, and others beside them.
            let scope = *self.random.pick(&[left, right, left, right, &both]);
            conditions.push(self.sub_link(scope, depth));
        }
        On::Conditions(conditions)
    }

    pub fn leaf(&mut self, depth: usize) -> (Relation, Scope) {
        if self.random.chance(4) {
            return self.function(&Scope::default());
        }
        if depth > 0 && self.sub_query(50) {
            self.met(Construct::SubQueryInFrom);
            let (query, columns) = self.query(depth - 1, false);
            let alias = self.alias();
            let scope = scope_of(&alias, &columns);
            return (Relation::Sub { query: Box::new(query), alias, lateral: false }, scope);
        }
        // Later sources (stream tables, views, CTEs) twice as likely.
        let weights: Vec<_> =
            self.sources.iter().map(|it| if it.is_table { 2 } else { 3 }).collect();
        let source = self.sources[self.random.weighted(&weights)].clone();
        self.named(&source)
    }

    fn named(&mut self, source: &Source) -> (Relation, Scope) {
        source.constructs.iter().for_each(|it| self.met(*it));
        if source.name.starts_with("cte") && !self.used.insert(source.name.clone()) {
            self.met(Construct::CteTwice);
        }
        let alias = self.alias();
        let scope = scope_of(&alias, &source.columns);
        (Relation::Named { name: source.name.clone(), alias }, scope)
    }
}

fn is_joinable(l: &Column, r: &Column) -> bool {
    (l.kind == r.kind && l.kind.has_equality())
        || matches!(
            (l.kind, r.kind),
            (Type::Int, Type::BigInt)
                | (Type::BigInt, Type::Int)
                | (Type::Text, Type::Varchar)
                | (Type::Int, Type::Numeric)
        )
}
