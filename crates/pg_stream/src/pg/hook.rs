//! Commands that schedulers must know of: on databases (most fail while anybody is connected, so
//! the scheduler and its workers step aside), DROP EXTENSION, and COMMIT PREPARED. And REASSIGN OWNED,
//! of which no event trigger is told.

use std::ffi::{CStr, c_char};

use pgrx::{
    IntoDatum,
    pg_sys::{self, NodeTag, Oid},
};

use super::{event, job, security::Identity, shmem, time, wake};

/// How long they stay away, in microseconds. PostgreSQL waits 5 seconds for others to go.
const ABSENCE: i64 = 7_000_000;

static mut NEXT: pg_sys::ProcessUtility_hook_type = None;

/// Watches commands on databases; to be called while `shared_preload_libraries` are loaded.
pub fn install() {
    // SAFETY: the postmaster loads libraries one after the other, in one thread.
    unsafe {
        NEXT = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(process_utility);
    }
}

unsafe extern "C-unwind" {
    /// PostgreSQL's own, not the binding, which would turn every error of every command into a
    /// Rust panic and back, losing positions and fields on the way.
    fn standard_ProcessUtility(
        statement: *mut pg_sys::PlannedStmt,
        query_string: *const c_char,
        read_only_tree: bool,
        context: pg_sys::ProcessUtilityContext::Type,
        params: pg_sys::ParamListInfo,
        environment: *mut pg_sys::QueryEnvironment,
        receiver: *mut pg_sys::DestReceiver,
        completion: *mut pg_sys::QueryCompletion,
    );
}

/// Holds nothing that would have to be dropped when an error jumps over it.
unsafe extern "C-unwind" fn process_utility(
    statement: *mut pg_sys::PlannedStmt,
    query_string: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    receiver: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: the arguments are passed on as they came.
    unsafe {
        let command = (*statement).utilityStmt;
        let tag = (*command).type_;
        if is_about_databases(tag) {
            before(command);
        }
        if tag == NodeTag::T_ReassignOwnedStmt {
            before_reassign_owned(command);
        }
        let next = NEXT.unwrap_or(standard_ProcessUtility);
        next(
            statement,
            query_string,
            read_only_tree,
            context,
            params,
            environment,
            receiver,
            completion,
        );
        match tag {
            NodeTag::T_CreatedbStmt => after_create_database(),
            NodeTag::T_DropStmt if is_about_extensions(command) => after_drop_extension(),
            NodeTag::T_TransactionStmt if is_commit_prepared(command) => after_commit_prepared(),
            _ => {}
        }
    }
}

