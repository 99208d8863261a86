//! What the benches over real images share.

#![allow(dead_code, reason = "every bench uses a part")]

use layerstore::{Detected, ImageSource, Limits, detect};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// How often everything is done; medians are printed.
pub(crate) const ROUNDS: usize = 5;

/// The layouts of `LAYERSTORE_BENCH_IMAGES`, and the directory to work below; says so if there are none.
pub(crate) fn images() -> Option<(Vec<PathBuf>, PathBuf)> {
    let Some(layouts) = std::env::var_os("LAYERSTORE_BENCH_IMAGES") else {
        println!("skipped: LAYERSTORE_BENCH_IMAGES names no OCI layouts");
        return None;
    };
    Some((std::env::split_paths(&layouts).collect(), base()))
}

/// The directory to work below.
pub(crate) fn base() -> PathBuf {
    std::env::var_os("LAYERSTORE_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from)
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
