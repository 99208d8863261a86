//! Images of the forms that other tools write: into a store, and out of it.

use super::*;
use crate::error::{Advice, ErrorKind};
use crate::image::export::{ExportOptions, ExportTarget};
use crate::image::fixture::{
    Layout, collect, compress, exported, import, import_as, json_of, layer, member, named, saved, source as open,
    store, tar, two,
};
use crate::image::source::{Detected, detect};
use crate::image::spec::{DOCKER_MANIFEST, OCI_INDEX};
use crate::limits::Limits;
use crate::upkeep::{FsckOptions, RebuildOptions};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// Everything is named by SHA-512: the export is the same layout, whether or not the blobs were kept.
#[test]
fn sha512_goes_in_and_out_the_same() {
    for keep in [true, false] {
        let (dir, store) = store();
        let layout = Layout::sha512();
        let mut manifest = layout.image(&two(), Compression::None, &json!({}));
        let source = layout.open(json!([named(manifest.clone(), "app:1")]));
        let done = import_as(&store, &source, None, keep).unwrap();
        assert!(done.layers.iter().map(|l| l.diff_id).eq(two().iter().map(|tar| Digest::of(tar))));
        let image = store.image("app:1").unwrap();
        let out = dir.path().join("out");
        let there = exported(&store, &image, &out);
        manifest["platform"] = json!({ "os": "linux", "architecture": "amd64" });
        assert_eq!(there, named(manifest, "app:1"));
        let names = |root: &Path| {
            let mut names: Vec<_> =
                fs::read_dir(root.join("blobs/sha512")).unwrap().map(|f| f.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!((names(&out), names(layout.path()).len()), (names(layout.path()), 4));
        // Read again, as the store knows nothing by SHA-512; it is the same image.
        let again = import_as(&store, &open(&out), Some("again"), keep).unwrap();
        assert_eq!((again.manifest, again.config), (done.manifest, done.config));
        assert!(again.layers.iter().all(|layer| layer.known));
        let digest = there["digest"].as_str().unwrap();
        for text in [digest, &digest[..20], &digest[7..]] {
            assert_eq!(store.image(text).unwrap().config, done.config, "{text}");
        }
        let archive = dir.path().join("out.tar");
        let target = ExportTarget::Archive(archive.clone());
        assert!(store.export_image(&image, &target, &ExportOptions::default(), &()).unwrap().identical);
        let selector = Selector::default().reference(digest);
        let plan = open(&archive).select(&selector).unwrap();
        assert_eq!((plan.config_digest, plan.layers.len()), (done.config, 2));
    }
}

/// Each document and each layer is verified by the digest that it is named by.
#[test]
fn sha512_is_verified() {
    let layout = Layout::sha512();
    let manifest = layout.image(&two(), Compression::Gzip, &json!({}));
    let source = layout.open(json!([manifest]));
    let blobs = layout.path().join("blobs/sha512");
    for found in fs::read_dir(&blobs).unwrap() {
        let path = found.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        let mut changed = bytes.clone();
        *changed.last_mut().unwrap() ^= 1;
        fs::write(&path, changed).unwrap();
        let (_dir, store) = store();
        assert_eq!(import(&store, &source).unwrap_err().kind(), ErrorKind::InvalidInput, "{}", path.display());
        assert!(store.images().unwrap().is_empty() && store.layers().unwrap().is_empty());
        fs::write(&path, bytes).unwrap();
    }
    // The blobs are right, and the configuration names another tar.
    let config = layout.config(&[layer("other"), layer("two")], &json!({}));
    let source = layout.open(json!([layout.image(&two(), Compression::Gzip, &json!({ "config": config }))]));
    let (_dir, store) = store();
    let e = import(&store, &source).unwrap_err();
    assert!(e.kind() == ErrorKind::InvalidInput && e.message().contains("diff_id"), "{e}");
}

#[test]
fn sha512_survives_upkeep() {
    let (dir, store) = store();
    let layout = Layout::sha512();
    let done = import(&store, &layout.open(json!([layout.image(&two(), Compression::Gzip, &json!({}))]))).unwrap();
    let name = done.name.clone();
    collect(&store);
    let fsck = FsckOptions::default().full(true).tars(true);
    assert!(store.fsck(&fsck, &()).unwrap().is_clean());
    let path = store.path().to_owned();
    drop(store);
    // Once with what the old database tells, and once with the tars alone.
    for lost in [false, true] {
        if lost {
            ["index.db", "index.db-wal", "index.db-shm"].iter().for_each(|file| drop(fs::remove_file(path.join(file))));
        }
        Store::rebuild(&path, &RebuildOptions::default(), &()).unwrap();
        let store = Store::open(&path).unwrap();
        let image = store.image(&done.manifest.to_string()).unwrap();
        assert_eq!((image.name == name, image.config), (!lost, done.config));
        assert!(image.layers.iter().copied().eq(two().iter().map(|tar| Digest::of(tar))));
        assert!(store.fsck(&fsck, &()).unwrap().is_clean());
        exported(&store, &image, &dir.path().join(format!("out-{lost}")));
    }
}

/// What tools write that Go's libraries read: null, nothing and empty lists are the same.
#[test]
fn takes_the_forms_that_others_write() {
    let docker = json!({ "mediaType": DOCKER_MANIFEST });
    let forms: [(&str, Value); 6] = [
        ("as it should be", json!({})),
        ("no media type in the manifest", json!({ "mediaType": null })),
        ("Docker's", docker),
        ("null annotations", json!({ "annotations": null })),
        ("a null annotation", json!({ "annotations": { "a": null } })),
        ("a subject", json!({ "subject": { "mediaType": "x", "digest": "sha256:0", "size": 1 } })),
    ];
    for (what, more) in forms {
        let (_dir, store) = store();
        let layout = Layout::new();
        let done = import(&store, &layout.open(json!([layout.image(&two(), Compression::Gzip, &more)])));
        assert_eq!(done.map(|done| done.layers.len()).map_err(|e| e.to_string()), Ok(2), "{what}");
    }
    let descriptors: [(&str, Value); 5] = [
        ("no media type", json!({ "mediaType": null })),
        ("an empty media type", json!({ "mediaType": "" })),
        ("an empty platform", json!({ "platform": {} })),
        ("a null platform", json!({ "platform": null })),
        (
            "fields of a platform",
            json!({ "platform": { "os": "linux", "architecture": "amd64", "variant": null, "os.version": "1" } }),
        ),
    ];
    for (what, more) in descriptors {
        let layout = Layout::new();
        let mut manifest = layout.image(&two(), Compression::Gzip, &json!({}));
        for (key, value) in more.as_object().unwrap() {
            match value.is_null() && key == "mediaType" {
                true => drop(manifest.as_object_mut().unwrap().remove(key)),
                false => manifest[key] = value.clone(),
            }
        }
        let plan = layout.open(json!([manifest])).select(&Selector::default());
        assert_eq!(plan.map(|plan| plan.layers.len()).map_err(|e| e.to_string()), Ok(2), "{what}");
    }
}

#[test]
fn an_image_may_have_no_layers_in_any_form() {
    for none in [json!([]), json!(null)] {
        let (_dir, store) = store();
        let layout = Layout::new();
        let config = layout.config(&[], &json!({ "rootfs": { "type": "layers", "diff_ids": none } }));
        let source =
            layout.open(json!([layout.image(&[], Compression::Gzip, &json!({ "config": config, "layers": none }))]));
        assert!(import(&store, &source).unwrap().layers.is_empty());
    }
}

/// The bytes of a small document may be in its descriptor alone.
#[test]
fn takes_embedded_documents() {
    let layout = Layout::new();
    let mut manifest = layout.image(&two(), Compression::Gzip, &json!({}));
    let digest: OciDigest = manifest["digest"].as_str().unwrap().parse().unwrap();
    let path = layout.path().join("blobs/sha256").join(digest.hex());
    manifest["data"] = json!(crate::format::base64::encode(&fs::read(&path).unwrap()));
    fs::remove_file(&path).unwrap();
    assert!(layout.open(json!([manifest])).select(&Selector::default()).is_ok());
    manifest["data"] = json!(crate::format::base64::encode(b"{}"));
    let e = layout.open(json!([manifest])).select(&Selector::default()).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::InvalidInput, "{e}");
}

/// Old versions of Docker's registry lost the media types of configurations (moby/moby#22378, #30083).
#[test]
fn a_configuration_under_another_type_is_taken_if_all_else_is_an_images() {
    let types = ["application/octet-stream", "application/json", "text/html", "text/html; charset=utf-8", ""];
    for docker in [true, false] {
        for media_type in types {
            let layout = Layout::new();
            let mut config = layout.config(&two(), &json!({}));
            config["mediaType"] = json!(media_type);
            let mut more = json!({ "config": config });
            if docker {
                more["mediaType"] = json!(DOCKER_MANIFEST);
            }
            let plan = |more: &Value| {
                layout.open(json!([layout.image(&two(), Compression::Gzip, more)])).select(&Selector::default())
            };
            assert!(plan(&more).is_ok(), "{media_type}, {docker}");
            let kind = |more: &Value| plan(more).unwrap_err().kind();
            more["config"] = layout.put(media_type, b"{}");
            assert_eq!(kind(&more), ErrorKind::Unsupported, "an artifact's config");
            more["config"] = config.clone();
            more["layers"] = json!([layout.put("application/octet-stream", b"x"), layout.put("text/plain", b"y")]);
            assert_eq!(kind(&more), ErrorKind::Unsupported, "an artifact's layers");
            if !docker {
                let more = json!({ "config": config, "artifactType": "application/x" });
                assert_eq!(kind(&more), ErrorKind::Unsupported, "what says that it is an artifact");
            }
        }
    }
}

/// `podman push --add-compression gzip,zstd` (containerd/containerd#14000).
#[test]
fn of_one_configuration_in_two_compressions_the_faster_is_taken() {
    let (_dir, store) = store();
    let layout = Layout::new();
    let image = |compression| layout.image(&two(), compression, &json!({}));
    let (gzip, zstd) = (image(Compression::Gzip), image(Compression::Zstd));
    for list in [[&gzip, &zstd], [&zstd, &gzip]] {
        let index = layout.put(OCI_INDEX, json!({ "schemaVersion": 2, "manifests": list }).to_string().as_bytes());
        let source = layout.open(json!([named(index, "both")]));
        let done = import(&store, &source).unwrap();
        assert_eq!((json!(done.manifest), json!(done.passed_over)), (zstd["digest"].clone(), json!([gzip["digest"]])));
        let plan = source.select(&Selector::default().reference(gzip["digest"].as_str().unwrap())).unwrap();
        assert!(plan.passed_over.is_empty() && json!(plan.manifest.unwrap().digest) == gzip["digest"]);
    }
    // Two names are two images, and so are two configurations.
    let e = layout.open(json!([named(gzip.clone(), "a"), named(zstd.clone(), "b")])).select(&Selector::default());
    assert_eq!(e.unwrap_err().advice(), Some(Advice::ChooseByName));
    let other = layout.image(&[layer("other")], Compression::Zstd, &json!({}));
    let e = layout.open(json!([gzip.clone(), other])).select(&Selector::default());
    assert_eq!(e.unwrap_err().advice(), Some(Advice::ChooseByDigest));
    // One whose layers were not copied is none.
    let digest: OciDigest = zstd["digest"].as_str().unwrap().parse().unwrap();
    let manifest = json_of(&layout.path().join("blobs/sha256").join(digest.hex()));
    let blob = manifest["layers"][0]["digest"].as_str().unwrap();
    fs::remove_file(layout.path().join("blobs/sha256").join(&blob[7..])).unwrap();
    let plan = layout.open(json!([gzip, zstd])).select(&Selector::default()).unwrap();
    assert_eq!(json!(plan.manifest.unwrap().digest), gzip["digest"]);
}

/// Docker 25.0.0 writes `"manifests": null` beside a good manifest.json (moby/moby#47210).
#[test]
fn a_list_of_docker_counts_beside_an_index_without_images() {
    for manifests in [json!(null), json!([])] {
        let source = saved(&[("one", json!(null))], Some(manifests)).unwrap();
        let (_dir, store) = store();
        assert_eq!(import(&store, &source).unwrap().layers[0].diff_id, Digest::of(&layer("one")));
    }
    let unnamed = saved(&[("one", json!(null)), ("two", json!([]))], None).unwrap();
    let e = unnamed.select(&Selector::default()).unwrap_err();
    for image in ["one", "two"] {
        let config = Digest::of(&crate::image::fixture::config("amd64", &[layer(image)]));
        assert!(e.message().contains(&config.hex()) && e.advice() == Some(Advice::ChooseByDigest), "{e}");
        for text in [config.to_string(), config.hex()] {
            assert_eq!(unnamed.select(&Selector::default().reference(text)).unwrap().config_digest, config);
        }
    }
}

/// moby/moby#51389: an index that lacks images, or names of images, which manifest.json has.
#[test]
fn nothing_that_one_of_two_lists_has_is_dropped() {
    let layout = Layout::new();
    let first = layout.image(&[layer("one")], Compression::None, &json!({}));
    let add = |images: Value, manifests: Value| {
        layout.index(&json!({ "schemaVersion": 2, "manifests": manifests }));
        fs::write(layout.path().join("manifest.json"), images.to_string()).unwrap();
        open(layout.path())
    };
    let docker = |content: &str, tags: Value| {
        let blob = |bytes: &[u8]| {
            layout.put("", bytes);
            format!("blobs/sha256/{}", Digest::of(bytes).hex())
        };
        let layers = [layer(content)];
        let config = layout.config(&layers, &json!({}));
        let config = config["digest"].as_str().unwrap().replace(':', "/");
        json!({ "Config": format!("blobs/{config}"), "RepoTags": tags, "Layers": [blob(&layers[0])] })
    };
    let names = |source: &ImageSource| -> Vec<(Option<String>, bool)> {
        source.candidates().iter().map(|c| (c.reference.clone(), c.manifest.is_some())).collect()
    };
    let name = |name: &str| Some(name.to_owned());
    let source = add(
        json!([docker("one", json!(["a:1", "b:1"])), docker("two", json!(["c:1"]))]),
        json!([named(first.clone(), "docker.io/library/a:1")]),
    );
    let all = [(name("docker.io/library/a:1"), true), (name("b:1"), true), (name("c:1"), false)];
    assert_eq!(names(&source), all);
    for (tag, content) in [("a:1", "one"), ("b:1", "one"), ("c:1", "two")] {
        let plan = source.select(&Selector::default().reference(tag)).unwrap();
        assert!(plan.layers[0].diff_id == Digest::of(&layer(content)), "{tag}");
        assert_eq!(plan.manifest.is_some(), content == "one");
    }
    assert_eq!(source.plans().count(), 2, "each image once");
    // The same image is not listed twice, and one without a name gets it.
    assert_eq!(names(&add(json!([docker("one", json!(["a:1"]))]), json!([first]))), [(name("a:1"), true)]);
    assert_eq!(names(&add(json!([docker("one", json!(null))]), json!([first]))), [(None, true)]);
    // What is not there is told only where nothing fits.
    let gone = json!([{ "Config": "gone", "RepoTags": ["gone:1"], "Layers": [] }]);
    let source = add(gone, json!([first]));
    assert!(source.select(&Selector::default()).is_ok());
    let e = source.select(&Selector::default().reference("gone:1")).unwrap_err();
    assert!(e.message().contains("passed over: gone:1"), "{e}");
    // Any other file of this name beside a good layout says nothing.
    for other in [json!({ "name": "a web site" }), json!(null), json!([1])] {
        assert_eq!(names(&add(other, json!([first]))), [(None, true)]);
    }
}

/// `skopeo copy ... dir:DIR`: the manifest itself is in manifest.json.
#[test]
fn a_directory_without_an_index_is_told() {
    let layout = Layout::new();
    let manifest = layout.image(&two(), Compression::Gzip, &json!({}));
    let digest: OciDigest = manifest["digest"].as_str().unwrap().parse().unwrap();
    fs::copy(layout.path().join("blobs/sha256").join(digest.hex()), layout.path().join("manifest.json")).unwrap();
    let e = detect(layout.path(), layout.path(), &Limits::default()).err().unwrap();
    assert!(e.kind() == ErrorKind::Unsupported && e.message().contains("dir:"), "{e}");
}

#[test]
fn tells_what_was_passed_over() {
    let layout = Layout::new();
    let (gone, other) = (Digest::of(b"gone"), Digest::of(b"other"));
    let absent = json!({ "mediaType": crate::image::spec::OCI_MANIFEST, "digest": gone, "size": 4, "platform": { "os": "linux", "architecture": "arm64" } });
    let unknown = json!({ "mediaType": "application/x\u{1b}", "digest": other, "size": 4 });
    let index = json!({ "schemaVersion": 2, "manifests": [absent, unknown] });
    let index = layout.put(OCI_INDEX, index.to_string().as_bytes());
    let e = layout.open(json!([index])).select(&Selector::default()).unwrap_err();
    assert_eq!((e.kind(), e.advice()), (ErrorKind::NotFound, None));
    let message = e.message();
    assert!(message.contains(&format!("{gone} (linux/arm64, not in the layout)")), "{message}");
    assert!(message.contains(&other.to_string()) && !message.contains('\u{1b}'), "{message}");
    let e = layout.open(json!([])).select(&Selector::default()).unwrap_err();
    assert_eq!(e.message(), "there is no image");
}

/// Archives that are images and have their list where it is not looked for first, and those that are none.
#[test]
fn tells_archives_from_layers_wherever_their_list_stands() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tar");
    let found = |members: &[Vec<u8>], compression: Compression| {
        fs::write(&path, compress(&tar(members), compression)).unwrap();
        let found = detect(&path, dir.path(), &Limits::default());
        found.map(|found| matches!(found, Detected::Image(_))).map_err(|e| e.kind())
    };
    let (one, config) = (layer("one"), crate::image::fixture::config("amd64", &[layer("one")]));
    let list = json!([{ "Config": "config.json", "RepoTags": ["app:1"], "Layers": ["a.tar"] }]).to_string();
    let file = |name: &str, bytes: &[u8]| member(b'0', name, "", bytes);
    let odd = |before: usize| -> Vec<_> {
        let before = (0..before).map(|n| file(&format!("readme-{n}"), b"x"));
        before
            .chain([file("a.tar", &one), file("config.json", &config), file("manifest.json", list.as_bytes())])
            .collect()
    };
    // A layer of a web site, and one that keeps lists of packages.
    let site =
        [file("x", b"1"), file("y", b"1"), file("manifest.json", br#"{"name":"site"}"#), file("index.json", b"[]")];
    let id = "0123456789abcdef".repeat(4);
    let old =
        [file(&format!("{id}/VERSION"), b"1.0"), file(&format!("{id}/layer.tar"), &one), file("repositories", b"{}")];
    let mut late = vec![file("a", b""), file("b", b""), file("c", b""), file("d", b"")];
    late.extend(old.clone());
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        // Of a compressed archive only the first names are looked at.
        assert_eq!(found(&odd(20), compression), Ok(true), "{compression}");
        assert_eq!(found(&odd(200), compression), Ok(compression == Compression::None), "{compression}");
        assert_eq!(found(&site, compression), Ok(false), "{compression}");
        assert_eq!(found(&site[2..], compression), Ok(false), "{compression}");
        assert_eq!(found(&[file("repositories", b"{}"), file("etc/x", b"")], compression), Ok(false));
        assert_eq!(found(&old, compression), Err(ErrorKind::Unsupported), "{compression}");
    }
    assert_eq!(found(&late, Compression::None), Err(ErrorKind::Unsupported));
    let blob = file(&format!("blobs/sha256/{id}"), b"{}");
    for lacks in [file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#), file("index.json", b"{}")] {
        assert_eq!(found(&[blob.clone(), lacks], Compression::None), Err(ErrorKind::InvalidInput));
    }
}
