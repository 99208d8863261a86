//! What the daemon gives to its clients at most (`docs/LIMITS.md`, section "The daemon").
//!
//! Connections, calls and the work itself all take descriptors. The limit is divided among them once, at the start.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::time::Duration;

/// Connections on the gRPC socket at a time. containerd needs two.
const CONNECTIONS: u64 = 256;
/// Calls whose work is done at a time. Each may have a database connection open, and a thread.
const CALLS: u64 = 64;
/// Descriptors that neither connections nor calls take: the store's files, the metrics, the log.
const KEPT: u64 = 64;
/// Descriptors that the work of a call takes at once.
const PER_CALL: u64 = 8;
/// Descriptors to ask the system for.
const WANTED: u64 = 4096;

/// Calls that wait to be worked on, beside those that are.
pub(crate) const WAITING: usize = 4096;
/// Lists of snapshots that are answered at a time, since each is whole in memory.
pub(crate) const LISTS: usize = 4;
/// How long a client may take to read the next message of a list.
pub(crate) const LIST_PATIENCE: Duration = Duration::from_secs(30);
/// Calls on their way on one connection.
pub(crate) const STREAMS: u32 = 128;
/// A request. containerd sends snapshots' labels and mounts: nothing large.
pub(crate) const MESSAGE: usize = 1 << 20;
/// The headers of a request.
pub(crate) const HEADERS: u32 = 32 << 10;
/// What a client may send before it is read: of one call, and of all of a connection.
pub(crate) const STREAM_WINDOW: u32 = 64 << 10;
pub(crate) const CONNECTION_WINDOW: u32 = 256 << 10;
/// How long a new connection may take to say that it speaks HTTP/2.
pub(crate) const PREFACE: Duration = Duration::from_secs(10);
/// How long a request may take to come.
pub(crate) const REQUEST: Duration = Duration::from_secs(30);
/// How often a silent client is asked whether it lives, and how long it may take to answer.
pub(crate) const PING: Duration = Duration::from_secs(60);
pub(crate) const PONG: Duration = Duration::from_secs(20);
/// Connections to the metrics at a time; the oldest gives way to a new one.
pub(crate) const METRICS: usize = 16;

/// What depends on the descriptors that this process may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) connections: usize,
    pub(crate) calls: usize,
}

impl Bounds {
    /// Raises the process's own limit of descriptors as far as it may, and shares them out.
    pub(crate) fn take() -> Self {
        let limit = getrlimit(Resource::Nofile);
        let most = limit.maximum.unwrap_or(u64::MAX);
        let mut soft = limit.current.unwrap_or(u64::MAX);
        if soft < WANTED.min(most) {
            let wanted = WANTED.min(most);
            if setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum }).is_ok() {
                soft = wanted;
            }
        }
        Self::of(soft)
    }

    fn of(descriptors: u64) -> Self {
        let connections = (descriptors / 4).clamp(4, CONNECTIONS);
        let rest = descriptors.saturating_sub(connections + KEPT);
        let calls = (rest / PER_CALL).clamp(2, CALLS);
        let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Self { connections: number(connections), calls: number(calls) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_descriptors_are_shared_out() {
        assert_eq!(Bounds::of(u64::MAX), Bounds { connections: 256, calls: 64 });
        assert_eq!(Bounds::of(4096), Bounds { connections: 256, calls: 64 });
        for few in [64, 128, 256, 512, 1024] {
            let bounds = Bounds::of(few);
            let taken = bounds.connections as u64 + bounds.calls as u64 * PER_CALL;
            assert!(few < 256 || taken + KEPT <= few, "{few}: {bounds:?}");
            assert!(bounds.connections >= 4 && bounds.calls >= 2);
        }
    }
}
