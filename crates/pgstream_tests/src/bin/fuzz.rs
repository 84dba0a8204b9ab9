//! The random tester: `fuzz [--minutes N] [--seed N] [--cases N] [--failures N] [--workers N] [--wrong-oracle]`.

use std::{
    env,
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use pgstream_tests::fuzz::{Options, Oracle, run};

fn main() -> ExitCode {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is after 1970");
    let mut options = Options {
        seed: clock.as_secs() * 1000,
        duration: Duration::from_secs(60),
        cases: u64::MAX,
        workers: 2,
        failures: 1,
        oracle: Oracle::Query,
        directory: Some("target/fuzz".into()),
    };
    let mut arguments = env::args().skip(1);
    while let Some(name) = arguments.next() {
        let mut number = || -> f64 {
            let text = arguments.next().unwrap_or_default();
            text.parse().unwrap_or_else(|_| panic!("{name} needs a number, not \"{text}\""))
        };
        match name.as_str() {
            "--minutes" => options.duration = Duration::from_secs_f64(number() * 60.0),
            "--seed" => options.seed = number() as u64,
            "--cases" => options.cases = number() as u64,
            "--failures" => options.failures = number() as usize,
            "--workers" => options.workers = number() as usize,
            "--wrong-oracle" => options.oracle = Oracle::Wrong,
            _ => panic!("unknown option {name}"),
        }
    }
    println!("seed {}", options.seed);
    let report = run(&options);
    println!(
        "{} cases, {} stream tables, {} refreshes; refused {} ({:.1} %), queries that PostgreSQL rejects or too large {:?}, errors of the query itself {}",
        report.cases,
        report.stream_tables,
        report.refreshes,
        report.refused,
        100.0 * report.refused as f64 / report.stream_tables.max(1) as f64,
        report.unusable,
        report.query_errors,
    );
    for (reason, count) in &report.refusals {
        println!("  refused {count} x {reason}");
    }
    for (reason, count) in &report.whole {
        println!("  evaluated as a whole {count} x {reason}");
    }
    println!("{}", report.coverage.summary());
    for seed in &report.slow {
        println!("SLOW: fuzz --seed {seed} --cases 1 (a statement took more than a minute)");
    }
    for (seed, script) in &report.failures {
        println!("\nFAILED: fuzz --seed {seed} --cases 1 (target/fuzz/{seed}.sql)\n\n{script}");
    }
    if report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
