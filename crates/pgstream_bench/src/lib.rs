//! What users see of pg_stream's speed: the benchmark of `make bench` ([`bench`]) and the
//! demonstrations of `make demo`, TPC-H ([`tpch`]) and Nexmark ([`nexmark`]), and what the scheduler
//! costs ([`scheduling`]).
//!
//! All know the extension through SQL only. They find the server in `PGSTREAM_TEST_URL` and
//! work in a database of their own, which they create anew.

pub mod bench;
pub mod nexmark;
pub mod scheduling;
pub mod server;
pub mod table;
pub mod tpch;

/// Errors end the program with their message.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
