//! What lowering asks of the catalog about types, operators and functions.

use std::collections::{BTreeMap, HashSet};
use std::ptr;

use pgrx::{name_data_to_str, pg_sys};
use pgstream_ivm::scalar::Type;

use super::deparse::quote;
use super::node::text;
use super::tuple::attribute;

pub use pgrx::pg_sys::{Oid, TypeRelationId as CATALOG};

/// `pg_ts_config`, for which there is no binding.
pub const TEXT_SEARCH_CONFIGURATIONS: Oid = Oid::from_u32(3602);

/// The type as the algebra keeps it.
pub fn describe(oid: Oid, typmod: i32, collation: Oid) -> Type {
    let flags = pg_sys::FORMAT_TYPE_TYPEMOD_GIVEN | pg_sys::FORMAT_TYPE_FORCE_QUALIFY;
    // SAFETY: the type exists, as an analyzed query refers to it.
    let sql = unsafe { text(pg_sys::format_type_extended(oid, typmod, flags as pg_sys::bits16)) };
    Type {
        oid: oid.to_u32(),
        typmod,
        collation: collation.to_u32(),
        sql: sql.unwrap_or_default(),
        equality: equality(oid).and_then(operator_sql),
        exact: is_exact(oid, typmod, collation),
        domain: is_domain(oid),
    }
}

/// Whether equal values have the same binary image, as B-tree deduplication asks it.
fn is_exact(oid: Oid, typmod: i32, collation: Oid) -> bool {
    const EQUAL_IMAGE: i16 = 4;
    // SAFETY: the type exists; the support function takes the operator class's input type.
    unsafe {
        let entry = pg_sys::lookup_type_cache(oid, pg_sys::TYPECACHE_BTREE_OPFAMILY as i32);
        let (family, input) = ((*entry).btree_opf, (*entry).btree_opintype);
        let lacks_collation =
            collation == NO_COLLATION && pg_sys::get_typcollation(oid) != NO_COLLATION;
        // Without a length, values can differ in their padding.
        let is_unpadded = input == pg_sys::BPCHAROID && typmod < 0;
        if family == pg_sys::InvalidOid || lacks_collation || is_unpadded {
            return false;
        }
        let function = pg_sys::get_opfamily_proc(family, input, input, EQUAL_IMAGE);
        function != pg_sys::InvalidOid
            && pg_sys::OidFunctionCall1Coll(function, collation, input.into()).value() != 0
    }
}

/// The default equality operator of a type.
pub fn equality(oid: Oid) -> Option<Oid> {
    // SAFETY: the type exists; the cache entry is read at once.
    let operator =
        unsafe { (*pg_sys::lookup_type_cache(oid, pg_sys::TYPECACHE_EQ_OPR as i32)).eq_opr };
    (operator != pg_sys::InvalidOid).then_some(operator)
}

/// An operator with its schema, as one names it in a query.
pub fn operator_sql(operator: Oid) -> Option<String> {
    // SAFETY: look-ups by OID give null or a string.
    unsafe {
        let name = text(pg_sys::get_opname(operator))?;
        let tuple =
            pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::OPEROID as i32, operator.into());
        if tuple.is_null() {
            return None;
        }
        let namespace =
            (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_operator>()).oprnamespace;
        pg_sys::ReleaseSysCache(tuple);
        let schema = text(pg_sys::get_namespace_name(namespace))?;
        Some(format!("OPERATOR({}.{name})", quote(&schema)))
    }
}

/// How a function's result depends on the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Volatility {
    Immutable,
    Stable,
    Volatile,
}

/// The declared volatility of a function.
pub fn volatility(function: Oid) -> Volatility {
    // SAFETY: the function exists, as an analyzed query refers to it.
    match unsafe { pg_sys::func_volatile(function) } as u8 {
        b'i' => Volatility::Immutable,
        b's' => Volatility::Stable,
        _ => Volatility::Volatile,
    }
}

/// A function's name, if PostgreSQL itself brought it.
pub fn builtin_function(function: Oid) -> Option<String> {
    if !is_builtin(function) {
        return None;
    }
    Some(plain_function_name(function))
}

/// The result type that a function is declared with.
pub fn result_type(function: Oid) -> Oid {
    // SAFETY: the function exists, as an analyzed query refers to it.
    unsafe { pg_sys::get_func_rettype(function) }
}

/// The function that reads values of a type.
pub fn input_function(ty: Oid) -> Oid {
    let (mut function, mut parameter) = (pg_sys::InvalidOid, pg_sys::InvalidOid);
    // SAFETY: the type exists.
    unsafe { pg_sys::getTypeInputInfo(ty, &raw mut function, &raw mut parameter) };
    function
}

