//! A stateless plan as one SELECT.
//!
//! Joins and filters are flattened into one FROM list, so that PostgreSQL's planner is free to
//! start from the smallest relation, which is the delta. A projection that computes something
//! becomes a sub-select, which the planner pulls up; printing it inline could double the text at
//! every level.
//!
//! An outer join is one item of the FROM list, and a mark is an EXISTS. A filter on a mark is then
//! WHERE [NOT] EXISTS, which the planner turns into a semi-join or an anti-join.

use crate::{
    look_up::equalities_among_others,
    plan::{Plan, Scan, Schema, Source, Version},
    scalar::Scalar,
    sql::{ROW_ID, Storage, ident::quote},
};

/// `pg_type.oid` of the integers.
const INT8: u32 = 20;
const INT2: u32 = 21;
const INT4: u32 = 23;

/// The row id for a NULL: no integer of less than eight bytes, and a rare one of eight.
const NO_INTEGER: &str = "-9223372036854775807";

/// The name of the ephemeral relation that holds the delta of `source`.
pub fn delta_name(source: &Source) -> String {
    match source {
        Source::Table { oid, .. } => format!("__pgs_delta_{oid}"),
        Source::Stage(stage) => format!("__pgs_delta_stage_{stage}"),
    }
}

/// The name of a column in a source's delta: by attribute number of a table, by position in the
/// output of a stage.
pub fn delta_column(attribute: usize) -> String {
    format!("a{attribute}")
}

/// A SELECT under construction.
struct Select {
    from: Vec<String>,
    conditions: Vec<String>,
    columns: Vec<String>,
    /// Factors of the weight.
    weight: Vec<String>,
    /// Whether a column can be something other than a column of `from`. Then it need not be NULL
    /// where those are.
    computes: bool,
}

/// Prints plans; numbers the aliases.
pub(super) struct Printer<'a> {
    storages: &'a [Storage],
    aliases: usize,
}

impl<'a> Printer<'a> {
    pub(super) fn new(storages: &'a [Storage]) -> Self {
        Self { storages, aliases: 0 }
    }

    /// `(SELECT … AS c0, …, weight AS w …)`, without an alias.
    pub(super) fn weighted(&mut self, plan: &Plan) -> String {
        let select = self.select(plan);
        let weight = select.print_weight();
        format!("({})", select.print_with(Some(&weight)))
    }

    /// `(SELECT … AS c0, … …)` of content whose rows all have weight 1, without an alias.
    pub(super) fn unweighted(&mut self, plan: &Plan) -> String {
        format!("({})", self.select(plan).print_with(None))
    }

    fn alias(&mut self) -> String {
        self.aliases += 1;
        format!("t{}", self.aliases)
    }

