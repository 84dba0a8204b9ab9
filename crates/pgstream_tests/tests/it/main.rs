//! All scenarios, as one binary; one file per area.

mod aggregates;
mod api;
mod capture;
mod chain;
mod core;
mod crash;
mod ddl;
mod distinct;
mod distinct_on;
mod fuzz;
mod joins;
mod limit;
mod lowering;
mod outer_joins;
mod refusals;
mod scheduler;
mod sources;
mod stages;
mod sub_queries;
mod windows;
