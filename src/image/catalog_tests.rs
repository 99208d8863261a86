//! Names and digests of images in a store, and what is made of images that are there.

use super::*;
use crate::codec::media::Compression;
use crate::image::append::AppendOptions;
use crate::image::export::{ExportOptions, ExportTarget};
use crate::image::fixture::{
    Layout, collect, exported, import, import_as, layer, named, saved, source as open, store, two,
};
use crate::image::import::ImageImport;
use crate::image::plan::Selector;
use crate::layer::ImportOptions;
use serde_json::{Value, json};
use std::fs;

/// SECURITY.md: the author of an image must not be able to pass off other content under a digest.
#[test]
fn no_image_gets_the_digest_of_another_as_its_name() {
    let (_dir, store) = store();
    let (good, evil) = (Layout::new(), Layout::new());
    let done =
        import(&store, &good.open(json!([good.image(&[layer("good")], Compression::Gzip, &json!({}))]))).unwrap();
    assert_eq!(done.name, done.config.to_string());
    let manifest = evil.image(&[layer("evil")], Compression::Gzip, &json!({}));
    let wide = OciDigest::Sha512([7; 64]);
    let more = [
        wide.to_string(),
        wide.hex(),
        done.config.hex().to_uppercase(),
        format!("sha256:{}", &done.config.hex()[..12]),
    ];
    let pinned = format!("app@{}", done.manifest);
    for name in digests(&done).iter().chain(&more).chain([&pinned]) {
        let refused = |result: Result<ImageImport>| {
            let e = result.expect_err(name);
            assert_eq!((e.kind(), e.advice()), (ErrorKind::InvalidInput, Some(Advice::OtherName)), "{name}: {e}");
        };
        refused(import(&store, &evil.open(json!([named(manifest.clone(), name)]))));
        let mut full = manifest.clone();
        full["annotations"] = json!({ "io.containerd.image.name": name });
        refused(import(&store, &evil.open(json!([full]))));
        refused(import_as(&store, &evil.open(json!([manifest.clone()])), Some(name), true));
        refused(import(&store, &saved(&[("evil", json!([name]))], None).unwrap()));
        let image = store.image_named(&done.name).unwrap();
        let e = store.append_layer(&image, name, &image.layers[0], &AppendOptions::default()).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::InvalidInput, "{name}: {e}");
    }
    assert_eq!(store.images().unwrap().len(), 1);
    // Digits that a tag may have are a name, which goes behind the digest that begins like it.
    let short = &done.config.hex()[..12];
    import_as(&store, &evil.open(json!([named(manifest.clone(), short)])), None, true).unwrap();
    assert_eq!(store.image(short).unwrap().config, done.config);
    assert_ne!(store.image_named(short).unwrap().config, done.config);
    let few = &done.config.hex()[..5];
    import_as(&store, &evil.open(json!([manifest])), Some(few), true).unwrap();
    assert_eq!(store.image(few).unwrap_err().kind(), ErrorKind::InvalidInput, "it may be either");
    for text in digests(&done) {
        assert_eq!(store.image(&text).unwrap().config, done.config);
    }
}

/// Names that were entered before such names were refused.
#[test]
fn a_full_digest_is_never_compared_with_names() {
    let (_dir, store) = store();
    let (good, evil) = (Layout::new(), Layout::new());
    let good =
        import(&store, &good.open(json!([good.image(&[layer("good")], Compression::Gzip, &json!({}))]))).unwrap();
    let manifest = evil.image(&[layer("evil")], Compression::Gzip, &json!({}));
    import_as(&store, &evil.open(json!([manifest])), Some("evil"), true).unwrap();
    for name in digests(&good).into_iter().filter(|name| *name != good.name) {
        let image = ImageInfo { name: name.clone(), ..store.image_named("evil").unwrap() };
        store.with_index(|index| index.write(|change| change.put_image(&image))).unwrap();
        assert_eq!(store.image(&name).unwrap().config, good.config, "{name}");
    }
}

