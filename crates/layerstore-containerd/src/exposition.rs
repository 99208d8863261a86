//! Metrics over HTTP: every request gets all of them, so little of HTTP is needed (RFC 9112).

use crate::listen::Socket;
use crate::server::Server;
use layerstore::{Error, Result};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

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

    /// Answers until the task is dropped.
    pub(crate) async fn run(self, server: Arc<Server>) {
        loop {
            let server = server.clone();
            match &self {
                Self::Unix(listener, _socket) => match listener.accept().await {
                    Ok((stream, _)) => drop(tokio::spawn(answer(stream, server))),
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                },
                Self::Tcp(listener) => match listener.accept().await {
                    Ok((stream, _)) => drop(tokio::spawn(answer(stream, server))),
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                },
            }
        }
    }
}

/// One request a connection. What a client does wrong is its own loss.
async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, server: Arc<Server>) {
    let work = async {
        let mut request = Vec::new();
        while !request.windows(4).any(|w| w == b"\r\n\r\n") && request.len() < REQUEST_MAX {
            if stream.read_buf(&mut request).await? == 0 {
                return Ok(());
            }
        }
        let found = request.starts_with(b"GET / ") || request.starts_with(b"GET /metrics ");
        let (status, body) = if found {
            let text = tokio::task::spawn_blocking(move || server.metrics.text(server.store())).await;
            ("200 OK", text.unwrap_or_default())
        } else {
            ("404 Not Found", String::new())
        };
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
