//! What it costs that a store has much already: ratios in one run.
//!
//! `LAYERSTORE_BENCH_IMAGES=layout:layout cargo bench --bench scale`, two versions of an image, the later one last.
//! Without them, two versions are made of the machine's own files. All is done below `LAYERSTORE_BENCH_DIR`, or else
//! below target/.
//! `LAYERSTORE_BENCH_CHUNKS` is how many made-up chunks the full index has (10,000,000, for which it takes 1.2 GB).
//! - importing the first image into an empty store, and into one whose index is full;
//! - importing the second image when the first is there, against inflating its blobs;
//! - gc's marking, chunks a second;
//! - fsck of every byte, against reading, decompressing and hashing all chunks on all CPUs and nothing else.

mod support;

use layerstore::internals::{fill_index, mark, read_chunks};
use layerstore::{FsckOptions, ImportOptions, Selector, Store};
use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use support::{ROUNDS, decompress, median, peak_rss, source, timed};

fn main() {
    let images = support::images();
    let [first, .., second] = &images.layouts[..] else { return println!("skipped: two images are needed") };
    let chunks = std::env::var("LAYERSTORE_BENCH_CHUNKS").ok().map_or(10_000_000, |n| n.parse().expect("a number"));
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    println!("{threads} threads, {ROUNDS} rounds, medians");
    versions(first, second, &images.base, threads);
    full_index(first, &images.base, chunks);
}

fn import(store: &Store, layout: &Path, name: &str) -> f64 {
    let source = source(layout);
    // What was written before is not to be waited for.
    rustix::fs::sync();
    let (took, done) =
        timed(|| store.import_image(&source, &Selector::default(), Some(name), &ImportOptions::default(), &()));
    done.expect("a sound image");
    took
}

/// Another version of an image, and checking both.
fn versions(first: &Path, second: &Path, base: &Path, threads: NonZeroUsize) {
    let (mut later, mut checks) = (vec![], vec![]);
    for _ in 0..ROUNDS {
        let inflated = timed(|| decompress(&source(second))).0;
        let dir = tempfile::tempdir_in(base).expect("a directory");
        let store = Store::open(dir.path().join("store")).expect("a new store");
        import(&store, first, "first");
        let took = import(&store, second, "second");
        later.push((took, inflated));
        let options = FsckOptions::default().full(true).threads(threads);
        let (fsck, report) = timed(|| store.fsck(&options, &()).expect("fsck runs"));
        assert!(report.is_clean());
        let (bare, raw) = timed(|| read_chunks(&store, threads).expect("a sound store"));
        checks.push((fsck, bare, raw));
    }
    let ratios = |pairs: &[(f64, f64)]| median(pairs.iter().map(|(a, b)| a / b).collect());
    println!(
        "second version after the first: {:.2} s, {:.2} of inflating it",
        median(later.iter().map(|l| l.0).collect()),
        ratios(&later)
    );
    let raw = checks[0].2 as f64 / 1e6;
    println!(
        "fsck of every byte: {:.0} MB/s of content, {:.2} of the speed of reading, decompressing and hashing it",
        raw / median(checks.iter().map(|c| c.0).collect()),
        median(checks.iter().map(|c| c.1 / c.0).collect())
    );
}

/// An index of many chunks.
fn full_index(layout: &Path, base: &Path, chunks: u64) {
    let dir = tempfile::tempdir_in(base).expect("a directory");
    let full = dir.path().join("full");
    let store = Store::open(&full).expect("a new store");
    let (filled, ()) = timed(|| fill_index(&store, chunks).expect("rows of its own"));
    println!("{chunks} chunks entered in {filled:.0} s: {:.0} MB of database", on_disk(&full) / 1e6);
    drop(store);
    let mut rounds = vec![];
    for n in 0..ROUNDS {
        let empty = Store::open(dir.path().join(format!("empty-{n}"))).expect("a new store");
        let alone = import(&empty, layout, "image");
        drop(empty);
        fs::remove_dir_all(dir.path().join(format!("empty-{n}"))).expect("a store");
        // Every round has to find the image new, and the same full index.
        let copy = dir.path().join("copy");
        let _ = fs::remove_dir_all(&copy);
        support::copy::copy_tree(&full, &copy);
        let store = Store::open(&copy).expect("a store");
        let among = import(&store, layout, "image");
        rounds.push(alone / among);
        if n == 0 {
            let (took, (alive, all)) = timed(|| mark(&store).expect("a sound store"));
            println!(
                "gc: {:.2} M chunks a second marked and compared ({alive} of {all} in use)",
                all as f64 / 1e6 / took
            );
        }
    }
    println!("import speed among {chunks} chunks, to that into an empty store: {:.2}", median(rounds));
    println!("peak memory of this process: {} MB", peak_rss() / 1000);
}

fn on_disk(root: &Path) -> f64 {
    let names = ["index.db", "index.db-wal"];
    names.iter().map(|name| fs::metadata(root.join(name)).map_or(0, |m| m.len())).sum::<u64>() as f64
}
