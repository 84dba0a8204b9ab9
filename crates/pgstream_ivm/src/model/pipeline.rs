//! Runs a pipeline by its printed statements, as a refresh does.

use std::collections::BTreeMap;

use crate::{
    aggregate,
    cancel::without_cancelled,
    derive::{self, at, delta},
    fixpoint::{Fixpoint, Standing},
    look_up::with_indexes,
    model::{Content, Database, Relation, Row, ZSet, run, value::Value},
    plan::{Plan, Source, Version},
    sql::{
        COUNT, FixpointStatements, PAIR_PREFIX, ROW_ID, RecursionStatements, Storage, delta_column,
        delta_name, fixpoint, head, identified_delta, identified_rows, quote, recursion, window,
    },
    stage::{Group, Head, Pipeline, Recursion, Stage, Window},
};

/// Names that a careless printer would confuse with its own.
const NAMES: [&str; 16] =
    ["w", "c0", "k0", "n", "d0_0", "v0", "s", "g", "h", "q", "r", "b", "rid", "t1", "a1", "u"];

/// The storage of stage number `index`.
pub fn storage(index: usize, stage: &Stage) -> Storage {
    let name =
        |it: usize| NAMES.get(it).map_or_else(|| format!("column {it}"), |it| (*it).to_owned());
    let calls = stage.group().into_iter().flat_map(|group| &group.calls).enumerate();
    Storage {
        table: format!("state.stage_{index}"),
        columns: (0..stage.output.len()).map(|it| quote(&name(it))).collect(),
        state: calls
            .flat_map(|(call, it)| aggregate::state(it).into_iter().map(move |it| (call, it)))
            .map(|(call, it)| (quote(&format!("{call} {}", it.name)), it.ty.to_owned()))
            .chain(stage.own_state())
            .collect(),
        counted: stage.is_counted(),
        inline: stage.head.is_none().then(|| stage.body.clone()),
    }
}

/// The ephemeral relation for a change: the columns by their numbers, and the weight.
pub fn delta_rows(change: &ZSet, attributes: impl Iterator<Item = usize>) -> Relation {
    let columns = attributes.map(delta_column).chain(["w".to_owned()]).collect();
    let row = |(row, weight): (&Row, i64)| {
        row.iter().cloned().chain([Value::Int(weight)]).collect::<Row>()
    };
    Relation { columns, rows: change.iter().map(row).collect() }
}

/// Whether the weights of the rows of a change with the same image in some columns add up to 0.
pub fn cancels(source: &Source, read: &[usize], database: &Database) -> bool {
    let change = &database[&delta_name(source)];
    let place = |name: &str| change.columns.iter().position(|it| it == name).expect("a column");
    let read: Vec<usize> = read.iter().map(|it| place(&delta_column(*it))).collect();
    let weight = place("w");
    let pick = |row: &Row| read.iter().map(|it| row[*it].clone()).collect::<Row>();
    let net: ZSet = change.rows.iter().map(|row| (pick(row), row[weight].to_int())).collect();
    net == ZSet::default()
}

/// One stored row: identity, count, output, state.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Stored {
    row_id: Value,
    count: Value,
    values: Row,
}

/// A pipeline with its storages.
pub struct Runner {
    pipeline: Pipeline,
    storages: Vec<Storage>,
    stored: Vec<BTreeMap<i64, Stored>>,
    next_ctid: i64,
    is_indexed: bool,
}

impl Runner {
    /// Fills the storages from the new content of the sources.
    pub fn new(pipeline: Pipeline, tables: &Database) -> Self {
        let storages: Vec<Storage> =
            pipeline.stages.iter().enumerate().map(|(index, it)| storage(index, it)).collect();
        let mut runner =
            Self { pipeline, storages, stored: Vec::new(), next_ctid: 1, is_indexed: false };
        for index in 0..runner.storages.len() {
            runner.stored.push(BTreeMap::new());
            if runner.pipeline.is_deferred(index) {
                continue;
            }
            for row in runner.recomputed(index, tables) {
                runner.insert(index, row);
            }
        }
        runner
    }

