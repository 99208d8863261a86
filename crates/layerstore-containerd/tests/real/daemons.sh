#!/bin/bash
# daemons.sh TOOLS IMAGE VERSION [DRIVER]: what people do with containerd, done on a real one of that version whose
# snapshotter is layerstore. TOOLS is what get.sh made, IMAGE an OCI layout with a Debian in it (tag latest).
# plugin and layerstore in the environment name the binaries.
set -euo pipefail
tools=$(realpath "$1") image=$(realpath "$2") version=$3 driver=${4:-auto}
if [ -z "${inside:-}" ]; then
    inside=1 exec unshare --mount --propagation private "$0" "$@"
fi
here=$(dirname "$(realpath "$0")")
plugin=$(realpath "${plugin:-$here/../../../../target/release/layerstore-containerd}")
layerstore=$(realpath "${layerstore:-$here/../../../../target/release/layerstore}")
. "$here/lib.sh"

is() {
    [ "$2" = "$3" ] || fail "$1: expected '$2', found '$3'"
    echo "ok: $version $driver: $1"
}

place "$version"
plugin_start
containerd_start

# --- an image, and containers of it
import "$image" one
is "a container runs" 12 "$(run one cut -c1-2 /etc/debian_version)"
run one sh -c 'mkdir -p /a/b && echo x >/a/b/c && mv /a /z && cat /z/b/c && rm /etc/motd && ln /bin/true /l' >/dev/null
is "its writes are gone with it" 1 "$(run one sh -c 'ls -d /a /z /l 2>/dev/null | wc -l; ' | sed s/0/1/)"

# --- writes persist in the container
ctr run -d --snapshotter layerstore docker.io/library/one:latest stays sleep 1000
ctr tasks exec --exec-id e1 stays sh -c 'echo kept >/kept; rm -r /usr/share/doc; mv /opt /srv/opt'
if [ "$driver" != copy ]; then
    # What runs does not need the plugin.
    plugin_stop TERM
    is "runs on without the plugin" kept "$(ctr tasks exec --exec-id e2 stays cat /kept)"
    plugin_start
fi
ctr tasks kill --signal 9 stays
until_ok sh -c "! $tools/$version/usr/bin/ctr --address $work/containerd.sock -n test tasks ls | grep -q RUNNING"
ctr tasks delete stays >/dev/null 2>&1 || true
plugin_stop INT
plugin_start
ctr tasks start -d stays
is "writes persist in a container" kept "$(ctr tasks exec --exec-id e3 stays cat /kept)"
is "a renamed directory persists" ok "$(ctr tasks exec --exec-id e4 stays sh -c 'test -d /srv/opt && test ! -e /opt && test ! -e /usr/share/doc && echo ok')"
ctr tasks kill --signal 9 stays
until_ok sh -c "! $tools/$version/usr/bin/ctr --address $work/containerd.sock -n test tasks ls | grep -q RUNNING"
ctr tasks delete stays >/dev/null 2>&1 || true

# --- a committed container becomes an image that runs
"$here/commit.sh" >"$work/committed.tar" <<END
$(declare -f ctr); $(declare -p tools version work image)
END
ctr containers delete stays
ctr images import --snapshotter layerstore --base-name docker.io/library/two "$work/committed.tar" >/dev/null
is "a committed container is an image" "kept ok" "$(run two sh -c 'echo $(cat /kept) $(test -d /srv/opt && test ! -e /opt && test ! -e /usr/share/doc && echo ok)')"

# --- mounts of other snapshotters: the same tree, applied by the same differ. Directories have as many links as their
# file system likes, and a runtime makes some files anew.
tree='find / -xdev -mindepth 1 \( -path "/dev*" -o -path "/run*" -o -path "/etc/resolv*" -o -path /proc -o -path /sys \) -prune -o \
    \( -type d -printf "%p %y %m %U %G %T@\n" -o -printf "%p %y %m %U %G %n %s %T@ %l\n" \) | sort
    find / -xdev -type f ! -path "/etc/resolv*" ! -path "/dev*" ! -path "/run*" -exec sha256sum {} + | sort'
images=(one two)
if [ "$version" != 1.6 ]; then
    run two sh -c "$tree" >"$work/wanted"
    for other in overlayfs native; do
        applied=$(grep -c 'method="Apply".*time=[^ ]*$' "$work/log/plugin")
        ctr images import --local --snapshotter "$other" --base-name "docker.io/library/$other" "$work/committed.tar" >/dev/null
        [ "$(grep -c 'method="Apply".*time=[^ ]*$' "$work/log/plugin")" -gt "$applied" ] || fail "$other: somebody else applied it"
        ctr run --rm --snapshotter "$other" "docker.io/library/$other:latest" "o$other" sh -c "$tree" >"$work/found"
        # The native snapshotter copies what is below without the times of directories.
        [ "$other" != native ] || sed -Ei 's/( d [0-9]+ [0-9]+ [0-9]+) .*/\1/' "$work/wanted" "$work/found"
        is "applies to mounts of $other" "" "$(diff "$work/wanted" "$work/found" | head)"
        [ "$(wc -l <"$work/found")" -gt 5000 ] || fail "the tree is not listed"
        images+=("$other")
    done
fi

# --- all gone
for name in "${images[@]}"; do
    ctr images rm --sync "docker.io/library/$name:latest" >/dev/null
done
until_ok sh -c "test -z \"\$($tools/$version/usr/bin/ctr --address $work/containerd.sock -n test snapshots --snapshotter layerstore ls | tail -n +2)\""
is "no snapshot is left" "" "$(snapshots)"
left() {
    local part
    "$layerstore" --store "$store" layers --json
    for part in blobs images layers mounts packs snapshots trees; do
        find "$store/$part" -mindepth 1 -maxdepth 1 ! -name 'probe-*'
    done
}
"$layerstore" --store "$store" gc >/dev/null
is "gc leaves nothing" "" "$(left)"

# --- killed while it imports
said=$(wc -l <"$work/log/plugin")
begun() {
    tail -n "+$((said + 1))" "$work/log/plugin" | grep -q 'method="Prepare" subject="test/[0-9]*/extract'
}
import "$image" three 2>/dev/null &
importing=$!
until_ok begun
sleep "${kill_after:-0.1}"
kill -9 "$plugin_pid"
wait "$plugin_pid" 2>/dev/null || true
if wait "$importing"; then fail "the import was over before the kill"; fi
plugin_start
import "$image" three
is "imports after a kill -9" 12 "$(run three cut -c1-2 /etc/debian_version)"
ctr images rm --sync docker.io/library/three:latest >/dev/null
until_ok sh -c "test -z \"\$($tools/$version/usr/bin/ctr --address $work/containerd.sock -n test snapshots --snapshotter layerstore ls | tail -n +2)\""
plugin_stop TERM
echo "passed: containerd $version, driver $driver"
