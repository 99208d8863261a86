//! What the kernel shows of EROFS images whose files lie in packs, against what the layers say.
//!
//! Needs root; every test mounts in a mount namespace of its own. `fsck.erofs` checks images where it is installed; those of
//! zstd where `$LAYERSTORE_FSCK_EROFS` names one that knows it (erofs-utils 1.8; `tests/tools/fsck-erofs.sh` gets it).

mod support;

use layerstore::{
    Advice, CommitOptions, Compress, DataRange, Detected, Digest, DirectIo, DriverKind, EntryKind, ErrorKind,
    ImportOptions, Labels, Limits, Selector, Snapshotter, SnapshotterOptions, Store, detect, mount_all, unmount,
};
use std::fs;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use support::cached::cached;
use support::layers::{Layer, assert_same, commit_chain, everything, expected, snapshotter, xattr};
use support::listing::list;
use support::{disk_dir, names, namespaced, needs, noise, words};

/// Imports a layer with its chunks stored like this.
fn import(store: &Store, layer: &mut Layer, compress: Compress) -> Digest {
    let options = ImportOptions::default().compress(compress);
    store.import_layer(&layer.tar()[..], &options, &()).expect("a good layer").0.diff_id
}

/// Mounts the layers as a view called `key`, runs `work` in it, and takes all of it away again.
fn view<T>(snapshots: &Snapshotter, layers: &[Digest], key: &str, work: impl FnOnce(&Path) -> T) -> T {
    let top = commit_chain(snapshots, layers);
    let mounts = snapshots.view(key, Some(&top), &Labels::new(), &()).expect("views");
    assert_eq!((mounts.len(), &mounts[0].kind[..]), (1, "bind"), "a view is the shared mount itself");
    let target = tempfile::tempdir_in(snapshots.store().path().parent().expect("a directory")).expect("a directory");
    mount_all(&mounts, target.path()).expect("mounts");
    let out = work(target.path());
    unmount(target.path()).expect("unmounts");
    snapshots.remove(key).expect("removes");
    out
}

fn images(store: &Store) -> Vec<PathBuf> {
    let dir = store.path().join("images");
    names(store.path(), "images").into_iter().filter(|n| n.ends_with(".erofs")).map(|n| dir.join(n)).collect()
}

/// The kernel reads files by the page and ahead; this reads them in odd places.
fn read_askew(path: &Path, content: &[u8]) {
    let file = fs::File::open(path).expect("open");
    let mut buffer = vec![0; 5000];
    for at in (0..content.len()).rev().step_by(33_331) {
        let len = file.read_at(&mut buffer, at as u64).expect("read");
        assert!(len > 0 && buffer[..len] == content[at..at + len], "{} at {at}", path.display());
    }
}

