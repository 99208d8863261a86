//! The snapshots service, `containerd.services.snapshots.v1`.
//!
//! What each call means is in containerd's `core/snapshots/snapshotter.go`; the library does it. Here is only the
//! protocol, and the answer that a layer is here already (`remote.rs`).

use crate::bounds;
use crate::convert::{self, some};
use crate::proto::snapshots as api;
use crate::remote;
use crate::server::Server;
use layerstore::{CommitOptions, Error, Mount, RemoveOptions, SnapshotFilter};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Snapshots in one message of a list.
const LIST_BLOCK: usize = 100;

pub(crate) struct Service(pub(crate) Arc<Server>);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl api::snapshots_server::Snapshots for Service {
    async fn prepare(&self, request: Request<api::PrepareSnapshotRequest>) -> Answer<api::PrepareSnapshotResponse> {
        let request = request.into_inner();
        let key = request.key.clone();
        let prepare = move |server: &Server, watch: &crate::server::Watch| {
            let labels = convert::labels(request.labels);
            let parent = some(&request.parent);
            if let Some(name) = remote::known(&server.snapshots, parent, &labels)? {
                server.metrics.layers_known.fetch_add(1, Relaxed);
                let e = Error::new(layerstore::ErrorKind::AlreadyExists, "the layer is here");
                return Err(e.subject(format!("snapshot {name}")));
            }
            // What will not be mounted need not be mountable: making each chain of an image ready would take longer than
            // storing its layers.
            let goes_on = labels.contains_key(remote::REF) && parent.is_some_and(|p| server.unpacking.goes_on(p));
            let mounts = match goes_on {
                true => server.snapshots.prepare_unmade(&request.key, parent, &labels, watch),
                false => server.snapshots.prepare(&request.key, parent, &labels, watch),
            }?;
            server.unpacking.prepared(&request.key);
            match remote::staged(&server.snapshots, &labels).filter(|_| parent.is_none()) {
                None => Ok(mounts),
                Some(layer) => {
                    server.metrics.layers_known.fetch_add(1, Relaxed);
                    server.snapshots.bind(&request.key, &layer)?;
                    Ok(read_only(mounts))
                }
            }
        };
        let mounts = self.0.call("Prepare", &key, prepare).await?;
        Ok(Response::new(api::PrepareSnapshotResponse { mounts: convert::mounts_out(mounts) }))
    }

    async fn view(&self, request: Request<api::ViewSnapshotRequest>) -> Answer<api::ViewSnapshotResponse> {
        let request = request.into_inner();
        let key = request.key.clone();
        let view = move |server: &Server, watch: &crate::server::Watch| {
            let labels = convert::labels(request.labels);
            server.snapshots.view(&request.key, some(&request.parent), &labels, watch)
        };
        let mounts = self.0.call("View", &key, view).await?;
        Ok(Response::new(api::ViewSnapshotResponse { mounts: convert::mounts_out(mounts) }))
    }

    async fn mounts(&self, request: Request<api::MountsRequest>) -> Answer<api::MountsResponse> {
        let key = request.into_inner().key;
        let mounts = self.0.call("Mounts", &key.clone(), move |s, watch| s.snapshots.mounts(&key, watch)).await?;
        Ok(Response::new(api::MountsResponse { mounts: convert::mounts_out(mounts) }))
    }

    async fn commit(&self, request: Request<api::CommitSnapshotRequest>) -> Answer<()> {
        let request = request.into_inner();
        let key = request.key.clone();
        let commit = move |server: &Server, watch: &crate::server::Watch| {
            // containerd holds the lock of its metadata meanwhile: directories become layers afterwards.
            let mut options = CommitOptions::default().labels(convert::labels(request.labels)).deferred(true);
            // Clients of containerd commit what they have mounted, its own conformance suite among them.
            options = options.mounted(true);
            if let Some(parent) = some(&request.parent) {
                options = options.parent(parent);
            }
            server.snapshots.commit(&request.name, &request.key, &options, watch)?;
            server.unpacking.committed(&request.key, &request.name);
            server.background.wake();
            Ok(())
        };
        self.0.call("Commit", &key, commit).await.map(Response::new)
    }

