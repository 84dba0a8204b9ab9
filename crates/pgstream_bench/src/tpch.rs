//! TPC-H: real data, the 22 queries as stream tables, the benchmark's refresh streams and updates.
//!
//! Data and query text come from the crate `tpchgen`; the parameters are those of the
//! specification's validation runs.

pub mod changes;
pub mod data;
pub mod demo;
pub mod queries;
