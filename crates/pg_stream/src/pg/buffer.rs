//! Change buffers as heaps: written in batches, scanned, and cleared, without any SQL.
//!
//! A buffer has four columns of its own and then two for each captured column of its source, the
//! new and the old value. Which ones those are is kept in the buffer's comment, as the source's
//! attribute numbers: names may be changed and shortened, the numbers never change. The buffer of a
//! source with so many columns that there is no room for two of each has one of each, and an update
//! is a deletion and an insertion there.
//!
//! Nor may a row become too long to be written, which would fail the statement that is captured: then
//! an update becomes two rows, and what still does not fit only tells that something has changed.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    ffi::CStr,
    rc::Rc,
};

use pgrx::pg_sys::{self, Datum, Oid};

use super::{
    frontier::next_ordinal,
    lock::Lock,
    snapshot::Snapshot,
    spi,
    tuple::{self, Encoder, Toasted},
    wake,
};

/// Columns that every buffer has before those of its source: action, xid, lsn, ordinal.
pub const OWN_COLUMNS: usize = 4;

/// What happened to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Insert,
    Update,
    Delete,
    /// The whole table was emptied or rewritten; the row has no values.
    Truncate,
}

impl Action {
    fn letter(self) -> u8 {
        match self {
            Self::Insert => b'I',
            Self::Update => b'U',
            Self::Delete => b'D',
            Self::Truncate => b'T',
        }
    }

    fn of(letter: u8) -> Self {
        match letter {
            b'I' => Self::Insert,
            b'U' => Self::Update,
            b'D' => Self::Delete,
            _ => Self::Truncate,
        }
    }
}

/// Where a buffer is, and what is in its columns.
#[derive(Debug)]
pub(in crate::pg) struct Layout {
    pub(in crate::pg) buffer: Oid,
    /// The source's attribute numbers, in the order of the pairs of columns.
    pub(in crate::pg) columns: Vec<i16>,
    /// How many columns of the buffer there are for each of these.
    images: usize,
    encoder: Encoder,
    /// Whether a row can be too long for a page.
    may_overflow: bool,
}

thread_local! {
    /// By source.
    static LAYOUTS: RefCell<HashMap<Oid, Rc<Layout>>> = RefCell::default();
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
    /// The buffers that the current transaction wrote into.
    static CAPTURED: RefCell<Vec<Oid>> = const { RefCell::new(Vec::new()) };
}

fn note_captured(buffer: Oid) {
    CAPTURED.with_borrow_mut(|captured| {
        if !captured.contains(&buffer) {
            captured.push(buffer);
        }
    });
}

