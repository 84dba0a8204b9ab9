#!/usr/bin/env bash
# What `make test` runs beside a server: the scenarios, TPC-H and Nexmark, then the random tester and the soak.

. "$(dirname "$0")/env.sh"

cd "$ROOT"
say "scenarios on a server"
cargo test -p pgstream_tests --no-fail-fast
say "TPC-H and Nexmark at a small scale"
cargo test -p pgstream_bench
# The cases of one seed, so that a change is judged by what it changes; make fuzz takes new ones.
say "random tester, ${MINUTES:-1} minute(s)"
cargo run --quiet -p pgstream_tests --bin fuzz -- --minutes "${MINUTES:-1}" --seed "${SEED:-1}"
say "soak, one minute"
cargo run --quiet -p pgstream_tests --bin soak -- --minutes 1
say "the same with capture from the write-ahead log, half a minute each"
"$ROOT/scripts/with_server.sh" wal \
    cargo run --quiet -p pgstream_tests --bin fuzz -- --minutes 0.5 --seed "${SEED:-1}"
cargo run --quiet -p pgstream_tests --bin soak -- --wal --minutes 0.5
