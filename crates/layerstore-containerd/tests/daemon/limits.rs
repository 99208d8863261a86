//! What clients get at most (`docs/LIMITS.md`, section "The daemon"): each test goes beyond it.

use crate::support::{Daemon, PATIENCE, Snapshots, commit, prepare, remove, snapshots};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use tonic::Code;

async fn serves(daemon: &Daemon, key: &str) {
    let mut client = daemon.snapshots().await;
    client.prepare(prepare(key)).await.expect("prepares");
    client.remove(remove(key)).await.expect("removes");
}

/// Silent connections on both sockets, more than there are descriptors, do not keep containerd out.
#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_give_way() {
    for descriptors in [None, Some(256), Some(100)] {
        let daemon = Daemon::start_with(&[], descriptors);
        let mut containerd = daemon.snapshots().await;
        containerd.prepare(prepare("first")).await.expect("prepares");
        let mut silent = Vec::new();
        for _ in 0..450 {
            silent.push(UnixStream::connect(daemon.socket()).map(|_| ()).is_ok());
        }
        let held: Vec<_> = (0..300).filter_map(|_| UnixStream::connect(daemon.socket()).ok()).collect();
        let asked: Vec<_> = (0..300).filter_map(|_| TcpStream::connect(daemon.metrics).ok()).collect();
        serves(&daemon, "second").await;
        // A connection that made calls goes last.
        containerd.remove(remove("first")).await.expect("removes");
        assert!(daemon.descriptors() < 400, "{descriptors:?}: {}", daemon.descriptors());
        let text = metrics(&daemon);
        assert!(text.contains("layerstore_calls_total"), "{descriptors:?}: {text}");
        drop((held, asked, silent));
        serves(&daemon, "third").await;
    }
}

fn metrics(daemon: &Daemon) -> String {
    let mut stream = TcpStream::connect(daemon.metrics).expect("connects");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").expect("asks");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("answers");
    text
}

/// More connections than there may be, all of them at work in turn: each is served.
#[tokio::test(flavor = "multi_thread")]
async fn more_clients_than_connections_are_served() {
    let daemon = Daemon::start_with(&[], Some(128));
    let mut clients = Vec::new();
    for n in 0..100 {
        let mut client = daemon.snapshots().await;
        client.prepare(prepare(&format!("k{n}"))).await.expect("prepares");
        clients.push(client);
    }
    assert!(daemon.descriptors() < 128);
    assert!(!daemon.log().contains("cannot accept"), "{}", daemon.log());
    assert_eq!(names(&mut clients.pop().expect("a client")).await.len(), 100);
}

async fn names(client: &mut Snapshots) -> Vec<String> {
    let request = snapshots::ListSnapshotsRequest::default();
    let mut stream = client.list(request).await.expect("lists").into_inner();
    let mut names = Vec::new();
    while let Some(message) = stream.message().await.expect("a message") {
        names.extend(message.info.into_iter().map(|info| info.name));
    }
    names
}

fn labelled(key: &str, labels: HashMap<String, String>) -> snapshots::PrepareSnapshotRequest {
    snapshots::PrepareSnapshotRequest { labels, ..prepare(key) }
}

/// Keys and labels that containerd would not take are no arguments, and nothing of them is kept.
#[tokio::test(flavor = "multi_thread")]
async fn keys_and_labels_have_bounds() {
    let daemon = Daemon::start();
    let mut client = daemon.snapshots().await;
    let label = |len: usize| HashMap::from([("name".to_owned(), "v".repeat(len))]);
    let many = |n: usize| (0..n).map(|n| (n.to_string(), String::new())).collect::<HashMap<_, _>>();
    client.prepare(labelled("fits", label(4092))).await.expect("prepares");
    client.prepare(labelled("fits-too", many(1024))).await.expect("prepares");
    let refused = [
        labelled("label", label(4093)),
        labelled("large", label(4 << 20)),
        labelled("many", many(1025)),
        prepare(""),
        prepare("a\0b"),
        prepare(&"k".repeat(4097)),
        prepare(&"k".repeat(5 << 20)),
    ];
    for request in refused {
        let error = client.prepare(request).await.expect_err("is refused");
        assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
        assert!(error.message().len() < 4200);
    }
    let error = client.commit(commit(&"n".repeat(5000), "fits")).await.expect_err("is refused");
    assert_eq!(error.code(), Code::InvalidArgument);
    let info = snapshots::Info { name: "fits".into(), labels: label(4093), ..Default::default() };
    let update = snapshots::UpdateSnapshotRequest { info: Some(info), ..Default::default() };
    let error = client.update(update).await.expect_err("is refused");
    assert_eq!(error.code(), Code::InvalidArgument);
    let mut left = names(&mut client).await;
    left.sort();
    assert_eq!(left, ["fits", "fits-too"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_have_bounds() {
    let daemon = Daemon::start();
    let mut client = daemon.snapshots().await;
    let list = |filters| snapshots::ListSnapshotsRequest { filters, ..Default::default() };
    for filters in [
        vec!["kind==active".to_owned(); 65],
        vec![format!("name=={}", "a".repeat(70_000))],
        vec![format!("name=={}", "a".repeat(5 << 20))],
        vec![vec!["name~=a"; 17].join(",")],
    ] {
        let error = client.list(list(filters)).await.expect_err("is refused");
        assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
    }
    client.list(list(vec!["kind==active".to_owned(); 64])).await.expect("lists");
}

/// More calls at once than are worked on: they wait, and all are answered.
#[tokio::test(flavor = "multi_thread")]
async fn calls_beyond_those_at_work_wait() {
    let daemon = Daemon::start();
    let client = daemon.snapshots().await;
    let calls = (0..400).map(|n| {
        let mut client = client.clone();
        tokio::spawn(async move { client.prepare(prepare(&format!("k{n}"))).await })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.expect("ends").expect("prepares");
    }
    assert_eq!(names(&mut client.clone()).await.len(), 400);
}
