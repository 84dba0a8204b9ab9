//! The statements of a stage whose head is window functions.
//!
//! The storage has one more column, the hash of the partition's key, with an index. The partitions
//! that the delta touches are collected by the caller as `__pgs_keys` (`rid`: that hash; `k0`, …:
//! the key), those with a NULL in the key apart from the others. Of each, the stored rows are taken
//! away and the rows as they are now come instead; what is in both is no change.
//!
//! # Cost
//!
//! Follows the size of the affected partitions: their stored rows are found by the hash, and the
//! body's through indexes of the leaves on the columns of PARTITION BY. Without PARTITION BY it
//! follows the size of the whole.

use crate::{
    plan::{Plan, Schema},
    sql::{
        ROW_ID, Storage,
        head::{group_by, is_null, list, same_keys},
        select::Printer,
        select::row_id,
    },
    stage::{Stage, Window},
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

    fn body(&self) -> String {
        format!("{} AS b", Printer::new(self.storages).unweighted(&self.stage.body))
    }

    /// The body's rows in the partitions of `__pgs_keys`, each once.
    fn body_of_keys(&self, null_keys: bool) -> String {
        if self.keys.is_empty() {
            return self.body();
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
