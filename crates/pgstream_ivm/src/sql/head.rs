//! The statements of a stage with a head (GROUP BY).
//!
//! One query compares, for each group that the delta touches, the stored row with the new one. It
//! reads the body's delta, and the storage through the row id's index. Groups that are "lost" (see
//! [`crate::aggregate`]) are collected by the caller as `__pgs_keys` and compared again by a
//! second query, which evaluates the body's new content restricted to them.
//!
//! Each query puts out one row a group: `ctid` of the stored row, whether the group is lost, the
//! row id, the old count and values, the new count and values, with values being the stage's
//! output followed by the state columns.
//!
//! A group shows its key as one of its rows has it. Where equal keys can look different (1.0 and
//! 1.00), a stored key stays as long as no row left, or a new row looks the same; otherwise the
//! group is evaluated again. The change must be consolidated for this.
//!
//! # Cost
//!
//! The first query costs what the body's delta costs, plus one index look-up a group. The second
//! reads the affected groups; it follows the change where the leaves have an index on the key.

use crate::{
    aggregate::{self, Maintenance, Operands},
    plan::{Column, Plan, Schema},
    scalar::Type,
    sql::{COUNT, ROW_ID, Storage, select::Printer, select::hash, select::row_id},
    stage::{Group, Stage},
};

/// How many columns stand before the old count in the output: `ctid`, lost, row id.
pub const PAIR_PREFIX: usize = 3;

/// SQL for a stage with a head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadStatements {
    /// Compares the groups that the delta touches.
    pub changed: String,
    /// Compares the groups in `__pgs_keys` (`rid`, `k0`, …), none of whose keys is NULL, from all
    /// of their rows.
    pub rescan: String,
    /// The same for groups with a NULL key; `None` when no key can be NULL.
    pub rescan_null: Option<String>,
    /// All groups from scratch: row id, count, values.
    pub all: String,
}

/// Writes the statements. `delta` is the body's delta.
pub fn head(
    stage: &Stage,
    head: &Group,
    delta: &Plan,
    storage: &Storage,
    storages: &[Storage],
) -> HeadStatements {
    let writer = Writer { stage, head, storage, storages, schema: stage.body.schema() };
    let has_nullable_key = head.keys.iter().any(|key| writer.schema[*key].nullable);
    HeadStatements {
        changed: writer.changed(delta),
        rescan: writer.rescan(false),
        rescan_null: has_nullable_key.then(|| writer.rescan(true)),
        all: writer.all(),
    }
}

struct Writer<'a> {
    stage: &'a Stage,
    head: &'a Group,
    storage: &'a Storage,
    storages: &'a [Storage],
    schema: Schema,
}

