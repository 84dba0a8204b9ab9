#!/usr/bin/env bash
# Clippy over everything, the extension included.

. "$(dirname "$0")/env.sh"
. "$ROOT/scripts/libclang.sh"

export_libclang
PGRX_PG_CONFIG_PATH=$(pg_config_path)
export PGRX_PG_CONFIG_PATH
cd "$ROOT"
cargo clippy --workspace --all-targets -- -D warnings
