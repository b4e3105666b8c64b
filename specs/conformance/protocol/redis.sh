#!/bin/sh
# Starts the distribution's Redis with the settings given, in a data directory of its own: tests run side by side.
set -eu
data=$(mktemp -d "${TMPDIR:-/tmp}/redis-XXXXXX")
exec redis-server --dir "$data" --bind 127.0.0.1 --save '' "$@"
