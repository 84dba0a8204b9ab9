#!/usr/bin/env bash
# A psql beside a server, in a database that has the extension.

. "$(dirname "$0")/env.sh"

psql -qc 'CREATE EXTENSION pg_stream'
echo "The server and its data are removed when you leave psql."
exec psql "$@"