    /// As if there were every index by which matches can be looked up.
    #[must_use]
    pub fn indexed(self) -> Self {
        Self { is_indexed: true, ..self }
    }

    fn delta(&self, body: &Plan, changed: &dyn Fn(&Source) -> bool) -> Plan {
        with_indexes(derive::delta(body, changed), &self.pipeline, &mut |_| self.is_indexed)
    }

    /// Of a stage whose statements ask nothing but what the change of its body is.
    fn net_delta(
        &self,
        body: &Plan,
        changed: &dyn Fn(&Source) -> bool,
        database: &Database,
    ) -> Plan {
        let cancels = &mut |source: &Source, read: &[usize]| cancels(source, read, database);
        without_cancelled(self.delta(body, changed), cancels)
    }

    /// Brings all storages from old to new content, and returns the change of the stream table.
    pub fn refresh(&mut self, tables: &Database, changed: &dyn Fn(&Source) -> bool) -> ZSet {
        let mut database = tables.clone();
        let mut changes: Vec<ZSet> = Vec::new();
        for index in 0..self.storages.len() {
            let stage = self.pipeline.stages[index].clone();
            let is_changed = |source: &Source| match source {
                Source::Stage(stage) => {
                    changes.get(*stage).is_some_and(|it| it.iter().next().is_some())
                }
                Source::Table { .. } => changed(source),
            };
            self.add_storages(&mut database, index + 1);
            let change = match &stage.head {
                Some(Head::Group(group)) => {
                    self.refresh_group(index, group, &is_changed, &mut database)
                }
                Some(Head::Window(window)) => {
                    self.refresh_window(index, window, &is_changed, &mut database)
                }
                Some(Head::Recursion(head)) if head.is_set => {
                    let delta = self.delta(&stage.body, &is_changed);
                    self.refresh_set(index, head, &delta, &mut database)
                }
                Some(Head::Recursion(head)) => {
                    let delta = self.delta(&stage.body, &is_changed);
                    self.refresh_recursion(index, head, &delta, &mut database)
                }
                Some(Head::Whole) => self.refresh_whole(index, tables),
                None => self.refresh_body(index, &stage, &is_changed, &database),
            };
            let name = delta_name(&Source::Stage(index));
            database.insert(name, delta_rows(&change, 0..stage.output.len()));
            changes.push(change);
        }
        changes.pop().expect("at least one stage")
    }

    /// The visible columns of the stream table.
    pub fn content(&self) -> ZSet {
        let last = self.output(self.storages.len() - 1);
        last.iter().map(|(row, weight)| (self.visible(row), weight)).collect()
    }

    /// The visible columns of a row of the last stage.
    pub fn visible(&self, row: &Row) -> Row {
        self.pipeline.visible.iter().map(|it| row[*it].clone()).collect()
    }

    /// Panics unless each storage, with its counts, state and row ids, is what it would be if it
    /// were filled now.
    pub fn check(&self, tables: &Database) {
        let stages = 0..self.storages.len();
        for index in stages.filter(|it| !self.pipeline.is_deferred(*it)) {
            let sorted = |mut rows: Vec<Stored>| {
                rows.sort();
                rows
            };
            let mut stored = sorted(self.stored[index].values().cloned().collect());
            let mut fresh = sorted(self.recomputed(index, tables));
            let stage = &self.pipeline.stages[index];
            if stage.is_counted() && stage.group().is_none() {
                // Ranks depend on what happened, and so do supports.
                let is_supported = |it: &Stored| it.values.last() > Some(&Value::Int(0));
                assert!(stored.iter().all(is_supported), "stage {index} of {:#?}", self.pipeline);
                let width = stage.output.len() - 1;
                stored.iter_mut().chain(&mut fresh).for_each(|it| it.values.truncate(width));
            }
            assert_eq!(stored, fresh, "stage {index} of {:#?}", self.pipeline);
        }
    }

