#!/bin/bash
# get.sh DIR [VERSION...]: everything that the tests on real daemons need, from Debian, unpacked below DIR:
#   DIR/1.6 DIR/1.7 DIR/2.1   containerd of bookworm, trixie and forky
#   DIR/proxysuite.test       containerd's own test suite for snapshotters
# and installs runc, Go, docker-registry and podman. Run as root on bookworm; what is there already is not fetched again.
set -euo pipefail
dir=$(realpath -m "${1:?DIR}")
here=$(dirname "$(realpath "$0")")
versions=("${@:2}")
[ ${#versions[@]} -gt 0 ] || versions=(1.6 1.7 2.1)
export DEBIAN_FRONTEND=noninteractive
mkdir -p "$dir"

wanted=(golang-go golang-github-containerd-containerd-dev runc docker-registry podman crun skopeo jq openssl)
missing=()
for package in "${wanted[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    apt-get -qq update
    # Services that come with packages are not started: policy-rc.d says no, where nobody else said something.
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
        chmod +x /usr/sbin/policy-rc.d
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
fi

# containerd VERSION SUITE: the newer ones run on bookworm when they are unpacked beside it.
containerd() {
    local version=$1 suite=$2 at=$dir/.apt-$2
    [ ! -x "$dir/$version/usr/bin/containerd" ] || return 0
    mkdir -p "$at/lists/partial" "$at/cache/archives/partial" "$dir/$version"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $suite main" >"$at/sources.list"
    local apt=(-qq -o "Dir::Etc::sourcelist=$at/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$at/lists"
        -o "Dir::Cache=$at/cache" -o APT::Sandbox::User=root)
    apt-get "${apt[@]}" update
    (cd "$at" && apt-get "${apt[@]}" download containerd)
    dpkg -x "$at"/containerd_*.deb "$dir/$version"
    rm -rf "$at"
}
declare -A suites=([1.6]=bookworm [1.7]=trixie [2.1]=forky)
for version in "${versions[@]}"; do
    containerd "$version" "${suites[$version]}"
    "$dir/$version/usr/bin/containerd" --version
done

if [ ! -x "$dir/proxysuite.test" ]; then
    mkdir -p "$dir/go/src/proxysuite"
    cp "$here"/../suite/*.go "$dir/go/src/proxysuite/"
    (cd "$dir/go/src/proxysuite" && GO111MODULE=off GOPATH=$dir/go:/usr/share/gocode GOCACHE=$dir/go/cache \
        /usr/bin/go test -c -o "$dir/proxysuite.test" .)
    rm -rf "$dir/go"
fi