/// The function that writes values of a type.
pub fn output_function(ty: Oid) -> Oid {
    let (mut function, mut is_varlena) = (pg_sys::InvalidOid, false);
    // SAFETY: the type exists.
    unsafe { pg_sys::getTypeOutputInfo(ty, &raw mut function, &raw mut is_varlena) };
    function
}

/// Whether a function compares two values and gives NULL for a NULL only. Rows are not meant: IS NULL
/// looks into them.
pub fn is_comparison(function: Oid) -> bool {
    const ENDS: [&str; 6] = ["eq", "ne", "lt", "le", "gt", "ge"];
    result_type(function) == BOOLEAN
        && builtin_function(function)
            .filter(|name| !name.starts_with("record"))
            .is_some_and(|name| ENDS.iter().any(|it| name.ends_with(it)))
}

/// Whether a function is the default equality of a type, or that of two integers of any size.
pub fn is_equality_of(function: Oid, ty: Oid) -> bool {
    const INTEGERS: [&str; 9] = [
        "int2eq", "int4eq", "int8eq", "int24eq", "int42eq", "int28eq", "int82eq", "int48eq",
        "int84eq",
    ];
    // SAFETY: the operator exists.
    let own = equality(ty).map(|it| unsafe { pg_sys::get_opcode(it) });
    own == Some(function)
        || builtin_function(function).is_some_and(|name| INTEGERS.contains(&name.as_str()))
}

/// Whether a function reads or writes values as types do.
pub fn is_conversion(function: Oid) -> bool {
    let (mut arguments, mut count) = (ptr::null_mut(), 0);
    // SAFETY: the function exists, as an analyzed query refers to it; the array has as many items.
    unsafe {
        let result = pg_sys::get_func_signature(function, &raw mut arguments, &raw mut count);
        let mut types = (0..count as usize).map(|it| *arguments.add(it)).chain([result]);
        types.any(|it| it == pg_sys::CSTRINGOID)
    }
}

/// A function's bare name.
pub fn plain_function_name(function: Oid) -> String {
    // SAFETY: a look-up by OID gives null or a string.
    unsafe { text(pg_sys::get_func_name(function)) }.unwrap_or_default()
}

/// Whether an object was there from `initdb` on.
pub fn is_builtin(object: Oid) -> bool {
    object.to_u32() < pg_sys::FirstNormalObjectId
}

/// A function's name, qualified and quoted.
pub fn function_name(function: Oid) -> String {
    // SAFETY: look-ups by OID give null or a string.
    unsafe {
        let name = text(pg_sys::get_func_name(function)).unwrap_or_default();
        let schema = text(pg_sys::get_namespace_name_or_temp(pg_sys::get_func_namespace(function)));
        format!("{}.{}", quote(&schema.unwrap_or_default()), quote(&name))
    }
}

/// The types whose sums have an exact inverse.
pub fn is_exact_number(oid: Oid) -> bool {
    is_integer(oid) || oid == pg_sys::NUMERICOID
}

/// smallint, integer, bigint.
pub fn is_integer(oid: Oid) -> bool {
    [pg_sys::INT2OID, pg_sys::INT4OID, pg_sys::INT8OID].contains(&oid)
}

/// `numeric`.
pub fn is_numeric(oid: Oid) -> bool {
    oid == pg_sys::NUMERICOID
}

/// The anonymous row type.
pub fn is_record(oid: Oid) -> bool {
    oid == pg_sys::RECORDOID
}

/// The types of dates and times.
pub fn is_date_or_time(oid: Oid) -> bool {
    [
        pg_sys::DATEOID,
        pg_sys::TIMEOID,
        pg_sys::TIMETZOID,
        pg_sys::TIMESTAMPOID,
        pg_sys::TIMESTAMPTZOID,
    ]
    .contains(&oid)
}

/// `money`.
pub fn is_money(oid: Oid) -> bool {
    oid == pg_sys::MONEYOID
}

/// Composite types and the anonymous row type.
pub fn is_row(oid: Oid) -> bool {
    // SAFETY: the type exists.
    is_record(oid) || unsafe { pg_sys::type_is_rowtype(oid) }
}

/// The type of a table's rows.
pub fn row_type(table: Oid) -> Oid {
    // SAFETY: a look-up by OID.
    unsafe { pg_sys::get_rel_type_id(table) }
}

/// What a value of a row type is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowType {
    /// The table, view or composite type.
    pub relation: Oid,
    /// Names, types and type modifiers of the fields, by their numbers.
    pub fields: Vec<(usize, String, Oid, i32)>,
}

