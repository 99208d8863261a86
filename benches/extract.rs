//! Extracting whole images, against what others need for the same trees: ratios in one run.
//!
//! `LAYERSTORE_BENCH_IMAGES=layout[:layout...] cargo bench --bench extract`, as root; without images, one is made of the
//! machine's own files. All is done below `LAYERSTORE_BENCH_DIR`, or else below target/; a RAM-backed file system measures the program and not
//! the disk. Each round does in turn, and waits until all is on disk:
//! - `bsdtar -xzpf` of the image's gzip blobs, all layers at a time;
//! - the layers extracted as overlay's lower directories;
//! - those directories copied by `cp -a`;
//! - the whole tree in one directory.

mod support;

use layerstore::internals::layer_directories;
use layerstore::{Digest, ExtractOptions, ImageSource, ImportOptions, Selector, Store};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use support::{ROUNDS, needs, source};

fn main() {
    if !needs::root("extract") {
        return;
    }
    let with = Others { bsdtar: needs::programs("bsdtar", &["bsdtar"]), cp: needs::programs("cp -a", &["cp"]) };
    let images = support::images();
    println!("{ROUNDS} rounds, medians, seconds");
    println!("image            files   MB  bsdtar  lowers  ratio  cp -a  ratio  whole tree");
    for layout in &images.layouts {
        measure(layout, &images.base, &with);
    }
}

/// What else is installed to compare with; the others' columns are NaN.
struct Others {
    bsdtar: bool,
    cp: bool,
}

fn measure(layout: &Path, base: &Path, with: &Others) {
    let source = source(layout);
    let dir = tempfile::tempdir_in(base).expect("a directory");
    let store = Store::open(dir.path().join("store")).expect("a new store");
    let import = store.import_image(&source, &Selector::default(), None, &ImportOptions::default(), &());
    let layers: Vec<Digest> = import.expect("a sound image").layers.iter().map(|layer| layer.diff_id).collect();
    let blobs = blobs(layout, &source);
    let options = ExtractOptions::default();
    let mut rounds: Vec<[f64; 4]> = Vec::new();
    let mut report = Default::default();
    for _ in 0..ROUNDS {
        let at = |name: &str| dir.path().join(name);
        let bsdtar = if with.bsdtar {
            let took = timed(&at("bsdtar"), || unpack(&blobs, &at("bsdtar")));
            remove(&at("bsdtar"));
            took
        } else {
            f64::NAN
        };
        let lowers = timed(&at("lowers"), || {
            report = layer_directories(&store, &layers, &at("lowers"), &options).expect("extracts");
        });
        let copy = if with.cp {
            let took = timed(&at("copy"), || run(Command::new("cp").arg("-a").arg(at("lowers")).arg(at("copy"))));
            remove(&at("copy"));
            took
        } else {
            f64::NAN
        };
        remove(&at("lowers"));
        let whole = timed(&at("whole"), || {
            store.extract(&layers, &at("whole/tree"), &options, &()).expect("extracts");
        });
        remove(&at("whole"));
        rounds.push([bsdtar, lowers, copy, whole]);
    }
    let median = |of: &dyn Fn(&[f64; 4]) -> f64| support::median(rounds.iter().map(of).collect());
    let name = layout.file_name().unwrap_or_default().to_string_lossy().into_owned();
    println!(
        "{name:15} {:6} {:4.0} {:7.2} {:7.2} {:6.2} {:6.2} {:6.2} {:11.2}",
        report.files,
        report.bytes as f64 / 1e6,
        median(&|r| r[0]),
        median(&|r| r[1]),
        median(&|r| r[1] / r[0]),
        median(&|r| r[2]),
        median(&|r| r[1] / r[2]),
        median(&|r| r[3]),
    );
}

fn blobs(layout: &Path, source: &ImageSource) -> Vec<PathBuf> {
    let plan = source.select(&Selector::default()).expect("one image");
    let layers = plan.layers.iter();
    layers.map(|layer| layout.join("blobs/sha256").join(layer.blob.expect("a layout states blobs").hex())).collect()
}

fn unpack(blobs: &[PathBuf], dest: &Path) {
    let started = blobs.iter().enumerate().map(|(at, blob)| {
        let dir = dest.join(at.to_string());
        std::fs::create_dir(&dir).expect("a directory");
        Command::new("bsdtar").arg("-C").arg(dir).arg("-xzpf").arg(blob).spawn().expect("bsdtar is installed")
    });
    for mut child in started.collect::<Vec<_>>() {
        assert!(child.wait().expect("bsdtar runs").success());
    }
}

fn run(command: &mut Command) {
    assert!(command.status().expect("the program is installed").success());
}

/// Makes `dir`; seconds that `work` in it takes until all is on disk. What was written before is synced first.
fn timed(dir: &Path, work: impl FnOnce()) -> f64 {
    std::fs::create_dir(dir).expect("a directory");
    let sync = || rustix::fs::syncfs(std::fs::File::open(dir).expect("a directory")).expect("syncs");
    sync();
    let start = Instant::now();
    work();
    sync();
    start.elapsed().as_secs_f64()
}

fn remove(dir: &Path) {
    std::fs::remove_dir_all(dir).expect("ours");
}
