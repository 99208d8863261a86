//! The daemon under systemd: a socket that outlives it, and telling when it is ready.

use crate::support::{PATIENCE, Snapshots, prepare, remove};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tonic::transport::Endpoint;

/// Killed when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// As systemd starts it: with the listening socket as descriptor 3.
fn start(dir: &Path, listener: &UnixListener) -> Running {
    let script = "exec 3<&0 0</dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_layerstore-containerd"), "--driver", "copy"]);
    command.arg("--root").arg(dir.join("store")).arg("--socket").arg(dir.join("unused"));
    command.env("NOTIFY_SOCKET", dir.join("notify"));
    command.stdin(OwnedFd::from(listener.try_clone().expect("a descriptor")));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Running(command.spawn().expect("starts"))
}

fn wait_until_ready(notify: &UnixDatagram) {
    let mut buffer = [0; 64];
    let len = notify.recv(&mut buffer).expect("says something");
    assert_eq!(&buffer[..len], b"READY=1");
}

async fn client(dir: &Path) -> Snapshots {
    let endpoint = Endpoint::from_shared(format!("unix://{}", dir.join("socket").display())).expect("an address");
    Snapshots::new(endpoint.timeout(PATIENCE).connect_lazy())
}

/// While it is killed and started again, calls wait in the socket: of clients that are connected and of new ones.
#[tokio::test(flavor = "multi_thread")]
async fn calls_wait_while_it_restarts() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    let listener = UnixListener::bind(dir.join("socket")).expect("binds");
    let notify = UnixDatagram::bind(dir.join("notify")).expect("binds");
    notify.set_read_timeout(Some(PATIENCE)).expect("set");
    let mut child = start(dir, &listener);
    wait_until_ready(&notify);
    let mut known = client(dir).await;
    known.prepare(prepare("first")).await.expect("prepares");
    for round in 0..3 {
        drop(child);
        let mut new = client(dir).await;
        let (a, b) = (format!("a{round}"), format!("b{round}"));
        let fresh = tokio::spawn(async move { new.prepare(prepare(&a)).await });
        // A client that was connected learns from a call that nobody is there, and connects again.
        let mut known = known.clone();
        let again = tokio::spawn(async move {
            let mut answer = known.prepare(prepare(&b)).await;
            for _ in 0..50 {
                if answer.is_ok() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
                answer = known.prepare(prepare(&b)).await;
            }
            answer
        });
        child = start(dir, &listener);
        wait_until_ready(&notify);
        fresh.await.expect("ends").expect("prepares");
        again.await.expect("ends").expect("prepares");
    }
    // What was acknowledged is there.
    known.remove(remove("first")).await.expect("removes");
    drop(child);
}
