//! With whose rights the statements of a refresh read and write.
//!
//! A query reads tables with the rights of its owner, and tables behind a view with those of the
//! view's owner. The statements of a refresh name all these tables themselves, and some columns that
//! the query does not name. So the rights are checked as the query has it, before the refresh
//! ([`check`]), and the statements are told for each table in whose name it is read: that decides
//! which row-level security applies.
//!
//! PostgreSQL hands every analyzed statement to a hook. Ours are known by the address of their text,
//! which nobody else has: what functions of users run meanwhile is left alone. The same goes for
//! triggers of users, which a full refresh does not fire: the executor forgets them for the result
//! of our statement, and for nothing else.

use std::{
    cell::{Cell, RefCell},
    ffi::c_char,
    ptr,
};

use pgrx::pg_sys::{self, Oid};

use super::node::{Kind, Node, Step, pointers};

/// Something that a query reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permission {
    pub relation: Oid,
    /// Whose rights count; the invalid one is whoever runs the query.
    pub role: Oid,
    /// Members of PostgreSQL's set of columns.
    columns: Vec<i32>,
}

impl Permission {
    /// # Safety
    ///
    /// The node must be valid.
    pub(in crate::pg) unsafe fn of(info: &pg_sys::RTEPermissionInfo) -> Self {
        let mut columns = Vec::new();
        let mut member = -1;
        // SAFETY: the bitmap is null or valid.
        while let next @ 0.. = unsafe { pg_sys::bms_next_member(info.selectedCols, member) } {
            columns.push(next);
            member = next;
        }
        Self { relation: info.relid, role: info.checkAsUser, columns }
    }

    /// Of columns that somebody reads who runs the query.
    pub fn of_columns(relation: Oid, columns: &[i16]) -> Self {
        let member = |it: &i16| i32::from(*it) - pg_sys::FirstLowInvalidHeapAttributeNumber;
        Self { relation, role: Oid::INVALID, columns: columns.iter().map(member).collect() }
    }

    /// Whether `role` could read the same in its own name: these columns, of the same rows.
    pub fn is_held_by(&self, role: Oid) -> bool {
        let own = Self { role, ..self.clone() };
        let is_itself = self.role == Oid::INVALID || self.role == role;
        // SAFETY: the nodes live in the current memory context; nothing is asked of the range table.
        let may_read =
            unsafe { pg_sys::ExecCheckPermissions(ptr::null_mut(), infos(&[own], role), false) };
        may_read && (is_itself || row_security(self.relation, role) != RowSecurity::Applies)
    }
}

/// Raises the error of a query that lacks one of the permissions. `owner` runs it.
pub fn check(permissions: &[Permission], owner: Oid) {
    // SAFETY: the nodes live in the current memory context; nothing is asked of the range table.
    unsafe {
        pg_sys::ExecCheckPermissions(ptr::null_mut(), infos(permissions, owner), true);
    }
}

/// The permissions as PostgreSQL has them.
fn infos(permissions: &[Permission], owner: Oid) -> *mut pg_sys::List {
    let mut infos = ptr::null_mut();
    // SAFETY: the nodes are made in the current memory context.
    unsafe {
        for permission in permissions {
            let info = pg_sys::palloc0(size_of::<pg_sys::RTEPermissionInfo>())
                .cast::<pg_sys::RTEPermissionInfo>();
            (*info).type_ = pg_sys::NodeTag::T_RTEPermissionInfo;
            (*info).relid = permission.relation;
            (*info).requiredPerms = pg_sys::ACL_SELECT.into();
            let role = permission.role;
            (*info).checkAsUser = if role == Oid::INVALID { owner } else { role };
            for member in &permission.columns {
                (*info).selectedCols = pg_sys::bms_add_member((*info).selectedCols, *member);
            }
            infos = pg_sys::lappend(infos, info.cast());
        }
    }
    infos
}

/// What row-level security means for a role that reads a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowSecurity {
    Off,
    /// The table has it, but not for this role.
    Bypassed,
    Applies,
}

pub fn row_security(relation: Oid, role: Oid) -> RowSecurity {
    const BYPASSED: i32 = 1;
    const APPLIES: i32 = 2;
    // SAFETY: a look-up by OID.
    match unsafe { pg_sys::check_enable_rls(relation, role, true) } {
        APPLIES => RowSecurity::Applies,
        BYPASSED => RowSecurity::Bypassed,
        _ => RowSecurity::Off,
    }
}

/// Reads in nobody's name: every row, whatever the rights.
pub const ANYBODY: Oid = Oid::from_u32(pg_sys::BOOTSTRAP_SUPERUSERID);

