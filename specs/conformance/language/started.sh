#!/bin/sh
# Says how it was started, then waits until it is stopped, and says by what.
echo "in $(pwd) with $# arguments: $*"
echo "as $(id -u)" >&2
sleep 3600 &
trap 'echo "stopped by SIGINT"; kill $!; exit 0' INT
trap 'echo "stopped by SIGTERM"; kill $!; exit 0' TERM
wait
