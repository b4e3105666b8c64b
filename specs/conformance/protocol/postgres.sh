#!/bin/sh
# Starts the distribution's PostgreSQL 15 on the port given, with a data directory of its own that goes when it does. What follows the port
# is for the server.
set -eu
port=$1
shift
bin=$(pg_config --bindir 2>/dev/null || true)
[ -x "$bin/postgres" ] || bin=$(ls -d /usr/lib/postgresql/*/bin | tail -n 1)
# The server's own folder: what a run leaves behind is what its temporary directory holds.
data=$(mktemp -d "${TMPDIR:-/tmp}/postgres-XXXXXX")
"$bin/initdb" --pgdata="$data" --auth=trust --username=postgres --no-sync --encoding=UTF8 >/dev/null
exec "$bin/postgres" -D "$data" -p "$port" -c listen_addresses=127.0.0.1 -c unix_socket_directories="$data" -c fsync=on -c restart_after_crash=on "$@"
