//! Computing the query from scratch.
//!
//! Inner stages are emptied and filled again. The stream table itself is compared with the new
//! result, and only the difference is written, so readers and downstream stream tables see what
//! really changed. Triggers of users do not fire.

use pgrx::pg_sys::{BuiltinOid, Oid};
use pgstream_ivm::{
    derive,
    sql::{self, COUNT, ROW_ID, Storage},
    stage::{Head, Stage},
};

use crate::{
    error::Error,
    fault::{self, Step},
    pg::{
        access::Quiet,
        name, relation,
        snapshot::Snapshot,
        spi::{self, Prepared, Session},
        store::{self, Store, StoreColumn},
        tuple::Consolidator,
    },
    refresh::{
        definition::{Definition, Differential},
        delta::{self, Counts},
        differential::{content_change, identified},
        guard,
    },
};

pub fn run(
    definition: &Definition,
    differential: Option<&Differential>,
    wants_output: bool,
    snapshot: &Snapshot,
    session: &Session,
) -> Result<(Counts, Option<Store>), Error> {
    let _quiet = Quiet::enter(definition.relation);
    let Some(differential) = differential else {
        return run_view(definition, wants_output, snapshot, session);
    };
    fill_inner_stages(definition, differential, snapshot)?;
    let last = differential.pipeline.stages.len() - 1;
    let stage = &differential.pipeline.stages[last];
    let storage = &differential.storages[last];
    let new = rows_of_stage(stage, storage, &differential.storages);
    let values = stored_columns(differential, last);
    let names = storage.columns.iter().cloned().chain(storage.counted.then(|| COUNT.to_owned()));
    let storage = Storage { columns: names.collect(), counted: false, ..storage.clone() };
    let width = stage.output.len();
    let stage = Stage { head: None, ..stage.clone() };
    replace(definition, &stage, &storage, &values, width, &new, wants_output, snapshot, session)
}

/// A FULL-mode stream table: the query as PostgreSQL runs it.
fn run_view(
    definition: &Definition,
    wants_output: bool,
    snapshot: &Snapshot,
    session: &Session,
) -> Result<(Counts, Option<Store>), Error> {
    let names: Vec<String> = definition.columns.iter().map(|it| sql::quote(it)).collect();
    let values = relation::store_columns(definition.view);
    let storage = Storage {
        table: definition.table.clone(),
        columns: names.clone(),
        state: Vec::new(),
        inline: None,
        counted: false,
    };
    let new = view_rows(definition, &names);
    let output = Vec::new();
    let stage = Stage { body: pgstream_ivm::plan::Plan::Unit, head: None, output, key: None };
    let width = names.len();
    replace(definition, &stage, &storage, &values, width, &new, wants_output, snapshot, session)
}

/// `SELECT <row id>, <columns>` over the hidden view.
fn view_rows(definition: &Definition, names: &[String]) -> String {
    let values: Vec<String> = names.iter().map(|name| format!("q.{name}")).collect();
    let columns: String = values.iter().map(|it| format!(", {it}")).collect();
    let view = relation::name(definition.view);
    format!(
        "SELECT pgstream.row_id(ROW({})::record) AS {ROW_ID}{columns} FROM {} AS q",
        values.join(", "),
        sql::quote_qualified(&view.0, &view.1)
    )
}

/// Writes the difference between what is stored and the rows of `new` (row id, values).
#[expect(clippy::too_many_arguments, reason = "one call for each of the two kinds of query")]
fn replace(
    definition: &Definition,
    stage: &Stage,
    storage: &Storage,
    values: &[StoreColumn],
    output_width: usize,
    new: &str,
    wants_output: bool,
    snapshot: &Snapshot,
    session: &Session,
) -> Result<(Counts, Option<Store>), Error> {
    let mut rows = Consolidator::new(&identified(values));
    Prepared::new(&sql::stored_rows(storage), &[])
        .query(&[], snapshot, |row| rows.add(row.values, row.nulls, -1));
    Prepared::new(new, &[]).query(&[], snapshot, |row| rows.add(row.values, row.nulls, 1));
    let output = wants_output.then_some(output_width);
    let change = content_change(&rows, values, false, output);
    // The statements are for one use: their sizes are those of whole tables.
    let counts = delta::apply(
        &change,
        usize::MAX,
        stage,
        storage,
        &sql::Matching::ContentCopies,
        &mut crate::refresh::statements::Statements::default(),
        snapshot,
        session,
    );
    let expected = (change.removed_rows, change.added.rows());
    if expected != (counts.deleted, counts.inserted) {
        return Err(Error::broken(&definition.table, "a row to be replaced was not found"));
    }
    Ok((counts, change.output))
}

/// Fills storages that are known to be empty: the fast path of creation.
pub fn fill(
    definition: &Definition,
    differential: Option<&Differential>,
    snapshot: &Snapshot,
) -> Result<u64, Error> {
    let (columns, values, rows) = match differential {
        Some(differential) => {
            fill_inner_stages(definition, differential, snapshot)?;
            let last = differential.pipeline.stages.len() - 1;
            let (stage, storage) =
                (&differential.pipeline.stages[last], &differential.storages[last]);
            let rows = rows_of_stage(stage, storage, &differential.storages);
            (column_list(storage), stored_columns(differential, last), rows)
        }
        None => {
            let names: Vec<String> = definition.columns.iter().map(|it| sql::quote(it)).collect();
            let list = std::iter::once(ROW_ID.to_owned()).chain(names.iter().cloned());
            let values = relation::store_columns(definition.view);
            (list.collect::<Vec<_>>().join(", "), values, view_rows(definition, &names))
        }
    };
    let inserted = insert(&definition.table, &columns, &values, &rows, snapshot);
    fault::point(Step::TableFilled);
    Ok(inserted)
}

