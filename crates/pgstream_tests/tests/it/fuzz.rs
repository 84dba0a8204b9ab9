//! The random tester tests itself.

use std::time::Duration;

use pgstream_tests::fuzz::{Options, Oracle, run};

#[test]
fn a_wrong_oracle_is_found_and_shrunk() {
    let report = run(&Options {
        seed: 1,
        duration: Duration::from_secs(30),
        cases: 30,
        workers: 1,
        failures: 1,
        oracle: Oracle::Wrong,
        directory: None,
    });
    assert_eq!(report.failures.len(), 1, "{report:?}");
    let script = &report.failures[0].1;
    assert!(script.lines().count() < 25, "a short script: {script}");
}
