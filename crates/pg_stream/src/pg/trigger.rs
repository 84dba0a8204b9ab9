//! The trigger function that captures changes, in PostgreSQL's C calling convention: no SQL runs in
//! the writer's path.
//!
//! The trigger's first argument is the OID of the source. It is not always the relation that the
//! trigger fires on: the row triggers of a partitioned table are copied to its partitions, whose
//! columns may be in another order, so columns are matched by name there.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    ffi::CStr,
    rc::Rc,
};

use pgrx::pg_sys::{self, Datum, Oid};

use super::{
    buffer::{Action, Buffer, Image, Layout, Writer},
    lock::Lock,
    source,
};

/// How the columns of a relation with a trigger become those of a buffer.
struct Mapping {
    /// For which layout it was made.
    layout: Rc<Layout>,
    /// For each captured column its index in the relation.
    columns: Vec<Option<usize>>,
    /// How many leading attributes have to be read.
    width: usize,
    /// A column has not the type that the buffer expects: values cannot be captured.
    unfit: bool,
    /// The relation was taken out of the inheritance tree of the source, and kept the trigger.
    stray: bool,
    /// The relation has joined the source unnoticed, and may leave it so with what was captured of it.
    unnoticed: bool,
    /// The source has children, whose rows are in its transition tables, although it had none when
    /// its triggers were made.
    has_children: bool,
}

thread_local! {
    /// By the relation that the trigger is on, and the source.
    static MAPPINGS: RefCell<HashMap<(Oid, Oid), Rc<Mapping>>> = RefCell::default();
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn forget_mapping(_argument: Datum, relation: Oid) {
    MAPPINGS.with_borrow_mut(|mappings| {
        if relation == Oid::INVALID {
            mappings.clear();
        } else {
            mappings.retain(|(on, source), _| *on != relation && *source != relation);
        }
    });
}

impl Mapping {
    /// # Safety
    ///
    /// `data` must describe the running trigger.
    unsafe fn find(data: &pg_sys::TriggerData, source: Oid, buffer: &Buffer) -> Rc<Self> {
        let relation = data.tg_relation;
        if !REGISTERED.replace(true) {
            // SAFETY: registered once in this backend; the callback only forgets.
            unsafe {
                pg_sys::CacheRegisterRelcacheCallback(Some(forget_mapping), Datum::from(0));
            }
        }
        // SAFETY: the relation is open.
        let key = (unsafe { (*relation).rd_id }, source);
        let known = MAPPINGS.with_borrow(|mappings| mappings.get(&key).cloned());
        if let Some(mapping) = known.filter(|it| Rc::ptr_eq(&it.layout, buffer.layout())) {
            return mapping;
        }
        // SAFETY: the relation is open, and the trigger is live.
        let mapping =
            Rc::new(unsafe { Self::make(relation, source, buffer, (*data.tg_trigger).tgfoid) });
        MAPPINGS.with_borrow_mut(|mappings| mappings.insert(key, Rc::clone(&mapping)));
        mapping
    }

    /// # Safety
    ///
    /// `relation` must be open.
    unsafe fn make(
        relation: pg_sys::Relation,
        source: Oid,
        buffer: &Buffer,
        function: Oid,
    ) -> Self {
        let mut columns = Vec::new();
        let mut unfit = false;
        for (position, number) in buffer.columns().iter().enumerate() {
            let Some(fits) = buffer.fits(position, source) else {
                columns.push(None);
                continue;
            };
            // SAFETY: syscache look-ups. The relation is open.
            let number = unsafe {
                if (*relation).rd_id == source {
                    *number
                } else {
                    let name = pg_sys::get_attname(source, *number, false);
                    pg_sys::get_attnum((*relation).rd_id, name)
                }
            };
            let index = usize::try_from(number - 1).ok();
            unfit |= index.is_none() || !fits;
            columns.push(index);
        }
        let width = columns.iter().flatten().max().map_or(0, |it| it + 1);
        // SAFETY: the relation is open.
        let stray = unsafe {
            (*relation).rd_id != source
                && !source::members(source, Lock::None).contains(&(*relation).rd_id)
        };
        // SAFETY: the relation is open.
        let (unnoticed, has_children) = unsafe {
            let is_source = (*relation).rd_id == source;
            let has_children = (*(*relation).rd_rel).relhassubclass && source::has_children(source);
            (!is_source && !has_own_trigger(relation, source, function), is_source && has_children)
        };
        let layout = Rc::clone(buffer.layout());
        Self { layout, columns, width, unfit, stray, unnoticed, has_children }
    }
}

/// Whether a relation that belongs to `source` has a trigger that was made for it, as each has for
/// TRUNCATE, and not only what PostgreSQL copies to partitions.
///
/// # Safety
///
/// `relation` must be open.
unsafe fn has_own_trigger(relation: pg_sys::Relation, source: Oid, function: Oid) -> bool {
    // SAFETY: the description of triggers is NULL or complete.
    unsafe {
        let Some(triggers) = (*relation).trigdesc.as_ref() else { return false };
        let count = usize::try_from(triggers.numtriggers).expect("a count");
        std::slice::from_raw_parts(triggers.triggers, count)
            .iter()
            .any(|it| !it.tgisclone && it.tgfoid == function && captured(it) == source)
    }
}

/// How many triggers run, each within the one before.
pub fn depth() -> i32 {
    // SAFETY: it looks at no argument, and returns an integer.
    unsafe { pg_sys::pg_trigger_depth(std::ptr::null_mut()).value() as i32 }
}

#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_pg_stream_capture() -> &'static pg_sys::Pg_finfo_record {
    const RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &RECORD
}

