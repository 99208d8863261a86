//! Which snapshots containerd is unpacking layers into, and which of them are layers that Apply stored.
//!
//! Nothing here has to be right: what is forgotten, by a restart for example, costs time and disk space only.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// What containerd's keys for unpacking begin with, after its namespace and number (`core/unpack/unpacker.go`,
/// `rootfs/apply.go`).
const KEY: &str = "extract";
/// Whoever unpacks a layer prepares the next one at once.
const NEXT: Duration = Duration::from_secs(10);
/// What has not ended by then was forgotten.
const PATIENCE: Duration = Duration::from_secs(600);

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Unpacking(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// By key, when it was prepared, and whether Apply has bound it.
    open: HashMap<String, (Instant, bool)>,
    /// By name, when what Apply had bound was committed.
    ours: HashMap<String, Instant>,
    /// Whether the last one was applied here.
    applies: bool,
}

impl Unpacking {
    pub(crate) fn prepared(&self, key: &str) {
        if key.rsplit('/').next().is_some_and(|key| key.starts_with(KEY)) {
            self.lock().open.insert(key.to_owned(), (Instant::now(), false));
        }
    }

    /// Apply has begun for a snapshot.
    pub(crate) fn applying(&self) {
        self.lock().applies = true;
    }

    pub(crate) fn applied(&self, key: &str) {
        if let Some((_, applied)) = self.lock().open.get_mut(key) {
            *applied = true;
        }
    }

    pub(crate) fn committed(&self, key: &str, name: &str) {
        let mut state = self.lock();
        state.ours.retain(|_, when| when.elapsed() < NEXT);
        let Some((_, applied)) = state.open.remove(key) else { return };
        state.applies = applied;
        if applied {
            state.ours.insert(name.to_owned(), Instant::now());
        }
    }

    /// A snapshot whose unpacking ended otherwise. If it was not even tried to apply, somebody could not mount it.
    pub(crate) fn removed(&self, key: &str) {
        let mut state = self.lock();
        if state.open.remove(key).is_some_and(|(_, applied)| !applied) {
            state.ours.clear();
        }
    }

    /// Whether somebody who has just had a layer applied here goes on with the next one, on this parent. It will not be
    /// mounted then.
    pub(crate) fn goes_on(&self, parent: &str) -> bool {
        self.lock().ours.get(parent).is_some_and(|when| when.elapsed() < NEXT)
    }

    /// Whether anything is being unpacked.
    pub(crate) fn is_busy(&self) -> bool {
        self.lock().open.values().any(|(when, _)| when.elapsed() < PATIENCE)
    }

    /// Whether somebody else is unpacking into a snapshot's directory.
    pub(crate) fn is_written_to(&self) -> bool {
        let busy = self.is_busy();
        busy && !self.lock().applies
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_apply_bound_is_gone_on_with() {
        let unpacking = Unpacking::default();
        let key = "test/1/extract-246505759-qcVX sha256:7550";
        unpacking.prepared("test/2/container");
        assert!(!unpacking.is_busy(), "a container is no unpacking");
        unpacking.prepared(key);
        assert!(unpacking.is_busy());
        unpacking.committed(key, "walked");
        assert!(!unpacking.is_busy() && !unpacking.goes_on("walked"));
        unpacking.prepared(key);
        assert!(unpacking.is_written_to());
        unpacking.applying();
        assert!(!unpacking.is_written_to() && unpacking.is_busy());
        unpacking.prepared(key);
        unpacking.applied(key);
        unpacking.committed(key, "applied");
        assert!(unpacking.goes_on("applied") && !unpacking.goes_on("walked"));
        // What was applied may be removed; what was not may have failed for want of what it stands on.
        unpacking.prepared(key);
        unpacking.applied(key);
        unpacking.removed(key);
        assert!(unpacking.goes_on("applied"));
        unpacking.prepared(key);
        unpacking.removed(key);
        assert!(!unpacking.goes_on("applied") && !unpacking.is_busy());
    }
}
