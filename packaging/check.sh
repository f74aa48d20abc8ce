#!/bin/sh
# Tries what package.sh has made: packaging/check.sh FOLDER. The package is unpacked, and its binary started with its config; the root file system of the
# image is started as a container would start it (needs root). In both, the first start must make everything that it needs, and be ready.
set -eu
cd "$1"
sha256sum --check --quiet SHA256SUMS
stage=$(mktemp -d)
pid=
trap '[ -z "$pid" ] || kill "$pid" 2>/dev/null; rm -rf "$stage"' EXIT

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

started() { # LOG: waits until every listener accepts
    for _ in $(seq 300); do
        grep -q '"pid"' "$1" && return
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    cat "$1" >&2
    exit 1
}

try() { # NAME FOLDER COMMAND…: starts it, asks it, stops it, and looks at what it has made in FOLDER
    name=$1 folder=$2
    shift 2
    admin=127.0.0.1:$(free_port)
    env -i KEYGATE_PROXY_LISTEN=127.0.0.1:0 KEYGATE_ADMIN_LISTEN="$admin" "$@" run --ready-json --config "$config" >"$stage/log" 2>&1 &
    pid=$!
    started "$stage/log"
    [ "$(curl -s -o "$stage/answer" -w '%{http_code}' "http://$admin/readyz")" = 200 ]
    kill "$pid"
    wait "$pid"
    pid=
    for made in keygate.db pepper admin.token; do [ -s "$folder/data/$made" ] || { echo "$name: no $made" >&2; exit 1; }; done
    echo "$name: starts, is ready, stops"
}

dpkg-deb --info ./*.deb >"$stage/info"
dpkg -x ./*.deb "$stage/deb"
for file in usr/bin/keygate etc/keygate/keygate.toml usr/lib/systemd/system/keygate.service; do [ -f "$stage/deb/$file" ]; done
grep -q '^ExecStart=/usr/bin/keygate run$' "$stage/deb/usr/lib/systemd/system/keygate.service"
if "$stage/deb/usr/bin/keygate" --version >/dev/null 2>&1; then
    for file in man/man1/keygate.1.gz man/man1/keygate-keys-list.1.gz bash-completion/completions/keygate zsh/vendor-completions/_keygate \
        fish/vendor_completions.d/keygate.fish; do [ -s "$stage/deb/usr/share/$file" ]; done
fi
mkdir "$stage/state"
config=$stage/deb/etc/keygate/keygate.toml
(cd "$stage/state" && try deb "$stage/state" "$stage/deb/usr/bin/keygate")

python3 -c 'import json, sys; found = json.load(open(sys.argv[1])); assert len(found["components"]) > 100, found' ./*.cdx.json

if [ "$(id -u)" = 0 ]; then
    mkdir "$stage/rootfs"
    tar -xzf ./*.rootfs.tar.gz -C "$stage/rootfs" --numeric-owner
    chmod 755 "$stage"
    config=/etc/keygate/keygate.toml
    try image "$stage/rootfs/var/lib/keygate" python3 -c '
import os, sys
os.chroot(sys.argv[1]); os.chdir("/var/lib/keygate"); os.setgroups([]); os.setgid(65532); os.setuid(65532)
os.execv("/usr/local/bin/keygate", ["/usr/local/bin/keygate", *sys.argv[2:]])' "$stage/rootfs"
fi
