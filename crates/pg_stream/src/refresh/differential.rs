//! Running the stages of a differential refresh.
//!
//! Stages run in order. Each finds the change of its storage and applies it; the change of its
//! output is what later stages read as its delta. An inner table that did not change takes part
//! with its new content only, so the statements differ by which deltas are empty.

mod fixpoint;

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
};

use pgrx::pg_sys::{Datum, Oid};
use pgstream_ivm::{
    cancel::without_cancelled,
    derive, look_up,
    plan::{Plan, Source},
    sql::{
        self, HeadStatements, Matching, PAIR_PREFIX, RecursionStatements, WindowStatements,
        delta_name,
    },
    stage::{Group, Head, Recursion, Stage, Window},
};

use crate::{
    error::Error,
    fault::{self, Step},
    pg::{
        progress::Progress,
        snapshot::Snapshot,
        spi::{Row, Session},
        store::{Store, StoreColumn, same_image, type_length},
        tuple::Consolidator,
    },
    refresh::{
        definition::{Definition, Differential},
        delta::{self, Change, Counts},
        full::bigint,
        statements::{Kind, size_class},
    },
};

/// What is asked of a refresh, beside the right result.
#[derive(Clone, Copy)]
pub struct Wants {
    /// The change of the stream table, for others.
    pub output: bool,
    /// Rows that change are updated, and do not go and come back.
    pub in_place: bool,
}

/// Applies `deltas` to every stage. Returns what happened to the stream table and, when somebody
/// reads it downstream, the change of its content.
#[expect(clippy::too_many_arguments, reason = "one call, of what a refresh holds")]
pub fn run(
    definition: &Definition,
    differential: &Differential,
    deltas: &HashMap<Oid, Store>,
    wants: Wants,
    snapshot: &Snapshot,
    session: &Session,
    progress: &Progress,
) -> Result<(Counts, Option<Store>), Error> {
    let mut stage_deltas: HashMap<usize, Store> = HashMap::new();
    let mut result = (Counts::default(), None);
    for (index, stage) in differential.pipeline.stages.iter().enumerate() {
        progress.set_stage(index, differential.pipeline.stages.len());
        let is_last = differential.is_last(index);
        let rows_of = |source: &Source| match source {
            Source::Table { oid, .. } => deltas.get(&Oid::from(*oid)).map_or(0, Store::rows),
            Source::Stage(stage) => stage_deltas.get(stage).map_or(0, Store::rows),
        };
        let sources = stage.sources();
        let mut sizes: Vec<u8> = sources.iter().map(|it| size_class(rows_of(it))).collect();
        // What is evaluated as a whole may read a part of a table, in which changes that cancel out
        // have moved rows: their delta is there, without rows.
        let is_moved = |source: &Source| match source {
            Source::Table { oid, .. } if matches!(stage.head, Some(Head::Whole)) => {
                deltas.contains_key(&Oid::from(*oid))
            }
            _ => false,
        };
        let delta = derive::delta(&stage.body, &|source| rows_of(source) > 0 || is_moved(source));
        let store_of = |source: &Source| match source {
            Source::Table { oid, .. } => deltas.get(&Oid::from(*oid)),
            Source::Stage(stage) => stage_deltas.get(stage),
        };
        let delta = match &stage.head {
            // Its step reads the changes of the sources as well.
            Some(Head::Recursion(_)) => delta,
            _ => without_cancelled(delta, &mut |source, read| {
                let cancels = store_of(source).is_none_or(|it| delta::cancels(it, read));
                sizes.push(u8::from(cancels));
                cancels
            }),
        };
        if matches!(delta, Plan::Empty(_)) {
            continue;
        }
        let delta = look_up::with_indexes(delta, &differential.pipeline, &mut |orders| {
            let changed = orders.first().map_or(0, |it| rows_of(&it.source));
            let looks_up = differential.looks_up(orders, changed);
            sizes.push(u8::from(looks_up));
            looks_up
        });
        fault::point(Step::StageStarted);
        let run = StageRun {
            definition,
            differential,
            index,
            stage,
            sizes,
            snapshot,
            session,
            wants_output: !is_last || wants.output,
            in_place: !is_last || wants.in_place,
        };
        let (counts, output) = {
            let _relations: Vec<_> = sources
                .iter()
                .filter_map(|source| Some(store_of(source)?.register(&delta_name(source))))
                .collect();
            match &stage.head {
                Some(Head::Group(head)) => run.with_group(head, &delta)?,
                Some(Head::Window(head)) => run.with_window(head, &delta)?,
                Some(Head::Recursion(head)) if head.is_set => run.with_fixpoint(head, &delta)?,
                Some(Head::Recursion(head)) => run.with_recursion(head, &delta)?,
                Some(Head::Whole) => run.whole()?,
                None => run.without_head(&delta)?,
            }
        };
        if is_last {
            result = (counts, output);
        } else if let Some(output) = output {
            stage_deltas.insert(index, output);
        }
    }
    Ok(result)
}

