//! What lowering asks of the catalog about one relation.

use std::ffi::CStr;

use pgrx::pg_sys;

use super::deparse::quote;
use super::lock::Lock;
use super::node::text;
use super::source;
use super::types::{self, Oid};

/// A column of a table.
#[derive(Clone, Debug)]
pub struct Attribute {
    pub number: i16,
    pub name: String,
    pub ty: Oid,
    pub typmod: i32,
    pub collation: Oid,
    /// Known not to hold a NULL in any row.
    pub not_null: bool,
    /// Generated when read.
    pub is_virtual: bool,
}

/// A table, as far as reading it is concerned.
#[derive(Clone, Debug)]
pub struct Table {
    /// Qualified and quoted.
    pub sql: String,
    /// The columns that exist.
    pub columns: Vec<Attribute>,
    /// Attribute numbers of a key: unique, with NULLs counting as equal.
    pub key: Option<Vec<i16>>,
    pub is_temporary: bool,
    pub is_partitioned: bool,
    /// Whether rows of other tables count as its own.
    pub has_children: bool,
    /// Whether the table or one below it is emptied by a crash.
    pub is_unlogged: bool,
    /// Whether a foreign table is below it.
    pub has_foreign_child: bool,
    /// Whether it is a stream table, with columns that are not part of its content.
    pub is_stream_table: bool,
}

/// An open relation.
struct Open(pg_sys::Relation);

impl Open {
    fn new(oid: Oid) -> Self {
        // SAFETY: an error is raised if there is no such relation.
        Self(unsafe { pg_sys::relation_open(oid, pg_sys::AccessShareLock as pg_sys::LOCKMODE) })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // SAFETY: it was opened by `new`; the lock stays until the transaction ends.
        unsafe { pg_sys::relation_close(self.0, pg_sys::NoLock as pg_sys::LOCKMODE) };
    }
}

/// Looks at a table, partitioned table or similar; locks it ACCESS SHARE.
pub fn look(oid: Oid) -> Table {
    let relation = Open::new(oid);
    // SAFETY: the relation is open, and everything is copied out of its cache entry.
    unsafe {
        let form = &*(*relation.0).rd_rel;
        let is_partitioned = form.relkind as u8 == pg_sys::RELKIND_PARTITIONED_TABLE;
        let columns = columns(relation.0);
        let members =
            if form.relhassubclass { source::members(oid, Lock::None) } else { vec![oid] };
        Table {
            sql: qualified(
                form.relnamespace,
                &text(form.relname.data.as_ptr()).unwrap_or_default(),
            ),
            key: key(relation.0, &columns),
            columns,
            is_partitioned,
            is_stream_table: has_guard(relation.0),
            is_temporary: form.relpersistence as u8 == pg_sys::RELPERSISTENCE_TEMP,
            has_children: members.len() > 1,
            is_unlogged: members.iter().any(|it| {
                pg_sys::get_rel_persistence(*it) as u8 == pg_sys::RELPERSISTENCE_UNLOGGED
            }),
            has_foreign_child: members
                .iter()
                .any(|it| pg_sys::get_rel_relkind(*it) as u8 == pg_sys::RELKIND_FOREIGN_TABLE),
        }
    }
}

/// The trigger that every stream table has, which lets a refresh pass.
pub(super) const GUARD: &CStr = c"pg_stream_guard";

/// Whether a relation is a stream table, with columns that `*` does not mean.
pub fn is_stream_table(oid: Oid) -> bool {
    // SAFETY: a look-up by OID.
    let kind = unsafe { pg_sys::get_rel_relkind(oid) } as u8;
    if kind != pg_sys::RELKIND_RELATION {
        return false;
    }
    let relation = Open::new(oid);
    // SAFETY: the relation is open.
    unsafe { has_guard(relation.0) }
}

/// # Safety
/// The relation must be open.
unsafe fn has_guard(relation: pg_sys::Relation) -> bool {
    // SAFETY: the description of triggers is NULL or complete.
    unsafe {
        let Some(triggers) = (*relation).trigdesc.as_ref() else { return false };
        let count = triggers.numtriggers as usize;
        std::slice::from_raw_parts(triggers.triggers, count)
            .iter()
            .any(|it| CStr::from_ptr(it.tgname) == GUARD)
    }
}

/// A relation's name, qualified and quoted; empty if there is no such relation.
pub fn name(oid: Oid) -> String {
    // SAFETY: look-ups by OID give null or a string.
    unsafe {
        match text(pg_sys::get_rel_name(oid)) {
            Some(name) => qualified(pg_sys::get_rel_namespace(oid), &name),
            None => String::new(),
        }
    }
}

/// The name of a column; `None` if there is no such column.
pub fn column_name(oid: Oid, number: i16) -> Option<String> {
    // SAFETY: a look-up by OID gives null or a string.
    unsafe { text(pg_sys::get_attname(oid, number, true)) }
}

