//! The arguments that create and alter share.

use pgrx::prelude::*;
use pgstream_core::{
    mode::RefreshMode,
    schedule::{Schedule, duration},
};

use crate::{error::Error, pg::text::Argument, settings};

/// The schedule as the catalog stores it: `None` is CALCULATED.
pub fn schedule(text: Option<&str>) -> Result<Option<&str>, Error> {
    let Some(text) = text.map(str::trim) else { return Ok(None) };
    match text.parse() {
        Ok(Schedule::Calculated) => Ok(None),
        Ok(Schedule::Cron(_)) => Ok(Some(text)),
        Ok(Schedule::Every(seconds)) => {
            let minimum = settings::min_schedule_seconds();
            if seconds < i64::from(minimum) {
                return Err(Error::TooFrequent { text: text.to_owned(), minimum });
            }
            Ok(Some(text))
        }
        Err(why) => Err(Error::BadSchedule { text: text.to_owned(), why }),
    }
}

pub fn mode(text: &str) -> Result<RefreshMode, Error> {
    text.parse().map_err(|_| Error::BadMode(text.to_owned()))
}

/// An argument that has no meaning as NULL.
pub fn required<'a>(value: Option<&'a str>, argument: &'static str) -> Result<&'a str, Error> {
    value.ok_or(Error::MissingArgument(argument))
}

#[pg_extern(sql = false)]
fn parse_duration_seconds(input: Argument) -> Option<i64> {
    duration::parse(&input)
}
