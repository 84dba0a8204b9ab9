//! What capture needs to know of a source: read from the relation cache, which is current even
//! where the transaction's snapshot is old.

use std::ffi::{CStr, CString};

use pgrx::pg_sys::{self, Oid};

use super::{lock::Lock, relation::text, store::StoreColumn, table, tuple};

/// The sorts of relations whose changes can be captured, or why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Table,
    Partitioned,
    Other,
}

/// A column that can be captured.
#[derive(Clone, Debug)]
pub struct Column {
    pub number: i16,
    pub name: String,
    /// As the source has it.
    pub stored: StoreColumn,
    /// The type below domains, whose constraints do not hold for a missing value.
    pub base_type: Oid,
    /// `base_type` in SQL.
    pub base_type_name: String,
    pub is_virtual: bool,
}

/// A trigger that is there.
#[derive(Clone, Debug)]
pub struct Trigger {
    pub name: String,
    /// Its function.
    pub function: Oid,
    pub arguments: Vec<String>,
    pub per_row: bool,
    pub is_clone: bool,
    /// `O`, `R`, `A` or `D`, as in `pg_trigger`.
    pub enabled: u8,
}

/// A relation that is open; closed when dropped, with the lock kept.
pub struct Source {
    relation: pg_sys::Relation,
}

impl Source {
    pub fn open(source: Oid, lock: Lock) -> Self {
        // SAFETY: an ERROR when it does not exist; closed by `drop`.
        Self { relation: unsafe { pg_sys::relation_open(source, lock.mode()) } }
    }

    pub fn kind(&self) -> Kind {
        // SAFETY: the relation is open.
        match u32::try_from(unsafe { (*(*self.relation).rd_rel).relkind }).unwrap_or(0) {
            kind if kind == u32::from(pg_sys::RELKIND_RELATION) => Kind::Table,
            kind if kind == u32::from(pg_sys::RELKIND_PARTITIONED_TABLE) => Kind::Partitioned,
            _ => Kind::Other,
        }
    }

    /// Whether a crash or the end of the session empties it.
    pub fn is_permanent(&self) -> bool {
        // SAFETY: the relation is open.
        let persistence = unsafe { (*(*self.relation).rd_rel).relpersistence };
        u8::try_from(persistence) == Ok(pg_sys::RELPERSISTENCE_PERMANENT)
    }

    /// Whether the write-ahead log has the old row of an update or a deletion as a whole.
    pub fn logs_whole_rows(&self) -> bool {
        // SAFETY: the relation is open.
        unsafe {
            let identity = (*(*self.relation).rd_rel).relreplident;
            identity.cast_unsigned() == pg_sys::REPLICA_IDENTITY_FULL
        }
    }

    pub fn is_partition(&self) -> bool {
        // SAFETY: the relation is open.
        unsafe { (*(*self.relation).rd_rel).relispartition }
    }

    /// `schema.name`, quoted.
    pub fn sql_name(&self) -> String {
        // SAFETY: the relation is open.
        sql_name(unsafe { (*self.relation).rd_id }).expect("it is open")
    }

    /// The columns that were not dropped.
    pub fn columns(&self) -> Vec<Column> {
        // SAFETY: the relation is open and has as many attributes as it says.
        unsafe {
            let descriptor = (*self.relation).rd_att;
            (0..usize::try_from((*descriptor).natts).expect("a count"))
                .map(|index| &*tuple::attribute(descriptor, index))
                .filter(|it| !it.attisdropped)
                .map(|it| {
                    let base_type = pg_sys::getBaseType(it.atttypid);
                    let name = CStr::from_ptr(it.attname.data.as_ptr());
                    let name = name.to_string_lossy().into_owned();
                    Column {
                        number: it.attnum,
                        stored: StoreColumn {
                            name: name.clone(),
                            ty: it.atttypid,
                            typmod: it.atttypmod,
                            collation: it.attcollation,
                        },
                        name,
                        base_type,
                        base_type_name: type_name(base_type),
                        is_virtual: u8::try_from(it.attgenerated)
                            == Ok(pg_sys::ATTRIBUTE_GENERATED_VIRTUAL),
                    }
                })
                .collect()
        }
    }

