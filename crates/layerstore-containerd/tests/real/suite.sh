#!/bin/bash
# suite.sh TOOLS DRIVER...: containerd's own tests of snapshotters, and the renaming of directories, which that version
# skips, against the plugin: a fresh server for each test, and all tests at once on one server.
set -euo pipefail
tools=$(realpath "$1")
shift
if [ -z "${inside:-}" ]; then
    inside=1 exec unshare --mount --propagation private "$0" "$tools" "$@"
fi
here=$(dirname "$(realpath "$0")")
plugin=$(realpath "${plugin:-$here/../../../../target/release/layerstore-containerd}")
work=$(mktemp -d "${TMPDIR:-/tmp}/layerstore-suite.XXXXXX")
server=
done_with() {
    local code=$?
    trap - EXIT
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    umount -l "$work" "$work" 2>/dev/null || true
    rmdir "$work"
    exit "$code"
}
trap done_with EXIT

fresh() {
    ! mountpoint -q "$work" || umount -l "$work" "$work"
    mount -t tmpfs -o size=4G tmpfs "$work"
    truncate -s 4G "$work/img"
    mkfs.ext4 -q -F "$work/img"
    mount -o loop "$work/img" "$work"
}

# verdict NAME LOG: all 21 tests and ours, none failed, none skipped but the one that containerd 1.6 always skips.
verdict() {
    local passed skipped
    passed=$(grep -cE '^ +--- PASS: TestProxySuite/|^--- PASS: TestRename' "$2" || true)
    skipped=$(grep -cE '^ *--- SKIP: ' "$2" || true)
    echo "suite $1: $passed passed, $skipped skipped;$(grep -oE 'PASS: TestProxySuite/128LayersMount.*' "$2" | sed 's/.*Mount/ 128 layers in/')"
    if [ "$passed" != 21 ] || [ "$skipped" != 1 ] || grep -qE -- '--- FAIL' "$2"; then
        grep -E -A12 -- '--- FAIL' "$2" | grep -v ' DEBUG ' | head -60
        exit 1
    fi
}

for driver in "$@"; do
    fresh
    SNAP_SUITE=layerstore SNAP_CMD="$plugin --driver $driver --log warn --root \"\$ROOT\" --socket \"\$SOCK\"" TMPDIR=$work \
        "$tools/proxysuite.test" -test.v -test.root >"$work/log" 2>&1 || true
    verdict "$driver, fresh servers" "$work/log"

    fresh
    mkdir "$work/t"
    "$plugin" --driver "$driver" --log warn --root "$work/store" --socket "$work/s.sock" 2>"$work/plugin.log" &
    server=$!
    for ((i = 0; i < 100; i++)); do
        [ ! -S "$work/s.sock" ] || break
        sleep 0.1
    done
    SNAP_SUITE=layerstore SNAP_SOCK=$work/s.sock TMPDIR=$work/t \
        "$tools/proxysuite.test" -test.v -test.root -test.parallel 8 >"$work/log" 2>&1 || true
    verdict "$driver, one server" "$work/log"
    kill "$server"
    wait "$server"
    server=
done
