//! pg_stream: stream tables for PostgreSQL.

#![allow(clippy::missing_safety_doc, reason = "safety is argued inside the `pg` module")]

::pgrx::pg_module_magic!(name, version);

pub mod lower;
pub mod pg;
