//! Queries with one thing less.

use super::syntax::{Body, Cte, Distinct, Grouping, On, Piece, Query, Relation, Select, Sql};

pub fn smaller_queries(query: &Query) -> Vec<Query> {
    let mut all = Vec::new();
    for at in 0..query.ctes.len() {
        let mut without = query.clone();
        without.ctes.remove(at);
        all.push(without);
        // Its body instead of the whole.
        if !query.ctes[at].recursive {
            all.push(Query { ctes: Vec::new(), body: query.ctes[at].body.clone() });
        }
        for cte in smaller_ctes(&query.ctes[at]) {
            let mut smaller = query.clone();
            smaller.ctes[at] = cte;
            all.push(smaller);
        }
    }
    let with_body = |body| Query { ctes: query.ctes.clone(), body };
    all.extend(smaller_bodies(&query.body).into_iter().map(with_body));
    all
}

fn smaller_ctes(cte: &Cte) -> Vec<Cte> {
    let mut all = vec![Cte { option: "", ..cte.clone() }, Cte { clauses: "", ..cte.clone() }];
    all.extend(smaller_bodies(&cte.body).into_iter().map(|body| Cte { body, ..cte.clone() }));
    all
}

fn smaller_bodies(body: &Body) -> Vec<Body> {
    match body {
        Body::Select(select) => {
            smaller_selects(select).into_iter().map(|it| Body::Select(Box::new(it))).collect()
        }
        Body::Set { left, operator, right } => {
            let set = |left: Body, right: Body| Body::Set {
                left: Box::new(left),
                operator,
                right: Box::new(right),
            };
            let mut all = vec![(**left).clone(), (**right).clone()];
            all.extend(smaller_bodies(left).into_iter().map(|it| set(it, (**right).clone())));
            all.extend(smaller_bodies(right).into_iter().map(|it| set((**left).clone(), it)));
            // One item less in all branches.
            for at in 0..items(left) {
                all.push(set(without_item(left, at), without_item(right, at)));
            }
            all
        }
    }
}

fn items(body: &Body) -> usize {
    match body {
        Body::Select(select) => select.items.len(),
        Body::Set { left, .. } => items(left),
    }
}

fn without_item(body: &Body, at: usize) -> Body {
    match body {
        Body::Select(select) => {
            let mut select = select.clone();
            if at < select.items.len() && select.items.len() > 1 {
                select.remove_item(at);
            }
            Body::Select(select)
        }
        Body::Set { left, operator, right } => Body::Set {
            left: Box::new(without_item(left, at)),
            operator,
            right: Box::new(without_item(right, at)),
        },
    }
}

fn smaller_selects(select: &Select) -> Vec<Select> {
    let mut all = Vec::new();
    let mut add = |change: &dyn Fn(&mut Select)| {
        let mut smaller = select.clone();
        change(&mut smaller);
        all.push(smaller);
    };
    if let Some(from) = &select.from {
        for (smaller, gone) in smaller_froms(from) {
            add(&|it| {
                it.from = Some(smaller.clone());
                for alias in &gone {
                    forget(it, alias);
                }
            });
        }
    }
    for at in (0..select.items.len()).rev() {
        if select.items.len() > 1 {
            add(&|it| it.remove_item(at));
        }
    }
    for at in (0..select.wheres.len()).rev() {
        add(&|it| {
            it.wheres.remove(at);
        });
        for sql in smaller_expressions(&select.wheres[at]) {
            add(&|it| it.wheres[at] = sql.clone());
        }
    }
    for at in (0..select.having.len()).rev() {
        add(&|it| {
            it.having.remove(at);
        });
        for sql in smaller_expressions(&select.having[at]) {
            add(&|it| it.having[at] = sql.clone());
        }
    }
    for at in (0..select.group.len()).rev() {
        add(&|it| {
            let key = it.group.remove(at);
            for item in (0..it.items.len()).rev() {
                if it.items[item].0 == key && it.items.len() > 1 {
                    it.remove_item(item);
                }
            }
        });
    }
    if select.grouping != Grouping::Plain {
        add(&|it| it.grouping = Grouping::Plain);
    }
    if let Grouping::Sets(sets) = &select.grouping {
        for at in 0..sets.len() {
            add(&|it| {
                let mut fewer = sets.clone();
                fewer.remove(at);
                it.grouping = Grouping::Sets(fewer);
            });
        }
    }
    match select.distinct {
        Distinct::None => {
            add(&|it| {
                it.order = None;
                it.limit = None;
            });
        }
        _ => add(&|it| {
            it.distinct = Distinct::None;
            if it.limit.is_none() {
                it.order = None;
            }
        }),
    }
    if let Some(order) = &select.order {
        add(&|it| {
            let order = it.order.as_mut().expect("there was one");
            order.first.clear();
        });
        add(&|it| {
            let plain = it.order.as_mut().expect("there was one");
            plain.directions = vec![""; order.directions.len()];
        });
    }
    if select.window.is_some() {
        add(&|it| it.window = None);
    }
    // An expression becomes a column that it mentions.
    for (at, (sql, _)) in select.items.iter().enumerate() {
        for column in columns_in(&sql.to_string()) {
            let column = Sql::from(column);
            if column != *sql {
                add(&|it| {
                    for key in &mut it.group {
                        if *key == *sql {
                            key.clone_from(&column);
                        }
                    }
                    it.items[at].0.clone_from(&column);
                });
            }
        }
        for smaller in smaller_expressions(sql) {
            add(&|it| it.items[at].0.clone_from(&smaller));
        }
    }
    all
}