struct StageRun<'a> {
    definition: &'a Definition,
    differential: &'a Differential,
    index: usize,
    stage: &'a Stage,
    /// Size classes of the deltas of the stage's sources, then which changes of marks cancel, and which
    /// matches are looked up.
    sizes: Vec<u8>,
    snapshot: &'a Snapshot,
    session: &'a Session,
    wants_output: bool,
    in_place: bool,
}

impl StageRun<'_> {
    fn query(
        &self,
        kind: Kind,
        sizes: Vec<u8>,
        text: impl FnOnce() -> String,
        each: impl FnMut(Row<'_>),
    ) {
        let statement =
            self.definition.statements.borrow_mut().get((self.index, kind, sizes), text);
        statement.query(&[], self.snapshot, each);
    }

    fn apply(&self, change: &Change, matching: &Matching) -> Counts {
        delta::apply(
            change,
            self.index,
            self.stage,
            &self.differential.storages[self.index],
            matching,
            &mut self.definition.statements.borrow_mut(),
            self.snapshot,
            self.session,
        )
    }

    fn with_group(&self, head: &Group, delta: &Plan) -> Result<(Counts, Option<Store>), Error> {
        let storages = &self.differential.storages;
        let texts = std::cell::OnceCell::<HeadStatements>::new();
        let text = || {
            texts
                .get_or_init(|| sql::head(self.stage, head, delta, &storages[self.index], storages))
        };
        let pairs =
            RefCell::new(Pairs::new(self.differential, self.index, head, self.wants_output));
        pairs.borrow_mut().is_every_group_lost = self.is_altered();
        pairs.borrow_mut().in_place = self.in_place;
        let each = |row: Row<'_>| pairs.borrow_mut().add(&row);
        self.query(Kind::Changed, self.sizes.clone(), || text().changed.clone(), each);

        let (keys, null_keys) = pairs.borrow_mut().take_lost();
        for (kind, lost) in [(Kind::Rescan, keys), (Kind::RescanNull, null_keys)] {
            if lost.rows() == 0 {
                continue;
            }
            let _relation = lost.register("__pgs_keys");
            let rescan = || match kind {
                Kind::RescanNull => {
                    text().rescan_null.clone().expect("a NULL key comes from a nullable column")
                }
                _ => text().rescan.clone(),
            };
            self.query(kind, vec![size_class(lost.rows())], rescan, each);
        }
        let pairs = pairs.into_inner();
        if pairs.is_negative {
            return Err(Error::broken(&self.definition.table, "a group has fewer than no rows"));
        }
        let change = pairs.change;
        let counts = self.apply(&change, &Matching::Ctid);
        self.check(&change, counts)?;
        Ok((counts, change.output))
    }

    /// Evaluates the window functions again over the partitions that the delta touches.
    fn with_window(&self, head: &Window, delta: &Plan) -> Result<(Counts, Option<Store>), Error> {
        let storages = &self.differential.storages;
        let texts = std::cell::OnceCell::<WindowStatements>::new();
        let text = || {
            texts.get_or_init(|| {
                sql::window(self.stage, head, delta, &storages[self.index], storages)
            })
        };
        let columns = self.partition_columns(head);
        let (mut keys, mut null_keys) = (Store::new(&columns), Store::new(&columns));
        let each = |row: Row<'_>| {
            let store = if row.nulls.contains(&true) { &mut null_keys } else { &mut keys };
            store.put(row.values, row.nulls);
        };
        self.query(Kind::Changed, self.sizes.clone(), || text().touched.clone(), each);

        let values = self.differential.value_columns(self.index);
        let mut rows = Consolidator::new(&identified(&values));
        for (kind, keys) in [(Kind::Rescan, keys), (Kind::RescanNull, null_keys)] {
            if keys.rows() == 0 {
                continue;
            }
            let sizes = vec![size_class(keys.rows())];
            let _relation = keys.register("__pgs_keys");
            let stored = || text().stored.clone();
            self.query(Kind::Stored, sizes.clone(), stored, |it| rows.add(it.values, it.nulls, -1));
            let evaluated = || match kind {
                Kind::RescanNull => {
                    text().evaluated_null.clone().expect("a NULL key comes from a nullable column")
                }
                _ => text().evaluated.clone(),
            };
            self.query(kind, sizes, evaluated, |it| rows.add(it.values, it.nulls, 1));
        }
        let is_keyed = self.stage.key.is_some();
        let change = content_change(&rows, &values, is_keyed && self.in_place, self.output_width());
        let counts = self.apply(&change, &matching(is_keyed));
        self.check(&change, counts)?;
        Ok((counts, change.output))
    }

    /// Evaluates a recursion over what changed, depth by depth.
    fn with_recursion(
        &self,
        head: &Recursion,
        delta: &Plan,
    ) -> Result<(Counts, Option<Store>), Error> {
        let storages = &self.differential.storages;
        let texts = std::cell::OnceCell::<RecursionStatements>::new();
        let text =
            || texts.get_or_init(|| sql::recursion(self.stage, self.index, head, delta, storages));
        let values = self.differential.value_columns(self.index);
        let columns = identified(&values);
        // Row id, output, weight: the last of the output is the depth.
        let (depth_at, weight_at) = (values.len(), values.len() + 1);
        let split = |row: &Row<'_>, into: &mut Consolidator| {
            let weight = row.get::<i64>(weight_at).expect("a weight is never NULL");
            into.add(&row.values[..weight_at], &row.nulls[..weight_at], weight);
        };
        let mut first = Consolidator::new(&columns);
        let changed = || text().changed.clone();
        self.query(Kind::Changed, self.sizes.clone(), changed, |row| split(&row, &mut first));
        let mut pending: BTreeMap<i64, Consolidator> = BTreeMap::new();
        first.each(|row, nulls, weight| {
            let rows = pending.entry(row[depth_at].value() as i64);
            rows.or_insert_with(|| Consolidator::new(&columns)).add(row, nulls, weight);
        });
        let mut all = Consolidator::new(&columns);
        while let Some((depth, rows)) = pending.pop_first() {
            let mut change = Change::by_content(&values, values.len(), true);
            rows.each(|row, nulls, weight| {
                all.add(row, nulls, weight);
                change.put_output(&row[1..], &nulls[1..], weight);
            });
            let change = change.output.expect("asked for");
            if change.rows() == 0 {
                continue;
            }
            let mut next =
                pending.remove(&(depth + 1)).unwrap_or_else(|| Consolidator::new(&columns));
            {
                let _relation = change.register(&delta_name(&Source::Stage(self.index)));
                let sizes = vec![size_class(change.rows())];
                let step = || text().step.clone();
                self.query(Kind::Rescan, sizes, step, |row| split(&row, &mut next));
            }
            pending.insert(depth + 1, next);
        }
        let change = content_change(&all, &values, false, self.output_width());
        let counts = self.apply(&change, &matching(false));
        self.check(&change, counts)?;
        Ok((counts, change.output))
    }

    /// The hash of a partition, then its key.
    fn partition_columns(&self, head: &Window) -> Vec<StoreColumn> {
        let values = self.differential.value_columns(self.index);
        let key = |(index, position): (usize, &usize)| StoreColumn {
            name: format!("k{index}"),
            ..values[*position].clone()
        };
        identified(&head.partition.iter().enumerate().map(key).collect::<Vec<_>>())
    }

    /// How many values are output, when somebody reads the change of it.
    fn output_width(&self) -> Option<usize> {
        self.wants_output.then_some(self.stage.output.len())
    }

    /// Compares what the body is now with what is stored.
    fn whole(&self) -> Result<(Counts, Option<Store>), Error> {
        let values = self.differential.value_columns(self.index);
        let storage = &self.differential.storages[self.index];
        let mut rows = Consolidator::new(&identified(&values));
        let stored = || sql::stored_rows(storage);
        self.query(Kind::Stored, Vec::new(), stored, |row| rows.add(row.values, row.nulls, -1));
        let storages = &self.differential.storages;
        let new = || sql::identified_rows(&self.stage.body, None, values.len(), storages);
        self.query(Kind::Changed, Vec::new(), new, |row| rows.add(row.values, row.nulls, 1));
        let change = content_change(&rows, &values, false, self.output_width());
        let counts = self.apply(&change, &self.matching());
        self.check(&change, counts)?;
        Ok((counts, change.output))
    }

    fn without_head(&self, delta: &Plan) -> Result<(Counts, Option<Store>), Error> {
        let values = self.differential.value_columns(self.index);
        let key = self.stage.key.as_deref();
        let mut rows = Consolidator::new(&identified(&values));
        self.query(
            Kind::Changed,
            self.sizes.clone(),
            || sql::identified_delta(delta, key, values.len(), &self.differential.storages),
            |row| {
                let width = row.values.len() - 1;
                let weight = row.get::<i64>(width).expect("a weight is never NULL");
                rows.add(&row.values[..width], &row.nulls[..width], weight);
            },
        );
        let change =
            content_change(&rows, &values, key.is_some() && self.in_place, self.output_width());
        if self.differential.pipeline.is_deferred(self.index) {
            return Ok((Counts::default(), change.output));
        }
        let counts = self.apply(&change, &self.matching());
        self.check(&change, counts)?;
        Ok((counts, change.output))
    }

    /// How the rows of a storage without head are found. Rows that look alike can have the same row
    /// id, unless they show what tells them apart.
    fn matching(&self) -> Matching {
        if !self.definition.has_row_triggers() {
            return matching(self.stage.shows_key());
        }
        let shown = |it: &usize| *it < self.stage.output.len();
        let columns = self.stage.key.iter().flatten().copied().filter(shown).collect();
        Matching::Key { columns, copies: !self.stage.shows_key() }
    }

    /// Whether triggers of the user may have changed what is stored, so that it is no state to
    /// start from.
    fn is_altered(&self) -> bool {
        self.differential.is_last(self.index) && self.definition.has_row_triggers()
    }

    /// Every row that should have gone or changed was there.
    fn check(&self, change: &Change, counts: Counts) -> Result<(), Error> {
        let expected = (change.removed_rows, change.updated.rows(), change.added.rows());
        if expected == (counts.deleted, counts.updated, counts.inserted) {
            return Ok(());
        }
        // Triggers of the user may skip rows.
        if self.definition.has_row_triggers() {
            return Ok(());
        }
        Err(Error::broken(
            &self.definition.table,
            &format!(
                "expected to delete, update and insert {expected:?} rows, but found {:?}",
                (counts.deleted, counts.updated, counts.inserted)
            ),
        ))
    }
}

