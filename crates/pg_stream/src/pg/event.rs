//! What event triggers are told, and which commands are our own.

use std::{cell::Cell, sync::OnceLock};

use pgrx::pg_sys::{self, Datum, NodeTag, Oid};

use super::{member, relation::text, security, spi};

/// The sorts of objects that a command can be about, as far as they are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Relation,
    Trigger,
    Rule,
    Schema,
    Extension,
    /// By the catalog that it is in.
    Other(Oid),
}

/// `pg_rewrite`, for which there is no binding.
const RULES: Oid = Oid::from_u32(2618);

impl Class {
    pub fn of(catalog: Oid) -> Self {
        match catalog {
            pg_sys::RelationRelationId => Self::Relation,
            pg_sys::TriggerRelationId => Self::Trigger,
            RULES => Self::Rule,
            pg_sys::NamespaceRelationId => Self::Schema,
            pg_sys::ExtensionRelationId => Self::Extension,
            other => Self::Other(other),
        }
    }

    /// The catalog.
    pub fn oid(self) -> Oid {
        match self {
            Self::Relation => pg_sys::RelationRelationId,
            Self::Trigger => pg_sys::TriggerRelationId,
            Self::Rule => RULES,
            Self::Schema => pg_sys::NamespaceRelationId,
            Self::Extension => pg_sys::ExtensionRelationId,
            Self::Other(catalog) => catalog,
        }
    }
}

/// What a DDL command has made or changed.
#[derive(Clone, Debug)]
pub struct Command {
    pub class: Class,
    pub object: Oid,
    /// Of a relation: the number of a column, or 0.
    pub part: i32,
    /// As in `CREATE TABLE`.
    pub tag: String,
    /// As people call it.
    pub identity: String,
}

impl Command {
    /// An ALTER TABLE that no event trigger is told of.
    pub fn of_table(table: Oid, identity: String) -> Self {
        let tag = "ALTER TABLE".to_owned();
        Self { class: Class::Relation, object: table, part: 0, tag, identity }
    }
}

/// For `ddl_command_end`. Call it under the superuser's identity.
pub fn commands() -> Vec<Command> {
    let mut commands = Vec::new();
    spi::ask(
        "SELECT classid, objid, objsubid, command_tag, object_type || ' ' || object_identity \
         FROM pg_catalog.pg_event_trigger_ddl_commands() WHERE objid IS NOT NULL",
        &[],
        |row| {
            let (Some(class), Some(object)) = (row.get(0), row.get(1)) else { return };
            commands.push(Command {
                class: Class::of(class),
                object,
                part: row.get(2).unwrap_or(0),
                tag: row.get(3).unwrap_or_default(),
                identity: row.get(4).unwrap_or_default(),
            });
        },
    );
    commands
}

/// Something that is gone.
#[derive(Clone, Debug)]
pub struct Dropped {
    pub class: Class,
    pub object: Oid,
    /// Of a relation: the number of a column, or 0.
    pub part: i32,
    /// Whether the command named it.
    pub is_original: bool,
    pub identity: String,
    /// The parts of its name; the last one is its own.
    pub names: Vec<String>,
}

/// For `sql_drop`. Call it under the superuser's identity.
pub fn dropped() -> Vec<Dropped> {
    let mut dropped = Vec::new();
    spi::ask(
        "SELECT classid, objid, objsubid, original, object_type || ' ' || object_identity, address_names \
         FROM pg_catalog.pg_event_trigger_dropped_objects() WHERE objid IS NOT NULL",
        &[],
        |row| {
            let (Some(class), Some(object)) = (row.get(0), row.get(1)) else { return };
            dropped.push(Dropped {
                class: Class::of(class),
                object,
                part: row.get(2).unwrap_or(0),
                is_original: row.get(3).unwrap_or(false),
                identity: row.get(4).unwrap_or_default(),
                names: row.get(5).unwrap_or_default(),
            });
        },
    );
    dropped
}

/// For `table_rewrite`: the table. Call it under the superuser's identity.
pub fn rewritten() -> Option<Oid> {
    let mut table = None;
    spi::ask("SELECT pg_catalog.pg_event_trigger_table_rewrite_oid()", &[], |row| {
        table = row.get(0);
    });
    table
}

thread_local! {
    static OWN: Cell<bool> = const { Cell::new(false) };
}

/// While it lives, DDL commands are our own, and our event triggers leave them alone.
pub struct OwnCommands {
    previous: bool,
}

impl OwnCommands {
    pub fn begin() -> Self {
        Self { previous: OWN.replace(true) }
    }
}

impl Drop for OwnCommands {
    // Also runs when an error unwinds.
    fn drop(&mut self) {
        OWN.set(self.previous);
    }
}

/// Whether the running DDL command is our own. Those that change what is ours alone run as the superuser;
/// what runs as anybody else may be a function that a query of his calls on the way.
pub fn is_own() -> bool {
    OWN.get() && security::is_superuser()
}

/// The types of columns are about to change. The current user owns the table.
#[derive(Clone, Debug)]
pub struct TypeChange {
    pub table: Oid,
    pub columns: Vec<String>,
    /// Those that the same command drops, which it does first.
    pub dropped: Vec<String>,
}