    /// How a column is stored, and the type below its domains. The name stays empty.
    pub fn stored(&self, number: i16) -> (StoreColumn, Oid) {
        // SAFETY: the relation is open; the index is checked.
        unsafe {
            let index = usize::try_from(number - 1).expect("a column of the user");
            let it = &*tuple::attribute((*self.relation).rd_att, index);
            assert!(!it.attisdropped, "a query reads only columns that exist");
            let stored = StoreColumn {
                name: String::new(),
                ty: it.atttypid,
                typmod: it.atttypmod,
                collation: it.attcollation,
            };
            (stored, pg_sys::getBaseType(it.atttypid))
        }
    }

    pub fn triggers(&self) -> Vec<Trigger> {
        // SAFETY: the relation is open; its trigger description is NULL or complete.
        unsafe {
            let description = (*self.relation).trigdesc;
            if description.is_null() {
                return Vec::new();
            }
            let count = usize::try_from((*description).numtriggers).expect("a count");
            std::slice::from_raw_parts((*description).triggers, count)
                .iter()
                .map(|it| Trigger {
                    name: CStr::from_ptr(it.tgname).to_string_lossy().into_owned(),
                    function: it.tgfoid,
                    arguments: (0..usize::try_from(it.tgnargs).unwrap_or(0))
                        .map(|at| text(*it.tgargs.add(at)))
                        .collect(),
                    per_row: it.tgtype.cast_unsigned() & pg_sys::TRIGGER_TYPE_ROW as u16 != 0,
                    is_clone: it.tgisclone,
                    enabled: it.tgenabled.cast_unsigned(),
                })
                .collect()
        }
    }

    /// Sets when a trigger fires: `R` for replication, `A` for always. Partitions follow.
    pub fn set_trigger(&self, name: &str, enabled: u8) {
        let name = CString::new(name).expect("a name has no NUL");
        // SAFETY: the relation is open with a lock that keeps writers out.
        unsafe {
            pg_sys::EnableDisableTrigger(
                self.relation,
                name.as_ptr(),
                Oid::INVALID,
                enabled.cast_signed(),
                false,
                true,
                Lock::ShareRowExclusive.mode(),
            );
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: opened by `open`.
            unsafe { pg_sys::relation_close(self.relation, pg_sys::NoLock as i32) };
        }
    }
}

unsafe extern "C-unwind" {
    fn find_all_inheritors(
        parent: Oid,
        lock: pg_sys::LOCKMODE,
        parents: *mut *mut pg_sys::List,
    ) -> *mut pg_sys::List;
    fn find_inheritance_children_extended(
        parent: Oid,
        omit_detached: bool,
        lock: pg_sys::LOCKMODE,
        detached_exist: *mut bool,
        detached_xmin: *mut pg_sys::TransactionId,
    ) -> *mut pg_sys::List;
    fn has_superclass(relation: Oid) -> bool;
}

/// The relation itself and those that it inherits from, directly or not.
pub fn with_ancestors(relation: Oid) -> Vec<Oid> {
    let mut found = vec![relation];
    if has_parent(relation) {
        found.clear();
        super::spi::ask(
            "WITH RECURSIVE tree(relid) AS (
                 SELECT $1
                 UNION
                 SELECT i.inhparent FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhrelid = t.relid)
             SELECT relid FROM tree",
            &[relation.into()],
            |row| found.extend(row.get::<Oid>(0)),
        );
    }
    found
}

/// A function of the schema `pgstream` with arguments of these types.
pub fn own_function(name: &CStr, arguments: &[Oid]) -> Oid {
    // SAFETY: syscache look-ups of constant names, in memory that the lists are copied to.
    unsafe {
        let schema = pg_sys::makeString(c"pgstream".as_ptr().cast_mut());
        let name = pg_sys::makeString(name.as_ptr().cast_mut());
        let list = pg_sys::list_make2_impl(
            pg_sys::NodeTag::T_List,
            pg_sys::ListCell { ptr_value: schema.cast() },
            pg_sys::ListCell { ptr_value: name.cast() },
        );
        pg_sys::LookupFuncName(list, arguments.len() as i32, arguments.as_ptr(), true)
    }
}

