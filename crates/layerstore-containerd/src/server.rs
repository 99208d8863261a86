//! What all calls share, and how a call gets its work done.

use crate::background::Background;
use crate::config::Config;
use crate::convert;
use crate::metrics::Metrics;
use crate::unpacking::Unpacking;
use layerstore::{Event, Observer, Result, Snapshotter, SnapshotterOptions, Store};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;
use tonic::{Code, Status};

/// The daemon's state. Everything that lasts is in the store.
pub(crate) struct Server {
    pub(crate) config: Config,
    pub(crate) snapshots: Snapshotter,
    pub(crate) metrics: Metrics,
    pub(crate) background: Background,
    pub(crate) unpacking: Unpacking,
    stopping: Arc<AtomicBool>,
}

impl Server {
    pub(crate) fn open(config: Config) -> Result<Self> {
        let options = SnapshotterOptions::default().driver(config.driver()?).namespace(config.namespace.clone());
        let options = options.compress(config.compress()?);
        make_private(&config.root);
        let snapshots = Snapshotter::open(Arc::new(Store::open(&config.root)?), &options)?;
        for (driver, reason) in snapshots.refused() {
            tracing::info!(%driver, %reason, "does not work here");
        }
        tracing::info!(driver = %snapshots.driver(), root = %config.root.display(), "store open");
        let (metrics, background, unpacking) = (Metrics::default(), Background::default(), Unpacking::default());
        let server = Self { config, snapshots, metrics, background, unpacking, stopping: Arc::default() };
        server.tell_leftovers();
        Ok(server)
    }

    /// Logs what could not be removed below the store's `tmp/`.
    pub(crate) fn tell_leftovers(&self) {
        for error in self.store().leftovers() {
            tracing::warn!(%error, "left behind, to be removed later");
        }
    }

    pub(crate) fn store(&self) -> &Store {
        self.snapshots.store()
    }

    /// Tells all work under way to end.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Relaxed);
        self.background.stop();
    }

    pub(crate) fn stopping(&self) -> bool {
        self.stopping.load(Relaxed)
    }

    /// Does the work of a call on a thread that may block. It is told to end when the client goes away or the daemon
    /// stops.
    pub(crate) async fn call<T: Send + 'static>(
        self: &Arc<Self>,
        method: &'static str,
        subject: &str,
        work: impl FnOnce(&Self, &Watch) -> Result<T> + Send + 'static,
    ) -> Result<T, Status> {
        let begin = Instant::now();
        let watch = Watch { stopping: self.stopping.clone(), gone: Arc::default() };
        let _guard = SetOnDrop(watch.gone.clone());
        let server = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&server, &watch)).await;
        let answer = match done {
            Ok(done) => done.map_err(|e| convert::status(&e)),
            Err(panic) => Err(Status::internal(format!("a bug: {panic}"))),
        };
        self.log(method, subject, begin, answer.as_ref().err());
        answer
    }

    /// Counts and logs a call that is over.
    pub(crate) fn log(&self, method: &'static str, subject: &str, begin: Instant, error: Option<&Status>) {
        let time = begin.elapsed();
        self.metrics.called(method, error.map_or(Code::Ok, Status::code), time);
        self.tell_leftovers();
        match error {
            None => tracing::debug!(method, subject, ?time),
            // What a client asks to find out whether it is there is no failure.
            Some(e) if matches!(e.code(), Code::NotFound | Code::AlreadyExists | Code::Unimplemented) => {
                tracing::debug!(method, subject, ?time, code = ?e.code(), error = e.message());
            }
            Some(e) => tracing::warn!(method, subject, ?time, code = ?e.code(), error = e.message()),
        }
    }
}

/// Ends work that nobody waits for.
#[derive(Clone)]
pub(crate) struct Watch {
    stopping: Arc<AtomicBool>,
    gone: Arc<AtomicBool>,
}

impl Observer for Watch {
    fn event(&self, _: Event) {}

    fn skipped(&self, path: &[u8], reason: &str) {
        tracing::warn!(path = %path.escape_ascii(), reason, "left out of a layer");
    }

    fn cancelled(&self) -> bool {
        self.stopping.load(Relaxed) || self.gone.load(Relaxed)
    }
}

struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// A store lets nobody else in. An empty directory that somebody made for it, with whatever mode, is closed; any other
/// is left for `Store::open` to judge.
fn make_private(root: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    if std::fs::read_dir(root).is_ok_and(|mut entries| entries.next().is_none()) {
        let _ = std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o700));
    }
}
