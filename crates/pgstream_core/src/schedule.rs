//! When a stream table becomes due: a duration, a cron pattern, or the schedule of its readers.

pub mod cron;
pub mod duration;

use std::str::FromStr;

use cron::Cron;

/// A moment, in microseconds since 1970-01-01 00:00 UTC.
pub type Micros = i64;

/// Microseconds of a second.
pub const SECOND: Micros = 1_000_000;

/// The schedule that the user chose.
#[derive(Clone, Debug, PartialEq)]
pub enum Schedule {
    /// So many seconds after the last time.
    Every(i64),
    /// At the times of a cron pattern.
    Cron(Box<Cron>),
    /// As often as the most eager stream table that reads this one.
    Calculated,
}

/// The longest period, a hundred years: every moment that follows from it is a timestamp.
const MOST_SECONDS: i64 = 100 * 366 * 86_400;

/// Why a text is no schedule.
#[derive(Debug, PartialEq, Eq)]
pub enum BadSchedule {
    /// It is neither a duration, nor a cron pattern, nor CALCULATED.
    Unreadable,
    /// A duration of more than a hundred years.
    TooLong,
    /// A cron pattern that fits no moment.
    NeverFires,
}

impl FromStr for Schedule {
    type Err = BadSchedule;

    fn from_str(text: &str) -> Result<Self, BadSchedule> {
        let text = text.trim();
        if text.eq_ignore_ascii_case("CALCULATED") {
            return Ok(Self::Calculated);
        }
        match duration::parse(text) {
            Some(seconds) if seconds > MOST_SECONDS => Err(BadSchedule::TooLong),
            Some(seconds) => Ok(Self::Every(seconds)),
            None => text.parse().map(|cron| Self::Cron(Box::new(cron))),
        }
    }
}

/// When a stream table is due once its own schedule and those of its readers are put together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Effective {
    /// The shortest duration, in seconds.
    pub every: Option<i64>,
    /// All cron patterns.
    pub crons: Vec<Cron>,
}

impl Effective {
    /// Becomes due whenever `other` does, too.
    pub fn join(&mut self, other: &Self) {
        self.every = [self.every, other.every].into_iter().flatten().min();
        for cron in &other.crons {
            if !self.crons.contains(cron) {
                self.crons.push(cron.clone());
            }
        }
    }

    /// The seconds from one time to the next, around `since`; `None` if there is no next time.
    pub fn period(&self, since: Micros) -> Option<i64> {
        let between_fires = |cron: &Cron| {
            let first = cron.next_after(since)?;
            Some((cron.next_after(first)? - first) / SECOND)
        };
        self.crons.iter().filter_map(between_fires).chain(self.every).min()
    }

    /// Whether it is never due.
    pub fn is_empty(&self) -> bool {
        self.every.is_none() && self.crons.is_empty()
    }

    /// When a table is due that is as of `since`, if it ever is.
    pub fn next_after(&self, since: Micros) -> Option<Micros> {
        let period = self.every.map(|it| since.saturating_add(it.saturating_mul(SECOND)));
        period.into_iter().chain(self.next_fire(since)).min()
    }

    /// The first moment after `since` at which a cron pattern fires.
    pub fn next_fire(&self, since: Micros) -> Option<Micros> {
        self.crons.iter().filter_map(|it| it.next_after(since)).min()
    }
}

impl From<&Schedule> for Effective {
    /// Empty for [`Schedule::Calculated`].
    fn from(schedule: &Schedule) -> Self {
        match schedule {
            Schedule::Every(seconds) => Self { every: Some(*seconds), crons: Vec::new() },
            Schedule::Cron(cron) => Self { every: None, crons: vec![(**cron).clone()] },
            Schedule::Calculated => Self::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_recognized() {
        assert_eq!("5m".parse(), Ok(Schedule::Every(300)));
        assert_eq!("calculated".parse(), Ok(Schedule::Calculated));
        assert!(matches!("*/5 * * * *".parse(), Ok(Schedule::Cron(_))));
        assert!(matches!("@hourly".parse(), Ok(Schedule::Cron(_))));
        for text in ["soon", "", "-5m"] {
            assert_eq!(text.parse::<Schedule>(), Err(BadSchedule::Unreadable), "{text}");
        }
        assert_eq!("99999999999w".parse::<Schedule>(), Err(BadSchedule::TooLong));
        assert_eq!("0 0 30 2 *".parse::<Schedule>(), Err(BadSchedule::NeverFires));
    }

    #[test]
    fn a_period_is_the_time_between_two_fires() {
        let since = 1_800_000_000 * SECOND;
        let of = |text: &str| Effective::from(&text.parse::<Schedule>().unwrap()).period(since);
        assert_eq!(of("90s"), Some(90));
        assert_eq!(of("@hourly"), Some(3600));
        assert_eq!(of("*/5 * * * *"), Some(300));
        assert_eq!(of("CALCULATED"), None);
    }

    #[test]
    fn the_next_time_is_that_of_the_duration_or_of_the_first_pattern() {
        assert_eq!(Effective::from(&Schedule::Every(5)).next_after(7), Some(7 + 5 * SECOND));
        assert_eq!(Effective::default().next_after(7), None);
    }

    #[test]
    fn joining_keeps_the_shortest_duration_and_every_pattern() {
        let hourly: Schedule = "@hourly".parse().unwrap();
        let mut all = Effective::from(&Schedule::Every(60));
        all.join(&Effective::from(&Schedule::Every(30)));
        all.join(&Effective::from(&hourly));
        all.join(&Effective::from(&hourly));
        assert_eq!((all.every, all.crons.len()), (Some(30), 1));
    }
}
