#!/usr/bin/env bash
# Runs a command beside a fresh private server, and removes the server when the command ends.
#
#   with_server.sh fast|wal|durable COMMAND...
#
# fast: for tests; no fsync, no scheduler. wal: the same with changes captured from the write-ahead
# log, where tables have REPLICA IDENTITY FULL. durable: PostgreSQL's and our own defaults.
# The command finds the server by libpq's variables (PGHOST ...) and by PGSTREAM_TEST_URL;
# PGSTREAM_TEST_DIR is a directory for more servers, which are stopped as well.

. "$(dirname "$0")/env.sh"

mode=$1
shift

# Stops all servers below a run's directory, and removes it.
remove_run() {
    local run=$1 data
    for data in "$run"/*/data; do
        [ ! -d "$data" ] || "$ROOT/scripts/server.sh" stop "${data%/data}" immediate
    done
    rm -rf "$run"
}

make_run_dir
# What a killed run has left.
for run in "$RUN_DIR"/run.*; do
    if [ -d "$run" ] && ! kill -0 "$(cat "$run/pid" 2>/dev/null || echo 0)" 2>/dev/null; then
        remove_run "$run"
    fi
done

run=$(mktemp -d "$RUN_DIR/run.XXXXXX")
echo $$ >"$run/pid"
chmod 755 "$run"
trap 'remove_run "$run"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

fast=(fsync=off synchronous_commit=off full_page_writes=off autovacuum_naptime=5s
    pg_stream.enabled=off log_min_messages=warning)
case $mode in
    fast) settings=("${fast[@]}") ;;
    wal) settings=("${fast[@]}" wal_level=logical output_plugin_libraries=pg_stream
        max_replication_slots=50 pg_stream.cdc_mode=auto) ;;
    durable) settings=() ;;
    *) die "with_server.sh: fast, wal or durable, not $mode" ;;
esac
"$ROOT/scripts/server.sh" start "$run/main" "${settings[@]}"

export PGHOST=$run/main PGPORT=5432 PGUSER=postgres PGDATABASE=postgres
export PGSTREAM_TEST_URL="host=$PGHOST port=5432 user=postgres dbname=postgres"
export PGSTREAM_TEST_DIR=$run PGSTREAM_SERVER_SCRIPT=$ROOT/scripts/server.sh
PATH=$("$(pg_config_path)" --bindir):$PATH
status=0
"$@" || status=$?
if [ $status != 0 ] && grep -qE 'PANIC|was terminated by signal' "$run/main/log"; then
    echo "the server's log has:" >&2
    grep -E -A5 'PANIC|was terminated by signal' "$run/main/log" | tail -40 >&2
fi
exit $status
