//! Values, and the few operations on them that tests use.
//!
//! Two notions of sameness are kept apart, as PostgreSQL does: `==` on [`Value`] is the binary
//! image (1.0 and 1.00 differ), [`Value::compare`] and [`Value::canonical`] follow the type.

use std::cmp::Ordering;

/// A SQL value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// NULL of any type.
    Null,
    /// `boolean`.
    Bool(bool),
    /// Any integer type.
    Int(i64),
    /// `numeric`.
    Numeric(Numeric),
    /// `text`, or a literal whose type is not known yet.
    Text(String),
    /// What `pgstream.scale_counts` returns: the number of inputs of each display scale.
    Counts(Vec<i64>),
    /// A row value.
    Record(Vec<Value>),
}

/// A `numeric` with its display scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Numeric {
    /// `-Infinity`.
    NegativeInfinity,
    /// `coefficient / 10^scale`.
    Finite {
        /// The digits.
        coefficient: i128,
        /// How many of them follow the point.
        scale: u32,
    },
    /// `Infinity`.
    Infinity,
    /// `NaN`, which equals itself and is greater than all else.
    NaN,
}

use Numeric::{Finite, Infinity, NaN, NegativeInfinity};

impl Numeric {
    /// Reads a literal such as `-1.50` or `NaN`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "NaN" => return Some(NaN),
            "Infinity" => return Some(Infinity),
            "-Infinity" => return Some(NegativeInfinity),
            _ => {}
        }
        let scale = text.split_once('.').map_or(0, |(_, digits)| digits.len());
        let coefficient = text.replace('.', "").parse().ok()?;
        Some(Finite { coefficient, scale: u32::try_from(scale).ok()? })
    }

    /// The same number without trailing zeros.
    fn trimmed(self) -> Self {
        match self {
            Finite { mut coefficient, mut scale } => {
                while scale > 0 && coefficient % 10 == 0 {
                    coefficient /= 10;
                    scale -= 1;
                }
                Finite { coefficient, scale }
            }
            other => other,
        }
    }

    fn aligned(self, scale: u32) -> i128 {
        match self {
            Finite { coefficient, scale: own } => coefficient * 10_i128.pow(scale - own),
            _ => unreachable!("only finite numbers have a scale"),
        }
    }

    /// The display scale of a finite number.
    pub fn scale(self) -> Option<u32> {
        match self {
            Finite { scale, .. } => Some(scale),
            _ => None,
        }
    }

    fn class(self) -> i32 {
        match self {
            NegativeInfinity => -1,
            Finite { .. } => 0,
            Infinity => 1,
            NaN => 2,
        }
    }

    fn compare(self, other: Self) -> Ordering {
        match (self.scale(), other.scale()) {
            (Some(a), Some(b)) => {
                let scale = a.max(b);
                self.aligned(scale).cmp(&other.aligned(scale))
            }
            _ => self.class().cmp(&other.class()),
        }
    }

    fn add(self, other: Self) -> Self {
        match (self, other) {
            (Finite { scale: a, .. }, Finite { scale: b, .. }) => {
                let scale = a.max(b);
                Finite { coefficient: self.aligned(scale) + other.aligned(scale), scale }
            }
            (NaN, _) | (_, NaN) | (Infinity, NegativeInfinity) | (NegativeInfinity, Infinity) => {
                NaN
            }
            (Finite { .. }, special) | (special, _) => special,
        }
    }

    fn negated(self) -> Self {
        match self {
            NegativeInfinity => Infinity,
            Infinity => NegativeInfinity,
            NaN => NaN,
            Finite { coefficient, scale } => Finite { coefficient: -coefficient, scale },
        }
    }

    fn multiply(self, other: Self) -> Self {
        match (self, other) {
            (Finite { coefficient: a, scale: s }, Finite { coefficient: b, scale: t }) => {
                Finite { coefficient: a * b, scale: s + t }
            }
            (NaN, _) | (_, NaN) => NaN,
            (a, b) => match a.sign() * b.sign() {
                0 => NaN,
                1 => Infinity,
                _ => NegativeInfinity,
            },
        }
    }

    /// Division by a positive number. The precision of the result depends on the display scale of
    /// both, as in PostgreSQL, though not by the same formula.
    fn divide(self, other: Self) -> Self {
        match (self, other) {
            (Finite { scale, .. }, Finite { coefficient: divisor, scale: other_scale }) => {
                let result = scale.max(other_scale) + 3;
                let dividend = self.aligned(result + other_scale);
                Finite { coefficient: divide_rounding(dividend, divisor), scale: result }
            }
            (special, _) => special,
        }
    }

    fn round(self, scale: u32) -> Self {
        match self {
            Finite { coefficient, scale: own } if own > scale => Finite {
                coefficient: divide_rounding(coefficient, 10_i128.pow(own - scale)),
                scale,
            },
            Finite { .. } => Finite { coefficient: self.aligned(scale), scale },
            special => special,
        }
    }

    fn sign(self) -> i128 {
        match self {
            Finite { coefficient, .. } => coefficient.signum(),
            NegativeInfinity => -1,
            Infinity | NaN => 1,
        }
    }
}

