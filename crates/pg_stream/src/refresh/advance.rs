//! The frontier and the history: what is read before a refresh and written after it.

use std::{cell::RefCell, mem::ManuallyDrop, rc::Rc};

use pgrx::pg_sys::{BuiltinOid, Oid};
use pgstream_core::frontier::Frontier;

use crate::{
    capture,
    error::Error,
    pg::{
        relation,
        snapshot::Snapshot,
        spi::{self, Prepared},
        time::{self, Stopwatch},
    },
    refresh::{
        InitiatedBy, Outcome,
        definition::{Definition, Differential},
    },
};

/// The catalog's knowledge of a stream table, as the refresh's snapshot sees it.
pub struct State {
    pub frontier: Option<Frontier>,
    pub is_populated: bool,
    pub needs_reinit: bool,
    pub fingerprint: Option<String>,
}

#[derive(Default)]
struct Kept {
    read: Option<Rc<Prepared>>,
    touch: Option<Rc<Prepared>>,
    others: Option<Rc<Prepared>>,
    advance: Option<Rc<Prepared>>,
}

thread_local! {
    // Never dropped: at process exit PostgreSQL's memory is gone before thread locals are.
    static KEPT: ManuallyDrop<RefCell<Kept>> = ManuallyDrop::default();
}

fn kept(
    slot: impl Fn(&mut Kept) -> &mut Option<Rc<Prepared>>,
    sql: &str,
    args: &[BuiltinOid],
) -> Rc<Prepared> {
    if let Some(found) = KEPT.with(|kept| slot(&mut kept.borrow_mut()).clone()) {
        return found;
    }
    let args: Vec<Oid> = args.iter().map(|it| spi::type_oid(*it)).collect();
    let prepared = Rc::new(Prepared::new(sql, &args));
    KEPT.with(|kept| *slot(&mut kept.borrow_mut()) = Some(Rc::clone(&prepared)));
    prepared
}

impl State {
    pub fn read(pgs_id: i64, snapshot: &Snapshot) -> Result<Self, Error> {
        let statement = kept(
            |kept| &mut kept.read,
            "SELECT consumed, is_populated, needs_reinit, fingerprint \
             FROM pgstream.pgs_stream_tables WHERE pgs_id = $1",
            &[BuiltinOid::INT8OID],
        );
        let mut state = None;
        statement.query(&[pgs_id.into()], snapshot, |row| {
            state = Some(Self {
                frontier: row
                    .get::<String>(0)
                    .map(|text| text.parse().expect("only advance writes frontiers")),
                is_populated: row.get(1).unwrap_or(false),
                needs_reinit: row.get(2).unwrap_or(false),
                fingerprint: row.get(3),
            });
        });
        state.ok_or_else(|| Error::Undefined(format!("number {pgs_id}")))
    }

    /// Whether what is stored was laid out for another definition of the query or its sources.
    pub fn is_outdated(&self, differential: &Differential) -> bool {
        self.needs_reinit || self.fingerprint.as_deref() != Some(&differential.fingerprint)
    }
}

/// Records a refresh: the frontier (unless nothing was consumed), times, and the history row.
pub fn store(
    definition: &Definition,
    outcome: &Outcome,
    frontier: &Frontier,
    by: InitiatedBy,
    clock: &Stopwatch,
    snapshot: &Snapshot,
) {
    if !outcome.has_consumed {
        let statement = kept(
            |kept| &mut kept.touch,
            "UPDATE pgstream.pgs_stream_tables SET data_timestamp = $2, last_refresh_at = $2, \
             consecutive_errors = 0 WHERE pgs_id = $1",
            &[BuiltinOid::INT8OID, BuiltinOid::TIMESTAMPTZOID],
        );
        statement.execute(&[definition.pgs_id.into(), clock.started_at().into()], snapshot);
        return;
    }
    let statement = kept(
        |kept| &mut kept.advance,
        include_str!("advance.sql"),
        &[
            BuiltinOid::INT8OID,
            BuiltinOid::TIMESTAMPTZOID,
            BuiltinOid::TIMESTAMPTZOID,
            BuiltinOid::TEXTOID,
            BuiltinOid::TEXTOID,
            BuiltinOid::TEXTOID,
            BuiltinOid::TEXTOID,
            BuiltinOid::INT8OID,
            BuiltinOid::INT8OID,
            BuiltinOid::INT8OID,
            BuiltinOid::TEXTOID,
        ],
    );
    let fingerprint = definition.differential.as_ref().map(|it| it.fingerprint.clone());
    let count = |it: u64| i64::try_from(it).expect("fewer than 2^63 rows");
    let people = frontier_for_people(definition, frontier);
    statement.execute(
        &[
            definition.pgs_id.into(),
            clock.started_at().into(),
            time::current().into(),
            frontier.to_string().into(),
            people.into(),
            fingerprint.into(),
            outcome.action.as_str().to_owned().into(),
            count(outcome.inserted).into(),
            count(outcome.updated).into(),
            count(outcome.deleted).into(),
            by.as_str().to_owned().into(),
        ],
        snapshot,
    );
}

/// The frontier as JSON: the snapshot, and for each source the position in the WAL.
fn frontier_for_people(definition: &Definition, frontier: &Frontier) -> String {
    let lsn = crate::pg::frontier::current_lsn();
    let sources: Vec<String> = definition
        .tracked_sources()
        .iter()
        .map(|it| format!("\"{}\": \"{lsn}\"", it.to_u32()))
        .collect();
    format!(
        "{{\"snapshot\": \"{frontier}\", \"lsn\": \"{lsn}\", \"sources\": {{{}}}}}",
        sources.join(", ")
    )
}

/// Removes from the buffers what every reader has consumed.
pub fn clean_buffers(definition: &Definition, frontier: &Frontier) {
    for source in definition.tracked_sources() {
        relation::unless_kept(source, || {
            if let Some(frontiers) = frontiers_of_readers(definition.pgs_id, source, frontier) {
                capture::cleanup(source, &frontiers, true);
            }
        });
    }
}

/// The frontiers of all readers of `source`, with `own` for this one; `None` while a reader has
/// none, because its first refresh may be under way.
fn frontiers_of_readers(pgs_id: i64, source: Oid, own: &Frontier) -> Option<Vec<Frontier>> {
    let others = kept(
        |kept| &mut kept.others,
        "SELECT s.consumed FROM pgstream.pgs_dependencies d \
         JOIN pgstream.pgs_stream_tables s USING (pgs_id) \
         WHERE d.source_relid = $1 AND d.pgs_id <> $2 AND s.refresh_mode = 'DIFFERENTIAL'",
        &[BuiltinOid::OIDOID, BuiltinOid::INT8OID],
    );
    let mut frontiers = Some(vec![own.clone()]);
    others.query(&[source.into(), pgs_id.into()], &Snapshot::latest(), |row| {
        match row.get::<String>(0) {
            Some(text) => {
                let parsed = text.parse().expect("only advance writes frontiers");
                frontiers.iter_mut().for_each(|it| it.push(Frontier::clone(&parsed)));
            }
            None => frontiers = None,
        }
    });
    frontiers
}
