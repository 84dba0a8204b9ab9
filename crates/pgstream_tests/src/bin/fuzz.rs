//! The random tester.

fn main() {}