/// Half away from zero.
fn divide_rounding(dividend: i128, divisor: i128) -> i128 {
    let sign = dividend.signum() * divisor.signum();
    sign * ((2 * dividend.abs() + divisor.abs()) / (2 * divisor.abs()))
}

impl Value {
    /// A text.
    pub fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    /// A numeric from a literal such as `1.50`.
    pub fn numeric(text: &str) -> Self {
        Self::Numeric(Numeric::parse(text).expect("a numeric literal"))
    }

    /// Whether this is NULL.
    pub fn is_null(&self) -> bool {
        *self == Self::Null
    }

    /// The value as a numeric; an untyped literal is read as one.
    pub fn to_numeric(&self) -> Numeric {
        match self {
            Self::Int(value) => Finite { coefficient: i128::from(*value), scale: 0 },
            Self::Numeric(value) => *value,
            Self::Text(text) => Numeric::parse(text).expect("a numeric literal"),
            other => panic!("{other:?} is not a number"),
        }
    }

    /// The value as an integer.
    pub fn to_int(&self) -> i64 {
        match self {
            Self::Int(value) => *value,
            Self::Numeric(value) => {
                i64::try_from(value.round(0).aligned(0)).expect("an integer in range")
            }
            other => panic!("{other:?} is not an integer"),
        }
    }

    /// The order of the type; `None` if either is NULL.
    pub fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Null, _) | (_, Self::Null) => None,
            (Self::Int(a), Self::Int(b)) => Some(a.cmp(b)),
            (Self::Text(a), Self::Text(b)) => Some(a.cmp(b)),
            (Self::Bool(a), Self::Bool(b)) => Some(a.cmp(b)),
            (Self::Int(_) | Self::Numeric(_), _) => {
                Some(self.to_numeric().compare(other.to_numeric()))
            }
            (a, b) => panic!("{a:?} and {b:?} cannot be compared"),
        }
    }

    /// A representative of the values that the type calls equal. NULL represents itself.
    #[must_use]
    pub fn canonical(&self) -> Self {
        match self {
            Self::Numeric(value) => Self::Numeric(value.trimmed()),
            other => other.clone(),
        }
    }

    fn arithmetic(
        &self,
        other: &Self,
        on_integers: fn(i64, i64) -> i64,
        on_numerics: fn(Numeric, Numeric) -> Numeric,
    ) -> Self {
        match (self, other) {
            (Self::Null, _) | (_, Self::Null) => Self::Null,
            (Self::Int(a), Self::Int(b)) => Self::Int(on_integers(*a, *b)),
            (a, b) => Self::Numeric(on_numerics(a.to_numeric(), b.to_numeric())),
        }
    }

    /// `self + other`.
    #[must_use]
    pub fn add(&self, other: &Self) -> Self {
        self.arithmetic(other, |a, b| a + b, Numeric::add)
    }

    /// `self - other`.
    #[must_use]
    pub fn subtract(&self, other: &Self) -> Self {
        self.arithmetic(other, |a, b| a - b, |a, b| a.add(b.negated()))
    }

    /// `self * other`.
    #[must_use]
    pub fn multiply(&self, other: &Self) -> Self {
        self.arithmetic(other, |a, b| a * b, Numeric::multiply)
    }

    /// `self / other`.
    #[must_use]
    pub fn divide(&self, other: &Self) -> Self {
        self.arithmetic(other, |a, b| a / b, Numeric::divide)
    }

    /// `- self`.
    #[must_use]
    pub fn negated(&self) -> Self {
        match self {
            Self::Null => Self::Null,
            Self::Int(value) => Self::Int(-value),
            other => Self::Numeric(other.to_numeric().negated()),
        }
    }

    /// `round(self, scale)`.
    #[must_use]
    pub fn round(&self, scale: &Self) -> Self {
        match (self, scale) {
            (Self::Null, _) | (_, Self::Null) => Self::Null,
            (value, scale) => {
                let scale = u32::try_from(scale.to_int()).expect("a display scale");
                Self::Numeric(value.to_numeric().round(scale))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Value;

    #[test]
    fn equal_numbers_can_have_different_images() {
        let (short, long) = (Value::numeric("1.0"), Value::numeric("1.00"));
        assert_ne!(short, long);
        assert_eq!(short.canonical(), long.canonical());
        assert_eq!(short.compare(&long), Some(std::cmp::Ordering::Equal));
        assert_eq!(short.add(&long), Value::numeric("2.00"));
    }

    #[test]
    fn infinities_have_no_inverse() {
        let infinity = Value::numeric("Infinity");
        assert_eq!(infinity.subtract(&infinity), Value::numeric("NaN"));
        assert_eq!(infinity.multiply(&Value::Int(0)), Value::numeric("NaN"));
    }

    #[test]
    fn division_rounds_by_the_display_scale() {
        assert_eq!(Value::numeric("2").divide(&Value::Int(3)), Value::numeric("0.667"));
        assert_eq!(Value::numeric("-2.0").divide(&Value::Int(3)), Value::numeric("-0.6667"));
        assert_eq!(Value::numeric("2.0").round(&Value::Int(2)), Value::numeric("2.00"));
    }
}
