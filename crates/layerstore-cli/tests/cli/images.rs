//! Images in and out, over the layout that the demonstration makes.

use crate::support::{Place, file, noise, small, with_layout};
use std::fs;

#[test]
fn an_image_goes_in_and_comes_out() {
    let (place, layout) = with_layout(&[]);
    let import = &place.json(&["import", &layout, "--ref", "demo:2", "--name", "app:2", "--keep-blobs"])[0];
    assert_eq!((import["name"].as_str(), import["layers"].as_array().map(Vec::len)), (Some("app:2"), Some(2)));
    let images = place.json(&["images"]);
    assert_eq!((images.len(), &images[0]["manifest"]), (1, &import["manifest"]));

    let export = &place.json(&["export", "app:2", "oci:out:reg:5000/app:2"])[0];
    assert_eq!((&export["identical"], &export["manifest"]), (&true.into(), &import["manifest"]));
    assert!(fs::read_to_string(place.path("out/index.json")).expect("index").contains("reg:5000/app:2"));
    let zstd = &place.json(&["export", "app:2", "app.tar", "--compress", "zstd"])[0];
    assert_eq!((&zstd["identical"], &zstd["config"]), (&false.into(), &import["config"]));

    let other = &place.json(&["import", "app.tar", "--name", "again"])[0];
    assert!(other["layers"].as_array().expect("layers").iter().all(|l| l["known"] == true), "{other}");
    assert_eq!(place.json(&["images"]).len(), 2);
}

#[test]
fn an_image_is_one_tree() {
    let (place, layout) = with_layout(&[]);
    place.ok(&["import", &layout, "--ref", "demo:1"]);
    let tree = place.text(&["ls", "demo:1"]);
    let mut sorted: Vec<_> = tree.lines().collect();
    assert!(sorted.is_sorted() && !tree.contains(".wh."), "{tree}");
    sorted.retain(|name| name.starts_with("files/sub/"));
    let from = place.path(sorted[0]);
    assert_eq!(place.ok(&["cat", "demo:1", sorted[0]]), fs::read(from).expect("read"));
    assert_eq!(place.fails(&["cat", "demo:1", "files/none"]).0, 3);

    let config = place.ok(&["inspect", "demo:1", "--config"]);
    let inspect = &place.json(&["inspect", "demo:1"])[0];
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&config).expect("JSON"), inspect["config"]);
    assert!(place.text(&["inspect", "demo:1"]).contains("env         PATH="));
}

#[test]
fn one_of_several_images_must_be_chosen_and_may_be_expected() {
    let (place, layout) = with_layout(&[]);
    let (code, error) = place.fails(&["import", &layout]);
    assert!(code == 5 && error["hint"].as_str().is_some_and(|h| h.contains("--ref")), "{error}");
    assert_eq!(place.fails(&["import", &layout, "--ref", "demo:3"]).0, 3);
    let wrong = format!("sha256:{}", "0".repeat(64));
    assert_eq!(place.fails(&["import", &layout, "--ref", "demo:1", "--expect", &wrong]).0, 5);
    let import = &place.json(&["import", &layout, "--ref", "demo:1"])[0];
    let manifest = import["manifest"].as_str().expect("a digest");
    place.ok(&["import", &layout, "--ref", "demo:1", "--expect", manifest]);
}

#[test]
fn several_names_of_one_image_are_no_ambiguity() {
    let (place, layout) = with_layout(&[]);
    for name in ["a", "b"] {
        place.ok(&["import", &layout, "--ref", "demo:1", "--name", name]);
    }
    let config = place.json(&["images"])[0]["config"].as_str().expect("a digest").to_owned();
    for (command, digest) in [("ls", &*config), ("inspect", &config[..15])] {
        place.ok(&[command, digest]);
    }
    place.ok(&["extract", &config[7..12], "root"]);
    let (code, error) = place.fails(&["rm", &config]);
    assert!(code == 5 && error["actual"] == "image a, image b", "which name goes must be said: {error}");
    let layer = place.json(&["layers"])[0]["diff_id"].as_str().expect("a digest").to_owned();
    let (code, error) = place.fails(&["extract", &layer, "other"]);
    assert!(code == 3 && error["error"].as_str().is_some_and(|e| e.contains("but a layer")), "{error}");
}