/// An operand instead of the whole, and smaller sub-queries.
fn smaller_expressions(sql: &Sql) -> Vec<Sql> {
    let mut all = Vec::new();
    for (at, piece) in sql.0.iter().enumerate() {
        let with = |piece: Piece| {
            let mut smaller = sql.clone();
            smaller.0[at] = piece;
            smaller
        };
        match piece {
            Piece::Text(_) => {}
            Piece::Part(part) => {
                all.push(part.clone());
                all.extend(smaller_expressions(part).into_iter().map(|it| with(Piece::Part(it))));
            }
            Piece::Query(query) => {
                let smaller = smaller_queries(query).into_iter();
                all.extend(smaller.map(|it| with(Piece::Query(Box::new(it)))));
            }
        }
    }
    all
}

/// The column references in an expression: `a1.c2`.
fn columns_in(sql: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for word in sql.split(|c: char| !(c.is_ascii_alphanumeric() || c == '.' || c == '_')) {
        if word.starts_with('a')
            && word[1..].starts_with(|c: char| c.is_ascii_digit())
            && word.contains('.')
            && !found.iter().any(|it| it == word)
        {
            found.push(word.to_owned());
        }
    }
    found
}

/// Takes out everything that mentions the alias.
fn forget(select: &mut Select, alias: &str) {
    let mentions = |sql: &Sql| {
        columns_in(&sql.to_string()).iter().any(|it| it.starts_with(&format!("{alias}.")))
    };
    for at in (0..select.items.len()).rev() {
        if mentions(&select.items[at].0) {
            select.remove_item(at);
        }
    }
    select.wheres.retain(|sql| !mentions(sql));
    select.group.retain(|sql| !mentions(sql));
    select.having.retain(|sql| !mentions(sql));
    if select.items.is_empty() {
        select.items.push(("1".into(), "c1".to_owned()));
        if let Some(order) = &mut select.order {
            order.directions.push("");
        }
    }
    if let Some(from) = &mut select.from {
        forget_in_from(from, &mentions);
    }
}

fn forget_in_from(from: &mut Relation, mentions: &dyn Fn(&Sql) -> bool) {
    if let Relation::Join { left, right, on, .. } = from {
        if let On::Conditions(parts) = on {
            parts.retain(|sql| !mentions(sql));
        }
        forget_in_from(left, mentions);
        forget_in_from(right, mentions);
    }
}

/// Smaller FROMs, with the aliases that they no longer have.
fn smaller_froms(from: &Relation) -> Vec<(Relation, Vec<String>)> {
    match from {
        Relation::Named { .. } | Relation::Function { .. } => Vec::new(),
        Relation::Sub { query, alias, lateral } => {
            let sub = |query: Query, lateral: bool| Relation::Sub {
                query: Box::new(query),
                alias: alias.clone(),
                lateral,
            };
            let mut all: Vec<_> = smaller_queries(query)
                .into_iter()
                .map(|query| (sub(query, *lateral), Vec::new()))
                .collect();
            if *lateral {
                all.push((sub((**query).clone(), false), Vec::new()));
            }
            // A sub-query over one source becomes the source; columns of the same name fit.
            if let Body::Select(select) = &query.body
                && let Some(Relation::Named { name, .. }) = &select.from
            {
                let named = Relation::Named { name: name.clone(), alias: alias.clone() };
                all.push((named, Vec::new()));
            }
            all
        }
        Relation::Join { left, kind, right, on } => {
            let join = |left: Relation, kind: &'static str, right: Relation, on: On| {
                Relation::Join { left: Box::new(left), kind, right: Box::new(right), on }
            };
            let (l, r) = (|| (**left).clone(), || (**right).clone());
            let mut all = vec![(l(), aliases(right)), (r(), aliases(left))];
            for (smaller, gone) in smaller_froms(left) {
                all.push((join(smaller, kind, r(), on.clone()), gone));
            }
            for (smaller, gone) in smaller_froms(right) {
                all.push((join(l(), kind, smaller, on.clone()), gone));
            }
            if *kind != "JOIN" {
                all.push((join(l(), "JOIN", r(), on.clone()), Vec::new()));
            }
            if let On::Conditions(parts) = on {
                for at in 0..parts.len() {
                    let mut fewer = parts.clone();
                    fewer.remove(at);
                    all.push((join(l(), kind, r(), On::Conditions(fewer)), Vec::new()));
                    for smaller in smaller_expressions(&parts[at]) {
                        let mut parts = parts.clone();
                        parts[at] = smaller;
                        all.push((join(l(), kind, r(), On::Conditions(parts)), Vec::new()));
                    }
                }
            }
            all
        }
    }
}

fn aliases(from: &Relation) -> Vec<String> {
    match from {
        Relation::Named { alias, .. }
        | Relation::Sub { alias, .. }
        | Relation::Function { alias, .. } => vec![alias.clone()],
        Relation::Join { left, right, .. } => [aliases(left), aliases(right)].concat(),
    }
}
