//! Work nobody waits for: committed directories into layers, and directories of removed snapshots away; and bringing to
//! disk what others unpack.
//!
//! It begins when the daemon has had nothing to do for a moment and nothing is being unpacked, so that it does not compete
//! with an image on its way. What a crash or a stop interrupts is found again at the next start.

use crate::failures::Failures;
use crate::server::Server;
use layerstore::{Absorbed, Error, ErrorKind, Event, Observer, Result};
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How long nothing must have happened.
const QUIET: Duration = Duration::from_secs(2);
/// How long work may be put off by that.
const PATIENCE: Duration = Duration::from_secs(600);

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
    /// When to try again what failed.
    again: Option<Instant>,
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
            let pending = state.pending.map(|(first, last)| {
                let quiet = if busy() { now + QUIET } else { last + QUIET };
                (first + PATIENCE).min(quiet)
            });
            let due = [pending, state.again].into_iter().flatten().min();
            state = match due {
                Some(due) if due <= now => {
                    (state.pending, state.again) = (None, None);
                    return true;
                }
                Some(due) => self.changed.wait_timeout(state, due - now).unwrap_or_else(|e| e.into_inner()).0,
                None => self.changed.wait(state).unwrap_or_else(|e| e.into_inner()),
            };
        }
    }

    fn again_at(&self, when: Option<Instant>) {
        self.lock().again = when;
    }

    /// Sleeps, but not beyond a stop. Whether there was one.
    fn stopped_within(&self, time: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.lock(), time, |state| !state.stop);
        waited.unwrap_or_else(|e| e.into_inner()).0.stop
    }
}

/// The thread's work. Begins with what an earlier run of the daemon left.
pub(crate) fn run(server: &Arc<Server>) {
    let mut failures = Failures::default();
    server.background.wake();
    while server.background.next(|| server.unpacking.is_busy()) {
        round(server, &mut failures);
        server.background.again_at(failures.next_try());
        server.metrics.not_absorbed.store(failures.snapshots(), Relaxed);
    }
}

/// Does all that can be done: neither a snapshot that cannot become a layer nor anything else keeps the rest.
fn round(server: &Server, failures: &mut Failures) {
    let begin = Instant::now();
    let absorbed = match absorb(server, failures) {
        Err(e) if e.kind() == ErrorKind::Cancelled => return,
        absorbed => settle(server, failures, "absorb", absorbed),
    };
    let removed = catch_unwind(AssertUnwindSafe(|| server.snapshots.cleanup()));
    let bug = |_| Err(Error::new(ErrorKind::Unsupported, "a bug: cleaning up panicked"));
    let removed = settle(server, failures, "cleanup", removed.unwrap_or_else(bug));
    server.tell_leftovers();
    server.metrics.absorbed.fetch_add(absorbed, Relaxed);
    server.metrics.directories_removed.fetch_add(removed, Relaxed);
    if absorbed + removed > 0 {
        tracing::info!(absorbed, removed, time = ?begin.elapsed(), "background work done");
    }
}

/// Notes how a step ended. Returns how much it did, which is nothing if it failed.
fn settle(server: &Server, failures: &mut Failures, step: &'static str, done: Result<u64>) -> u64 {
    match done {
        Ok(done) => {
            failures.succeeded(step);
            done
        }
        Err(e) => {
            let text = e.to_string();
            tell(server, failures.failed(step, &text), &text);
            0
        }
    }
}

/// Makes layers of all directories but those that failed before and are not to be tried yet. Returns how many.
fn absorb(server: &Server, failures: &mut Failures) -> Result<u64> {
    let mut layers = 0;
    loop {
        let (now, asked) = (Instant::now(), RefCell::new(Vec::new()));
        let leave = |n| {
            asked.borrow_mut().push(n);
            failures.leaves(n, now)
        };
        let work = || server.snapshots.absorb_except(leave, &Stopping(server));
        let done = catch_unwind(AssertUnwindSafe(work));
        let asked = asked.into_inner();
        let Ok(done) = done else {
            const BUG: &str = "a bug: making a layer of a snapshot panicked";
            // The last one that was asked for is the one that was begun.
            let Some(begun) = asked.last().filter(|n| !failures.leaves(**n, now)) else {
                return Err(Error::new(ErrorKind::Unsupported, BUG));
            };
            let told = failures.snapshot_failed(*begun, None, BUG);
            tell(server, told, &format!("snapshot number {begun}: {BUG}"));
            continue;
        };
        let Absorbed { layers: made, failed, .. } = done?;
        layers += made;
        failures.keep_only(&asked);
        for failure in failed {
            let text = reason(&failure.error);
            let told = failures.snapshot_failed(failure.number, Some(failure.error.kind()), &text);
            tell(server, told, &text);
        }
        return Ok(layers);
    }
}

/// An error with its cause, "No space left on device", which is what people look for.
fn reason(error: &layerstore::Error) -> String {
    crate::convert::status(error).message().to_owned()
}

/// Counts a failure, and logs it unless it was told before.
fn tell(server: &Server, is_new: bool, error: &str) {
    server.metrics.background_failures.fetch_add(1, Relaxed);
    if is_new {
        tracing::error!(error, "background work failed; it is passed over, and the rest is done");
    }
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
