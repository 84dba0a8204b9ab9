//! Comparing a stream table with its query.
//!
//! A stream table is right as of its last refresh, and the query can only be evaluated as of now. So
//! the pending changes are applied first, by an ordinary refresh at the same snapshot, in a
//! subtransaction that is undone afterwards: what remains different is wrong, not late. Where a
//! refresh would compute everything anew, the table is compared as it is, and a notice says so.
//!
//! Rows are the same when their binary images are, as for a refresh: NULLs, duplicates, NaN, -0.0, 1.0
//! beside 1.00 and types without `=` all count. A query that leaves its result open (by ties, or by an
//! order that it does not state) may differ without being wrong.
//!
//! Hidden state is compared too, each stage with what it should be over the stored stages before it:
//! its number of rows, and those columns that nothing leaves open. Where it was laid out for another
//! definition, there is nothing to compare it with.

use std::cell::RefCell;

use pgrx::pg_sys::{Datum, Oid};
use pgstream_ivm::{
    plan::AggregateFunction,
    sql::{self, ROW_ID, quote, quote_qualified},
    stage::{Head, Stage, Window},
};

use crate::{
    error::Error,
    pg::{
        access::Roles,
        name,
        progress::Progress,
        relation,
        security::Identity,
        snapshot::Snapshot,
        spi::{Prepared, Session},
        store::{Store, StoreColumn},
        subtransaction,
        time::Stopwatch,
        tuple::Consolidator,
    },
    refresh::{
        Refresh, Running,
        advance::State,
        check_permissions,
        definition::{Definition, Differential},
        differential::identified,
        full::{bigint, rows_of_stage},
        lock_sources, refuse_inside_itself,
    },
};

/// A row of which there are too few or too many.
pub struct Difference {
    /// The table that holds it or should do so.
    pub table: Oid,
    /// How many copies are missing; fewer than none when there are too many.
    pub missing: i64,
    /// As JSON.
    pub row: String,
}

/// The differences between what is stored and what should be. Changes nothing.
pub fn verify(pgs_id: i64) -> Result<Vec<Difference>, Error> {
    let clock = Stopwatch::start();
    let progress = Progress::start(pgs_id, clock.started());
    let _superuser = Identity::superuser();
    refuse_inside_itself(pgs_id)?;
    relation::lock_stream_table(pgs_id);
    let definition = lock_sources(pgs_id)?;
    check_permissions(&definition);
    let _running = Running::begin(pgs_id);
    let snapshot = Snapshot::for_refresh();
    let state = State::read(pgs_id, &snapshot)?;
    if !state.is_populated {
        return Err(Error::NotPopulated(relation::display_name(definition.relation)));
    }
    let brought_up = subtransaction::undone(|| {
        let session = Session::open();
        let seen = RefCell::default();
        let refresh = Refresh {
            definition: &definition,
            snapshot: &snapshot,
            session: &session,
            seen: &seen,
            progress: &progress,
        };
        match refresh.catch_up(&state) {
            Ok(true) => Some(compare(&definition, &snapshot, true)),
            // Broken, or not to be done from changes: compared as it is.
            Ok(false) | Err(_) => None,
        }
    });
    brought_up.unwrap_or_else(|| {
        pgrx::notice!(
            "pending changes of stream table {} cannot be told from differences: its next refresh \
             computes everything anew",
            relation::display_name(definition.relation)
        );
        let _session = Session::open();
        compare(&definition, &snapshot, is_laid_out(&definition, &state))
    })
}

/// Whether the hidden state has the columns that the definition says.
fn is_laid_out(definition: &Definition, state: &State) -> bool {
    definition.differential.as_ref().is_some_and(|it| {
        !state.needs_reinit && state.fingerprint.as_deref() == Some(&it.fingerprint)
    })
}