fn register_callbacks() {
    if !REGISTERED.replace(true) {
        // SAFETY: registered once in this backend; neither callback fails.
        unsafe {
            pg_sys::CacheRegisterRelcacheCallback(Some(forget_layout), Datum::from(0));
            pg_sys::RegisterXactCallback(Some(at_end), std::ptr::null_mut());
        }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn forget_layout(_argument: Datum, relation: Oid) {
    LAYOUTS.with_borrow_mut(|layouts| {
        if relation == Oid::INVALID {
            layouts.clear();
        } else {
            layouts.retain(|_, layout| layout.buffer != relation);
        }
    });
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn at_end(
    event: pg_sys::XactEvent::Type,
    _argument: *mut std::ffi::c_void,
) {
    CAPTURED.with_borrow_mut(|captured| {
        match event {
            pg_sys::XactEvent::XACT_EVENT_COMMIT if !captured.is_empty() => {
                wake::changes_committed(captured);
            }
            pg_sys::XactEvent::XACT_EVENT_PREPARE if !captured.is_empty() => {
                wake::changes_prepared();
            }
            pg_sys::XactEvent::XACT_EVENT_COMMIT
            | pg_sys::XactEvent::XACT_EVENT_PREPARE
            | pg_sys::XactEvent::XACT_EVENT_ABORT => {}
            _ => return,
        }
        captured.clear();
    });
}

/// The OID of a source's buffer, or the invalid one. Reads the catalog as it is now, whatever the
/// transaction's snapshot.
pub fn of_source(source: Oid) -> Oid {
    // SAFETY: the table is open while it is scanned; it has the columns that our SQL gave it, of
    // which the last one is a NOT NULL oid.
    unsafe {
        let schema = pg_sys::get_namespace_oid(c"pgstream".as_ptr(), true);
        if schema == Oid::INVALID {
            return Oid::INVALID;
        }
        let tracking = pg_sys::get_relname_relid(c"pgs_change_tracking".as_ptr(), schema);
        let tracking = pg_sys::try_table_open(tracking, Lock::AccessShare.mode());
        if tracking.is_null() {
            return Oid::INVALID;
        }
        let mut key = pg_sys::ScanKeyData::default();
        pg_sys::ScanKeyInit(
            &raw mut key,
            1,
            pg_sys::BTEqualStrategyNumber as pg_sys::StrategyNumber,
            pg_sys::F_OIDEQ.into(),
            Datum::from(source),
        );
        let index = pg_sys::get_relname_relid(c"pgs_change_tracking_pkey".as_ptr(), schema);
        let scan = pg_sys::systable_beginscan(
            tracking,
            index,
            true,
            std::ptr::null_mut(),
            1,
            &raw mut key,
        );
        let tuple = pg_sys::systable_getnext(scan);
        let mut buffer = Oid::INVALID;
        if !tuple.is_null() {
            let (mut values, mut nulls) = (Vec::new(), Vec::new());
            let row = Row { tuple, descriptor: (*tracking).rd_att };
            row.deform(&mut values, &mut nulls);
            buffer = Oid::from(u32::try_from(values[values.len() - 1].value()).expect("an oid"));
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(tracking, Lock::AccessShare.mode());
        buffer
    }
}

/// An open buffer, closed when dropped; its lock stays until the end of the transaction.
pub struct Buffer {
    relation: pg_sys::Relation,
    layout: Rc<Layout>,
}

impl Buffer {
    /// The buffer of `source`, or `None` when its changes are not captured.
    pub fn open(source: Oid, lock: Lock) -> Option<Self> {
        register_callbacks();
        let known = LAYOUTS.with_borrow(|layouts| layouts.get(&source).map(|it| it.buffer));
        let oid = known.unwrap_or_else(|| of_source(source));
        if oid == Oid::INVALID {
            return None;
        }
        // SAFETY: NULL when it does not exist any more; closed by `drop`.
        let mut relation = unsafe { pg_sys::try_table_open(oid, lock.mode()) };
        if relation.is_null() {
            let oid = of_source(source);
            // SAFETY: as above.
            relation = unsafe { pg_sys::try_table_open(oid, lock.mode()) };
            if relation.is_null() {
                return None;
            }
        }
        // Opening has processed invalidations, so what is still known is right.
        let known = LAYOUTS.with_borrow(|layouts| layouts.get(&source).cloned());
        let layout = known.unwrap_or_else(|| {
            // SAFETY: the relation is open.
            let layout = Rc::new(unsafe { Layout::read(relation) });
            LAYOUTS.with_borrow_mut(|layouts| layouts.insert(source, Rc::clone(&layout)));
            layout
        });
        Some(Self { relation, layout })
    }

    pub(in crate::pg) fn layout(&self) -> &Rc<Layout> {
        &self.layout
    }

    /// The captured attribute numbers of the source, in the order of the buffer's columns.
    pub fn columns(&self) -> &[i16] {
        &self.layout.columns
    }

    pub fn oid(&self) -> Oid {
        self.layout.buffer
    }

    /// How many of its columns there are for each captured one: the new value and the old one, or one
    /// for both.
    pub fn images(&self) -> usize {
        self.layout.images
    }

    /// The buffer's own column for the new or the old value of the captured column at `position`.
    pub fn place(&self, position: usize, side: Side) -> usize {
        self.layout.place(position, side)
    }

    /// The number of the buffer's own column where the pair of columns at `position` begins, and
    /// its type; `None` when it was dropped.
    pub fn column_type(&self, position: usize) -> Option<Oid> {
        // SAFETY: the relation is open; the index is checked.
        unsafe {
            let place = self.layout.place(position, Side::New);
            let attribute = tuple::attribute((*self.relation).rd_att, place);
            (!(*attribute).attisdropped).then_some((*attribute).atttypid)
        }
    }

    /// Whether the values of the captured column at `position` are of the type that `source` has them
    /// in; `None` when it has that column no longer, or the buffer has given it up.
    pub fn fits(&self, position: usize, source: Oid) -> Option<bool> {
        // SAFETY: syscache look-ups.
        let ty = unsafe { pg_sys::get_atttype(source, self.columns()[position]) };
        // SAFETY: as above.
        let is_right = || self.column_type(position) == Some(unsafe { pg_sys::getBaseType(ty) });
        (ty != Oid::INVALID).then(is_right)
    }

    /// Names of all columns of the buffer.
    pub fn column_names(&self) -> Vec<String> {
        // SAFETY: the relation is open and has as many attributes as it says.
        unsafe {
            let descriptor = (*self.relation).rd_att;
            let count = usize::try_from((*descriptor).natts).expect("a count");
            (0..count)
                .map(|it| {
                    let name = (*tuple::attribute(descriptor, it)).attname.data.as_ptr();
                    CStr::from_ptr(name).to_string_lossy().into_owned()
                })
                .collect()
        }
    }

    /// How many pages the buffer has.
    pub fn pages(&self) -> u32 {
        // SAFETY: the relation is open.
        unsafe {
            pg_sys::RelationGetNumberOfBlocksInFork(self.relation, pg_sys::ForkNumber::MAIN_FORKNUM)
        }
    }

    /// Hands over each row that `snapshot` and this transaction's own changes let us see.
    pub fn scan(&self, snapshot: &Snapshot, mut each: impl FnMut(&Row)) {
        self.any(snapshot, |row| {
            each(row);
            false
        });
    }

    /// Whether such a row is among them; looks no further than the first.
    pub fn any(&self, snapshot: &Snapshot, mut is_one: impl FnMut(&Row) -> bool) -> bool {
        if self.pages() == 0 {
            return false;
        }
        let mut found = false;
        snapshot.with_own_changes(|| {
            let flags = pg_sys::ScanOptions::SO_TYPE_SEQSCAN
                | pg_sys::ScanOptions::SO_ALLOW_STRAT
                | pg_sys::ScanOptions::SO_ALLOW_PAGEMODE;
            // SAFETY: the relation is an open heap; the active snapshot outlives the scan; a row
            // is used before the next one is asked for.
            unsafe {
                let scan = pg_sys::heap_beginscan(
                    self.relation,
                    pg_sys::GetActiveSnapshot(),
                    0,
                    std::ptr::null_mut(),
                    std::ptr::null_mut(),
                    flags,
                );
                let descriptor = (*self.relation).rd_att;
                loop {
                    let tuple =
                        pg_sys::heap_getnext(scan, pg_sys::ScanDirection::ForwardScanDirection);
                    if tuple.is_null() {
                        break;
                    }
                    found = is_one(&Row { tuple, descriptor });
                    if found {
                        break;
                    }
                }
                pg_sys::heap_endscan(scan);
            }
        });
        found
    }

    /// Makes the room of rows that nobody sees any more usable again, so that a buffer stays as
    /// small as what it holds. Vacuum does the same, but too seldom for a table whose every row is
    /// deleted soon. The buffer must be open with a lock that keeps indexes away.
    pub fn reclaim(&self) {
        let mut reclaimed = false;
        // SAFETY: the relation is open. A line pointer may be freed at once because no index refers
        // to it, and because the page is locked for cleanup: nobody else looks at its rows.
        unsafe {
            if (*(*self.relation).rd_rel).relhasindex {
                return;
            }
            let visible = pg_sys::GlobalVisTestFor(self.relation);
            for block in 0..self.pages() {
                let buffer = pg_sys::ReadBuffer(self.relation, block);
                if is_worth_pruning(buffer, visible)
                    && pg_sys::ConditionalLockBufferForCleanup(buffer)
                {
                    let mut offset = 0;
                    pg_sys::heap_page_prune_and_freeze(
                        self.relation,
                        buffer,
                        visible,
                        pg_sys::HEAP_PAGE_PRUNE_MARK_UNUSED_NOW as i32,
                        std::ptr::null_mut(),
                        &mut pg_sys::PruneFreezeResult::default(),
                        pg_sys::PruneReason::PRUNE_ON_ACCESS,
                        &raw mut offset,
                        std::ptr::null_mut(),
                        std::ptr::null_mut(),
                    );
                    let room = pg_sys::PageGetHeapFreeSpace(pg_sys::BufferGetPage(buffer).cast());
                    pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_UNLOCK as i32);
                    pg_sys::RecordPageWithFreeSpace(self.relation, block, room);
                    reclaimed = true;
                }
                pg_sys::ReleaseBuffer(buffer);
            }
            if reclaimed {
                pg_sys::FreeSpaceMapVacuum(self.relation);
            }
        }
    }

    /// Deletes rows, except those that somebody is deleting or has deleted: another session, or a refresh by
    /// a trigger in this transaction. Never waits.
    pub fn delete(&self, places: &[Place]) {
        for place in places {
            let mut tid = place.0;
            let mut failure = pg_sys::TM_FailureData::default();
            // SAFETY: the relation is open with a lock for writing, and the row was seen by a
            // snapshot of this transaction, so that it is still there, deleted or not.
            unsafe {
                let mut tuple = pg_sys::HeapTupleData { t_self: tid, ..Default::default() };
                let mut page = 0;
                let now = &raw mut pg_sys::SnapshotSelfData;
                if !pg_sys::heap_fetch(self.relation, now, &raw mut tuple, &raw mut page, false) {
                    continue;
                }
                pg_sys::ReleaseBuffer(page);
                pg_sys::heap_delete(
                    self.relation,
                    &raw mut tid,
                    pg_sys::GetCurrentCommandId(true),
                    std::ptr::null_mut(),
                    false,
                    &raw mut failure,
                    false,
                );
            }
        }
    }
}

/// Whether rows of a page may be dead for everybody, and little room is left: the measure that
/// PostgreSQL takes when it prunes a page on the way.
///
/// # Safety
///
/// `buffer` must be a pinned page of the heap that `visible` is for.
unsafe fn is_worth_pruning(buffer: pg_sys::Buffer, visible: *mut pg_sys::GlobalVisState) -> bool {
    // SAFETY: without a lock on the page the answer may be out of date, which does no harm.
    unsafe {
        let page = pg_sys::BufferGetPage(buffer);
        let oldest = (*page.cast::<pg_sys::PageHeaderData>()).pd_prune_xid;
        oldest != pg_sys::InvalidTransactionId
            && pg_sys::PageGetHeapFreeSpace(page.cast()) < pg_sys::BLCKSZ as usize / 10
            && pg_sys::GlobalVisTestIsRemovableXid(visible, oldest)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: opened by `open`.
            unsafe { pg_sys::table_close(self.relation, pg_sys::NoLock as i32) };
        }
    }
}

impl Layout {
    /// # Safety
    ///
    /// `relation` must be an open buffer.
    unsafe fn read(relation: pg_sys::Relation) -> Self {
        // SAFETY: the relation is open; its comment is NULL or a C string.
        unsafe {
            let comment = pg_sys::GetComment((*relation).rd_id, pg_sys::RelationRelationId, 0);
            let (images, columns) = if comment.is_null() {
                (2, Vec::new())
            } else {
                parse_comment(&CStr::from_ptr(comment).to_string_lossy())
            };
            let encoder = Encoder::new((*relation).rd_att, Toasted::Keep);
            let room = (encoder.width() - OWN_COLUMNS) / images;
            let columns = columns.into_iter().take(room).collect();
            let may_overflow = encoder.most().is_none_or(|it| it > MOST_BYTES);
            Self { buffer: (*relation).rd_id, columns, images, encoder, may_overflow }
        }
    }

    fn place(&self, position: usize, side: Side) -> usize {
        let offset = if self.images == 2 && side == Side::Old { 1 } else { 0 };
        OWN_COLUMNS + self.images * position + offset
    }
}

/// The longest tuple that fits a page.
const MOST_BYTES: usize = 8160;

/// Of the two values that a change has for a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    New,
    Old,
}

impl Layout {
    /// Whether two values of the captured column at `position` are stored alike. May say no when
    /// only their storage differs.
    pub(in crate::pg) fn same(
        &self,
        position: usize,
        left: Option<Datum>,
        right: Option<Datum>,
    ) -> bool {
        match (left, right) {
            (None, None) => true,
            (Some(left), Some(right)) => {
                // SAFETY: both are values of the buffer's column for the old value.
                unsafe { self.encoder.same(self.place(position, Side::Old), left, right) }
            }
            _ => false,
        }
    }
}

/// How the comment of a buffer begins, by how many columns it has for each captured one.
const COMMENTS: [(usize, &str); 2] = [
    (2, "Changes of its source. Captured attributes:"),
    (1, "Changes of its source, one image a row. Captured attributes:"),
];

/// The comment of a buffer with so many columns for each of these attributes.
pub fn comment(images: usize, columns: &[i16]) -> String {
    let list: Vec<_> = columns.iter().map(ToString::to_string).collect();
    let comment = COMMENTS.iter().find(|it| it.0 == images).expect("one or two");
    format!("{} {}", comment.1, list.join(" "))
}

fn parse_comment(text: &str) -> (usize, Vec<i16>) {
    let mut known = COMMENTS.iter().filter_map(|it| Some((it.0, text.strip_prefix(it.1)?)));
    let (images, list) = known.next().unwrap_or((2, ""));
    (images, list.split_whitespace().map_while(|it| it.parse().ok()).collect())
}

/// The captured attributes of `source`, and the types of their columns in the buffer, without a lock on
/// that. What somebody is adding, who has locked the buffer, and writers out, is there when he has committed.
pub fn committed_columns(source: Oid) -> Option<Vec<(i16, Oid)>> {
    let mut columns = None;
    spi::ask(
        "SELECT d.description, ARRAY(SELECT a.atttypid FROM pg_catalog.pg_attribute AS a \
                                     WHERE a.attrelid = t.buffer_relid AND a.attnum > $2 ORDER BY a.attnum) \
         FROM pgstream.pgs_change_tracking AS t \
         LEFT JOIN pg_catalog.pg_description AS d ON d.objoid = t.buffer_relid AND d.objsubid = 0 \
          AND d.classoid = 'pg_catalog.pg_class'::pg_catalog.regclass \
         WHERE t.source_relid = $1",
        &[source.into(), i64::try_from(OWN_COLUMNS).expect("few").into()],
        |row| {
            let (images, numbers) = parse_comment(&row.get::<String>(0).unwrap_or_default());
            let types: Vec<Oid> = row.get(1).unwrap_or_default();
            columns = Some(numbers.into_iter().zip(types.into_iter().step_by(images)).collect());
        },
    );
    columns
}

/// Where a row is.
#[derive(Clone, Copy, Debug)]
pub struct Place(pg_sys::ItemPointerData);

/// A row of a buffer during a scan.
pub struct Row {
    tuple: pg_sys::HeapTuple,
    descriptor: pg_sys::TupleDesc,
}

impl Row {
    /// The word at `index` of the columns that every row has and that are never NULL.
    fn word(&self, index: usize) -> u64 {
        // SAFETY: the first four columns take one word each and are never NULL, so they are at
        // the same place in every row.
        unsafe {
            let header = (*self.tuple).t_data;
            let data = header.cast::<u8>().add(usize::from((*header).t_hoff));
            data.cast::<u64>().add(index).read_unaligned()
        }
    }

    pub fn action(&self) -> Action {
        Action::of(self.word(0).to_ne_bytes()[0])
    }

    pub fn xid(&self) -> u64 {
        self.word(1)
    }

    pub fn ordinal(&self) -> i64 {
        self.word(3) as i64
    }

    /// How long it is.
    pub fn bytes(&self) -> u64 {
        // SAFETY: the scan's current tuple.
        u64::from(unsafe { (*self.tuple).t_len })
    }

    pub fn place(&self) -> Place {
        // SAFETY: the scan's current tuple.
        Place(unsafe { (*self.tuple).t_self })
    }

    /// All values and NULLs, valid until the scan moves on.
    pub fn deform(&self, values: &mut Vec<Datum>, nulls: &mut Vec<bool>) {
        // SAFETY: the vectors have room for every attribute of the descriptor.
        unsafe {
            let count = usize::try_from((*self.descriptor).natts).expect("a count");
            values.resize(count, Datum::from(0));
            nulls.resize(count, true);
            pg_sys::heap_deform_tuple(
                self.tuple,
                self.descriptor,
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
            );
        }
    }
}

/// One image of a row of the source.
#[derive(Clone, Copy)]
pub struct Image<'a> {
    pub values: &'a [Datum],
    pub nulls: &'a [bool],
    /// For each captured column its index among the values, or `None` when it has none.
    pub map: &'a [Option<usize>],
}

