//! ALTER TABLE of a table that is known by its OID.

use std::ptr;

use pgrx::pg_sys::{self, NodeTag, Oid};

use super::{node::pointers, snapshot::Snapshot, source::command_done, text};

/// Alters a table as the current role. It must own it, but needs no rights on its schema, which looking
/// for its name would take.
pub fn table(table: Oid, actions: &str) {
    let text = text::statement(&format!("ALTER TABLE it {actions}"));
    // SAFETY: the trees are in the current memory context. PostgreSQL's own code for the statement does
    // the same when it has found the table.
    let alter = || unsafe {
        let statements = pg_sys::pg_parse_query(text.as_ptr());
        let raw = pointers::<pg_sys::RawStmt>(statements).next().expect("there is one statement");
        let statement = (*raw).stmt.cast::<pg_sys::AlterTableStmt>();
        assert_eq!((*statement).type_, NodeTag::T_AlterTableStmt, "it begins with ALTER TABLE");
        let planned =
            pg_sys::palloc0(size_of::<pg_sys::PlannedStmt>()).cast::<pg_sys::PlannedStmt>();
        (*planned).type_ = NodeTag::T_PlannedStmt;
        (*planned).commandType = pg_sys::CmdType::CMD_UTILITY;
        (*planned).utilityStmt = statement.cast();
        let lock = pg_sys::AlterTableGetLockLevel((*statement).cmds);
        pg_sys::LockRelationOid(table, lock);
        let mut context = pg_sys::AlterTableUtilityContext {
            pstmt: planned,
            queryString: text.as_ptr(),
            relid: table,
            params: ptr::null_mut(),
            queryEnv: ptr::null_mut(),
        };
        pg_sys::EventTriggerAlterTableStart(statement.cast());
        pg_sys::EventTriggerAlterTableRelid(table);
        pg_sys::AlterTable(statement, lock, &raw mut context);
        pg_sys::EventTriggerAlterTableEnd();
    };
    Snapshot::latest().with_own_changes(alter);
    command_done();
}
