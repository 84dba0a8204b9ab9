//! Random queries.

use std::collections::BTreeSet;

use super::{
    construct::{Construct, Constructs},
    expression::{Column, Scope, expression},
    random::Random,
    syntax::{Body, Cte, On, Query, Relation, Select, Sql},
    value::Type,
};

/// Something that FROM can name.
#[derive(Clone, Debug)]
pub struct Source {
    pub name: String,
    pub columns: Columns,
    /// Columns of one name have one type in all such sources.
    pub is_table: bool,
    /// What one meets by naming it.
    pub constructs: Constructs,
}

pub type Columns = Vec<(String, Type)>;

/// A random query, and whether it leaves open which of several equal values it returns.
pub struct Generated {
    pub query: Query,
    pub columns: Columns,
    pub is_open: bool,
    /// Whether a scalar sub-query may return several rows, which is an error where it is evaluated.
    pub may_fail: bool,
    pub constructs: Constructs,
}

/// Of some random queries the one with the fewest of the constructs to do without.
pub fn query_without(without: &Constructs, sources: &[Source], random: &mut Random) -> Generated {
    let mut best: Option<(usize, Generated)> = None;
    for _ in 0..if without.is_empty() { 1 } else { 20 } {
        let query = random_query(sources, random);
        let many = query.constructs.intersection(without).count();
        if best.as_ref().is_none_or(|(least, _)| many < *least) {
            best = Some((many, query));
        }
    }
    best.expect("a query at least").1
}

fn random_query(sources: &[Source], random: &mut Random) -> Generated {
    let mut generator = Generator {
        random,
        sources: sources.to_vec(),
        outer: Scope::default(),
        aliases: 0,
        ctes: 0,
        sub_queries: 0,
        is_open: false,
        may_fail: false,
        constructs: Constructs::new(),
        used: BTreeSet::new(),
    };
    let depth = generator.random.weighted(&[30, 40, 22, 8]);
    generator.sub_queries = generator.random.between(1, 3 + 3 * depth);
    let (query, columns) = generator.query(depth, true);
    let Generator { is_open, may_fail, constructs, .. } = generator;
    Generated { query, columns, is_open, may_fail, constructs }
}

pub(super) struct Generator<'a> {
    pub random: &'a mut Random,
    pub sources: Vec<Source>,
    /// The columns of the enclosing queries.
    pub outer: Scope,
    pub aliases: usize,
    ctes: usize,
    /// How many more may be made.
    pub sub_queries: usize,
    pub is_open: bool,
    pub may_fail: bool,
    constructs: Constructs,
    /// The CTEs that were named.
    pub used: BTreeSet<String>,
}