/// What is going to happen.
#[derive(Clone, Debug)]
pub enum Start {
    TypeChange(TypeChange),
    /// What these roles own is about to be dropped. The current user may do that.
    DropOwned(Vec<Oid>),
    /// The same for what gets another owner.
    ReassignOwned(Vec<Oid>),
}

type Handler = fn(Start) -> Result<(), pg_sys::panic::ErrorReport>;

static HANDLER: OnceLock<Handler> = OnceLock::new();

/// `handler` is called before each ALTER TABLE that changes types of columns, and each DROP OWNED and
/// REASSIGN OWNED.
pub fn before_ddl(handler: Handler) {
    HANDLER.get_or_init(|| handler);
}

#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_pg_stream_on_ddl_start() -> &'static pg_sys::Pg_finfo_record {
    const RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &RECORD
}

/// `pgstream.on_ddl_start()`: only here does an event trigger get the parse tree.
///
/// # Safety
///
/// PostgreSQL calls it with the fields that the calling convention promises.
#[unsafe(no_mangle)]
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn pg_stream_on_ddl_start(fcinfo: pg_sys::FunctionCallInfo) -> Datum {
    // SAFETY: the context of a call as an event trigger is an `EventTriggerData`.
    let start = unsafe {
        let context = (*fcinfo).context;
        if context.is_null() || (*context).type_ != NodeTag::T_EventTriggerData {
            pgrx::ereport!(
                ERROR,
                pgrx::PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
                "this function can only be called as an event trigger"
            );
        }
        let statement = (*context.cast::<pg_sys::EventTriggerData>()).parsetree;
        of_owned(statement).or_else(|| type_change(statement).map(Start::TypeChange))
    };
    start.filter(|_| !is_own()).into_iter().for_each(handle);
    Datum::from(0)
}

fn handle(start: Start) {
    if let Some(handler) = HANDLER.get()
        && let Err(report) = handler(start)
    {
        report.report(pgrx::PgLogLevel::ERROR);
    }
}

/// Before a command that event triggers are not told of.
///
/// # Safety
///
/// `command` must be a parse tree.
pub unsafe fn before_untold(command: *mut pg_sys::Node) {
    // Other databases have this hook, too.
    if member::extension().is_some() {
        // SAFETY: as promised.
        unsafe { of_owned(command) }.into_iter().for_each(handle);
    }
}

/// # Safety
///
/// `statement` must be a parse tree.
unsafe fn of_owned(statement: *mut pg_sys::Node) -> Option<Start> {
    // SAFETY: the tag says which struct it is; elements of a list lie one after the other.
    unsafe {
        if statement.is_null() {
            return None;
        }
        let (roles, start): (_, fn(Vec<Oid>) -> Start) = match (*statement).type_ {
            NodeTag::T_DropOwnedStmt => {
                ((*statement.cast::<pg_sys::DropOwnedStmt>()).roles, Start::DropOwned)
            }
            NodeTag::T_ReassignOwnedStmt => {
                ((*statement.cast::<pg_sys::ReassignOwnedStmt>()).roles, Start::ReassignOwned)
            }
            _ => return None,
        };
        let roles = pg_sys::roleSpecsToIds(roles);
        let count = usize::try_from((*roles).length).unwrap_or(0);
        let roles = (0..count).map(|it| (*(*roles).elements.add(it)).oid_value);
        let may = |it: &Oid| pg_sys::has_privs_of_role(pg_sys::GetUserId(), *it);
        Some(start(roles.filter(may).collect()))
    }
}

/// # Safety
///
/// `statement` must be a parse tree.
unsafe fn type_change(statement: *mut pg_sys::Node) -> Option<TypeChange> {
    // SAFETY: the tag says which struct it is; elements of a list lie one after the other.
    unsafe {
        if statement.is_null() || (*statement).type_ != NodeTag::T_AlterTableStmt {
            return None;
        }
        let statement = statement.cast::<pg_sys::AlterTableStmt>();
        let commands = (*statement).cmds;
        let count = if commands.is_null() { 0 } else { (*commands).length };
        let named = |subtype| -> Vec<String> {
            (0..usize::try_from(count).unwrap_or(0))
                .map(|it| (*(*commands).elements.add(it)).ptr_value.cast::<pg_sys::AlterTableCmd>())
                .filter(|it| (**it).subtype == subtype)
                .map(|it| text((*it).name))
                .collect()
        };
        let columns = named(pg_sys::AlterTableType::AT_AlterColumnType);
        if columns.is_empty() {
            return None;
        }
        let table = pg_sys::RangeVarGetRelidExtended(
            (*statement).relation,
            pg_sys::NoLock as i32,
            pg_sys::RVROption::RVR_MISSING_OK,
            None,
            std::ptr::null_mut(),
        );
        let may = table != Oid::INVALID
            && pg_sys::object_ownercheck(pg_sys::RelationRelationId, table, pg_sys::GetUserId());
        let dropped = named(pg_sys::AlterTableType::AT_DropColumn);
        may.then_some(TypeChange { table, columns, dropped })
    }
}