/// A row id, then these values.
pub fn identified(values: &[StoreColumn]) -> Vec<StoreColumn> {
    std::iter::once(bigint("rid")).chain(values.iter().cloned()).collect()
}

/// How the rows of a storage without head are found.
pub fn matching(shows_key: bool) -> Matching {
    if shows_key { Matching::Content } else { Matching::ContentCopies }
}

/// More columns than this no row can have.
const MOST_COLUMNS: usize = 1664;

/// Turns net rows (row id, values) into rows that go, change and come. In a keyed storage a row
/// that goes and one that comes under the same row id are one update. `output` is how many of the
/// values are output, when somebody reads the change of it.
pub fn content_change(
    rows: &Consolidator,
    values: &[StoreColumn],
    is_keyed: bool,
    output: Option<usize>,
) -> Change {
    let mut change = Change::by_content(values, output.unwrap_or(values.len()), output.is_some());
    let net = rows.net();
    // Row id, values, weight.
    let width = values.len() + 2;
    let (mut row, mut nulls) = (vec![Datum::from(0); width], vec![false; width]);
    // Row id → the row that goes, until it is paired.
    let mut gone: HashMap<i64, usize> = HashMap::new();
    // An update has the row id, old values and new ones; there is a limit to columns.
    if is_keyed && 2 * values.len() < MOST_COLUMNS {
        for (index, place) in net.iter().enumerate() {
            if rows.weight(*place) == -1 {
                gone.insert(rows.row_id(*place), index);
            }
        }
    }
    let mut paired = vec![false; net.len()];
    let (mut both, mut both_nulls) = (row.clone(), nulls.clone());
    for (index, place) in net.iter().enumerate() {
        if gone.is_empty() {
            break;
        }
        if rows.weight(*place) != 1 {
            continue;
        }
        if let Some(old) = gone.remove(&rows.row_id(*place)) {
            rows.row(*place, &mut row, &mut nulls);
            paired[old] = true;
            paired[index] = true;
            both.resize(width, Datum::from(0));
            both_nulls.resize(width, false);
            rows.row(net[old], &mut both, &mut both_nulls);
            both.truncate(width - 1);
            both_nulls.truncate(width - 1);
            both.extend(&row[1..width - 1]);
            both_nulls.extend(&nulls[1..width - 1]);
            change.updated.put(&both, &both_nulls);
        }
    }
    for (index, place) in net.iter().enumerate() {
        if paired[index] && change.output.is_none() {
            continue;
        }
        let weight = rows.row(*place, &mut row, &mut nulls);
        change.put_output(&row[1..], &nulls[1..], weight);
        if paired[index] {
            continue;
        }
        if weight > 0 {
            for _ in 0..weight {
                change.added.put(&row[..width - 1], &nulls[..width - 1]);
            }
        } else {
            both.clear();
            both.extend(&row[..width - 1]);
            both.extend([Datum::from(-weight), Datum::from(index)]);
            both_nulls.clear();
            both_nulls.extend(&nulls[..width - 1]);
            both_nulls.extend([false, false]);
            change.removed.put(&both, &both_nulls);
            change.removed_rows += weight.unsigned_abs();
        }
    }
    change
}

