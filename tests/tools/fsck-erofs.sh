#!/bin/bash
# fsck-erofs.sh DIR: makes DIR/fsck.erofs, of a Debian release whose erofs-utils know zstd (1.8; bookworm's 1.5 do not).
# The program and the libraries it needs are unpacked below DIR, nothing is installed. As root; needs the network.
set -euo pipefail
dir=$(realpath -m "${1:?DIR}")
[ ! -x "$dir/fsck.erofs" ] || exit 0
at=$dir/.apt
mkdir -p "$at/lists/partial" "$at/cache/archives/partial" "$dir/root"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie main" >"$at/sources.list"
apt=(-qq -o "Dir::Etc::sourcelist=$at/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$at/lists"
    -o "Dir::Cache=$at/cache" -o APT::Sandbox::User=root)
apt-get "${apt[@]}" update
needed=$(apt-cache "${apt[@]}" depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
    --no-enhances erofs-utils | grep '^[a-z]' | sort -u)
# shellcheck disable=SC2086
(cd "$at" && apt-get "${apt[@]}" download $needed)
for package in "$at"/*.deb; do dpkg -x "$package" "$dir/root"; done
rm -rf "$at"
libraries=$dir/root/usr/lib/x86_64-linux-gnu
cat >"$dir/fsck.erofs" <<END
#!/bin/sh
exec $libraries/ld-linux-x86-64.so.2 --library-path $libraries $dir/root/usr/bin/fsck.erofs "\$@"
END
chmod +x "$dir/fsck.erofs"
"$dir/fsck.erofs" --version
