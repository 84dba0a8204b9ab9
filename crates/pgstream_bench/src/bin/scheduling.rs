//! How long a commit takes to be visible, and what an idle scheduler costs:
//!
//!     scripts/with_server.sh durable cargo run -p pgstream_bench --bin scheduling

use std::process::ExitCode;

fn main() -> ExitCode {
    match pgstream_bench::scheduling::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
