//! The server programming interface: prepared statements that run at a given snapshot, ephemeral
//! relations, and results handed row by row to a closure.
//!
//! A [`Session`] lasts for one piece of work. Statements kept beyond it ([`Prepared`]) are plans
//! saved by PostgreSQL, which re-plans them when the catalog changes.

use std::{
    cell::RefCell, collections::HashMap, ffi::CString, marker::PhantomData, mem::ManuallyDrop, ptr,
    rc::Rc,
};

use pgrx::{
    datum::IntoDatum,
    pg_sys::{self, Datum, Oid, PgOid},
};

use super::{
    access,
    node::pointers,
    snapshot::Snapshot,
    text::{self, Value},
};

/// A connection to the SPI, closed when dropped.
pub struct Session {
    _not_send: PhantomData<*mut ()>,
}

impl Session {
    pub fn open() -> Self {
        // SAFETY: plain call; the matching `SPI_finish` is in `drop`.
        let code = unsafe { pg_sys::SPI_connect() };
        assert_eq!(code, pg_sys::SPI_OK_CONNECT as i32, "SPI_connect always succeeds");
        Self { _not_send: PhantomData }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // After an error, transaction abort closes the connection.
        if !std::thread::panicking() {
            // SAFETY: `open` connected, and sessions nest like stack frames.
            unsafe { pg_sys::SPI_finish() };
        }
    }
}

/// A typed argument of a statement.
#[derive(Clone, Copy)]
pub struct Arg {
    ty: Oid,
    datum: Option<Datum>,
}

impl Arg {
    pub fn new<T: IntoDatum>(value: T) -> Self {
        Self { ty: T::type_oid(), datum: value.into_datum() }
    }
}

impl<T: IntoDatum> From<T> for Arg {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}

/// A row of a result: values and NULLs, valid until the closure that got it returns.
pub struct Row<'row> {
    pub values: &'row [Datum],
    pub nulls: &'row [bool],
}

impl Row<'_> {
    /// The column at `position`, or `None` when it is NULL. Panics when the type does not fit.
    pub fn get<T: Value>(&self, position: usize) -> Option<T> {
        // SAFETY: the executor filled in values and NULLs of the result's descriptor.
        unsafe { T::read(self.values[position], self.nulls[position]) }
    }

    pub fn datum(&self, position: usize) -> Option<Datum> {
        (!self.nulls[position]).then(|| self.values[position])
    }
}

/// A statement that was planned once and is kept until dropped.
pub struct Prepared {
    plan: pg_sys::SPIPlanPtr,
    /// PostgreSQL's copy of the text.
    text: *const std::ffi::c_char,
    args: Vec<Oid>,
}

impl Prepared {
    /// Parses and analyzes `sql`; needs an open [`Session`] with the same ephemeral relations that
    /// it will run with. `args` are the types of `$1`, `$2`, ….
    pub fn new(sql: &str, args: &[Oid]) -> Self {
        let text = text::statement(sql);
        let mut types = args.to_vec();
        // SAFETY: the text and the types outlive the call, which copies them.
        let plan = access::ours(text.as_ptr(), || unsafe {
            pg_sys::SPI_prepare_cursor(
                text.as_ptr(),
                i32::try_from(types.len()).expect("few arguments"),
                types.as_mut_ptr(),
                // A plan is kept per size of the change, so it never depends on parameters.
                pg_sys::CURSOR_OPT_GENERIC_PLAN as i32,
            )
        });
        assert!(!plan.is_null(), "SPI_prepare reports errors by ERROR, not by NULL: {sql}");
        // SAFETY: `plan` was just prepared.
        let code = unsafe { pg_sys::SPI_keepplan(plan) };
        assert_eq!(code, 0, "a fresh plan can be kept");
        // SAFETY: a kept plan of one statement has one source, which lives as long as the plan.
        let text = unsafe {
            let sources = pg_sys::SPI_plan_get_plan_sources(plan);
            let source = pointers::<pg_sys::CachedPlanSource>(sources).next();
            (*source.expect("one statement")).query_string
        };
        Self { plan, text, args: types }
    }

    /// Runs a statement that changes data, at `snapshot` plus this transaction's own changes, and
    /// returns how many rows it changed.
    pub fn execute(&self, args: &[Arg], snapshot: &Snapshot) -> u64 {
        let (mut values, nulls) = self.bind(args);
        // SAFETY: the plan is kept, the arguments match its types, the snapshot is registered.
        let code = access::ours(self.text, || unsafe {
            pg_sys::SPI_execute_snapshot(
                self.plan,
                values.as_mut_ptr(),
                nulls.as_ptr(),
                snapshot.as_ptr(),
                ptr::null_mut(),
                false,
                true,
                0,
            )
        });
        assert!(code > 0, "SPI reports errors by ERROR, not by code {code}");
        // SAFETY: set by the call above.
        unsafe { pg_sys::SPI_processed }
    }