impl Generator<'_> {
    pub fn met(&mut self, construct: Construct) {
        self.constructs.insert(construct);
    }

    /// Whether to make a sub-query now: by chance, and while there may be more of them.
    pub fn sub_query(&mut self, percent: usize) -> bool {
        let yes = self.sub_queries > 0 && self.random.chance(percent);
        self.sub_queries -= usize::from(yes);
        yes
    }

    pub fn alias(&mut self) -> String {
        self.aliases += 1;
        format!("a{}", self.aliases)
    }

    /// Runs with the scope's columns visible as those of an enclosing query.
    pub fn inside<T>(&mut self, scope: &Scope, make: impl FnOnce(&mut Self) -> T) -> T {
        let visible = self.outer.0.len();
        self.outer.0.extend(scope.0.iter().cloned());
        let made = make(self);
        self.outer.0.truncate(visible);
        made
    }

    /// A query with any columns.
    pub fn query(&mut self, depth: usize, is_top: bool) -> (Query, Columns) {
        let outer = self.sources.len();
        let ctes = self.ctes(depth);
        let (body, columns) = self.body(depth, is_top);
        self.sources.truncate(outer);
        (Query { ctes, body }, columns)
    }

    /// A query with columns of given names and types.
    pub fn query_of(&mut self, columns: &Columns, depth: usize) -> Query {
        let outer = self.sources.len();
        let ctes = if self.random.chance(15) { self.ctes(depth) } else { Vec::new() };
        let mut body = self.select_of(columns, depth);
        if self.random.chance(12) {
            let other = self.select_of(columns, 0);
            body = self.set(body, other, columns);
        }
        self.sources.truncate(outer);
        Query { ctes, body }
    }

    fn ctes(&mut self, depth: usize) -> Vec<Cte> {
        if depth == 0 || !self.sub_query(30) {
            return Vec::new();
        }
        self.ctes += 1;
        let name = format!("cte{}", self.ctes);
        let (cte, columns) = if self.random.chance(35) {
            self.recursive(name.clone(), depth)
        } else {
            self.met(Construct::Cte);
            let (body, columns) = self.body(depth - 1, false);
            let option = *self.random.pick(&["", "", "MATERIALIZED ", "NOT MATERIALIZED "]);
            let cte = Cte {
                name: name.clone(),
                columns: Vec::new(),
                recursive: false,
                option,
                body,
                clauses: "",
            };
            (cte, columns)
        };
        let source = Source { name, columns, is_table: false, constructs: Constructs::new() };
        // Several times, so that it is found more often, and used twice now and then.
        for _ in 0..self.random.between(2, 5) {
            self.sources.push(source.clone());
        }
        vec![cte]
    }

    /// Pairs of values, followed from one to the next.
    fn recursive(&mut self, name: String, depth: usize) -> (Cte, Columns) {
        let all = self.random.chance(50);
        self.met(if all { Construct::RecursiveAll } else { Construct::RecursiveUnion });
        let (base, scope) = self.leaf(depth - 1);
        let start = scope.any(self.random);
        let kind = start.kind;
        self.is_open |= kind.is_open();
        let (step, next) = self.leaf(0);
        let alias = self.alias();
        let depth_or_start = if all { Type::Int } else { kind };
        let columns = vec![("c1".to_owned(), kind), ("c2".to_owned(), depth_or_start)];
        let from = next.of(kind, self.random);
        let from = from.unwrap_or_else(|| expression(&next, kind, 1, self.random));
        let beside = self.random.chance(20).then(|| {
            let (relation, scope) = self.leaf(0);
            let on = self.on(&next, &scope, "LEFT JOIN", 0);
            (relation, scope, on)
        });
        let to_scope = beside.as_ref().map_or(&next, |it| &it.1);
        let to = expression(to_scope, kind, 1, self.random);
        let mut conditions: Vec<Sql> = vec![format!("{alias}.c1 = {from}").into()];
        if self.sub_query(25) {
            conditions.push(self.condition(&next, 0));
        }
        let second = if all {
            conditions.push(format!("{alias}.c2 < 3").into());
            ["1".to_owned(), format!("{alias}.c2 + 1")]
        } else {
            [start.sql.clone(), format!("{alias}.c2")]
        };
        let item = |sql: String, name: &str| (sql.into(), name.to_owned());
        let mut first = Select {
            items: vec![item(start.sql, "c1"), item(second[0].clone(), "c2")],
            from: Some(base),
            ..Select::default()
        };
        self.add_where(&mut first, &scope, 0);
        let recursion = Relation::Named { name: name.clone(), alias };
        let mut from = Relation::Join {
            left: Box::new(recursion),
            kind: "JOIN",
            right: Box::new(step),
            on: On::Conditions(conditions),
        };
        if let Some((right, _, on)) = beside {
            self.met(Construct::LeftJoin);
            let (left, right) = (Box::new(from), Box::new(right));
            from = Relation::Join { left, kind: "LEFT JOIN", right, on };
        }
        let follow = Select {
            items: vec![item(to, "c1"), item(second[1].clone(), "c2")],
            from: Some(from),
            ..Select::default()
        };
        // With these, rows differ by their path: only bounded recursions end.
        let clauses = match self.random.below(8) {
            0 if all => "SEARCH BREADTH FIRST BY c1 SET searched ",
            1 if all => "SEARCH DEPTH FIRST BY c1, c2 SET searched ",
            2 if all => "CYCLE c1 SET is_cycle USING cycle_path ",
            _ => "",
        };
        if !clauses.is_empty() {
            self.met(Construct::SearchCycle);
        }
        let body = Body::Set {
            left: Box::new(Body::Select(Box::new(first))),
            operator: if all { "UNION ALL" } else { "UNION" },
            right: Box::new(Body::Select(Box::new(follow))),
        };
        let names = columns.iter().map(|(name, _)| name.clone()).collect();
        (Cte { name, columns: names, recursive: true, option: "", body, clauses }, columns)
    }

    fn body(&mut self, depth: usize, is_top: bool) -> (Body, Columns) {
        let (select, columns) = self.select(depth, is_top);
        let mut body = Body::Select(Box::new(select));
        if self.random.chance(18) {
            let many = self.random.weighted(&[0, 65, 25, 10]);
            for _ in 0..many {
                let other = self.select_of(&columns, depth.saturating_sub(1));
                body = if self.random.chance(70) {
                    self.set(body, other, &columns)
                } else {
                    self.set(other, body, &columns)
                };
            }
        }
        (body, columns)
    }

    fn set(&mut self, left: Body, right: Body, columns: &Columns) -> Body {
        let (operator, construct) = *self.random.pick(&[
            ("UNION ALL", Construct::UnionAll),
            ("UNION ALL", Construct::UnionAll),
            ("UNION", Construct::Union),
            ("INTERSECT", Construct::Intersect),
            ("INTERSECT ALL", Construct::IntersectAll),
            ("EXCEPT", Construct::Except),
            ("EXCEPT ALL", Construct::ExceptAll),
        ]);
        self.met(construct);
        self.is_open |= operator != "UNION ALL" && columns.iter().any(|it| it.1.is_open());
        Body::Set { left: Box::new(left), operator, right: Box::new(right) }
    }
}

pub fn scope_of(alias: &str, columns: &Columns) -> Scope {
    Scope(
        columns
            .iter()
            .map(|(name, kind)| Column { sql: format!("{alias}.{name}"), kind: *kind })
            .collect(),
    )
}