fn fill_inner_stages(
    definition: &Definition,
    differential: &Differential,
    snapshot: &Snapshot,
) -> Result<(), Error> {
    let last = differential.pipeline.stages.len() - 1;
    let inner = differential.pipeline.stages.iter().zip(&differential.storages).take(last);
    for (index, (stage, storage)) in inner.enumerate().filter(|it| it.1.1.inline.is_none()) {
        let rows = rows_of_stage(stage, storage, &differential.storages);
        let columns = column_list(storage);
        write(&storage.table, &format!("DELETE FROM {}", storage.table), snapshot);
        let values = stored_columns(differential, index);
        insert(&storage.table, &columns, &values, &rows, snapshot);
        if matches!(&stage.head, Some(Head::Recursion(head)) if head.is_set) {
            check_support(definition, storage, snapshot)?;
        }
        fault::point(Step::StageFilled);
    }
    Ok(())
}

/// That the order in which PostgreSQL put out the rows of a recursion was one of ranks.
fn check_support(
    definition: &Definition,
    storage: &Storage,
    snapshot: &Snapshot,
) -> Result<(), Error> {
    let sql = format!("SELECT FROM {} WHERE {} < 1 LIMIT 1", storage.table, storage.state[0].0);
    let mut is_lacking = false;
    Prepared::new(&sql, &[]).query(&[], snapshot, |_| is_lacking = true);
    if is_lacking {
        return Err(Error::broken(
            &definition.table,
            "a row of a recursion comes from none before",
        ));
    }
    Ok(())
}

/// Inserts the rows of a query: row ids, then values. What is stored is found again by its image, so
/// rows in its columns get the form that equal ones share.
fn insert(
    table: &str,
    columns: &str,
    values: &[StoreColumn],
    rows: &str,
    snapshot: &Snapshot,
) -> u64 {
    let insert =
        |rows: &str| write(table, &format!("INSERT INTO {table} ({columns}) {rows}"), snapshot);
    if !store::has_rows(values) {
        return insert(rows);
    }
    let mut made = Store::new(&identified(values));
    Prepared::new(rows, &[]).query(&[], snapshot, |row| made.put(row.values, row.nulls));
    let _relation = made.register("__pgs_rows");
    insert("SELECT * FROM __pgs_rows")
}

fn write(table: &str, statement: &str, snapshot: &Snapshot) -> u64 {
    let table = name::resolve(table).expect("the table of a storage exists");
    let statement = Prepared::new(statement, &[]);
    guard::let_write(table, || statement.execute(&[], snapshot))
}

/// The types of the values of a storage, and of the count that a row has.
fn stored_columns(differential: &Differential, index: usize) -> Vec<StoreColumn> {
    let mut values = differential.value_columns(index);
    values.extend(differential.storages[index].counted.then(|| bigint("n")));
    values
}

/// The columns that [`rows_of_stage`] puts out, in its order.
fn column_list(storage: &Storage) -> String {
    let mut names = vec![ROW_ID.to_owned()];
    names.extend(storage.columns.iter().cloned());
    names.extend(storage.state.iter().map(|it| it.0.clone()));
    names.extend(storage.counted.then(|| COUNT.to_owned()));
    names.join(", ")
}

/// All rows of a stage from scratch: row id, output, state, count.
pub fn rows_of_stage(stage: &Stage, storage: &Storage, storages: &[Storage]) -> String {
    match &stage.head {
        Some(Head::Group(head)) => {
            let delta = derive::delta(&stage.body, &|_| false);
            let all = sql::head(stage, head, &delta, storage, storages).all;
            let keys = (0..head.keys.len()).map(|it| format!(", q.k{it}"));
            let values = storage.columns.len() + storage.state.len() - head.keys.len();
            let values = (0..values).map(|it| format!(", q.v{it}"));
            let columns: String = keys.chain(values).collect();
            format!("SELECT q.{ROW_ID}{columns}, q.n FROM ({all}) AS q")
        }
        Some(Head::Window(head)) => {
            let delta = derive::delta(&stage.body, &|_| false);
            sql::window(stage, head, &delta, storage, storages).all
        }
        Some(Head::Recursion(head)) => {
            let index = storages.iter().position(|it| it.table == storage.table);
            let index = index.expect("the storage is one of the storages");
            if head.is_set {
                return sql::fixpoint(stage, index, head, &head.base, storages).all;
            }
            sql::recursion(stage, index, head, &head.base, storages).all
        }
        Some(Head::Whole) | None => {
            sql::identified_rows(&stage.body, stage.key.as_deref(), stage.output.len(), storages)
        }
    }
}

pub fn bigint(name: &str) -> StoreColumn {
    StoreColumn {
        name: name.to_owned(),
        ty: spi::type_oid(BuiltinOid::INT8OID),
        typmod: -1,
        collation: Oid::INVALID,
    }
}
