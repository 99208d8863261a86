//! Starts the daemon on a store of its own, and makes clients for it.

#![allow(dead_code, reason = "each module uses its part")]

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};

/// What `build.rs` made.
#[path = "../../src/proto.rs"]
pub(crate) mod proto;

#[path = "../../../../tests/hostile/build.rs"]
mod build;

pub(crate) use crate::containerd;
pub(crate) use proto::{content, diff, leases, snapshots};
pub(crate) type Snapshots = snapshots::snapshots_client::SnapshotsClient<Channel>;

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(25);

pub(crate) struct Daemon {
    dir: tempfile::TempDir,
    child: Child,
    pub(crate) metrics: SocketAddr,
}

impl Daemon {
    /// With the copy driver, which works everywhere.
    pub(crate) fn start() -> Self {
        Self::start_with(&[], None)
    }

    /// With more options, and with that many descriptors.
    pub(crate) fn start_with(options: &[&str], descriptors: Option<u32>) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        // Free now, and nobody else's as long as nobody looks for one.
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let metrics = free.expect("a port");
        let child = spawn(dir.path(), &metrics, options, descriptors);
        let daemon = Self { dir, child, metrics };
        daemon.wait_until("it listens", || std::os::unix::net::UnixStream::connect(daemon.socket()).is_ok());
        daemon
    }

    /// Kills it and starts it again on the same store.
    pub(crate) fn restart(&mut self) {
        self.child.kill().and_then(|()| self.child.wait()).expect("it ends");
        self.child = spawn(self.dir.path(), &self.metrics, &[], None);
        self.wait_until("it listens", || std::os::unix::net::UnixStream::connect(self.socket()).is_ok());
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// All that it said, on this start and those before.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).expect("a log")
    }

    pub(crate) async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("unix://{}", self.socket().display())).expect("an address");
        endpoint.timeout(PATIENCE).connect().await.expect("connects")
    }

    pub(crate) async fn snapshots(&self) -> Snapshots {
        Snapshots::new(self.channel().await)
    }

    pub(crate) fn wait_until(&self, what: &str, done: impl Fn() -> bool) {
        let begin = Instant::now();
        while !done() {
            assert!(begin.elapsed() < PATIENCE, "not in time: {what}; {}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Directories of snapshots in the store.
    pub(crate) fn directories(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("store/snapshots")).expect("a store").count()
    }

    /// Descriptors that it has open.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("a process").count()
    }
}

fn spawn(dir: &Path, metrics: &SocketAddr, options: &[&str], descriptors: Option<u32>) -> Child {
    let log = File::options().create(true).append(true).open(dir.join("log")).expect("a log");
    let binary = env!("CARGO_BIN_EXE_layerstore-containerd");
    let mut command = match descriptors {
        None => Command::new(binary),
        Some(most) => {
            let mut shell = Command::new("sh");
            shell.args(["-c", &format!("ulimit -n {most}; exec \"$0\" \"$@\""), binary]);
            shell
        }
    };
    command.arg("--root").arg(dir.join("store")).arg("--socket").arg(dir.join("socket"));
    command.arg("--containerd").arg(dir.join("containerd")).arg("--metrics").arg(metrics.to_string());
    command.args(["--driver", "copy"]).args(options).stderr(log);
    command.spawn().expect("starts")
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn prepare(key: &str) -> snapshots::PrepareSnapshotRequest {
    snapshots::PrepareSnapshotRequest { key: key.to_owned(), ..Default::default() }
}

pub(crate) fn remove(key: &str) -> snapshots::RemoveSnapshotRequest {
    snapshots::RemoveSnapshotRequest { key: key.to_owned(), ..Default::default() }
}

pub(crate) fn commit(name: &str, key: &str) -> snapshots::CommitSnapshotRequest {
    snapshots::CommitSnapshotRequest { name: name.to_owned(), key: key.to_owned(), ..Default::default() }
}

/// An archive of these regular files.
pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    build::tar(&files.iter().map(|(name, content)| build::file(name, content)).collect::<Vec<_>>())
}
