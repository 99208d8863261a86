//! What the benches over real images share.

#![allow(dead_code, reason = "every bench uses a part")]

#[path = "../../tests/support/cgroup.rs"]
pub(crate) mod cgroup;
#[path = "../../tests/support/copy.rs"]
pub(crate) mod copy;
mod made;
#[path = "../../tests/support/needs.rs"]
pub(crate) mod needs;

use flate2::read::MultiGzDecoder;
use layerstore::{Detected, ImageSource, Limits, Selector, detect};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::hint::black_box;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;
use tempfile::TempDir;

/// How often everything is done; medians are printed.
pub(crate) const ROUNDS: usize = 5;

/// RFC 8878, section 3.1.1.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// What to measure with.
pub(crate) struct Images {
    pub(crate) layouts: Vec<PathBuf>,
    /// The directory to work below.
    pub(crate) base: PathBuf,
    /// Goes with the images that were made.
    _made: Option<TempDir>,
}

/// The layouts of `LAYERSTORE_BENCH_IMAGES`, or two versions of an image made of the machine's own files.
pub(crate) fn images() -> Images {
    let base = base();
    if let Some(layouts) = std::env::var_os("LAYERSTORE_BENCH_IMAGES") {
        return Images { layouts: std::env::split_paths(&layouts).collect(), base, _made: None };
    }
    let dir = tempfile::tempdir_in(&base).expect("a directory");
    println!("LAYERSTORE_BENCH_IMAGES names no OCI layouts: an image of this machine's own files is made");
    Images { layouts: made::write(dir.path()), base, _made: Some(dir) }
}

/// The directory to work below, `LAYERSTORE_BENCH_DIR` or one below target/: the kernel mounts no EROFS image from tmpfs.
pub(crate) fn base() -> PathBuf {
    let target = || PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    std::env::var_os("LAYERSTORE_BENCH_DIR").map_or_else(target, PathBuf::from)
}

/// The middle one of some values.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The image of a layout.
pub(crate) fn source(layout: &Path) -> ImageSource {
    match detect(layout, &std::env::temp_dir(), &Limits::default()).expect("a readable layout") {
        Detected::Image(source) => source,
        _ => panic!("{} holds no image", layout.display()),
    }
}

/// What `work` returns, and the seconds it took.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let out = work();
    (start.elapsed().as_secs_f64(), out)
}

/// What imports are measured by: all of an image's gzip blobs inflated on this thread, with the library that an import
/// uses. Zstd blobs, which decompress several times as fast, are hashed (SHA-256) as well.
pub(crate) fn decompress(source: &ImageSource) {
    let plan = source.select(&Selector::default()).expect("one image");
    let mut buffer = vec![0; 1 << 20];
    for layer in &plan.layers {
        let mut blob = BufReader::with_capacity(256 << 10, source.open_layer(layer).expect("the layer's blob"));
        if blob.fill_buf().expect("a readable blob").starts_with(&ZSTD_MAGIC) {
            let mut tar = zstd::stream::read::Decoder::with_buffer(blob).expect("memory");
            let mut hasher = Sha256::new();
            loop {
                let n = tar.read(&mut buffer).expect("a sound zstd blob");
                if n == 0 {
                    break;
                }
                hasher.update(&buffer[..n]);
            }
            black_box(hasher.finalize());
        } else {
            let mut tar = MultiGzDecoder::new(blob);
            while tar.read(&mut buffer).expect("a sound gzip blob") > 0 {}
        }
    }
}

/// Peak resident memory so far, kB.
pub(crate) fn peak_rss() -> u64 {
    let mut status = String::new();
    File::open("/proc/self/status").and_then(|mut f| f.read_to_string(&mut status)).expect("procfs");
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).expect("VmHWM");
    line.trim().trim_end_matches("kB").trim().parse().expect("a number")
}