fn is_about_databases(tag: NodeTag) -> bool {
    matches!(
        tag,
        NodeTag::T_CreatedbStmt
            | NodeTag::T_DropdbStmt
            | NodeTag::T_AlterDatabaseStmt
            | NodeTag::T_RenameStmt
    )
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn before(command: *mut pg_sys::Node) {
    // SAFETY: the parse tree of the command that is about to run.
    if let Some(database) = unsafe { disturbed_database(command) } {
        step_aside(database);
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn before_reassign_owned(command: *mut pg_sys::Node) {
    // SAFETY: as in `before`.
    unsafe { event::before_untold(command) };
}

/// # Safety
///
/// `command` is a `DropStmt`.
unsafe fn is_about_extensions(command: *mut pg_sys::Node) -> bool {
    // SAFETY: as promised.
    let kind = unsafe { (*command.cast::<pg_sys::DropStmt>()).removeType };
    kind == pg_sys::ObjectType::OBJECT_EXTENSION
}

/// # Safety
///
/// `command` is a `TransactionStmt`.
unsafe fn is_commit_prepared(command: *mut pg_sys::Node) -> bool {
    // SAFETY: as promised.
    let kind = unsafe { (*command.cast::<pg_sys::TransactionStmt>()).kind };
    kind == pg_sys::TransactionStmtKind::TRANS_STMT_COMMIT_PREPARED
}

/// What it has changed is visible now.
#[pgrx::pg_guard]
extern "C-unwind" fn after_commit_prepared() {
    wake::prepared_committed();
}

/// It may have been ours.
#[pgrx::pg_guard]
extern "C-unwind" fn after_drop_extension() {
    wake::scheduler_at_commit();
}

/// The new database may be a copy of one that has the extension.
#[pgrx::pg_guard]
extern "C-unwind" fn after_create_database() {
    wake::launcher_at_commit();
}

/// The database that nobody may be connected to while `command` runs, if this role may have that.
///
/// # Safety
///
/// `command` is the parse tree of a utility command.
unsafe fn disturbed_database(command: *mut pg_sys::Node) -> Option<Oid> {
    // SAFETY: the tag says which struct it is.
    let (name, is_copied) = unsafe {
        match (*command).type_ {
            NodeTag::T_CreatedbStmt => {
                (template((*command.cast::<pg_sys::CreatedbStmt>()).options)?, true)
            }
            NodeTag::T_DropdbStmt => ((*command.cast::<pg_sys::DropdbStmt>()).dbname, false),
            NodeTag::T_AlterDatabaseStmt => {
                ((*command.cast::<pg_sys::AlterDatabaseStmt>()).dbname, false)
            }
            NodeTag::T_RenameStmt => {
                let rename = command.cast::<pg_sys::RenameStmt>();
                if (*rename).renameType != pg_sys::ObjectType::OBJECT_DATABASE {
                    return None;
                }
                ((*rename).subname, false)
            }
            _ => return None,
        }
    };
    // SAFETY: look-ups in a transaction; the name is of the parse tree.
    unsafe {
        let database = pg_sys::get_database_oid(name, true);
        let role = pg_sys::GetUserId();
        let may = database != Oid::INVALID
            && (pg_sys::object_ownercheck(pg_sys::DatabaseRelationId, database, role)
                || is_copied && pg_sys::have_createdb_privilege() && is_template(database));
        may.then_some(database)
    }
}

/// Whether everybody may copy a database who may create one.
fn is_template(database: Oid) -> bool {
    // SAFETY: a look-up in a transaction; the tuple is of this catalog, and released.
    unsafe {
        let key = pg_sys::SysCacheIdentifier::DATABASEOID as i32;
        let tuple = pg_sys::SearchSysCache1(key, database.into());
        if tuple.is_null() {
            return false;
        }
        let row = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_database>();
        let is_template = (*row).datistemplate;
        pg_sys::ReleaseSysCache(tuple);
        is_template
    }
}

/// The option TEMPLATE of CREATE DATABASE.
///
/// # Safety
///
/// `options` is a list of `DefElem`.
unsafe fn template(options: *mut pg_sys::List) -> Option<*mut c_char> {
    if options.is_null() {
        return None;
    }
    // SAFETY: the elements of the list lie one after the other.
    unsafe {
        for index in 0..(*options).length {
            let element =
                (*(*options).elements.offset(index as isize)).ptr_value.cast::<pg_sys::DefElem>();
            if CStr::from_ptr((*element).defname) == c"template" && !(*element).arg.is_null() {
                return Some(pg_sys::defGetString(element));
            }
        }
    }
    None
}

/// Ends the scheduler of a database with its workers, and its decoder, and keeps them away for a while.
fn step_aside(database: Oid) {
    let Some(slot) = shmem::slot_of(database) else { return };
    slot.hold_until(time::now() + ABSENCE);
    let _superuser = Identity::superuser();
    let others = slot.worker_pid().into_iter().chain(job::processes(database));
    others.for_each(|pid| terminate(pid, 0));
    // PostgreSQL does not wait for whoever holds a replication slot.
    slot.decoder_pid().into_iter().for_each(|pid| terminate(pid, 5000));
}

/// Ends a process, and waits for that so many milliseconds.
fn terminate(pid: i32, wait: i64) {
    // SAFETY: both arguments are given; a process that is gone is only a warning.
    unsafe {
        pgrx::direct_function_call::<bool>(
            pg_sys::pg_terminate_backend,
            &[pid.into_datum(), wait.into_datum()],
        );
    }
}
