#!/bin/bash
# What the project needs of a machine, tried on one that has nothing else: Debian with gcc and Rust, in a root of its own.
#
#   bare.sh            as root; runs all test binaries, and README's first commands, in the bare root
#   bare.sh tests      the test binaries alone
#   bare.sh readme     the commands of README's first console block alone
#   bare.sh chroot     the test binaries in a plain chroot, where the kernel refuses namespaces
#
# Nothing is built twice: test binaries come from this checkout's target directory, and README's commands find crates and
# what was built for release there. Needs debootstrap and rustup. The bare system is kept in $BARE_DIR.
set -euo pipefail
cd "$(dirname "$0")/../.."
dir=${BARE_DIR:-/var/tmp/layerstore-bare}
here=$PWD
target=${CARGO_TARGET_DIR:-$here/target}
rust=$(dirname "$(dirname "$(rustup which rustc)")")
cargo_home=${CARGO_HOME:-$HOME/.cargo}

make_root() {
    [ -e "$dir/ready" ] && return
    rm -rf "$dir"
    debootstrap --variant=minbase --include=gcc,g++,libc6-dev,ca-certificates,make bookworm "$dir" >/dev/null
    touch "$dir/ready"
}

# Runs a command in the bare root: `in_root pivot_root COMMAND` or `in_root chroot COMMAND`. The checkout, its target
# directory, Rust and cargo's crates have the paths that they have here; all but what is built is read-only.
in_root() {
    export dir here target rust cargo_home way=$1 command=$2
    unshare --mount --pid --fork --kill-child --propagation private bash -euc '
        [ "$way" = chroot ] || mount --bind "$dir" "$dir"
        for shown in "$here" "$target" "$rust" "$cargo_home"; do
            mkdir -p "$dir$shown"
            mount --bind "$shown" "$dir$shown"
        done
        mount -o remount,bind,ro "$dir$rust"
        mount -t proc proc "$dir/proc"; mount -t sysfs sys "$dir/sys"; mount --rbind /dev "$dir/dev"
        mount -t tmpfs tmpfs "$dir/run"; mount -t tmpfs tmpfs "$dir/tmp"
        clean=(env -i HOME=/root TERM=dumb CARGO_HOME="$cargo_home" CARGO_TARGET_DIR="$target" CARGO_TERM_COLOR=never
            PATH="$rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        for name in $(compgen -e CARGO_PROFILE_) CARGO_INCREMENTAL https_proxy http_proxy; do
            [ -z "${!name+set}" ] || clean+=("$name=${!name}")
        done
        if [ "$way" = chroot ]; then
            exec chroot "$dir" "${clean[@]}" bash -c "cd $here && $command"
        fi
        mkdir -p "$dir/.old"; cd "$dir"; pivot_root . .old; hash -r; umount -l /.old
        exec "${clean[@]}" bash -c "cd $here && $command"'
}

# `target/test-binaries` lists a directory to run in and a test binary a line.
list_tests() {
    cargo test --workspace --no-run --message-format=json 2>/dev/null |
        sed -n 's/.*"manifest_path":"\([^"]*\)\/Cargo.toml".*"profile":{[^}]*"test":true}.*"executable":"\([^"]*\)".*/\1 \2/p' >"$target/test-binaries"
    [ -s "$target/test-binaries" ]
}

# Each with ten minutes: what hangs is a failure.
run_tests='failed=0
    while read -r where binary; do
        echo "== $binary"
        (cd "$where" && timeout -k 10 600 "$binary" --show-output </dev/null) >/tmp/out 2>&1 ||
            { failed=1; echo "FAILED: $?"; tail -n 60 /tmp/out; }
        grep -E "^(test result|skipped)" /tmp/out || true
    done <"$CARGO_TARGET_DIR/test-binaries"
    exit $failed'

# The commands of README's first console block, without prompts and comments; crates are here already.
readme() {
    awk '/^```console/ { on = 1; next } /^```/ { if (on) exit } on && sub(/^\$ /, "") { sub(/ +#.*/, ""); print }' README.md
}

make_root
what=${1:-all}
if [ "$what" != readme ]; then
    list_tests
fi
case $what in all | tests) in_root pivot_root "$run_tests" ;; chroot) in_root chroot "$run_tests" ;; esac
case $what in all | readme)
    while read -r command; do
        echo "== $command"
        # The test command proves that it builds and finds all it needs; its tests ran above.
        [[ $command != "cargo test"* ]] || command="$command --no-run"
        in_root pivot_root "CARGO_NET_OFFLINE=true $command" </dev/null
    done < <(readme)
    ;;
esac