    fn output(&self, index: usize) -> ZSet {
        let width = self.pipeline.stages[index].output.len();
        self.stored[index].values().map(|it| it.values[..width].to_vec()).collect()
    }

    fn insert(&mut self, index: usize, row: Stored) {
        self.stored[index].insert(self.next_ctid, row);
        self.next_ctid += 1;
    }

    fn add_storages(&self, database: &mut Database, count: usize) {
        let stored = self.storages.iter().zip(&self.stored).enumerate().take(count);
        for (_, (storage, rows)) in stored.filter(|it| !self.pipeline.is_deferred(it.0)) {
            let unquoted = |it: &String| it.trim_matches('"').to_owned();
            let mut columns = vec!["ctid".to_owned(), ROW_ID.to_owned(), COUNT.to_owned()];
            columns.extend(storage.columns.iter().map(unquoted));
            columns.extend(storage.state.iter().map(|it| unquoted(&it.0)));
            let row = |(ctid, row): (&i64, &Stored)| {
                let prefix = [Value::Int(*ctid), row.row_id.clone(), row.count.clone()];
                prefix.into_iter().chain(row.values.iter().cloned()).collect()
            };
            let rows = rows.iter().map(row).collect();
            database.insert(storage.table.clone(), Relation { columns, rows });
        }
    }

    fn recomputed(&self, index: usize, tables: &Database) -> Vec<Stored> {
        let mut database = tables.clone();
        self.add_storages(&mut database, index);
        let stage = &self.pipeline.stages[index];
        let body = at(&stage.body, Version::New, &|_| true);
        let Some(group) = stage.group() else {
            if let Some(Head::Recursion(head)) = &stage.head {
                if head.is_set {
                    return self.all_of_set(index, stage, head, &mut database);
                }
                return self.all_of_recursion(index, stage, head, &mut database);
            }
            let sql = match stage.window() {
                Some(head) => {
                    let empty = delta(&stage.body, &|_| false);
                    window(stage, head, &empty, &self.storages[index], &self.storages).all
                }
                None => {
                    identified_rows(&body, stage.key.as_deref(), stage.output.len(), &self.storages)
                }
            };
            let stored = |mut row: Row| {
                let values = row.split_off(1);
                Stored { row_id: row.remove(0), count: Value::Null, values }
            };
            return run(&sql, &database).rows.into_iter().map(stored).collect();
        };
        let empty = delta(&stage.body, &|_| false);
        let sql = head(stage, group, &empty, &self.storages[index], &self.storages).all;
        let stored = |mut row: Row| {
            let values = row.split_off(2);
            Stored { count: row.remove(1), row_id: row.remove(0), values }
        };
        run(&sql, &database).rows.into_iter().map(stored).collect()
    }

    fn refresh_body(
        &mut self,
        index: usize,
        stage: &Stage,
        changed: &dyn Fn(&Source) -> bool,
        database: &Database,
    ) -> ZSet {
        let sql = identified_delta(
            &self.net_delta(&stage.body, changed, database),
            stage.key.as_deref(),
            stage.output.len(),
            &self.storages,
        );
        let rows = run(&sql, database).rows.into_iter().map(|mut row| {
            let weight = row.pop().expect("a weight").to_int();
            (row, weight)
        });
        let change: ZSet = rows.collect();
        if !self.pipeline.is_deferred(index) {
            self.replace(index, &change);
        }
        change.iter().map(|(row, weight)| (row[1..].to_vec(), weight)).collect()
    }

    fn refresh_whole(&mut self, index: usize, tables: &Database) -> ZSet {
        let old = self.output(index);
        let rows = self.recomputed(index, tables);
        self.stored[index].clear();
        rows.into_iter().for_each(|row| self.insert(index, row));
        self.output(index).plus(&old.negated())
    }

