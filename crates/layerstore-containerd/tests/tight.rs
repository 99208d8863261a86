//! The daemon within little memory, small stacks and few descriptors, through its own socket.

#[path = "../../../tests/support/cgroup.rs"]
mod cgroup;
#[path = "../../../tests/support/needs.rs"]
mod needs;
#[path = "../src/proto.rs"]
#[allow(dead_code, unused_imports, reason = "of all messages some are wanted")]
mod proto;

use cgroup::Group;
use proto::snapshots::snapshots_client::SnapshotsClient;
use proto::snapshots::{
    CleanupRequest, CommitSnapshotRequest, ListSnapshotsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

const NAME: &str = "layerstore";
/// Bytes of memory.
const MEMORY: u64 = 128 << 20;

/// Ends with the test, however that ends.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(dir: &Path, group: Option<&Group>) -> Daemon {
    let script = "ulimit -n 256 && ulimit -s 512 && exec \"$0\" \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_layerstore-containerd")]);
    if let Some(group) = group {
        group.hold(&mut command);
    }
    command.arg("--root").arg(dir.join("store")).arg("--socket").arg(dir.join("s.sock"));
    command.args(["--driver", "copy"]).stdin(Stdio::null());
    Daemon(command.spawn().expect("a shell"))
}

async fn connect(dir: &Path, daemon: &mut Daemon) -> SnapshotsClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("unix:{}", dir.join("s.sock").display())).expect("an address");
    loop {
        if let Ok(channel) = endpoint.connect().await {
            return SnapshotsClient::new(channel);
        }
        assert!(daemon.0.try_wait().expect("a process").is_none(), "the daemon ended at its start");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn prepare(client: &mut SnapshotsClient<Channel>, key: &str, parent: &str) -> PathBuf {
    let request = PrepareSnapshotRequest {
        snapshotter: NAME.into(),
        key: key.into(),
        parent: parent.into(),
        ..Default::default()
    };
    let mounts = client.prepare(request).await.expect("prepared").into_inner().mounts;
    PathBuf::from(&mounts[0].source)
}

async fn commit(client: &mut SnapshotsClient<Channel>, name: &str, key: &str) {
    let request =
        CommitSnapshotRequest { snapshotter: NAME.into(), name: name.into(), key: key.into(), ..Default::default() };
    client.commit(request).await.expect("committed");
}

async fn remove(client: &mut SnapshotsClient<Channel>, key: &str) {
    client.remove(RemoveSnapshotRequest { snapshotter: NAME.into(), key: key.into() }).await.expect("removed");
}

/// More bytes than its memory, more directories than its descriptors, and deeper than its stack has frames.
fn write(dir: &Path, seed: u8) {
    let mut state = u64::from(seed) + 0x9e37_79b9_7f4a_7c15;
    let noise: Vec<u8> = (0..1 << 20).flat_map(|_| step(&mut state)).collect();
    for n in 0..20 {
        fs::write(dir.join(format!("big{n}")), &noise[n * 4097..]).expect("written");
    }
    for n in 0..600 {
        let dir = dir.join(format!("d{n}"));
        fs::create_dir(&dir).expect("made");
        fs::write(dir.join("f"), [seed]).expect("written");
    }
    let mut deep = dir.to_owned();
    for _ in 0..400 {
        deep.push("d");
        fs::create_dir(&deep).expect("made");
    }
}

/// Eight bytes without a pattern (xorshift).
fn step(state: &mut u64) -> [u8; 8] {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    state.to_le_bytes()
}

#[tokio::test]
async fn ordinary_work_needs_little() {
    let dir = tempfile::tempdir().expect("a directory");
    let group = Group::new(MEMORY);
    if group.is_none() {
        println!("skipped: the limit of memory in ordinary_work_needs_little: no memory cgroup can be made here");
    }
    let mut daemon = start(dir.path(), group.as_ref());
    let mut client = connect(dir.path(), &mut daemon).await;
    write(&prepare(&mut client, "one", "").await, 1);
    commit(&mut client, "base", "one").await;
    write_more(&prepare(&mut client, "two", "base").await);
    commit(&mut client, "top", "two").await;
    for n in 0..3 {
        prepare(&mut client, &format!("c{n}"), "base").await;
    }
    for n in 0..3 {
        remove(&mut client, &format!("c{n}")).await;
    }
    remove(&mut client, "top").await;
    remove(&mut client, "base").await;
    client.cleanup(CleanupRequest { snapshotter: NAME.into() }).await.expect("cleaned up");
    let list = ListSnapshotsRequest { snapshotter: NAME.into(), filters: vec![] };
    let mut listed = client.list(list).await.expect("listed").into_inner();
    assert!(listed.message().await.expect("a list").is_none());
    let pid = Pid::from_raw(daemon.0.id() as i32).expect("a process");
    kill_process(pid, Signal::TERM).expect("sent");
    let ended = tokio::task::spawn_blocking(move || daemon.0.wait()).await.expect("no panic");
    assert!(ended.expect("ended").success());
}

fn write_more(dir: &Path) {
    fs::write(dir.join("more"), "more").expect("written");
    fs::remove_file(dir.join("big0")).expect("there");
}
