#!/bin/sh
# Starts tansu, a broker that keeps its records in memory, on the port given.
set -eu
url="tcp://127.0.0.1:$1"
exec tansu broker --listener-url "$url" --advertised-listener-url "$url" --storage-engine memory://conformance/
