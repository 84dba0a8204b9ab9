//! The SQL functions: one file each, as thin as possible.

mod alter;
mod create;
mod drop;
mod explain;
mod options;
mod progress;
mod refresh;
mod resume;
mod verify;
