#!/bin/bash
# registry.sh TOOLS IMAGE VERSION [DRIVER]: pulls from a registry on this machine; what is known is not fetched again.
set -euo pipefail
tools=$(realpath "$1") image=$(realpath "$2") version=$3 driver=${4:-auto}
if [ -z "${inside:-}" ]; then
    inside=1 exec unshare --mount --propagation private "$0" "$@"
fi
here=$(dirname "$(realpath "$0")")
plugin=$(realpath "${plugin:-$here/../../../../target/release/layerstore-containerd}")
. "$here/lib.sh"

place "$version"
registry_start
plugin_start
containerd_start

# Up to 1.7 ctr fetches all there is itself, before anything is unpacked, unless it is told not to.
[ "$version" != 1.7 ] || transfer=--local=false
pull() {
    ctr images pull ${transfer:-} --snapshotter layerstore "$@" "127.0.0.1:$port/one:latest" >/dev/null
}

forget
pull
count=$(fetched)
[ "$count" -ge 1 ] || fail "the first pull fetched no layer: is the registry's log read right?"
[ "$(ctr run --rm --snapshotter layerstore "127.0.0.1:$port/one:latest" c cut -c1-2 /etc/debian_version)" = 12 ] || fail "it does not run"

# The image goes, and with it containerd's content and snapshots; the store keeps the layers until its gc.
ctr images rm --sync "127.0.0.1:$port/one:latest" >/dev/null
until_ok sh -c "test -z \"\$($tools/$version/usr/bin/ctr --address $work/containerd.sock -n test snapshots --snapshotter layerstore ls | tail -n +2)\""
forget
pull
again=$(fetched)
[ "$again" = 0 ] || fail "the second pull fetched $again layers"
[ "$(ctr run --rm --snapshotter layerstore "127.0.0.1:$port/one:latest" c cut -c1-2 /etc/debian_version)" = 12 ] || fail "it does not run"
echo "passed: registry, containerd $version, driver $driver: $count layers fetched, then none"