/// Tools write the digest of an image that has no name where its name should be, as CRI does.
#[test]
fn its_own_digest_is_no_name() {
    let (dir, store) = store();
    let layout = Layout::new();
    let manifest = layout.image(&two(), Compression::Gzip, &json!({}));
    let plain = import(&store, &layout.open(json!([manifest.clone()]))).unwrap();
    for name in digests(&plain) {
        let done = import(&store, &layout.open(json!([named(manifest.clone(), &name)]))).unwrap();
        assert_eq!(done.name, plain.config.to_string());
    }
    let pinned = format!("example.com/app@{}", plain.manifest);
    assert_eq!(import(&store, &layout.open(json!([named(manifest, &pinned)]))).unwrap().name, pinned);
    // And an export of it has none (containerd/containerd#10681).
    let image = store.image(&plain.config.to_string()).unwrap();
    let unnamed = ImageInfo { name: plain.config.to_string(), ..image };
    assert_eq!(exported(&store, &unnamed, &dir.path().join("out"))["annotations"], Value::Null);
    let archive = dir.path().join("a.tar");
    store.export_image(&unnamed, &ExportTarget::Archive(archive.clone()), &ExportOptions::default(), &()).unwrap();
    let list = open(&archive);
    assert!(list.candidates().iter().all(|c| c.reference.is_none()));
    let bytes = fs::read(&archive).unwrap();
    let null: &[u8] = b"\"RepoTags\":null";
    assert!(bytes.windows(null.len()).any(|part| part == null));
    let named = ExportOptions::default().reference(plain.config.to_string());
    let e = store.export_image(&unnamed, &ExportTarget::Layout(dir.path().join("x")), &named, &()).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::InvalidInput);
}

/// Registries that have the base's blobs are sent the new layer alone.
#[test]
fn an_appended_image_keeps_the_blobs_of_its_base() {
    for (layout, keep) in [(Layout::new(), true), (Layout::sha512(), true), (Layout::new(), false)] {
        let (dir, store) = store();
        let more = json!({ "annotations": { "of": "the base" } });
        let base = layout.image(&two(), Compression::Gzip, &more);
        import_as(&store, &layout.open(json!([base.clone()])), Some("base"), keep).unwrap();
        let (added, _) = store.import_layer(&layer("three")[..], &ImportOptions::default(), &()).unwrap();
        let image = store.image("base").unwrap();
        let old: Value = serde_json::from_slice(&store.image_manifest(&image).unwrap()).unwrap();
        let new = store.append_layer(&image, "new", &added.diff_id, &AppendOptions::default()).unwrap();
        let manifest: Value = serde_json::from_slice(&store.image_manifest(&new).unwrap()).unwrap();
        assert_eq!(manifest["layers"][2]["digest"], json!(added.diff_id));
        assert_eq!(manifest["annotations"], Value::Null, "they are of the base");
        assert_eq!(manifest["layers"].as_array().unwrap()[..2] == old["layers"].as_array().unwrap()[..], keep);
        // The base goes, and the blobs stay with the layers.
        store.remove_image("base").unwrap();
        collect(&store);
        let out = dir.path().join("out");
        let there = exported(&store, &new, &out);
        assert!(there["digest"] == json!(new.manifest));
        assert!(open(&out).select(&Selector::default()).unwrap().layers.len() == 3);
    }
}

#[test]
fn prefixes_are_of_either_algorithm() {
    let (_dir, store) = store();
    let layout = Layout::new();
    let done = import(&store, &layout.open(json!([layout.image(&two(), Compression::Gzip, &json!({}))]))).unwrap();
    let bytes = store.image_config(&store.image_named(&done.name).unwrap()).unwrap();
    let wide = OciDigest::Sha512([0; 64]).same_of(&bytes);
    let found = |text: &str| store.images_by_digest(&DigestPrefix::parse(text).unwrap()).unwrap().len();
    assert_eq!((found(&wide.to_string()), found(&wide.hex()), found(&wide.to_string()[..15])), (1, 1, 1));
    assert_eq!((found(&format!("sha512:{}", "0".repeat(20))), found(&done.config.hex()[..4])), (0, 1));
}

/// The digests of an image: of its configuration and its manifest.
fn digests(import: &ImageImport) -> [String; 4] {
    let [config, manifest] = [import.config, import.manifest];
    [config.to_string(), config.hex(), manifest.to_string(), manifest.hex()]
}
