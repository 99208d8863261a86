#!/bin/bash
# bench.sh TOOLS IMAGE [ROUNDS]: how long `ctr images import` of an OCI layout takes, and what it leaves on the disk, with
# layerstore and with containerd's own overlayfs, in turn, each time on a fresh ext4 in memory: containerd 2.1, where
# layerstore applies layers itself, and 1.6, where containerd unpacks them. Then the 128 layers of containerd's suite.
# Prints every run, and medians. On a busy machine look at pairs of runs, not at single ones.
set -euo pipefail
tools=$(realpath "$1") image=$(realpath "$2") rounds=${3:-5} driver=${driver:-auto}
if [ -z "${inside:-}" ]; then
    inside=1 exec unshare --mount --propagation private "$0" "$@"
fi
here=$(dirname "$(realpath "$0")")
plugin=$(realpath "${plugin:-$here/../../../../target/release/layerstore-containerd}")
layerstore=$(realpath "${layerstore:-$here/../../../../target/release/layerstore}")
. "$here/lib.sh"
results=$(mktemp)
export image rounds results here plugin layerstore tools driver

# Bytes of disk, in MB.
disk() {
    sync -f "$work"
    du -xs --block-size=1000000 "$@" | cut -f1
}

# once VERSION SNAPSHOTTER: one import on a fresh file system; prints seconds, MB in all and MB of snapshots.
once() (
    place "$1"
    if [ "$2" = layerstore ]; then log=info plugin_start; else plain=1; fi
    containerd_start
    tar -C "$image" -cf "$work/image.tar" .
    sync -f "$work"
    cat "$work/image.tar" >/dev/null
    local begin=$EPOCHREALTIME
    ctr images import --snapshotter "$2" --base-name docker.io/library/one "$work/image.tar" >/dev/null
    local end=$EPOCHREALTIME
    rm "$work/image.tar"
    local where=$work/containerd/io.containerd.snapshotter.v1.overlayfs
    if [ "$2" = layerstore ]; then
        where=$store
        # What is made layers afterwards has its directories gone with it.
        until_quiet
    fi
    echo "$1 $2 $(awk "BEGIN { print $end - $begin }") $(disk "$work/containerd" $([ "$2" != layerstore ] || echo "$store") | paste -sd+ | bc) $(disk "$where")" >>"$results"
)

# Until the directories that containerd unpacked into are layers and gone, two minutes at most.
until_quiet() {
    local i
    for ((i = 0; i < 240; i++)); do
        [ -n "$(find "$store/snapshots" "$store/tmp" -mindepth 1 -maxdepth 1)" ] || return 0
        sleep 0.5
    done
    fail "directories are still no layers: $(ls "$store/snapshots" "$store/tmp")"
}

# many SNAPSHOTTER: the 128 layers of containerd's suite; prints seconds.
many() (
    place 2.1
    local ask=(env SNAP_SUITE=layerstore SNAP_SOCK="$socket")
    if [ "$1" = layerstore ]; then
        log=warn plugin_start
    else
        plain=1
        containerd_start
        ask=(env SNAP_SUITE=overlayfs SNAP_NAME=overlayfs SNAP_SOCK="$work/containerd.sock")
    fi
    mkdir "$work/t"
    TMPDIR=$work/t "${ask[@]}" "$tools/proxysuite.test" -test.v -test.root -test.run TestProxySuite/128 >"$work/log/suite" 2>&1 || true
    echo "128 $1 $(sed -n 's/.*PASS: TestProxySuite\/128LayersMount (\(.*\)s)/\1/p' "$work/log/suite") 0 0" >>"$results"
)

for ((round = 0; round < rounds; round++)); do
    for version in ${versions:-2.1 1.6}; do
        for snapshotter in overlayfs layerstore; do
            once "$version" "$snapshotter"
            tail -n 1 "$results"
        done
    done
    if [ "${suite:-1}" = 1 ]; then
        for snapshotter in overlayfs layerstore; do
            many "$snapshotter"
            tail -n 1 "$results"
        done
    fi
done

# Medians, and what layerstore's are of overlayfs's.
python3 - "$results" <<'END'
import statistics, sys
rows = [line.split() for line in open(sys.argv[1])]
def median(what, snapshotter, column):
    found = [float(row[column]) for row in rows if row[:2] == [what, snapshotter]]
    return statistics.median(found) if found else None
print("| | overlayfs | layerstore | ratio |\n| --- | --- | --- | --- |")
for what in dict.fromkeys(row[0] for row in rows):
    name = "128 layers" if what == "128" else f"containerd {what}: import"
    columns = [(2, f"{name}, s")]
    if what != "128":
        columns += [(3, f"{name}, MB of disk in all"), (4, f"{name}, MB of snapshots")]
    for column, text in columns:
        a, b = (median(what, s, column) for s in ("overlayfs", "layerstore"))
        print(f"| {text} | {a:g} | {b:g} | {b / a:.2f} |")
END
rm -f "$results"
