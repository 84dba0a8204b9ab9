//! Watching from outside. Views and reporting functions are SQL (`sql/40_monitor.sql`).

pub mod alert;
