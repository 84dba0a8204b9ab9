//! How a stream table is refreshed.

use std::{fmt, str::FromStr};

/// The refresh mode that the user chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefreshMode {
    /// Compute the query anew and apply the difference.
    Full,
    /// Apply what follows from the changes of the sources.
    Differential,
}

impl RefreshMode {
    /// The name that the catalog stores.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "FULL",
            Self::Differential => "DIFFERENTIAL",
        }
    }
}

impl fmt::Display for RefreshMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no refresh mode.
#[derive(Debug, PartialEq, Eq)]
pub struct UnknownMode;

impl FromStr for RefreshMode {
    type Err = UnknownMode;

    /// Reads any case, and INCREMENTAL as another name of DIFFERENTIAL.
    fn from_str(text: &str) -> Result<Self, UnknownMode> {
        match text.trim().to_ascii_uppercase().as_str() {
            "FULL" => Ok(Self::Full),
            "DIFFERENTIAL" | "INCREMENTAL" => Ok(Self::Differential),
            _ => Err(UnknownMode),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_case_and_the_alias_are_read() {
        assert_eq!("full".parse(), Ok(RefreshMode::Full));
        assert_eq!("Differential".parse(), Ok(RefreshMode::Differential));
        assert_eq!("incremental".parse(), Ok(RefreshMode::Differential));
        assert_eq!("IMMEDIATE".parse::<RefreshMode>(), Err(UnknownMode));
        assert_eq!("".parse::<RefreshMode>(), Err(UnknownMode));
    }
}