impl Image<'_> {
    /// The value for the captured column at `position`, unless NULL.
    pub(in crate::pg) fn column(&self, position: usize) -> Option<Datum> {
        let index = self.map[position]?;
        (!self.nulls[index]).then(|| self.values[index])
    }
}

/// Rows that are written together: enough to fill many pages, little to hold in memory.
const BATCH_ROWS: usize = 1000;
const BATCH_WORDS: usize = 32 * 1024;

/// Appends rows to a buffer, as changes of the current transaction unless told otherwise. Call [`Writer::finish`].
pub struct Writer {
    buffer: Buffer,
    xid: u64,
    lsn: u64,
    /// Whether the changes are those of this transaction.
    is_own: bool,
    values: Vec<Datum>,
    nulls: Vec<bool>,
    /// Heap tuples, and where each begins and how long it is in bytes.
    arena: Vec<u64>,
    tuples: Vec<(usize, usize)>,
    owned: Vec<*mut pg_sys::varlena>,
    slots: Vec<*mut pg_sys::TupleTableSlot>,
    /// For what the toaster allocates. Made for the first batch.
    context: pg_sys::MemoryContext,
}

impl Writer {
    pub fn new(buffer: Buffer) -> Self {
        note_captured(buffer.layout.buffer);
        let width = buffer.layout.encoder.width();
        // SAFETY: plain calls.
        let (xid, lsn) =
            unsafe { (pg_sys::GetTopFullTransactionId().value, pg_sys::GetXLogInsertRecPtr()) };
        Self {
            buffer,
            xid,
            lsn,
            is_own: true,
            values: vec![Datum::from(0); width],
            nulls: vec![true; width],
            arena: Vec::new(),
            tuples: Vec::new(),
            owned: Vec::new(),
            slots: Vec::new(),
            context: std::ptr::null_mut(),
        }
    }

