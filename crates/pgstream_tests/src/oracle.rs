//! The oracle: a stream table holds, as a multiset, what its query returns.

use std::fmt::Write as _;

use crate::session::{Session, SqlError};

/// When two rows are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// When they print the same: 1.0 and 1.00 differ, and types without `=` can be compared.
    Text,
    /// By the types' own `=`, for queries that leave open which of two equal values they return.
    Value,
}

/// Rows that the query returns and the stream table lacks (positive), or the reverse.
#[derive(Debug)]
pub struct Difference(Vec<(i64, String)>);

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (count, row) in self.0.iter().take(20) {
            let what = if *count > 0 { "missing" } else { "surplus" };
            writeln!(f, "  {what} {} x {row}", count.abs())?;
        }
        if self.0.len() > 20 {
            writeln!(f, "  and {} more", self.0.len() - 20)?;
        }
        Ok(())
    }
}

/// Compares a stream table with its query, names and types of the columns included.
pub fn difference(
    session: &mut Session,
    stream_table: &str,
    query: &str,
    comparison: Comparison,
) -> Result<Option<Difference>, SqlError> {
    let columns = columns_of(session, stream_table)?;
    let compared = match comparison {
        Comparison::Text => columns.clone(),
        Comparison::Value => comparable_columns_of(session, stream_table)?,
    };
    let sql = match comparison {
        Comparison::Text => format!(
            "SELECT sum(pgs_weight), pgs_text FROM (
               SELECT 1 AS pgs_weight, pgs_query::text AS pgs_text FROM (\n{query}\n) AS pgs_query
               UNION ALL
               SELECT -1, pgs_stored::text FROM (SELECT {columns} FROM {stream_table}) AS pgs_stored
             ) AS pgs_both GROUP BY pgs_text HAVING sum(pgs_weight) <> 0 ORDER BY pgs_text"
        ),
        Comparison::Value => format!(
            "SELECT 1, pgs_missing::text FROM
               (SELECT {compared} FROM (\n{query}\n) AS pgs_query
                EXCEPT ALL SELECT {compared} FROM {stream_table}) AS pgs_missing
             UNION ALL
             SELECT -1, pgs_surplus::text FROM
               (SELECT {compared} FROM {stream_table}
                EXCEPT ALL SELECT {compared} FROM (\n{query}\n) AS pgs_query) AS pgs_surplus"
        ),
    };
    let rows: Vec<_> = session
        .try_rows(&sql)?
        .iter()
        .map(|row| {
            let (count, text) = row.split_once('|').expect("two columns");
            (count.parse().expect("a count"), text.to_owned())
        })
        .collect();
    Ok((!rows.is_empty()).then_some(Difference(rows)))
}

/// The visible columns of a stream table, as a select list.
pub fn columns_of(session: &mut Session, stream_table: &str) -> Result<String, SqlError> {
    let literal = stream_table.replace('\'', "''");
    let columns = session.try_rows(&format!(
        "SELECT quote_ident(attname) FROM pg_attribute
         WHERE attrelid = '{literal}'::regclass AND attnum > 0 AND NOT attisdropped
           AND attname NOT IN ('__pgs_row_id', '__pgs_count') ORDER BY attnum"
    ))?;
    Ok(columns.join(", "))
}

/// The same with columns as text whose types have no equality.
fn comparable_columns_of(session: &mut Session, stream_table: &str) -> Result<String, SqlError> {
    let literal = stream_table.replace('\'', "''");
    let columns = session.try_rows(&format!(
        "SELECT quote_ident(attname) || CASE WHEN t.typname = ANY ('{{json,xml,point,box,circle,line,lseg,path,polygon,loose}}')
           THEN '::text' ELSE '' END
         FROM pg_attribute JOIN pg_type t ON t.oid = atttypid
         WHERE attrelid = '{literal}'::regclass AND attnum > 0 AND NOT attisdropped
           AND attname NOT IN ('__pgs_row_id', '__pgs_count') ORDER BY attnum"
    ))?;
    Ok(columns.join(", "))
}

/// A row of the refresh history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryRow {
    pub action: String,
    pub status: String,
    pub inserted: i64,
    pub updated: i64,
    pub deleted: i64,
}

pub fn last_refresh_id(session: &mut Session, stream_table: &str) -> Result<i64, SqlError> {
    let literal = stream_table.replace('\'', "''");
    let rows = session.try_rows(&format!(
        "SELECT coalesce(max(refresh_id), 0) FROM pgstream.pgs_refresh_history
         JOIN pgstream.pgs_stream_tables USING (pgs_id) WHERE pgs_relid = '{literal}'::regclass"
    ))?;
    Ok(rows[0].parse().expect("an integer"))
}

/// The refreshes recorded after `refresh_id`, oldest first.
pub fn history_since(
    session: &mut Session,
    stream_table: &str,
    refresh_id: i64,
) -> Result<Vec<HistoryRow>, SqlError> {
    let literal = stream_table.replace('\'', "''");
    let rows = session.try_rows(&format!(
        "SELECT h.action, h.status, coalesce(h.rows_inserted, 0), coalesce(h.rows_updated, 0), coalesce(h.rows_deleted, 0)
         FROM pgstream.pgs_refresh_history h JOIN pgstream.pgs_stream_tables USING (pgs_id)
         WHERE pgs_relid = '{literal}'::regclass AND refresh_id > {refresh_id} ORDER BY refresh_id"
    ))?;
    Ok(rows
        .iter()
        .map(|row| {
            let columns: Vec<_> = row.split('|').collect();
            let number = |at: usize| columns[at].parse().expect("a count");
            HistoryRow {
                action: columns[0].to_owned(),
                status: columns[1].to_owned(),
                inserted: number(2),
                updated: number(3),
                deleted: number(4),
            }
        })
        .collect())
}

/// What the last refresh did.
#[track_caller]
pub fn last_action(session: &mut Session, stream_table: &str) -> String {
    let literal = stream_table.replace('\'', "''");
    session.value(&format!("SELECT action FROM pgstream.get_refresh_history('{literal}', 1)"))
}

/// What a stream table says about itself, for the message of a failing test.
pub fn explanation(session: &mut Session, stream_table: &str) -> String {
    let literal = stream_table.replace('\'', "''");
    let mut text = String::new();
    match session.try_rows(&format!("SELECT property, value FROM pgstream.explain_st('{literal}')"))
    {
        Ok(rows) => rows.iter().for_each(|row| {
            writeln!(text, "  {row}").expect("writing to a string");
        }),
        Err(error) => writeln!(text, "  explain_st: {error}").expect("writing to a string"),
    }
    text
}
