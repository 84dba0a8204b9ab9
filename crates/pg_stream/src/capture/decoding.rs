//! Sources whose changes are decoded from the write-ahead log instead of being captured by triggers
//! (ADR 0021).
//!
//! A source changes over while it is locked against writers, so every transaction is captured in
//! exactly one way: by triggers, if it was committed before that position in the log, and by decoding
//! otherwise; the other way round when it goes back. The triggers of a decoded source stay, switched off.
//!
//! Decoded changes get into the buffer some time after their transaction was committed. So a refresh
//! waits until all that its snapshot sees are there, and finds them by the transaction that made them.

use pgrx::{
    PgLogLevel, PgSqlErrorCode,
    pg_sys::{Oid, panic::ErrorReport},
};

use super::track::{self, Way};
use crate::{
    catalog,
    pg::{
        decode::{self, Lsn},
        lock::{self, Lock},
        own::OwnTable,
        relation,
        security::Identity,
        snapshot::Snapshot,
        source::{Kind, Source, command_done},
        spi,
        wake::{self, NotDecoded},
    },
};

/// How the changes of a source are captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Trigger,
    /// By triggers, until it can change over.
    Transitioning,
    Wal,
}

impl Mode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trigger => "TRIGGER",
            Self::Transitioning => "TRANSITIONING",
            Self::Wal => "WAL",
        }
    }

    fn of(text: &str) -> Self {
        [Self::Wal, Self::Transitioning]
            .into_iter()
            .find(|it| it.as_str() == text)
            .unwrap_or_default()
    }
}

/// Which changes of a source are decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decoding {
    pub mode: Mode,
    /// Those that were committed behind this position, if ever any were.
    pub from: Option<Lsn>,
    /// And before this one, since the source went back to triggers. Taken away when all of them
    /// are in the buffer.
    pub until: Option<Lsn>,
}

impl Decoding {
    pub fn of(source: Oid) -> Self {
        let mut found = Self::default();
        OwnTable::open(track::TRACKING, Lock::AccessShare).find(
            track::TRACKING_KEY,
            ("source_relid", source),
            &Snapshot::latest(),
            |row| {
                let lsn = |column| row.get::<i64>(column).map(i64::cast_unsigned);
                found = Self {
                    mode: Mode::of(&row.get::<String>("cdc_mode").unwrap_or_default()),
                    from: lsn("decoded_from"),
                    until: lsn("decoded_until"),
                };
            },
        );
        found
    }

    /// Whether changes of the source are still to be decoded.
    pub fn is_open(&self) -> bool {
        self.mode == Mode::Wal || self.until.is_some()
    }

    /// Before this transaction locks the buffer of the source, which is locked against writers: lets the decoder
    /// write into it what it still has to. Otherwise it would wait for this transaction, and with it all that
    /// read decoded sources.
    pub fn let_finish(&self) {
        if self.is_open() {
            wake::let_decoder_finish(decode::current_lsn());
        }
    }

    /// Whether a transaction whose commit ends there was decoded and not captured by triggers.
    pub fn covers(&self, commit: Lsn) -> bool {
        self.is_open()
            && self.from.is_some_and(|it| commit > it)
            && self.until.is_none_or(|it| commit <= it)
    }
}

/// Waits until all changes of `source` that `snapshot` sees are in its buffer. Tells whether some of
/// them may have come in after the snapshot was taken: then only their transactions tell which it sees.
pub fn catch_up(source: Oid, snapshot: &Snapshot) -> bool {
    let decoding = Decoding::of(source);
    if decoding.from.is_none() {
        return false;
    }
    if decoding.is_open() {
        let target = decoding.until.map_or(snapshot.lsn(), |it| it.min(snapshot.lsn()));
        if let Err(reason) = wake::wait_for_decoder(target) {
            refuse(source, reason);
        }
    }
    true
}

fn refuse(source: Oid, reason: NotDecoded) -> ! {
    let message = format!(
        "changes of {} have not been decoded from the write-ahead log",
        relation::display_name(source)
    );
    // None of it is the stream table's fault: these codes never suspend it.
    let (code, hint) = match reason {
        NotDecoded::NoDecoder => (
            PgSqlErrorCode::ERRCODE_SYSTEM_ERROR,
            "The decoder of this database does not run; the server's log may tell why. It needs \
             pg_stream in shared_preload_libraries and output_plugin_libraries, a free replication slot and \
             a background worker.",
        ),
        NotDecoded::Stuck => (
            PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
            "The decoder cannot write them: some transaction may have locked a change buffer.",
        ),
        NotDecoded::Lost => (
            PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
            "The replication slot is gone or was invalidated. The stream table is going to be \
             rebuilt when those who have changed its sources have ended: try again.",
        ),
    };
    ErrorReport::new(code, message, "").set_hint(hint).report(PgLogLevel::ERROR);
    unreachable!("an error was raised");
}

/// Whether this transaction may have changed a decoded source: its changes are visible to itself, and will be
/// decoded when it has been committed. They would count twice.
pub fn has_own_changes(source: Oid) -> bool {
    lock::may_have_changed(source) && Decoding::of(source).mode == Mode::Wal
}

/// Why a source cannot be decoded, if it cannot.
pub fn obstacle(source: Oid) -> Option<&'static str> {
    let opened = Source::open(source, Lock::AccessShare);
    if opened.kind() != Kind::Table || Way::of(source) != Way::ByStatement {
        return Some("it is partitioned, or inherits, or is inherited from");
    }
    if !opened.is_permanent() {
        return Some("it is not in the write-ahead log");
    }
    (!opened.logs_whole_rows()).then_some("its replica identity is not FULL")
}

/// Changes how `source`, which is locked against writers, is captured. What is decoded begins or ends
/// here; nothing of it is still to come when `is_lost`.
pub fn switch(source: Oid, mode: Mode, slot: Option<&str>, is_lost: bool) {
    let _identity = Identity::superuser();
    let here = decode::text(decode::current_lsn());
    let (from, until) = match mode {
        Mode::Wal => (Some(here), None),
        _ if is_lost => (None, None),
        _ => (None, Some(here)),
    };
    let slot = slot.map_or_else(|| track::trigger_name(source, ""), str::to_owned);
    spi::run(
        "UPDATE pgstream.pgs_change_tracking SET cdc_mode = $2, slot_name = $3, \
         decoded_from = coalesce($4::pg_lsn, decoded_from), decoded_until = $5::pg_lsn, \
         transition_started_at = NULL WHERE source_relid = $1",
        &[source.into(), mode.as_str().to_owned().into(), slot.into(), from.into(), until.into()],
        |_| {},
    );
    command_done();
    describe(source);
    track::make_right(source);
}

/// Notes in the dependencies how `source` is captured.
pub fn describe(source: Oid) {
    spi::run(include_str!("describe.sql"), &[source.into()], |_| {});
}

/// Whether a source is decoded and cannot be any longer.
pub fn is_unfit(source: Oid) -> bool {
    Decoding::of(source).mode == Mode::Wal && obstacle(source).is_some()
}

/// Goes back to triggers where a command has made that necessary. What this transaction changed before
/// is decoded too late, or not at all, so what reads the source is rebuilt.
pub fn leave_if_unfit(source: Oid) {
    if is_unfit(source) {
        lock::relation(source, Lock::ShareRowExclusive);
        switch(source, Mode::Trigger, None, false);
        let name = relation::display_name(source);
        let reason = format!("changes of {name} cannot be decoded any longer");
        track::consumers(source).iter().for_each(|it| catalog::mark_for_rebuild(*it, &reason));
    }
}
