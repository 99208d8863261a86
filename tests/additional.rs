//! Extracted layers listed for containers/storage, kept from gc as long as they are.

mod support;

use layerstore::{AdditionalLayers, AdditionalOptions, Digest, ErrorKind, ImageInfo, Store};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::path::Path;
use std::sync::Arc;
use support::layers::Layer;
use support::{names, namespaced, write_image};

fn image(store: &Store, dir: &Path, tars: &[Vec<u8>], name: &str) -> ImageInfo {
    let layout = dir.join(format!("layout-{name}"));
    write_image(&layout, tars);
    let source = match layerstore::detect(&layout, dir, &Default::default()).expect("a layout") {
        layerstore::Detected::Image(source) => source,
        _ => panic!("not an image"),
    };
    store.import_image(&source, &Default::default(), Some(name), &Default::default(), &()).expect("imports");
    store.image(name).expect("there")
}

fn collect(store: &Store) {
    let plan = store.gc_plan(&Default::default(), &()).expect("plans");
    store.gc(&plan, &Default::default(), &()).expect("collects");
}

#[test]
fn layers_are_listed_and_kept() {
    if !namespaced("layers_are_listed_and_kept") {
        return;
    }
    let disk = support::disk_dir();
    let root = disk.path().join("store");
    let store = Arc::new(Store::open(&root).expect("a store"));
    let (low, high) = (Layer::new().file("a", b"a").file("b", b"b").tar(), Layer::new().file(".wh.a", b"").tar());
    let app = image(&store, disk.path(), &[low.clone(), high], "app");
    let dir = disk.path().join("additional");
    let layers = AdditionalLayers::open(store.clone(), &dir).expect("opens");
    let e = layers.add(&app, "app:1", &Default::default(), &()).expect_err("no full reference");
    assert_eq!(e.kind(), ErrorKind::InvalidInput);

    let reference = "docker.io/library/app:1";
    let added = layers.add(&app, reference, &Default::default(), &()).expect("lists");
    assert_eq!(added.dir, dir.canonicalize().expect("there").join("ZG9ja2VyLmlvL2xpYnJhcnkvYXBwOjE="));
    assert_eq!(added.layers.iter().map(|l| l.diff_id).collect::<Vec<_>>(), app.layers);
    let at = |n: usize| added.dir.join(added.layers[n].blob.to_string());
    assert_eq!(fs::read(at(0).join("diff/a")).expect("extracted"), b"a");
    let removed = fs::symlink_metadata(at(1).join("diff/a")).expect("a whiteout");
    assert!(std::os::unix::fs::FileTypeExt::is_char_device(&removed.file_type()));
    let info = fs::read_to_string(at(1).join("info")).expect("there");
    let digests = [added.layers[1].blob.to_string(), app.layers[1].to_string()];
    assert!(digests.iter().all(|digest| info.contains(digest)), "{info}");
    assert_eq!(fs::metadata(at(1).join("blob")).expect("there").len(), 0);

    // The blobs when they are wanted; what is there already stays.
    let with_blobs = AdditionalOptions::default().blobs(true);
    let again = layers.add(&app, reference, &with_blobs, &()).expect("lists");
    for layer in &again.layers {
        let blob = fs::read(added.dir.join(layer.blob.to_string()).join("blob")).expect("there");
        assert_eq!((layer.has_blob, Digest::of(&blob).into()), (true, layer.blob));
    }

    // As long as it is listed nothing goes, even when the image does.
    store.remove_image("app").expect("there");
    collect(&store);
    assert_eq!(fs::read(at(0).join("diff/b")).expect("kept"), b"b");
    assert_eq!(layers.list().expect("lists"), [reference]);

    // Another image under the same name takes its place.
    let other = image(&store, disk.path(), &[low], "other");
    layers.add(&other, reference, &Default::default(), &()).expect("lists");
    assert_eq!(fs::read_dir(&added.dir).expect("there").count(), 1);
    collect(&store);
    assert_eq!(names(&root, "trees").len(), 1);

    assert_eq!(layers.remove("docker.io/library/none").expect_err("not listed").kind(), ErrorKind::NotFound);
    layers.remove(reference).expect("listed");
    store.remove_image("other").expect("there");
    collect(&store);
    assert!(!added.dir.exists() && names(&root, "trees").is_empty() && names(&root, "layers").is_empty());
}

/// What a layer adds depends on what is below it, so that one directory cannot serve both places.
#[test]
fn a_layer_that_is_twice_in_an_image_is_not_listed() {
    if !namespaced("a_layer_that_is_twice_in_an_image_is_not_listed") {
        return;
    }
    let disk = support::disk_dir();
    let store = Arc::new(Store::open(disk.path().join("store")).expect("a store"));
    let (same, between) = (Layer::new().file("a", b"a").tar(), Layer::new().file("a", b"other").tar());
    let app = image(&store, disk.path(), &[same.clone(), between, same], "app");
    let layers = AdditionalLayers::open(store, &disk.path().join("additional")).expect("opens");
    let added = layers.add(&app, "localhost/app", &Default::default(), &()).expect("lists");
    assert_eq!(added.layers.iter().map(|l| l.diff_id).collect::<Vec<_>>(), app.layers[1..2]);
    assert_eq!(fs::read_dir(&added.dir).expect("there").count(), 1);
}

