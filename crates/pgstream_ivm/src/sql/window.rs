//! The statements of a stage whose head is window functions.
//!
//! The storage has one more column, the hash of the partition's key, with an index. The partitions
//! that the delta touches are collected by the caller as `__pgs_keys` (`rid`: that hash; `k0`, …:
//! the key), those with a NULL in the key apart from the others. Of each, the stored rows are taken
//! away and the rows as they are now come instead; what is in both is no change.
//!
//! Where only the first rows of a partition are kept (see [`First`]), changed rows that come behind
//! enough kept ones touch nothing: which rows are in front is what it was. Changed and stored rows are
//! ranked together to find that out.
//!
//! # Cost
//!
//! Follows the size of the affected partitions: their stored rows are found by the hash, and the
//! body's through indexes of the leaves on the columns of PARTITION BY. Without PARTITION BY it
//! follows the size of the whole; with the first rows only, it ends after those where an index has their
//! order.

use crate::{
    plan::{Plan, Schema},
    sql::{
        ROW_ID, Storage,
        head::{group_by, is_null, list, same_keys},
        select::Printer,
        select::row_id,
    },
    stage::{First, Stage, Window},
};

/// SQL for a stage with window functions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowStatements {
    /// The partitions that the delta touches: `rid`, `k0`, …; without PARTITION BY at most one.
    pub touched: String,
    /// The stored rows of the partitions in `__pgs_keys`: row id, output, hash of the partition.
    pub stored: String,
    /// The rows of those partitions as they are now, none of the keys being NULL.
    pub evaluated: String,
    /// The same for partitions with a NULL in the key; `None` when there can be none.
    pub evaluated_null: Option<String>,
    /// All rows as they are now.
    pub all: String,
}

/// Writes the statements. `delta` is the body's delta.
pub fn window(
    stage: &Stage,
    head: &Window,
    delta: &Plan,
    storage: &Storage,
    storages: &[Storage],
) -> WindowStatements {
    let writer = Writer { stage, head, storage, storages, keys: key_schema(stage, head) };
    let has_nullable_key = writer.keys.iter().any(|it| it.nullable);
    WindowStatements {
        touched: writer.touched(delta),
        stored: writer.stored(),
        evaluated: writer.evaluated(&writer.body_of_keys(false)),
        evaluated_null: has_nullable_key.then(|| writer.evaluated(&writer.body_of_keys(true))),
        all: writer.evaluated(&writer.body()),
    }
}

fn key_schema(stage: &Stage, head: &Window) -> Schema {
    head.partition.iter().map(|it| stage.output[*it].clone()).collect()
}

struct Writer<'a> {
    stage: &'a Stage,
    head: &'a Window,
    storage: &'a Storage,
    storages: &'a [Storage],
    keys: Schema,
}

