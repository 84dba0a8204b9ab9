//! Relations: names, columns, locks, and being told when they change.

use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    ffi::{CStr, CString},
};

use pgrx::pg_sys::{self, Oid};
use pgstream_core::name::QualifiedName;
use xxhash_rust::xxh3::xxh3_64;

use super::{event::Class, security::LocalSettings};

/// Schema and name.
pub fn name(relation: Oid) -> (String, String) {
    // SAFETY: both functions return NULL or a palloc'd string.
    unsafe {
        let schema = pg_sys::get_namespace_name(pg_sys::get_rel_namespace(relation));
        (text(schema), text(pg_sys::get_rel_name(relation)))
    }
}

/// `schema.name` for messages; the number when it is gone.
pub fn display_name(relation: Oid) -> String {
    let (schema, name) = name(relation);
    if name.is_empty() { relation.to_u32().to_string() } else { format!("{schema}.{name}") }
}

/// The relation of this name.
pub fn find(schema: &str, name: &str) -> Option<Oid> {
    let (schema, name) = (CString::new(schema).ok()?, CString::new(name).ok()?);
    // SAFETY: syscache look-ups by names.
    let found = unsafe {
        let schema = pg_sys::get_namespace_oid(schema.as_ptr(), true);
        pg_sys::get_relname_relid(name.as_ptr(), schema)
    };
    (found != Oid::INVALID).then_some(found)
}

/// `r` for a table, `v` for a view and so on, as in `pg_class`.
pub fn kind(relation: Oid) -> Option<char> {
    // SAFETY: a syscache look-up.
    let kind = unsafe { pg_sys::get_rel_relkind(relation) }.cast_unsigned();
    (kind != 0).then(|| char::from(kind))
}

/// Whether it is a partition; a child in a tree of inheritance is none.
pub fn is_partition(relation: Oid) -> bool {
    // SAFETY: a syscache look-up.
    unsafe { pg_sys::get_rel_relispartition(relation) }
}

pub fn exists(relation: Oid) -> bool {
    // SAFETY: a syscache look-up.
    unsafe { pg_sys::get_rel_relkind(relation) != 0 }
}

pub fn owner(relation: Oid) -> Oid {
    // SAFETY: the relation is locked by the refresh; it is closed with the lock kept.
    unsafe {
        let opened = pg_sys::relation_open(relation, pg_sys::AccessShareLock as i32);
        let owner = (*(*opened).rd_rel).relowner;
        pg_sys::relation_close(opened, pg_sys::NoLock as i32);
        owner
    }
}

/// Makes `relation` go when `owner` goes, as an index goes with its table.
pub fn belongs_to(relation: Oid, owner: Oid) {
    let mut is_known = false;
    super::spi::ask(
        "SELECT FROM pg_catalog.pg_depend \
         WHERE classid = 'pg_catalog.pg_class'::regclass AND objid = $1 AND deptype = 'a' \
         AND refclassid = 'pg_catalog.pg_class'::regclass AND refobjid = $2",
        &[relation.into(), owner.into()],
        |_| is_known = true,
    );
    if is_known {
        return;
    }
    let address = |object| pg_sys::ObjectAddress {
        classId: pg_sys::RelationRelationId,
        objectId: object,
        objectSubId: 0,
    };
    let (depender, referenced) = (address(relation), address(owner));
    let kind = pg_sys::DependencyType::DEPENDENCY_AUTO;
    // SAFETY: both relations exist, and the addresses outlive the call.
    unsafe { pg_sys::recordDependencyOn(&raw const depender, &raw const referenced, kind) };
}