/// Whoever may write to the directory of listings puts something in the way, at each level. What it leads to stays as it
/// is, and so does what no listing made.
#[test]
fn what_others_put_into_the_directory_is_neither_followed_nor_removed() {
    if !namespaced("what_others_put_into_the_directory_is_neither_followed_nor_removed") {
        return;
    }
    let disk = support::disk_dir();
    let store = Arc::new(Store::open(disk.path().join("store")).expect("a store"));
    let app = image(&store, disk.path(), &[Layer::new().file("a", b"a").tar()], "app");
    let (victim, dir) = (disk.path().join("victim"), disk.path().join("additional"));
    fs::create_dir_all(victim.join("precious")).expect("made");
    fs::write(victim.join("precious/info"), "mine").expect("written");
    let layers = AdditionalLayers::open(store, &dir).expect("opens");
    let reference = "localhost/app";
    let add = || layers.add(&app, reference, &Default::default(), &());
    let added = add().expect("lists");
    let layer = added.dir.join(added.layers[0].blob.to_string());
    let untouched = |after: &str| {
        assert_eq!(fs::read(victim.join("precious/info")).expect(after), b"mine", "{after}");
        assert_eq!(fs::read_dir(&victim).expect(after).count(), 1, "{after}");
    };

    // The image's directory, and then that of the layer, become a symlink.
    for at in [&added.dir, &layer] {
        let aside = disk.path().join("aside");
        fs::rename(at, &aside).expect("renamed");
        symlink(if at == &layer { victim.join("precious") } else { victim.clone() }, at).expect("linked");
        assert_eq!(add().expect_err("a symlink").kind(), ErrorKind::FailedPrecondition);
        untouched("a symlink in the place of a directory");
        fs::remove_file(at).expect("removed");
        fs::rename(&aside, at).expect("renamed");
    }
    // A directory of somebody else.
    chown(&layer, Some(65_534), Some(65_534)).expect("root");
    assert_eq!(add().expect_err("of another user").kind(), ErrorKind::FailedPrecondition);
    chown(&layer, Some(0), Some(0)).expect("root");

    // Files: links, a second name and a FIFO give way; what they lead to is not written to.
    let (info, blob) = (layer.join("info"), layer.join("blob"));
    let good = fs::read(&info).expect("there");
    let replace = |with: &dyn Fn(&Path)| {
        for name in [&info, &blob, &layer.join(".new")] {
            let _ = fs::remove_file(name);
            with(name);
        }
        add().expect("lists");
        assert_eq!(fs::read(&info).expect("there"), good);
        assert!(fs::symlink_metadata(&blob).expect("there").is_file());
        untouched("a file");
    };
    replace(&|name| symlink(victim.join("precious/info"), name).expect("linked"));
    replace(&|name| fs::hard_link(victim.join("precious/info"), name).expect("linked"));
    replace(&|name| mknodat(CWD, name, FileType::Fifo, Mode::RWXU, 0).expect("made"));
    fs::remove_file(layer.join("diff")).expect("there");
    symlink(&victim, layer.join("diff")).expect("linked");
    add().expect("lists");
    assert_eq!(fs::read(layer.join("diff/a")).expect("of the layer"), b"a");

    // Directories that no listing made stay, also those that are called as one.
    let named_as_one = added.dir.join(Digest::of(b"other").to_string());
    fs::create_dir_all(named_as_one.join("kept")).expect("made");
    symlink(&victim, added.dir.join(Digest::of(b"link").to_string())).expect("linked");
    fs::create_dir(added.dir.join("kept")).expect("made");
    add().expect("lists");
    assert!(named_as_one.join("kept").is_dir() && added.dir.join("kept").is_dir());
    assert_eq!(layers.remove(reference).expect_err("things are left").kind(), ErrorKind::FailedPrecondition);
    assert!(!layer.exists() && named_as_one.join("kept").is_dir() && added.dir.join("kept").is_dir());
    assert!(layers.list().expect("lists").is_empty(), "it is listed no longer all the same");
    untouched("removal");
}

#[test]
fn the_directory_is_the_one_that_was_opened() {
    if !namespaced("the_directory_is_the_one_that_was_opened") {
        return;
    }
    let disk = support::disk_dir();
    let store = Arc::new(Store::open(disk.path().join("store")).expect("a store"));
    let app = image(&store, disk.path(), &[Layer::new().file("a", b"a").tar()], "app");
    let (dir, moved, victim) = (disk.path().join("dir"), disk.path().join("moved"), disk.path().join("victim"));
    fs::create_dir(&victim).expect("made");
    let layers = AdditionalLayers::open(store, &dir).expect("opens");
    fs::rename(&dir, &moved).expect("renamed");
    symlink(&victim, &dir).expect("linked");
    layers.add(&app, "localhost/app", &Default::default(), &()).expect("lists");
    layers.remove("localhost/app").expect("listed");
    layers.add(&app, "localhost/app", &Default::default(), &()).expect("lists");
    assert_eq!(fs::read_dir(&victim).expect("there").count(), 0);
    assert_eq!(fs::read_dir(&moved).expect("there").count(), 1);
}
