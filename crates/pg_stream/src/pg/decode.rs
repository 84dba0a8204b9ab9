//! Reading changes from the write-ahead log: PostgreSQL's logical decoding, with this library as the
//! output plugin.
//!
//! PostgreSQL hands each committed transaction to the plugin in a transaction that it aborts
//! afterwards, under the catalog as it was when the change was made. So the plugin only notes the
//! changes of the tables that somebody wants, in memory or spilled to disk, and a transaction of ours
//! writes them into the buffers later.

use std::{
    cell::RefCell,
    collections::HashMap,
    ffi::{CStr, CString, c_char, c_int},
    ptr,
};

use pgrx::{
    IntoDatum,
    pg_sys::{self, Datum, Oid},
};

use pgstream_core::wal;

use super::{buffer::Action, frontier, tuple};

/// A position in the write-ahead log.
pub type Lsn = u64;

/// A change of a row as it was noted, or of a table.
pub struct Noted {
    pub source: Oid,
    /// A change that does not tell what happened is [`Action::Truncate`].
    pub action: Action,
    pub xid: u64,
    /// Where the commit of its transaction ends.
    pub commit: Lsn,
    /// The new and the old row.
    pub images: [Option<Values>; 2],
}

/// The values of the columns that were wanted, in their order.
pub struct Values {
    pub values: Vec<Datum>,
    pub nulls: Vec<bool>,
}

/// The columns to note of a table: attribute numbers and the types below domains.
pub type Columns = Vec<(i16, Oid)>;

struct Sink {
    wanted: HashMap<Oid, Columns>,
    notes: Notes,
    /// Whether some transaction was handed over, under a catalog of its time.
    has_replayed: bool,
    /// Emptied after each change.
    context: pg_sys::MemoryContext,
}

thread_local! {
    static SINK: RefCell<Option<Sink>> = const { RefCell::new(None) };
}

unsafe extern "C-unwind" {
    fn LogicalDecodingProcessRecord(
        context: *mut pg_sys::LogicalDecodingContext,
        reader: *mut pg_sys::XLogReaderState,
    );
    // The functions themselves, to be passed on, and not the bindings around them.
    fn read_local_xlog_page(
        state: *mut pg_sys::XLogReaderState,
        page: pg_sys::XLogRecPtr,
        length: c_int,
        record: pg_sys::XLogRecPtr,
        into: *mut c_char,
    ) -> c_int;
    fn wal_segment_open(
        state: *mut pg_sys::XLogReaderState,
        segment: pg_sys::XLogSegNo,
        timeline: *mut pg_sys::TimeLineID,
    );
    fn wal_segment_close(state: *mut pg_sys::XLogReaderState);
}

