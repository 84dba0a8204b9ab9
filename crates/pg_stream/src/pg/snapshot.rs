//! MVCC snapshots.

use pgrx::pg_sys;

use super::decode::{self, Lsn};

/// A registered snapshot, released when dropped.
pub struct Snapshot {
    snapshot: pg_sys::Snapshot,
    lsn: Lsn,
}

impl Snapshot {
    /// The snapshot for a refresh: the latest one in READ COMMITTED, the transaction's own in the
    /// stricter levels. Take every lock before.
    pub fn for_refresh() -> Self {
        // SAFETY: plain calls inside a transaction.
        unsafe {
            let strict = pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ as i32;
            let snapshot =
                if strict { pg_sys::GetTransactionSnapshot() } else { pg_sys::GetLatestSnapshot() };
            Self::registered(snapshot)
        }
    }

    /// A fresh snapshot whatever the isolation level, as referential integrity checks use it.
    pub fn latest() -> Self {
        // SAFETY: plain calls inside a transaction.
        unsafe { Self::registered(pg_sys::GetLatestSnapshot()) }
    }

    /// # Safety
    ///
    /// `snapshot` must be one that PostgreSQL has just given.
    unsafe fn registered(snapshot: pg_sys::Snapshot) -> Self {
        // SAFETY: as promised.
        let snapshot = unsafe { pg_sys::RegisterSnapshot(snapshot) };
        Self { snapshot, lsn: decode::current_lsn() }
    }

    /// A position in the write-ahead log behind the commits of all transactions that are visible.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    pub(in crate::pg) fn as_ptr(&self) -> pg_sys::Snapshot {
        self.snapshot
    }

    /// Runs `work` with this snapshot active, so that it also sees what this transaction did.
    pub fn with_own_changes<T>(&self, work: impl FnOnce() -> T) -> T {
        // SAFETY: the snapshot is registered; push and pop are paired, abort pops after an error.
        unsafe {
            pg_sys::CommandCounterIncrement();
            pg_sys::PushCopiedSnapshot(self.snapshot);
            pg_sys::UpdateActiveSnapshotCommandId();
            let result = work();
            pg_sys::PopActiveSnapshot();
            result
        }
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: registered by a constructor.
            unsafe { pg_sys::UnregisterSnapshot(self.snapshot) };
        }
    }
}