/// Chunks of every codec, in one file too; bundles that are tiny; a directory of many blocks.
fn shapes(store: &Store) -> Vec<Digest> {
    let mut layers = vec![];
    for (n, compress) in [Compress::Raw, Compress::Lz4, Compress::Zstd(3), Compress::Zstd(1)].into_iter().enumerate() {
        let n = n as u64;
        let mut layer = Layer::new();
        layer.file(&format!("text-{n}"), &words(n * 1_000_000, 900_001 + n as usize));
        layer.file(&format!("noise-{n}"), &noise(n, 1_000_003 + 1000 * n as usize));
        // Both kinds of chunk in turn, so that raw ones come first, last and between.
        let turns = |i: u64| if i.is_multiple_of(2) { noise(100 + i, 300_000) } else { words(i * 10_000_000, 300_000) };
        layer.file(&format!("turns-{n}"), &(n..n + 5).flat_map(turns).collect::<Vec<_>>());
        layer.file(&format!("turns-back-{n}"), &(n + 1..n + 7).flat_map(turns).collect::<Vec<_>>());
        layer.file(&format!("tiny-{n}"), &[n as u8 + 1]);
        layers.push(import(store, &mut layer, compress));
        // A layer of one tiny file has a tiny bundle.
        layers.push(import(store, Layer::new().file(&format!("alone-{n}"), &words(n, 3 + n as usize)), compress));
    }
    let mut layer = Layer::new();
    layer.dir("many", 0o755);
    for i in 0..3000u64 {
        layer.file(&format!("many/{}{i:04}", "n".repeat(i as usize % 240)), &words(i * 1000, (i * 13 % 5000) as usize));
    }
    // Lengths around the block's, where raw chunks end within or at the end of one.
    for len in [65_535, 65_536, 65_537, 69_632, 69_633, 131_071, 131_072, 131_073, 262_144, 262_145, 400_000] {
        layer.file(&format!("len-{len}"), &noise(len as u64, len)).file(&format!("text-len-{len}"), &words(7, len));
    }
    let long = "t".repeat(4095);
    layer.symlink("long", &long).symlink("longer", &long[..4000]).symlink("short", "s");
    for i in 0..40u8 {
        let kind = EntryKind::File { size: 1, sparse: None };
        let xattrs = vec![xattr("user.each", &[i]), xattr("user.same", b"shared by all")];
        layer.entry(&format!("x-{i}"), kind, |e| e.xattrs = xattrs, b"x");
    }
    let acl =
        [2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 4, 0, 4, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255];
    layer.entry(
        "acl",
        EntryKind::Directory,
        |e| (e.mode, e.xattrs) = (0o644, vec![xattr("system.posix_acl_access", &acl)]),
        &[],
    );
    layer.entry("big-x", EntryKind::Fifo, |e| e.xattrs = vec![xattr("trusted.big", &noise(5, 9000))], &[]);
    layers.push(import(store, &mut layer, Compress::Zstd(1)));
    // Other layers' chunks again, in other files and from the upper layer.
    let mut layer = Layer::new();
    layer.hardlink("again", "noise-0").file("copy", &words(0, 900_001)).file("tail", &noise(0, 500_000));
    layers.push(import(store, &mut layer, Compress::Lz4));
    layers
}

#[test]
fn every_shape_of_file_reads_as_its_layer_says() {
    if !namespaced("every_shape_of_file_reads_as_its_layer_says") {
        return;
    }
    let dir = disk_dir();
    let snapshots = snapshotter(&dir.path().join("store"), DriverKind::Erofs);
    let store = snapshots.store();
    let mut layers = shapes(store);
    layers.push(everything(store));
    let wanted = expected(store, &layers);
    let root = store.root(&layers).expect("the layers fit");
    view(&snapshots, &layers, "v", |mounted| {
        assert_same(&wanted, &list(mounted));
        for (path, line) in wanted.iter().filter(|(_, l)| l.mode & 0o170_000 == 0o100_000 && l.size < 10 << 20) {
            let mut content = Vec::with_capacity(line.size as usize);
            root.open(path).expect("a file").copy_to(&mut content).expect("its content");
            read_askew(&mounted.join(std::str::from_utf8(path).expect("plain names")), &content);
        }
        use std::os::unix::fs::MetadataExt;
        let sparse = fs::metadata(mounted.join("sparse")).expect("there");
        assert!(sparse.size() > 1 << 30 && fs::metadata(&images(store)[0]).expect("there").len() < 8 << 20);
    });
}

