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
port=$((20000 + RANDOM % 20000))
cat >"$work/registry.yml" <<END
version: 0.1
log: { level: info, accesslog: { disabled: false } }
storage: { filesystem: { rootdirectory: $work/registry } }
http: { addr: 127.0.0.1:$port }
END
docker-registry serve "$work/registry.yml" >"$work/log/registry" 2>&1 &
registry_pid=$!
until_ok skopeo copy -q --dest-tls-verify=false "oci:$image:latest" "docker://127.0.0.1:$port/one:latest"
plugin_start
containerd_start

layers=$(jq -r '.layers[].digest' "$image/blobs/sha256/$(jq -r '.manifests[0].digest' "$image/index.json" | cut -d: -f2)")
# Layers that were sent to containerd since the last time this was asked.
fetched() {
    local count=0 layer
    for layer in $layers; do
        count=$((count + $(tail -n "+$seen" "$work/log/registry" | grep -c "\"GET /v2/one/blobs/$layer" || true)))
    done
    seen=$(($(wc -l <"$work/log/registry") + 1))
    echo "$count"
}
pull() {
    ctr images pull --plain-http --snapshotter layerstore "$@" "127.0.0.1:$port/one:latest" >/dev/null
}

seen=1
fetched >/dev/null
seen=$(($(wc -l <"$work/log/registry") + 1))
pull
count=$(fetched)
[ "$count" -ge 1 ] || fail "the first pull fetched no layer: is the registry's log read right?"
[ "$(ctr run --rm --snapshotter layerstore "127.0.0.1:$port/one:latest" c cut -c1-2 /etc/debian_version)" = 12 ] || fail "it does not run"

# The image goes, and with it containerd's content and snapshots; the store keeps the layers until its gc.
ctr images rm --sync "127.0.0.1:$port/one:latest" >/dev/null
until_ok sh -c "test -z \"\$($tools/$version/usr/bin/ctr --address $work/containerd.sock -n test snapshots --snapshotter layerstore ls | tail -n +2)\""
seen=$(($(wc -l <"$work/log/registry") + 1))
pull
again=$(fetched)
[ "$again" = 0 ] || fail "the second pull fetched $again layers"
[ "$(ctr run --rm --snapshotter layerstore "127.0.0.1:$port/one:latest" c cut -c1-2 /etc/debian_version)" = 12 ] || fail "it does not run"
echo "passed: registry, containerd $version, driver $driver: $count layers fetched, then none"
