//! Running as another role, with a search path that nobody can prepare.

use std::ffi::{CStr, CString};

use pgrx::pg_sys::{self, Oid};

use super::deparse;

/// While it lives, the code runs as another role; dropping it restores the caller's.
pub struct Identity {
    saved_user: Oid,
    saved_context: i32,
    guc_level: i32,
    session: Option<Session>,
}

impl Identity {
    /// The owner of the extension's objects, for work on our own catalog.
    pub fn superuser() -> Self {
        Self::switch(Oid::from(pg_sys::BOOTSTRAP_SUPERUSERID), pg_sys::SECURITY_LOCAL_USERID_CHANGE)
    }

    /// `role` in a security-restricted operation, as for REFRESH MATERIALIZED VIEW, and as if it had logged in:
    /// policies and functions ask for `session_user`, too.
    pub fn restricted(role: Oid) -> Self {
        let session = Session::of(role);
        let mut identity = Self::switch(role, pg_sys::SECURITY_RESTRICTED_OPERATION);
        identity.session = Some(session);
        identity
    }

    fn switch(role: Oid, flags: u32) -> Self {
        let mut saved_user = pg_sys::InvalidOid;
        let mut saved_context = 0;
        // SAFETY: the pointers are to live locals; abort restores the role after an error.
        let guc_level = unsafe {
            pg_sys::GetUserIdAndSecContext(&raw mut saved_user, &raw mut saved_context);
            pg_sys::SetUserIdAndSecContext(role, saved_context | flags as i32);
            let level = pg_sys::NewGUCNestLevel();
            pg_sys::RestrictSearchPath();
            level
        };
        // Our SQL is written for standard strings, and names are compared as texts.
        deparse::use_standard_texts();
        Self { saved_user, saved_context, guc_level, session: None }
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: restores what `switch` saved; guards nest like stack frames.
            unsafe {
                pg_sys::AtEOXact_GUC(false, self.guc_level);
                pg_sys::SetUserIdAndSecContext(self.saved_user, self.saved_context);
            }
        }
    }
}

/// Makes another role the one that has logged in, without a SET ROLE. An abort does not restore that, so
/// dropping it does, also after an error.
struct Session {
    user: Oid,
    is_superuser: bool,
    /// What SET ROLE has chosen, if it has.
    role: Option<(Oid, bool)>,
}

impl Session {
    fn of(user: Oid) -> Self {
        // SAFETY: look-ups of roles and of this backend's state.
        let (saved, is_superuser) = unsafe {
            let role = pg_sys::GetCurrentRoleId();
            let role = (role != pg_sys::InvalidOid).then(|| (role, pg_sys::superuser_arg(role)));
            let saved = Self {
                user: pg_sys::GetSessionUserId(),
                is_superuser: pg_sys::GetSessionUserIsSuperuser(),
                role,
            };
            (saved, pg_sys::superuser_arg(user))
        };
        Self { user, is_superuser, role: None }.set();
        saved
    }

    fn set(&self) {
        let mut current_user = pg_sys::InvalidOid;
        let mut context = 0;
        // SAFETY: PostgreSQL does not let SQL do this in a restricted operation, where a function could take
        // the rights of its caller so; here the current user stays what it is.
        unsafe {
            pg_sys::GetUserIdAndSecContext(&raw mut current_user, &raw mut context);
            pg_sys::SetUserIdAndSecContext(current_user, 0);
            pg_sys::SetCurrentRoleId(pg_sys::InvalidOid, false);
            pg_sys::SetSessionAuthorization(self.user, self.is_superuser);
            if let Some((role, is_superuser)) = self.role {
                pg_sys::SetCurrentRoleId(role, is_superuser);
            }
            pg_sys::SetUserIdAndSecContext(current_user, context);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.set();
    }
}

/// Whether the code runs as a superuser just now.
pub fn is_superuser() -> bool {
    // SAFETY: a look-up of a role.
    unsafe { pg_sys::superuser_arg(pg_sys::GetUserId()) }
}

/// Settings changed for as long as this lives.
pub struct LocalSettings {
    guc_level: i32,
}

impl LocalSettings {
    /// Raises PostgreSQL's error for a value that is not valid.
    pub fn new(settings: &[(CString, CString)]) -> Self {
        Self::set(settings, 0).unwrap_or_else(|at| panic!("{settings:?} has no {at}"))
    }

    /// Which one has a value that is not valid, if one has.
    pub fn try_new(settings: &[(CString, CString)]) -> Result<Self, usize> {
        Self::set(settings, pg_sys::DEBUG5 as i32)
    }

    fn set(settings: &[(CString, CString)], error_level: i32) -> Result<Self, usize> {
        // SAFETY: the strings outlive the calls; the nest level is ended by `drop` or by abort.
        unsafe {
            let local = Self { guc_level: pg_sys::NewGUCNestLevel() };
            for (at, (name, value)) in settings.iter().enumerate() {
                // To set one can be dear: some read files.
                let current = pg_sys::GetConfigOption(name.as_ptr(), true, false);
                if !current.is_null() && CStr::from_ptr(current) == value.as_c_str() {
                    continue;
                }
                let result = pg_sys::set_config_option(
                    name.as_ptr(),
                    value.as_ptr(),
                    pg_sys::GucContext::PGC_SUSET,
                    pg_sys::GucSource::PGC_S_SESSION,
                    pg_sys::GucAction::GUC_ACTION_SAVE,
                    true,
                    error_level,
                    false,
                );
                if result == 0 {
                    return Err(at);
                }
            }
            Ok(local)
        }
    }

    /// Row-level security applies, instead of raising an error.
    pub fn with_row_security() -> Self {
        Self::new(&[(c"row_security".to_owned(), c"on".to_owned())])
    }

    /// Joins that look up one side for each row of the other, in the statements planned meanwhile.
    pub fn only_look_ups() -> Self {
        let off = |name: &std::ffi::CStr| (name.to_owned(), c"off".to_owned());
        Self::new(&[off(c"enable_hashjoin"), off(c"enable_mergejoin")])
    }
}

impl Drop for LocalSettings {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: ends the level that `new` began; guards nest like stack frames.
            unsafe { pg_sys::AtEOXact_GUC(false, self.guc_level) };
        }
    }
}
