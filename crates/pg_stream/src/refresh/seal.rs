//! Noticing that what a refresh starts from may not be what the last one left.
//!
//! A refresh adds changes to what is stored, so it must be able to rely on that. Nobody else writes
//! there while the guard triggers stand, and no change of a source goes unseen while the capture
//! triggers do. A superuser can switch them off. The *seal* is a digest of the triggers with the
//! versions of their catalog rows; it is kept in the catalog when a stream table is built. Where it is
//! not that of the tables now, somebody had the means to change them, and they are rebuilt.

use pgrx::pg_sys::Oid;

use crate::{
    pg::{dump, name, snapshot::Snapshot, spi},
    refresh::{
        advance::State,
        definition::{self, Definition, Differential, TrackedSource},
    },
};

/// The tables that hold rows and state: the stream table and its inner stages, as far as they exist.
pub fn tables(relation: Oid, differential: Option<&Differential>) -> Vec<Oid> {
    let storages = differential.iter().flat_map(|it| &it.storages[..it.storages.len() - 1]);
    let stored = storages.filter(|it| it.inline.is_none());
    std::iter::once(relation).chain(stored.filter_map(|it| name::resolve(&it.table))).collect()
}

/// The seal as it would have to be now, whatever the isolation level.
pub fn current(relation: Oid, differential: &Differential) -> Option<String> {
    let relation_of = |it: &TrackedSource| it.relation;
    let sources: Vec<Oid> = differential.sources.iter().map(relation_of).collect();
    let tables = tables(relation, Some(differential));
    let digest =
        spi::ask_one::<String>(include_str!("seal.sql"), &[tables.into(), sources.into()])?;
    Some(format!("{} {digest}", dump::cluster()))
}

/// Whether the seal was made by the cluster that the database is in. pg_upgrade makes triggers anew.
pub fn is_native(seal: &str) -> bool {
    seal.split(' ').next() == Some(&dump::cluster().to_string())
}

/// Runs `work`, which changes the triggers of sources as it may, and vouches for those of the stream
/// tables that were sealed before. They are locked against refreshes.
pub fn resealed<T>(tables: &[i64], work: impl FnOnce() -> T) -> T {
    let is_sealed = |id: &i64| {
        definition::forget(*id);
        let Ok(definition) = definition::of(*id) else { return false };
        let Ok(state) = State::read(*id, &Snapshot::latest()) else { return false };
        let differential = definition.differential.as_ref();
        differential.is_some_and(|it| it.seal == state.seal && !it.has_other_members)
    };
    let sealed: Vec<i64> = tables.iter().copied().filter(is_sealed).collect();
    let result = work();
    for id in sealed {
        definition::forget(id);
        if let Ok(definition) = definition::of(id) {
            renew(&definition);
        }
        definition::forget(id);
    }
    result
}

/// Vouches for what is stored now.
pub fn renew(definition: &Definition) {
    let seal = definition.differential.as_ref().map(|it| current(definition.relation, it));
    spi::run(
        "UPDATE pgstream.pgs_stream_tables SET seal = $2 WHERE pgs_id = $1",
        &[definition.pgs_id.into(), seal.flatten().into()],
        |_| {},
    );
}
