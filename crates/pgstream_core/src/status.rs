//! The life of a stream table.

use std::{fmt, str::FromStr};

/// What may happen to a stream table next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Waits for its first refresh.
    Initializing,
    /// Is refreshed by schedule and on request.
    Active,
    /// Rests until it is resumed, after repeated failures or on request.
    Suspended,
    /// Its definition no longer fits its sources; it keeps its contents.
    Error,
}

impl Status {
    /// The name that the catalog stores.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Initializing => "INITIALIZING",
            Self::Active => "ACTIVE",
            Self::Suspended => "SUSPENDED",
            Self::Error => "ERROR",
        }
    }

    /// Whether the scheduler refreshes it.
    pub fn is_scheduled(self) -> bool {
        matches!(self, Self::Initializing | Self::Active)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no status.
#[derive(Debug, PartialEq, Eq)]
pub struct UnknownStatus;

impl FromStr for Status {
    type Err = UnknownStatus;

    fn from_str(text: &str) -> Result<Self, UnknownStatus> {
        let all = [Self::Initializing, Self::Active, Self::Suspended, Self::Error];
        all.into_iter()
            .find(|it| it.as_str().eq_ignore_ascii_case(text.trim()))
            .ok_or(UnknownStatus)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for status in [Status::Initializing, Status::Active, Status::Suspended, Status::Error] {
            assert_eq!(status.as_str().parse(), Ok(status));
            assert_eq!(status.as_str().to_lowercase().parse(), Ok(status));
        }
        assert_eq!("PAUSED".parse::<Status>(), Err(UnknownStatus));
    }
}