/// Has the query of a view hold on to a column, as to one that it names.
pub fn hold_column(view: Oid, table: Oid, column: i16) {
    let mut rule = None;
    super::spi::ask(
        "SELECT w.oid FROM pg_catalog.pg_rewrite AS w WHERE w.ev_class = $1 AND NOT EXISTS \
         (SELECT FROM pg_catalog.pg_depend WHERE objid = w.oid AND refobjid = $2 AND refobjsubid = $3 \
          AND classid = 'pg_catalog.pg_rewrite'::regclass AND refclassid = 'pg_catalog.pg_class'::regclass)",
        &[view.into(), table.into(), i32::from(column).into()],
        |row| rule = row.get::<Oid>(0),
    );
    let Some(rule) = rule else { return };
    let address = |class: Class, object, part| pg_sys::ObjectAddress {
        classId: class.oid(),
        objectId: object,
        objectSubId: part,
    };
    let depender = address(Class::Rule, rule, 0);
    let referenced = address(Class::Relation, table, column.into());
    let kind = pg_sys::DependencyType::DEPENDENCY_NORMAL;
    // SAFETY: the rule and the column exist, and the addresses outlive the call.
    unsafe { pg_sys::recordDependencyOn(&raw const depender, &raw const referenced, kind) };
}

/// Has a view hold on to a text search configuration, and to no other, or to none.
pub fn hold_text_search(view: Oid, config: Option<Oid>) {
    let address =
        |class, object| pg_sys::ObjectAddress { classId: class, objectId: object, objectSubId: 0 };
    let depender = address(pg_sys::RelationRelationId, view);
    let kind = pg_sys::DependencyType::DEPENDENCY_NORMAL;
    // SAFETY: the objects exist, and the addresses outlive the calls.
    unsafe {
        let (class, configs) =
            (pg_sys::RelationRelationId, super::types::TEXT_SEARCH_CONFIGURATIONS);
        pg_sys::deleteDependencyRecordsForClass(class, view, configs, kind as i8 as _);
        if let Some(config) = config {
            let referenced = address(configs, config);
            pg_sys::recordDependencyOn(&raw const depender, &raw const referenced, kind);
        }
    }
}

/// The text search configuration that a view holds on to by [`hold_text_search`].
pub fn held_text_search(view: Oid) -> Option<Oid> {
    let mut config = None;
    super::spi::ask(
        "SELECT refobjid FROM pg_catalog.pg_depend \
         WHERE classid = 'pg_catalog.pg_class'::regclass AND objid = $1 \
         AND refclassid = 'pg_catalog.pg_ts_config'::regclass",
        &[view.into()],
        |row| config = row.get(0),
    );
    config
}

/// The OID of a type by its qualified SQL name.
pub fn type_named(name: &str) -> Oid {
    let name = CString::new(name).expect("a type name has no NUL");
    let (mut ty, mut typmod) = (Oid::INVALID, 0);
    // SAFETY: the pointers are to live locals; an unknown name is an ERROR.
    unsafe {
        pg_sys::parseTypeString(name.as_ptr(), &raw mut ty, &raw mut typmod, std::ptr::null_mut());
    }
    ty
}

/// Names of the columns, without dropped ones.
pub fn column_names(relation: Oid) -> Vec<String> {
    let mut names = Vec::new();
    super::spi::ask(
        "SELECT attname::text FROM pg_catalog.pg_attribute \
         WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        &[relation.into()],
        |row| names.extend(row.get::<String>(0)),
    );
    names
}

/// The tables that a view reads, through views.
pub fn tables_below(view: Oid) -> Vec<Oid> {
    let mut tables = Vec::new();
    super::spi::ask(
        "WITH RECURSIVE reads(relid) AS (
             SELECT $1
             UNION
             SELECT d.refobjid
             FROM reads r
             JOIN pg_catalog.pg_rewrite w ON w.ev_class = r.relid
             JOIN pg_catalog.pg_depend d
               ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = w.oid
              AND d.refclassid = 'pg_catalog.pg_class'::regclass)
         SELECT c.oid FROM reads r JOIN pg_catalog.pg_class c ON c.oid = r.relid
         WHERE c.relkind NOT IN ('v', 'S')",
        &[view.into()],
        |row| tables.extend(row.get::<Oid>(0)),
    );
    tables
}

