#!/bin/sh
# Runs the distribution's Redis in the foreground, without a file of its own: what is measured is the way to it.
set -eu
exec redis-server --port "${FAULTBOX_CACHE_REDIS_PORT:?is not set: cargo xtask bench starts this}" --bind 127.0.0.1 \
    --save '' --appendonly no --dir "${TMPDIR:-/tmp}"
