#!/usr/bin/env bash
# Copies the built extension into the PostgreSQL that PG_CONFIG names.

. "$(dirname "$0")/env.sh"

[ -n "${PG_CONFIG:-}" ] || die "say which PostgreSQL: make install PG_CONFIG=/path/to/pg_config"
config=$(pg_config_path)
library=${DESTDIR:-}$("$config" --pkglibdir)
extension=${DESTDIR:-}$("$config" --sharedir)/extension
for dir in "$library" "$extension"; do
    mkdir -p "$dir" 2>/dev/null || true
    [ -w "$dir" ] || die "no permission to write to $dir: run as its owner, or with sudo"
done
# Removed first: a running server keeps the file that it has open.
rm -f "$library/pg_stream.so"
install -m 755 "$EXTENSION_DIR/pg_stream.so" "$library/"
install -m 644 "$EXTENSION_DIR"/extension/pg_stream* "$extension/"
say "installed into $library and $extension"
say "set shared_preload_libraries = 'pg_stream', restart the server, and CREATE EXTENSION pg_stream"
