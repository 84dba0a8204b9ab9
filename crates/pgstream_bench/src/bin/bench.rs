//! `make bench`: what refreshes and capture cost, and the bars that they are to meet.
//!
//!     bench [--quick] [--shape NAME] [--rows N] [--operators] [--explain] [--write]

use std::process::ExitCode;

use pgstream_bench::Result;
use pgstream_bench::bench::{self, Options};

fn main() -> ExitCode {
    match options(std::env::args().skip(1)).and_then(|options| bench::run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options::default();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or("a value is missing");
        match argument.as_str() {
            "--quick" => options.quick = true,
            "--shape" => options.shape = Some(value()?),
            "--rows" => options.rows = Some(value()?.parse()?),
            "--operators" => options.only_operators = true,
            "--explain" => options.explain = true,
            "--write" => options.write = true,
            _ => {
                return Err(
                    "usage: bench [--quick] [--shape NAME] [--rows N] [--operators] [--explain] [--write]".into(),
                );
            }
        }
    }
    Ok(options)
}
