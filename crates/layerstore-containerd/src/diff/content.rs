//! containerd's content store: blobs are read from its directory or through its socket, and written through the socket.

use crate::config::Containerd;
use crate::proto::content::content_client::ContentClient;
use crate::proto::content::{AbortRequest, ReadContentRequest, WriteAction, WriteContentRequest};
use layerstore::{Digest, Error, Labels, ReadOnce};
use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// containerd sends 1 MiB at a time.
const MESSAGE_MAX: usize = 16 << 20;
/// Bytes written at a time, and messages on their way.
const BUFFER: usize = 1 << 20;
const BUFFERS: usize = 4;
/// What a request says about on whose behalf it is, to be said again in requests made for it.
const NAMESPACE: &str = "containerd-namespace";
pub(super) const LEASE: &str = "containerd-lease";

/// Where the content is.
#[derive(Clone)]
pub(crate) struct Content {
    dir: Option<PathBuf>,
    channel: Channel,
    client: ContentClient<Channel>,
    metadata: MetadataMap,
}

impl Content {
    /// Connects when it is needed first. `metadata` is that of the call this is for, `key` the key of its snapshot.
    pub(crate) fn new(containerd: &Containerd, metadata: &MetadataMap, key: &str) -> Result<Self, Status> {
        let address = &containerd.address;
        let endpoint = Endpoint::from_shared(format!("unix://{}", address.display()));
        let endpoint = endpoint.map_err(|e| Status::internal(format!("containerd's address: {e}")))?;
        let channel = endpoint.connect_lazy();
        let client = ContentClient::new(channel.clone()).max_decoding_message_size(MESSAGE_MAX);
        let mut forwarded = MetadataMap::new();
        if let Some(lease) = metadata.get(LEASE) {
            forwarded.insert(LEASE, lease.clone());
        }
        // containerd before 2.0 does not say it, but begins all keys with it: "NAMESPACE/NUMBER/KEY".
        let said = metadata.get(NAMESPACE).cloned();
        let namespace = said.or_else(|| key.split_once('/')?.0.parse().ok());
        forwarded.insert(NAMESPACE, namespace.unwrap_or(MetadataValue::from_static("default")));
        Ok(Self { dir: containerd.content.clone(), channel, client, metadata: forwarded })
    }

    /// The connection, for other services of the same containerd.
    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The lease that requests name.
    pub(super) fn lease(&self) -> Option<&str> {
        self.metadata.get(LEASE)?.to_str().ok()
    }

    /// The same content, asked for in the name of a lease.
    pub(super) fn with_lease(mut self, id: &str) -> Result<Self, Status> {
        let id = id.parse().map_err(|_| Status::internal("containerd made a lease that cannot be named"))?;
        self.metadata.insert(LEASE, id);
        Ok(self)
    }

    /// A request on behalf of whom the call is for.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        *request.metadata_mut() = self.metadata.clone();
        request
    }

    /// A blob, to be read on a thread that may block. What it holds is for the reader to verify.
    pub(crate) async fn open(&self, digest: &Digest) -> Result<Box<dyn Read + Send>, Status> {
        if let Some(dir) = &self.dir {
            let path = dir.join("blobs/sha256").join(digest.hex());
            match File::open(&path) {
                Ok(file) => return Ok(Box::new(ReadOnce::new(file))),
                Err(error) => tracing::warn!(?path, %error, "not in the content directory"),
            }
        }
        let read = ReadContentRequest { digest: digest.to_string(), offset: 0, size: 0 };
        let mut stream = self.client.clone().read(self.request(read)).await?.into_inner();
        let (send, receive) = mpsc::channel(BUFFERS);
        tokio::spawn(async move {
            loop {
                let message = stream.message().await;
                let end = !matches!(message, Ok(Some(_)));
                let part = message.map(|message| message.map(|m| m.data));
                // Nobody reads any more where this fails.
                if send.send(part).await.is_err() || end {
                    break;
                }
            }
        });
        Ok(Box::new(Received { receive, part: vec![], at: 0, end: false }))
    }

    /// Begins to write a blob. Returns what to write to, on a thread that may block, and what becomes of it.
    pub(crate) fn write(&self, reference: String, labels: Labels) -> (Sender, Writing) {
        let (send, receive) = mpsc::channel(BUFFERS);
        let writing = Writing { content: self.clone(), receive, reference };
        (Sender { send, labels: Some(labels), part: Vec::with_capacity(BUFFER), offset: 0 }, writing)
    }
}

