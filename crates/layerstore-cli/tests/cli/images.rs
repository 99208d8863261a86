//! Images in and out, over the layout that the demonstration makes.

use crate::support::with_layout;
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