/// `pgstream.capture()`.
///
/// # Safety
///
/// PostgreSQL calls it with the fields that the calling convention promises.
#[unsafe(no_mangle)]
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn pg_stream_capture(fcinfo: pg_sys::FunctionCallInfo) -> Datum {
    // SAFETY: the context of a call as a trigger is a `TriggerData`.
    unsafe {
        let context = (*fcinfo).context;
        if context.is_null() || (*context).type_ != pg_sys::NodeTag::T_TriggerData {
            pgrx::ereport!(
                ERROR,
                pgrx::PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
                "this function can only be called as a trigger"
            );
        }
        capture(&*context.cast::<pg_sys::TriggerData>());
    }
    // What AFTER triggers return is ignored.
    Datum::from(0)
}

/// # Safety
///
/// `data` must describe the running trigger.
unsafe fn capture(data: &pg_sys::TriggerData) {
    // SAFETY: PostgreSQL filled in what the event promises.
    unsafe {
        let per_row = data.tg_event & pg_sys::TRIGGER_EVENT_ROW != 0;
        if !per_row && stored(data.tg_oldtable) == 0 && stored(data.tg_newtable) == 0 {
            let truncate = pg_sys::TRIGGER_EVENT_TRUNCATE;
            if data.tg_event & pg_sys::TRIGGER_EVENT_OPMASK != truncate {
                return;
            }
        }
        let source = captured(&*data.tg_trigger);
        // Without a buffer nobody is interested.
        let Some(buffer) = Buffer::open(source, Lock::RowExclusive) else { return };
        let mapping = Mapping::find(data, source, &buffer);
        if mapping.stray {
            return;
        }
        let mut writer = Writer::new(buffer);
        match data.tg_event & pg_sys::TRIGGER_EVENT_OPMASK {
            pg_sys::TRIGGER_EVENT_TRUNCATE => writer.push(Action::Truncate, None, None),
            _ if mapping.unfit || mapping.unnoticed || (!per_row && mapping.has_children) => {
                writer.push(Action::Truncate, None, None);
            }
            event if per_row => capture_row(data, event, &mapping, &mut writer),
            _ => capture_statement(data, &mapping, &mut writer),
        }
        writer.finish();
    }
}

/// # Safety
///
/// `trigger` must be live.
unsafe fn captured(trigger: &pg_sys::Trigger) -> Oid {
    // SAFETY: a trigger has as many arguments as it says.
    let argument = (trigger.tgnargs > 0).then(|| unsafe { CStr::from_ptr(*trigger.tgargs) });
    let source = argument.and_then(|it| it.to_str().ok()?.parse::<u32>().ok());
    Oid::from(source.unwrap_or(0))
}

/// # Safety
///
/// `store` must be NULL or live.
unsafe fn stored(store: *mut pg_sys::Tuplestorestate) -> i64 {
    // SAFETY: as promised.
    if store.is_null() { 0 } else { unsafe { pg_sys::tuplestore_tuple_count(store) } }
}

