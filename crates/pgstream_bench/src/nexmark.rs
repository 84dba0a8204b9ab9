//! Nexmark: people, auctions and bids in an online auction, and the benchmark's queries in their
//! batch forms: over tables that grow, with the windows of time written as columns.
//!
//! Queries 10 and 11 are left out: one writes files, the other's windows are sessions.

mod events;
mod queries;
mod run;

pub use run::run;
