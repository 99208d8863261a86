//! Mounting whole images without extraction, against extracting them: ratios in one run.
//!
//! `LAYERSTORE_BENCH_IMAGES=layout[:layout...] cargo bench --bench mount`, as root, best in a mount namespace of its own
//! (`unshare -m`); without images, one is made of the machine's own files. All is done below `LAYERSTORE_BENCH_DIR`, which
//! is not to be on tmpfs, or else below target/; it drops the caches of the whole machine. For each image, with chunks as
//! zstd and raw:
//! - import, and from there to the first mounted root: tree, image, mount;
//! - mounting the built image again;
//! - listing the mounted root (`find`), against overlay over extracted layers;
//! - reading every file once, cold, against the same in one extracted tree;
//! - the page cache that reading every file leaves, charged to a memory cgroup of its own, against overlay over extracted
//!   layers: as mounts are by default, with and without `directio`, and, of zstd, with compressed blocks dropped.
//!   `LAYERSTORE_BENCH_CACHE=1` measures that alone.

mod support;

use layerstore::{
    Compress, DirectIo, DriverKind, ExtractOptions, ImageInfo, ImportOptions, Labels, Selector, Snapshotter,
    SnapshotterOptions, Store,
};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use support::{ROUNDS, cgroup, median, needs, source, timed};

/// The directory that this program reads instead of measuring, run again in a cgroup.
const READ: &str = "LAYERSTORE_BENCH_READ";

fn main() {
    if let Some(dir) = std::env::var_os(READ) {
        return read_all(Path::new(&dir), &mut vec![0; 128 << 10]);
    }
    if !needs::root("mount") {
        return;
    }
    let images = support::images();
    if std::env::var_os("LAYERSTORE_BENCH_CACHE").is_none() {
        times(&images);
    }
    println!(
        "page cache after reading every file once, MiB; in parentheses the ratio to overlay over extracted layers"
    );
    println!("image    chunks    overlay      default     directio        plain      dropped");
    for layout in &images.layouts {
        for (name, compress) in [("zstd", Compress::default()), ("raw", Compress::Raw)] {
            caches(layout, &images.base, name, compress);
        }
    }
}

fn times(images: &support::Images) {
    println!("{ROUNDS} rounds, medians; import and reading in seconds, the rest in milliseconds");
    println!(
        "image    chunks  import    tar MB  image MB   ratio  first root   mount    find  overlay   ratio    cold  extracted   ratio"
    );
    for layout in &images.layouts {
        for (name, compress) in [("zstd", Compress::default()), ("raw", Compress::Raw)] {
            measure(layout, &images.base, name, compress);
        }
    }
}

/// What reading all files of an image leaves in the page cache, by how it is mounted.
fn caches(layout: &Path, base: &Path, chunks: &str, compress: Compress) {
    let dir = tempfile::tempdir_in(base).expect("a directory");
    let store = Arc::new(Store::open(dir.path().join("store")).expect("a new store"));
    let image = import(&store, layout, compress);
    let default = SnapshotterOptions::default();
    let ways = [
        Some(default.clone().driver(DriverKind::Overlay)),
        Some(default.clone()),
        Some(default.clone().direct_io(DirectIo::On)),
        Some(default.clone().direct_io(DirectIo::Off)),
        (chunks == "zstd").then(|| default.drop_compressed(true)),
    ];
    let used = ways.map(|way| cache_of(&store, &image, &way?, dir.path()));
    let overlay = used[0].unwrap_or(f64::NAN);
    let cell = |used: &Option<f64>| used.map_or("-".to_owned(), |mib| format!("{mib:.0} ({:.2})", mib / overlay));
    print!("{:8} {chunks:6} {overlay:10.0}", layout.file_name().unwrap_or_default().to_string_lossy());
    used[1..].iter().for_each(|used| print!(" {:>12}", cell(used)));
    println!();
}

/// MiB of page cache that a process reading all files is charged; `None` where there is no memory cgroup.
fn cache_of(store: &Arc<Store>, image: &ImageInfo, options: &SnapshotterOptions, dir: &Path) -> Option<f64> {
    let snapshots = Snapshotter::open(store.clone(), options).expect("the driver works here");
    view(&snapshots, image, "cache");
    let root = tempfile::tempdir_in(dir).expect("a directory");
    layerstore::mount_all(&snapshots.mounts("cache", &()).expect("mounts"), root.path()).expect("mounts");
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").expect("root");
    let used = cgroup::Group::new(1 << 40).and_then(|group| {
        let mut reader = Command::new(std::env::current_exe().expect("this program"));
        group.hold(&mut reader);
        assert!(reader.env(READ, root.path()).status().expect("this program runs").success());
        group.cache()
    });
    layerstore::unmount(root.path()).expect("unmounts");
    snapshots.remove("cache").expect("removes");
    if let Some(mount) = fs::read_dir(store.path().join("mounts")).expect("mounts").flatten().next() {
        // Another way is to mount it anew.
        layerstore::unmount(&mount.path()).expect("unmounts");
    }
    used.map(|bytes| bytes as f64 / f64::from(1 << 20))
}

