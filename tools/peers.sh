# Installs the real peers that tests talk to: Debian packages, and npm packages of the JavaScript client.
# `peers.sh bench` adds what the benchmarks load with.
set -eu
wanted="prometheus"
commands="prometheus promtool"
# Node may come from elsewhere than Debian: its package is wanted only where there is none.
command -v npm >/dev/null 2>&1 || { wanted="$wanted nodejs npm" && commands="$commands node npm"; }
if [ "${1:-}" = bench ]; then
    wanted="$wanted wrk redis-server postgresql"
    commands="$commands wrk redis-server pg_lsclusters"
fi
missing=""
for command in $commands; do
    command -v "$command" >/dev/null 2>&1 || missing=yes
done
if [ -n "$missing" ]; then
    command -v apt-get >/dev/null 2>&1 || { echo "peers: install these first: $commands" >&2; exit 1; }
    [ "$(id -u)" = 0 ] || { echo "peers: run 'sudo apt-get install $wanted' first" >&2; exit 1; }
    # No service is to start with its package: the tests start their own.
    printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $wanted >/dev/null
fi
# npm writes its own lock file last: without it, or with an older one, what is there is not whole.
js=tests/clients/js
if [ -f $js/package-lock.json ] && ! [ $js/node_modules/.package-lock.json -nt $js/package-lock.json ]; then
    (cd $js && npm ci --loglevel=error --no-audit --no-fund >/dev/null) ||
        { echo "peers: npm could not install the JavaScript client in $js (see above)" >&2; exit 1; }
fi
