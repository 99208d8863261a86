//! Connections on the gRPC socket: how many there are, and which gives way to a new one.
//!
//! When all are taken, the one that has been idle longest goes, those first that never made a call: who connects and says
//! nothing cannot keep containerd out. A connection with a call under way never gives way; then a new one waits. When
//! descriptors run out, accepting waits a moment and goes on.

use crate::bounds;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc};
use tokio::time::Sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// How long accepting waits after a failure: descriptors come back when somebody closes some.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a connection may take to make its first call, before it goes first.
const GRACE: Duration = Duration::from_secs(1);
/// What an HTTP/2 client begins with (RFC 9113, section 3.4).
const PREFACE_LEN: usize = 24;

/// Accepts connections, `most` at a time, until the stream is dropped.
pub(crate) fn accept(listener: UnixListener, most: usize) -> ReceiverStream<io::Result<Connection>> {
    let (send, receive) = mpsc::channel(1);
    let all = Arc::new(All { most, list: Mutex::default(), gone: Notify::new() });
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                () = send.closed() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    all.make_room().await;
                    if send.send(Ok(Connection::new(stream, &all))).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection; trying again");
                    all.close_one();
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    });
    ReceiverStream::new(receive)
}

/// The connections there are.
struct All {
    most: usize,
    list: Mutex<Vec<Arc<Client>>>,
    gone: Notify,
}

impl All {
    fn list(&self) -> MutexGuard<'_, Vec<Arc<Client>>> {
        self.list.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Waits until there may be one more.
    async fn make_room(&self) {
        loop {
            let gone = self.gone.notified();
            if self.list().len() < self.most || self.close_one() {
                return;
            }
            gone.await;
        }
    }

    /// Closes the connection that has been idle longest; false if all are at work.
    fn close_one(&self) -> bool {
        let mut list = self.list();
        let idle: Vec<_> = list.iter().map(|client| client.idle_since()).collect();
        let Some(at) = gives_way(&idle, self.most, Instant::now()) else { return false };
        list.remove(at).close();
        true
    }
}

/// Which connection gives way, of what [`Client::idle_since`] says of each. Those that never made a call go first, unless
/// they are few and have just come.
fn gives_way(idle: &[Option<(bool, Instant)>], most: usize, now: Instant) -> Option<usize> {
    let oldest = |wanted: bool| {
        let since = |(at, idle): (usize, &Option<(bool, Instant)>)| idle.filter(|i| i.0 == wanted).map(|i| (i.1, at));
        idle.iter().enumerate().filter_map(since).min()
    };
    let silent = idle.iter().flatten().filter(|(called, _)| !called).count();
    let (never, called) = (oldest(false), oldest(true));
    let old = never.filter(|(since, _)| now.duration_since(*since) >= GRACE || silent > most / 2);
    old.or(called).or(never).map(|(_, at)| at)
}

/// What is known of the other end of a connection; in the extensions of each of its requests.
#[derive(Debug)]
pub(crate) struct Client(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Calls under way, and whether there ever was one.
    calls: usize,
    called: bool,
    /// When it connected, or its last call ended.
    since: Instant,
    closed: bool,
    reader: Option<Waker>,
}

impl Client {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Whether it has ever made a call, and since when it has had none; `None` with a call under way.
    fn idle_since(&self) -> Option<(bool, Instant)> {
        let state = self.state();
        (state.calls == 0).then_some((state.called, state.since))
    }

    fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }

    /// A call is under way as long as what is returned is kept.
    pub(crate) fn call(self: Arc<Self>) -> Call {
        let mut state = self.state();
        state.calls += 1;
        state.called = true;
        drop(state);
        Call(self)
    }
}

/// See [`Client::call`].
pub(crate) struct Call(Arc<Client>);

impl Drop for Call {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.calls -= 1;
        state.since = Instant::now();
    }
}

/// A connection that ends when another is let in for it, or when it does not begin to speak.
pub(crate) struct Connection {
    stream: UnixStream,
    client: Arc<Client>,
    all: Arc<All>,
    /// Until the preface is there.
    patience: Option<Pin<Box<Sleep>>>,
    heard: usize,
}

impl Connection {
    fn new(stream: UnixStream, all: &Arc<All>) -> Self {
        let state = State { calls: 0, called: false, since: Instant::now(), closed: false, reader: None };
        let client = Arc::new(Client(Mutex::new(state)));
        all.list().push(client.clone());
        let patience = Some(Box::pin(tokio::time::sleep(bounds::PREFACE)));
        Self { stream, client, all: all.clone(), patience, heard: 0 }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.all.list().retain(|client| !Arc::ptr_eq(client, &self.client));
        self.all.gone.notify_one();
    }
}

impl Connected for Connection {
    type ConnectInfo = Arc<Client>;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.client.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = &mut *self;
        let mut state = me.client.state();
        if state.closed {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        state.reader = Some(cx.waker().clone());
        drop(state);
        if let Some(patience) = &mut me.patience
            && patience.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut me.stream).poll_read(cx, buffer);
        me.heard += buffer.filled().len() - before;
        if me.heard >= PREFACE_LEN {
            me.patience = None;
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_says_nothing_gives_way_first_and_who_works_never() {
        let now = Instant::now() + GRACE * 10;
        let ago = |n: u32| now - GRACE / 10 * n;
        let (called, silent) = (|n| Some((true, ago(n))), |n| Some((false, ago(n))));
        assert_eq!(gives_way(&[None, called(1), called(50), silent(20), silent(30)], 8, now), Some(4));
        assert_eq!(gives_way(&[None, called(1), called(50), silent(2)], 8, now), Some(2), "it has just come");
        assert_eq!(gives_way(&[called(50), silent(2), silent(3), silent(1)], 4, now), Some(2), "they are many");
        assert_eq!(gives_way(&[None, silent(2)], 8, now), Some(1));
        assert_eq!(gives_way(&[None, None], 8, now), None);
    }
}
