//! What is done without being asked.

use crate::support::{Daemon, commit, prepare, remove};
use std::path::Path;

/// Commits a snapshot with a file of that name in it.
async fn adopt(daemon: &Daemon, name: &str, file: &str) {
    let mut client = daemon.snapshots().await;
    let key = format!("{name}-active");
    let mounts = client.prepare(prepare(&key)).await.expect("prepares").into_inner().mounts;
    std::fs::write(Path::new(&mounts[0].source).join(file), "x").expect("written");
    client.commit(commit(name, &key)).await.expect("commits");
}

/// A snapshot that cannot become a layer keeps no other from becoming one, and no directory of a removed one, also
/// after a restart. It is told once each time.
#[tokio::test(flavor = "multi_thread")]
async fn one_bad_snapshot_stops_nothing() {
    let mut daemon = Daemon::start();
    adopt(&daemon, "bad", ".wh.x").await;
    for (round, name) in ["fine", "fine-too"].into_iter().enumerate() {
        adopt(&daemon, name, name).await;
        let mut client = daemon.snapshots().await;
        client.prepare(prepare("gone")).await.expect("prepares");
        client.remove(remove("gone")).await.expect("removes");
        // What is left is the directory that cannot become a layer.
        daemon.wait_until("all others are layers", || daemon.directories() == 1);
        let told = daemon.log().lines().filter(|line| line.contains("snapshot bad")).count();
        assert_eq!(told, round + 1, "{}", daemon.log());
        // Another round, which does not tell it again.
        client.prepare(prepare("gone")).await.expect("prepares");
        client.remove(remove("gone")).await.expect("removes");
        daemon.wait_until("the directory goes", || daemon.directories() == 1);
        let told = daemon.log().lines().filter(|line| line.contains("snapshot bad")).count();
        assert_eq!(told, round + 1, "{}", daemon.log());
        daemon.restart();
    }
    let mut client = daemon.snapshots().await;
    client.remove(remove("bad")).await.expect("removes");
    daemon.wait_until("the bad one goes, too", || daemon.directories() == 0);
}