    fn refresh_window(
        &mut self,
        index: usize,
        head: &Window,
        changed: &dyn Fn(&Source) -> bool,
        database: &mut Database,
    ) -> ZSet {
        let stage = self.pipeline.stages[index].clone();
        let body = self.net_delta(&stage.body, changed, database);
        let statements = window(&stage, head, &body, &self.storages[index], &self.storages);
        let touched = run(&statements.touched, database);
        let has_null = |row: &Row| row.contains(&Value::Null);
        let (null_keys, keys): (Vec<Row>, Vec<Row>) =
            touched.rows.into_iter().partition(|it| has_null(it));
        let evaluations =
            [(Some(statements.evaluated), keys), (statements.evaluated_null, null_keys)];
        // Row id, output, hash of the partition.
        let mut rows = ZSet::default();
        for (sql, keys) in evaluations {
            if keys.is_empty() {
                continue;
            }
            let relation = Relation { columns: touched.columns.clone(), rows: keys };
            database.insert("__pgs_keys".to_owned(), relation);
            let sql = sql.expect("only a nullable key is NULL");
            for row in run(&statements.stored, database).rows {
                rows.add(row, -1);
            }
            for row in run(&sql, database).rows {
                rows.add(row, 1);
            }
        }
        self.replace(index, &rows);
        let width = stage.output.len();
        rows.iter().map(|(row, weight)| (row[1..=width].to_vec(), weight)).collect()
    }

    /// The model knows no WITH RECURSIVE: everything is the change of nothing.
    fn all_of_recursion(
        &self,
        index: usize,
        stage: &Stage,
        head: &Recursion,
        database: &mut Database,
    ) -> Vec<Stored> {
        let statements = recursion(stage, index, head, &head.base, &self.storages);
        let base = run(&statements.changed, database);
        let rows = iterate(stage, index, &statements, base, database);
        let stored = |row: &Row| Stored {
            row_id: row[0].clone(),
            count: Value::Null,
            values: row[1..].to_vec(),
        };
        rows.rows().into_iter().map(stored).collect()
    }

    /// Likewise: nothing is stored, and all rows join.
    fn all_of_set(
        &self,
        index: usize,
        stage: &Stage,
        head: &Recursion,
        database: &mut Database,
    ) -> Vec<Stored> {
        let columns = [ROW_ID, COUNT].map(str::to_owned).into_iter();
        let storage = &self.storages[index];
        let names = storage.columns.iter().chain(storage.state.iter().map(|it| &it.0));
        let names = names.map(|it| it.trim_matches('"').to_owned());
        let columns = ["ctid".to_owned()].into_iter().chain(columns).chain(names).collect();
        database.insert(storage.table.clone(), Relation { columns, rows: Vec::new() });
        let statements = fixpoint(stage, index, head, &head.base, &self.storages);
        let moves = settle(stage, index, &statements, database);
        moves.into_iter().filter_map(|it| it.2).collect()
    }

    fn refresh_set(
        &mut self,
        index: usize,
        head: &Recursion,
        delta: &Plan,
        database: &mut Database,
    ) -> ZSet {
        let stage = self.pipeline.stages[index].clone();
        let statements = fixpoint(&stage, index, head, delta, &self.storages);
        let width = stage.output.len();
        let mut change = ZSet::default();
        for (ctid, before, after) in settle(&stage, index, &statements, database) {
            if let Some(before) = before {
                let stored = self.stored[index].remove(&ctid);
                assert_eq!(stored.as_ref(), Some(&before), "each stored row is met once, as it is");
                change.add(before.values[..width].to_vec(), -1);
            }
            if let Some(after) = after {
                change.add(after.values[..width].to_vec(), 1);
                self.insert(index, after);
            }
        }
        change
    }

    fn refresh_recursion(
        &mut self,
        index: usize,
        head: &Recursion,
        delta: &Plan,
        database: &mut Database,
    ) -> ZSet {
        let stage = self.pipeline.stages[index].clone();
        let statements = recursion(&stage, index, head, delta, &self.storages);
        let rows =
            iterate(&stage, index, &statements, run(&statements.changed, database), database);
        self.replace(index, &rows);
        rows.iter().map(|(row, weight)| (row[1..].to_vec(), weight)).collect()
    }