    /// What follows are changes of another transaction, which was committed at `lsn`. No frontier
    /// counts them by ordinal: none was taken in that transaction after it had made them.
    pub fn set_origin(&mut self, xid: u64, lsn: u64) {
        (self.xid, self.lsn, self.is_own) = (xid, lsn, false);
    }

    /// Appends an update, unless no captured column was changed.
    pub fn push_update(&mut self, new: Image<'_>, old: Image<'_>) {
        let layout = &self.buffer.layout;
        let is_same = |it: usize| layout.same(it, new.column(it), old.column(it));
        if !(0..layout.columns.len()).all(is_same) {
            self.push(Action::Update, Some(new), Some(old));
        }
    }

    pub fn push(&mut self, action: Action, new: Option<Image<'_>>, old: Option<Image<'_>>) {
        if self.buffer.layout.images == 1 && action == Action::Update {
            self.push(Action::Delete, None, old);
            self.push(Action::Insert, new, None);
            return;
        }
        let own = [
            Datum::from(u64::from(action.letter())),
            Datum::from(self.xid),
            Datum::from(self.lsn),
            Datum::from(if self.is_own { next_ordinal() } else { i64::MAX }),
        ];
        self.values[..OWN_COLUMNS].copy_from_slice(&own);
        self.nulls[..OWN_COLUMNS].fill(false);
        self.nulls[OWN_COLUMNS..].fill(true);
        for position in 0..self.buffer.layout.columns.len() {
            for (side, image) in [(Side::New, new), (Side::Old, old)] {
                let value = image.and_then(|it| it.column(position));
                if let Some(value) = value {
                    let index = self.buffer.layout.place(position, side);
                    self.nulls[index] = false;
                    self.values[index] = value;
                }
            }
        }
        // SAFETY: as below.
        let is_too_long = self.buffer.layout.may_overflow
            && unsafe { self.buffer.layout.encoder.least(&self.values, &self.nulls) } > MOST_BYTES;
        if is_too_long {
            if action == Action::Update {
                self.push(Action::Delete, None, old);
                self.push(Action::Insert, new, None);
            } else {
                self.push(Action::Truncate, None, None);
            }
            return;
        }
        let start = self.arena.len();
        // SAFETY: the mapping was made so that values have the types of the buffer's columns.
        let length = unsafe {
            self.buffer.layout.encoder.encode_heap(
                &mut self.values,
                &self.nulls,
                &mut self.arena,
                &mut self.owned,
            )
        };
        for flattened in self.owned.drain(..) {
            // SAFETY: made by the encoder for this row only.
            unsafe { pg_sys::pfree(flattened.cast()) };
        }
        self.tuples.push((start, length));
        if self.tuples.len() >= BATCH_ROWS || self.arena.len() >= BATCH_WORDS {
            self.flush();
        }
    }

