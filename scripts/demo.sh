#!/usr/bin/env bash
# What `make demo` runs beside a server: the quick start, then TPC-H and Nexmark.

. "$(dirname "$0")/env.sh"

cd "$ROOT"
say "the quick start"
createdb quickstart
sed -n '/^```sql$/,/^```$/{/^```/!p}' README.md | psql -d quickstart -v ON_ERROR_STOP=1 --echo-queries -q
say "TPC-H and Nexmark"
cargo run --quiet --release -p pgstream_bench --bin demo
