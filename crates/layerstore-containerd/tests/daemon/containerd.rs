//! As much of containerd as the daemon speaks to.

use crate::support::content::content_server::{Content, ContentServer};
use crate::support::content::*;
use crate::support::diff::diff_server::{Diff, DiffServer};
use crate::support::diff::{self, ApplyRequest, ApplyResponse, DiffRequest, DiffResponse};
use crate::support::leases::leases_server::{Leases, LeasesServer};
use crate::support::leases::*;
use crate::support::{Daemon, PATIENCE};
use layerstore::Digest;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::metadata::MetadataMap;
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status, Streaming};

#[derive(Default)]
struct State {
    blobs: HashMap<String, Vec<u8>>,
    written: Vec<(MetadataMap, Vec<u8>)>,
    leases: BTreeMap<String, HashMap<String, String>>,
    kept: BTreeMap<String, Vec<(String, String)>>,
    delegated: Vec<ApplyRequest>,
    refuses_writes: bool,
    takes_nothing: bool,
}

#[derive(Clone)]
pub(crate) struct Containerd {
    state: Arc<Mutex<State>>,
    plugin: PathBuf,
}

pub(crate) async fn start(daemon: &Daemon) -> Containerd {
    let containerd = Containerd { state: Arc::default(), plugin: daemon.socket() };
    let listener = tokio::net::UnixListener::bind(daemon.dir().join("containerd")).expect("binds");
    let serving = tonic::transport::Server::builder()
        .add_service(ContentServer::new(containerd.clone()))
        .add_service(LeasesServer::new(containerd.clone()))
        .add_service(DiffServer::new(containerd.clone()))
        .serve_with_incoming(UnixListenerStream::new(listener));
    tokio::spawn(serving);
    containerd
}

impl Containerd {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic")
    }

    pub(crate) fn put(&self, blob: &[u8]) {
        self.state().blobs.insert(Digest::of(blob).to_string(), blob.to_owned());
    }

    pub(crate) fn written(&self) -> Vec<(MetadataMap, Vec<u8>)> {
        self.state().written.clone()
    }

    /// Those that were created and not deleted.
    pub(crate) fn leases(&self) -> Vec<(String, HashMap<String, String>)> {
        self.state().leases.clone().into_iter().collect()
    }

    /// A client's lease keeps something.
    pub(crate) fn keep(&self, lease: &str, kind: &str, id: &str) {
        self.state().kept.entry(lease.to_owned()).or_default().push((kind.to_owned(), id.to_owned()));
    }

    pub(crate) fn kept(&self, lease: &str) -> Vec<(String, String)> {
        self.state().kept.get(lease).cloned().unwrap_or_default()
    }

    pub(crate) fn delegated(&self) -> Vec<ApplyRequest> {
        self.state().delegated.clone()
    }

    pub(crate) fn refuse_writes(&self) {
        self.state().refuses_writes = true;
    }

    pub(crate) fn take_nothing(&self) {
        self.state().takes_nothing = true;
    }
}

type Answer<T> = Result<Response<T>, Status>;
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn missing<T>() -> Answer<T> {
    Err(Status::unimplemented("not needed"))
}

#[tonic::async_trait]
impl Content for Containerd {
    type ListStream = Answers<ListContentResponse>;
    type ReadStream = Answers<ReadContentResponse>;
    type WriteStream = Answers<WriteContentResponse>;

    async fn info(&self, _: Request<InfoRequest>) -> Answer<InfoResponse> {
        missing()
    }

    async fn update(&self, _: Request<UpdateRequest>) -> Answer<UpdateResponse> {
        missing()
    }

    async fn list(&self, _: Request<ListContentRequest>) -> Answer<Self::ListStream> {
        missing()
    }

    async fn delete(&self, _: Request<DeleteContentRequest>) -> Answer<()> {
        missing()
    }

