//! The diff service, with a containerd that remembers what it was asked.

use crate::support::proto::types::Mount;
use crate::support::{Daemon, commit, containerd, diff, prepare, snapshots, tar};
use layerstore::Digest;
use std::path::Path;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Request};

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

async fn differ(daemon: &Daemon) -> diff::diff_client::DiffClient<Channel> {
    diff::diff_client::DiffClient::new(daemon.channel().await)
}

fn on_behalf<T>(message: T, metadata: &[(&'static str, &str)]) -> Request<T> {
    let mut request = Request::new(message);
    for (name, value) in metadata {
        request.metadata_mut().insert(*name, value.parse().expect("a value"));
    }
    request
}

fn text<'m>(metadata: &'m MetadataMap, name: &str) -> Option<&'m str> {
    metadata.get(name).map(|value| value.to_str().expect("text"))
}

fn apply(blob: &[u8], media_type: &str, mounts: Vec<Mount>) -> diff::ApplyRequest {
    let (digest, size) = (Digest::of(blob).to_string(), blob.len() as i64);
    let media_type = media_type.to_owned();
    let descriptor = crate::support::proto::types::Descriptor { media_type, digest, size, ..Default::default() };
    diff::ApplyRequest { diff: Some(descriptor), mounts, ..Default::default() }
}

/// A snapshot with a file, and the mounts of its parent and its own.
async fn changed(daemon: &Daemon) -> (Vec<Mount>, Vec<Mount>) {
    let mut client = daemon.snapshots().await;
    client.prepare(prepare("test/1/base-active")).await.expect("prepares");
    client.commit(commit("test/2/base", "test/1/base-active")).await.expect("commits");
    let on = |key: &str| snapshots::PrepareSnapshotRequest { parent: "test/2/base".into(), ..prepare(key) };
    let right = client.prepare(on("test/3/work")).await.expect("prepares").into_inner().mounts;
    std::fs::write(Path::new(&right[0].source).join("new"), "new").expect("written");
    let view = snapshots::ViewSnapshotRequest {
        key: "test/4/view".into(),
        parent: "test/2/base".into(),
        ..Default::default()
    };
    let left = client.view(view).await.expect("views").into_inner().mounts;
    (left, right)
}

/// A blob that Diff writes is kept by a lease from its first byte: by the one that the call names, else by one that
/// expires; and by those that keep the snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn what_diff_writes_is_leased() {
    let daemon = Daemon::start();
    let containerd = containerd::start(&daemon).await;
    let (left, right) = changed(&daemon).await;
    let request = diff::DiffRequest { left, right, media_type: TAR.into(), ..Default::default() };
    let mut client = differ(&daemon).await;

    // The caller's.
    let named = on_behalf(request.clone(), &[("containerd-namespace", "ns"), ("containerd-lease", "theirs")]);
    let made = client.diff(named).await.expect("makes").into_inner().diff.expect("a layer");
    let written = containerd.written();
    assert_eq!(written.len(), 1);
    assert_eq!(text(&written[0].0, "containerd-lease"), Some("theirs"));
    assert_eq!(text(&written[0].0, "containerd-namespace"), Some("ns"));
    assert_eq!(Digest::of(&written[0].1).to_string(), made.digest);
    assert!(containerd.leases().is_empty());

    // One that expires, as no other lease keeps the snapshot.
    client.diff(on_behalf(request.clone(), &[("containerd-namespace", "ns")])).await.expect("makes");
    let (lease, labels) = containerd.leases().pop().expect("a lease that stays");
    assert_eq!(text(&containerd.written()[1].0, "containerd-lease"), Some(&lease[..]));
    assert!(labels["containerd.io/gc.expire"].ends_with('Z'), "{labels:?}");

    // The client's keeps the snapshot, and the blob from then on.
    containerd.keep("clients", "snapshots/layerstore", "work");
    client.diff(on_behalf(request.clone(), &[("containerd-namespace", "ns")])).await.expect("makes");
    assert!(containerd.kept("clients").contains(&("content".to_owned(), made.digest.clone())));
    let own = text(&containerd.written()[2].0, "containerd-lease").expect("a lease").to_owned();
    assert!(!containerd.leases().iter().any(|(id, _)| *id == own), "no longer needed");

    // What is not made leaves no lease.
    let before = containerd.leases();
    containerd.refuse_writes();
    client.diff(on_behalf(request, &[("containerd-namespace", "ns")])).await.expect_err("cannot write");
    assert_eq!(containerd.leases(), before);
}

/// CRI sends what would open encrypted layers with every layer.
#[tokio::test(flavor = "multi_thread")]
async fn payloads_of_plain_layers_are_ignored() {
    let daemon = Daemon::start();
    let containerd = containerd::start(&daemon).await;
    let blob = tar(&[("file", b"content")]);
    containerd.put(&blob);
    let mounts = daemon.snapshots().await.prepare(prepare("k8s.io/1/k")).await.expect("prepares").into_inner().mounts;
    let mut request = apply(&blob, TAR, mounts.clone());
    request.payloads.insert("io.containerd.ocicrypt.v1.payload".into(), prost_types::Any::default());
    let applied = differ(&daemon).await.apply(request.clone()).await.expect("applies").into_inner();
    assert_eq!(applied.applied.expect("a layer").digest, Digest::of(&blob).to_string());
    assert!(containerd.delegated().is_empty());

    // An encrypted one is for who has the keys.
    let encrypted = apply(&blob, "application/vnd.oci.image.layer.v1.tar+gzip+encrypted", mounts);
    let encrypted = diff::ApplyRequest { payloads: request.payloads, ..encrypted };
    differ(&daemon).await.apply(encrypted.clone()).await.expect("another differ takes it");
    assert_eq!(containerd.delegated(), [encrypted]);
}

/// What is refused here, containerd's next differ may take; it asks us first, and hears Unimplemented.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_given_to_the_next_differ() {
    let daemon = Daemon::start();
    let containerd = containerd::start(&daemon).await;
    let aufs = tar(&[(".wh..wh.aufs", b""), ("file", b"content")]);
    let twice = [&tar(&[("x", b"")])[..1536], b"something after the end of an archive"].concat();
    for blob in [&aufs, &twice] {
        containerd.put(blob);
    }
    let mut client = daemon.snapshots().await;
    for (n, blob) in [&aufs, &twice].into_iter().enumerate() {
        let key = format!("ns/{n}/extract-{n}");
        let mounts = client.prepare(prepare(&key)).await.expect("prepares").into_inner().mounts;
        let request = apply(blob, TAR, mounts);
        differ(&daemon).await.apply(request.clone()).await.expect("another differ takes it");
        assert_eq!(containerd.delegated()[n], request);
        // Its snapshot is a directory like any other.
        client.commit(commit(&format!("ns/{n}/done"), &key)).await.expect("commits");
    }
    // Where nobody takes it, the reason is told in words, and no method is said to be missing.
    containerd.take_nothing();
    let mounts = client.prepare(prepare("ns/9/extract")).await.expect("prepares").into_inner().mounts;
    let error = differ(&daemon).await.apply(apply(&aufs, TAR, mounts)).await.expect_err("nobody takes it");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
    assert!(error.message().contains("no other differ"), "{error:?}");
}
