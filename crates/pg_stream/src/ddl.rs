//! Reactions to DDL, as event triggers.
//!
//! They run after every DROP and ALTER in the database, so each asks one cheap question first:
//! does this concern a stream table?

mod alter;
pub mod drop;
mod source;
