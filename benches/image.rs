//! Importing whole images against decompressing their blobs, and exporting their layers: ratios in one run.
//!
//! `LAYERSTORE_BENCH_IMAGES=layout[:layout...] cargo bench --bench image`; without images, one is made of the machine's
//! own files. The stores are made below `LAYERSTORE_BENCH_DIR`, or else below target/; a RAM-backed file system measures the program and not the disk. Decompressing is
//! done with the same libraries, on one thread, reading the same files; of zstd blobs it counts hashing the tars too. Each round
//! does all of it in turn; medians are printed.

mod support;

use layerstore::{ImportOptions, Selector, Store};
use std::num::NonZeroUsize;
use std::path::Path;
use support::{ROUNDS, decompress, peak_rss, source, timed};

fn main() {
    let images = support::images();
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    println!("{threads} threads, {ROUNDS} rounds, medians");
    println!("image            tar MB   unpack s  import s  ratio  stored MB  export MB/s  again s");
    for layout in &images.layouts {
        measure(layout, &images.base, threads);
    }
    println!("peak memory of this process: {} MB", peak_rss() / 1000);
}

fn measure(layout: &Path, base: &Path, threads: NonZeroUsize) {
    let source = source(layout);
    let mut rounds: Vec<[f64; 4]> = Vec::new();
    let (mut tar, mut stored) = (0, 0);
    for _ in 0..ROUNDS {
        let decompress = timed(|| decompress(&source)).0;
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
        rounds.push([decompress, first, export.0, again]);
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
