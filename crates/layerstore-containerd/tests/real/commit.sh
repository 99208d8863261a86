#!/bin/bash
# An image of a container, as builders make it: the difference of the container's snapshot to its parent becomes one more
# layer. Reads variables and the ctr function from standard input; writes an archive.
set -euo pipefail
eval "$(cat)"
oci=$work/committed
rm -rf "$oci"
cp -r "$image" "$oci"
blobs=$oci/blobs/sha256
put() {
    local digest
    digest=$(sha256sum "$1" | cut -d' ' -f1)
    mv "$1" "$blobs/$digest"
    echo "$digest"
}
ctr snapshots --snapshotter layerstore diff stays >"$work/layer"
[ -s "$work/layer" ] || { echo "the difference is empty" >&2; exit 1; }
case $(head -c2 "$work/layer" | od -An -tx1 | tr -d ' ') in
    1f8b) type=application/vnd.oci.image.layer.v1.tar+gzip diff_id=$(gzip -dc "$work/layer" | sha256sum | cut -d' ' -f1) ;;
    *) type=application/vnd.oci.image.layer.v1.tar diff_id=$(sha256sum "$work/layer" | cut -d' ' -f1) ;;
esac
size=$(stat -c %s "$work/layer")
layer=$(put "$work/layer")
manifest=$blobs/$(jq -r '.manifests[0].digest' "$oci/index.json" | cut -d: -f2)
config=$blobs/$(jq -r .config.digest "$manifest" | cut -d: -f2)
jq -c ".rootfs.diff_ids += [\"sha256:$diff_id\"] | .history += [{created_by: \"test\"}]" "$config" >"$work/new"
config_size=$(stat -c %s "$work/new")
config=$(put "$work/new")
jq -c ".config.digest = \"sha256:$config\" | .config.size = $config_size
    | .layers += [{mediaType: \"$type\", digest: \"sha256:$layer\", size: $size}]" "$manifest" >"$work/new"
manifest_size=$(stat -c %s "$work/new")
manifest=$(put "$work/new")
jq -c ".manifests[0].digest = \"sha256:$manifest\" | .manifests[0].size = $manifest_size" "$oci/index.json" >"$work/new"
mv "$work/new" "$oci/index.json"
tar -C "$oci" -cf - .
