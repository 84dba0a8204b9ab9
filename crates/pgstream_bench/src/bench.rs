//! The benchmark: what a refresh costs, against computing the query again and against the SQL
//! that a good engineer would write by hand for the same change.
//!
//! `docs/BENCHMARK.md` says how it measures and what the numbers were.

mod change;
mod explain;
mod matrix;
mod operators;
mod report;
mod shapes;
mod single;
mod writes;

use std::process::Command;

use crate::{Result, server};
use report::Report;

const DATABASE: &str = "pgstream_bench";

/// What the command line asks for.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// 10 and 100 thousand rows, fewer runs.
    pub quick: bool,
    /// Only this shape, and only the matrix.
    pub shape: Option<String>,
    /// Only this number of rows, and only the matrix.
    pub rows: Option<usize>,
    /// Only the table of operators.
    pub only_operators: bool,
    /// Print the plans of a refresh that missed its bar.
    pub explain: bool,
    /// Write docs/BENCHMARK.md.
    pub write: bool,
}

impl Options {
    fn sizes(&self) -> Vec<usize> {
        match self.rows {
            Some(rows) => vec![rows],
            None if self.quick => vec![10_000, 100_000],
            None => vec![10_000, 100_000, 1_000_000],
        }
    }

    fn only_matrix(&self) -> bool {
        self.shape.is_some() || self.rows.is_some()
    }
}

/// Runs everything that the options ask for; prints as it goes, and the table at the end.
pub fn run(options: &Options) -> Result<()> {
    let mut client = server::create_database(DATABASE)?;
    let mut report = Report::new(machine(&mut client)?);
    if !options.only_operators {
        matrix::run(&mut client, options, &mut report)?;
    }
    if options.only_operators || !options.only_matrix() {
        operators::run(&mut client, options, &mut report)?;
    }
    if !options.only_operators && !options.only_matrix() {
        single::run(&mut client, options, &mut report)?;
        writes::run(&mut client, options, &mut report)?;
    }
    drop(client);
    println!("\n{}", report.plain());
    if options.write {
        let path = "docs/BENCHMARK.md";
        std::fs::create_dir_all("docs")?;
        std::fs::write(path, report.markdown())?;
        println!("written to {path}");
    }
    Ok(())
}

/// The machine and the server in one line, for the report.
fn machine(client: &mut postgres::Client) -> Result<String> {
    let version: String = client.query_one("SELECT split_part(version(), ' on ', 1)", &[])?.get(0);
    let settings: String = client
        .query_one(
            "SELECT string_agg(name || ' ' || current_setting(name), ', ' ORDER BY name)
             FROM pg_settings WHERE name IN ('shared_buffers', 'work_mem', 'fsync')",
            &[],
        )?
        .get(0);
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("");
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let model = model.trim_start_matches([' ', '\t', ':']);
    let date = Command::new("date").arg("+%F").output().map(|o| o.stdout).unwrap_or_default();
    let date = String::from_utf8_lossy(&date).trim().to_owned();
    Ok(format!("{version}, {settings}; {cores} cores {model}; {date}"))
}
