//! The types beyond the common ones, as a table: what a column of each holds, and what PostgreSQL
//! can do with it.

use super::value::Type;

/// A type of which the tester knows no more than this.
pub struct Simple {
    /// In a cast.
    pub sql: &'static str,
    /// Behind the name of a column.
    pub column: &'static str,
    pub prefix: &'static str,
    /// Texts of values, which a cast makes values.
    pub texts: &'static [&'static str],
    pub equality: bool,
    pub order: bool,
    /// Whether `min` and `max` take it, and what comes out.
    pub extremes: Option<Type>,
    /// Whether equal values may look different.
    pub open: bool,
    /// Whether no value may be NULL.
    pub not_null: bool,
    /// What can be made of a value.
    pub parts: &'static [(&'static str, Type)],
    /// Statements that a database needs first.
    pub needs: &'static [&'static str],
}

/// Types refer to each other, and to themselves.
impl std::fmt::Debug for Simple {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.column)
    }
}

impl PartialEq for Simple {
    fn eq(&self, other: &Self) -> bool {
        self.column == other.column
    }
}

impl Eq for Simple {}

const ORDERED: Simple = Simple {
    sql: "",
    column: "",
    prefix: "",
    texts: &[],
    equality: true,
    order: true,
    extremes: None,
    open: false,
    not_null: false,
    parts: &[],
    needs: &[],
};

const OPEN: Simple = Simple { open: true, ..ORDERED };

/// Without equality.
const OPAQUE: Simple = Simple { equality: false, order: false, ..ORDERED };

macro_rules! simples {
    ($($name:ident = $sql:literal $column:literal $prefix:literal $texts:expr, $base:expr;)*) => {
        $(pub static $name: Simple =
            Simple { sql: $sql, column: $column, prefix: $prefix, texts: &$texts, ..$base };)*
        pub static SIMPLES: &[&Simple] = &[$(&$name,)*];
    };
}

