#!/bin/bash
# all.sh [IMAGES]: everything in this directory, as .ci/run has it. IMAGES/base1 is the image to work with.
# Binaries are those of `cargo build --release --workspace`, unless plugin and layerstore name others.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
images=${1:-}
if [ "$(id -u)" != 0 ]; then
    echo "skipped: the plugin on real daemons: needs root"
    exit 0
fi
tools=${tools:-${TMPDIR:-/tmp}/layerstore-tools}
"$here/get.sh" "$tools"
"$here/suite.sh" "$tools" erofs overlay copy
if [ ! -e "$images/base1/index.json" ]; then
    echo "skipped: the plugin on real containerds: no image base1"
    exit 0
fi
for version in 1.6 1.7 2.1; do
    "$here/daemons.sh" "$tools" "$images/base1" "$version" auto
done
"$here/daemons.sh" "$tools" "$images/base1" 2.1 overlay
"$here/registry.sh" "$tools" "$images/base1" 1.7 auto
"$here/registry.sh" "$tools" "$images/base1" 2.1 overlay