/// Takes ACCESS SHARE until the end of the transaction. A relation that is gone stays unlocked.
pub fn lock_for_reading(relation: Oid) {
    // SAFETY: taking a lock by OID; invalidations are processed on the way.
    unsafe { pg_sys::LockRelationOid(relation, pg_sys::AccessShareLock as i32) };
}

/// While it lives, what is created without naming a tablespace lies where the relation does, whatever the
/// session's default is. Who was allowed to put the relation there may.
pub fn lie_beside(relation: Oid) -> LocalSettings {
    // SAFETY: look-ups in the syscache; 0 stands for the tablespace of the database.
    let name = unsafe {
        match pg_sys::get_rel_tablespace(relation) {
            pg_sys::InvalidOid => CString::default(),
            tablespace => CStr::from_ptr(pg_sys::get_tablespace_name(tablespace)).to_owned(),
        }
    };
    LocalSettings::new(&[(c"default_tablespace".to_owned(), name)])
}

/// Whether a unique index or an exclusion constraint restricts the rows of the relation.
pub fn has_unique_indexes(relation: Oid) -> bool {
    super::spi::ask_one::<bool>(
        "SELECT bool_or(indisunique OR indisexclusion) FROM pg_catalog.pg_index WHERE indrelid = $1",
        &[relation.into()],
    ) == Some(true)
}

/// Makes this transaction the only one that refreshes, alters or drops the stream table. Waits.
pub fn lock_stream_table(pgs_id: i64) {
    let lock = pg_sys::ExclusiveLock as i32;
    // SAFETY: an object lock on our catalog table's row, which PostgreSQL shows as such.
    unsafe { pg_sys::LockDatabaseObject(catalog_table(), row_object(pgs_id), 0, lock) };
}

/// Gives back the lock of [`lock_stream_table`].
pub fn unlock_stream_table(pgs_id: i64) {
    let lock = pg_sys::ExclusiveLock as i32;
    // SAFETY: the caller holds the lock; if not, PostgreSQL warns.
    unsafe { pg_sys::UnlockDatabaseObject(catalog_table(), row_object(pgs_id), 0, lock) };
}

/// As [`lock_stream_table`], if that is possible without waiting.
pub fn try_lock_stream_table(pgs_id: i64) -> bool {
    let lock = pg_sys::ExclusiveLock as i32;
    // SAFETY: as in `lock_stream_table`.
    unsafe { pg_sys::ConditionalLockDatabaseObject(catalog_table(), row_object(pgs_id), 0, lock) }
}

/// Makes this transaction the only one that restores a stream table of this name. Waits.
pub fn lock_name(name: &QualifiedName) {
    let hash = xxh3_64(name.to_string().as_bytes());
    // SAFETY: an object lock beside those on the rows of our catalog table.
    unsafe {
        pg_sys::LockDatabaseObject(catalog_table(), number(hash), 1, pg_sys::ExclusiveLock as i32);
    };
}

fn row_object(pgs_id: i64) -> Oid {
    number(pgs_id.cast_unsigned())
}

/// Some number of 32 bits.
fn number(of: u64) -> Oid {
    Oid::from(u32::try_from(of & 0xffff_ffff).expect("masked"))
}

/// Keeps the changes of `source` from being cleaned up until the end of the transaction: a stream
/// table that nobody sees yet is going to need them.
pub fn keep_changes(source: Oid) {
    // SAFETY: an object lock that stands for the source's change buffer.
    unsafe { pg_sys::LockDatabaseObject(tracking_table(), source, 0, pg_sys::ShareLock as i32) };
}

/// Runs `work` unless somebody wants the changes of `source` kept. Never waits. Others may clean up at
/// the same time: whoever was refreshed last must not be kept from it by somebody who sees less.
pub fn unless_kept(source: Oid, work: impl FnOnce()) {
    let lock = pg_sys::RowExclusiveLock as i32;
    // SAFETY: as in `keep_changes`; given back at once, or by abort after an error.
    unsafe {
        if pg_sys::ConditionalLockDatabaseObject(tracking_table(), source, 0, lock) {
            work();
            pg_sys::UnlockDatabaseObject(tracking_table(), source, 0, lock);
        }
    }
}