#[test]
fn sparse_files_are_held_inside_up_to_a_bound() {
    if !namespaced("sparse_files_are_held_inside_up_to_a_bound") {
        return;
    }
    let dir = disk_dir();
    let snapshots = snapshotter(&dir.path().join("store"), DriverKind::Erofs);
    let store = snapshots.store();
    let mut layer = Layer::new();
    let ranges = [(1, 10), (4096, 4096), (10_000, 70_000), (1 << 20, 200_000), ((1 << 36) - 1, 1)];
    let ranges: Vec<_> = ranges.into_iter().map(|(offset, len)| DataRange { offset, len }).collect();
    let len: u64 = ranges.iter().map(|r| r.len).sum();
    let content = noise(1, len as usize);
    layer.entry("far", EntryKind::File { size: 1 << 36, sparse: Some(ranges.clone()) }, |_| (), &content);
    let far = import(store, &mut layer, Compress::Zstd(1));
    view(&snapshots, &[far], "v", |mounted| {
        let file = fs::File::open(mounted.join("far")).expect("open");
        let mut from = 0;
        for range in &ranges {
            let mut read = vec![1; range.len as usize + 2];
            let at = range.offset.saturating_sub(1);
            let len = file.read_at(&mut read, at).expect("read");
            let (start, end) = ((range.offset - at) as usize, (range.offset - at + range.len) as usize);
            assert!(read[start..end] == content[from..from + range.len as usize], "{range:?}");
            assert!(read[..start].iter().chain(&read[end..len]).all(|b| *b == 0), "{range:?}");
            from += range.len as usize;
        }
    });
    let ranges = vec![DataRange { offset: 4096, len: 65 << 20 }];
    let kind = EntryKind::File { size: 1 << 30, sparse: Some(ranges) };
    layer.entry("full", kind, |_| (), &words(1, 65 << 20));
    let full = import(store, &mut layer, Compress::Zstd(1));
    let top = commit_chain(&snapshots, &[full]);
    let e = snapshots.view("w", Some(&top), &Labels::new(), &()).expect_err("more than an image holds");
    assert!(e.kind() == ErrorKind::Unsupported && e.to_string().contains("sparse"), "{e}");
    assert_eq!(e.advice(), Some(Advice::OtherDriver));
    drop(snapshots);
    what_no_image_holds_is_stacked_where_nobody_chose(&dir.path().join("store"), &top);
}

fn what_no_image_holds_is_stacked_where_nobody_chose(store: &Path, top: &str) {
    let auto = snapshotter(store, DriverKind::Auto);
    assert_eq!(auto.driver(), DriverKind::Erofs);
    let mounts = auto.view("x", Some(top), &Labels::new(), &()).expect("by the overlay driver");
    auto.prepare_unmade("y", Some(top), &Labels::new(), &()).expect("prepared");
    for (key, mounts) in
        [("x", mounts), ("y", auto.mounts("y", &()).expect("made")), ("x", auto.mounts("x", &()).expect("x"))]
    {
        let at = store.parent().expect("a parent").join(key);
        fs::create_dir_all(&at).expect("made");
        mount_all(&mounts, &at).expect("mounted");
        let file = fs::File::open(at.join("full")).expect("there");
        let mut read = vec![0; 4096 + 10];
        file.read_exact_at(&mut read, 0).expect("read");
        assert!(read[..4096].iter().all(|b| *b == 0) && read[4096..] == words(1, 65 << 20)[..10], "{key}");
        drop(file);
        unmount(&at).expect("unmounted");
    }
    assert!(auto.commit("z", "y", &CommitOptions::default(), &()).expect("committed").is_some());
}

/// Damage to the first bytes of a file, or to the last.
fn damage(path: &Path, at: i64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("open");
    let len = file.metadata().expect("stat").len();
    let at = if at < 0 { len.wrapping_add_signed(at) } else { at as u64 };
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 1], at).expect("write");
}

fn mounts_of(store: &Store) -> usize {
    let below = format!(" {}/", store.path().join("mounts").display());
    fs::read_to_string("/proc/self/mountinfo").expect("mounts").lines().filter(|line| line.contains(&below)).count()
}

fn unmount_all(store: &Store) {
    for name in names(store.path(), "mounts") {
        unmount(&store.path().join("mounts").join(name)).expect("unmounts");
    }
}

