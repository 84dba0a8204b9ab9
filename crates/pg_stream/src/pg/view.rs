//! Views of queries.

use std::{ffi::c_char, ptr};

use pgrx::{
    PgLogLevel, PgSqlErrorCode,
    pg_sys::{self, Oid, panic::ErrorReport},
};

use super::{
    member,
    node::{Arena, pointers},
    query, relation,
    security::Identity,
    snapshot::Snapshot,
    source::command_done,
    text,
};

unsafe extern "C-unwind" {
    /// PostgreSQL's own, for which there is no binding.
    fn StoreViewQuery(view: Oid, query: *mut pg_sys::Query, replace: bool);
}

/// Makes a view that belongs to `owner`, who needs no rights on the schema: that is the business of the
/// current role. To analyze a query is to evaluate parts of it, such as literals of types with
/// conditions, so that is done as `owner`, restricted. `sql` is one SELECT.
pub fn create(schema: &str, name: &str, sql: &str, owner: Oid) -> Oid {
    let sql = text::statement(sql);
    let arena = Arena::enter();
    let query = {
        let _owner = Identity::restricted(owner);
        let analyze = || query::analyze(&arena, &sql, &[]);
        Snapshot::latest().with_own_changes(analyze).expect("it was analyzed as one SELECT before")
    };
    let (schema, name) = (text::statement(schema), text::statement(name));
    // SAFETY: the nodes are in the arena, and valid. The function has this signature in PostgreSQL 18;
    // its errors are caught at the boundary, over which nothing is owned.
    let view = unsafe {
        let query: *mut pg_sys::Query = query.node().as_ptr();
        let statement =
            pg_sys::palloc0(size_of::<pg_sys::CreateStmt>()).cast::<pg_sys::CreateStmt>();
        (*statement).type_ = pg_sys::NodeTag::T_CreateStmt;
        let (schema, name) = (schema.as_ptr().cast_mut(), name.as_ptr().cast_mut());
        (*statement).relation = pg_sys::makeRangeVar(schema, name, -1);
        (*statement).tableElts = columns(query);
        let kind = pg_sys::RELKIND_VIEW as c_char;
        let view =
            pg_sys::DefineRelation(statement, kind, owner, ptr::null_mut(), ptr::null()).objectId;
        command_done();
        pg_sys::ffi::pg_guard_ffi_boundary(|| StoreViewQuery(view, query, false));
        view
    };
    command_done();
    member::revoke_default_privileges(Some(view));
    view
}

/// The output columns of a query, as those of a table. Refuses what PostgreSQL refuses in a view.
///
/// # Safety
///
/// The query must be valid, and the current memory context must be that of its arena.
unsafe fn columns(query: *const pg_sys::Query) -> *mut pg_sys::List {
    let mut columns = ptr::null_mut();
    // SAFETY: as promised; the list holds target entries, which have names unless they are junk.
    unsafe {
        for target in pointers::<pg_sys::TargetEntry>((*query).targetList) {
            let (expression, name) = ((*target).expr.cast(), (*target).resname);
            if (*target).resjunk {
                continue;
            }
            let (ty, collation) = (pg_sys::exprType(expression), pg_sys::exprCollation(expression));
            if collation == Oid::INVALID && pg_sys::type_is_collatable(ty) {
                let name = relation::text(name);
                ErrorReport::new(
                    PgSqlErrorCode::ERRCODE_INDETERMINATE_COLLATION,
                    format!("could not determine which collation to use for column \"{name}\""),
                    "columns",
                )
                .set_hint("Use the COLLATE clause to set the collation explicitly.")
                .report(PgLogLevel::ERROR);
            }
            let typmod = pg_sys::exprTypmod(expression);
            let column = pg_sys::makeColumnDef(name, ty, typmod, collation);
            columns = pg_sys::lappend(columns, column.cast());
        }
    }
    columns
}
