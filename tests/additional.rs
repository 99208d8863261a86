//! Extracted layers listed for containers/storage, kept from gc as long as they are.

mod support;

use layerstore::{AdditionalLayers, AdditionalOptions, Digest, ErrorKind, ImageInfo, Store};
use std::fs;
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