impl Refresh<'_> {
    /// Applies the pending changes if a refresh would do so; `false` if it would compute everything
    /// anew, which would hide what is wrong.
    fn catch_up(&self, state: &State) -> Result<bool, Error> {
        let Some(differential) = &self.definition.differential else { return Ok(false) };
        let Some(frontier) = &state.frontier else { return Ok(false) };
        if !is_laid_out(self.definition, state) || differential.depends_on_moment {
            return Ok(false);
        }
        let Some(deltas) = self.read_deltas(differential, frontier)? else { return Ok(false) };
        if !deltas.stores.is_empty() {
            // Nobody sees it, so rows may go and come back where they must not collide.
            let in_place = !self.definition.has_unique_indexes;
            self.differential(differential, &deltas.stores, in_place)?;
        }
        Ok(true)
    }
}

fn compare(
    definition: &Definition,
    snapshot: &Snapshot,
    with_state: bool,
) -> Result<Vec<Difference>, Error> {
    let _owner = Identity::restricted(relation::owner(definition.relation));
    let _settings = definition.enter_settings()?;
    let _roles = Roles::enter(definition.roles());
    let mut differences = compare_content(definition, snapshot);
    for (index, differential) in definition
        .differential
        .iter()
        .filter(|_| with_state)
        .flat_map(|it| (0..it.pipeline.stages.len()).map(move |index| (index, it)))
    {
        let is_seen = differential.is_last(index) && !differences.is_empty();
        if differential.storages[index].inline.is_none() && !is_seen {
            differences.extend(compare_stage(differential, index, snapshot));
        }
    }
    Ok(differences)
}

/// The visible columns with the query itself, which shares nothing with how they are maintained.
fn compare_content(definition: &Definition, snapshot: &Snapshot) -> Vec<Difference> {
    let columns = relation::store_columns(definition.view);
    let stored = relation::store_columns(definition.relation);
    let is_stored = |it: &StoreColumn| stored.iter().any(|s| s.name == it.name && s.ty == it.ty);
    if !columns.iter().all(is_stored) {
        pgrx::error!("stream table {} has other columns than its query", definition.table);
    }
    let names: Vec<String> = columns.iter().map(|it| quote(&it.name)).collect();
    let list: String = names.iter().map(|it| format!(", q.{it}")).collect();
    let (schema, view) = relation::name(definition.view);
    let rows = |from: &str| format!("SELECT 0::int8{list} FROM {from} AS q");
    let mut net = Consolidator::new(&identified(&columns));
    Prepared::new(&rows(&quote_qualified(&schema, &view)), &[])
        .query(&[], snapshot, |row| net.add(row.values, row.nulls, 1));
    Prepared::new(&rows(&definition.table), &[])
        .query(&[], snapshot, |row| net.add(row.values, row.nulls, -1));
    differences(&net, &columns, definition.relation, snapshot)
}

fn compare_stage(
    differential: &Differential,
    index: usize,
    snapshot: &Snapshot,
) -> Vec<Difference> {
    let (stage, storage) = (&differential.pipeline.stages[index], &differential.storages[index]);
    let all = differential.value_columns(index);
    // Positions after the row id.
    let determined: Vec<usize> = (0..all.len())
        .filter(|it| match it.checked_sub(stage.output.len()) {
            None => is_determined(stage, *it),
            // How many derivations come from lower ranks follows from the ranks.
            Some(state) => stage.group().is_some() && storage.state[state].1 == "pg_catalog.int8",
        })
        .chain(storage.counted.then_some(all.len()))
        .collect();
    let mut names = storage.columns.clone();
    names.extend(storage.state.iter().map(|it| it.0.clone()));
    names.push(sql::COUNT.to_owned());
    let columns: Vec<StoreColumn> = determined
        .iter()
        .map(|it| all.get(*it).cloned().unwrap_or_else(|| bigint(sql::COUNT)))
        .collect();
    let mut net = Consolidator::new(&identified(&columns));
    let mut add = |values: &[Datum], nulls: &[bool], weight| {
        let at = |column: usize| match column.checked_sub(1) {
            None => (Datum::from(0), false),
            Some(it) => (values[1 + determined[it]], nulls[1 + determined[it]]),
        };
        net.add_from(weight, at);
    };
    let listed = names[..all.len() + usize::from(storage.counted)].iter();
    let stored: String = listed.map(|it| format!(", s.{it}")).collect();
    let stored = format!("SELECT s.{ROW_ID}{stored} FROM {} AS s", storage.table);
    Prepared::new(&rows_of_stage(stage, storage, &differential.storages), &[]).query(
        &[],
        snapshot,
        |row| add(row.values, row.nulls, 1),
    );
    Prepared::new(&stored, &[]).query(&[], snapshot, |row| add(row.values, row.nulls, -1));
    let shown: Vec<StoreColumn> = determined
        .iter()
        .zip(columns)
        .map(|(it, column)| StoreColumn { name: unquoted(&names[*it]), ..column })
        .collect();
    let table = name::resolve(&storage.table).expect("it was just read");
    differences(&net, &shown, table, snapshot)
}

