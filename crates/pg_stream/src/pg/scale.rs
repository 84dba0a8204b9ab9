//! Counting numerics by their display scale.
//!
//! `sum` shows the largest scale of its inputs, so a sum that is kept up to date has to know when
//! the last input of the largest scale is gone. The counts are an array whose entry number s + 1 is
//! the net number of inputs of scale s, without zeros at the end.

use pgrx::{
    Array, IntoDatum, PgMemoryContexts, pg_extern,
    pg_sys::{self, Datum},
    varlena,
};

#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_pg_stream_scale_count() -> &'static pg_sys::Pg_finfo_record {
    const RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &RECORD
}

#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_pg_stream_scale_counts() -> &'static pg_sys::Pg_finfo_record {
    const RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &RECORD
}

/// The transition function of `pgstream.scale_counts(numeric, bigint)`.
///
/// # Safety
///
/// PostgreSQL calls it with the arguments that its declaration says.
#[unsafe(no_mangle)]
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn pg_stream_scale_count(fcinfo: pg_sys::FunctionCallInfo) -> Datum {
    // SAFETY: three arguments; the first is NULL or the state that an earlier call returned.
    unsafe {
        let arguments = std::slice::from_raw_parts((*fcinfo).args.as_ptr(), 3);
        let state: *mut Vec<i64> = if arguments[0].isnull {
            let mut context = std::ptr::null_mut();
            if pg_sys::AggCheckCallContext(fcinfo, &raw mut context) == 0 {
                pgrx::error!("this function can only be called in an aggregate");
            }
            PgMemoryContexts::For(context).leak_and_drop_on_delete(Vec::new())
        } else {
            arguments[0].value.cast_mut_ptr()
        };
        if !arguments[1].isnull
            && !arguments[2].isnull
            && let Some(scale) = scale(arguments[1].value)
        {
            let counts = &mut *state;
            if counts.len() <= scale {
                counts.resize(scale + 1, 0);
            }
            counts[scale] += arguments[2].value.value() as i64;
        }
        (*fcinfo).isnull = false;
        Datum::from(state)
    }
}

/// The final function of `pgstream.scale_counts(numeric, bigint)`.
///
/// # Safety
///
/// PostgreSQL calls it with the state, or NULL when there was no input.
#[unsafe(no_mangle)]
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn pg_stream_scale_counts(fcinfo: pg_sys::FunctionCallInfo) -> Datum {
    // SAFETY: one argument, as above.
    unsafe {
        let argument = &*(*fcinfo).args.as_ptr();
        let counts = if argument.isnull {
            Vec::new()
        } else {
            (*argument.value.cast_mut_ptr::<Vec<i64>>()).clone()
        };
        (*fcinfo).isnull = false;
        trimmed(counts).into_datum().expect("an array is never NULL")
    }
}

/// How many digits a numeric shows behind the point; `None` for NaN and infinities.
///
/// # Safety
///
/// `value` must be a numeric.
unsafe fn scale(value: Datum) -> Option<usize> {
    const SHORT: u16 = 0x8000;
    const SPECIAL: u16 = 0xc000;
    // SAFETY: behind the length is a word whose upper bits tell the format; in the long format
    // sign and scale are in it, in the short one the scale is in the middle.
    unsafe {
        let stored: *mut pg_sys::varlena = value.cast_mut_ptr();
        let plain = pg_sys::pg_detoast_datum_packed(stored);
        let header = varlena::vardata_any(plain).cast::<u16>().read_unaligned();
        if plain != stored {
            pg_sys::pfree(plain.cast());
        }
        match header & SPECIAL {
            SPECIAL => None,
            SHORT => Some(usize::from((header & 0x1f80) >> 7)),
            _ => Some(usize::from(header & 0x3fff)),
        }
    }
}

fn trimmed(mut counts: Vec<i64>) -> Vec<i64> {
    let end = counts.iter().rposition(|it| *it != 0).map_or(0, |it| it + 1);
    counts.truncate(end);
    counts
}

/// `pgstream.add_scale_counts(bigint[], bigint[])`.
#[pg_extern(sql = false)]
fn add_scale_counts(left: Option<Array<'_, i64>>, right: Option<Array<'_, i64>>) -> Vec<i64> {
    let mut sum: Vec<i64> = Vec::new();
    for counts in [left, right].into_iter().flatten() {
        for (scale, count) in counts.iter().enumerate() {
            if sum.len() <= scale {
                sum.push(0);
            }
            sum[scale] += count.unwrap_or(0);
        }
    }
    trimmed(sum)
}

/// `pgstream.max_scale(bigint[])`.
#[pg_extern(sql = false)]
fn max_scale(counts: Array<'_, i64>) -> Option<i32> {
    let last = counts.iter().enumerate().filter(|(_, it)| it.is_some_and(|it| it != 0)).last();
    last.map(|(scale, _)| i32::try_from(scale).expect("scales are below 16384"))
}
