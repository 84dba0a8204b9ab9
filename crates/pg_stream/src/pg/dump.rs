//! Whether a dump is being restored, and where to.

use std::ffi::CStr;

use pgrx::pg_sys;

/// Whether this session restores a dump: pg_dump begins each with an empty search path and without
/// checks of function bodies, which nobody else combines by chance. Code that a refresh runs in the name of
/// somebody else may do so on purpose.
pub fn is_restoring() -> bool {
    // SAFETY: reads settings and this backend's state; a string setting is never NULL here.
    unsafe {
        !pg_sys::InSecurityRestrictedOperation()
            && !pg_sys::check_function_bodies
            && CStr::from_ptr(pg_sys::namespace_search_path).is_empty()
    }
}

/// Whether pg_upgrade makes the catalog of the new cluster, whose tables come later as files.
pub fn is_binary_upgrade() -> bool {
    // SAFETY: set when the server starts.
    unsafe { pg_sys::IsBinaryUpgrade }
}

/// Whether nothing can be written: on a standby server, or because the transaction is read-only.
pub fn is_read_only() -> bool {
    // SAFETY: reads variables.
    unsafe { pg_sys::XactReadOnly || pg_sys::RecoveryInProgress() }
}

/// The number that tells the server's cluster from others; physical copies have the same.
pub fn cluster() -> u64 {
    // SAFETY: reads what was read from the control file.
    unsafe { pg_sys::GetSystemIdentifier() }
}

/// An ERROR where nothing can be written.
pub fn refuse_if_read_only() {
    // SAFETY: reads variables.
    unsafe {
        pg_sys::PreventCommandIfReadOnly(c"a change of stream tables".as_ptr());
        pg_sys::PreventCommandDuringRecovery(c"a change of stream tables".as_ptr());
    }
}