/// Sorts the output of a head's statements (old and new row of each group) into a change.
struct Pairs {
    change: Change,
    lost: Store,
    lost_null: Store,
    key_columns: Vec<StoreColumn>,
    keys: usize,
    /// Number of values: output and state.
    width: usize,
    lengths: Vec<(bool, i16)>,
    outputs: usize,
    is_negative: bool,
    /// Until the first pass is over.
    is_every_group_lost: bool,
    in_place: bool,
}

impl Pairs {
    fn new(differential: &Differential, index: usize, head: &Group, wants_output: bool) -> Self {
        let stage = &differential.pipeline.stages[index];
        let mut values = differential.value_columns(index);
        let width = values.len();
        let lengths = values.iter().map(|it| type_length(it.ty)).collect();
        let count = bigint("n");
        let keys = head.keys.len();
        let mut key_columns = vec![bigint("rid")];
        key_columns.extend(
            values[..keys]
                .iter()
                .enumerate()
                .map(|(i, it)| StoreColumn { name: format!("k{i}"), ..it.clone() }),
        );
        values.push(count);
        Self {
            change: Change::by_ctid(&values, stage.output.len(), wants_output),
            lost: Store::new(&key_columns),
            lost_null: Store::new(&key_columns),
            key_columns,
            keys,
            width,
            lengths,
            outputs: stage.output.len(),
            is_negative: false,
            is_every_group_lost: false,
            in_place: true,
        }
    }