    async fn remove(&self, request: Request<api::RemoveSnapshotRequest>) -> Answer<()> {
        let key = request.into_inner().key;
        let subject = key.clone();
        let remove = move |server: &Server, _: &crate::server::Watch| {
            // As containerd's snapshotters do; the directory stays until it is mounted nowhere.
            server.snapshots.remove_with(&key, &RemoveOptions::default().mounted(true))?;
            server.unpacking.removed(&key);
            server.background.wake();
            Ok(())
        };
        self.0.call("Remove", &subject, remove).await.map(Response::new)
    }

    async fn stat(&self, request: Request<api::StatSnapshotRequest>) -> Answer<api::StatSnapshotResponse> {
        let key = request.into_inner().key;
        let info = self.0.call("Stat", &key.clone(), move |s, _| s.snapshots.stat(&key)).await?;
        Ok(Response::new(api::StatSnapshotResponse { info: Some(convert::info(info)) }))
    }

    async fn update(&self, request: Request<api::UpdateSnapshotRequest>) -> Answer<api::UpdateSnapshotResponse> {
        let request = request.into_inner();
        let info = request.info.unwrap_or_default();
        let fields = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
        let key = info.name.clone();
        let update = move |server: &Server, _: &crate::server::Watch| {
            let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
            server.snapshots.update(&info.name, &convert::labels(info.labels), &fields)
        };
        let info = self.0.call("Update", &key, update).await?;
        Ok(Response::new(api::UpdateSnapshotResponse { info: Some(convert::info(info)) }))
    }

    type ListStream = Pin<Box<dyn Stream<Item = Result<api::ListSnapshotsResponse, Status>> + Send>>;

    async fn list(&self, request: Request<api::ListSnapshotsRequest>) -> Answer<Self::ListStream> {
        let filters = request.into_inner().filters;
        let subject = filters.join(" or ");
        let list = move |server: &Server, _: &crate::server::Watch| {
            let filter = SnapshotFilter::parse(&filters)?;
            let mut found = Vec::new();
            server.snapshots.walk(|info| {
                if filter.matches(&info) {
                    found.push(convert::info(info));
                }
                Ok(())
            })?;
            Ok(found)
        };
        let place = self.0.lists.clone().acquire_owned().await;
        let place = place.map_err(|_| Status::unavailable("the daemon is stopping"))?;
        let mut found = self.0.call("List", &subject, list).await?;
        let (send, receive) = mpsc::channel(1);
        // What is in memory goes also when the client does not read it.
        tokio::spawn(async move {
            let _place = place;
            while !found.is_empty() {
                let rest = found.split_off(found.len().min(LIST_BLOCK));
                let block = api::ListSnapshotsResponse { info: std::mem::replace(&mut found, rest) };
                match tokio::time::timeout(bounds::LIST_PATIENCE, send.reserve()).await {
                    Ok(Ok(free)) => free.send(Ok(block)),
                    Ok(Err(_)) => return,
                    Err(_) => break,
                }
            }
            if !found.is_empty() {
                let _ = send.try_send(Err(Status::deadline_exceeded("the list is not read")));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    async fn usage(&self, request: Request<api::UsageRequest>) -> Answer<api::UsageResponse> {
        let key = request.into_inner().key;
        let usage = self.0.call("Usage", &key.clone(), move |s, _| s.snapshots.usage(&key)).await?;
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        Ok(Response::new(api::UsageResponse { size: number(usage.bytes), inodes: number(usage.inodes) }))
    }

    async fn cleanup(&self, _: Request<api::CleanupRequest>) -> Answer<()> {
        let cleanup = |server: &Server, _: &crate::server::Watch| {
            let removed = server.snapshots.cleanup()?;
            server.metrics.directories_removed.fetch_add(removed, Relaxed);
            Ok(())
        };
        self.0.call("Cleanup", "", cleanup).await.map(Response::new)
    }
}

/// The same mounts, not to be written to.
fn read_only(mut mounts: Vec<Mount>) -> Vec<Mount> {
    for mount in &mut mounts {
        mount.options.retain(|option| option != "rw" && option != "ro");
        mount.options.push("ro".to_owned());
    }
    mounts
}