    /// Runs a query at `snapshot` plus this transaction's own changes and hands over each row.
    pub fn query(&self, args: &[Arg], snapshot: &Snapshot, mut each: impl FnMut(Row<'_>)) {
        let (values, nulls) = self.bind(args);
        let mut receiver = Receiver {
            base: pg_sys::DestReceiver {
                receiveSlot: Some(receive),
                rStartup: Some(startup),
                rShutdown: Some(ignore),
                rDestroy: Some(ignore),
                mydest: pg_sys::CommandDest::DestTuplestore,
            },
            each: &mut each,
        };
        let params = self.params(&values, &nulls);
        let options = pg_sys::SPIExecuteOptions {
            params,
            read_only: true,
            dest: (&raw mut receiver).cast(),
            ..Default::default()
        };
        snapshot.with_own_changes(|| {
            // SAFETY: the plan is kept, the receiver and the parameters outlive the call.
            let code = access::ours(self.text, || unsafe {
                pg_sys::SPI_execute_plan_extended(self.plan, &raw const options)
            });
            assert!(code > 0, "SPI reports errors by ERROR, not by code {code}");
        });
    }

    fn bind(&self, args: &[Arg]) -> (Vec<Datum>, Vec<std::ffi::c_char>) {
        assert_eq!(args.len(), self.args.len(), "as many arguments as were prepared");
        let values = args.iter().map(|it| it.datum.unwrap_or(Datum::from(0))).collect();
        let nulls = args
            .iter()
            .map(|it| if it.datum.is_some() { b' ' } else { b'n' } as std::ffi::c_char)
            .collect();
        (values, nulls)
    }

    fn params(&self, values: &[Datum], nulls: &[std::ffi::c_char]) -> pg_sys::ParamListInfo {
        if values.is_empty() {
            return ptr::null_mut();
        }
        // SAFETY: `makeParamList` allocates room for this many parameters.
        unsafe {
            let params = pg_sys::makeParamList(i32::try_from(values.len()).expect("few arguments"));
            for (index, value) in values.iter().enumerate() {
                let param = (*params).params.as_mut_ptr().add(index);
                (*param).value = *value;
                (*param).isnull = nulls[index] == b'n' as std::ffi::c_char;
                (*param).pflags = pg_sys::PARAM_FLAG_CONST as u16;
                (*param).ptype = self.args[index];
            }
            params
        }
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        // SAFETY: a kept plan lives until it is freed here.
        unsafe { pg_sys::SPI_freeplan(self.plan) };
    }
}

#[repr(C)]
struct Receiver<'a> {
    base: pg_sys::DestReceiver,
    each: &'a mut dyn FnMut(Row<'_>),
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn receive(
    slot: *mut pg_sys::TupleTableSlot,
    receiver: *mut pg_sys::DestReceiver,
) -> bool {
    // SAFETY: the executor passes a filled slot and the receiver that `query` gave it.
    unsafe {
        let natts = (*(*slot).tts_tupleDescriptor).natts;
        if i32::from((*slot).tts_nvalid) < natts {
            pg_sys::slot_getsomeattrs_int(slot, natts);
        }
        let width = usize::try_from(natts).expect("a count");
        let row = Row {
            values: std::slice::from_raw_parts((*slot).tts_values, width),
            nulls: std::slice::from_raw_parts((*slot).tts_isnull, width),
        };
        let receiver = receiver.cast::<Receiver<'_>>();
        ((*receiver).each)(row);
    }
    true
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn startup(
    _receiver: *mut pg_sys::DestReceiver,
    _operation: std::ffi::c_int,
    _descriptor: pg_sys::TupleDesc,
) {
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn ignore(_receiver: *mut pg_sys::DestReceiver) {}

/// A tuple store that statements of the current [`Session`] can read by name.
pub struct Relation<'store> {
    name: CString,
    _store: PhantomData<&'store ()>,
}

impl Relation<'_> {
    /// Makes `store` readable as `name`. The planner is told that it holds `rows` rows.
    ///
    /// # Safety
    ///
    /// `store` and `descriptor` must outlive the returned guard, and be made for each other.
    pub unsafe fn register(
        name: &str,
        descriptor: pg_sys::TupleDesc,
        store: *mut pg_sys::Tuplestorestate,
        rows: u64,
    ) -> Self {
        let name = CString::new(name).expect("a name has no NUL");
        // SAFETY: the relation is allocated in PostgreSQL's memory, as the SPI expects.
        unsafe {
            let relation = pg_sys::palloc0(size_of::<pg_sys::EphemeralNamedRelationData>())
                .cast::<pg_sys::EphemeralNamedRelationData>();
            (*relation).md.name = pg_sys::pstrdup(name.as_ptr());
            (*relation).md.tupdesc = descriptor;
            (*relation).md.enrtype = pg_sys::EphemeralNameRelationType::ENR_NAMED_TUPLESTORE;
            (*relation).md.enrtuples = rows as f64;
            (*relation).reldata = store.cast();
            let code = pg_sys::SPI_register_relation(relation);
            assert_eq!(code, pg_sys::SPI_OK_REL_REGISTER as i32, "{name:?} is not registered yet");
        }
        Self { name, _store: PhantomData }
    }
}

