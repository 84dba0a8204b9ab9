//! Background workers: starting them, their transactions, their sleep and their end.

use std::{
    collections::HashMap,
    ffi::{CStr, CString, c_char, c_int},
    panic::AssertUnwindSafe,
    ptr,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
};

use pgrx::{
    PgTryBuilder,
    pg_sys::{self, Oid},
};

use super::relation;
pub use super::subtransaction::Failure;

/// SIGTERM came.
static STOP: AtomicBool = AtomicBool::new(false);
/// Something runs that SIGTERM must interrupt: a transaction, or connecting to a database.
static IS_BUSY: AtomicBool = AtomicBool::new(false);

/// Registers the worker that the server starts by itself, and starts again if it dies.
pub fn register_launcher(name: &str, entry: &str) {
    let mut worker = description(name, entry, 0);
    worker.bgw_restart_time = 5;
    // SAFETY: called while `shared_preload_libraries` are loaded; the description is copied.
    unsafe { pg_sys::RegisterBackgroundWorker(&raw mut worker) };
}

/// A worker that this process started. The handle is never freed before the process ends.
#[derive(Clone, Copy)]
pub struct Started(*mut pg_sys::BackgroundWorkerHandle);

/// Starts a worker that gets `argument`; `None` when there are no worker processes left. This
/// process is woken when the worker starts and when it ends.
pub fn start(name: &str, entry: &str, argument: usize) -> Option<Started> {
    let mut worker = description(name, entry, argument);
    worker.bgw_restart_time = pg_sys::BGW_NEVER_RESTART;
    let mut handle = ptr::null_mut();
    // SAFETY: the description is copied; the handle is allocated where it stays.
    unsafe {
        worker.bgw_notify_pid = pg_sys::MyProcPid;
        let context = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
        let started = pg_sys::RegisterDynamicBackgroundWorker(&raw mut worker, &raw mut handle);
        pg_sys::MemoryContextSwitchTo(context);
        started.then_some(Started(handle))
    }
}

impl Started {
    pub fn has_ended(self) -> bool {
        let mut pid = 0;
        // SAFETY: the handle lives until `forget`.
        let status = unsafe { pg_sys::GetBackgroundWorkerPid(self.0, &raw mut pid) };
        matches!(
            status,
            pg_sys::BgwHandleStatus::BGWH_STOPPED | pg_sys::BgwHandleStatus::BGWH_POSTMASTER_DIED
        )
    }

    /// Ends it, or keeps it from being started.
    pub fn terminate(self) {
        // SAFETY: the handle lives until `forget`.
        unsafe { pg_sys::TerminateBackgroundWorker(self.0) };
    }

    /// Frees the handle.
    pub fn forget(self) {
        // SAFETY: allocated by PostgreSQL in `start`; the handle is consumed.
        unsafe { pg_sys::pfree(self.0.cast()) };
    }
}

fn description(name: &str, entry: &str, argument: usize) -> pg_sys::BackgroundWorker {
    let mut worker = pg_sys::BackgroundWorker {
        bgw_flags: (pg_sys::BGWORKER_SHMEM_ACCESS | pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION)
            as c_int,
        bgw_start_time: pg_sys::BgWorkerStartTime::BgWorkerStart_RecoveryFinished,
        bgw_main_arg: pg_sys::Datum::from(argument),
        ..Default::default()
    };
    copy_text(&mut worker.bgw_name, name);
    copy_text(&mut worker.bgw_type, name);
    copy_text(&mut worker.bgw_library_name, "pg_stream");
    copy_text(&mut worker.bgw_function_name, entry);
    worker
}

fn copy_text<const N: usize>(target: &mut [c_char; N], text: &str) {
    for (byte, letter) in target.iter_mut().take(N - 1).zip(text.bytes()) {
        *byte = letter as c_char;
    }
}

/// How long any of our processes waits for a lock of others, in milliseconds, unless it is told
/// otherwise: nobody is to be kept waiting for us, nor we for ever.
pub const PATIENCE: u32 = 500;

/// The first thing a worker does: connects to a database, or only to the shared catalogs.
pub fn begin(database: Option<Oid>, name: &CStr) {
    // Somebody may keep the database for long.
    IS_BUSY.store(true, SeqCst);
    // SAFETY: called once at the start of a worker; the handlers are safe to run at any time.
    unsafe {
        pg_sys::pqsignal_be(pg_sys::SIGHUP as c_int, Some(on_reload));
        pg_sys::pqsignal_be(pg_sys::SIGTERM as c_int, Some(on_terminate));
        pg_sys::BackgroundWorkerUnblockSignals();
        pg_sys::BackgroundWorkerInitializeConnectionByOid(
            database.unwrap_or(Oid::INVALID),
            Oid::INVALID,
            0,
        );
    }
    IS_BUSY.store(false, SeqCst);
    for (setting, value) in [
        (c"application_name", name),
        // What may have been set for the database suits sessions of users, not us, who are a superuser.
        (c"search_path", c"pg_catalog, pg_temp"),
        (c"session_replication_role", c"origin"),
        (c"event_triggers", c"on"),
        (c"restrict_nonsystem_relation_kind", c""),
        (c"exit_on_error", c"off"),
        (c"standard_conforming_strings", c"on"),
        (c"row_security", c"on"),
        (c"statement_timeout", c"0"),
        (c"default_transaction_isolation", c"read committed"),
        (c"default_transaction_read_only", c"off"),
        (c"default_transaction_deferrable", c"off"),
        (c"transaction_timeout", c"0"),
        // Where two wait for each other, it is us who give in.
        (c"deadlock_timeout", c"100ms"),
    ] {
        set(setting, value);
    }
    set_patience(PATIENCE);
    if database.is_some() {
        become_superuser();
    }
}

