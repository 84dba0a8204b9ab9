//! When, and in which order, stream tables are refreshed.
//!
//! Nothing here knows PostgreSQL or reads a clock: states and the time come in as arguments.
//!
//! ```
//! use pgstream_core::schedule::Schedule;
//!
//! let schedule: Schedule = "1h30m".parse().unwrap();
//! assert_eq!(schedule, Schedule::Every(5400));
//! ```
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod dag;
pub mod decide;
pub mod frontier;
pub mod mode;
pub mod name;
pub mod schedule;
pub mod status;
pub mod wal;