/// A blob as it comes.
struct Received {
    receive: mpsc::Receiver<Result<Option<Vec<u8>>, Status>>,
    part: Vec<u8>,
    at: usize,
    end: bool,
}

impl Read for Received {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.at == self.part.len() && !self.end {
            match self.receive.blocking_recv() {
                Some(Ok(Some(part))) => (self.part, self.at) = (part, 0),
                Some(Ok(None)) => self.end = true,
                Some(Err(status)) => return Err(std::io::Error::other(status.message().to_owned())),
                None => return Err(std::io::Error::other("containerd's connection is gone")),
            }
        }
        let len = buffer.len().min(self.part.len() - self.at);
        buffer[..len].copy_from_slice(&self.part[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}

/// The end of a new blob that is written to.
pub(crate) struct Sender {
    send: mpsc::Sender<WriteContentRequest>,
    labels: Option<Labels>,
    part: Vec<u8>,
    offset: i64,
}

impl Sender {
    fn flush_part(&mut self, action: WriteAction) -> std::io::Result<WriteContentRequest> {
        let data = std::mem::replace(&mut self.part, Vec::with_capacity(BUFFER));
        let offset = self.offset;
        self.offset += i64::try_from(data.len()).map_err(std::io::Error::other)?;
        Ok(WriteContentRequest { action: action.into(), offset, data, ..Default::default() })
    }

    fn send(&self, request: WriteContentRequest) -> std::io::Result<()> {
        self.send.blocking_send(request).map_err(|_| std::io::Error::other("containerd does not take the layer"))
    }

    /// Ends the blob; containerd compares it with the digest.
    pub(crate) fn finish(mut self, digest: &Digest, diff_id: &Digest) -> layerstore::Result<()> {
        let mut labels = self.labels.take().unwrap_or_default();
        labels.insert("containerd.io/uncompressed".to_owned(), diff_id.to_string());
        let commit = self.flush_part(WriteAction::Commit).and_then(|mut request| {
            request.total = self.offset;
            request.expected = digest.to_string();
            request.labels = labels.into_iter().collect();
            self.send(request)
        });
        commit.map_err(|e| Error::io("write to containerd's content store", e))
    }
}

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let len = bytes.len().min(BUFFER - self.part.len());
        self.part.extend_from_slice(&bytes[..len]);
        if self.part.len() == BUFFER {
            let request = self.flush_part(WriteAction::Write)?;
            self.send(request)?;
        }
        Ok(len)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The end of a new blob that is sent to containerd.
pub(crate) struct Writing {
    content: Content,
    receive: mpsc::Receiver<WriteContentRequest>,
    reference: String,
}

impl Writing {
    /// Sends all that is written, until it is finished. That containerd has the same blob is no failure.
    pub(crate) async fn run(self) -> Result<(), Status> {
        let reference = self.reference.clone();
        let content = self.content.clone();
        let answer = self.send_all().await;
        match answer {
            Err(e) if e.code() == Code::AlreadyExists => Ok(()),
            Err(e) => {
                let abort = content.request(AbortRequest { r#ref: reference });
                // Nothing to abort is no failure, and the first error is the one to tell.
                let _ = content.client.clone().abort(abort).await;
                Err(e)
            }
            Ok(()) => Ok(()),
        }
    }

    async fn send_all(mut self) -> Result<(), Status> {
        let cancelled = || Status::cancelled("the layer could not be made");
        // containerd hears nothing of what is not made.
        let mut next = Some(self.receive.recv().await.ok_or_else(cancelled)?);
        let (send, requests) = mpsc::channel(BUFFERS);
        let first = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: self.reference.clone(),
            ..Default::default()
        };
        let gone = || Status::unavailable("containerd's connection is gone");
        send.send(first).await.map_err(|_| gone())?;
        let requests = self.content.request(ReceiverStream::new(requests));
        let mut answers = self.content.client.clone().write(requests).await?.into_inner();
        // An earlier attempt's bytes are written over from the start: the first write is at offset 0.
        while let Some(mut request) = next.take() {
            request.r#ref.clone_from(&self.reference);
            let commit = request.action == i32::from(WriteAction::Commit);
            if send.send(request).await.is_err() {
                return Err(answers.message().await.err().unwrap_or_else(gone));
            }
            if commit {
                break;
            }
            // Every write is answered; the last answer is read below.
            answers.message().await?.ok_or_else(gone)?;
            next = Some(self.receive.recv().await.ok_or_else(cancelled)?);
        }
        drop(send);
        while let Some(answer) = answers.message().await? {
            if answer.action == i32::from(WriteAction::Commit) {
                return Ok(());
            }
        }
        Err(gone())
    }
}