thread_local! {
    /// Who reads or writes each table in our statements.
    static ROLES: RefCell<Vec<(Oid, Oid)>> = const { RefCell::new(Vec::new()) };
    /// The table whose triggers our statements do not fire.
    static QUIET: Cell<Oid> = const { Cell::new(Oid::INVALID) };
    /// The text of our statement that is being analyzed or executed.
    static STATEMENT: Cell<*const c_char> = const { Cell::new(ptr::null()) };
}

/// While it lives, our statements read each of these tables as this role.
pub struct Roles(Vec<(Oid, Oid)>);

impl Roles {
    pub fn enter(roles: Vec<(Oid, Oid)>) -> Self {
        Self(ROLES.replace(roles))
    }
}

impl Drop for Roles {
    // Also runs when an error unwinds.
    fn drop(&mut self) {
        ROLES.set(std::mem::take(&mut self.0));
    }
}

/// While it lives, our statements do not fire the triggers of a table.
pub struct Quiet(Oid);

impl Quiet {
    pub fn enter(table: Oid) -> Self {
        Self(QUIET.replace(table))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        QUIET.set(self.0);
    }
}

/// Runs `work`, in which the statement with this text is ours.
pub(in crate::pg) fn ours<T>(text: *const c_char, work: impl FnOnce() -> T) -> T {
    struct Previous(*const c_char);
    impl Drop for Previous {
        fn drop(&mut self) {
            STATEMENT.set(self.0);
        }
    }
    let _previous = Previous(STATEMENT.replace(text));
    work()
}

static mut NEXT_ANALYZED: pg_sys::post_parse_analyze_hook_type = None;
static mut NEXT_START: pg_sys::ExecutorStart_hook_type = None;

/// Called once, when the library is loaded.
pub fn install() {
    // SAFETY: libraries are loaded while the process has one thread.
    unsafe {
        NEXT_ANALYZED = pg_sys::post_parse_analyze_hook;
        pg_sys::post_parse_analyze_hook = Some(analyzed);
        NEXT_START = pg_sys::ExecutorStart_hook;
        pg_sys::ExecutorStart_hook = Some(start);
    }
}

unsafe extern "C-unwind" {
    /// PostgreSQL's own, not the binding: see `hook.rs`.
    fn standard_ExecutorStart(query: *mut pg_sys::QueryDesc, flags: std::ffi::c_int);
}

/// Holds nothing that would have to be dropped when an error jumps over it, as `start`.
unsafe extern "C-unwind" fn analyzed(
    state: *mut pg_sys::ParseState,
    query: *mut pg_sys::Query,
    jumble: *mut pg_sys::JumbleState,
) {
    // SAFETY: the arguments are passed on as they came; they are valid.
    unsafe {
        if let Some(next) = NEXT_ANALYZED {
            next(state, query, jumble);
        }
        if is_ours((*state).p_sourcetext) {
            assign_roles(query);
        }
    }
}

unsafe extern "C-unwind" fn start(query: *mut pg_sys::QueryDesc, flags: std::ffi::c_int) {
    // SAFETY: as in `analyzed`.
    unsafe {
        match NEXT_START {
            Some(next) => next(query, flags),
            None => standard_ExecutorStart(query, flags),
        }
        if QUIET.get() != Oid::INVALID && is_ours((*query).sourceText) {
            forget_triggers(query);
        }
    }
}

fn is_ours(text: *const c_char) -> bool {
    !text.is_null() && STATEMENT.get() == text
}

/// # Safety
///
/// `query` must be a valid tree that may be changed.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn assign_roles(query: *mut pg_sys::Query) {
    // SAFETY: as promised; each query has a list of permission infos, which are changed while
    // nothing else looks at them.
    unsafe {
        let Some(tree) = Node::from_ptr(query) else { return };
        let mut infos = Vec::new();
        tree.visit(&mut |node| {
            if let Kind::Query(query) = node.kind() {
                infos.extend(pointers::<pg_sys::RTEPermissionInfo>(query.get().rteperminfos));
            }
            Step::Into
        });
        ROLES.with_borrow(|roles| {
            for info in infos {
                if let Some((_, role)) = roles.iter().find(|it| it.0 == (*info).relid) {
                    (*info).checkAsUser = *role;
                    // Any column that the role may read will do: the query's were checked.
                    (*info).selectedCols = ptr::null_mut();
                }
            }
        });
    }
}

/// # Safety
///
/// `query` must have been started.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn forget_triggers(query: *mut pg_sys::QueryDesc) {
    // SAFETY: the list holds the results that are open.
    unsafe {
        let results = (*(*query).estate).es_opened_result_relations;
        for result in pointers::<pg_sys::ResultRelInfo>(results) {
            if (*(*result).ri_RelationDesc).rd_id == QUIET.get() {
                (*result).ri_TrigDesc = ptr::null_mut();
            }
        }
    }
}
