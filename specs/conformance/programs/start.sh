#!/bin/sh
# Starts the app of one language, and says which package is missing if it cannot.
set -eu

need() {
    command -v "$1" >/dev/null || {
        echo "$1 is missing: install the package $2" >&2
        exit 127
    }
}

case "$1" in
python)
    need python3 python3
    exec python3 app.py
    ;;
node)
    need node nodejs
    exec node app.js
    ;;
java)
    need javac default-jdk-headless
    # Small and quick to start: tests start it often.
    exec java -XX:TieredStopAtLevel=1 -Xshare:auto -Xmx64m App.java
    ;;
go)
    need go golang-go
    # Built once for all tests of a run: without C, so that the binary is static.
    export CGO_ENABLED=0 GOFLAGS=-mod=mod GO111MODULE=off HOME="${HOME:-$PWD}"
    flock app.lock sh -c '[ app-go -nt app.go ] || go build -o app-go app.go'
    exec ./app-go
    ;;
*)
    echo "no app in $1" >&2
    exit 2
    ;;
esac