/// How long this process waits for a lock of others from now on, in milliseconds.
pub fn set_patience(milliseconds: u32) {
    let value = CString::new(milliseconds.to_string()).expect("a number has no NUL");
    set(c"lock_timeout", &value);
}

/// Transactions of this process are not waited for to be on disk.
pub fn commit_asynchronously() {
    set(c"synchronous_commit", c"off");
}

/// The commit of this transaction is waited for to be on disk, whatever the settings.
pub fn commit_durably() {
    // SAFETY: sets a variable that the end of the transaction sets back.
    unsafe { pg_sys::ForceSyncCommit() };
}

/// What this process spills to disk is not limited.
pub fn spill_freely() {
    set(c"temp_file_limit", c"-1");
}

/// Whether somebody wants this process to end.
pub fn is_terminated() -> bool {
    STOP.load(SeqCst)
}

/// Whoever the database's settings `session_authorization` and `role` have made of this process.
fn become_superuser() {
    let superuser = Oid::from(pg_sys::BOOTSTRAP_SUPERUSERID);
    let changed = transaction(c"pg_stream: starting", || {
        // SAFETY: a look-up in a transaction; the name is used at once.
        let name = unsafe { CStr::from_ptr(pg_sys::GetUserNameFromId(superuser, false)) };
        set(c"session_authorization", name);
        set(c"role", c"none");
    });
    if changed.is_err() {
        end();
    }
}

fn set(setting: &CStr, value: &CStr) {
    // SAFETY: both are settings of PostgreSQL with valid values.
    unsafe {
        pg_sys::SetConfigOption(
            setting.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_SESSION,
        );
    }
}

/// What `pg_stat_activity` shows this process to be doing, until the transaction ends.
pub fn show_activity(query: &str) {
    let text = CString::new(query).unwrap_or_default();
    // SAFETY: the text is copied.
    unsafe { pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, text.as_ptr()) };
}

/// What a sleeping process waits for, as `pg_stat_activity` shows it.
#[derive(Clone, Copy, Debug)]
pub struct Wait(u32);

impl Wait {
    pub fn new(name: &CStr) -> Self {
        // SAFETY: the name is copied; asked again, the same number comes back.
        Self(unsafe { pg_sys::WaitEventExtensionNew(name.as_ptr()) })
    }

    /// Sleeps for a millisecond in any process, and can be cancelled.
    pub fn nap(self) {
        let flags = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
        // SAFETY: plain calls; whoever else waits for the latch looks at its own conditions first.
        unsafe {
            pg_sys::WaitLatch(pg_sys::MyLatch, flags as c_int, 1, self.0);
            pg_sys::ResetLatch(pg_sys::MyLatch);
        }
        pgrx::check_for_interrupts!();
    }
}

unsafe extern "C-unwind" fn on_reload(signal: c_int) {
    // SAFETY: made for signal handlers.
    unsafe { pg_sys::SignalHandlerForConfigReload(signal) };
}

/// Ends at once when nothing runs, and by interrupting the transaction otherwise.
unsafe extern "C-unwind" fn on_terminate(signal: c_int) {
    STOP.store(true, SeqCst);
    // SAFETY: both are made for signal handlers.
    unsafe {
        if IS_BUSY.load(SeqCst) {
            pg_sys::die(signal);
        } else {
            pg_sys::SetLatch(pg_sys::MyLatch);
        }
    }
}

