# Sourced by the tests on real daemons. Needs: tools (made by get.sh), plugin (the binary), layerstore (the command),
# driver, and a mount namespace of its own. Everything is below $work; what was started is stopped on exit.

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

# Waits until a command succeeds, 20 s at most.
until_ok() {
    local i
    for ((i = 0; i < 200; i++)); do
        if "$@" >/dev/null 2>&1; then return 0; fi
        sleep 0.1
    done
    fail "still not: $*"
}

# A fresh place for one daemon and one plugin, on a file system in memory.
place() {
    version=$1
    work=$(mktemp -d "${TMPDIR:-/tmp}/layerstore-real.XXXXXX")
    # In memory, so that a busy disk does not decide about times; ext4, as at home.
    mount -t tmpfs -o "size=${disk:-6G}" tmpfs "$work"
    truncate -s "${disk:-6G}" "$work/img"
    mkfs.ext4 -q -F "$work/img"
    mount -o loop "$work/img" "$work"
    store=$work/store
    socket=$work/layerstore.sock
    mkdir -p "$work/containerd" "$work/log"
    plugin_pid= containerd_pid= registry_pid=
    trap 'place_gone $?' EXIT
}

place_gone() {
    local code=$1
    trap - EXIT
    stop "$registry_pid"
    stop "$containerd_pid"
    stop "$plugin_pid"
    # Left by a container that a test began and did not end.
    awk -v at="$work/" 'index($5, at) == 1 { print $5 }' /proc/self/mountinfo | tac | while read -r mounted; do
        umount -l "$mounted" 2>/dev/null || true
    done
    if [ "$code" != 0 ]; then
        tail -n "${lines:-40}" "$work"/log/* >&2
    fi
    # The file system, and the memory it is in.
    umount -l "$work"
    umount -l "$work"
    rmdir "$work"
    exit "$code"
}

stop() {
    [ -n "$1" ] || return 0
    kill "$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
}

plugin_start() {
    "$plugin" --root "$store" --socket "$socket" --driver "$driver" --content "$work/containerd/io.containerd.content.v1.content" \
        --containerd "$work/containerd.sock" --log "${log:-info,layerstore_containerd=debug}" "$@" 2>>"$work/log/plugin" &
    plugin_pid=$!
    until_ok test -S "$socket"
    # The file of a killed one stays; who listens is known by connecting.
    until_ok python3 -c "import socket; socket.socket(socket.AF_UNIX).connect('$socket')"
    # containerd takes a moment to notice that its plugin is there again. It answers a list without it when it knows of
    # no snapshot; it cannot prepare one without it.
    [ -z "$containerd_pid" ] || until_ok reaches
}

# How it ends in real life: within 5 s of a signal, and with success.
plugin_stop() {
    local begin=$SECONDS
    kill -"${1:-TERM}" "$plugin_pid"
    wait "$plugin_pid" || fail "the plugin ended with $?"
    [ $((SECONDS - begin)) -le 5 ] || fail "the plugin took $((SECONDS - begin)) s to stop"
    plugin_pid=
}

# The configuration of docs/CONTAINERD.md, in a private place.
configure() {
    local disabled='disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]'
    case $version in
        1.6) printf 'version = 2\n%s\n' "$disabled" ;;
        1.7) printf 'version = 2\n%s\n' "$disabled" ;;
        *) printf 'version = 3\n%s\n' "$disabled" ;;
    esac
    cat <<END
root = "$work/containerd"
state = "$work/state"
[grpc]
  address = "$work/containerd.sock"
END
    # One to compare with is as it comes.
    [ "${plain:-}" != 1 ] || return 0
    cat <<END
[proxy_plugins.layerstore]
  type = "snapshot"
  address = "$socket"
  capabilities = ["rebase"]
  [proxy_plugins.layerstore.exports]
    root = "$store"
    enable_remote_snapshot_annotations = "true"
END
    [ "$version" != 1.6 ] || return 0
    cat <<END
[proxy_plugins.layerstore-diff]
  type = "diff"
  address = "$socket"
END
    case $version in
        1.7) cat <<END
[plugins."io.containerd.service.v1.diff-service"]
  default = ["layerstore-diff", "walking"]
[plugins."io.containerd.transfer.v1.local"]
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = "linux/amd64"
    snapshotter = "layerstore"
    differ = "layerstore-diff"
END
            ;;
        *) cat <<END
[plugins."io.containerd.service.v1.diff-service"]
  default = ["layerstore-diff", "walking"]
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/amd64"
  snapshotter = "layerstore"
  differ = "layerstore-diff"
END
            ;;
    esac
}

containerd_start() {
    # Each version with its own shim.
    PATH=$tools/$version/usr/bin:/usr/sbin:/usr/bin:/sbin:/bin
    configure >"$work/config.toml"
    containerd --config "$work/config.toml" >>"$work/log/containerd" 2>&1 &
    containerd_pid=$!
    until_ok ctr version
}

ctr() {
    "$tools/$version/usr/bin/ctr" --address "$work/containerd.sock" --namespace "${namespace:-test}" "$@"
}

# import LAYOUT NAME [SNAPSHOTTER]: an OCI layout as image docker.io/library/NAME:latest, unpacked.
import() {
    tar -C "$1" -cf - . | ctr images import --snapshotter "${3:-layerstore}" --base-name "docker.io/library/$2" - >/dev/null
}

# run NAME COMMAND...: in a container of its own.
container=0
run() {
    local image=docker.io/library/$1:latest
    shift
    container=$((container + 1))
    ctr run --rm --snapshotter layerstore "$image" "c$container" "$@"
}

reaches() {
    ctr snapshots --snapshotter layerstore prepare probe && ctr snapshots --snapshotter layerstore rm probe
}

snapshots() {
    local all
    all=$(ctr snapshots --snapshotter layerstore ls) || return
    tail -n +2 <<<"$all"
}

# A registry on this machine with $image as 127.0.0.1:$port/one:latest. It speaks TLS with a certificate of its own, as
# containerd 1.7's transfer service speaks nothing else.
registry_start() {
    port=$((20000 + RANDOM % 20000))
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=127.0.0.1 \
        -addext subjectAltName=IP:127.0.0.1 -keyout "$work/key.pem" -out "$work/cert.pem" 2>/dev/null
    export SSL_CERT_FILE=$work/cert.pem
    cat >"$work/registry.yml" <<END
version: 0.1
log: { level: info, accesslog: { disabled: false } }
storage: { filesystem: { rootdirectory: $work/registry } }
http: { addr: 127.0.0.1:$port, tls: { certificate: $work/cert.pem, key: $work/key.pem } }
END
    docker-registry serve "$work/registry.yml" >"$work/log/registry" 2>&1 &
    registry_pid=$!
    until_ok skopeo copy -q --dest-tls-verify=false "oci:$image:latest" "docker://127.0.0.1:$port/one:latest"
    layers=$(jq -r '.layers[].digest' "$image/blobs/sha256/$(jq -r '.manifests[0].digest' "$image/index.json" | cut -d: -f2)")
}

# What was asked of the registry until now is not counted.
forget() {
    seen=$(($(wc -l <"$work/log/registry") + 1))
}

# Layers that the registry sent since then.
fetched() {
    local count=0 layer
    for layer in $layers; do
        count=$((count + $(tail -n "+$seen" "$work/log/registry" | grep -c "\"GET /v2/one/blobs/$layer" || true)))
    done
    echo "$count"
}
