#!/bin/bash
# The same images through layerstore and through other tools, on one machine in one run.
#   benches/peers/run.sh LAYOUT...        each an OCI layout with one image; as root on Debian, with the network
# Installs what it compares with (Debian's packages, and composefs-ctl from crates.io), works on an ext4 in RAM, checks that each
# tool gave the right tree, prints tables, and draws docs/peers.svg. Options are those of measure.py: --rounds N, --only TOOL,...
set -euo pipefail
here=$(dirname "$(realpath "$0")")
root=$(realpath "$here/../..")
target=$(cargo metadata --no-deps --format-version 1 --manifest-path "$root/Cargo.toml" | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')
export DEBIAN_FRONTEND=noninteractive
wanted=(libarchive-tools tar umoci skopeo podman containerd casync restic python3 time e2fsprogs util-linux)
missing=()
for package in "${wanted[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    apt-get -qq update
    apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
fi
export PATH=$target/peers/bin:$PATH
if ! command -v cfsctl >/dev/null; then
    cargo install -q --locked composefs-ctl --root "$target/peers" || echo "composefs-ctl cannot be built here: left out" >&2
fi
cargo build -q --release --manifest-path "$root/Cargo.toml" -p layerstore-cli
exec unshare --mount --propagation private python3 "$here/measure.py" --layerstore "$target/release/layerstore" \
    --svg "$root/docs/peers.svg" "$@"
