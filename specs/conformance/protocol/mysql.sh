#!/bin/sh
# Starts the distribution's MariaDB on the port given, with a data directory of its own that goes when it does.
set -eu
PATH=$PATH:/usr/sbin
# The server's own folder: what a run leaves behind is what its temporary directory holds.
data=$(mktemp -d "${TMPDIR:-/tmp}/mysql-XXXXXX")
mariadb-install-db --no-defaults --datadir="$data" --auth-root-authentication-method=normal --skip-test-db >/dev/null
echo "CREATE DATABASE shop;" >"$data/init.sql"
exec mariadbd --no-defaults --datadir="$data" --socket="$data/socket" --pid-file="$data/pid" --port="$1" --bind-address=127.0.0.1 \
    --innodb-buffer-pool-size=64M --log-bin="$data/bin" --server-id=1 --sync-binlog=1 --init-file="$data/init.sql"