/// Sleeps until something happens, or at most so many milliseconds; tells which of both. Does not
/// return when the server stops or somebody terminates this process.
pub fn sleep(milliseconds: i64, wait: Wait) -> bool {
    let flags = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    let timeout = milliseconds.clamp(0, i64::from(i32::MAX));
    // SAFETY: plain calls in the main loop of a worker, outside of transactions.
    unsafe {
        let mut events = 0;
        if !STOP.load(SeqCst) {
            events = pg_sys::WaitLatch(pg_sys::MyLatch, flags as c_int, timeout, wait.0);
        }
        pg_sys::ResetLatch(pg_sys::MyLatch);
        if STOP.load(SeqCst) {
            stop();
        }
        pgrx::check_for_interrupts!();
        if pg_sys::ConfigReloadPending != 0 {
            pg_sys::ConfigReloadPending = 0;
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
        events & pg_sys::WL_LATCH_SET as c_int != 0
    }
}

/// Ends this process, for good.
pub fn end() -> ! {
    exit(0)
}

/// Ends this process because somebody has asked for it.
fn stop() -> ! {
    // SAFETY: set before a worker's function is called.
    let restart_time = unsafe { (*pg_sys::MyBgworkerEntry).bgw_restart_time };
    // PostgreSQL never again starts a worker that has ended with 0, and logs any other end.
    exit(c_int::from(restart_time != pg_sys::BGW_NEVER_RESTART && !is_server_stopping()))
}

fn exit(status: c_int) -> ! {
    // SAFETY: runs the exit callbacks and does not return.
    unsafe { pg_sys::proc_exit(status) };
    unreachable!("proc_exit does not return")
}

/// PostgreSQL's `LOCK_FILE_LINE_PM_STATUS`, from 0.
const STATUS_LINE: usize = 7;

/// Whether it is the server that ends: only its lock file tells that to other processes.
fn is_server_stopping() -> bool {
    // Processes of the server work in its data directory.
    std::fs::read_to_string("postmaster.pid")
        .is_ok_and(|file| file.lines().nth(STATUS_LINE).is_some_and(|it| it.trim() == "stopping"))
}

/// Runs `at_exit` when this process ends for whatever reason.
pub fn at_exit(callback: pg_sys::pg_on_exit_callback, argument: usize) {
    // SAFETY: the callback is a function of this library.
    unsafe { pg_sys::before_shmem_exit(callback, pg_sys::Datum::from(argument)) };
}

/// Runs `work` in a transaction of its own, and rolls it back if it raises an error. What `work`
/// allocates in PostgreSQL's memory is freed either way.
pub fn transaction<T>(label: &CStr, work: impl FnOnce() -> T) -> Result<T, Failure> {
    // SAFETY: called from the main loop of a worker, outside of transactions.
    unsafe {
        // A look at the shared catalogs is soon over; interrupted, it would leave an error in the log.
        IS_BUSY.store(pg_sys::MyDatabaseId != Oid::INVALID, SeqCst);
        if STOP.load(SeqCst) {
            stop();
        }
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, label.as_ptr());
    }
    let result = PgTryBuilder::new(AssertUnwindSafe(|| Ok(committed(work))))
        .catch_others(|error| Err(Failure::from(&error)))
        .execute();
    // SAFETY: the transaction is over or is rolled back here.
    unsafe {
        if result.is_err() {
            pg_sys::AbortCurrentTransaction();
        }
        IS_BUSY.store(false, SeqCst);
        pg_sys::MemoryContextReset(work_context());
        pg_sys::pgstat_report_stat(true);
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, ptr::null());
    }
    result
}

fn committed<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: the calls of any worker that runs SQL, in the usual order.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        pg_sys::MemoryContextSwitchTo(work_context());
        let result = work();
        if pg_sys::ActiveSnapshotSet() {
            pg_sys::PopActiveSnapshot();
        }
        pg_sys::CommitTransactionCommand();
        result
    }
}

/// Runs `work`, which makes its own transactions, so that it can be interrupted like one.
pub fn interruptible<T>(label: &CStr, work: impl FnOnce() -> T) -> T {
    // SAFETY: called from the main loop of a worker, outside of transactions. An error ends the process.
    unsafe {
        IS_BUSY.store(true, SeqCst);
        if STOP.load(SeqCst) {
            stop();
        }
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, label.as_ptr());
        pg_sys::MemoryContextSwitchTo(work_context());
    }
    let result = work();
    // SAFETY: nothing of what was allocated is used any more.
    unsafe {
        IS_BUSY.store(false, SeqCst);
        pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
        pg_sys::MemoryContextReset(work_context());
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, ptr::null());
    }
    result
}

/// Where the work of a transaction allocates, emptied after each.
fn work_context() -> pg_sys::MemoryContext {
    static mut CONTEXT: pg_sys::MemoryContext = ptr::null_mut();
    // SAFETY: one thread; made once below the context that lives as long as the process.
    unsafe {
        if CONTEXT.is_null() {
            CONTEXT = pg_sys::AllocSetContextCreateInternal(
                pg_sys::TopMemoryContext,
                c"pg_stream worker".as_ptr(),
                pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            );
        }
        CONTEXT
    }
}

/// Databases that may have a scheduler, read from the shared catalog in a transaction.
pub fn databases() -> HashMap<Oid, String> {
    let mut found = HashMap::new();
    // SAFETY: a catalog scan as the autovacuum launcher does it; the tuples are read before the
    // next one is fetched.
    unsafe {
        let relation =
            pg_sys::table_open(pg_sys::DatabaseRelationId, pg_sys::AccessShareLock as c_int);
        let scan = pg_sys::table_beginscan_catalog(relation, 0, ptr::null_mut());
        loop {
            let tuple = pg_sys::heap_getnext(scan, pg_sys::ScanDirection::ForwardScanDirection);
            if tuple.is_null() {
                break;
            }
            let row = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_database>();
            if (*row).datallowconn && !(*row).datistemplate && (*row).datconnlimit != -2 {
                found.insert((*row).oid, relation::text((*row).datname.data.as_mut_ptr()));
            }
        }
        pg_sys::heap_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as c_int);
    }
    found
}
