#!/bin/bash
# all.sh [IMAGES [quick]]: everything in this directory but bench.sh. IMAGES/base1 is the image to work with. `quick` is
# what .ci/run does: the erofs driver, containerd 1.6 and 2.1.
# Binaries are those of `cargo build --release --workspace`, unless plugin and layerstore name others.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
images=${1:-} form=${2:-full}
if [ "$(id -u)" != 0 ]; then
    echo "skipped: the plugin on real daemons: needs root"
    exit 0
fi
drivers=(erofs overlay copy) versions=(1.6 1.7 2.1)
[ "$form" != quick ] || drivers=(erofs) versions=(1.6 2.1)
tools=${tools:-${TMPDIR:-/tmp}/layerstore-tools}
"$here/get.sh" "$tools" "${versions[@]}"
"$here/suite.sh" "$tools" "${drivers[@]}"
if [ ! -e "$images/base1/index.json" ]; then
    echo "skipped: the plugin on real containerds: no image base1"
    exit 0
fi
for version in "${versions[@]}"; do
    "$here/daemons.sh" "$tools" "$images/base1" "$version" auto
done
"$here/registry.sh" "$tools" "$images/base1" 2.1 auto
"$here/podman.sh" "$images/base1"
[ "$form" != quick ] || exit 0
"$here/daemons.sh" "$tools" "$images/base1" 2.1 overlay
"$here/daemons.sh" "$tools" "$images/base1" 2.1 copy
"$here/registry.sh" "$tools" "$images/base1" 2.1 overlay