    fn select(&mut self, plan: &Plan) -> Select {
        match plan {
            Plan::Unit => Select {
                from: Vec::new(),
                conditions: Vec::new(),
                columns: Vec::new(),
                weight: Vec::new(),
                computes: false,
            },
            Plan::Empty(schema) => Select {
                from: Vec::new(),
                conditions: vec!["false".to_owned()],
                columns: schema.iter().map(|it| Scalar::null(&it.ty).to_string()).collect(),
                weight: Vec::new(),
                computes: true,
            },
            Plan::Scan(scan) => self.scan(scan),
            Plan::Filter { input, predicate } => {
                let mut select = self.select(input);
                select.conditions.push(predicate.print(|it| select.columns[it].clone()));
                select
            }
            Plan::Project { input, columns } => {
                let mut select = self.select(input);
                let is_plain = columns.iter().all(|(it, _)| it.as_column().is_some());
                select.columns = columns
                    .iter()
                    .map(|(it, _)| it.print(|position| select.columns[position].clone()))
                    .collect();
                if is_plain { select } else { self.nested(&select, columns.len()) }
            }
            Plan::InnerJoin { left, right, on } => {
                let mut select = self.select(left);
                let right = self.select(right);
                select.from.extend(right.from);
                select.conditions.extend(right.conditions);
                select.columns.extend(right.columns);
                select.weight.extend(right.weight);
                select.computes |= right.computes;
                if let Some(on) = on {
                    select.conditions.push(on.print(|it| select.columns[it].clone()));
                }
                select
            }
            Plan::Sum { inputs } => {
                let is_weighted = inputs.iter().any(is_weighted);
                let branches: Vec<String> = inputs
                    .iter()
                    .map(|input| {
                        let select = self.select(input);
                        let weight = is_weighted.then(|| select.print_weight());
                        select.print_with(weight.as_deref())
                    })
                    .collect();
                self.sub_select(&branches.join(" UNION ALL "), plan.schema().len(), is_weighted)
            }
            Plan::Negate(input) => {
                let mut select = self.select(input);
                select.weight.push("-1::int8".to_owned());
                select
            }
            Plan::Opaque { sql, schema, .. } => {
                let alias = self.alias();
                let names: Vec<String> = (0..schema.len()).map(|it| format!("c{it}")).collect();
                // A sub-query without columns has no column list.
                let list = if names.is_empty() {
                    String::new()
                } else {
                    format!("({})", names.join(", "))
                };
                Select {
                    from: vec![format!("({sql}) AS {alias}{list}")],
                    conditions: Vec::new(),
                    columns: names.iter().map(|it| format!("{alias}.{it}")).collect(),
                    weight: Vec::new(),
                    computes: false,
                }
            }
            Plan::LeftJoin { left, right, on } => {
                let mut left = self.select(left);
                let (left_width, right_width) = (left.columns.len(), right.schema().len());
                if left.from.is_empty() {
                    left = self.nested(&left, left_width);
                }
                let mut right = self.content(right);
                if right.from.is_empty() || right.computes {
                    right = self.nested(&right, right_width);
                }
                left.columns.extend(right.columns);
                let on = on.iter().map(|on| on.print(|it| left.columns[it].clone()));
                let on = conjunction(right.conditions.into_iter().chain(on));
                let join = format!(
                    "({} LEFT JOIN {} ON {})",
                    cross_join(&left.from),
                    cross_join(&right.from),
                    on.unwrap_or_else(|| "true".to_owned())
                );
                left.from = vec![join];
                left
            }
            Plan::Mark { left, right, on, .. } => {
                let mut select = self.select(left);
                let right = self.content(right);
                let exists = exists(&select.columns, right, on.as_ref());
                select.columns.push(exists);
                select.computes = true;
                select
            }
            Plan::MarkChange { left, right, change, on, is_indexed, .. } => {
                self.mark_change((left, right, change), on.as_ref(), *is_indexed)
            }
            Plan::Expand { input, item, columns, outer } => {
                let select = self.select(input);
                self.expanded(select, item, (columns.len(), *outer))
            }
            Plan::Aggregate { .. } | Plan::Window { .. } | Plan::Recurse { .. } => {
                panic!("it is the head of a stage")
            }
        }
    }

    /// Rows that all have weight 1.
    fn content(&mut self, plan: &Plan) -> Select {
        let select = self.select(plan);
        assert!(select.weight.is_empty(), "matches are counted in content");
        select
    }

