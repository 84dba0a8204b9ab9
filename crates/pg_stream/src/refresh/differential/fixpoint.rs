//! Running a recursion over a set; see `pgstream_ivm::fixpoint`.

use std::collections::HashMap;

use pgrx::pg_sys::{BuiltinOid, Datum};
use pgstream_ivm::{
    fixpoint::{Fixpoint, Standing},
    plan::{Plan, Source},
    sql::{self, FixpointStatements, Matching, delta_name},
    stage::Recursion,
};

use super::{StageRun, identified};
use crate::{
    error::Error,
    pg::{
        spi::{self, Row},
        store::{Store, StoreColumn},
        tuple::Consolidator,
    },
    refresh::{
        delta::{Change, Counts},
        statements::{Kind, size_class},
    },
};

/// The rows that were met: row id, row, and the place of the stored one.
struct Rows {
    rows: Consolidator,
    set: Fixpoint,
    /// Where the members are in `rows`, and the members there.
    places: Vec<usize>,
    members: HashMap<usize, usize>,
    /// How many columns the row has.
    width: usize,
}

impl Rows {
    fn new(values: &[StoreColumn], width: usize) -> Self {
        let ctid = StoreColumn {
            name: "ctid".to_owned(),
            ty: spi::type_oid(BuiltinOid::TIDOID),
            ..values[width].clone()
        };
        let mut columns = identified(&values[..width]);
        columns.push(ctid);
        Self {
            rows: Consolidator::new(&columns),
            set: Fixpoint::default(),
            places: Vec::new(),
            members: HashMap::new(),
            width,
        }
    }

    /// Adds a derivation: row id, row, depth, weight, then what is stored of the row.
    fn derive(&mut self, row: &Row<'_>) {
        let depth_at = 1 + self.width;
        let ctid_at = depth_at + 2;
        let number = |at: usize| row.get::<i64>(at).expect("a number of a row is never NULL");
        let (mut values, mut nulls) =
            (row.values[..depth_at].to_vec(), row.nulls[..depth_at].to_vec());
        values.push(row.values[ctid_at]);
        nulls.push(row.nulls[ctid_at]);
        let place = self.rows.place(&values, &nulls);
        let (set, places) = (&mut self.set, &mut self.places);
        let member = *self.members.entry(place).or_insert_with(|| {
            places.push(place);
            set.meet((!row.nulls[ctid_at]).then(|| Standing {
                rank: number(ctid_at + 1),
                count: number(ctid_at + 2),
                support: number(ctid_at + 3),
            }))
        });
        self.set.derive(member, number(depth_at), number(depth_at + 1));
    }

    /// Reads a member: row id, row, place.
    fn read(&self, member: usize, values: &mut Vec<Datum>, nulls: &mut Vec<bool>) {
        // Behind these is the weight.
        values.resize(self.width + 3, Datum::from(0));
        nulls.resize(self.width + 3, false);
        self.rows.row(self.places[member], values, nulls);
    }
}

impl StageRun<'_> {
    /// Follows rows that leave and join from one to the other.
    pub(super) fn with_fixpoint(
        &self,
        head: &Recursion,
        delta: &Plan,
    ) -> Result<(Counts, Option<Store>), Error> {
        let storages = &self.differential.storages;
        let texts = std::cell::OnceCell::<FixpointStatements>::new();
        let text =
            || texts.get_or_init(|| sql::fixpoint(self.stage, self.index, head, delta, storages));
        let mut columns = self.differential.value_columns(self.index);
        let outputs = self.stage.output.len();
        let width = outputs - 1;
        let mut rows = Rows::new(&columns, width);
        let changed = || text().changed.clone();
        self.query(Kind::Changed, self.sizes.clone(), changed, |row| rows.derive(&row));
        let highest = || {
            let mut highest = None;
            let text = || text().highest.clone();
            self.query(Kind::Stored, Vec::new(), text, |row| highest = row.get::<i64>(0));
            highest.expect("a stored row comes back")
        };
        let (mut values, mut nulls) = (Vec::new(), Vec::new());
        loop {
            let moved = rows.set.advance(highest);
            if moved.is_empty() {
                break;
            }
            let mut change = Change::by_content(&columns, outputs, true);
            for it in &moved {
                rows.read(it.member, &mut values, &mut nulls);
                values[outputs] = Datum::from(it.rank);
                nulls[outputs] = false;
                change.put_output(&values[1..], &nulls[1..], it.weight);
            }
            let change = change.output.expect("asked for");
            let _relation = change.register(&delta_name(&Source::Stage(self.index)));
            let sizes = vec![size_class(change.rows())];
            self.query(Kind::Rescan, sizes, || text().step.clone(), |row| rows.derive(&row));
        }
        if !rows.set.is_sound() {
            return Err(Error::broken(
                &self.definition.table,
                "a row of a recursion has fewer than no derivations",
            ));
        }
        columns.push(StoreColumn { name: "n".to_owned(), ..columns[width].clone() });
        let change = self.outcome(&rows, &columns, outputs);
        let counts = self.apply(&change, &Matching::Ctid);
        self.check(&change, counts)?;
        Ok((counts, change.output))
    }

    /// What becomes of the storage, whose columns are the row, its rank, its support and its count.
    /// Nobody else reads ranks, so a row that only has another one is no change of the output.
    fn outcome(&self, rows: &Rows, columns: &[StoreColumn], outputs: usize) -> Change {
        let mut change = Change::by_ctid(columns, outputs, self.wants_output);
        let (mut values, mut nulls) = (Vec::new(), Vec::new());
        for member in 0..rows.places.len() {
            let (before, after) = rows.set.outcome(member);
            if before == after {
                continue;
            }
            rows.read(member, &mut values, &mut nulls);
            // Row id, row, then the place, instead of which the numbers are stored.
            let ctid = values[outputs];
            values.truncate(outputs);
            nulls.truncate(outputs);
            let put = |values: &mut Vec<Datum>, nulls: &mut Vec<bool>, it: Standing| {
                values.extend([it.rank, it.support, it.count].map(Datum::from));
                nulls.extend([false; 3]);
            };
            match (before, after) {
                (Some(before), None) => {
                    change.removed.put(&[ctid], &[false]);
                    change.removed_rows += 1;
                    put(&mut values, &mut nulls, before);
                    change.put_output(&values[1..], &nulls[1..], -1);
                }
                (None, Some(after)) => {
                    put(&mut values, &mut nulls, after);
                    change.added.put(&values, &nulls);
                    change.put_output(&values[1..], &nulls[1..], 1);
                }
                (Some(_), Some(after)) => {
                    put(&mut values, &mut nulls, after);
                    values[0] = ctid;
                    change.updated.put(&values, &nulls);
                }
                (None, None) => {}
            }
        }
        change
    }
}
