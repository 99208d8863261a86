//! Starts the daemon on a store of its own, and makes clients for it.

#![allow(dead_code, reason = "each module uses its part")]

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};

/// What `build.rs` made.
#[allow(unreachable_pub, clippy::all, reason = "generated code")]
pub(crate) mod proto {
    pub mod types {
        tonic::include_proto!("containerd.types");
    }
    pub mod services {
        pub mod snapshots {
            pub mod v1 {
                tonic::include_proto!("containerd.services.snapshots.v1");
            }
        }
        pub mod diff {
            pub mod v1 {
                tonic::include_proto!("containerd.services.diff.v1");
            }
        }
        pub mod leases {
            pub mod v1 {
                tonic::include_proto!("containerd.services.leases.v1");
            }
        }
        pub mod content {
            pub mod v1 {
                tonic::include_proto!("containerd.services.content.v1");
            }
        }
    }
}

pub(crate) use crate::containerd;
pub(crate) use proto::services::{content::v1 as content, diff::v1 as diff};
pub(crate) use proto::services::{leases::v1 as leases, snapshots::v1 as snapshots};
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

/// An archive of these regular files (POSIX `ustar`).
pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, content) in files {
        let mut header = [0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        let fields: [(usize, String); 6] = [
            (100, "0000644\0".into()),
            (108, "0000000\0".into()),
            (116, "0000000\0".into()),
            (124, format!("{:011o}\0", content.len())),
            (136, format!("{:011o}\0", 0)),
            (257, "ustar\x0000".into()),
        ];
        for (at, text) in fields {
            header[at..at + text.len()].copy_from_slice(text.as_bytes());
        }
        header[156] = b'0';
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend(header);
        out.extend(*content);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}