/// Keeps others from wanting the changes of `source` kept until the end of the transaction, unless
/// somebody does. Never waits.
pub fn try_hold_changes(source: Oid) -> bool {
    let lock = pg_sys::ExclusiveLock as i32;
    // SAFETY: as in `keep_changes`.
    unsafe { pg_sys::ConditionalLockDatabaseObject(tracking_table(), source, 0, lock) }
}

fn catalog_table() -> Oid {
    own(c"pgs_stream_tables")
}

fn tracking_table() -> Oid {
    own(c"pgs_change_tracking")
}

/// A relation of the schema `pgstream`.
pub fn own(name: &CStr) -> Oid {
    // SAFETY: syscache look-ups of constant names.
    unsafe {
        let schema = pg_sys::get_namespace_oid(c"pgstream".as_ptr(), false);
        pg_sys::get_relname_relid(name.as_ptr(), schema)
    }
}

/// Whether a statement that changes the relation is still running in this session.
pub fn has_pending_triggers(relation: Oid) -> bool {
    super::lock::is_being_changed(relation)
}

/// How many pages the relation fills.
pub fn pages(relation: Oid) -> u32 {
    // SAFETY: the relation is locked by the refresh; it is closed with the lock kept.
    unsafe {
        let opened = pg_sys::relation_open(relation, pg_sys::AccessShareLock as i32);
        let pages =
            pg_sys::RelationGetNumberOfBlocksInFork(opened, pg_sys::ForkNumber::MAIN_FORKNUM);
        pg_sys::relation_close(opened, pg_sys::NoLock as i32);
        pages
    }
}

/// How many rows the relation has, as the planner estimates it; partitions and children not counted.
pub fn estimated_rows(relation: Oid) -> f64 {
    let (mut pages, mut rows, mut visible) = (0, 0.0, 0.0);
    // SAFETY: the relation is locked by the refresh; it is closed with the lock kept. Widths of
    // columns may be unknown.
    unsafe {
        let opened = pg_sys::relation_open(relation, pg_sys::AccessShareLock as i32);
        let kind = (*(*opened).rd_rel).relkind as u8;
        if matches!(kind, pg_sys::RELKIND_RELATION | pg_sys::RELKIND_MATVIEW) {
            pg_sys::estimate_rel_size(
                opened,
                std::ptr::null_mut(),
                &raw mut pages,
                &raw mut rows,
                &raw mut visible,
            );
        }
        pg_sys::relation_close(opened, pg_sys::NoLock as i32);
    }
    rows
}

/// How many rows have the same value in a column, on average, as far as ANALYZE has found out.
pub fn rows_per_value(relation: Oid, attribute: i16) -> Option<f64> {
    // SAFETY: the relation is locked by the refresh, and closed with the lock kept; the cache entry is
    // released after its last use.
    unsafe {
        let statistics = pg_sys::SearchSysCache3(
            pg_sys::SysCacheIdentifier::STATRELATTINH as i32,
            relation.into(),
            attribute.into(),
            false.into(),
        );
        if statistics.is_null() {
            return None;
        }
        let row = pg_sys::GETSTRUCT(statistics).cast::<pg_sys::FormData_pg_statistic>();
        let distinct = f64::from((*row).stadistinct);
        pg_sys::ReleaseSysCache(statistics);
        let opened = pg_sys::relation_open(relation, pg_sys::AccessShareLock as i32);
        let rows = f64::from((*(*opened).rd_rel).reltuples);
        pg_sys::relation_close(opened, pg_sys::NoLock as i32);
        // A negative one is a multiple of the number of rows; 0 is not known.
        match distinct {
            ..0.0 => Some(-1.0 / distinct),
            0.0 => None,
            _ => Some(rows / distinct),
        }
    }
}

