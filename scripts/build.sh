#!/usr/bin/env bash
# Builds the extension and puts it where the private servers look for it.
# PROFILE=dev builds faster and checks arithmetic; what it builds is slower.

. "$(dirname "$0")/env.sh"
. "$ROOT/scripts/libclang.sh"

export_libclang
PGRX_PG_CONFIG_PATH=$(pg_config_path)
export PGRX_PG_CONFIG_PATH
say "building pg_stream"
PROFILE=${PROFILE:-release}
(cd "$ROOT" && cargo build --quiet --profile "$PROFILE" -p pg_stream)
built=$TARGET_DIR/$PROFILE
[ "$PROFILE" != dev ] || built=$TARGET_DIR/debug

make_run_dir
mkdir -p "$EXTENSION_DIR/extension"
# By rename: a running server keeps the file that it has open.
place() {
    install -m "$1" /dev/stdin "$3.$$" <"$2"
    mv "$3.$$" "$3"
}
place 755 "$built/libpg_stream.so" "$EXTENSION_DIR/pg_stream.so"
place 644 "$ROOT/crates/pg_stream/pg_stream.control" "$EXTENSION_DIR/extension/pg_stream.control"
cat "$ROOT"/crates/pg_stream/sql/*.sql >"$EXTENSION_DIR/install.sql.$$"
place 644 "$EXTENSION_DIR/install.sql.$$" "$EXTENSION_DIR/extension/pg_stream--0.1.0.sql"
rm "$EXTENSION_DIR/install.sql.$$"
