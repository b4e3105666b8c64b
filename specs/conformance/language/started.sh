#!/bin/sh
# Says how it was started, then waits until it is stopped, and says by what.
trap 'echo "stopped by SIGINT"; kill $!; exit 0' INT
trap 'echo "stopped by SIGTERM"; kill $!; exit 0' TERM
sleep 3600 &
echo "as $(id -u)" >&2
echo "in $(pwd) with $# arguments: $*"
wait
