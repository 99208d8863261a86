//! Work nobody waits for: committed directories into layers, and directories of removed snapshots away; and bringing to
//! disk what others unpack.
//!
//! It begins when the daemon has had nothing to do for a moment and nothing is being unpacked, so that it does not compete
//! with an image on its way. What a crash or a stop interrupts is found again at the next start.

use crate::server::Server;
use layerstore::{ErrorKind, Event, Observer};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How long nothing must have happened.
const QUIET: Duration = Duration::from_secs(2);
/// How long work may be put off by that.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long to leave alone what failed.
const RETRY: Duration = Duration::from_secs(30);

/// Wakes the thread that does it.
#[derive(Debug, Default)]
pub(crate) struct Background {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// When the first and the last piece of work came that is not done.
    pending: Option<(Instant, Instant)>,
    stop: bool,
}

impl Background {
    /// There is something to do.
    pub(crate) fn wake(&self) {
        let now = Instant::now();
        let mut state = self.lock();
        state.pending = Some((state.pending.map_or(now, |(first, _)| first), now));
        self.changed.notify_all();
    }

    pub(crate) fn stop(&self) {
        self.lock().stop = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Waits until there is work and it is quiet; false once it is time to stop. `busy` says whether somebody is at work
    /// without calling meanwhile.
    fn next(&self, busy: impl Fn() -> bool) -> bool {
        let mut state = self.lock();
        loop {
            if state.stop {
                return false;
            }
            let now = Instant::now();
            let due = state.pending.map(|(first, last)| {
                let quiet = if busy() { now + QUIET } else { last + QUIET };
                (first + PATIENCE).min(quiet)
            });
            state = match due {
                Some(due) if due <= now => {
                    state.pending = None;
                    return true;
                }
                Some(due) => self.changed.wait_timeout(state, due - now).unwrap_or_else(|e| e.into_inner()).0,
                None => self.changed.wait(state).unwrap_or_else(|e| e.into_inner()),
            };
        }
    }

    /// Sleeps, but not beyond a stop. Whether there was one.
    fn stopped_within(&self, time: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.lock(), time, |state| !state.stop);
        waited.unwrap_or_else(|e| e.into_inner()).0.stop
    }
}

/// The thread's work. Begins with what an earlier run of the daemon left.
pub(crate) fn run(server: &Arc<Server>) {
    server.background.wake();
    while server.background.next(|| server.unpacking.is_busy()) {
        if let Err(error) = once(server) {
            if error.kind() == ErrorKind::Cancelled {
                continue;
            }
            server.metrics.background_failures.fetch_add(1, Relaxed);
            tracing::error!(%error, "background work failed; it is tried again");
            server.background.stopped_within(RETRY);
            server.background.wake();
        }
    }
}

fn once(server: &Server) -> layerstore::Result<()> {
    let begin = Instant::now();
    let absorbed = server.snapshots.absorb(&Stopping(server))?;
    let removed = server.snapshots.cleanup()?;
    server.tell_leftovers();
    server.metrics.absorbed.fetch_add(absorbed, Relaxed);
    server.metrics.directories_removed.fetch_add(removed, Relaxed);
    if absorbed + removed > 0 {
        tracing::info!(absorbed, removed, time = ?begin.elapsed(), "background work done");
    }
    Ok(())
}

/// How often what is being unpacked goes to disk.
const FLUSH: Duration = Duration::from_secs(1);

/// The work of another thread: while containerd unpacks a layer into a directory, brings to disk what is there, so that
/// Commit, during which containerd lets nobody else do anything, has little left to wait for.
pub(crate) fn flush(server: &Server) {
    while !server.background.stopped_within(FLUSH) {
        if server.unpacking.is_written_to()
            && let Err(error) = server.snapshots.flush()
        {
            // Commit finds it out, too, and says so to whom it concerns.
            tracing::warn!(%error, "what is being unpacked cannot be brought to disk");
        }
    }
}

struct Stopping<'s>(&'s Server);

impl Observer for Stopping<'_> {
    fn event(&self, _: Event) {}

    fn cancelled(&self) -> bool {
        self.0.stopping()
    }
}