    /// Takes rows (row id, values) out of a storage, and puts others into it.
    fn replace(&mut self, index: usize, change: &ZSet) {
        for (row, weight) in change.iter() {
            let (row_id, values) = (row[0].clone(), row[1..].to_vec());
            let stored = Stored { row_id, count: Value::Null, values };
            for _ in 0..weight {
                self.insert(index, stored.clone());
            }
            for _ in weight..0 {
                let place = self.stored[index].iter().find(|it| *it.1 == stored);
                let ctid = *place.unwrap_or_else(|| panic!("{stored:?} is not stored")).0;
                self.stored[index].remove(&ctid);
            }
        }
    }

    fn refresh_group(
        &mut self,
        index: usize,
        group: &Group,
        changed: &dyn Fn(&Source) -> bool,
        database: &mut Database,
    ) -> ZSet {
        let stage = self.pipeline.stages[index].clone();
        let body = self.net_delta(&stage.body, changed, database);
        let statements = head(&stage, group, &body, &self.storages[index], &self.storages);
        let keys = group.keys.len();
        let mut pairs = Vec::new();
        let (mut lost, mut lost_null) = (Vec::new(), Vec::new());
        for row in run(&statements.changed, database).rows {
            let pair = self.pair(index, row);
            let is_gone = keys > 0 && pair.new.count == Value::Int(0);
            if !pair.is_lost || is_gone {
                pairs.push(pair);
                continue;
            }
            let key = &pair.new.values[..keys];
            let list = if key.contains(&Value::Null) { &mut lost_null } else { &mut lost };
            list.push([std::slice::from_ref(&pair.new.row_id), key].concat());
        }
        let rescans = [(Some(statements.rescan), lost), (statements.rescan_null, lost_null)];
        for (sql, rows) in rescans {
            if rows.is_empty() {
                continue;
            }
            let columns =
                ["rid".to_owned()].into_iter().chain((0..keys).map(|it| format!("k{it}")));
            let groups = rows.len();
            database.insert("__pgs_keys".to_owned(), Relation { columns: columns.collect(), rows });
            let sql = sql.expect("only a nullable key is NULL");
            let rows = run(&sql, database).rows;
            assert_eq!(rows.len(), groups, "one row a lost group");
            pairs.extend(rows.into_iter().map(|row| self.pair(index, row)));
        }
        let width = stage.output.len();
        let mut change = ZSet::default();
        for pair in pairs {
            if let Some((ctid, old)) = pair.old {
                let stored = self.stored[index].remove(&ctid);
                assert_eq!(stored.as_ref(), Some(&old), "each stored row is met once, as it is");
                change.add(old.values[..width].to_vec(), -1);
            }
            if keys == 0 || pair.new.count != Value::Int(0) {
                change.add(pair.new.values[..width].to_vec(), 1);
                self.insert(index, pair.new);
            }
        }
        change
    }

    /// Reads a row of a head's statement.
    fn pair(&self, index: usize, mut row: Row) -> Pair {
        let width = self.storages[index].columns.len() + self.storages[index].state.len();
        assert_eq!(row.len(), PAIR_PREFIX + 2 * (1 + width));
        let mut new = row.split_off(PAIR_PREFIX + 1 + width);
        let mut old = row.split_off(PAIR_PREFIX);
        let row_id = row.pop().expect("a row id");
        let stored = |values: &mut Row| {
            let rest = values.split_off(1);
            Stored { row_id: row_id.clone(), count: values.remove(0), values: rest }
        };
        let old = match row[0] {
            Value::Null => None,
            ref ctid => Some((ctid.to_int(), stored(&mut old))),
        };
        Pair { old, is_lost: row[1] == Value::Bool(true), new: stored(&mut new) }
    }
}

