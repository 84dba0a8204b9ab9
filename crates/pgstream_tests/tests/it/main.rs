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
mod grouping_sets;
mod joins;
mod limit;
mod lowering;
mod monitor;
mod outer_joins;
mod recursion;
mod refusals;
mod scheduler;
mod set_operations;
mod set_returning;
mod sources;
mod stages;
mod sub_queries;
mod trust;
mod windows;