    /// Writes what is left.
    pub fn finish(mut self) {
        self.flush();
        // SAFETY: the slots and the context, or NULL, were made by `flush`.
        unsafe {
            for slot in &self.slots {
                pg_sys::ExecDropSingleTupleTableSlot(*slot);
            }
            if !self.context.is_null() {
                pg_sys::MemoryContextDelete(self.context);
            }
        }
    }

    fn flush(&mut self) {
        let relation = self.buffer.relation;
        let arena = self.arena.as_mut_ptr();
        let mut heads: Vec<pg_sys::HeapTupleData> = self
            .tuples
            .iter()
            .map(|(start, length)| pg_sys::HeapTupleData {
                t_len: u32::try_from(*length).expect("a tuple is below a gigabyte"),
                // SAFETY: the tuple begins there in the arena, which does not move any more.
                t_data: unsafe { arena.add(*start) }.cast(),
                ..Default::default()
            })
            .collect();
        // SAFETY: the tuples fit the relation, which is open with a lock for writing.
        unsafe {
            match heads.as_mut_slice() {
                [] => {}
                [head] => {
                    let command = pg_sys::GetCurrentCommandId(true);
                    pg_sys::heap_insert(relation, head, command, 0, std::ptr::null_mut());
                }
                heads => self.insert_many(heads),
            }
        }
        self.tuples.clear();
        self.arena.clear();
    }