/// The change that the rows of `first` (row id, values, the depth last, weight) lead to.
fn iterate(
    stage: &Stage,
    index: usize,
    statements: &RecursionStatements,
    first: Relation,
    database: &mut Database,
) -> ZSet {
    let width = stage.output.len();
    let mut pending: BTreeMap<i64, ZSet> = BTreeMap::new();
    let put = |pending: &mut BTreeMap<i64, ZSet>, rows: Relation| {
        for mut row in rows.rows {
            let weight = row.pop().expect("a weight").to_int();
            pending.entry(row[width].to_int()).or_default().add(row, weight);
        }
    };
    put(&mut pending, first);
    let mut all = ZSet::default();
    while let Some((_, rows)) = pending.pop_first() {
        let change: ZSet = rows.iter().map(|(row, weight)| (row[1..].to_vec(), weight)).collect();
        let name = delta_name(&Source::Stage(index));
        database.insert(name, delta_rows(&change, 0..width));
        put(&mut pending, run(&statements.step, database));
        all = all.plus(&rows);
    }
    all
}

/// The rows of a recursion over a set that a change touches: the place of the stored row, how it is
/// stored, and how it will be.
fn settle(
    stage: &Stage,
    index: usize,
    statements: &FixpointStatements,
    database: &mut Database,
) -> Vec<(i64, Option<Stored>, Option<Stored>)> {
    let width = stage.output.len() - 1;
    let mut set = Fixpoint::default();
    // Row id and row; the place.
    let mut rows: Vec<(Row, i64)> = Vec::new();
    let meet = |set: &mut Fixpoint, rows: &mut Vec<(Row, i64)>, derivations: Relation| {
        for mut row in derivations.rows {
            let stored = row.split_off(width + 3);
            let weight = row.pop().expect("a weight").to_int();
            let depth = row.pop().expect("a depth").to_int();
            let met = rows.iter().position(|it| it.0 == row);
            let member = met.unwrap_or_else(|| {
                let number = |it: usize| stored[it].to_int();
                let is_stored = stored[0] != Value::Null;
                rows.push((row, if is_stored { number(0) } else { 0 }));
                set.meet(is_stored.then(|| Standing {
                    rank: number(1),
                    count: number(2),
                    support: number(3),
                }))
            });
            set.derive(member, depth, weight);
        }
    };
    meet(&mut set, &mut rows, run(&statements.changed, database));
    loop {
        let moved = set.advance(|| run(&statements.highest, database).rows[0][0].to_int());
        if moved.is_empty() {
            break;
        }
        let row = |member: usize, rank: i64| {
            rows[member].0[1..].iter().cloned().chain([Value::Int(rank)]).collect::<Row>()
        };
        let change: ZSet = moved.iter().map(|it| (row(it.member, it.rank), it.weight)).collect();
        let name = delta_name(&Source::Stage(index));
        database.insert(name, delta_rows(&change, 0..=width));
        meet(&mut set, &mut rows, run(&statements.step, database));
    }
    assert!(set.is_sound(), "{stage:#?}");
    let stored = |(row, _): &(Row, i64), it: Standing| Stored {
        row_id: row[0].clone(),
        count: Value::Int(it.count),
        values: row[1..].iter().cloned().chain([it.rank, it.support].map(Value::Int)).collect(),
    };
    let outcome = |(member, row): (usize, &(Row, i64))| {
        let (before, after) = set.outcome(member);
        (row.1, before.map(|it| stored(row, it)), after.map(|it| stored(row, it)))
    };
    rows.iter().enumerate().map(outcome).collect()
}

/// A group before and after.
struct Pair {
    old: Option<(i64, Stored)>,
    is_lost: bool,
    new: Stored,
}

impl Content {
    /// The relations that a refresh finds for a table: the table itself and its delta.
    pub fn relations(&self, columns: &[&str], attributes: std::ops::Range<usize>) -> [Relation; 2] {
        let columns = columns.iter().map(|it| (*it).to_owned()).collect();
        let rows = self.new.rows().into_iter().cloned().collect();
        [Relation { columns, rows }, delta_rows(&self.at(Version::Delta), attributes)]
    }
}
