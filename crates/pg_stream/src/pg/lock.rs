//! Locks on relations, and waiting for locks.

use std::{cell::RefCell, collections::HashSet, ffi::CString};

use pgrx::pg_sys::{self, Oid};

use super::{deadlock::Watch, fault, security::LocalSettings, subtransaction, time};

/// How strongly a relation is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Already locked.
    None,
    AccessShare,
    RowExclusive,
    /// Waits for those who alter or drop it, and for nobody else.
    ShareUpdateExclusive,
    /// Waits for open writers and keeps new ones out; readers go on.
    ShareRowExclusive,
    AccessExclusive,
}

impl Lock {
    pub(in crate::pg) fn mode(self) -> pg_sys::LOCKMODE {
        let mode = match self {
            Self::None => pg_sys::NoLock,
            Self::AccessShare => pg_sys::AccessShareLock,
            Self::RowExclusive => pg_sys::RowExclusiveLock,
            Self::ShareUpdateExclusive => pg_sys::ShareUpdateExclusiveLock,
            Self::ShareRowExclusive => pg_sys::ShareRowExclusiveLock,
            Self::AccessExclusive => pg_sys::AccessExclusiveLock,
        };
        mode as pg_sys::LOCKMODE
    }
}

thread_local! {
    /// The relations that were locked against everybody by us, and not by a command, in the transaction of
    /// that number.
    static LOCKED: RefCell<(u32, HashSet<Oid>)> = RefCell::default();
}

/// Locks a relation until the end of the transaction. Waits.
pub fn relation(relation: Oid, lock: Lock) {
    note(relation, lock);
    // SAFETY: taking a lock by OID; invalidations are processed on the way.
    unsafe { pg_sys::LockRelationOid(relation, lock.mode()) };
}

/// As [`relation`], if that is possible without waiting.
pub fn try_relation(relation: Oid, lock: Lock) -> bool {
    note(relation, lock);
    // SAFETY: as in `relation`.
    unsafe { pg_sys::ConditionalLockRelationOid(relation, lock.mode()) }
}

fn note(relation: Oid, lock: Lock) {
    if lock != Lock::AccessExclusive || is_held(relation, lock) {
        return;
    }
    LOCKED.with_borrow_mut(|(transaction, ours)| {
        if std::mem::replace(transaction, fault::transaction()) != fault::transaction() {
            ours.clear();
        }
        ours.insert(relation);
    });
}

/// Whether it was us who locked the relation against everybody.
fn is_ours(relation: Oid) -> bool {
    LOCKED.with_borrow(|(transaction, ours)| {
        *transaction == fault::transaction() && ours.contains(&relation)
    })
}

/// Whether this transaction has locked a relation in that way.
pub fn is_held(relation: Oid, lock: Lock) -> bool {
    // SAFETY: looks at this backend's locks.
    unsafe { pg_sys::CheckRelationOidLockedByMe(relation, lock.mode(), false) }
}

/// Gives back a lock before the end of the transaction.
pub fn release(relation: Oid, lock: Lock) {
    // SAFETY: the caller holds the lock; if not, PostgreSQL warns.
    unsafe { pg_sys::UnlockRelationOid(relation, lock.mode()) };
}

/// Whether a statement of this session that changes the relation may still be running: then some of
/// its changes are visible but not yet captured. Its AFTER STATEMENT triggers are queued only when
/// it is nearly done, so that alone does not tell. The statements of referential actions have ended
/// when theirs are still queued, but that is inside of triggers; outside of them only deferred
/// triggers are.
pub fn is_being_changed(relation: Oid) -> bool {
    // SAFETY: looks at this backend's trigger queue, its relation cache and its locks; the
    // relation is closed again.
    unsafe {
        let depth = pgrx::direct_function_call::<i32>(pg_sys::pg_trigger_depth, &[]);
        if depth > Some(0) && pg_sys::AfterTriggerPendingOnRel(relation) {
            return true;
        }
        let opened = pg_sys::try_relation_open(relation, pg_sys::AccessShareLock as i32);
        if opened.is_null() {
            return false;
        }
        let idle = if (*opened).rd_isnailed { 2 } else { 1 };
        let in_use = (*opened).rd_refcnt > idle
            && pg_sys::CheckRelationLockedByMe(opened, Lock::RowExclusive.mode(), true);
        pg_sys::relation_close(opened, pg_sys::NoLock as i32);
        in_use
    }
}

/// Whether this transaction may have changed rows of the relation: it has an id, and one of the locks
/// that INSERT, UPDATE, DELETE and TRUNCATE take. Others take them too; what we have locked ourselves
/// counts when it has got another file since, as by TRUNCATE.
pub fn may_have_changed(relation: Oid) -> bool {
    // SAFETY: looks at this backend's state; the relation is closed again.
    unsafe {
        if pg_sys::GetTopFullTransactionIdIfAny().value == 0 {
            return false;
        }
        let opened = pg_sys::try_relation_open(relation, pg_sys::AccessShareLock as i32);
        if opened.is_null() {
            return false;
        }
        let holds = |it: Lock| pg_sys::CheckRelationLockedByMe(opened, it.mode(), false);
        let has_new_file = (*opened).rd_firstRelfilelocatorSubid != 0;
        let may = holds(Lock::RowExclusive)
            || holds(Lock::AccessExclusive) && (has_new_file || !is_ours(relation));
        pg_sys::relation_close(opened, pg_sys::NoLock as i32);
        may
    }
}

/// Whether a transaction block was begun, so that locks live longer than this statement.
pub fn in_transaction_block() -> bool {
    // SAFETY: looks at this backend's state.
    unsafe { pg_sys::IsTransactionBlock() }
}

/// How long to wait at a time at least, and when to look for a deadlock first, in milliseconds: before
/// anybody else does, who looks after a second.
const TURN: i32 = 400;
const LOOK: i64 = 100;

/// Runs `work`, which waits for a lock, for as long as `lock_timeout` allows. It gives in to a deadlock,
/// whenever that comes about, and lets those who wait behind it go first. But each turn lasts as long as all
/// before it: it gets the lock even where others that overlap always hold it.
pub fn giving_in<T>(work: impl Fn() -> T) -> T {
    in_turns(|waited| waited.max(TURN.into()), work)
}

/// As [`giving_in`], for `work` that locks several things: what it has got must not be in the way of others
/// while it waits for the next one, so it is let go after each short turn.
pub fn letting_go<T>(work: impl Fn() -> T) -> T {
    in_turns(|_| TURN.into(), work)
}

/// `length` says how long a turn may last after so many milliseconds.
fn in_turns<T>(length: impl Fn(i64) -> i64, work: impl Fn() -> T) -> T {
    // SAFETY: reads a setting.
    let patience = i64::from(unsafe { pg_sys::LockTimeout });
    let began = time::now();
    loop {
        let waited = (time::now() - began) / 1000;
        let (left, turn) = (patience - waited, length(waited));
        let is_last = patience > 0 && left <= turn;
        let limit = if is_last { left.max(1) } else { turn };
        let turn = || {
            let limit = CString::new(limit.to_string()).expect("a number has no NUL");
            // A line of the log for each look would tell nothing.
            let _settings = LocalSettings::new(&[
                (c"lock_timeout".to_owned(), limit),
                (c"log_lock_waits".to_owned(), c"off".to_owned()),
            ]);
            let _watch = Watch::start(LOOK, TURN);
            work()
        };
        if is_last {
            return turn();
        }
        if let Some(result) = subtransaction::unless_locked(turn) {
            return result;
        }
    }
}