#[test]
fn rm_removes_all_or_nothing() {
    let (place, layout) = with_layout(&[]);
    for name in ["demo:1", "demo:2"] {
        place.ok(&["import", &layout, "--ref", name]);
    }
    assert_eq!(place.fails(&["rm", "demo:1", "demo:9"]).0, 3);
    assert_eq!(place.json(&["images"]).len(), 2);
    let layer = place.json(&["layers"])[0]["diff_id"].as_str().expect("a digest").to_owned();
    assert_eq!(place.fails(&["rm", &layer]).0, 6);
    place.ok(&["rm", "demo:1", "demo:2", "demo:1"]);
    assert!(place.json(&["images"]).is_empty());
    let usage = &place.json(&["usage"])[0];
    assert_eq!(usage["layers"], 4, "layers stay until garbage collection");
}

/// An unnamed image of one file, as a `docker save` archive of it; the archive, and the digits of its configuration.
fn archive(place: &Place, name: &str, content: &str, tags: &str) -> String {
    let mut layer = tar::Builder::new(Vec::new());
    file(&mut layer, "f", content.as_bytes());
    let layer = layer.into_inner().expect("a tar");
    let diff_id = layerstore::Digest::of(&layer);
    let config =
        format!(r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":["{diff_id}"]}}}}"#);
    let list = format!(r#"[{{"Config":"config.json","RepoTags":{tags},"Layers":["layer.tar"]}}]"#);
    let mut out = tar::Builder::new(Vec::new());
    file(&mut out, "README", b"an odd order");
    file(&mut out, "layer.tar", &layer);
    file(&mut out, "config.json", config.as_bytes());
    file(&mut out, "manifest.json", list.as_bytes());
    fs::write(place.path(name), out.into_inner().expect("a tar")).expect("written");
    layerstore::Digest::of(config.as_bytes()).hex()
}

#[test]
fn digests_and_names_are_not_taken_for_each_other() {
    let place = Place::new();
    let good = archive(&place, "good.tar", "good", "null");
    place.ok(&["import", "good.tar"]);
    assert_eq!(place.json(&["images"])[0]["name"], format!("sha256:{good}"));
    for name in [good.clone(), format!("sha256:{good}"), format!("sha512:{good}{good}")] {
        let (code, error) = place.fails(&["import", "good.tar", "--name", &name]);
        assert!(code == 5 && error["hint"].as_str().is_some_and(|hint| hint.contains("--name")), "{error}");
    }
    let short = &good[..12];
    let evil = archive(&place, "evil.tar", "evil", &format!("[\"{short}\"]"));
    place.ok(&["import", "evil.tar"]);
    let cat = |what: &str| place.text(&["cat", what, "f"]);
    assert_eq!((cat(short), cat(&good), cat(&evil)), ("good".into(), "good".into(), "evil".into()));
    // A few digits may be either, and so may any number of them where something is removed.
    place.ok(&["import", "evil.tar", "--name", &good[..5]]);
    assert_eq!(place.fails(&["cat", &good[..5], "f"]).0, 5);
    assert_eq!(place.fails(&["rm", short]).0, 5);
    assert_eq!(place.json(&["images"]).len(), 3);
    place.ok(&["rm", &format!("sha256:{good}")]);
    place.ok(&["rm", short, &good[..5]]);
    assert!(place.json(&["images"]).is_empty());
}

#[test]
fn an_image_without_a_name_is_exported_without_one() {
    let place = Place::new();
    let config = archive(&place, "in.tar", "x", "[]");
    place.ok(&["import", "in.tar"]);
    place.ok(&["export", &config, "oci:out"]);
    let index = fs::read_to_string(place.path("out/index.json")).expect("an index");
    assert!(!index.contains("annotations"), "{index}");
    assert_eq!(place.fails(&["export", &config, &format!("oci:other:sha256:{config}")]).0, 5);
    place.ok(&["export", &config, "oci:out:name:1"]);
    assert!(fs::read_to_string(place.path("out/index.json")).expect("an index").contains("name:1"));
}

/// What helps with one error misleads with another of the same kind.
#[test]
fn hints_are_true_or_there_is_none() {
    let place = Place::new();
    archive(&place, "in.tar", "x", "[]");
    let hint = |args: &[&str]| place.fails(args).1["hint"].as_str().unwrap_or_default().to_owned();
    fs::create_dir(place.path("dir")).expect("made");
    assert_eq!(hint(&["import", "dir"]), "", "a directory that holds no image");
    assert!(hint(&["import", "missing"]).contains("path"));
    fs::write(place.path("xz"), b"\xfd7zXZ\0\0\x04aaaaaaaaaaaaaaaaaaaa").expect("written");
    assert!(hint(&["import", "xz"]).contains("gzip or zstd"));
    fs::write(place.path("junk"), noise(5000)).expect("written");
    assert!(hint(&["import", "junk"]).contains("nothing was stored"));
    place.ok(&["import", "in.tar", "--name", "app"]);
    assert!(hint(&["import", "in.tar", "--ref", "other"]).contains("--ref"));
    assert_eq!(hint(&["ls", "app", "../x"]), "paths are counted from the root of the image or layer");
    fs::write(place.path("dir/file"), "x").expect("written");
    assert!(hint(&["extract", "app", "dir"]).contains("not there yet"));
    assert!(hint(&["export", "app", "oci:dir"]).contains("another destination"));
    assert!(hint(&["inspect", "none"]).contains("layerstore images"));
    assert!(hint(&["why", &"0".repeat(64)]).contains("layerstore images"));
    // An index whose image was not copied: no choice helps.
    fs::create_dir_all(place.path("layout/blobs/sha256")).expect("made");
    fs::write(place.path("layout/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("written");
    fs::write(place.path("layout/index.json"), r#"{"manifests":null}"#).expect("written");
    assert_eq!(hint(&["import", "layout"]), "");
}

#[test]
fn an_archive_that_became_a_layer_is_told() {
    let place = Place::new();
    archive(&place, "in.tar", "x", "[]");
    let piped = place.command(&["import", "-"]).stdin(fs::File::open(place.path("in.tar")).expect("opened")).output();
    let told = String::from_utf8(piped.expect("runs").stderr).expect("text");
    assert!(told.contains("note: ") && told.contains("image archive"), "{told}");
    let mut inner = tar::Builder::new(Vec::new());
    file(&mut inner, "image/oci-layout", b"{}");
    fs::write(place.path("inner.tar"), inner.into_inner().expect("a tar")).expect("written");
    assert!(place.json(&["import", "inner.tar"])[0]["note"].as_str().is_some_and(|n| n.contains("give the directory")));
    assert!(place.import_layer(&small()).len() == 64 && place.json(&["import", "layer.tar"])[0]["note"].is_null());
    let mut old = tar::Builder::new(Vec::new());
    let id = "0123456789abcdef".repeat(4);
    file(&mut old, format!("{id}/layer.tar"), &small());
    file(&mut old, "repositories", b"{}");
    fs::write(place.path("old.tar"), old.into_inner().expect("a tar")).expect("written");
    let (code, error) = place.fails(&["import", "old.tar"]);
    assert!(code == 7 && error["error"].as_str().is_some_and(|e| e.contains("before 1.10")), "{error}");
    let piped = place
        .command(&["import", "-", "--json"])
        .stdin(fs::File::open(place.path("old.tar")).expect("opened"))
        .output();
    let json: serde_json::Value = serde_json::from_slice(&piped.expect("runs").stdout).expect("JSON");
    assert!(json["note"].as_str().is_some_and(|note| note.contains("before 1.10")), "{json}");
}

#[test]
fn an_image_may_be_expected_by_either_algorithm() {
    let place = Place::new();
    let config = archive(&place, "in.tar", "x", "[]");
    place.ok(&["import", "in.tar", "--expect", &format!("sha256:{config}")]);
    for wrong in ["0".repeat(128), "f".repeat(128)] {
        assert_eq!(place.fails(&["import", "in.tar", "--expect", &format!("sha512:{wrong}")]).0, 5);
    }
    let document = place.ok(&["inspect", &config, "--config"]);
    let wide = "0".repeat(128).parse::<layerstore::OciDigest>();
    assert!(wide.is_err(), "digits alone are no digest here");
    let zero: layerstore::OciDigest = format!("sha512:{}", "0".repeat(128)).parse().expect("a digest");
    place.ok(&["import", "in.tar", "--expect", &zero.same_of(&document).to_string()]);
    assert!(place.text(&["inspect", &zero.same_of(&document).to_string()]).contains(&config));
}
