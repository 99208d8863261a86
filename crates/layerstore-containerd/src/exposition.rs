//! Metrics over HTTP: every request gets all of them, so little of HTTP is needed (RFC 9112).

use crate::bounds;
use crate::listen::Socket;
use crate::server::Server;
use layerstore::{Error, Result};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

/// A request longer than this is none of Prometheus's.
const REQUEST_MAX: usize = 16 << 10;
const PATIENCE: Duration = Duration::from_secs(5);

/// Where metrics are asked for.
pub(crate) enum Endpoint {
    Unix(tokio::net::UnixListener, Socket),
    Tcp(tokio::net::TcpListener),
}

impl Endpoint {
    pub(crate) fn open(place: &str) -> Result<Self> {
        let failed = |e| Error::io("listen for metrics", e).subject(place);
        let place = place.strip_prefix("unix:").unwrap_or(place);
        if place.starts_with('/') {
            let socket = Socket::make(Path::new(place))?;
            let listener = socket.listener.try_clone().map_err(failed)?;
            listener.set_nonblocking(true).map_err(failed)?;
            return Ok(Self::Unix(tokio::net::UnixListener::from_std(listener).map_err(failed)?, socket));
        }
        let listener = std::net::TcpListener::bind(place).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self::Tcp(tokio::net::TcpListener::from_std(listener).map_err(failed)?))
    }

    /// Answers until the task is dropped. Anybody may connect to a port: the oldest connection gives way to a new one
    /// when there are too many, and all of them take one thread.
    pub(crate) async fn run(self, server: Arc<Server>) {
        let texts = Texts { server, place: Arc::new(Semaphore::new(1)) };
        let mut open: VecDeque<AbortHandle> = VecDeque::new();
        loop {
            let task = match &self {
                Self::Unix(listener, _socket) => {
                    listener.accept().await.map(|(stream, _)| tokio::spawn(answer(stream, texts.clone())))
                }
                Self::Tcp(listener) => {
                    listener.accept().await.map(|(stream, _)| tokio::spawn(answer(stream, texts.clone())))
                }
            };
            open.retain(|task| !task.is_finished());
            match task {
                Ok(task) => open.push_back(task.abort_handle()),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection for metrics; trying again");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            while open.len() > bounds::METRICS {
                open.pop_front().iter().for_each(AbortHandle::abort);
            }
        }
    }
}

/// Makes the metrics' text, one at a time.
#[derive(Clone)]
struct Texts {
    server: Arc<Server>,
    place: Arc<Semaphore>,
}

impl Texts {
    async fn text(&self) -> String {
        let Ok(place) = self.place.clone().acquire_owned().await else { return String::new() };
        let server = self.server.clone();
        // The place is taken until it is made, also when nobody waits for it any more.
        let text = tokio::task::spawn_blocking(move || {
            let _place = place;
            server.metrics.text(server.store())
        });
        text.await.unwrap_or_default()
    }
}

/// One request a connection. What a client does wrong is its own loss.
async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, texts: Texts) {
    let work = async {
        let mut request = Vec::new();
        while !request.windows(4).any(|w| w == b"\r\n\r\n") && request.len() < REQUEST_MAX {
            if stream.read_buf(&mut request).await? == 0 {
                return Ok(());
            }
        }
        let found = request.starts_with(b"GET / ") || request.starts_with(b"GET /metrics ");
        let (status, body) = if found { ("200 OK", texts.text().await) } else { ("404 Not Found", String::new()) };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        stream.shutdown().await
    };
    let _: Result<std::io::Result<()>, _> = tokio::time::timeout(PATIENCE, work).await;
}
