//! The SQL functions: one file each, as thin as possible.

mod alter;
mod create;
mod drop;
mod explain;
mod options;
mod refresh;
mod resume;
