#!/bin/bash
# podman.sh IMAGE: podman, with a storage of its own, takes layers from a directory that `layerstore additional` made,
# from a registry on this machine. IMAGE is an OCI layout with a Debian in it (tag latest).
set -euo pipefail
image=$(realpath "$1")
if [ -z "${inside:-}" ]; then
    inside=1 exec unshare --mount --propagation private "$0" "$@"
fi
here=$(dirname "$(realpath "$0")")
layerstore=$(realpath "${layerstore:-$here/../../../../target/release/layerstore}")
. "$here/lib.sh"

place podman
layerstore() {
    "$layerstore" --store "$store" "$@"
}
registry_start
reference=127.0.0.1:$port/one:latest
cat >"$work/storage.conf" <<END
[storage]
driver = "overlay"
runroot = "$work/run"
graphroot = "$work/graph"
[storage.options]
additionallayerstores = ["$work/additional:ref"]
END
mkdir "$work/certs"
cp "$work/cert.pem" "$work/certs/ca.crt"
podman() {
    CONTAINERS_STORAGE_CONF=$work/storage.conf command podman --log-level error "$@"
}
# No network, and limits that may be set everywhere: what counts is the root file system.
run() {
    podman --runtime runc --cgroup-manager cgroupfs run --rm --network none --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 "$@"
}

layerstore import "$image" --name app >/dev/null
layerstore additional add "$work/additional" app --as "$reference" >/dev/null
[ "$(layerstore additional ls "$work/additional")" = "$reference" ] || fail "it is not listed"
forget
podman pull -q --cert-dir "$work/certs" "$reference" >/dev/null
[ "$(fetched)" = 0 ] || fail "podman fetched what is here"
[ "$(run "$reference" cut -c1-2 /etc/debian_version)" = 12 ] || fail "it does not run"
run --name stays --rm=false "$reference" sh -c 'echo kept >/kept; rm /etc/motd' || fail "it cannot be written to"
podman commit -q stays localhost/two >/dev/null
[ "$(run localhost/two sh -c 'cat /kept; ls /etc/motd 2>/dev/null' || true)" = kept ] || fail "a commit on it does not run"
echo "ok: podman runs an image of which it fetched no layer"

# The image goes from the store, and gc comes by: what is listed stays.
layerstore rm app >/dev/null
layerstore gc >/dev/null
[ "$(run "$reference" cut -c1-2 /etc/debian_version)" = 12 ] || fail "gc took what is listed"
if podman save -q -o "$work/saved.tar" "$reference" 2>/dev/null; then fail "an image without blobs was saved"; fi
podman rm -f stays >/dev/null
podman rmi -f localhost/two "$reference" >/dev/null 2>&1
layerstore additional rm "$work/additional" "$reference"
layerstore gc >/dev/null
[ "$(layerstore layers --json | wc -l)" = 0 ] || fail "layers are left"
[ -z "$(ls "$store/trees" "$store/packs" | grep -v :)" ] || fail "gc left something: $(ls "$store/trees" "$store/packs")"
echo "ok: what is listed stays, and goes when it is listed no longer"

# With blobs it can be saved, and pulled without a registry's help again.
layerstore import "$image" --name app --keep-blobs >/dev/null
layerstore additional add "$work/additional" app --as "$reference" --blobs >/dev/null
podman pull -q --cert-dir "$work/certs" "$reference" >/dev/null
podman save -q --format oci-archive -o "$work/saved.tar" "$reference"
layerstore import "$work/saved.tar" --name again >/dev/null
[ "$(layerstore layers --json | wc -l)" = "$(wc -w <<<"$layers")" ] || fail "what was saved has other layers"
echo "ok: with blobs, podman saves it"
podman rmi -f "$reference" >/dev/null 2>&1
[ "$(fetched)" = 0 ] || fail "podman fetched what is here"
layerstore additional rm "$work/additional" "$reference"
podman pull -q --cert-dir "$work/certs" "$reference" >/dev/null
[ "$(fetched)" != 0 ] || fail "nothing was fetched though nothing is listed: is the registry's log read right?"
echo "passed: podman"
