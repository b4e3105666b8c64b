#!/bin/sh
# Runs the distribution's PostgreSQL in the foreground, from a cluster of its own that it makes at the first start.
# Faultbox tells the port (FAULTBOX_DB_PG_PORT) and gives each test a temporary folder of its own (TMPDIR), so a restart finds its data.
set -eu

port=${FAULTBOX_DB_PG_PORT:?is not set: start this through faultbox, or set it by hand}
home=${TMPDIR:-/tmp}/postgres-$port
data=$home/data

# PostgreSQL refuses to run as root. setpriv execs, so this process becomes the server.
if [ "$(id -u)" = 0 ]; then
    mkdir -p -m 700 "$home"
    chown nobody "$home"
    exec setpriv --reuid nobody --regid "$(id -g nobody)" --clear-groups "$0" "$@"
fi

# The newest version that is installed; Debian keeps the server's programs out of PATH.
bin=
for dir in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin; do
    [ -x "$dir/postgres" ] && bin=$dir
done
if [ -z "$bin" ]; then
    bin=$(dirname "$(command -v postgres)") || {
        echo "PostgreSQL is not installed: apt-get install postgresql" >&2
        exit 1
    }
fi

if [ ! -e "$data/PG_VERSION" ]; then
    mkdir -p -m 700 "$home"
    # --no-sync only spares the syncs of the empty cluster; the server itself runs with fsync on.
    "$bin/initdb" --pgdata="$data" --username=postgres --auth=trust --no-sync --no-locale --encoding=UTF8 >"$home/initdb.log" 2>&1 || {
        cat "$home/initdb.log" >&2
        exit 1
    }
fi

# Without replication and autovacuum an idle server writes nothing, so that which statement meets a fault is the test's choice.
exec "$bin/postgres" -D "$data" -p "$port" -k "$home" \
    -c listen_addresses=127.0.0.1 -c ssl=off -c fsync=on -c autovacuum=off \
    -c wal_level=minimal -c max_wal_senders=0 -c shared_buffers=16MB -c max_connections=100
