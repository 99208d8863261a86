//! Apply: a layer's blob into a snapshot, the fast way: into the store, without unpacking anything.

use super::content::Content;
use crate::convert;
use crate::proto::diff as api;
use crate::proto::types::Descriptor;
use crate::server::{Server, Watch};
use layerstore::{Digest, ErrorKind, ImportOptions, LayerImport, Mount, Result};
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

/// The media type of what an answer describes: the uncompressed tar, whatever the blob was.
const APPLIED: &str = "application/vnd.oci.image.layer.v1.tar";

/// What is a layer that the library reads; it finds the compression out by itself.
fn is_layer(media_type: &str) -> bool {
    let plain = media_type.split(';').next().unwrap_or_default();
    let (base, compression) = plain.rsplit_once(['+', '.']).unwrap_or((plain, ""));
    let oci = ["application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.nondistributable.v1.tar"];
    let docker =
        ["application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar"];
    let known = |name: &str| oci.contains(&name) || docker.contains(&name);
    known(plain) || (known(base) && ["gzip", "zstd"].contains(&compression))
}

pub(super) async fn apply(
    server: &Arc<Server>,
    request: api::ApplyRequest,
    metadata: &MetadataMap,
) -> Result<api::ApplyResponse, Status> {
    let descriptor = request.diff.unwrap_or_default();
    if !is_layer(&descriptor.media_type) || !request.payloads.is_empty() {
        return Err(Status::unimplemented(format!("{} is not applied here", descriptor.media_type)));
    }
    let digest: Digest = descriptor.digest.parse().map_err(|e| convert::status(&e))?;
    let mounts = convert::mounts_in(request.mounts);
    let known = server.call("Known", &descriptor.digest, move |server, _| {
        let Some(key) = target(server, &mounts)? else { return Ok((None, None)) };
        let layer = server.snapshots.apply_known(&key, &digest)?;
        Ok((Some(key), layer))
    });
    let layer = match known.await? {
        (_, Some(layer)) => {
            server.metrics.layers_known.fetch_add(1, Relaxed);
            layer
        }
        (Some(key), None) => import(server, key, digest, &descriptor, metadata).await?,
        // The next differ of containerd's list unpacks what it likes where it likes.
        (None, None) => return Err(Status::unimplemented("the mounts are of another snapshotter")),
    };
    let applied = Descriptor {
        media_type: APPLIED.to_owned(),
        digest: layer.diff_id.to_string(),
        size: i64::try_from(layer.tar_size).unwrap_or(i64::MAX),
        annotations: Default::default(),
    };
    Ok(api::ApplyResponse { applied: Some(applied) })
}

/// The snapshot that mounts are of, if it is one of ours.
fn target(server: &Server, mounts: &[Mount]) -> Result<Option<String>> {
    match server.snapshots.key_of(mounts) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

async fn import(
    server: &Arc<Server>,
    key: String,
    digest: Digest,
    descriptor: &Descriptor,
    metadata: &MetadataMap,
) -> Result<LayerImport, Status> {
    let content = Content::new(&server.config.containerd, metadata, &key)?;
    let blob = content.open(&digest).await.map_err(|e| match e.code() {
        Code::NotFound => e,
        code => Status::new(code, format!("read {digest} from containerd: {}", e.message())),
    })?;
    let import = move |server: &Server, watch: &Watch| {
        let mut options = ImportOptions::default().expected_blob(digest);
        if let Some(threads) = server.config.threads {
            options = options.threads(threads);
        }
        let read = Arc::new(AtomicU64::new(0));
        let blob = Counted { inner: blob, read: read.clone() };
        let (layer, stats) = server.snapshots.apply(&key, blob, &options, watch)?;
        let bytes = read.load(Relaxed);
        server.metrics.layers_imported.fetch_add(1, Relaxed);
        server.metrics.blob_bytes.fetch_add(bytes, Relaxed);
        tracing::info!(blob = %digest, diff_id = %layer.diff_id, bytes, stored = stats.new_stored, "layer imported");
        Ok(layer)
    };
    server.call("Import", &descriptor.digest, import).await
}

struct Counted<R> {
    inner: R,
    read: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let len = self.inner.read(buffer)?;
        self.read.fetch_add(len as u64, Relaxed);
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::is_layer;

    #[test]
    fn knows_layers() {
        for layer in [
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.diff.tar",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.docker.image.rootfs.diff.tar.zstd",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        ] {
            assert!(is_layer(layer), "{layer}");
        }
        for other in [
            "",
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            "application/vnd.oci.image.layer.v1.erofs",
            "application/vnd.oci.image.config.v1+json",
        ] {
            assert!(!is_layer(other), "{other}");
        }
    }
}
