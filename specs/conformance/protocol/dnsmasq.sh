#!/bin/sh
# Starts dnsmasq on the port given, in the foreground, with a small zone and nobody to ask.
set -eu
server=$(command -v dnsmasq || echo /usr/sbin/dnsmasq)
exec "$server" --keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --log-facility=- --pid-file= --user="$(id -un)" \
    --port="$1" --bind-interfaces --listen-address=127.0.0.1 --local=/example.test/ \
    --host-record=www.example.test,192.0.2.80,2001:db8::80 --host-record=mail.example.test,192.0.2.25 \
    --cname=alias.example.test,www.example.test --mx-host=example.test,mail.example.test,10
