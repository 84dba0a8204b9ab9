//! The statements of a refresh as SQL that one can paste into psql, to run them or to EXPLAIN them.
//!
//! A refresh hands changes and keys to its statements in memory. Here WITH items take their place: the
//! change of a table is read from its buffer as a refresh would find it now, the change of an inner
//! stage is empty, for it exists only while a refresh runs, and as keys stand a few stored ones.

use pgrx::pg_sys::Oid;
use pgstream_ivm::{
    plan::Source,
    sql::{ROW_ID, delta_name, quote},
    stage::Head,
};

use crate::{
    pg::{
        buffer::{Buffer, Side},
        lock::Lock,
        source::sql_name,
    },
    refresh::definition::Differential,
};

/// How many stored keys stand for those that a change touches.
const SAMPLE: usize = 10;

/// The statement of stage `index` with all that it reads. `consumed` is the snapshot up to which
/// changes were consumed.
pub fn runnable(
    differential: &Differential,
    index: usize,
    statement: &str,
    consumed: Option<&str>,
) -> String {
    let stage = &differential.pipeline.stages[index];
    let mut sources: Vec<Source> = stage.sources().into_iter().cloned().collect();
    // A recursion reads its own change.
    if !sources.contains(&Source::Stage(index)) {
        sources.push(Source::Stage(index));
    }
    let deltas = sources.iter().map(|source| {
        let rows = match source {
            Source::Table { oid, .. } => table_change(differential, Oid::from(*oid), consumed),
            Source::Stage(stage) => no_change(differential, *stage),
        };
        (delta_name(source), rows)
    });
    let keys = ("__pgs_keys".to_owned(), stored_keys(differential, index));
    let items: Vec<String> = deltas
        .chain([keys])
        .filter(|(name, _)| mentions(statement, name))
        .map(|(name, rows)| format!("{name} AS MATERIALIZED ({rows})"))
        .collect();
    if items.is_empty() {
        return statement.to_owned();
    }
    // In parentheses, for it may begin with WITH itself.
    format!("WITH {} SELECT * FROM ({statement}) AS statement", items.join(", "))
}

/// Whether the name occurs, and not only as the beginning of a longer one.
fn mentions(statement: &str, name: &str) -> bool {
    statement.match_indices(name).any(|(at, _)| {
        !statement[at + name.len()..].starts_with(|it: char| it.is_ascii_digit() || it == '_')
    })
}

fn table_change(differential: &Differential, source: Oid, consumed: Option<&str>) -> String {
    let buffer = Buffer::open(source, Lock::AccessShare);
    let (Some(buffer), Some(read)) =
        (buffer, differential.sources.iter().find(|it| it.relation == source))
    else {
        return "SELECT 0::int8 AS w WHERE false".to_owned();
    };
    let (names, table) = (buffer.column_names(), sql_name(buffer.oid()).unwrap_or_default());
    let place = |attribute: &i16, side: Side| {
        let position = buffer.columns().iter().position(|it| it == attribute);
        position.map(|it| buffer.place(it, side))
    };
    let image = |side: Side, weight: i32, actions: &str| {
        let columns: Vec<String> = read
            .attributes
            .iter()
            .filter_map(|it| Some(format!("{} AS a{it}, ", quote(&names[place(it, side)?]))))
            .collect();
        let unconsumed = consumed.map_or(String::new(), |it| {
            format!(" AND NOT pg_catalog.pg_visible_in_snapshot(xid, '{it}')")
        });
        format!(
            "SELECT {}{weight}::int8 AS w FROM {table} WHERE action IN ({actions}){unconsumed}",
            columns.concat(),
        )
    };
    let (came, gone) = (image(Side::New, 1, "'I', 'U'"), image(Side::Old, -1, "'D', 'U'"));
    format!("{came} UNION ALL {gone}")
}

fn no_change(differential: &Differential, stage: usize) -> String {
    let output = differential.pipeline.stages[stage].output.iter().enumerate();
    let nulls = output.map(|(position, it)| format!("NULL::{} AS a{position}, ", it.ty.sql));
    format!("SELECT {}0::int8 AS w WHERE false", nulls.collect::<String>())
}

/// Keys as the head of the stage compares them.
fn stored_keys(differential: &Differential, index: usize) -> String {
    let storage = &differential.storages[index];
    let (row_id, positions) = match &differential.pipeline.stages[index].head {
        Some(Head::Group(head)) => (ROW_ID.to_owned(), (0..head.keys.len()).collect()),
        Some(Head::Window(head)) if head.partition.is_empty() => ("0::int8".to_owned(), Vec::new()),
        Some(Head::Window(head)) => (storage.state[0].0.clone(), head.partition.clone()),
        _ => return "SELECT WHERE false".to_owned(),
    };
    let keys: Vec<String> = positions
        .into_iter()
        .enumerate()
        .map(|(key, position): (usize, usize)| format!(", {} AS k{key}", storage.columns[position]))
        .collect();
    format!(
        "SELECT DISTINCT ON (rid) * FROM (SELECT {row_id} AS rid{} FROM {} LIMIT {SAMPLE}) AS keys",
        keys.concat(),
        storage.table
    )
}
