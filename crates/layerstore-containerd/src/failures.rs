//! What background work failed at: which of it is tried again when, and what was told already.
//!
//! A committed snapshot does not change. What its files are the reason for fails again each time, and is not tried again
//! before the daemon starts anew; what the machine is the reason for, such as a full disk, is tried again ever more
//! rarely. Each failure is told once.

use layerstore::ErrorKind;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// How long what failed is left alone, first and at most.
const RETRY: Duration = Duration::from_secs(30);
const RETRY_MAX: Duration = Duration::from_secs(600);

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Failures {
    /// By number.
    snapshots: HashMap<u64, Failure>,
    /// By name.
    steps: HashMap<&'static str, Failure>,
}

#[derive(Debug)]
struct Failure {
    /// `None`: never.
    again: Option<Instant>,
    wait: Duration,
    text: String,
}

impl Failure {
    /// Whether this is something else than what was told before.
    fn put<K: std::hash::Hash + Eq>(all: &mut HashMap<K, Self>, key: K, lasts: bool, text: &str) -> bool {
        let before = all.get(&key);
        let is_new = before.is_none_or(|before| before.text != text);
        let wait = before.map_or(RETRY, |before| (before.wait * 2).min(RETRY_MAX));
        let again = (!lasts).then(|| Instant::now() + wait);
        all.insert(key, Self { again, wait, text: text.to_owned() });
        is_new
    }
}

impl Failures {
    /// A snapshot could not become a layer; `kind` is `None` for a bug. Returns whether that is to be told.
    pub(crate) fn snapshot_failed(&mut self, n: u64, kind: Option<ErrorKind>, text: &str) -> bool {
        use ErrorKind::{InvalidInput, LimitExceeded, Unsupported};
        let lasts = matches!(kind, None | Some(InvalidInput | LimitExceeded | Unsupported));
        Failure::put(&mut self.snapshots, n, lasts, text)
    }

    /// A step that is not about one snapshot failed. Returns whether that is to be told.
    pub(crate) fn failed(&mut self, step: &'static str, text: &str) -> bool {
        Failure::put(&mut self.steps, step, false, text)
    }

    pub(crate) fn succeeded(&mut self, step: &'static str) {
        self.steps.remove(step);
    }

    /// Whether a snapshot that failed is not to be tried at `now`.
    pub(crate) fn leaves(&self, n: u64, now: Instant) -> bool {
        self.snapshots.get(&n).is_some_and(|failure| failure.again.is_none_or(|again| again > now))
    }

    /// Forgets snapshots that are not among these: they were removed, or are layers now.
    pub(crate) fn keep_only(&mut self, there: &[u64]) {
        let there: HashSet<u64> = there.iter().copied().collect();
        self.snapshots.retain(|n, _| there.contains(n));
    }

    /// When to try again next.
    pub(crate) fn next_try(&self) -> Option<Instant> {
        self.snapshots.values().chain(self.steps.values()).filter_map(|failure| failure.again).min()
    }

    /// How many snapshots failed.
    pub(crate) fn snapshots(&self) -> u64 {
        self.snapshots.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_snapshot_holds_is_not_tried_again_and_what_the_machine_did_is() {
        let mut failures = Failures::default();
        assert!(failures.snapshot_failed(1, Some(ErrorKind::InvalidInput), "a name"));
        assert!(failures.snapshot_failed(2, Some(ErrorKind::Io), "full"));
        let now = Instant::now();
        assert!(failures.leaves(1, now + Duration::from_secs(1_000_000)) && failures.leaves(2, now));
        assert!(!failures.leaves(2, now + RETRY) && !failures.leaves(3, now));
        let first = failures.next_try().unwrap();
        assert!(!failures.snapshot_failed(2, Some(ErrorKind::Io), "full"), "told once");
        assert!(failures.next_try().unwrap() > first + RETRY / 2, "more rarely");
        assert!(failures.snapshot_failed(2, Some(ErrorKind::Io), "broken"), "something else is told");
        failures.keep_only(&[1]);
        assert_eq!((failures.snapshots(), failures.next_try()), (1, None));
    }

    #[test]
    fn a_step_that_succeeds_is_told_anew_when_it_fails() {
        let mut failures = Failures::default();
        assert!(failures.failed("cleanup", "x") && !failures.failed("cleanup", "x"));
        assert!(failures.next_try().is_some());
        failures.succeeded("cleanup");
        assert!(failures.next_try().is_none() && failures.failed("cleanup", "x"));
    }
}
