//! When, and in which order, stream tables are refreshed.
#![forbid(unsafe_code)]

pub mod frontier;