simples! {
    ENUM = "mood" "mood" "mo" ["sad", "ok", "happy"], Simple {
        needs: &["CREATE TYPE mood AS ENUM ('happy', 'sad', 'ok')"],
        extremes: Some(Type::Of(&ENUM)),
        parts: &[("({})::text", Type::Text)],
        ..ORDERED
    };
    CHECKED = "small" "small" "dc" ["0", "1", "2", "7"], Simple {
        needs: &["CREATE DOMAIN small AS int CHECK (VALUE < 1000)"],
        extremes: Some(Type::Int),
        parts: &[("({})::int", Type::Int), ("({} + 1)", Type::Int)],
        ..ORDERED
    };
    NEVER_NULL = "never_null" "never_null" "dn" ["0", "1", "2"], Simple {
        needs: &["CREATE DOMAIN never_null AS int NOT NULL"],
        extremes: Some(Type::Int),
        not_null: true,
        ..ORDERED
    };
    LABEL = "label" "label" "dt" ["a", "b", ""], Simple {
        needs: &["CREATE DOMAIN label AS varchar(6)"],
        extremes: Some(Type::Text),
        parts: &[("upper({})", Type::Text)],
        ..ORDERED
    };
    PAIR = "pair" "pair" "co" ["(1,a)", "(1,)", "(,)", "(2,b)"], Simple {
        needs: &["CREATE TYPE pair AS (a int, b text)"],
        parts: &[("({}).a", Type::Int), ("({}).b", Type::Text)],
        ..ORDERED
    };
    PRICE = "price" "price" "cp" ["(1.0,EUR)", "(1.00,EUR)", "(2,)"], Simple {
        needs: &["CREATE TYPE price AS (amount numeric, unit char(3))"],
        parts: &[("({}).amount", Type::Numeric)],
        ..OPEN
    };
    LOOSE = "loose" "loose" "cl" ["(1,\"{\"\"a\"\": 1}\")", "(2,)"], Simple {
        needs: &["CREATE TYPE loose AS (a int, j json)"],
        parts: &[("({}).a", Type::Int), ("({}).j", Type::Of(&JSON))],
        ..OPAQUE
    };
    JSON = "json" "json" "js" ["null", "1", "{\"a\": 1}", "{\"a\":1}", "[1, 2]"], Simple {
        parts: &[("({})::jsonb", Type::Jsonb), ("({} ->> 'a')", Type::Text)],
        ..OPAQUE
    };
    POINT = "point" "point" "po" ["(1,2)", "(0,0)", "(-1,2.5)"], Simple {
        parts: &[("({})[0]", Type::Float)],
        ..OPAQUE
    };
    BOX = "box" "box" "bx" ["(1,2),(0,0)", "(2,1),(0,0)"], OPAQUE;
    INTS = "int[]" "int[]" "ia" ["{}", "{1}", "{1,NULL}", "[0:1]={1,2}", "{{1,2},{3,4}}"], Simple {
        extremes: Some(Type::Of(&INTS)),
        parts: &[("({})[1]", Type::Int), ("cardinality({})", Type::Int)],
        ..ORDERED
    };
    NUMERICS = "numeric[]" "numeric[]" "na" ["{}", "{1.0}", "{1.00,NULL}", "{NaN}"], OPEN;
    TEXTS = "text[]" "text[]" "xa" ["{}", "{a}", "{a,b}", "{NULL}"], Simple {
        parts: &[("array_to_string({}, ',')", Type::Text)],
        ..ORDERED
    };
    RANGE = "int4range" "int4range" "ra" ["empty", "[1,3)", "[1,2]", "(,5)", "[2,)"], Simple {
        parts: &[("lower({})", Type::Int), ("isempty({})", Type::Bool)],
        ..ORDERED
    };
    NUMERIC_RANGE = "numrange" "numrange" "rn" ["empty", "[1.0,3)", "[1.00,3)", "(,5]"], OPEN;
    MULTIRANGE = "int4multirange" "int4multirange" "mr" ["{}", "{[1,3)}", "{[1,3),[5,7)}"], Simple {
        parts: &[("upper({})", Type::Int)],
        ..ORDERED
    };
    INTERVAL = "interval" "interval" "iv"
        ["1 day", "24 hours", "-1 month", "30 days", "0", "infinity"], Simple {
        extremes: Some(Type::Of(&INTERVAL)),
        ..OPEN
    };
    TIME = "time" "time" "ti" ["00:00", "12:30:00.5", "24:00"], Simple {
        extremes: Some(Type::Of(&TIME)),
        ..ORDERED
    };
    TIMETZ = "timetz" "timetz(0)" "tz" ["12:00+00", "13:00+01", "14:00-03"], ORDERED;
    STAMP = "timestamp" "timestamp(3)" "tp" ["2020-02-28 01:00", "infinity", "-infinity"], Simple {
        extremes: Some(Type::Of(&STAMP)),
        parts: &[("({})::date", Type::Date)],
        ..ORDERED
    };
    SMALL = "int2" "smallint" "si" ["0", "1", "-1", "7"], Simple {
        extremes: Some(Type::Of(&SMALL)),
        parts: &[("({})::int", Type::Int)],
        ..ORDERED
    };
    REAL = "real" "real" "re" ["0", "-0", "1", "0.5", "NaN"], Simple {
        extremes: Some(Type::Of(&REAL)),
        ..OPEN
    };
    // Not exact as thirds are not: a sum would depend on the order of the rows.
    RATIO = "float8" "float8" "rt" ["0", "0.1", "0.5", "1"], Simple {
        extremes: Some(Type::Of(&RATIO)),
        ..ORDERED
    };
    MONEY = "money" "money" "my" ["0", "1.50", "-3"], Simple {
        extremes: Some(Type::Of(&MONEY)),
        ..ORDERED
    };
    NEGATIVE_SCALE = "numeric" "numeric(5,-2)" "ns" ["0", "100", "1200", "NaN"], Simple {
        parts: &[("({})::numeric", Type::Numeric)],
        ..OPEN
    };
    BYTES = "bytea" "bytea" "by" ["", "\\x00", "\\x0001", "\\xff"], Simple {
        extremes: Some(Type::Of(&BYTES)),
        ..ORDERED
    };
    BITS = "bit(4)" "bit(4)" "bi" ["0000", "1010", "1111"], ORDERED;
    VARBITS = "varbit" "varbit(6)" "vb" ["", "1", "10", "1010"], ORDERED;
    INET = "inet" "inet" "in" ["10.0.0.1", "10.0.0.0/8", "::1", "10.0.0.1/32"], Simple {
        extremes: Some(Type::Of(&INET)),
        ..ORDERED
    };
    CIDR = "cidr" "cidr" "ci" ["10.0.0.0/8", "::/0"], ORDERED;
    MAC = "macaddr" "macaddr" "ma" ["08:00:2b:01:02:03", "08:00:2b:01:02:04"], ORDERED;
    LSN = "pg_lsn" "pg_lsn" "ls" ["0/0", "1/A"], Simple {
        extremes: Some(Type::Of(&LSN)),
        ..ORDERED
    };
    NAME = "name" "name" "nm" ["a", "b", ""], Simple { parts: &[("({})::text", Type::Text)], ..ORDERED };
    LETTER = "\"char\"" "\"char\"" "le" ["a", "b", ""], ORDERED;
    OID = "oid" "oid" "oi" ["0", "1", "4294967295"], Simple {
        extremes: Some(Type::Of(&OID)),
        ..ORDERED
    };
    VECTOR = "tsvector" "tsvector" "tv" ["", "a:1 b:2", "b:1"], ORDERED;
    C_TEXT = "text" "text COLLATE \"C\"" "xc" ["a", "b", "A", "é", ""], Simple {
        extremes: Some(Type::Of(&C_TEXT)),
        ..ORDERED
    };
    POSIX_TEXT = "varchar(9)" "varchar(9) COLLATE \"POSIX\"" "xp" ["a", "b", "B", "z"], ORDERED;
    UTF8_TEXT = "text" "text COLLATE pg_catalog.pg_c_utf8" "xu" ["a", "Ä", "ä", ""], Simple {
        extremes: Some(Type::Of(&UTF8_TEXT)),
        ..ORDERED
    };
    CI_TEXT = "public.citext" "public.citext" "ct" ["a", "A", "b", "B", ""], Simple {
        needs: &["CREATE EXTENSION IF NOT EXISTS citext SCHEMA public"],
        extremes: Some(Type::Of(&CI_TEXT)),
        parts: &[("({})::text", Type::Text)],
        ..OPEN
    };
    HSTORE = "public.hstore" "public.hstore" "hs" ["", "a=>1", "a=>NULL, b=>2"], Simple {
        needs: &["CREATE EXTENSION IF NOT EXISTS hstore SCHEMA public"],
        parts: &[("({} -> 'a')", Type::Text)],
        order: false,
        ..ORDERED
    };
    LONG = "text" "text STORAGE EXTERNAL" "lo"
        ["repeat:a", "repeat:b", "repeat:c", "a", ""], Simple {
        extremes: Some(Type::Of(&LONG)),
        parts: &[("left({}, 3)", Type::Text), ("length({})", Type::Int)],
        ..ORDERED
    };
    LONG_JSON = "jsonb" "jsonb" "lj" ["repeat:a", "repeat:b", "1"], Simple {
        parts: &[("jsonb_typeof({})", Type::Text)],
        ..ORDERED
    };
}

impl Simple {
    /// A value of the type.
    pub fn literal(&self, text: &str) -> String {
        let text = match (text.strip_prefix("repeat:"), self.sql) {
            (Some(letter), "jsonb") => return format!("to_jsonb(repeat('{letter}', 2600))"),
            (Some(letter), _) => return format!("repeat('{letter}', 2600)"),
            (None, _) => text.replace('\'', "''"),
        };
        format!("'{text}'::{}", self.sql)
    }
}
