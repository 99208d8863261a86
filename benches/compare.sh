#!/bin/bash
# The same images through layerstore and through other tools, in one run: seconds (synced) and MB on disk.
#   benches/compare.sh LAYOUT...        each an OCI layout with one image; as root, for the loop mount
# Works on an ext4 in RAM, so that the disk is not what is measured. Needs: libarchive-tools umoci skopeo (Debian).
# The others leave a tree that can be used or mounted; layerstore is shown with and without its first mount.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cargo build -q --release --manifest-path "$root/Cargo.toml" -p layerstore-cli
layerstore=$root/target/release/layerstore
work=$(mktemp -d /dev/shm/compare.XXXXXX)
trap 'cd "$work/mnt" && clean; cd /; umount -q "$work/mnt" || true; rm -rf "$work"' EXIT
truncate -s 16G "$work/ext4" && mkfs.ext4 -q "$work/ext4"
mkdir "$work/mnt" && mount -o loop "$work/ext4" "$work/mnt"
cd "$work/mnt"
# containers/storage leaves its directory mounted on itself.
clean() {
    umount -q out/root/overlay 2>/dev/null || true
    if [ -d out/root-mount ]; then umount -q out/root-mount out/store/mounts/*; fi
    rm -rf out
}
policy() { skopeo --insecure-policy "$@"; }

layers() { # paths of an image's layer blobs, the lowest first
    python3 - "$1" <<'PY'
import json, sys
blob = lambda d: f"{sys.argv[1]}/blobs/sha256/{d.split(':')[1]}"
index = json.load(open(f"{sys.argv[1]}/index.json"))
for layer in json.load(open(blob(index["manifests"][0]["digest"])))["layers"]: print(blob(layer["digest"]))
PY
}
inflate() { local l; for l in $(layers in); do gzip -dc "$l" >/dev/null; done; }
store() { "$layerstore" --quiet --store out/store import in --name image >/dev/null; }
mounted() { store && mkdir out/root-mount && "$layerstore" --quiet --store out/store mount image out/root-mount >/dev/null; }
bsdtar_() { local l n=0; for l in $(layers in); do mkdir -p out/$n; bsdtar -xpf "$l" -C out/$n & n=$((n + 1)); done; wait; }
gnutar() { local l n=0; for l in $(layers in); do mkdir -p out/$n; tar -xpzf "$l" --numeric-owner -C out/$n; n=$((n + 1)); done; }
umoci_() { umoci unpack --image "in:$tag" out/bundle >/dev/null 2>&1; }
storage() { policy copy -q "oci:in:$tag" "containers-storage:[overlay@$PWD/out/root+$PWD/out/run]localhost/image:latest"; }

printf '%-12s %-26s %8s %8s\n' image what seconds MB
for layout in "$@"; do
    rm -rf in && cp -r "$(cd "$root" && realpath "$layout")" in
    tag=$(python3 -c 'import json; print(json.load(open("in/index.json"))["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"])')
    for what in inflate store mounted bsdtar_ gnutar umoci_ storage; do
        times=()
        for _ in 1 2 3; do
            clean && mkdir out && sync -f .
            begin=$(date +%s.%N)
            $what
            sync -f .
            times+=("$(date +%s.%N | awk -v b="$begin" '{ printf "%.2f", $1 - b }')")
            size=$(du -s --block-size=1000 out | cut -f1)
        done
        case $what in
            inflate) name="gzip -dc (GNU gzip)" size=0 ;; store) name="layerstore import" ;;
            mounted) name="layerstore import, mount" ;; bsdtar_) name="bsdtar, layers in parallel" ;;
            gnutar) name="GNU tar" ;; umoci_) name="umoci unpack" ;; storage) name="containers/storage (skopeo)" ;;
        esac
        median=$(printf '%s\n' "${times[@]}" | sort -n | sed -n 2p)
        printf '%-12s %-26s %8s %8s\n' "$(basename "$layout")" "$name" "$median" "$((size / 1000))"
    done
done
