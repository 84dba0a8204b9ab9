//! Types, and literals from small domains, so that joins and groups collide.

use super::{
    random::Random,
    types::{self, SIMPLES, Simple},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    Int,
    BigInt,
    /// `numeric(8,2)`.
    Fixed,
    /// `numeric` of any scale, with NaN and Infinity.
    Numeric,
    Float,
    Text,
    Varchar,
    Char,
    Date,
    Timestamp,
    Bool,
    Jsonb,
    Uuid,
    /// One of the many others.
    Of(&'static Simple),
}

pub const RATIO: Type = Type::Of(&types::RATIO);

const COLUMN_TYPES: &[Type] = &[
    Type::Int,
    Type::Int,
    Type::Int,
    Type::BigInt,
    Type::Fixed,
    Type::Numeric,
    Type::Float,
    Type::Text,
    Type::Text,
    Type::Varchar,
    Type::Char,
    Type::Date,
    Type::Timestamp,
    Type::Bool,
    Type::Jsonb,
    Type::Uuid,
];

impl Type {
    pub fn sql(self) -> &'static str {
        match self {
            Self::Int => "int",
            Self::BigInt => "bigint",
            Self::Fixed => "numeric(8,2)",
            Self::Numeric => "numeric",
            Self::Float => "float8",
            Self::Text => "text",
            Self::Varchar => "varchar(6)",
            Self::Char => "char(4)",
            Self::Date => "date",
            Self::Timestamp => "timestamptz",
            Self::Bool => "boolean",
            Self::Jsonb => "jsonb",
            Self::Uuid => "uuid",
            Self::Of(simple) => simple.sql,
        }
    }

    /// The type of a column that is made.
    pub fn column_sql(self) -> &'static str {
        match self {
            Self::Of(simple) => simple.column,
            other => other.sql(),
        }
    }

    /// The type of a random column.
    pub fn random(random: &mut Random) -> Self {
        if random.chance(35) {
            Self::Of(random.pick::<&Simple>(SIMPLES))
        } else {
            *random.pick(COLUMN_TYPES)
        }
    }

    pub fn is_array(self) -> bool {
        self.sql().ends_with("[]")
    }

    pub fn has_equality(self) -> bool {
        !matches!(self, Self::Of(Simple { equality: false, .. }))
    }

    pub fn has_order(self) -> bool {
        !matches!(self, Self::Jsonb | Self::Of(Simple { order: false, .. }))
    }

    pub fn is_never_null(self) -> bool {
        matches!(self, Self::Of(Simple { not_null: true, .. }))
    }

    /// Expressions of this type around a value of type `from`, with `{}` for that.
    pub fn parts_of(self, from: Self) -> Vec<&'static str> {
        let Self::Of(simple) = from else { return Vec::new() };
        simple.parts.iter().filter(|it| it.1 == self).map(|it| it.0).collect()
    }

    /// The first letters of the names of its columns; columns of one name have one type.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Int => "i",
            Self::BigInt => "big",
            Self::Fixed => "fx",
            Self::Numeric => "n",
            Self::Float => "f",
            Self::Text => "x",
            Self::Varchar => "vc",
            Self::Char => "ch",
            Self::Date => "d",
            Self::Timestamp => "ts",
            Self::Bool => "b",
            Self::Jsonb => "j",
            Self::Uuid => "u",
            Self::Of(simple) => simple.prefix,
        }
    }

    /// Whether equal values may look different (1.0 and 1.00, 0 and -0).
    pub fn is_open(self) -> bool {
        matches!(self, Self::Numeric | Self::Float | Self::Of(Simple { open: true, .. }))
    }

    pub fn may_be_key(self) -> bool {
        matches!(
            self,
            Self::Int
                | Self::BigInt
                | Self::Text
                | Self::Date
                | Self::Uuid
                | Self::Varchar
                | Self::Fixed
                | Self::Of(Simple { order: true, not_null: false, .. })
        )
    }

    pub fn is_number(self) -> bool {
        matches!(self, Self::Int | Self::BigInt | Self::Fixed | Self::Numeric | Self::Float)
    }

    /// Whether `min` and `max` take it.
    pub fn has_extremes(self) -> bool {
        self.extreme().is_some()
    }

    /// What `min` and `max` make of it, if they take it.
    pub fn extreme(self) -> Option<Self> {
        match self {
            Self::Bool | Self::Jsonb | Self::Uuid => None,
            Self::Varchar => Some(Self::Text),
            Self::Of(simple) => simple.extremes,
            other => Some(other),
        }
    }

    /// A literal of its type, never NULL.
    pub fn literal(self, random: &mut Random) -> String {
        let number = random.below(6);
        match self {
            Self::Int => random.pick(&["0", "1", "2", "3", "-1", "7"]).to_string(),
            Self::BigInt => random
                .pick(&[
                    "0::bigint",
                    "1::bigint",
                    "2::bigint",
                    "3::bigint",
                    "4000000000",
                    "-1::bigint",
                ])
                .to_string(),
            Self::Fixed => {
                random.pick(&["0.00", "1.50", "2.00", "-3.25", "1.00", "99999.99"]).to_string()
                    + "::numeric(8,2)"
            }
            Self::Numeric => {
                let values = [
                    "0",
                    "1",
                    "1.0",
                    "1.00",
                    "2.5",
                    "-0.125",
                    "3",
                    "7.50",
                    "NaN",
                    "Infinity",
                    "-Infinity",
                ];
                let last = if random.chance(15) { values.len() } else { 8 };
                format!("'{}'::numeric", values[random.below(last)])
            }
            Self::Float => {
                let values =
                    ["0", "1", "-0", "0.25", "2.5", "-3", "4", "NaN", "Infinity", "-Infinity"];
                let last = if random.chance(15) { values.len() } else { 7 };
                format!("'{}'::float8", values[random.below(last)])
            }
            Self::Text => {
                random.pick(&["'a'", "'b'", "''", "'it''s $1'", "'A'", "'é %s'"]).to_string()
                    + "::text"
            }
            Self::Varchar => {
                random.pick(&["'a'", "'b'", "''", "'abcdef'", "'A'", "'  '"]).to_string()
                    + "::varchar(6)"
            }
            Self::Char => {
                random.pick(&["'a'", "'b'", "''", "'abcd'", "'A'", "'a b'"]).to_string()
                    + "::char(4)"
            }
            Self::Date => format!("'2020-02-{:02}'::date", 26 + number.min(3)),
            Self::Timestamp => format!("'2020-02-28 0{number}:00:00+00'::timestamptz"),
            Self::Bool => random.pick(&["true", "false"]).to_string(),
            Self::Jsonb => {
                random
                    .pick(&[
                        "'null'",
                        "'1'",
                        "'\"a\"'",
                        "'{\"a\": 1}'",
                        "'{\"a\": 2, \"b\": null}'",
                        "'[1, \"x\"]'",
                    ])
                    .to_string()
                    + "::jsonb"
            }
            Self::Uuid => format!("'00000000-0000-0000-0000-00000000000{number}'::uuid"),
            Self::Of(simple) => simple.literal(random.pick::<&str>(simple.texts)),
        }
    }

    /// A literal for a column, NULL now and then if it may be.
    pub fn value(self, nullable: bool, random: &mut Random) -> String {
        if nullable && !self.is_never_null() && random.chance(18) {
            "NULL".to_owned()
        } else {
            self.literal(random)
        }
    }

    /// A literal for a column that tells rows apart: the domain is wider.
    pub fn key_value(self, random: &mut Random) -> String {
        let number = random.below(40);
        match self {
            Self::Int => number.to_string(),
            Self::BigInt => format!("{number}::bigint"),
            Self::Fixed => format!("{number}.50::numeric(8,2)"),
            Self::Text => format!("'k{number}'::text"),
            Self::Varchar => format!("'k{number}'::varchar(6)"),
            Self::Date => format!("('2020-01-01'::date + {number})"),
            Self::Uuid => format!("'00000000-0000-0000-0000-0000000000{number:02}'::uuid"),
            other => other.literal(random),
        }
    }
}
