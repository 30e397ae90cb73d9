# Installs the real peers that tests talk to: Debian packages, and npm packages of the JavaScript client.
# `peers.sh bench` adds what the benchmarks load with.
set -eu
wanted="prometheus"
commands="prometheus promtool"
if [ "${1:-}" = bench ]; then
    wanted="$wanted wrk"
    commands="$commands wrk"
fi
missing=""
for command in $commands; do
    command -v "$command" >/dev/null 2>&1 || missing=yes
done
if [ -n "$missing" ]; then
    [ "$(id -u)" = 0 ] || { echo "peers: run 'sudo apt-get install $wanted' first" >&2; exit 1; }
    # No service is to start with its package: the tests start their own.
    printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $wanted >/dev/null
fi
if [ -f tests/clients/js/package-lock.json ] && [ ! -d tests/clients/js/node_modules ]; then
    (cd tests/clients/js && npm ci --silent --no-audit --no-fund)
fi