/// The name of a system column that VACUUM FULL, say, can change; `None` for the others, and for a column of
/// the user.
pub fn unstable_column(number: i16) -> Option<&'static str> {
    match i32::from(number) {
        pg_sys::SelfItemPointerAttributeNumber => Some("ctid"),
        pg_sys::MinTransactionIdAttributeNumber => Some("xmin"),
        pg_sys::MinCommandIdAttributeNumber => Some("cmin"),
        pg_sys::MaxTransactionIdAttributeNumber => Some("xmax"),
        pg_sys::MaxCommandIdAttributeNumber => Some("cmax"),
        _ => None,
    }
}

/// Whether a relation is a temporary one.
pub fn is_temporary(oid: Oid) -> bool {
    // SAFETY: a look-up by OID.
    unsafe { pg_sys::get_rel_persistence(oid) as u8 == pg_sys::RELPERSISTENCE_TEMP }
}

/// Whether a relation is a temporary one of this session.
pub fn is_own_temporary(oid: Oid) -> bool {
    // SAFETY: look-ups by OID.
    is_temporary(oid) && unsafe { pg_sys::isTempNamespace(pg_sys::get_rel_namespace(oid)) }
}

fn qualified(namespace: Oid, name: &str) -> String {
    // SAFETY: a look-up by OID gives null or a string.
    let schema = unsafe { text(pg_sys::get_namespace_name_or_temp(namespace)) };
    format!("{}.{}", quote(&schema.unwrap_or_default()), quote(name))
}

/// # Safety
/// The relation must be open.
unsafe fn columns(relation: pg_sys::Relation) -> Vec<Attribute> {
    // SAFETY: the descriptor has `natts` attributes in compact form, and behind them as many in full.
    unsafe {
        let descriptor = (*relation).rd_att;
        let count = (*descriptor).natts as usize;
        let compact = (*descriptor).compact_attrs.as_ptr();
        let full = compact.add(count).cast::<pg_sys::FormData_pg_attribute>();
        (0..count)
            .filter_map(|index| {
                let (attribute, compact) = (&*full.add(index), &*compact.add(index));
                (!attribute.attisdropped).then(|| Attribute {
                    number: attribute.attnum,
                    name: text(attribute.attname.data.as_ptr()).unwrap_or_default(),
                    ty: attribute.atttypid,
                    typmod: attribute.atttypmod,
                    collation: attribute.attcollation,
                    not_null: compact.attnullability as u8 == pg_sys::ATTNULLABLE_VALID,
                    is_virtual: attribute.attgenerated as u8 == b'v',
                })
            })
            .collect()
    }
}

/// The numbers of its virtual generated columns.
pub fn virtual_columns(oid: Oid) -> Vec<i16> {
    let relation = Open::new(oid);
    // SAFETY: the relation is open; its descriptor's constraints are null or valid.
    let columns = unsafe {
        match (*(*relation.0).rd_att).constr.as_ref() {
            Some(it) if it.has_generated_virtual => columns(relation.0),
            _ => Vec::new(),
        }
    };
    columns.iter().filter(|it| it.is_virtual).map(|it| it.number).collect()
}

/// The primary key, or else the narrowest unique index that is a key for sure.
///
/// # Safety
/// The relation must be open.
unsafe fn key(relation: pg_sys::Relation, columns: &[Attribute]) -> Option<Vec<i16>> {
    // SAFETY: the list holds OIDs of indexes that are locked through their table.
    unsafe {
        let list = pg_sys::RelationGetIndexList(relation);
        let length = if list.is_null() { 0 } else { (*list).length as usize };
        (0..length)
            .filter_map(|index| index_key((*(*list).elements.add(index)).oid_value, columns))
            .min_by_key(|(is_primary, key)| (!is_primary, key.len()))
            .map(|(_, key)| key)
    }
}

/// # Safety
/// The OID must be that of an index.
unsafe fn index_key(index: Oid, columns: &[Attribute]) -> Option<(bool, Vec<i16>)> {
    let index = Open::new(index);
    // SAFETY: the index is open; the arrays of its entry have one element for each key column.
    unsafe {
        let entry = &*index.0;
        let form = &*entry.rd_index;
        let is_usable = form.indisunique
            && form.indimmediate
            && form.indisvalid
            && form.indislive
            && !form.indisexclusion
            && pg_sys::RelationGetIndexPredicate(index.0).is_null();
        if !is_usable {
            return None;
        }
        let attributes =
            std::slice::from_raw_parts(form.indkey.values.as_ptr(), form.indnkeyatts as usize);
        for (position, attribute) in attributes.iter().enumerate() {
            // An expression has attribute 0 and is not found.
            let column = columns.iter().find(|it| it.number == *attribute)?;
            let operator = pg_sys::get_opfamily_member(
                *entry.rd_opfamily.add(position),
                *entry.rd_opcintype.add(position),
                *entry.rd_opcintype.add(position),
                pg_sys::BTEqualStrategyNumber as i16,
            );
            let is_plain = Some(operator) == types::equality(column.ty)
                && *entry.rd_indcollation.add(position) == column.collation;
            if !is_plain || !(column.not_null || form.indnullsnotdistinct) {
                return None;
            }
        }
        Some((form.indisprimary, attributes.to_vec()))
    }
}
