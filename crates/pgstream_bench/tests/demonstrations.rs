//! TPC-H and Nexmark at a small scale: every stream table equals its query, every refresh is
//! incremental. Beside a server, as `make test` starts it.

use pgstream_bench::{nexmark, tpch};

#[test]
fn tpc_h_stays_exact() {
    assert!(tpch::demo::run(0.01).expect("no error"), "see the output");
}

#[test]
fn nexmark_stays_exact() {
    assert!(nexmark::run(20_000).expect("no error"), "see the output");
}