/// The relations and all their partitions and children.
pub fn with_descendants(relations: &[Oid]) -> Vec<Oid> {
    let mut all = Vec::new();
    super::spi::ask(
        "WITH RECURSIVE tree(relid) AS (
             SELECT unnest($1)
             UNION
             SELECT i.inhrelid FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.relid)
         SELECT relid FROM tree",
        &[relations.to_vec().into()],
        |row| all.extend(row.get::<Oid>(0)),
    );
    all
}

/// Whether the relation has row triggers of users that can change or skip rows.
pub fn has_before_row_triggers(relation: Oid) -> bool {
    // SAFETY: the relation is locked by the refresh; it is closed with the lock kept.
    unsafe {
        let opened = pg_sys::relation_open(relation, pg_sys::AccessShareLock as i32);
        let triggers = (*opened).trigdesc;
        let has = !triggers.is_null()
            && ((*triggers).trig_insert_before_row
                || (*triggers).trig_update_before_row
                || (*triggers).trig_delete_before_row);
        pg_sys::relation_close(opened, pg_sys::NoLock as i32);
        has
    }
}

/// Whether users have put triggers on the relation.
pub fn has_user_triggers(relation: Oid) -> bool {
    // SAFETY: the relation is locked by the refresh; it is closed with the lock kept.
    unsafe {
        let opened = pg_sys::relation_open(relation, pg_sys::AccessShareLock as i32);
        let triggers = (*opened).trigdesc;
        let count = if triggers.is_null() { 0 } else { (*triggers).numtriggers };
        let has = (0..usize::try_from(count).unwrap_or(0)).any(|index| {
            let trigger = (*triggers).triggers.add(index);
            !(*trigger).tgisinternal && CStr::from_ptr((*trigger).tgname) != super::table::GUARD
        });
        pg_sys::relation_close(opened, pg_sys::NoLock as i32);
        has
    }
}

thread_local! {
    static WATCHED: RefCell<HashSet<Oid>> = RefCell::default();
    static INVALID: RefCell<HashSet<Oid>> = RefCell::default();
    static ALL_INVALID: Cell<bool> = const { Cell::new(false) };
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
    static WATCHES_ALL: Cell<bool> = const { Cell::new(false) };
}

/// Notes from now on when one of these relations changes.
pub fn watch(relations: &[Oid]) {
    register();
    WATCHED.with_borrow_mut(|watched| watched.extend(relations));
}

/// Runs `work`, which finds out what to [`watch`], and notes whatever changes meanwhile.
pub fn watching_all<T>(work: impl FnOnce() -> T) -> T {
    struct Watching;
    impl Drop for Watching {
        fn drop(&mut self) {
            WATCHES_ALL.set(false);
        }
    }
    register();
    WATCHES_ALL.set(true);
    let _watching = Watching;
    work()
}

fn register() {
    if !REGISTERED.replace(true) {
        // SAFETY: registered once in this backend; the callback only notes the OID.
        unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(note), pg_sys::Datum::from(0)) };
    }
}

/// Whether any watched relation changed since the last [`forget_invalidations`].
pub fn take_invalidations() -> bool {
    ALL_INVALID.get() || INVALID.with_borrow(|invalid| !invalid.is_empty())
}

pub fn was_invalidated(relations: &[Oid]) -> bool {
    ALL_INVALID.get()
        || INVALID.with_borrow(|invalid| relations.iter().any(|it| invalid.contains(it)))
}

