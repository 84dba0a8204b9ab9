#!/usr/bin/env bash
# Starts and stops private servers with the extension, on a Unix socket only.
#
#   server.sh start DIR [SETTING=VALUE ...]   initdb in DIR if it is empty, and start
#   server.sh stop DIR [fast|immediate]       stop, if it runs; keeps DIR
#   server.sh run DIR PROGRAM [ARGUMENT ...]  run a program of PostgreSQL's as the server's user, in DIR
#
# The socket is in DIR; the port is 5432.

. "$(dirname "$0")/env.sh"

bin=$("$(pg_config_path)" --bindir)
action=$1
dir=$2
shift 2
cd /

start() {
    if [ ! -d "$dir/data" ]; then
        mkdir -p "$dir"
        [ "$(id -u)" != 0 ] || chown nobody "$dir"
        as_server_user test -x "$bin/postgres" \
            || die "the server's user cannot run $bin/postgres: is its directory readable for all?"
        as_server_user "$bin/initdb" -D "$dir/data" -U postgres -A trust --no-sync \
            --encoding UTF8 --locale C.UTF-8 >"$dir.initdb" 2>&1 \
            || { cat "$dir.initdb" >&2; die "initdb failed"; }
        rm "$dir.initdb"
        {
            echo "listen_addresses = ''"
            echo "unix_socket_directories = '$dir'"
            echo "port = 5432"
            echo "shared_preload_libraries = 'pg_stream'"
            echo "extension_control_path = '$EXTENSION_DIR:\$system'"
            echo "dynamic_library_path = '$EXTENSION_DIR:\$libdir'"
            echo "max_worker_processes = 32"
            echo "max_prepared_transactions = 50"
            echo "max_connections = 100"
            echo "shared_buffers = 512MB"
            echo "max_wal_size = 4GB"
            for setting in "$@"; do
                echo "${setting%%=*} = '${setting#*=}'"
            done
        } | as_server_user tee -a "$dir/data/postgresql.conf" >/dev/null
    fi
    as_server_user "$bin/pg_ctl" -D "$dir/data" -l "$dir/log" -w -t 120 start >/dev/null 2>&1 \
        || { tail -30 "$dir/log" >&2; die "the server in $dir does not start"; }
}

stop() {
    [ -f "$dir/data/postmaster.pid" ] || return 0
    as_server_user "$bin/pg_ctl" -D "$dir/data" -m "${1:-fast}" -w -t 60 stop >/dev/null 2>&1 || true
}

run() {
    local program=$1
    shift
    if [ ! -d "$dir" ]; then
        mkdir -p "$dir"
        [ "$(id -u)" != 0 ] || chown nobody "$dir"
    fi
    cd "$dir"
    as_server_user "$bin/$program" "$@"
}

"$action" "$@"