    /// The rows of `left` that `change` touches are numbered, as nothing else tells them apart. For
    /// each, the weights of its matches in `change` are added up; where that is not 0, its matches
    /// in `right` are counted. With an index, each is looked up, and counting ends with the first match
    /// that is not new; without one, PostgreSQL must be free to join all of them at once.
    fn mark_change(
        &mut self,
        (left, right, change): (&Plan, &Plan, &Plan),
        on: Option<&Scalar>,
        is_indexed: bool,
    ) -> Select {
        let terms = match left {
            Plan::Sum { inputs } => inputs.as_slice(),
            _ => std::slice::from_ref(left),
        };
        let touched = terms.iter().map(|term| {
            let mut select = self.select(term);
            // Only from equalities alone can PostgreSQL start with the change.
            let equalities = on.and_then(|on| equalities_among_others(on, left.schema().len()));
            for on in equalities.as_ref().map(Some).into_iter().chain([on]) {
                let change = self.select(change);
                select.conditions.push(exists(&select.columns, change, on));
            }
            let weight = select.print_weight();
            select.print_with(Some(&weight))
        });
        let touched = touched.collect::<Vec<_>>().join(" UNION ALL ");
        let width = left.schema().len();
        let [u, q, p, r, g, s] = std::array::from_fn(|_| self.alias());
        let any = |row: &str| -> String {
            (0..width).map(|it| format!("any_value({row}.c{it}) AS c{it}, ")).collect()
        };
        let on_text = |row: &str| match on {
            Some(on) => on.print(|it| match it.checked_sub(width) {
                None => format!("{row}.c{it}"),
                Some(it) => format!("{r}.c{it}"),
            }),
            None => "true".to_owned(),
        };
        let change = self.weighted(change);
        let weighed = format!(
            "SELECT {q}.n, {}any_value({q}.w) AS w, sum({r}.w) AS d FROM \
             (SELECT row_number() OVER () AS n, {u}.* FROM ({touched}) AS {u}) AS {q} \
             JOIN {change} AS {r} ON {} GROUP BY {q}.n HAVING sum({r}.w) <> 0",
            any(&q),
            on_text(&q),
        );
        let mut content = self.content(right);
        let counted = if is_indexed {
            let [x, y] = std::array::from_fn(|_| self.alias());
            let content = content.print_with(None);
            let columns: String = (0..width).map(|it| format!("{p}.c{it} AS c{it}, ")).collect();
            format!(
                "SELECT {columns}{p}.w AS w, {y}.m > 0 AS m FROM ({weighed}) AS {p}, \
                 LATERAL (SELECT count(*) AS m FROM (SELECT FROM ({content}) AS {r} WHERE {} \
                 LIMIT GREATEST({p}.d, 0)::int8 + 1) AS {x}) AS {y}(m) \
                 WHERE ({y}.m = 0) <> ({y}.m = {p}.d)",
                on_text(&p),
            )
        } else {
            content.columns.push("true".to_owned());
            let content = content.print_with(None);
            let m = format!("{r}.c{}", right.schema().len());
            format!(
                "SELECT {}any_value({p}.w) AS w, count({m}) > 0 AS m FROM \
                 ({weighed}) AS {p} LEFT JOIN ({content}) AS {r} ON {} GROUP BY {p}.n \
                 HAVING (count({m}) = 0) <> (count({m}) = any_value({p}.d))",
                any(&p),
                on_text(&p),
            )
        };
        let mut columns: Vec<String> = (0..width).map(|it| format!("{g}.c{it}")).collect();
        columns.push(format!("({g}.m = ({s}.s > 0))"));
        let select = Select {
            from: vec![
                format!("({counted}) AS {g}"),
                format!("(SELECT 1::int8 AS s UNION ALL SELECT -1::int8 AS s) AS {s}"),
            ],
            conditions: Vec::new(),
            columns,
            weight: vec![format!("{g}.w"), format!("{s}.s")],
            computes: true,
        };
        self.nested(&select, width + 1)
    }

    /// Adds `item`, which has so many columns, and is the right side of a LEFT JOIN if `outer`.
    fn expanded(&mut self, select: Select, item: &Scalar, (width, outer): (usize, bool)) -> Select {
        let mut select = select;
        if select.computes || (outer && select.from.is_empty()) {
            let columns = select.columns.len();
            select = self.nested(&select, columns);
        }
        let item = item.print(|it| select.columns[it].clone());
        let alias = self.alias();
        let names: Vec<String> = (0..width).map(|it| format!("c{it}")).collect();
        // A sub-query without columns has no column list.
        let list = if names.is_empty() { String::new() } else { format!("({})", names.join(", ")) };
        let item = format!("LATERAL ({item}) AS {alias}{list}");
        if outer {
            let join = format!("({} LEFT JOIN {item} ON true)", cross_join(&select.from));
            select.from = vec![join];
        } else {
            select.from.push(item);
        }
        select.columns.extend(names.iter().map(|it| format!("{alias}.{it}")));
        select
    }

    /// Wraps `select` as a sub-select in FROM.
    fn nested(&mut self, select: &Select, width: usize) -> Select {
        let is_weighted = !select.weight.is_empty();
        let weight = is_weighted.then(|| select.print_weight());
        self.sub_select(&select.print_with(weight.as_deref()), width, is_weighted)
    }