/// The same after a reboot, which takes the mounts away, and after damage to what can be made again.
#[test]
fn an_image_is_built_once_shared_and_made_anew_when_damaged() {
    if !namespaced("an_image_is_built_once_shared_and_made_anew_when_damaged") {
        return;
    }
    let dir = disk_dir();
    let snapshots = snapshotter(&dir.path().join("store"), DriverKind::Erofs);
    let store = snapshots.store();
    let layers = [everything(store), import(store, Layer::new().file("big", &noise(8, 200_000)), Compress::Raw)];
    let top = commit_chain(&snapshots, &layers);
    std::thread::scope(|s| {
        for i in 0..6 {
            let (snapshots, top) = (&snapshots, &top);
            s.spawn(move || snapshots.prepare(&format!("a{i}"), Some(top), &Labels::new(), &()).expect("prepares"));
        }
    });
    let image = images(store);
    assert_eq!((image.len(), mounts_of(store)), (1, 1));
    let before = fs::read(&image[0]).expect("the image");

    unmount_all(store);
    snapshots.mounts("a0", &()).expect("mounts");
    assert_eq!(mounts_of(store), 1, "what a reboot took is brought back");

    unmount_all(store);
    damage(&image[0], 5000);
    let wanted = expected(store, &layers);
    view(&snapshots, &layers, "v", |mounted| assert_same(&wanted, &list(mounted)));
    assert!(fs::read(&image[0]).expect("the image") == before, "the same layers and packs give the same bytes");

    unmount_all(store);
    let pack = store.path().join("packs").join(&names(store.path(), "packs")[0]);
    // In the footer, which every reader of the pack's table checks.
    damage(&pack, -50);
    let e = snapshots.view("w", Some(&top), &Labels::new(), &()).expect_err("a pack is damaged");
    assert!(e.kind() == ErrorKind::Corrupt && e.to_string().contains(".pack"), "{e}");
    assert_eq!(mounts_of(store), 0);
}

/// The options, as the kernel tells them, with which a store's image is mounted.
fn options_of(store: &Store) -> String {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("procfs");
    let mounts = store.path().join("mounts");
    let line = table.lines().find(|line| line.contains(mounts.to_str().expect("text"))).expect("a mount");
    line.rsplit(' ').next().expect("options").to_owned()
}

fn close(snapshots: Snapshotter, top: &str) {
    snapshots.remove(top).expect("removes");
    snapshots.close().expect("closes");
}

/// Whoever runs the store decides; where nobody does, the kernel's release.
#[test]
fn packs_are_read_past_the_page_cache_where_that_is_wanted() {
    if !namespaced("packs_are_read_past_the_page_cache_where_that_is_wanted") {
        return;
    }
    let dir = disk_dir();
    let store = Arc::new(Store::open(dir.path().join("store")).expect("a store"));
    let (large, small) = (noise(1, 4 << 20), words(2, 300));
    let layer = import(&store, Layer::new().file("large", &large).file("small", &small), Compress::Zstd(1));
    let packs = || {
        let packs = names(store.path(), "packs").into_iter();
        packs.map(|name| cached(&store.path().join("packs").join(name))).sum::<Option<u64>>()
    };
    if packs().is_none() {
        needs::leave_off("Linux 6.5, which tells what is cached");
    }
    for wanted in [DirectIo::On, DirectIo::Off, DirectIo::Auto] {
        let options = SnapshotterOptions::default().direct_io(wanted);
        let snapshots = support::layers::open(store.clone(), DriverKind::Erofs, &options);
        let used = snapshots.direct_io().expect("of the erofs driver").used;
        assert!(wanted == DirectIo::Auto || used == (wanted == DirectIo::On), "{wanted}");
        view(&snapshots, &[layer], "v", |root| {
            assert!(fs::read(root.join("large")).expect("reads") == large);
            assert!(fs::read(root.join("small")).expect("reads") == small);
            // The kernel does not tell the option among those of the mount.
            let bytes = packs().expect("asked before");
            assert!(if used { bytes < 64 << 10 } else { bytes > 1 << 20 }, "{wanted}: {bytes} bytes of packs cached");
        });
        close(snapshots, &layer.to_string());
    }
}