fn measure(layout: &Path, base: &Path, chunks: &str, compress: Compress) {
    let dir = tempfile::tempdir_in(base).expect("a directory");
    let store = Arc::new(Store::open(dir.path().join("store")).expect("a new store"));
    // What the probe says is remembered, and no part of any mount.
    let erofs = open(&store, DriverKind::Erofs);
    let (imported, import) = timed(|| import(&store, layout, compress));
    let (first, ()) = timed(|| view(&erofs, &import, "v"));
    let remounts = (0..ROUNDS).map(|_| {
        layerstore::unmount(&mount_point(&store)).expect("unmounts");
        timed(|| erofs.mounts("v", &()).expect("mounts")).0
    });
    let remount = median(remounts.collect());
    let overlay = open(&store, DriverKind::Overlay);
    view(&overlay, &import, "v");
    let roots = [dir.path().join("erofs"), dir.path().join("overlay")];
    for (snapshots, root) in [&erofs, &overlay].into_iter().zip(&roots) {
        fs::create_dir(root).expect("a directory");
        layerstore::mount_all(&snapshots.mounts("v", &()).expect("mounts"), root).expect("mounts");
        find(root);
    }
    let found: Vec<[f64; 2]> = (0..ROUNDS).map(|_| roots.each_ref().map(|root| timed(|| find(root)).0)).collect();
    let extracted = dir.path().join("extracted");
    store.extract(&import.layers, &extracted, &ExtractOptions::default(), &()).expect("extracts");
    let read: Vec<[f64; 2]> = (0..3).map(|_| [&roots[0], &extracted].map(|root| cold(root))).collect();
    let image = fs::read_dir(store.path().join("images")).expect("images").flatten();
    let image =
        image.filter(|f| f.path().extension().is_some()).map(|f| f.metadata().expect("stat").len()).sum::<u64>();
    let tar: u64 = store.layers().expect("layers").iter().map(|layer| layer.tar_size).sum();
    let of = |rounds: &[[f64; 2]], i: usize| median(rounds.iter().map(|r| r[i]).collect());
    let ratio = |rounds: &[[f64; 2]]| median(rounds.iter().map(|r| r[0] / r[1]).collect());
    println!(
        "{:8} {chunks:6} {imported:7.2} {:9.0} {:9.2} {:6.2}% {:11.0} {:7.1} {:7.1} {:8.1} {:7.2} {:7.2} {:10.2} {:7.2}",
        layout.file_name().unwrap_or_default().to_string_lossy(),
        tar as f64 / 1e6,
        image as f64 / 1e6,
        image as f64 * 100.0 / tar as f64,
        first * 1e3,
        remount * 1e3,
        of(&found, 0) * 1e3,
        of(&found, 1) * 1e3,
        ratio(&found),
        of(&read, 0),
        of(&read, 1),
        ratio(&read),
    );
    roots.iter().for_each(|root| layerstore::unmount(root).expect("unmounts"));
    layerstore::unmount(&mount_point(&store)).expect("unmounts");
}

fn open(store: &Arc<Store>, driver: DriverKind) -> Snapshotter {
    let options = SnapshotterOptions::default().driver(driver).namespace(driver.as_str());
    Snapshotter::open(store.clone(), &options).expect("the driver works here")
}

fn import(store: &Store, layout: &Path, compress: Compress) -> ImageInfo {
    let source = source(layout);
    let options = ImportOptions::default().compress(compress);
    store.import_image(&source, &Selector::default(), Some("i"), &options, &()).expect("a sound image");
    store.image("i").expect("the image")
}

fn view(snapshots: &Snapshotter, image: &ImageInfo, key: &str) {
    let top = snapshots.commit_image(image, &()).expect("commits");
    snapshots.view(key, top.as_deref(), &Labels::new(), &()).expect("views");
}

fn mount_point(store: &Store) -> PathBuf {
    let mut mounts = fs::read_dir(store.path().join("mounts")).expect("mounts").flatten();
    mounts.next().expect("a mount").path()
}

fn find(root: &Path) {
    let run = Command::new("find").arg(root).args(["-printf", "%s %m\n"]).stdout(Stdio::null()).status();
    assert!(run.expect("find is installed").success());
}

/// Seconds to read every file below `root` once, from nothing cached.
fn cold(root: &Path) -> f64 {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").expect("root");
    timed(|| read_all(root, &mut vec![0; 128 << 10])).0
}

fn read_all(dir: &Path, buffer: &mut [u8]) {
    for found in fs::read_dir(dir).expect("a directory").flatten() {
        let kind = found.file_type().expect("a type");
        if kind.is_dir() {
            read_all(&found.path(), buffer);
        } else if kind.is_file() {
            let mut file = fs::File::open(found.path()).expect("a file");
            while file.read(buffer).expect("its content") > 0 {}
        }
    }
}
