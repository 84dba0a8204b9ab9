//! Safe views and guards over PostgreSQL. The only module that names `pg_sys`.

pub mod access;
pub mod alter;
pub mod buffer;
mod composite;
mod deadlock;
pub mod decode;
pub mod deparse;
pub mod dump;
pub mod event;
pub mod fault;
pub mod frontier;
pub mod hash;
pub mod hook;
pub mod item;
pub mod job;
pub mod label;
pub mod lock;
pub mod member;
pub mod name;
pub mod node;
pub mod notify;
pub mod original;
pub mod own;
pub mod portable;
pub mod progress;
pub mod query;
mod raw;
pub mod relation;
pub mod scale;
pub mod security;
pub mod shmem;
pub mod snapshot;
pub mod source;
pub mod spi;
pub mod store;
pub mod subtransaction;
pub mod table;
pub mod text;
pub mod time;
pub mod trigger;
pub mod tuple;
pub mod types;
pub mod view;
pub mod wake;
pub mod window;
pub mod worker;
pub mod write;

/// Whether the server is loading `shared_preload_libraries` right now.
pub fn is_preloading() -> bool {
    // SAFETY: reads a variable that only the postmaster sets.
    unsafe { pgrx::pg_sys::process_shared_preload_libraries_in_progress }
}

/// Users of a server that happens to have RUST_BACKTRACE in its environment get plain errors.
pub fn hide_backtraces() {
    // SAFETY: libraries are loaded while the process has one thread.
    unsafe { std::env::set_var("RUST_LIB_BACKTRACE", "0") };
}
