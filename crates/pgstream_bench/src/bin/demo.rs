//! `make demo`: TPC-H with stream tables for the 22 queries, refreshed after each of the benchmark's
//! refresh streams and after updates, and compared row by row with the queries themselves; then the
//! same with Nexmark's stream of events.
//!
//! `--scale 0.1` is the default, with 100 thousand events of Nexmark; more than 300 thousand are
//! never made. Fails if a stream table differs from its query, or if a refresh
//! was not incremental.

use std::process::ExitCode;

use pgstream_bench::Result;
use pgstream_bench::{nexmark, tpch};

fn main() -> ExitCode {
    match scale(std::env::args().skip(1)).and_then(run) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(scale: f64) -> Result<bool> {
    let tpch = tpch::demo::run(scale)?;
    println!();
    Ok(nexmark::run((scale * 1e6).min(3e5) as i64)? && tpch)
}

fn scale(mut arguments: impl Iterator<Item = String>) -> Result<f64> {
    match (arguments.next().as_deref(), arguments.next(), arguments.next()) {
        (None, ..) => Ok(0.1),
        (Some("--scale"), Some(value), None) => Ok(value.parse()?),
        _ => Err("usage: demo [--scale 0.1]".into()),
    }
}