impl Writer<'_> {
    fn touched(&self, delta: &Plan) -> String {
        let body = Printer::new(self.storages).weighted(delta);
        if let Some(first) = &self.head.first {
            return self.touched_first(first, &body);
        }
        if self.keys.is_empty() {
            return format!("SELECT 0::int8 AS rid FROM {body} AS b HAVING count(*) > 0");
        }
        let columns: Vec<String> =
            self.head.partition.iter().map(|it| format!("b.c{it}")).collect();
        let keys: Vec<String> =
            columns.iter().enumerate().map(|(i, it)| format!("{it} AS k{i}")).collect();
        let all: Vec<usize> = (0..columns.len()).collect();
        format!(
            "SELECT {} AS rid, h.* FROM (SELECT {} FROM {body} AS b{}) AS h",
            row_id(Some(&all), &self.keys, "h.k"),
            keys.join(", "),
            group_by(&columns),
        )
    }

    /// The partitions among whose first rows the delta can have some.
    fn touched_first(&self, first: &First, body: &str) -> String {
        let partition = &self.head.partition;
        let mut columns = partition.clone();
        columns.extend(first.order.columns());
        columns.sort_unstable();
        columns.dedup();
        let named = |name: &dyn Fn(usize) -> String| {
            list(columns.iter().map(|it| format!("{} AS c{it}", name(*it))))
        };
        let keys =
            |alias: &str| partition.iter().map(|it| format!("{alias}.c{it}")).collect::<Vec<_>>();
        let as_keys = |alias: &str| {
            let keys = keys(alias).into_iter().enumerate();
            keys.map(|(i, it)| format!("{it} AS k{i}")).collect::<Vec<_>>().join(", ")
        };
        let all: Vec<usize> = (0..partition.len()).collect();
        let id = row_id(Some(&all), &self.keys, "h.k");
        let changed = named(&|it| format!("b.c{it}"));
        let stored = named(&|it| format!("s.{}", self.storage.columns[it]));
        let mut storage = format!("{} AS s", self.storage.table);
        if !self.keys.is_empty() {
            let mut conditions = vec![format!("s.{} = t.rid", self.storage.state[0].0)];
            conditions.extend(same_keys(
                &self.keys,
                &|it| format!("s.{}", self.storage.columns[partition[it]]),
                &|it| format!("t.k{it}"),
                true,
            ));
            storage = format!(
                "(SELECT {id} AS rid, h.* FROM (SELECT {} FROM {body} AS b{}) AS h) AS t \
                 JOIN {storage} ON {}",
                as_keys("b"),
                group_by(&keys("b")),
                conditions.join(" AND "),
            );
        }
        let by = keys("u").join(", ");
        let by = if by.is_empty() { by } else { format!("PARTITION BY {by} ") };
        let ranked = format!(
            "(SELECT {}u.m, rank() OVER ({by}ORDER BY {}) AS n FROM \
             (SELECT {changed}true AS m FROM {body} AS b \
             UNION ALL SELECT {stored}false AS m FROM {storage}) AS u) AS r",
            list(partition.iter().map(|it| format!("u.c{it} AS c{it}"))),
            first.order.print(|it| format!("u.c{it}")),
        );
        let having = format!(
            "HAVING count(*) FILTER (WHERE r.m) > 0 \
             AND (count(*) FILTER (WHERE NOT r.m) < {} \
             OR min(r.n) FILTER (WHERE r.m) <= max(r.n) FILTER (WHERE NOT r.m))",
            first.kept
        );
        if self.keys.is_empty() {
            return format!("SELECT 0::int8 AS rid FROM {ranked} {having}");
        }
        format!(
            "SELECT {id} AS rid, h.* FROM (SELECT {} FROM {ranked}{} {having}) AS h",
            as_keys("r"),
            group_by(&keys("r")),
        )
    }

    fn stored(&self) -> String {
        let names = self.storage.columns.iter().chain(self.storage.state.iter().map(|it| &it.0));
        let values: String = names.map(|it| format!(", s.{it}")).collect();
        let table = &self.storage.table;
        if self.keys.is_empty() {
            return format!("SELECT s.{ROW_ID}{values} FROM {table} AS s");
        }
        let mut conditions = vec![format!("s.{} = k.rid", self.storage.state[0].0)];
        conditions.extend(same_keys(
            &self.keys,
            &|it| format!("s.{}", self.storage.columns[self.head.partition[it]]),
            &|it| format!("k.k{it}"),
            true,
        ));
        format!(
            "SELECT s.{ROW_ID}{values} FROM __pgs_keys AS k JOIN {table} AS s ON {}",
            conditions.join(" AND ")
        )
    }

    /// All rows of the body, as far as they can be kept.
    fn body(&self) -> String {
        let body = format!("{} AS b", Printer::new(self.storages).unweighted(&self.stage.body));
        let (Some(first), true) = (&self.head.first, self.keys.is_empty()) else { return body };
        format!("({}) AS b", self.first(first, &body))
    }

    /// The body's rows in the partitions of `__pgs_keys`, each once.
    fn body_of_keys(&self, null_keys: bool) -> String {
        if self.keys.is_empty() {
            return self.body();
        }
        if let (Some(first), false) = (&self.head.first, null_keys)
            && first.is_indexed
        {
            return self.first_of_keys(first);
        }
        let column = |it: usize| format!("b.c{}", self.head.partition[it]);
        let key = |it: usize| format!("q.k{it}");
        let same = match self.keys.as_slice() {
            [only] if null_keys => vec![is_null(&column(0), &only.ty)],
            _ if null_keys => {
                // The other conditions could not be hashed.
                let hash = row_id(Some(&self.head.partition), &self.stage.output, "b.c");
                let mut same = vec![format!("{hash} = q.rid")];
                same.extend(same_keys(&self.keys, &column, &key, true));
                same
            }
            _ => same_keys(&self.keys, &column, &key, false),
        };
        format!("__pgs_keys AS q JOIN {} ON {}", self.body(), same.join(" AND "))
    }

    /// The first rows of the partitions in `__pgs_keys`, through an index that has their order.
    fn first_of_keys(&self, first: &First) -> String {
        let column = |it: usize| format!("b.c{}", self.head.partition[it]);
        let same = same_keys(&self.keys, &column, &|it| format!("q.k{it}"), false);
        let body = Printer::new(self.storages).unweighted(&self.stage.body);
        let rows = self.first(first, &format!("{body} AS b WHERE {}", same.join(" AND ")));
        let width = self.stage.body.schema().len();
        let names: Vec<String> = (0..width).map(|it| format!("c{it}")).collect();
        format!("__pgs_keys AS q, LATERAL ({rows}) AS b({})", names.join(", "))
    }

    /// A SELECT of the first of these rows, which are named `b`.
    fn first(&self, first: &First, rows: &str) -> String {
        let columns = (0..self.stage.body.schema().len()).map(|it| format!("b.c{it}"));
        let ties = if first.has_ties { "ROWS WITH TIES" } else { "ROWS ONLY" };
        format!(
            "SELECT {} FROM {rows} ORDER BY {} FETCH FIRST {} {ties}",
            columns.collect::<Vec<_>>().join(", "),
            first.order.print(|it| format!("b.c{it}")),
            first.count,
        )
    }

    /// Row id, output and hash of the partition, from the rows `from`, which are named `b`.
    fn evaluated(&self, from: &str) -> String {
        let width = self.stage.body.schema().len();
        let columns = (0..width).map(|it| format!("b.c{it}"));
        let calls = self.head.calls.iter().map(|it| it.print(|column| format!("b.c{column}")));
        let all: Vec<String> =
            columns.chain(calls).enumerate().map(|(i, it)| format!("{it} AS c{i}")).collect();
        let values = (0..all.len()).map(|it| format!("v.c{it}"));
        let filter = self.head.filter.as_ref();
        let filter = filter.map(|it| format!(" WHERE {}", it.print(|at| format!("v.c{at}"))));
        format!(
            "SELECT {} AS {ROW_ID}, {}{} AS p FROM (SELECT {} FROM {from}) AS v{}",
            row_id(self.stage.key.as_deref(), &self.stage.output, "v.c"),
            list(values),
            row_id(Some(&self.head.partition), &self.stage.output, "v.c"),
            all.join(", "),
            filter.unwrap_or_default(),
        )
    }
}
