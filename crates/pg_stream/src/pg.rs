//! Safe views and guards over PostgreSQL. The only module that names `pg_sys`.

pub mod buffer;
pub mod deparse;
pub mod frontier;
pub mod hash;
pub mod lock;
pub mod node;
pub mod query;
pub mod relation;
pub mod scale;
pub mod security;
pub mod snapshot;
pub mod source;
pub mod spi;
pub mod store;
pub mod table;
pub mod time;
pub mod trigger;
pub mod tuple;
pub mod types;