    /// The groups to evaluate again: without and with a NULL in the key.
    fn take_lost(&mut self) -> (Store, Store) {
        let empty = || Store::new(&self.key_columns);
        let (lost, lost_null) = (empty(), empty());
        self.is_every_group_lost = false;
        (std::mem::replace(&mut self.lost, lost), std::mem::replace(&mut self.lost_null, lost_null))
    }

    fn add(&mut self, row: &Row<'_>) {
        // ctid, lost, row id, old count, old values, new count, new values
        const LOST: usize = 1;
        const ROW_ID: usize = 2;
        let old = PAIR_PREFIX + 1..PAIR_PREFIX + 1 + self.width;
        let new = old.end + 1..old.end + 1 + self.width;
        let new_count = row.get::<i64>(old.end).expect("a count is never NULL");
        let existed = !row.nulls[0];
        let exists = new_count > 0 || self.keys == 0;
        if new_count < 0 {
            self.is_negative = true;
            return;
        }
        if exists && (self.is_every_group_lost || row.get::<bool>(LOST) == Some(true)) {
            let end = new.start + self.keys;
            let mut values = vec![row.values[ROW_ID]];
            values.extend(&row.values[new.start..end]);
            let mut nulls = vec![false];
            nulls.extend(&row.nulls[new.start..end]);
            let store = if nulls.contains(&true) { &mut self.lost_null } else { &mut self.lost };
            store.put(&values, &nulls);
            return;
        }
        let is_same = |from: usize, to: usize| {
            (from..to).all(|i| {
                let (by_value, length) = self.lengths[i];
                same_image(row.datum(old.start + i), row.datum(new.start + i), by_value, length)
            })
        };
        let change = &mut self.change;
        match (existed, exists) {
            (false, false) => {}
            (true, false) => {
                change.removed.put(&row.values[..1], &row.nulls[..1]);
                change.removed_rows += 1;
                change.put_output(&row.values[old.clone()], &row.nulls[old], -1);
            }
            (false, true) => {
                let (mut values, mut nulls) = (vec![row.values[ROW_ID]], vec![false]);
                values.extend(&row.values[new.clone()]);
                nulls.extend(&row.nulls[new.clone()]);
                values.push(row.values[old.end]);
                nulls.push(false);
                change.added.put(&values, &nulls);
                change.put_output(&row.values[new.clone()], &row.nulls[new], 1);
            }
            (true, true) => {
                let same_output = is_same(0, self.outputs);
                let same_state = is_same(self.outputs, self.width);
                if same_output && same_state && row.get::<i64>(PAIR_PREFIX) == Some(new_count) {
                    return;
                }
                let found_by = if self.in_place { row.values[0] } else { row.values[ROW_ID] };
                let (mut values, mut nulls) = (vec![found_by], vec![false]);
                values.extend(&row.values[new.clone()]);
                nulls.extend(&row.nulls[new]);
                values.push(row.values[old.end]);
                nulls.push(false);
                if self.in_place {
                    change.updated.put(&values, &nulls);
                } else {
                    change.removed.put(&row.values[..1], &row.nulls[..1]);
                    change.removed_rows += 1;
                    change.added.put(&values, &nulls);
                }
                if !same_output {
                    change.put_output(&row.values[old.clone()], &row.nulls[old], -1);
                    change.put_output(&values[1..=self.width], &nulls[1..=self.width], 1);
                }
            }
        }
    }
}