/// Row types by their OIDs.
pub type RowTypes = BTreeMap<u32, RowType>;

/// Adds the row types whose values are in a value of the type.
pub fn collect_row_types(oid: Oid, found: &mut RowTypes) {
    if let Some(inner) = inner_type(oid) {
        collect_row_types(inner, found);
    } else if is_row(oid) && !is_record(oid) && !found.contains_key(&oid.to_u32()) {
        let row_type = look_at_row_type(oid);
        let fields: Vec<Oid> = row_type.fields.iter().map(|it| it.2).collect();
        found.insert(oid.to_u32(), row_type);
        fields.into_iter().for_each(|it| collect_row_types(it, found));
    }
}

/// Adds the type, and those of the values that are in its values.
pub fn collect_parts(oid: Oid, found: &mut HashSet<Oid>) {
    if !found.insert(oid) {
        return;
    }
    if let Some(inner) = inner_type(oid) {
        collect_parts(inner, found);
    } else if is_row(oid) && !is_record(oid) {
        look_at_row_type(oid).fields.iter().for_each(|it| collect_parts(it.2, found));
    }
}

/// What a domain, a range or an array consists of.
fn inner_type(oid: Oid) -> Option<Oid> {
    // SAFETY: look-ups in the catalog, each for its kind of type.
    let inner = unsafe {
        match pg_sys::get_typtype(oid) as u8 {
            pg_sys::TYPTYPE_DOMAIN => pg_sys::getBaseType(oid),
            pg_sys::TYPTYPE_RANGE => pg_sys::get_range_subtype(oid),
            pg_sys::TYPTYPE_MULTIRANGE => pg_sys::get_multirange_range(oid),
            pg_sys::TYPTYPE_COMPOSITE => pg_sys::InvalidOid,
            _ => pg_sys::get_element_type(oid),
        }
    };
    (inner != pg_sys::InvalidOid).then_some(inner)
}

fn look_at_row_type(oid: Oid) -> RowType {
    // SAFETY: the type is a composite one; its descriptor is released after its last use.
    unsafe {
        let descriptor = pg_sys::lookup_rowtype_tupdesc(oid, -1);
        let count = usize::try_from((*descriptor).natts).expect("a count");
        let fields = (0..count)
            .map(|at| (at, &*attribute(descriptor, at)))
            .filter(|(_, it)| !it.attisdropped)
            .map(|(at, it)| {
                (at, name_data_to_str(&it.attname).to_owned(), it.atttypid, it.atttypmod)
            })
            .collect();
        if (*descriptor).tdrefcount >= 0 {
            pg_sys::DecrTupleDescRefCount(descriptor);
        }
        RowType { relation: pg_sys::get_typ_typrelid(oid), fields }
    }
}

/// Whether a table can have columns of the type: not of anonymous rows, for one.
pub fn is_storable(oid: Oid) -> bool {
    // SAFETY: a look-up in the catalog.
    (unsafe { pg_sys::get_typtype(oid) }) as u8 != pg_sys::TYPTYPE_PSEUDO
}

fn is_domain(oid: Oid) -> bool {
    // SAFETY: a look-up in the catalog.
    (unsafe { pg_sys::get_typtype(oid) }) as u8 == pg_sys::TYPTYPE_DOMAIN
}

/// Whether a type is a domain whose values are arrays.
pub fn is_domain_over_array(oid: Oid) -> bool {
    // SAFETY: look-ups in the catalog.
    unsafe {
        pg_sys::get_base_element_type(oid) != pg_sys::InvalidOid
            && pg_sys::get_element_type(oid) == pg_sys::InvalidOid
    }
}

/// `bigint`.
pub const BIGINT: Oid = pg_sys::INT8OID;

/// `integer`.
pub const INTEGER: Oid = pg_sys::INT4OID;

/// `boolean`.
pub const BOOLEAN: Oid = pg_sys::BOOLOID;

/// `time with time zone`.
pub const TIMETZ: Oid = pg_sys::TIMETZOID;

/// The collation of a type that has none.
pub const NO_COLLATION: Oid = pg_sys::InvalidOid;

/// The display scale that a `numeric` type modifier asks for.
pub fn numeric_scale(typmod: i32) -> Option<u32> {
    let modifier = typmod.checked_sub(pg_sys::VARHDRSZ as i32).filter(|_| typmod >= 4)?;
    let scale = ((modifier & 0x7ff) ^ 1024) - 1024;
    Some(scale.max(0).cast_unsigned())
}