/// The relation itself and all that inherit from it, partitions too, locked. Without temporary tables,
/// whose rows belong to it in queries of one session only.
pub fn members(source: Oid, lock: Lock) -> Vec<Oid> {
    // SAFETY: the function has this signature in PostgreSQL 18; its errors are caught at the
    // boundary, over which nothing is owned. The list is one of OIDs.
    unsafe {
        let list = pg_sys::ffi::pg_guard_ffi_boundary(|| {
            find_all_inheritors(source, lock.mode(), std::ptr::null_mut())
        });
        let mut members = oids(list);
        members.retain(|it| *it == source || !table::is_temporary(*it));
        members
    }
}

/// Whether tables inherit from the relation, temporary ones of any session too: a statement on it can
/// change their rows.
pub fn has_children(source: Oid) -> bool {
    !children(source, true).is_empty()
}

fn children(parent: Oid, omit_detached: bool) -> Vec<Oid> {
    // SAFETY: as in `members`. The pointers may be NULL.
    unsafe {
        oids(pg_sys::ffi::pg_guard_ffi_boundary(|| {
            find_inheritance_children_extended(
                parent,
                omit_detached,
                Lock::None.mode(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            )
        }))
    }
}

/// The partitions of `members` that are being detached concurrently: who does not see that yet still
/// writes to them as to parts of the table.
pub fn leaving(members: &[Oid]) -> Vec<Oid> {
    let all = members.iter().flat_map(|it| children(*it, false));
    let here: std::collections::HashSet<Oid> = members.iter().copied().collect();
    all.filter(|it| !here.contains(it)).collect()
}

/// # Safety
///
/// `list` must be empty or one of OIDs.
unsafe fn oids(list: *const pg_sys::List) -> Vec<Oid> {
    // SAFETY: as promised. The empty list is NULL.
    unsafe {
        let Some(list) = list.as_ref() else { return Vec::new() };
        let count = usize::try_from(list.length).expect("a count");
        (0..count).map(|it| (*list.elements.add(it)).oid_value).collect()
    }
}

/// Whether the relation inherits from another one.
pub fn has_parent(relation: Oid) -> bool {
    // SAFETY: as in `members`.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| has_superclass(relation)) }
}

pub fn schema_exists(name: &str) -> bool {
    let name = CString::new(name).expect("a name has no NUL");
    // SAFETY: a syscache look-up.
    unsafe { pg_sys::get_namespace_oid(name.as_ptr(), true) != Oid::INVALID }
}

/// `schema.name`, quoted, of a relation that exists.
pub fn sql_name(relation: Oid) -> Option<String> {
    // SAFETY: the functions return NULL or palloc'd strings.
    unsafe {
        let name = pg_sys::get_rel_name(relation);
        if name.is_null() {
            return None;
        }
        let schema = pg_sys::get_namespace_name(pg_sys::get_rel_namespace(relation));
        let name = pg_sys::quote_qualified_identifier(schema, name);
        Some(CStr::from_ptr(name).to_string_lossy().into_owned())
    }
}

/// The name of a type in SQL, right under any search path and without a length.
fn type_name(ty: Oid) -> String {
    // SAFETY: returns a palloc'd string.
    unsafe {
        let flags = pg_sys::FORMAT_TYPE_TYPEMOD_GIVEN | pg_sys::FORMAT_TYPE_FORCE_QUALIFY;
        let name = pg_sys::format_type_extended(ty, -1, flags as pg_sys::bits16);
        CStr::from_ptr(name).to_string_lossy().into_owned()
    }
}

/// A quoted SQL identifier.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Makes what this transaction did to the catalog visible to itself.
pub fn command_done() {
    // SAFETY: between two commands of our own.
    unsafe { pg_sys::CommandCounterIncrement() };
}
