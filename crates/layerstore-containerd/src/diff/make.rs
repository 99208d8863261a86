//! Diff: what a snapshot adds to its parent as a layer, written to containerd's content store.

use super::content::Content;
use super::lease::Lease;
use crate::convert;
use crate::proto::diff as api;
use crate::proto::types::Descriptor;
use crate::server::{Server, Watch};
use layerstore::{BlobWriter, Compression, Digest, Error, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

/// containerd's default.
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn compression(media_type: &str) -> Option<Compression> {
    [Compression::None, Compression::Gzip, Compression::Zstd].into_iter().find(|c| c.media_type() == media_type)
}

pub(super) async fn diff(
    server: &Arc<Server>,
    request: api::DiffRequest,
    metadata: &MetadataMap,
) -> Result<api::DiffResponse, Status> {
    let media_type = if request.media_type.is_empty() { GZIP.to_owned() } else { request.media_type };
    let Some(compression) = compression(&media_type) else {
        return Err(Status::unimplemented(format!("layers of type {media_type} are not made here")));
    };
    let (left, right) = (convert::mounts_in(request.left), convert::mounts_in(request.right));
    let epoch = request.source_date_epoch.map(|time| time.seconds);
    let mounted = right.clone();
    let key = server.call("Mounted", &request.r#ref, move |server, _| server.snapshots.mounted(&mounted)).await?;
    let key = key.ok_or_else(|| Status::unimplemented("the mounts are of another snapshotter"))?;
    let content = Content::new(&server.config.containerd, metadata, &key)?;
    let reference = if request.r#ref.is_empty() { unique("diff") } else { request.r#ref };
    let (lease, content) = Lease::take(content).await?;
    let (sender, writing) = content.write(reference.clone(), convert::labels(request.labels));
    let export = move |server: &Server, watch: &Watch| {
        let mut blob = BlobWriter::new(sender, compression)?;
        let diff_id = match server.snapshots.difference(&left, &right, epoch, &mut blob, watch) {
            // Other mounts are for the next differ, which mounts both and compares.
            Err(e) if e.kind() == ErrorKind::NotFound => Err(Error::new(ErrorKind::Unsupported, e.to_string())),
            other => other,
        }?;
        let (digest, size, sender) = blob.finish()?;
        sender.finish(&digest, &diff_id)?;
        Ok((digest, size))
    };
    let (made, written) = tokio::join!(server.call("Export", &reference, export), writing.run());
    let done: Result<(Digest, u64), Status> = match (made, written) {
        // Where containerd refuses, writing fails for that reason.
        (Err(made), Err(written)) => Err(if written.code() == Code::Cancelled { made } else { written }),
        (made, written) => written.and(made),
    };
    let (digest, size) = match done {
        Ok(done) => done,
        Err(e) => {
            lease.drop_unused().await;
            return Err(e);
        }
    };
    lease.hand_over(&digest.to_string(), &key).await;
    let size = i64::try_from(size).unwrap_or(i64::MAX);
    let annotations = Default::default();
    Ok(api::DiffResponse { diff: Some(Descriptor { media_type, digest: digest.to_string(), size, annotations }) })
}

/// A name that nothing else has.
pub(super) fn unique(what: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("layerstore-{what}-{}-{}-{}", std::process::id(), time.as_nanos(), COUNT.fetch_add(1, Relaxed))
}