#[test]
fn compressed_blocks_are_dropped_of_zstd_alone() {
    if !namespaced("compressed_blocks_are_dropped_of_zstd_alone") {
        return;
    }
    let dir = disk_dir();
    for (compress, taken) in [(Compress::Zstd(1), true), (Compress::Lz4, false), (Compress::Raw, false)] {
        let store = Arc::new(Store::open(dir.path().join(format!("{compress:?}"))).expect("a store"));
        let text = words(1, 2_000_000);
        let layer = import(&store, Layer::new().file("text", &text), compress);
        let options = SnapshotterOptions::default().drop_compressed(true);
        let snapshots = support::layers::open(store.clone(), DriverKind::Erofs, &options);
        if taken {
            view(&snapshots, &[layer], "v", |root| {
                assert!(options_of(&store).contains("cache_strategy=disabled"), "{}", options_of(&store));
                assert!(fs::read(root.join("text")).expect("reads") == text);
            });
            close(snapshots, &layer.to_string());
            continue;
        }
        let top = commit_chain(&snapshots, &[layer]);
        let e = snapshots.view("v", Some(&top), &Labels::new(), &()).expect_err("refused");
        assert_eq!(e.kind(), ErrorKind::FailedPrecondition, "{e}");
        assert!(e.to_string().contains("zstd") && mounts_of(&store) == 0, "{e}");
    }
}

#[test]
fn a_store_on_tmpfs_is_refused_with_the_reason() {
    if !namespaced("a_store_on_tmpfs_is_refused_with_the_reason") {
        return;
    }
    let dir = disk_dir();
    rustix::mount::mount("tmpfs", dir.path(), "tmpfs", rustix::mount::MountFlags::empty(), None).expect("a tmpfs");
    let store = Arc::new(Store::open(dir.path().join("store")).expect("a store"));
    let options = SnapshotterOptions::default();
    let e = Snapshotter::open(store.clone(), &options.clone().driver(DriverKind::Erofs)).err().expect("refused");
    assert_eq!(e.kind(), ErrorKind::Unsupported);
    assert!(e.to_string().contains("tmpfs"), "{e}");
    let auto = Snapshotter::open(store, &options).expect("another driver");
    assert_eq!(auto.refused()[0].0, DriverKind::Erofs);
    drop(auto);
    unmount(dir.path()).expect("unmounts");
}

/// An image and its packs as one device, with the packs where the image says that they begin. erofs-utils (1.8.6, 1.9.4)
/// read compressed content of further devices from the first one.
fn flatten(store: &Store, image: &Path, flat: &Path) {
    // The superblock (`include/erofs_fs.h`) begins at 1024; these are offsets of fields in the file.
    const COMPATIBLE: usize = 1024 + 8;
    const BLOCKS: usize = 1024 + 36;
    const INCOMPATIBLE: usize = 1024 + 80;
    const DEVICES: usize = 1024 + 86;
    const CHECKSUM: u8 = 1;
    const DEVICE_TABLE: u8 = 8;
    let mut bytes = fs::read(image).expect("an image");
    let (len, tag_len) = (bytes.len() as u64, "00000001000".len());
    // Its device table comes right after the superblock; tags are names of packs.
    let table = bytes[..bytes.len().min(64 << 10)].to_vec();
    bytes[COMPATIBLE] &= !CHECKSUM;
    bytes[INCOMPATIBLE] &= !DEVICE_TABLE;
    bytes[DEVICES..DEVICES + 4].fill(0);
    fs::write(flat, &bytes).expect("written");
    let mut to = fs::File::options().write(true).open(flat).expect("a file");
    let packs = names(store.path(), "packs").into_iter();
    for name in packs.filter(|name| table.windows(tag_len).any(|tag| tag == &name.as_bytes()[..tag_len])) {
        let base = u64::from_str_radix(&name[..tag_len], 16).expect("an address");
        let mut pack = fs::File::open(store.path().join("packs").join(name)).expect("a pack");
        pack.seek(SeekFrom::Start(base)).expect("a file");
        to.seek(SeekFrom::Start(len + base)).expect("a file");
        std::io::copy(&mut pack, &mut to).expect("copied");
    }
    let blocks = u32::try_from(to.metadata().expect("a file").len() / 4096).expect("small images");
    to.write_all_at(&blocks.to_le_bytes(), BLOCKS as u64).expect("written");
}

