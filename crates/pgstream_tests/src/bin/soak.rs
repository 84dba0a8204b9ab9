//! The soak: `soak [--minutes N] [--seed N] [--writers N] [--wal]`.

use std::{
    env,
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use pgstream_tests::soak::{Options, run};

fn main() -> ExitCode {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is after 1970");
    let mut options = Options {
        seed: clock.as_secs(),
        duration: Duration::from_secs(60),
        writers: 8,
        wal: false,
    };
    let mut arguments = env::args().skip(1);
    while let Some(name) = arguments.next() {
        if name == "--wal" {
            options.wal = true;
            continue;
        }
        let mut number = || -> f64 {
            let text = arguments.next().unwrap_or_default();
            text.parse().unwrap_or_else(|_| panic!("{name} needs a number, not \"{text}\""))
        };
        match name.as_str() {
            "--minutes" => options.duration = Duration::from_secs_f64(number() * 60.0),
            "--seed" => options.seed = number() as u64,
            "--writers" => options.writers = number() as usize,
            _ => panic!("unknown option {name}"),
        }
    }
    println!(
        "soak --seed {} --minutes {}{}",
        options.seed,
        options.duration.as_secs_f64() / 60.0,
        if options.wal { " --wal" } else { "" }
    );
    let report = run(options);
    for (what, count) in &report.done {
        println!("  {count} x {what}");
    }
    for (code, count) in &report.errors {
        println!("  {count} x error {code}");
    }
    for note in &report.notes {
        println!("  {note}");
    }
    for failure in &report.failures {
        println!("\nFAILED: {failure}");
    }
    println!("{} failures", report.failures.len());
    if report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
