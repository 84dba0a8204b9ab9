//! Safe views and guards over PostgreSQL. The only module that names `pg_sys`.

pub mod security;
pub mod snapshot;
pub mod spi;
pub mod deparse;
pub mod node;
pub mod query;
pub mod table;
pub mod types;