pub fn forget_invalidations() {
    ALL_INVALID.set(false);
    INVALID.with_borrow_mut(HashSet::clear);
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn note(_argument: pg_sys::Datum, relation: Oid) {
    if relation == Oid::INVALID {
        ALL_INVALID.set(true);
    } else if WATCHES_ALL.get() || WATCHED.with_borrow(|watched| watched.contains(&relation)) {
        INVALID.with_borrow_mut(|invalid| invalid.insert(relation));
    }
}

/// # Safety
///
/// `string` is NULL or a C string.
pub(in crate::pg) unsafe fn text(string: *const std::ffi::c_char) -> String {
    if string.is_null() {
        return String::new();
    }
    // SAFETY: as promised.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
}

/// ` COLLATE …` for a collation, or nothing for none.
pub fn collation_clause(collation: Oid) -> String {
    if collation == Oid::INVALID {
        return String::new();
    }
    super::spi::ask_one(
        "SELECT ' COLLATE ' || quote_ident(n.nspname) || '.' || quote_ident(c.collname) \
         FROM pg_catalog.pg_collation c JOIN pg_catalog.pg_namespace n ON n.oid = c.collnamespace \
         WHERE c.oid = $1",
        &[collation.into()],
    )
    .unwrap_or_default()
}

/// Whether a B-tree can index the type.
pub fn is_sortable(ty: Oid) -> bool {
    // SAFETY: the type cache entry is never freed.
    unsafe {
        let entry = pg_sys::lookup_type_cache(
            ty,
            pg_sys::TYPECACHE_BTREE_OPFAMILY.try_into().expect("a flag"),
        );
        (*entry).btree_opf != Oid::INVALID
    }
}

/// Whether values of a type can be hashed. Arrays, ranges and rows have an operator class for it
/// whatever is in them, so the function is asked for, which the cache gives only where it works.
pub fn is_hashable(ty: Oid) -> bool {
    // SAFETY: the type cache entry is never freed.
    unsafe {
        let flag = pg_sys::TYPECACHE_HASH_PROC.try_into().expect("a flag");
        (*pg_sys::lookup_type_cache(ty, flag)).hash_proc != Oid::INVALID
    }
}

/// Whether a B-tree begins with the columns `keys`, in any order, and goes on with `by`, so that it
/// finds the first rows by `by` of those with equal keys.
pub fn has_ordered_index(relation: Oid, keys: &[i16], by: i16) -> bool {
    let mut keys = keys.to_vec();
    keys.sort_unstable();
    let list: Vec<String> = keys.iter().map(i16::to_string).collect();
    super::spi::ask_one::<bool>(
        "SELECT true FROM pg_catalog.pg_index AS i \
         JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid \
         JOIN pg_catalog.pg_am AS m ON m.oid = c.relam AND m.amname = 'btree' \
         JOIN pg_catalog.pg_class AS t ON t.oid = i.indrelid \
         JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = $3::int2 \
         CROSS JOIN LATERAL (SELECT cardinality($2::int2[]) AS keys, \
             string_to_array(i.indkey::text, ' ')::int2[] AS columns) AS x \
         WHERE i.indrelid = $1 AND i.indisvalid AND i.indpred IS NULL \
         AND (t.relkind = 'p' OR NOT t.relhassubclass) \
         AND i.indnkeyatts > x.keys AND x.columns[x.keys + 1] = $3::int2 \
         AND i.indcollation[x.keys] = a.attcollation \
         AND (SELECT o.opcdefault FROM pg_catalog.pg_opclass AS o WHERE o.oid = i.indclass[x.keys]) \
         AND (SELECT coalesce(array_agg(k ORDER BY k), '{}') FROM unnest(x.columns[1:x.keys]) AS k) \
             = $2::int2[] LIMIT 1",
        &[relation.into(), format!("{{{}}}", list.join(",")).into(), by.to_string().into()],
    )
    .is_some()
}

/// The columns of a relation as a store holds them.
pub fn store_columns(relation: Oid) -> Vec<super::store::StoreColumn> {
    let mut columns = Vec::new();
    super::spi::ask(
        "SELECT attname::text, atttypid, atttypmod, attcollation FROM pg_catalog.pg_attribute \
         WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        &[relation.into()],
        |row| {
            columns.push(super::store::StoreColumn {
                name: row.get(0).expect("never NULL"),
                ty: row.get(1).expect("never NULL"),
                typmod: row.get(2).expect("never NULL"),
                collation: row.get(3).expect("never NULL"),
            });
        },
    );
    columns
}

/// Whether the transaction's snapshot is older than the locks that it takes now.
pub fn is_strict_transaction() -> bool {
    // SAFETY: looks at this backend's state.
    unsafe { pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ as i32 }
}