impl Drop for Relation<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: `register` registered the name in the session that is still open.
            unsafe { pg_sys::SPI_unregister_relation(self.name.as_ptr()) };
        }
    }
}

/// Runs one statement with arguments `$1`, `$2`, … in a session of its own and hands over each
/// row that it returns; the result is the number of rows. For work that is not worth preparing.
/// Runs at a fresh snapshot where the isolation level allows one.
pub fn run(sql: &str, args: &[Arg], mut each: impl FnMut(Row<'_>)) -> u64 {
    let _session = Session::open();
    let text = text::statement(sql);
    let mut types: Vec<Oid> = args.iter().map(|it| it.ty).collect();
    let mut values: Vec<Datum> = args.iter().map(|it| it.datum.unwrap_or(Datum::from(0))).collect();
    let nulls: Vec<std::ffi::c_char> = args
        .iter()
        .map(|it| if it.datum.is_some() { b' ' } else { b'n' } as std::ffi::c_char)
        .collect();
    // SAFETY: everything passed outlives the call; the result table lives until SPI_finish.
    unsafe {
        let code = pg_sys::SPI_execute_with_args(
            text.as_ptr(),
            i32::try_from(types.len()).expect("few arguments"),
            types.as_mut_ptr(),
            values.as_mut_ptr(),
            nulls.as_ptr(),
            false,
            0,
        );
        assert!(code > 0, "SPI reports errors by ERROR, not by code {code}: {sql}");
        let processed = pg_sys::SPI_processed;
        let table = pg_sys::SPI_tuptable;
        if !table.is_null() {
            let descriptor = (*table).tupdesc;
            let width = usize::try_from((*descriptor).natts).expect("a count");
            let mut row_values = vec![Datum::from(0); width];
            let mut row_nulls = vec![false; width];
            for index in 0..usize::try_from((*table).numvals).expect("fits memory") {
                let tuple = *(*table).vals.add(index);
                pg_sys::heap_deform_tuple(
                    tuple,
                    descriptor,
                    row_values.as_mut_ptr(),
                    row_nulls.as_mut_ptr(),
                );
                each(Row { values: &row_values, nulls: &row_nulls });
            }
        }
        processed
    }
}

thread_local! {
    // Never dropped: at process exit PostgreSQL's memory is gone before thread locals are.
    static ASKED: ManuallyDrop<RefCell<HashMap<&'static str, Rc<Prepared>>>> =
        ManuallyDrop::default();
}

/// As [`run`], for a query that is asked often: it is planned once in a session. It reads what is
/// committed now, and the transaction's own changes, in every isolation level.
pub fn ask(sql: &'static str, args: &[Arg], each: impl FnMut(Row<'_>)) {
    ask_at(sql, args, &Snapshot::latest(), each);
}

/// As [`ask`], of what a snapshot sees.
pub fn ask_at(sql: &'static str, args: &[Arg], snapshot: &Snapshot, each: impl FnMut(Row<'_>)) {
    let _session = Session::open();
    let known = ASKED.with(|asked| asked.borrow().get(sql).map(Rc::clone));
    let prepared = known.unwrap_or_else(|| {
        let types: Vec<Oid> = args.iter().map(|it| it.ty).collect();
        let prepared = Rc::new(Prepared::new(sql, &types));
        ASKED.with(|asked| asked.borrow_mut().insert(sql, Rc::clone(&prepared)));
        prepared
    });
    prepared.query(args, snapshot, each);
}

/// The first column of the first row of [`run`], or `None` when there is no row or it is NULL.
/// `T` must own its content.
pub fn get_one<T: Value>(sql: &str, args: &[Arg]) -> Option<T> {
    let mut result = None;
    run(sql, args, first(&mut result));
    result
}

/// As [`get_one`], of [`ask`].
pub fn ask_one<T: Value>(sql: &'static str, args: &[Arg]) -> Option<T> {
    let mut result = None;
    ask(sql, args, first(&mut result));
    result
}

fn first<T: Value>(result: &mut Option<T>) -> impl FnMut(Row<'_>) {
    |row| {
        if result.is_none() {
            *result = row.get(0);
        }
    }
}

/// The OID of a built-in type.
pub fn type_oid(ty: pg_sys::BuiltinOid) -> Oid {
    PgOid::BuiltIn(ty).value()
}
