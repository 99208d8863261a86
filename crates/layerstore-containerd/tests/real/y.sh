set -euo pipefail
if [ -z "${inside:-}" ]; then inside=1 exec unshare --mount --propagation private bash "$0" "$@"; fi
tools=/var/tmp/w7-tools image=/work/img/node1 driver=auto here=/work/w7/crates/layerstore-containerd/tests/real
plugin=${plugin:-/work/w7/target/release/layerstore-containerd} layerstore=/work/w7/target/release/layerstore
. $here/lib.sh
place ${v:-2.1}
log=layerstore_containerd=debug plugin_start
containerd_start
tar -C "$image" -cf "$work/image.tar" .
sync -f $work
tp() { awk '{print $14+$15}' /proc/$1/stat; }
p0=$(tp $plugin_pid) c0=$(tp $containerd_pid)
t0=$EPOCHREALTIME
time ctr images import --snapshotter layerstore --base-name docker.io/library/one "$work/image.tar" >/dev/null
echo "cpu ticks plugin $(( $(tp $plugin_pid)-p0 )) containerd $(( $(tp $containerd_pid)-c0 )) start $t0"
date +%T.%N
sleep 4
du -xh -d1 $store; ls -la $store $store/images
grep -E "Commit|Prepare|background|Import\\b" "$work/log/plugin" | sed -E "s/.*method=.([A-Za-z]+).*(time=.*)/\1 \2/" 