    fn sub_select(&mut self, sql: &str, width: usize, is_weighted: bool) -> Select {
        let alias = self.alias();
        Select {
            from: vec![format!("({sql}) AS {alias}")],
            conditions: Vec::new(),
            columns: (0..width).map(|it| format!("{alias}.c{it}")).collect(),
            weight: if is_weighted { vec![format!("{alias}.w")] } else { Vec::new() },
            computes: false,
        }
    }

    fn scan(&mut self, scan: &Scan) -> Select {
        let (table, names) = match &scan.source {
            Source::Table { sql, .. } => {
                (sql.clone(), scan.columns.iter().map(|it| quote(&it.name)).collect::<Vec<_>>())
            }
            Source::Stage(stage) => {
                let storage = &self.storages[*stage];
                let name = |it: &usize| match storage.inline {
                    Some(_) => format!("c{it}"),
                    None => storage.columns[*it].clone(),
                };
                let table = match (&storage.inline, scan.version) {
                    (Some(body), Version::New) => {
                        let body = self.select(body);
                        let pick = |it: &usize| body.columns[*it].clone();
                        let columns = scan.attributes.iter().map(pick).collect();
                        return Select { columns, ..body };
                    }
                    (Some(body), Version::Old) => format!("{} AS i", self.unweighted(body)),
                    _ => storage.table.clone(),
                };
                (table, scan.attributes.iter().map(name).collect())
            }
        };
        let delta_columns: Vec<String> =
            scan.attributes.iter().map(|it| delta_column(*it)).collect();
        let delta = delta_name(&scan.source);
        let delta = match &scan.policy {
            None => delta,
            // OFFSET 0 is the barrier: nothing else looks at rows that may not be seen.
            Some(policy) => {
                let policy = policy.print(|it| format!("p.{}", delta_columns[it]));
                format!("(SELECT * FROM {delta} AS p WHERE {policy} OFFSET 0)")
            }
        };
        let width = names.len();
        let alias = self.alias();
        let qualified = |names: &[String]| {
            names.iter().map(|name| format!("{alias}.{name}")).collect::<Vec<_>>()
        };
        match scan.version {
            Version::New => Select {
                from: vec![format!("{table} AS {alias}")],
                conditions: Vec::new(),
                columns: qualified(&names),
                weight: Vec::new(),
                computes: false,
            },
            Version::Delta => Select {
                from: vec![format!("{delta} AS {alias}")],
                conditions: Vec::new(),
                columns: qualified(&delta_columns),
                weight: vec![format!("{alias}.w")],
                computes: false,
            },
            Version::Old => {
                let list = |names: &[String], weight: &str| {
                    let mut list: Vec<String> =
                        names.iter().enumerate().map(|(i, it)| format!("{it} AS c{i}")).collect();
                    list.push(format!("{weight} AS w"));
                    list.join(", ")
                };
                let sql = format!(
                    "SELECT {} FROM {table} UNION ALL (SELECT {} FROM {delta} AS d OFFSET 0)",
                    list(&names, "1::int8"),
                    list(&delta_columns, "-w"),
                );
                self.sub_select(&sql, width, true)
            }
        }
    }
}

impl Select {
    fn print_weight(&self) -> String {
        if self.weight.is_empty() { "1::int8".to_owned() } else { self.weight.join(" * ") }
    }

    fn print_with(&self, weight: Option<&str>) -> String {
        let mut list: Vec<String> =
            self.columns.iter().enumerate().map(|(i, it)| format!("{it} AS c{i}")).collect();
        list.extend(weight.map(|it| format!("{it} AS w")));
        let mut sql = format!("SELECT {}", list.join(", "));
        if !self.from.is_empty() {
            sql += &format!(" FROM {}", self.from.join(", "));
        }
        if !self.conditions.is_empty() {
            let conditions: Vec<String> =
                self.conditions.iter().map(|it| format!("({it})")).collect();
            sql += &format!(" WHERE {}", conditions.join(" AND "));
        }
        sql
    }
}

/// Whether a row of the plan can have a weight other than 1.
fn is_weighted(plan: &Plan) -> bool {
    match plan {
        Plan::Scan(scan) => scan.version != Version::New,
        Plan::Negate(_) => true,
        _ => plan.inputs().into_iter().any(is_weighted),
    }
}

