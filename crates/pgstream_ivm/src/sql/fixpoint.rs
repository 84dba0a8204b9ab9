//! The statements of a stage whose head is a recursion over a set; see [`crate::fixpoint`].
//!
//! The storage has the row, its rank where other recursions have the depth, its support, and as the
//! count its derivations.

use crate::{
    derive,
    plan::{Plan, Schema, Source},
    sql::{
        COUNT, ROW_ID, Storage,
        head::{list, same_keys},
        recursion::{ITSELF, parts},
        select::{Printer, row_id},
    },
    stage::{Recursion, Stage},
};

/// SQL for a stage with a recursion over a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FixpointStatements {
    /// The derivations that come and go with the changes of base and step: row id, row, depth, weight;
    /// then what is stored of the row: `ctid`, rank, count, support.
    pub changed: String,
    /// The derivations that come and go with the rows of the stage's delta: likewise.
    pub step: String,
    /// The greatest rank that is stored.
    pub highest: String,
    /// All rows: row id, row, rank, support, count.
    pub all: String,
}

/// Writes the statements of stage `index`. `delta` is the body's delta.
pub fn fixpoint(
    stage: &Stage,
    index: usize,
    head: &Recursion,
    delta: &Plan,
    storages: &[Storage],
) -> FixpointStatements {
    let writer = Writer { stage, index, head, storages };
    let step = derive::delta(&head.step, &|source| *source == Source::Stage(index));
    FixpointStatements {
        changed: writer.met(delta),
        step: writer.met(&step),
        highest: writer.highest(),
        all: writer.all(),
    }
}

struct Writer<'a> {
    stage: &'a Stage,
    index: usize,
    head: &'a Recursion,
    storages: &'a [Storage],
}

impl Writer<'_> {
    fn storage(&self) -> &Storage {
        &self.storages[self.index]
    }

    /// The columns of a row, without the rank.
    fn row(&self) -> Schema {
        let output = &self.stage.output;
        output[..output.len() - 1].to_vec()
    }

    fn rank(&self) -> &str {
        self.storage().columns.last().expect("the last column is the rank")
    }

    fn support(&self) -> &str {
        &self.storage().state[0].0
    }

    fn row_id(&self, prefix: &str) -> String {
        let row = self.row();
        let key: Vec<usize> = (0..row.len()).collect();
        row_id(Some(&key), &row, prefix)
    }

    /// That two rows are the same: their ids, and their columns.
    fn same(&self, ids: (&str, &str), left: &str, right: &dyn Fn(usize) -> String) -> String {
        let mut same = vec![format!("{} = {}", ids.0, ids.1)];
        same.extend(same_keys(&self.row(), &|it| format!("{left}.c{it}"), right, true));
        same.join(" AND ")
    }

    fn met(&self, delta: &Plan) -> String {
        let width = self.row().len();
        let body = Printer::new(self.storages).weighted(delta);
        let storage = self.storage();
        let stored = |it: usize| format!("s.{}", storage.columns[it]);
        format!(
            "SELECT b.rid, {}b.w, s.ctid, s.{}, s.{COUNT}, s.{} FROM \
             (SELECT {} AS rid, h.* FROM {body} AS h) AS b LEFT JOIN {} AS s ON {}",
            list((0..=width).map(|it| format!("b.c{it}"))),
            self.rank(),
            self.support(),
            self.row_id("h.c"),
            storage.table,
            self.same((&format!("s.{ROW_ID}"), "b.rid"), "b", &stored),
        )
    }

    fn highest(&self) -> String {
        format!("SELECT max(s.{}) FROM {} AS s", self.rank(), self.storage().table)
    }

    /// A recursive query puts out a row after the one that it comes from, so the number in the order of
    /// appearance is a rank. (Who fills a storage checks that each row has support.) All derivations are
    /// then counted at once.
    fn all(&self) -> String {
        const RANKED: &str = "__pgs_ranked";
        let names = &self.storage().columns;
        let width = names.len() - 1;
        let (row, rank) = (names[..width].join(", "), self.rank());
        let reading = |table: String| {
            let mut storages = self.storages.to_vec();
            storages[self.index].table = table;
            storages
        };
        let unranked = reading(format!("(SELECT r.*, 0::int8 AS {rank} FROM {ITSELF} AS r)"));
        let [base, step] = parts(self.stage, self.head, &unranked, width);
        let ranked = reading(RANKED.to_owned());
        let [from_base, from_step] = [&self.head.base, &self.head.step]
            .map(|it| Printer::new(&ranked).unweighted(it))
            .map(|it| format!("SELECT b.* FROM {it} AS b"));
        let named = |from: &str| {
            let columns = names.iter().enumerate();
            let columns = columns.map(|(at, it)| format!("{from}.{it} AS c{at}"));
            columns.collect::<Vec<_>>().join(", ")
        };
        let identified =
            |rows: &str| format!("(SELECT {} AS rid, h.* FROM ({rows}) AS h)", self.row_id("h.c"));
        let any = |it: usize| format!(", any_value(m.c{it})");
        format!(
            "WITH RECURSIVE {ITSELF}({row}) AS ({base} UNION {step}), {RANKED} AS MATERIALIZED \
             (SELECT r.*, row_number() OVER () AS {rank} FROM {ITSELF} AS r) \
             SELECT any_value(m.rid) AS {ROW_ID}{}, m.c{width}, \
             count(*) FILTER (WHERE d.c{width} <= m.c{width}), count(*) FROM {} AS m JOIN {} AS d ON {} \
             GROUP BY m.c{width}",
            (0..width).map(any).collect::<String>(),
            identified(&format!("SELECT {} FROM {RANKED} AS r", named("r"))),
            identified(&format!("{from_base} UNION ALL {from_step}")),
            self.same(("m.rid", "d.rid"), "m", &|it| format!("d.c{it}")),
        )
    }
}