    /// # Safety
    ///
    /// `heads` must be tuples of the buffer.
    unsafe fn insert_many(&mut self, heads: &mut [pg_sys::HeapTupleData]) {
        let relation = self.buffer.relation;
        // SAFETY: the relation is open with a lock for writing. What the toaster allocates is in
        // our context, a child of the caller's, so an error frees it. The slots only point to the
        // tuples: the flag that they own them keeps `heap_multi_insert` from copying, and is taken
        // back before anybody could free them.
        unsafe {
            if self.context.is_null() {
                self.context = pg_sys::AllocSetContextCreateInternal(
                    pg_sys::CurrentMemoryContext,
                    c"pg_stream change buffer".as_ptr(),
                    pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                    pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                    pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
                );
            }
            while self.slots.len() < heads.len() {
                self.slots.push(pg_sys::MakeSingleTupleTableSlot(
                    (*relation).rd_att,
                    &raw const pg_sys::TTSOpsHeapTuple,
                ));
            }
            for (head, slot) in heads.iter_mut().zip(&self.slots) {
                pg_sys::ExecStoreHeapTuple(head, *slot, false);
                (**slot).tts_flags |= pg_sys::TTS_FLAG_SHOULDFREE as u16;
            }
            let previous = pg_sys::MemoryContextSwitchTo(self.context);
            pg_sys::heap_multi_insert(
                relation,
                self.slots.as_mut_ptr(),
                i32::try_from(heads.len()).expect("a batch is small"),
                pg_sys::GetCurrentCommandId(true),
                0,
                std::ptr::null_mut(),
            );
            pg_sys::MemoryContextSwitchTo(previous);
            pg_sys::MemoryContextReset(self.context);
            for slot in &self.slots {
                (**slot).tts_flags &= !(pg_sys::TTS_FLAG_SHOULDFREE as u16);
            }
        }
    }
}
