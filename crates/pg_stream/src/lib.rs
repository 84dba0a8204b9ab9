//! pg_stream: stream tables for PostgreSQL.

#![allow(clippy::missing_safety_doc, reason = "safety is argued inside the `pg` module")]

::pgrx::pg_module_magic!(name, version);

pub mod pg;

pub mod error;
pub mod fault;
pub mod settings;

pub mod catalog;
pub mod lower;

pub mod capture;
pub mod refresh;

pub mod ddl;
pub mod monitor;
pub mod restore;
pub mod scheduler;

pub mod api;

/// Called by PostgreSQL when the library is loaded.
#[pgrx::pg_guard]
pub extern "C-unwind" fn _PG_init() {
    pg::hide_backtraces();
    settings::define();
    pg::access::install();
    pg::member::protect_extension();
    pg::event::before_ddl(ddl::before);
    pg::label::define(restore::check_label);
    if pg::is_preloading() {
        scheduler::install();
    } else if !pg::shmem::is_available() {
        scheduler::warn_of_missing_preload();
    }
}