/// # Safety
///
/// `data` must describe a running row trigger.
unsafe fn capture_row(
    data: &pg_sys::TriggerData,
    event: u32,
    mapping: &Mapping,
    writer: &mut Writer,
) {
    // SAFETY: an AFTER ROW trigger has the affected row in the first slot, and for UPDATE the new
    // one in the second.
    unsafe {
        let first = image(data.tg_trigslot, mapping);
        match event {
            pg_sys::TRIGGER_EVENT_INSERT => writer.push(Action::Insert, Some(first), None),
            pg_sys::TRIGGER_EVENT_DELETE => writer.push(Action::Delete, None, Some(first)),
            _ => writer.push_update(image(data.tg_newslot, mapping), first),
        }
    }
}

/// # Safety
///
/// `data` must describe a running statement trigger with transition tables.
unsafe fn capture_statement(data: &pg_sys::TriggerData, mapping: &Mapping, writer: &mut Writer) {
    // SAFETY: transition tables hold rows of the trigger's relation.
    unsafe {
        let mut old = Transition::open(data.tg_oldtable, data.tg_relation);
        let mut new = Transition::open(data.tg_newtable, data.tg_relation);
        loop {
            pgrx::check_for_interrupts!();
            // An UPDATE's tables correspond row by row. Were they not to, the sum would be the
            // same.
            match (new.next(mapping), old.next(mapping)) {
                (Some(new), Some(old)) => writer.push_update(new, old),
                (Some(new), None) => writer.push(Action::Insert, Some(new), None),
                (None, Some(old)) => writer.push(Action::Delete, None, Some(old)),
                (None, None) => break,
            }
        }
        old.close();
        new.close();
    }
}

/// # Safety
///
/// `slot` must hold a row of the relation that the mapping is for.
unsafe fn image<'a>(slot: *mut pg_sys::TupleTableSlot, mapping: &'a Mapping) -> Image<'a> {
    // SAFETY: the slot's arrays are as long as its descriptor, whose first `width` columns are
    // filled in here.
    unsafe {
        let width = mapping.width;
        if usize::try_from((*slot).tts_nvalid).expect("a count") < width {
            pg_sys::slot_getsomeattrs_int(slot, i32::try_from(width).expect("few columns"));
        }
        Image {
            values: std::slice::from_raw_parts((*slot).tts_values, width),
            nulls: std::slice::from_raw_parts((*slot).tts_isnull, width),
            map: &mapping.columns,
        }
    }
}

/// A transition table being read, or none.
struct Transition {
    store: *mut pg_sys::Tuplestorestate,
    slot: *mut pg_sys::TupleTableSlot,
}

impl Transition {
    /// # Safety
    ///
    /// `store` must be NULL or hold rows of `relation`, and stay until [`Self::close`].
    unsafe fn open(store: *mut pg_sys::Tuplestorestate, relation: pg_sys::Relation) -> Self {
        // SAFETY: as promised. A read pointer of our own leaves other triggers' alone.
        unsafe {
            if store.is_null() {
                return Self { store, slot: std::ptr::null_mut() };
            }
            let pointer =
                pg_sys::tuplestore_alloc_read_pointer(store, pg_sys::EXEC_FLAG_REWIND as i32);
            pg_sys::tuplestore_select_read_pointer(store, pointer);
            pg_sys::tuplestore_rescan(store);
            let slot = pg_sys::MakeSingleTupleTableSlot(
                (*relation).rd_att,
                &raw const pg_sys::TTSOpsMinimalTuple,
            );
            Self { store, slot }
        }
    }

    /// The next row, valid until the one after is asked for.
    ///
    /// # Safety
    ///
    /// `mapping` must be for the relation that the rows are of.
    unsafe fn next<'a>(&mut self, mapping: &'a Mapping) -> Option<Image<'a>> {
        // SAFETY: as promised by the callers of `open` and of this.
        unsafe {
            if self.store.is_null() {
                return None;
            }
            let more = pg_sys::tuplestore_gettupleslot(self.store, true, false, self.slot);
            more.then(|| image(self.slot, mapping))
        }
    }

    /// # Safety
    ///
    /// No row may be used any more.
    unsafe fn close(self) {
        // SAFETY: what `open` made.
        unsafe {
            if !self.store.is_null() {
                pg_sys::ExecDropSingleTupleTableSlot(self.slot);
                pg_sys::tuplestore_select_read_pointer(self.store, 0);
            }
        }
    }
}