    async fn read(&self, request: Request<ReadContentRequest>) -> Answer<Self::ReadStream> {
        let data = self.state().blobs.get(&request.into_inner().digest).cloned();
        let data = data.ok_or_else(|| Status::not_found("no such blob"))?;
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(ReadContentResponse { offset: 0, data })))))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Answer<StatusResponse> {
        missing()
    }

    async fn list_statuses(&self, _: Request<ListStatusesRequest>) -> Answer<ListStatusesResponse> {
        missing()
    }

    async fn write(&self, request: Request<Streaming<WriteContentRequest>>) -> Answer<Self::WriteStream> {
        if self.state().refuses_writes {
            return Err(Status::unavailable("no more"));
        }
        let (metadata, _, mut messages) = request.into_parts();
        let (state, mut data) = (self.state.clone(), Vec::new());
        let (send, receive) = tokio::sync::mpsc::channel(4);
        tokio::spawn(async move {
            while let Some(Ok(message)) = messages.next().await {
                data.extend(message.data);
                if message.action == i32::from(WriteAction::Commit) {
                    let mut state = state.lock().expect("no panic");
                    state.written.push((metadata.clone(), data.clone()));
                }
                let answer = WriteContentResponse { action: message.action, ..Default::default() };
                if send.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receive))))
    }

    async fn abort(&self, _: Request<AbortRequest>) -> Answer<()> {
        Ok(Response::new(()))
    }
}

#[tonic::async_trait]
impl Leases for Containerd {
    async fn create(&self, request: Request<CreateRequest>) -> Answer<CreateResponse> {
        let request = request.into_inner();
        self.state().leases.insert(request.id.clone(), request.labels.clone());
        let lease = Some(Lease { id: request.id, labels: request.labels, created_at: None });
        Ok(Response::new(CreateResponse { lease }))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Answer<()> {
        let gone = self.state().leases.remove(&request.into_inner().id);
        gone.map(|_| Response::new(())).ok_or_else(|| Status::not_found("no such lease"))
    }

    async fn list(&self, _: Request<ListRequest>) -> Answer<ListResponse> {
        let state = self.state();
        let lease = |id: &String| Lease { id: id.clone(), ..Default::default() };
        Ok(Response::new(ListResponse { leases: state.leases.keys().chain(state.kept.keys()).map(lease).collect() }))
    }

    async fn add_resource(&self, request: Request<AddResourceRequest>) -> Answer<()> {
        let request = request.into_inner();
        let resource = request.resource.unwrap_or_default();
        self.keep(&request.id, &resource.r#type, &resource.id);
        Ok(Response::new(()))
    }

    async fn delete_resource(&self, _: Request<DeleteResourceRequest>) -> Answer<()> {
        missing()
    }

    async fn list_resources(&self, request: Request<ListResourcesRequest>) -> Answer<ListResourcesResponse> {
        let resource = |(kind, id): (String, String)| Resource { id, r#type: kind };
        let resources = self.kept(&request.into_inner().id).into_iter().map(resource).collect();
        Ok(Response::new(ListResourcesResponse { resources }))
    }
}

/// containerd's list of differs: the plugin, then one that takes all.
#[tonic::async_trait]
impl Diff for Containerd {
    async fn apply(&self, request: Request<ApplyRequest>) -> Answer<ApplyResponse> {
        let request = request.into_inner();
        let endpoint = Endpoint::from_shared(format!("unix://{}", self.plugin.display())).expect("an address");
        let channel = endpoint.timeout(PATIENCE).connect().await.expect("connects");
        let first = diff::diff_client::DiffClient::new(channel).apply(request.clone()).await;
        assert_eq!(first.expect_err("it asked for another").code(), tonic::Code::Unimplemented);
        if self.state().takes_nothing {
            return missing();
        }
        self.state().delegated.push(request);
        Ok(Response::new(ApplyResponse::default()))
    }

    async fn diff(&self, _: Request<DiffRequest>) -> Answer<DiffResponse> {
        missing()
    }
}
