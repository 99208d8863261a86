//! Committing a snapshot with many new small files, against `tar -c | sha256sum` of the same directory: ratios in one
//! run.
//!
//! `cargo bench --bench commit`, as root. All is done below `LAYERSTORE_BENCH_DIR`, or else the temporary directory; a
//! RAM-backed file system measures the program and not the disk. The files are 10,000 in 100 directories, 0 to 8 KiB of
//! words with a number in each, so that none is like another. A commit ends with the layer on disk; both find the files
//! in the page cache. Every round is once with a new store and once with one that has all of the chunks.

mod support;

use layerstore::{CommitOptions, DriverKind, Labels, Snapshotter, SnapshotterOptions, Store};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use support::{ROUNDS, base, median, timed};

const FILES: usize = 10_000;

fn main() {
    let dir = tempfile::tempdir_in(base()).expect("a directory");
    let mut rounds: Vec<[f64; 3]> = Vec::new();
    for round in 0..ROUNDS {
        let store = Arc::new(Store::open(dir.path().join(format!("store-{round}"))).expect("a new store"));
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