/// `fsck.erofs` over all images, reading every file.
fn fsck(store: &Store, zstd: bool) {
    let newer = std::env::var_os("LAYERSTORE_FSCK_EROFS");
    if zstd && newer.is_none() {
        println!("skipped: fsck.erofs of zstd: LAYERSTORE_FSCK_EROFS names none that can");
        return;
    }
    let program = newer.unwrap_or("fsck.erofs".into());
    let dir = disk_dir();
    for image in images(store) {
        let flat = dir.path().join("flat");
        flatten(store, &image, &flat);
        let run = Command::new(&program).arg("--extract").arg(&flat).output();
        let Ok(output) = run else { return println!("skipped: {} is not installed", program.display()) };
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        if text.contains("unidentified incompatible feature") {
            return println!(
                "skipped: {} is too old; LAYERSTORE_FSCK_EROFS names none that is newer",
                program.display()
            );
        }
        assert!(output.status.success() && !text.contains("<E>"), "{}: {text}", image.display());
    }
}

#[test]
fn fsck_erofs_accepts_images() {
    if !namespaced("fsck_erofs_accepts_images") {
        return;
    }
    let dir = disk_dir();
    for (compress, zstd) in [(Compress::Lz4, false), (Compress::Zstd(1), true)] {
        let snapshots = snapshotter(&dir.path().join(format!("store-{zstd}")), DriverKind::Erofs);
        let store = snapshots.store();
        let mut layer = Layer::new();
        layer.file("text", &words(1, 400_000)).file("noise", &noise(1, 400_001)).dir("d", 0o700);
        for i in 0..300 {
            layer.file(&format!("d/{i}"), &words(i * 1000, i as usize * 7));
        }
        let layers = [import(store, &mut layer, compress), import(store, Layer::new().file("t", b"tiny"), compress)];
        view(&snapshots, &layers, "v", |_| fsck(store, zstd));
    }
}

/// Every image of `$LAYERSTORE_TEST_IMAGES`, all its files read through the mount.
#[test]
fn real_images_read_as_the_store_has_them() {
    if !namespaced("real_images_read_as_the_store_has_them") {
        return;
    }
    let layouts = support::test_images("real_images_read_as_the_store_has_them");
    if layouts.is_empty() {
        return;
    }
    let dir = disk_dir();
    let snapshots = snapshotter(&dir.path().join("store"), DriverKind::Erofs);
    let store = snapshots.store();
    for layout in layouts {
        let Detected::Image(source) = detect(&layout, dir.path(), &Limits::default()).expect("an OCI layout") else {
            continue;
        };
        store.import_image(&source, &Selector::default(), Some("i"), &ImportOptions::default(), &()).expect("imports");
        let layers = store.image("i").expect("the image").layers;
        let wanted = expected(store, &layers);
        let ran = view(&snapshots, &layers, "v", |mounted| {
            assert_same(&wanted, &list(mounted));
            run_programs(mounted)
        });
        println!("{}: {} names, ran {ran:?}", layout.display(), wanted.len());
        assert!(ran.contains(&"dpkg"), "images of Debian's packages have it");
    }
    fsck(store, true);
}

/// Runs what there is of these programs, of the image's own, in the mounted root.
fn run_programs(mounted: &Path) -> Vec<&'static str> {
    let programs = [
        (&["dpkg", "-l", "bash"][..], "bash"),
        (&["python3", "-c", "import json, ssl, sqlite3; print(json.dumps(6 * 7))"], "42"),
        (&["node", "-e", "console.log(require('zlib').gunzipSync(require('zlib').gzipSync('4')) + '2')"], "42"),
    ];
    let there = |program: &str| mounted.join("usr/bin").join(program).exists();
    let found = programs.into_iter().filter(|(command, _)| there(command[0]));
    found
        .filter(|_| support::needs::programs("programs of images", &["chroot"]))
        .map(|(command, says)| {
            let out = Command::new("chroot").arg(mounted).args(command).output().expect("chroot runs");
            let text = String::from_utf8_lossy(&out.stdout);
            assert!(out.status.success() && text.contains(says), "{command:?}: {text}{out:?}");
            command[0]
        })
        .collect()
}