/// Whether nothing is left open about a column of a stage's output.
fn is_determined(stage: &Stage, column: usize) -> bool {
    let is_exact = stage.output[column].is_exact();
    match &stage.head {
        Some(Head::Group(head)) => match column.checked_sub(head.keys.len()) {
            None => is_exact,
            Some(call) => match head.calls[call].function {
                AggregateFunction::Rescan => false,
                AggregateFunction::Extremum { .. } => is_exact,
                _ => true,
            },
        },
        // Of rows that are equal in the order of a ranking, a filter keeps any.
        Some(Head::Window(Window { filter: Some(_), .. })) => false,
        Some(Head::Window(head)) => is_exact && column + head.calls.len() < stage.output.len(),
        Some(Head::Whole) => false,
        // A recursion to a fixpoint has several ways to rank its rows.
        Some(Head::Recursion(head)) if head.is_set => is_exact && column + 1 < stage.output.len(),
        Some(Head::Recursion(_)) | None => is_exact,
    }
}

fn unquoted(name: &str) -> String {
    match name.strip_prefix('"').and_then(|it| it.strip_suffix('"')) {
        Some(inner) => inner.replace("\"\"", "\""),
        None => name.to_owned(),
    }
}

/// The rows whose weight is not zero, with their columns as JSON.
fn differences(
    net: &Consolidator,
    columns: &[StoreColumn],
    table: Oid,
    snapshot: &Snapshot,
) -> Vec<Difference> {
    let stored: Vec<StoreColumn> = columns
        .iter()
        .enumerate()
        .map(|(at, it)| StoreColumn { name: format!("v{at}"), ..it.clone() })
        .chain([bigint("w")])
        .collect();
    let mut store = Store::new(&stored);
    net.each(|values, nulls, weight| {
        let (mut values, mut nulls) = (values[1..].to_vec(), nulls[1..].to_vec());
        values.push(Datum::from(weight));
        nulls.push(false);
        store.put(&values, &nulls);
    });
    if store.rows() == 0 {
        return Vec::new();
    }
    let list: Vec<String> = columns
        .iter()
        .enumerate()
        .map(|(at, it)| format!("d.v{at} AS {}", quote(&it.name)))
        .collect();
    // A name alone would be that of a column first.
    let sql = format!(
        "SELECT d.w, row_to_json(r.*)::text FROM __pgs_difference AS d, LATERAL (SELECT {}) AS r",
        list.join(", ")
    );
    let _relation = store.register("__pgs_difference");
    let mut found = Vec::new();
    Prepared::new(&sql, &[]).query(&[], snapshot, |row| {
        let (missing, json) = (row.get::<i64>(0), row.get::<String>(1));
        found.push(Difference {
            table,
            missing: missing.expect("a weight is never NULL"),
            row: json.expect("a row is never NULL"),
        });
    });
    found
}
