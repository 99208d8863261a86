//! Importing whole images against inflating their blobs, and exporting their layers: ratios in one run.
//!
//! `LAYERSTORE_BENCH_IMAGES=layout[:layout...] cargo bench --bench image`. The stores are made below `LAYERSTORE_BENCH_DIR`,
//! or else the temporary directory; a RAM-backed file system measures the program and not the disk. Inflating is done
//! with the same library, on one thread, reading the same files. Each round does all of it in turn; medians are
//! printed.

mod support;

use flate2::read::MultiGzDecoder;
use layerstore::{ImageSource, ImportOptions, Selector, Store};
use std::fs::File;
use std::io::{BufReader, Read};
use std::num::NonZeroUsize;
use std::path::Path;
use support::{ROUNDS, source, timed};

fn main() {
    let Some((layouts, base)) = support::images() else { return };
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    println!("{threads} threads, {ROUNDS} rounds, medians");
    println!("image            tar MB  inflate s  import s  ratio  stored MB  export MB/s  again s");
    for layout in layouts {
        measure(&layout, &base, threads);
    }
    println!("peak memory of this process: {} MB", peak_rss() / 1000);
}

fn measure(layout: &Path, base: &Path, threads: NonZeroUsize) {
    let source = source(layout);
    let mut rounds: Vec<[f64; 4]> = Vec::new();
    let (mut tar, mut stored) = (0, 0);
    for _ in 0..ROUNDS {
        let inflate = timed(|| inflate(&source)).0;
        let dir = tempfile::tempdir_in(base).expect("a directory for the store");
        let store = Store::open(dir.path().join("store")).expect("a new store");
        let options = ImportOptions::default().threads(threads);
        let import = || store.import_image(&source, &Selector::default(), Some("image"), &options, &());
        let (first, image) = timed(import);
        let image = image.expect("the image is sound");
        let again = timed(import).0;
        tar = image.layers.iter().map(|l| l.tar_size).sum();
        stored = store.usage().expect("a sound store").total();
        let export = timed(|| {
            for layer in &image.layers {
                let layer = store.layer(&layer.diff_id).expect("just imported");
                layer.export(&mut std::io::sink(), threads, &()).expect("a sound store");
            }
        });
        rounds.push([inflate, first, export.0, again]);
    }
    let median = |of: &dyn Fn(&[f64; 4]) -> f64| support::median(rounds.iter().map(of).collect());
    let of = |column: usize| median(&move |r| r[column]);
    let ratio = median(&|r| r[1] / r[0]);
    let name = layout.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (tar, stored) = (tar as f64 / 1e6, stored as f64 / 1e6);
    println!(
        "{name:15} {tar:7.0} {:10.2} {:9.2} {ratio:6.2} {stored:10.1} {:12.0} {:8.3}",
        of(0),
        of(1),
        tar / of(2),
        of(3)
    );
}

fn inflate(source: &ImageSource) {
    let plan = source.select(&Selector::default()).expect("one image");
    let mut buffer = vec![0; 1 << 20];
    for layer in &plan.layers {
        let blob = source.open_layer(layer).expect("the layer's blob");
        let mut tar = MultiGzDecoder::new(BufReader::with_capacity(256 << 10, blob));
        while tar.read(&mut buffer).expect("a sound gzip blob") > 0 {}
    }
}

/// Peak resident memory so far, kB.
fn peak_rss() -> u64 {
    let mut status = String::new();
    File::open("/proc/self/status").and_then(|mut f| f.read_to_string(&mut status)).expect("procfs");
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).expect("VmHWM");
    line.trim().trim_end_matches("kB").trim().parse().expect("a number")
}