/// PostgreSQL looks for this name in the library of an output plugin. For other slots than ours the
/// plugin says nothing.
#[unsafe(no_mangle)]
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn _PG_output_plugin_init(
    callbacks: *mut pg_sys::OutputPluginCallbacks,
) {
    // SAFETY: PostgreSQL passes a struct to be filled in.
    unsafe {
        (*callbacks).begin_cb = Some(begin);
        (*callbacks).change_cb = Some(change);
        (*callbacks).truncate_cb = Some(truncate);
        (*callbacks).commit_cb = Some(commit);
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn begin(
    _context: *mut pg_sys::LogicalDecodingContext,
    _transaction: *mut pg_sys::ReorderBufferTXN,
) {
    SINK.with_borrow_mut(|sink| {
        if let Some(sink) = sink {
            sink.has_replayed = true;
        }
    });
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn commit(
    _context: *mut pg_sys::LogicalDecodingContext,
    _transaction: *mut pg_sys::ReorderBufferTXN,
    _commit: pg_sys::XLogRecPtr,
) {
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn change(
    _context: *mut pg_sys::LogicalDecodingContext,
    transaction: *mut pg_sys::ReorderBufferTXN,
    relation: pg_sys::Relation,
    change: *mut pg_sys::ReorderBufferChange,
) {
    SINK.with_borrow_mut(|sink| {
        let Some(sink) = sink else { return };
        // SAFETY: PostgreSQL passes what belongs together, and a change of a row.
        unsafe {
            let source = (*relation).rd_id;
            let Some(columns) = sink.wanted.get(&source) else { return };
            let previous = pg_sys::MemoryContextSwitchTo(sink.context);
            let mut note = Note::new(source, transaction);
            note.add_row(&*change, relation, columns);
            sink.notes.put(&note);
            pg_sys::MemoryContextSwitchTo(previous);
            pg_sys::MemoryContextReset(sink.context);
        }
    });
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn truncate(
    _context: *mut pg_sys::LogicalDecodingContext,
    transaction: *mut pg_sys::ReorderBufferTXN,
    count: c_int,
    relations: *mut pg_sys::Relation,
    _change: *mut pg_sys::ReorderBufferChange,
) {
    SINK.with_borrow_mut(|sink| {
        let Some(sink) = sink else { return };
        for index in 0..usize::try_from(count).expect("a count") {
            // SAFETY: PostgreSQL passes as many open relations as it says.
            let source = unsafe { (**relations.add(index)).rd_id };
            if sink.wanted.contains_key(&source) {
                // SAFETY: the transaction that is being handed over; what is allocated goes with it.
                let note = unsafe { Note::new(source, transaction) };
                sink.notes.put(&note);
            }
        }
    });
}

/// A change in words, as it is kept: source and action, transaction, end of its commit, then for the new
/// and the old row whether there is one, and each value as its kind (0 for NULL, 1 for a value in one
/// word, 2 and more for that number of bytes less 2) and its words.
struct Note {
    words: Vec<u64>,
}

const NULL: u64 = 0;
const WORD: u64 = 1;
const BYTES: u64 = 2;
/// The words before the rows.
const HEAD: usize = 3;
/// PostgreSQL allocates no more than 1 GB at a time.
const MOST_WORDS: usize = ((1 << 30) - 4096) / size_of::<u64>();
const KINDS: [Action; 4] = [Action::Insert, Action::Update, Action::Delete, Action::Truncate];

impl Note {
    /// That something has happened to the table.
    ///
    /// # Safety
    ///
    /// `transaction` must be one that is handed over.
    unsafe fn new(source: Oid, transaction: *mut pg_sys::ReorderBufferTXN) -> Self {
        // SAFETY: as promised.
        let (xid, commit) = unsafe { ((*transaction).xid, (*transaction).end_lsn) };
        let mut note =
            Self { words: vec![u64::from(source.to_u32()), frontier::full_xid(xid), commit] };
        note.set_action(Action::Truncate);
        note
    }

    fn set_action(&mut self, action: Action) {
        let kind = KINDS.iter().position(|it| *it == action).expect("all are listed") as u64;
        self.words[0] = self.words[0] & 0xffff_ffff | kind << 32;
    }

    /// Adds the rows of a change, unless it does not tell all that is wanted.
    ///
    /// # Safety
    ///
    /// The change must be one of a row of `relation`, as PostgreSQL hands it over.
    unsafe fn add_row(
        &mut self,
        change: &pg_sys::ReorderBufferChange,
        relation: pg_sys::Relation,
        columns: &Columns,
    ) {
        // SAFETY: a change of a row holds the tuples that its kind says, or NULL.
        unsafe {
            let rows = change.data.tp;
            let has_whole_rows =
                (*(*relation).rd_rel).relreplident.cast_unsigned() == pg_sys::REPLICA_IDENTITY_FULL;
            use pg_sys::ReorderBufferChangeType as Kind;
            let (action, new, old) = match change.action {
                Kind::REORDER_BUFFER_CHANGE_INSERT => {
                    (Action::Insert, rows.newtuple, ptr::null_mut())
                }
                Kind::REORDER_BUFFER_CHANGE_UPDATE => {
                    (Action::Update, rows.newtuple, rows.oldtuple)
                }
                Kind::REORDER_BUFFER_CHANGE_DELETE => {
                    (Action::Delete, ptr::null_mut(), rows.oldtuple)
                }
                _ => return,
            };
            let needs_old = action != Action::Insert;
            if needs_old && (!has_whole_rows || old.is_null())
                || action != Action::Delete && new.is_null()
            {
                return;
            }
            let descriptor = (*relation).rd_att;
            let new = Tuple::deform(new, descriptor);
            let old = Tuple::deform(old, descriptor);
            let length = self.words.len();
            if self.add_image(new.as_ref(), old.as_ref(), descriptor, columns)
                && self.add_image(old.as_ref(), None, descriptor, columns)
                && self.words.len() <= MOST_WORDS
            {
                self.set_action(action);
            } else {
                self.words.truncate(length);
            }
        }
    }

    /// False when a column is not what it was expected to be. What an update has left out of line is
    /// taken from the old row.
    ///
    /// # Safety
    ///
    /// The rows must be of the descriptor.
    unsafe fn add_image(
        &mut self,
        row: Option<&Tuple>,
        old: Option<&Tuple>,
        descriptor: pg_sys::TupleDesc,
        columns: &Columns,
    ) -> bool {
        self.words.push(u64::from(row.is_some()));
        let Some(row) = row else { return true };
        for (number, ty) in columns {
            let Some(index) = usize::try_from(*number - 1).ok().filter(|it| *it < row.values.len())
            else {
                // A place of the buffer that was given up.
                if *number == 0 {
                    self.words.push(NULL);
                    continue;
                }
                return false;
            };
            // SAFETY: the index is checked, and the values are those of the attributes.
            unsafe {
                let attribute = &*tuple::attribute(descriptor, index);
                if attribute.attisdropped {
                    self.words.push(NULL);
                    continue;
                }
                if pg_sys::getBaseType(attribute.atttypid) != *ty {
                    return false;
                }
                let mut value = row.value(index);
                if attribute.attlen == -1
                    && let Some(new) = value
                    && is_on_disk(new)
                {
                    let Some(old) =
                        old.and_then(|it| it.value(index)).filter(|it| !is_on_disk(*it))
                    else {
                        return false;
                    };
                    value = Some(old);
                }
                self.add_value(value, attribute.attbyval, attribute.attlen);
            }
        }
        true
    }

    /// # Safety
    ///
    /// The value must be of a type with this passing and length.
    unsafe fn add_value(&mut self, value: Option<Datum>, by_value: bool, length: i16) {
        let Some(value) = value else {
            self.words.push(NULL);
            return;
        };
        if by_value {
            self.words.extend([WORD, value.value() as u64]);
            return;
        }
        // SAFETY: as promised; what is out of line is in memory, where decoding has put it together.
        let bytes = unsafe {
            let mut start = value.cast_mut_ptr::<u8>();
            let size = match length {
                -1 => {
                    if pgrx::varatt_is_1b_e(start.cast()) {
                        start = pg_sys::detoast_external_attr(start.cast()).cast();
                    }
                    pgrx::varsize_any(start.cast())
                }
                -2 => CStr::from_ptr(start.cast()).to_bytes_with_nul().len(),
                _ => usize::try_from(length).expect("a fixed length is positive"),
            };
            std::slice::from_raw_parts(start, size)
        };
        self.words.push(BYTES + bytes.len() as u64);
        for chunk in bytes.chunks(size_of::<u64>()) {
            let mut word = [0; size_of::<u64>()];
            word[..chunk.len()].copy_from_slice(chunk);
            self.words.push(u64::from_ne_bytes(word));
        }
    }
}

/// Whether a value is still where the table keeps long values.
///
/// # Safety
///
/// `value` must be a varlena.
unsafe fn is_on_disk(value: Datum) -> bool {
    // SAFETY: as promised.
    unsafe {
        let value = value.cast_mut_ptr::<pg_sys::varlena>();
        pgrx::varatt_is_1b_e(value)
            && u32::from(pgrx::vartag_external(value)) == pg_sys::vartag_external::VARTAG_ONDISK
    }
}

struct Tuple {
    values: Vec<Datum>,
    nulls: Vec<bool>,
}

impl Tuple {
    /// # Safety
    ///
    /// `tuple` must be NULL or a row of the descriptor.
    unsafe fn deform(tuple: pg_sys::HeapTuple, descriptor: pg_sys::TupleDesc) -> Option<Self> {
        if tuple.is_null() {
            return None;
        }
        // SAFETY: as promised; the arrays are as long as the descriptor.
        unsafe {
            let width = usize::try_from((*descriptor).natts).expect("a count");
            let mut row = Self { values: vec![Datum::from(0); width], nulls: vec![true; width] };
            pg_sys::heap_deform_tuple(
                tuple,
                descriptor,
                row.values.as_mut_ptr(),
                row.nulls.as_mut_ptr(),
            );
            Some(row)
        }
    }

    fn value(&self, index: usize) -> Option<Datum> {
        (!self.nulls[index]).then(|| self.values[index])
    }
}

impl Noted {
    /// Reads a [`Note`]. Values that are not in one word stay where they are in `words`.
    fn read(words: &[u64], wanted: &HashMap<Oid, Columns>) -> Self {
        let source = Oid::from((words[0] & 0xffff_ffff) as u32);
        let action = KINDS[(words[0] >> 32) as usize];
        let mut noted =
            Self { source, action, xid: words[1], commit: words[2], images: [None, None] };
        if action == Action::Truncate {
            return noted;
        }
        let columns = wanted.get(&source).map_or(0, Vec::len);
        let mut at = HEAD;
        for image in &mut noted.images {
            at += 1;
            if words[at - 1] == 0 {
                continue;
            }
            let (mut values, mut nulls) = (Vec::new(), Vec::new());
            for _ in 0..columns {
                let kind = words[at];
                at += 1;
                nulls.push(kind == NULL);
                values.push(match kind {
                    NULL => Datum::from(0),
                    WORD => Datum::from(words[at]),
                    _ => Datum::from(words[at..].as_ptr()),
                });
                at += match kind {
                    NULL => 0,
                    WORD => 1,
                    _ => usize::try_from(kind - BYTES)
                        .expect("it was noted")
                        .div_ceil(size_of::<u64>()),
                };
            }
            *image = Some(Values { values, nulls });
        }
        noted
    }
}

/// Notes in the order in which they came, which outlive transactions.
struct Notes {
    store: *mut pg_sys::Tuplestorestate,
    descriptor: pg_sys::TupleDesc,
    rows: u64,
}

impl Notes {
    fn new() -> Self {
        // SAFETY: allocated where it stays, with no owner, as what a transaction leaves to the next.
        unsafe {
            let context = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
            let owner = pg_sys::CurrentResourceOwner;
            pg_sys::CurrentResourceOwner = ptr::null_mut();
            let descriptor = pg_sys::CreateTemplateTupleDesc(1);
            // The only type of any length that is known without a look at the catalog.
            pg_sys::TupleDescInitBuiltinEntry(
                descriptor,
                1,
                c"note".as_ptr(),
                pg_sys::TEXTOID,
                -1,
                0,
            );
            let store = pg_sys::tuplestore_begin_heap(true, true, pg_sys::work_mem);
            pg_sys::CurrentResourceOwner = owner;
            pg_sys::MemoryContextSwitchTo(context);
            Self { store, descriptor, rows: 0 }
        }
    }

    fn put(&mut self, note: &Note) {
        // SAFETY: the words are bytes; the store copies.
        unsafe {
            let bytes = std::slice::from_raw_parts(
                note.words.as_ptr().cast::<u8>(),
                size_of_val(note.words.as_slice()),
            );
            let value = bytes.into_datum().expect("not NULL");
            pg_sys::tuplestore_putvalues(self.store, self.descriptor, &raw const value, &false);
        }
        self.rows += 1;
    }

    fn each(&self, mut work: impl FnMut(&[u64])) {
        let mut words: Vec<u64> = Vec::new();
        // SAFETY: the slot is made for the store's descriptor and dropped after the last use; a note
        // is copied to where its words are aligned.
        unsafe {
            let slot = pg_sys::MakeSingleTupleTableSlot(
                self.descriptor,
                &raw const pg_sys::TTSOpsMinimalTuple,
            );
            pg_sys::tuplestore_rescan(self.store);
            while pg_sys::tuplestore_gettupleslot(self.store, true, false, slot) {
                pg_sys::slot_getsomeattrs_int(slot, 1);
                let bytes = pgrx::varlena_to_byte_slice((*(*slot).tts_values).cast_mut_ptr());
                words.resize(bytes.len() / size_of::<u64>(), 0);
                ptr::copy_nonoverlapping(bytes.as_ptr(), words.as_mut_ptr().cast(), bytes.len());
                work(&words);
            }
            pg_sys::ExecDropSingleTupleTableSlot(slot);
        }
    }

    fn clear(&mut self) {
        // SAFETY: the store lives as long as the process.
        unsafe { pg_sys::tuplestore_clear(self.store) };
        self.rows = 0;
    }
}

/// The slot of this process, and how far it was decoded. There is one in a process at most.
pub struct Decoder {
    context: *mut pg_sys::LogicalDecodingContext,
}

impl Decoder {
    /// Takes the slot, which goes with this process, and begins where it was confirmed. In a transaction:
    /// outside of one, PostgreSQL takes this process for one that does nothing else, whose snapshots
    /// need not keep the rows that they see from being removed.
    pub fn open(slot: &str) -> Self {
        let name = CString::new(slot).expect("a name has no NUL");
        // SAFETY: allocated where it stays.
        let context = unsafe {
            pg_sys::AllocSetContextCreateInternal(
                pg_sys::TopMemoryContext,
                c"pg_stream decoded change".as_ptr(),
                pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            )
        };
        SINK.set(Some(Sink {
            wanted: HashMap::new(),
            notes: Notes::new(),
            has_replayed: false,
            context,
        }));
        // SAFETY: the routines are PostgreSQL's for reading the WAL of this server; what is made is
        // allocated where it stays.
        unsafe {
            pg_sys::ReplicationSlotAcquire(name.as_ptr(), true, true);
            let mut routine = pg_sys::XLogReaderRoutine {
                page_read: Some(read_local_xlog_page),
                segment_open: Some(wal_segment_open),
                segment_close: Some(wal_segment_close),
            };
            let previous = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
            let context = pg_sys::CreateDecodingContext(
                pg_sys::InvalidXLogRecPtr.into(),
                ptr::null_mut(),
                false,
                &raw mut routine,
                None,
                None,
                None,
            );
            pg_sys::MemoryContextSwitchTo(previous);
            let slot = &*pg_sys::MyReplicationSlot;
            pg_sys::XLogBeginRead((*context).reader, slot.data.restart_lsn);
            Self { context }
        }
    }

    /// Decodes up to `target`, and notes the changes of what is wanted. Returns how many there are.
    pub fn decode(&mut self, target: Lsn, wanted: HashMap<Oid, Columns>) -> u64 {
        SINK.with_borrow_mut(|sink| {
            let sink = sink.as_mut().expect("made by `open`");
            sink.wanted = wanted;
            sink.has_replayed = false;
        });
        // SAFETY: the log is there up to `target` once it is flushed. Caches are emptied around
        // decoding, as PostgreSQL does it, for they may hold catalog rows of another time. The reader
        // keeps what it allocates.
        unsafe {
            let previous = pg_sys::MemoryContextSwitchTo((*self.context).context);
            pg_sys::XLogFlush(target);
            let (context, reader) = (self.context, (*self.context).reader);
            let is_done = || (*reader).EndRecPtr >= target;
            if !is_done() {
                pg_sys::InvalidateSystemCaches();
            }
            while !is_done() {
                let mut message: *mut c_char = ptr::null_mut();
                let record = pg_sys::XLogReadRecord(reader, &raw mut message);
                if !message.is_null() {
                    let message = CStr::from_ptr(message).to_string_lossy();
                    pgrx::error!("could not read the write-ahead log: {message}");
                }
                if !record.is_null() {
                    pg_sys::ffi::pg_guard_ffi_boundary(|| {
                        LogicalDecodingProcessRecord(context, reader);
                    });
                }
                pgrx::check_for_interrupts!();
            }
            pg_sys::MemoryContextSwitchTo(previous);
        }
        SINK.with_borrow_mut(|sink| {
            let sink = sink.as_mut().expect("made by `open`");
            if std::mem::take(&mut sink.has_replayed) {
                // SAFETY: outside of transactions.
                unsafe { pg_sys::InvalidateSystemCaches() };
            }
            sink.notes.rows
        })
    }

    /// Hands over what [`Self::decode`] has noted, in a transaction.
    pub fn each(&self, mut work: impl FnMut(&Noted)) {
        SINK.with_borrow(|sink| {
            let sink = sink.as_ref().expect("made by `open`");
            sink.notes.each(|words| work(&Noted::read(words, &sink.wanted)));
        });
    }

    /// For which columns the changes of `source` were noted.
    pub fn noted_columns(&self, source: Oid) -> Columns {
        SINK.with_borrow(|sink| {
            let sink = sink.as_ref().expect("made by `open`");
            sink.wanted.get(&source).cloned().unwrap_or_default()
        })
    }

    /// Forgets what was noted, when it is written.
    pub fn clear(&mut self) {
        SINK.with_borrow_mut(|sink| sink.as_mut().expect("made by `open`").notes.clear());
    }

    /// The server may forget what was decoded up to here.
    pub fn confirm(&mut self, lsn: Lsn) {
        // SAFETY: the slot is ours. Nothing may be confirmed that a crash could take back.
        unsafe {
            pg_sys::XLogFlush(current_lsn());
            pg_sys::LogicalConfirmReceivedLocation(lsn);
        }
    }

    /// Gives the slot back.
    pub fn close(self) {
        // SAFETY: both are ours; callbacks of the context are ours too.
        unsafe {
            pg_sys::FreeDecodingContext(self.context);
            pg_sys::ReplicationSlotRelease();
        }
    }
}

/// Gives back a slot that an error has left half made, which drops it. PostgreSQL does that in sessions of
/// users only.
pub fn release_slot() {
    // SAFETY: outside of transactions; reads a variable of this process.
    unsafe {
        if !pg_sys::MyReplicationSlot.is_null() {
            pg_sys::ReplicationSlotRelease();
        }
    }
}

/// Up to where the write-ahead log has records. Every transaction that is visible now has its commit
/// before.
pub fn current_lsn() -> Lsn {
    // SAFETY: reads a shared counter, and a setting.
    let (next, segment) =
        unsafe { (pg_sys::GetXLogInsertRecPtr(), pg_sys::wal_segment_size.unsigned_abs()) };
    wal::end_of_record(next, Lsn::from(pg_sys::XLOG_BLCKSZ), Lsn::from(segment))
}

/// Whether the server writes what decoding needs.
pub fn is_possible() -> bool {
    // SAFETY: reads a setting.
    unsafe { pg_sys::wal_level >= pg_sys::WalLevel::WAL_LEVEL_LOGICAL as c_int }
}

/// A position as PostgreSQL prints it.
pub fn text(lsn: Lsn) -> String {
    format!("{:X}/{:X}", lsn >> 32, lsn & 0xffff_ffff)
}
