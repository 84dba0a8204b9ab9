//! Cron patterns, read as Vixie cron does, in UTC.

use std::str::FromStr;

use chrono::{DateTime, Utc};
use croner::{
    Cron as Pattern,
    parser::{CronParser, Seconds, Year},
};

use super::{BadSchedule, Micros};

/// A cron pattern of 5 fields, or 6 with leading seconds, or an alias such as `@daily`.
#[derive(Clone, Debug)]
pub struct Cron {
    text: String,
    pattern: Pattern,
}

impl Cron {
    /// The first fire time after `moment`, or `None` when there is none.
    pub fn next_after(&self, moment: Micros) -> Option<Micros> {
        let moment: DateTime<Utc> = DateTime::from_timestamp_micros(moment)?;
        let next = self.pattern.find_next_occurrence(&moment, false).ok()?;
        Some(next.timestamp_micros())
    }
}

impl PartialEq for Cron {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl FromStr for Cron {
    type Err = BadSchedule;

    /// Refuses what never fires.
    fn from_str(text: &str) -> Result<Self, BadSchedule> {
        let parser =
            CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let pattern = parser.parse(text.trim()).map_err(|_| BadSchedule::Unreadable)?;
        let cron = Self { text: text.trim().to_owned(), pattern };
        cron.next_after(0).ok_or(BadSchedule::NeverFires)?;
        Ok(cron)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::schedule::SECOND;

    fn next(pattern: &str, after: &str) -> String {
        let cron: Cron = pattern.parse().expect("a pattern");
        let after: DateTime<Utc> = after.parse().expect("a time");
        let next = cron.next_after(after.timestamp_micros()).expect("it fires again");
        DateTime::from_timestamp_micros(next).unwrap().naive_utc().to_string()
    }

    #[test]
    fn fields_lists_ranges_steps_and_names() {
        assert_eq!(next("*/5 * * * *", "2026-01-01T00:01:00Z"), "2026-01-01 00:05:00");
        assert_eq!(next("*/10 * * * * *", "2026-01-01T00:00:01Z"), "2026-01-01 00:00:10");
        assert_eq!(next("0 6 * * 1-5", "2026-01-03T00:00:00Z"), "2026-01-05 06:00:00");
        assert_eq!(next("0 6,18 * * *", "2026-01-03T07:00:00Z"), "2026-01-03 18:00:00");
        assert_eq!(next("0 0 1 FEB MON", "2026-01-03T07:00:00Z"), "2026-02-01 00:00:00");
        assert_eq!(next("0 0 * * SUN", "2026-01-03T07:00:00Z"), "2026-01-04 00:00:00");
    }

    #[test]
    fn aliases() {
        for (alias, expected) in [
            ("@yearly", "2027-01-01 00:00:00"),
            ("@annually", "2027-01-01 00:00:00"),
            ("@monthly", "2026-03-01 00:00:00"),
            ("@weekly", "2026-02-22 00:00:00"),
            ("@daily", "2026-02-18 00:00:00"),
            ("@hourly", "2026-02-17 11:00:00"),
        ] {
            assert_eq!(next(alias, "2026-02-17T10:30:00Z"), expected, "{alias}");
        }
    }

    #[test]
    fn a_fire_time_is_not_repeated() {
        assert_eq!(next("@hourly", "2026-01-01T11:00:00Z"), "2026-01-01 12:00:00");
    }

    #[test]
    fn nonsense_and_what_never_fires_are_refused() {
        for text in ["", "* * * *", "61 * * * *", "* * * * * * *", "0 0 30 2 *", "@fortnightly"] {
            assert!(text.parse::<Cron>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn parsing_is_total(text in "[-@*/,0-9a-zA-Z# ]{0,30}") {
            let _ = text.parse::<Cron>().is_ok();
        }

        #[test]
        fn the_next_time_lies_ahead(minute in 0u8..60, after in 0i64..4_000_000_000) {
            let cron: Cron = format!("{minute} * * * *").parse().unwrap();
            let next = cron.next_after(after * SECOND).unwrap();
            prop_assert!(next > after * SECOND && next <= (after + 3600) * SECOND);
            prop_assert_eq!(next / SECOND / 60 % 60, i64::from(minute));
        }
    }
}
