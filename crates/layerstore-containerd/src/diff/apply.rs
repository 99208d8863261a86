//! Apply: a layer's blob into a snapshot, the fast way: into the store, without unpacking anything. Onto mounts of other
//! snapshotters it is written, once it is stored and found to be what it should be.

use super::content::Content;
use super::delegate;
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
    if server.delegated.has(&request) {
        return Err(Status::unimplemented("the layer is not taken here"));
    }
    let refused = match apply_here(server, request.clone(), metadata).await {
        Err(refused) if delegate::may_be_taken(&refused) => refused,
        answer => return answer,
    };
    let mounts = convert::mounts_in(request.mounts.clone());
    // Another differ mounts them.
    let revive = move |server: &Server, watch: &Watch| {
        let key = target(server, &mounts)?;
        key.as_ref().map(|key| server.snapshots.mounts(key, watch)).transpose()?;
        Ok(key)
    };
    let key = server.call("Revive", "", revive).await?;
    let foreign = !is_layer(&request.diff.as_ref().map(|diff| diff.media_type.clone()).unwrap_or_default());
    let content = Content::new(&server.config.containerd, metadata, key.as_deref().unwrap_or_default())?;
    delegate::apply(server, request, content, refused, foreign || key.is_none()).await
}

async fn apply_here(
    server: &Arc<Server>,
    request: api::ApplyRequest,
    metadata: &MetadataMap,
) -> Result<api::ApplyResponse, Status> {
    let descriptor = request.diff.unwrap_or_default();
    // Payloads are for stream processors, which only media types need that are no plain layers: containerd's CRI sends
    // those of encrypted layers with every layer.
    if !is_layer(&descriptor.media_type) {
        return Err(Status::unimplemented(format!("{} is not applied here", descriptor.media_type)));
    }
    let digest: Digest = descriptor.digest.parse().map_err(|e| convert::status(&e))?;
    let mounts = convert::mounts_in(request.mounts);
    let asked = mounts.clone();
    let sync = request.sync_fs;
    let known = server.call("Known", &descriptor.digest, move |server, watch| {
        let Some(key) = target(server, &asked)? else {
            return Ok((None, server.store().apply_known_to(&asked, &digest, sync, watch)?));
        };
        server.unpacking.applying();
        let layer = server.snapshots.apply_known(&key, &digest)?;
        Ok((Some(key), layer))
    });
    let (key, known) = known.await?;
    let layer = match known {
        Some(layer) => {
            server.metrics.layers_known.fetch_add(1, Relaxed);
            layer
        }
        None => {
            let onto = match &key {
                Some(key) => Onto::Snapshot(key.clone()),
                None => Onto::Mounts(mounts, sync),
            };
            import(server, onto, digest, &descriptor, metadata).await?
        }
    };
    if let Some(key) = &key {
        server.unpacking.applied(key);
    }
    let applied = Descriptor {
        media_type: APPLIED.to_owned(),
        digest: layer.diff_id.to_string(),
        size: i64::try_from(layer.tar_size).unwrap_or(i64::MAX),
        annotations: Default::default(),
    };
    Ok(api::ApplyResponse { applied: Some(applied) })
}

/// What a layer is applied to.
enum Onto {
    Snapshot(String),
    /// Of another snapshotter, and whether the layer is to be on disk when it is there.
    Mounts(Vec<Mount>, bool),
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
    onto: Onto,
    digest: Digest,
    descriptor: &Descriptor,
    metadata: &MetadataMap,
) -> Result<LayerImport, Status> {
    let key = if let Onto::Snapshot(key) = &onto { key } else { "" };
    let content = Content::new(&server.config.containerd, metadata, key)?;
    let blob = content.open(&digest).await.map_err(|e| match e.code() {
        Code::NotFound => e,
        code => Status::new(code, format!("read {digest} from containerd: {}", e.message())),
    })?;
    let import = move |server: &Server, watch: &Watch| {
        let mut options = ImportOptions::default().expected_blob(digest).compress(server.config.compress()?);
        if let Some(threads) = server.config.threads {
            options = options.threads(threads);
        }
        let read = Arc::new(AtomicU64::new(0));
        let blob = Counted { inner: blob, read: read.clone() };
        let layer = match onto {
            Onto::Snapshot(key) => server.snapshots.apply(&key, blob, &options, watch)?.0,
            Onto::Mounts(mounts, sync) => server.store().apply_to(&mounts, blob, &options, sync, watch)?,
        };
        let bytes = read.load(Relaxed);
        server.metrics.layers_imported.fetch_add(1, Relaxed);
        server.metrics.blob_bytes.fetch_add(bytes, Relaxed);
        tracing::info!(blob = %digest, diff_id = %layer.diff_id, bytes, "layer imported");
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