/// `EXISTS (SELECT … )`: whether `right` has a row that fits one with these columns.
fn exists(left: &[String], right: Select, on: Option<&Scalar>) -> String {
    let columns: Vec<&String> = left.iter().chain(&right.columns).collect();
    let on = on.map(|on| on.print(|it| columns[it].clone()));
    let from = if right.from.is_empty() {
        String::new()
    } else {
        format!(" FROM {}", right.from.join(", "))
    };
    let condition = conjunction(right.conditions.iter().cloned().chain(on));
    let condition = condition.map_or_else(String::new, |it| format!(" WHERE {it}"));
    format!("EXISTS (SELECT{from}{condition})")
}

/// The conditions in one; `None` for none.
fn conjunction(conditions: impl Iterator<Item = String>) -> Option<String> {
    let conditions: Vec<String> = conditions.map(|it| format!("({it})")).collect();
    (!conditions.is_empty()).then(|| conditions.join(" AND "))
}

/// The items of a FROM list as one operand of a join.
fn cross_join(items: &[String]) -> String {
    match items {
        [only] => only.clone(),
        _ => format!("({})", items.join(" CROSS JOIN ")),
    }
}

/// The rows of `plan` as they are now: `SELECT … AS c0, …`.
pub fn full_select(plan: &Plan, storages: &[Storage]) -> String {
    let select = Printer::new(storages).select(plan);
    select.print_with(None)
}

/// The delta of a last stage without head, its first `width` columns: `SELECT <row id>, c0, …, w`.
/// Not consolidated.
pub fn identified_delta(
    delta: &Plan,
    key: Option<&[usize]>,
    width: usize,
    storages: &[Storage],
) -> String {
    let schema = delta.schema();
    format!(
        "SELECT {} AS {ROW_ID}, {}w FROM {} AS b",
        row_id(key, &schema, "b.c"),
        column_list(width, "b.c"),
        Printer::new(storages).weighted(delta)
    )
}

/// The content of a last stage without head, its first `width` columns, with row ids:
/// `SELECT <row id>, c0, …`.
pub fn identified_rows(
    plan: &Plan,
    key: Option<&[usize]>,
    width: usize,
    storages: &[Storage],
) -> String {
    let schema = plan.schema();
    let columns: String = (0..width).map(|it| format!(", b.c{it}")).collect();
    format!(
        "SELECT {} AS {ROW_ID}{columns} FROM {} AS b",
        row_id(key, &schema, "b.c"),
        Printer::new(storages).unweighted(plan)
    )
}

/// What a storage without state and counts holds: `SELECT <row id>, c0, …`.
pub fn stored_rows(storage: &Storage) -> String {
    let columns: String = storage.columns.iter().map(|it| format!(", s.{it}")).collect();
    format!("SELECT s.{ROW_ID}{columns} FROM {} AS s", storage.table)
}

fn column_list(width: usize, prefix: &str) -> String {
    (0..width).map(|it| format!("{prefix}{it}, ")).collect()
}

/// The row id of a row whose columns are `{prefix}0`, `{prefix}1`, …: a hash of the key where
/// there is one, following the types' equality, and else of the whole row's image.
pub(super) fn row_id(key: Option<&[usize]>, schema: &Schema, prefix: &str) -> String {
    let (function, positions): (_, Vec<usize>) = match key {
        Some(key) if !key.is_empty() => ("key_id", key.to_vec()),
        Some(_) => return "0::int8".to_owned(),
        None => ("row_id", (0..schema.len()).collect()),
    };
    if positions.is_empty() {
        return "0::int8".to_owned();
    }
    // An integer identifies itself: rows with neighbouring keys stand together in the index.
    if let Some([only]) = key
        && matches!(schema[*only].ty.oid, INT8 | INT2 | INT4)
    {
        return format!("coalesce({prefix}{only}::int8, {NO_INTEGER})");
    }
    let columns: Vec<String> = positions.iter().map(|it| format!("{prefix}{it}")).collect();
    hash(function, &columns)
}

/// A call of `pgstream.key_id` or `pgstream.row_id`.
pub(super) fn hash(function: &str, columns: &[String]) -> String {
    // A function takes at most 100 arguments.
    if columns.len() > 100 {
        return format!("pgstream.{function}(ROW({})::record)", columns.join(", "));
    }
    format!("pgstream.{function}({})", columns.join(", "))
}
