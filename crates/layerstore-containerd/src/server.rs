//! What all calls share, and how a call gets its work done.

use crate::background::Background;
use crate::bounds::{self, Bounds};
use crate::config::Config;
use crate::convert;
use crate::diff::delegate::Delegated;
use crate::metrics::Metrics;
use crate::unpacking::Unpacking;
use layerstore::{Event, Observer, Result, Snapshotter, SnapshotterOptions, Store};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;
use tokio::sync::Semaphore;
use tonic::{Code, Status};

/// The daemon's state. Everything that lasts is in the store.
pub(crate) struct Server {
    pub(crate) config: Config,
    pub(crate) snapshots: Snapshotter,
    pub(crate) metrics: Metrics,
    pub(crate) background: Background,
    pub(crate) unpacking: Unpacking,
    pub(crate) delegated: Delegated,
    stopping: Arc<AtomicBool>,
    /// Calls whose work is done at a time, and lists that are in memory.
    places: Arc<Semaphore>,
    pub(crate) lists: Arc<Semaphore>,
}

impl Server {
    pub(crate) fn open(config: Config, bounds: Bounds) -> Result<Self> {
        let options = SnapshotterOptions::default().driver(config.driver()?).namespace(config.namespace.clone());
        let options = options.compress(config.compress()?);
        let options = options.direct_io(config.direct_io()?).drop_compressed(config.drop_compressed);
        let snapshots = Snapshotter::open(Arc::new(Store::open(&config.root)?), &options)?;
        for (driver, reason) in snapshots.refused() {
            tracing::info!(%driver, %reason, "does not work here");
        }
        tracing::info!(driver = %snapshots.driver(), root = %config.root.display(), "store open");
        if let Some(decision) = snapshots.direct_io() {
            tracing::info!(used = decision.used, reason = %decision.reason, "reading packs past the page cache");
        }
        let (metrics, background, unpacking) = (Metrics::default(), Background::default(), Unpacking::default());
        let (places, lists) = (Semaphore::new(bounds.calls), Semaphore::new(bounds::LISTS));
        let (places, lists, stopping) = (Arc::new(places), Arc::new(lists), Arc::default());
        let delegated = Delegated::default();
        let server = Self { config, snapshots, metrics, background, unpacking, delegated, stopping, places, lists };
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
        let place = self.places.clone().acquire_owned().await;
        let place = place.map_err(|_| Status::unavailable("the daemon is stopping"))?;
        // The place is taken as long as the work is done, also when the client is gone.
        let done = tokio::task::spawn_blocking(move || {
            let _place = place;
            work(&server, &watch)
        });
        let done = done.await;
        let answer = match done {
            Ok(done) => done.map_err(|e| convert::status(&e)),
            Err(panic) => Err(Status::internal(format!("a bug: {panic}"))),
        };
        self.log(method, subject, begin, answer.as_ref().err());
        answer
    }

    /// Counts and logs a call that is over.
    pub(crate) fn log(&self, method: &'static str, subject: &str, begin: Instant, error: Option<&Status>) {
        let (time, subject) = (begin.elapsed(), convert::shortened(subject, SUBJECT_MAX));
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

/// How much of a key is logged, bytes.
const SUBJECT_MAX: usize = 512;

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
