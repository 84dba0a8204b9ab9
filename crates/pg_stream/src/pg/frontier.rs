//! Frontiers of snapshots.

use std::cell::Cell;

use pgrx::pg_sys;
use pgstream_core::frontier::Frontier;

use super::{decode, snapshot::Snapshot};

thread_local! {
    /// The number of the last change that this backend captured. It never goes back.
    static ORDINAL: Cell<i64> = const { Cell::new(0) };
}

/// The number of the next change.
pub(in crate::pg) fn next_ordinal() -> i64 {
    let next = ORDINAL.get() + 1;
    ORDINAL.set(next);
    next
}

impl Snapshot {
    /// What `self` sees, together with all that this transaction has captured by now. Ask right
    /// before reading the buffers.
    pub fn frontier(&self) -> Frontier {
        // SAFETY: the snapshot is registered, and an MVCC snapshot has `xcnt` ids in `xip`.
        let (next, xmin, xmax, running, own) = unsafe {
            let snapshot = &*self.as_ptr();
            let running: &[pg_sys::TransactionId] = if snapshot.xcnt == 0 {
                &[]
            } else {
                std::slice::from_raw_parts(snapshot.xip, snapshot.xcnt as usize)
            };
            (
                pg_sys::ReadNextFullTransactionId().value,
                snapshot.xmin,
                snapshot.xmax,
                running,
                pg_sys::GetTopFullTransactionIdIfAny().value,
            )
        };
        let mut in_progress: Vec<u64> = running.iter().map(|xid| full(*xid, next)).collect();
        in_progress.sort_unstable();
        Frontier {
            xmin: full(xmin, next),
            xmax: full(xmax, next),
            in_progress,
            own_xid: (own != 0).then_some(own),
            own_ordinal: ORDINAL.get(),
        }
    }
}

/// The 64-bit form of an id that is not beyond `next`, nor 2^31 before it.
fn full(xid: pg_sys::TransactionId, next: u64) -> u64 {
    let xid = u64::from(xid.into_inner());
    let epoch_start = next & !0xffff_ffff;
    if xid < u64::from(pg_sys::FirstNormalTransactionId.into_inner()) {
        return xid;
    }
    let candidate = epoch_start | xid;
    if candidate > next { candidate.wrapping_sub(1 << 32) } else { candidate }
}

/// The 64-bit form of the id of a transaction of late.
pub(in crate::pg) fn full_xid(xid: pg_sys::TransactionId) -> u64 {
    full(xid, next_xid())
}

/// The 64-bit id of the next transaction.
pub fn next_xid() -> u64 {
    // SAFETY: reads a shared counter.
    unsafe { pg_sys::ReadNextFullTransactionId().value }
}

/// The position up to which the write-ahead log is filled, as PostgreSQL prints it.
pub fn current_lsn() -> String {
    // SAFETY: reads a shared counter.
    decode::text(unsafe { pg_sys::GetXLogInsertRecPtr() })
}