impl Writer<'_> {
    /// For each call: its statements' parts, with changes named `g.d<call>_<n>`.
    fn maintenance(&self) -> Vec<Maintenance> {
        let keys = self.head.keys.len();
        let mut next_state = 0;
        let mut all = Vec::new();
        for (index, call) in self.head.calls.iter().enumerate() {
            let first_state = next_state;
            next_state += aggregate::state(call).len();
            let stored = |value: usize| match value.checked_sub(1) {
                None => format!("s.{}", self.storage.columns[keys + index]),
                Some(state) => format!("s.{}", self.storage.state[first_state + state].0),
            };
            let look_up = aggregate::LookUp {
                select: &|value, conditions| self.look_up(value, conditions),
                condition: self.has_no_null_key(),
            };
            all.push(aggregate::maintain(
                call,
                &Operands {
                    column: &|column| format!("b.c{column}"),
                    stored: &stored,
                    change: &|change| format!("g.d{index}_{change}"),
                    new_count: &self.new_count(),
                    look_up: self.head.indexed.contains(&index).then_some(&look_up),
                },
            ));
        }
        all
    }

    /// An aggregate over the rows of group `g` for which the conditions hold.
    fn look_up(&self, aggregate: &str, conditions: &[String]) -> String {
        let body = Printer::new(self.storages).unweighted(&self.stage.body);
        let mut all = self.same_keys(
            &|it| format!("b.c{}", self.head.keys[it]),
            &|it| format!("g.k{it}"),
            false,
        );
        all.extend(conditions.iter().cloned());
        let condition =
            if all.is_empty() { String::new() } else { format!(" WHERE {}", all.join(" AND ")) };
        format!("(SELECT {aggregate} FROM {body} AS b{condition})")
    }

    /// `None` where no key can be NULL.
    fn has_no_null_key(&self) -> Option<String> {
        let keys = self.head.keys.iter().map(|it| &self.schema[*it]).enumerate();
        let nullable = keys.filter(|(_, column)| column.nullable);
        let conditions: Vec<String> = nullable
            .map(|(it, column)| format!("NOT ({})", is_null(&format!("g.k{it}"), &column.ty)))
            .collect();
        (!conditions.is_empty()).then(|| conditions.join(" AND "))
    }

    fn new_count(&self) -> String {
        format!("(coalesce(s.{COUNT}, 0) + g.n)")
    }

    fn stored_values(&self) -> Vec<String> {
        let names = self.storage.columns.iter().chain(self.storage.state.iter().map(|it| &it.0));
        names.map(|name| format!("s.{name}")).collect()
    }

    /// Outputs of all calls first, then all state.
    fn in_storage_order(values: impl Iterator<Item = Vec<String>>) -> Vec<String> {
        let (mut outputs, mut state) = (Vec::new(), Vec::new());
        for mut value in values {
            state.extend(value.split_off(1));
            outputs.extend(value);
        }
        outputs.extend(state);
        outputs
    }

    fn key_names(&self) -> Vec<String> {
        (0..self.head.keys.len()).map(|it| format!("k{it}")).collect()
    }

    /// The keys whose equal values can look different.
    fn inexact_keys(&self) -> Vec<usize> {
        let is_inexact = |it: &usize| !self.schema[self.head.keys[*it]].is_exact();
        (0..self.head.keys.len()).filter(is_inexact).collect()
    }

    /// Aggregates that pick an image `e<key>` of each inexact key, and when a group's stored image
    /// may be gone.
    fn images(&self) -> (String, Option<String>) {
        let keys = self.inexact_keys();
        if keys.is_empty() {
            return (String::new(), None);
        }
        let pick = |it: &usize| {
            format!(", any_value(b.c{}) FILTER (WHERE w > 0) AS e{it}", self.head.keys[*it])
        };
        let picks: String = keys.iter().map(pick).collect();
        let new: Vec<String> = keys.iter().map(|it| format!("g.e{it}")).collect();
        let old: Vec<String> =
            keys.iter().map(|it| format!("s.{}", self.storage.columns[*it])).collect();
        let lost = format!(
            "(g.is_left AND s.ctid IS NOT NULL AND NOT ROW({})::record *= ROW({})::record)",
            new.join(", "),
            old.join(", "),
        );
        (format!("{picks}, bool_or(w < 0) AS is_left"), Some(lost))
    }

    /// See [`same_keys`].
    fn same_keys(
        &self,
        left: &dyn Fn(usize) -> String,
        right: &dyn Fn(usize) -> String,
        nulls_match: bool,
    ) -> Vec<String> {
        let keys: Schema = self.head.keys.iter().map(|it| self.schema[*it].clone()).collect();
        same_keys(&keys, left, right, nulls_match)
    }

    fn join_storage(&self, from: &str) -> String {
        let mut conditions = vec![format!("s.{ROW_ID} = {from}.rid")];
        conditions.extend(self.same_keys(
            &|it| format!("s.{}", self.storage.columns[it]),
            &|it| format!("{from}.k{it}"),
            true,
        ));
        let table = &self.storage.table;
        if from != "g" || !expands(&self.stage.body) {
            return format!("LEFT JOIN {table} AS s ON {}", conditions.join(" AND "));
        }
        // PostgreSQL expects a thousand rows of a set-returning function, and would rather read the
        // whole storage than look that many groups up.
        let state = self.storage.state.iter().map(|it| &it.0);
        let names = self.storage.columns.iter().chain(state).map(String::as_str);
        let names: Vec<&str> = ["ctid", COUNT].into_iter().chain(names).collect();
        let columns: Vec<String> = names.iter().map(|it| format!("s.{it}")).collect();
        format!(
            "LEFT JOIN LATERAL (SELECT {} FROM {table} AS s WHERE {} OFFSET 0) AS s({}) ON true",
            columns.join(", "),
            conditions.join(" AND "),
            names.join(", "),
        )
    }

    fn group_row_id(&self, prefix: &str) -> String {
        let keys: Vec<usize> = (0..self.head.keys.len()).collect();
        row_id(Some(&keys), &self.stage.output, prefix)
    }

    fn changed(&self, delta: &Plan) -> String {
        let maintenance = self.maintenance();
        let keys: Vec<String> = self.head.keys.iter().map(|key| format!("b.c{key}")).collect();
        let key_list: String =
            keys.iter().enumerate().map(|(i, key)| format!("{key} AS k{i}, ")).collect();
        let changes: String = maintenance
            .iter()
            .enumerate()
            .flat_map(|(call, it)| {
                it.changes.iter().enumerate().map(move |(i, sql)| format!(", {sql} AS d{call}_{i}"))
            })
            .collect();
        let grouping = group_by(&keys);
        let (images, image_lost) = self.images();
        let groups = format!(
            "SELECT {key_list}coalesce(sum(w)::int8, 0) AS n{changes}{images} FROM {} AS b{grouping}",
            self.body(delta),
        );
        let lost = maintenance.iter().filter_map(|it| it.lost.clone());
        let lost: Vec<String> = lost.chain(image_lost).collect();
        let lost = if lost.is_empty() {
            "false".to_owned()
        } else {
            format!("coalesce({}, false)", lost.join(" OR "))
        };
        let inexact = self.inexact_keys();
        let keys = (0..self.head.keys.len()).map(|it| {
            if inexact.contains(&it) {
                let stored = &self.storage.columns[it];
                format!("CASE WHEN s.ctid IS NULL THEN g.e{it} ELSE s.{stored} END")
            } else {
                format!("g.k{it}")
            }
        });
        let values = keys.chain(Self::in_storage_order(maintenance.into_iter().map(|it| it.new)));
        format!(
            "SELECT s.ctid, {lost}, g.rid, s.{COUNT}, {}{}, {} FROM \
             (SELECT {} AS rid, h.* FROM ({groups}) AS h) AS g {}",
            list(self.stored_values()),
            self.new_count(),
            values.collect::<Vec<_>>().join(", "),
            self.group_row_id("h.k"),
            self.join_storage("g"),
        )
    }

    /// The delta of the body, consolidated on the columns in use if that is needed and terms of
    /// the delta can cancel each other.
    fn body(&self, delta: &Plan) -> String {
        let body = Printer::new(self.storages).weighted(delta);
        let is_sensitive = self.head.calls.iter().any(aggregate::needs_consolidation)
            || !self.inexact_keys().is_empty();
        if !is_sensitive || !sums_joins(delta) {
            return body;
        }
        let mut used = self.head.keys.clone();
        // Those of rescanned aggregates too, or a change of theirs alone would go unnoticed.
        for call in &self.head.calls {
            let filter = call.filter.iter().flat_map(crate::scalar::Scalar::columns);
            used.extend(call.call.columns().into_iter().chain(filter));
        }
        used.sort_unstable();
        used.dedup();
        let has_equality = |it: &usize| self.schema[*it].ty.equality.is_some();
        let (equal, unequal): (Vec<usize>, Vec<usize>) =
            used.iter().partition(|it| has_equality(it));
        // Rows are the same when their images are: 1.0 and 1.00 are not.
        let mut grouping: Vec<String> = equal.iter().map(|it| format!("c{it}")).collect();
        let inexact = used.iter().filter(|it| !self.schema[**it].is_exact());
        let images: Vec<String> = inexact.map(|it| format!("c{it}")).collect();
        if !images.is_empty() {
            grouping.push(hash("row_id", &images));
        }
        let columns: String = equal.iter().map(|it| format!("c{it}, ")).collect();
        let others: String =
            unequal.iter().map(|it| format!("any_value(c{it}) AS c{it}, ")).collect();
        format!(
            "(SELECT {columns}{others}sum(w)::int8 AS w FROM {body} AS u{} HAVING sum(w) <> 0)",
            group_by(&grouping)
        )
    }

    /// Columns of the body that are grouped by and read by calls that are evaluated again.
    fn rescanned_keys(&self) -> Vec<usize> {
        let rescanned = self.head.calls.iter().filter(|it| aggregate::is_rescanned(it));
        let mut read: Vec<usize> = rescanned.flat_map(|it| it.call.columns()).collect();
        read.retain(|it| self.head.keys.contains(it));
        read.sort_unstable();
        read.dedup();
        read
    }

    fn rescan(&self, null_keys: bool) -> String {
        let body = Printer::new(self.storages).unweighted(&self.stage.body);
        let keys = self.key_names();
        let grouping: Vec<String> = keys.iter().map(|key| format!("q.{key}")).collect();
        let key_list: String = grouping.iter().map(|key| format!("{key}, ")).collect();
        let values = Self::in_storage_order(self.maintenance().into_iter().map(|it| it.rescan));
        let values: String =
            values.iter().enumerate().map(|(i, sql)| format!(", {sql} AS v{i}")).collect();
        let pick = |it: &usize| format!(", any_value(b.c{}) AS e{it}", self.head.keys[*it]);
        let images: String = self.inexact_keys().iter().map(pick).collect();
        let same_body = self.same_keys(
            &|it| format!("b.c{}", self.head.keys[it]),
            &|it| format!("q.k{it}"),
            null_keys,
        );
        // A call can have a grouping column for a constant (a direct argument of an ordered-set
        // aggregate). It is the same throughout the group, so it divides no group.
        let constants = self.rescanned_keys();
        let constants: String = constants.iter().map(|it| format!(", b.c{it}")).collect();
        let groups = if keys.is_empty() {
            format!("SELECT 0::int8 AS rid, count(*) AS n{values} FROM {body} AS b")
        } else {
            format!(
                "SELECT q.rid, {key_list}count(*) AS n{values}{images} FROM __pgs_keys AS q \
                 JOIN {body} AS b ON {} GROUP BY q.rid, {}{constants}",
                same_body.join(" AND "),
                grouping.join(", "),
            )
        };
        let mut same_group = vec!["r.rid = k.rid".to_owned()];
        same_group.extend(self.same_keys(
            &|it| format!("r.k{it}"),
            &|it| format!("k.k{it}"),
            null_keys,
        ));
        let inexact = self.inexact_keys();
        let new_keys = (0..keys.len())
            .map(|it| if inexact.contains(&it) { format!("r.e{it}") } else { format!("k.k{it}") });
        let width = self.stored_values().len() - keys.len();
        let new: Vec<String> = new_keys.chain((0..width).map(|it| format!("r.v{it}"))).collect();
        format!(
            "SELECT s.ctid, false, k.rid, s.{COUNT}, {}coalesce(r.n, 0), {} FROM __pgs_keys AS k \
             LEFT JOIN ({groups}) AS r ON {} {}",
            list(self.stored_values()),
            new.join(", "),
            same_group.join(" AND "),
            self.join_storage("k"),
        )
    }

    fn all(&self) -> String {
        let keys: Vec<String> = self.head.keys.iter().map(|key| format!("b.c{key}")).collect();
        let key_list: String =
            keys.iter().enumerate().map(|(i, key)| format!("{key} AS k{i}, ")).collect();
        let values = Self::in_storage_order(self.maintenance().into_iter().map(|it| it.rescan));
        let value_names: String = (0..values.len()).map(|it| format!(", h.v{it}")).collect();
        let values: String =
            values.iter().enumerate().map(|(i, sql)| format!(", {sql} AS v{i}")).collect();
        let key_names: String = (0..keys.len()).map(|it| format!(", h.k{it}")).collect();
        format!(
            "SELECT {} AS {ROW_ID}, h.n{key_names}{value_names} FROM \
             (SELECT {key_list}count(*) AS n{values} FROM {} AS b{}) AS h",
            self.group_row_id("h.k"),
            Printer::new(self.storages).unweighted(&self.stage.body),
            group_by(&keys),
        )
    }
}

