//! What snapshots cost: committing one with many new small files, against `tar -c | sha256sum` of the same directory;
//! and preparing and mounting one on chains of 1 and of 490 layers. Ratios in one run.
//!
//! `cargo bench --bench snapshots`, as root, best in a mount namespace of its own (`unshare -m`). All is done below
//! `LAYERSTORE_BENCH_DIR`, which is not to be on tmpfs, or else below target/; a RAM-backed file system measures
//! the program and not the disk.
//!
//! The files committed are 10,000 in 100 directories, 0 to 8 KiB of words with a number in each, so that none is like
//! another. A commit ends with the layer on disk; both find the files in the page cache. Every round is once with a new
//! store and once with one that has all of the chunks.

mod support;

use layerstore::{
    CommitOptions, Digest, DriverKind, Entry, EntryKind, ImportOptions, Labels, Limits, Snapshotter,
    SnapshotterOptions, Store, TarWriter, Time,
};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use support::{ROUNDS, base, median, needs, timed};

const FILES: usize = 10_000;
/// The most layers that a kernel mounts by `lowerdir+` are 500; ten are left to whoever mounts more on top.
const DEPTHS: [usize; 2] = [1, 490];

fn main() {
    if !needs::root("snapshots") || !needs::programs("snapshots", &["sh", "tar", "sha256sum"]) {
        return;
    }
    let dir = tempfile::tempdir_in(base()).expect("a directory");
    commits(dir.path());
    depths(dir.path());
}

fn depths(dir: &Path) {
    println!("prepare and mount, milliseconds, by layers: {DEPTHS:?}");
    let store = Arc::new(Store::open(dir.join("store")).expect("a new store"));
    let layers: Vec<Digest> = (0..DEPTHS[1]).map(|n| layer(&store, n)).collect();
    for driver in [DriverKind::Erofs, DriverKind::Overlay] {
        let options = SnapshotterOptions::default().driver(driver).namespace(driver.as_str());
        let snapshots = Snapshotter::open(store.clone(), &options).expect("the driver works here");
        let mut top: Option<String> = None;
        for (n, layer) in layers.iter().enumerate() {
            let name = format!("layer {n}");
            snapshots.commit_layer(&name, top.as_deref(), layer, &Labels::new()).expect("commits");
            top = Some(name);
        }
        let times = DEPTHS.map(|depth| {
            let parent = format!("layer {}", depth - 1);
            // What is extracted or built for a chain the first time is no part of this.
            snapshots.view("first", Some(&parent), &Labels::new(), &()).expect("views");
            let target = dir.join("target");
            fs::create_dir_all(&target).expect("a directory");
            let rounds: Vec<[f64; 2]> = (0..20)
                .map(|n| {
                    let key = format!("{depth}-{n}");
                    let (prepare, mounts) = timed(|| snapshots.prepare(&key, Some(&parent), &Labels::new(), &()));
                    let mounts = mounts.expect("prepares");
                    let (mount, done) = timed(|| layerstore::mount_all(&mounts, &target));
                    done.expect("mounts");
                    layerstore::unmount(&target).expect("unmounts");
                    [prepare, mount]
                })
                .collect();
            snapshots.remove("first").expect("removes");
            [0, 1].map(|i| median(rounds.iter().map(|r| r[i]).collect()) * 1e3)
        });
        let [one, many] = times;
        println!("{:8} prepare {:5.1} {:5.1}   ratio {:.2}", driver.as_str(), one[0], many[0], many[0] / one[0]);
        println!("{:8} mount   {:5.1} {:5.1}   ratio {:.2}", driver.as_str(), one[1], many[1], many[1] / one[1]);
        snapshots.close().expect("unmounts");
    }
}

/// A layer of one file and its directory.
fn layer(store: &Store, n: usize) -> Digest {
    let mut tar = TarWriter::new(Vec::new(), &Limits::default());
    let mtime = Time { secs: 1_700_000_000, nanos: 0 };
    let path = format!("d{}/f{n}", n % 10).into_bytes();
    let kind = EntryKind::File { size: 5, sparse: None };
    tar.entry(&Entry { path, kind, mode: 0o644, uid: 0, gid: 0, mtime, xattrs: vec![] }).expect("an entry");
    tar.content(format!("{n:5}").as_bytes()).expect("its content");
    let tar = tar.finish().expect("in memory");
    store.import_layer(&tar[..], &ImportOptions::default(), &()).expect("a good layer").0.diff_id
}

fn commits(dir: &Path) {
    let mut rounds: Vec<[f64; 3]> = Vec::new();
    for round in 0..ROUNDS {
        let store = Arc::new(Store::open(dir.join(format!("store-{round}"))).expect("a new store"));
        let options = SnapshotterOptions::default().driver(DriverKind::Overlay);
        let snapshots = Snapshotter::open(store, &options).expect("the driver works here");
        let [fresh, again] = ["fresh", "again"].map(|name| {
            let mounts = snapshots.prepare(name, None, &Labels::new(), &()).expect("prepares");
            let root = Path::new(&mounts[0].source);
            fill(root, round);
            rustix::fs::sync();
            let (tar, ()) = timed(|| tar(root));
            let (commit, layer) =
                timed(|| snapshots.commit(&format!("{name}-layer"), name, &CommitOptions::default(), &()));
            layer.expect("commits").expect("a layer");
            (commit, tar)
        });
        rounds.push([fresh.0, again.0, (fresh.1 + again.1) / 2.0]);
    }
    let of = |value: &dyn Fn(&[f64; 3]) -> f64| median(rounds.iter().map(value).collect());
    println!("{ROUNDS} rounds, medians, {FILES} files");
    println!("tar | sha256sum {:6.1} ms", of(&|r| r[2]) * 1e3);
    println!("commit          {:6.1} ms, ratio {:.2}", of(&|r| r[0]) * 1e3, of(&|r| r[0] / r[2]));
    println!("  all known     {:6.1} ms, ratio {:.2}", of(&|r| r[1]) * 1e3, of(&|r| r[1] / r[2]));
}

fn fill(root: &Path, round: usize) {
    for n in 0..FILES {
        let dir = root.join(format!("d{}", n / 100));
        if n % 100 == 0 {
            fs::create_dir(&dir).expect("a directory");
        }
        let mut content = Vec::new();
        for line in 0.. {
            if content.len() >= n * 7919 % 8192 {
                break;
            }
            writeln!(content, "{round} {n} line {line} of a text {}", line * n % 1000).expect("in memory");
        }
        fs::write(dir.join(format!("f{n}")), content).expect("a file");
    }
}

fn tar(root: &Path) {
    let command = format!("tar -C '{}' -c . | sha256sum", root.display());
    let out = Command::new("sh").args(["-c", &command]).output().expect("tar and sha256sum are installed");
    assert!(out.status.success());
}