/// Whether the plan adds up terms of a join, in which the same row can come and go.
fn sums_joins(plan: &Plan) -> bool {
    match plan {
        Plan::Sum { .. } => plan.has_join(),
        // It adds up the terms of old content.
        Plan::MarkChange { .. } => true,
        _ => plan.inputs().into_iter().any(sums_joins),
    }
}

/// Whether set-returning functions are called.
fn expands(plan: &Plan) -> bool {
    matches!(plan, Plan::Expand { .. }) || plan.inputs().into_iter().any(expands)
}

/// Conditions for the keys of `left` and `right` to be the same, given names of both.
pub(super) fn same_keys(
    keys: &Schema,
    left: &dyn Fn(usize) -> String,
    right: &dyn Fn(usize) -> String,
    nulls_match: bool,
) -> Vec<String> {
    let same = |(index, column): (usize, &Column)| {
        let equality = column.ty.equality.as_deref().expect("a grouping column has equality");
        let (left, right) = (left(index), right(index));
        if column.nullable && nulls_match {
            let (no_left, no_right) = (is_null(&left, &column.ty), is_null(&right, &column.ty));
            format!("({left} {equality} {right} OR ({no_left} AND {no_right}))")
        } else {
            format!("{left} {equality} {right}")
        }
    };
    keys.iter().enumerate().map(same).collect()
}

/// `value IS NULL`, which a row of NULLs is not, though its IS NULL is true.
pub fn is_null(value: &str, ty: &Type) -> String {
    const RECORD: u32 = 2249;
    const FIRST_OF_USERS: u32 = 16384;
    if ty.oid == RECORD || ty.oid >= FIRST_OF_USERS {
        return format!("{value} IS NOT DISTINCT FROM NULL");
    }
    format!("{value} IS NULL")
}

pub(super) fn group_by(keys: &[String]) -> String {
    if keys.is_empty() { String::new() } else { format!(" GROUP BY {}", keys.join(", ")) }
}

/// The items, each followed by a comma.
pub(super) fn list(items: impl IntoIterator<Item = String>) -> String {
    items.into_iter().map(|it| it + ", ").collect()
}
