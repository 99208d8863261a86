//! A layer in, looked at, and out again.

use crate::support::{Place, noise, small};
use std::fs;

#[test]
fn a_layer_comes_back_bit_for_bit() {
    let place = Place::new();
    let id = place.with_layer();
    assert_eq!(place.ok(&["export", &id, "-"]), small());
    assert!(place.text(&["export", &id[..8], "out.tar"]).contains("sha256 is the diff_id"));
    assert_eq!(fs::read(place.path("out.tar")).expect("read"), small());
    let gzip = place.json(&["export", &id, "out.tar.gz", "--compress", "gzip"]);
    assert_eq!(gzip[0]["compression"], "gzip");
    let again = place.json(&["import", "out.tar.gz"]);
    assert_eq!((&again[0]["layer"]["known"], &again[0]["stats"]["new_raw"]), (&true.into(), &0.into()));
    assert_eq!(place.json(&["layers"]).len(), 1);
}

#[test]
fn ls_shows_types_whiteouts_and_names_as_they_are() {
    let place = Place::new();
    let id = place.with_layer();
    let long = String::from_utf8_lossy(&place.ok(&["ls", &id, "-l"])).into_owned();
    for line in [
        "drwxr-xr-x 7/8                 0 2023-11-14 22:13 etc\n",
        "-rw-r--r-- 7/8                 6 2023-11-14 22:13 etc/motd\n",
        "lrwxrwxrwx 7/8                 0 2023-11-14 22:13 etc/link -> motd\n",
        "hrw-r--r-- 7/8                 0 2023-11-14 22:13 etc/same link to etc/motd\n",
        "wrw-r--r-- 7/8                 0 2023-11-14 22:13 etc/.wh.gone  (removes gone)\n",
        "opt/.wh..wh..opq  (hides what lower layers have here)\n",
    ] {
        assert!(long.contains(line), "{line}{long}");
    }
    let plain = place.ok(&["ls", &id]);
    assert!(plain.windows(9).any(|bytes| bytes == b"etc/caf\xe9\n"), "bytes in a pipe are as they are");
    assert_eq!(place.text(&["ls", &id, "etc", "--depth", "0"]), "etc\n");

    let json = place.json(&["ls", &id, "/etc"]);
    assert_eq!(json.len(), 7);
    let latin = json.iter().find(|e| !e["path_b64"].is_null()).expect("one name is not UTF-8");
    assert_eq!((&latin["path_b64"], &latin["path"]), (&"ZXRjL2NhZuk=".into(), &"etc/caf\u{fffd}".into()));
    assert!(json.iter().any(|e| e["type"] == "whiteout" && e["removes"] == "gone"));
}

#[test]
fn cat_reads_files_and_hard_links_but_not_symlinks() {
    let place = Place::new();
    let id = place.with_layer();
    assert_eq!(place.ok(&["cat", &id, "/etc/big"]), noise(700_000));
    assert_eq!(place.text(&["cat", &id, "etc/same"]), "hello\n");
    let (code, error) = place.fails(&["cat", &id, "etc/link"]);
    assert!(code == 5 && error["hint"].as_str().is_some_and(|h| h.contains("motd")), "{error}");
}

#[test]
fn a_released_layer_is_released_once() {
    let place = Place::new();
    let id = place.with_layer();
    assert!(place.json(&["layers"])[0]["held"].as_bool().expect("held"));
    assert_eq!(place.text(&["rm", &id]), format!("removed layer sha256:{id}\n"));
    assert_eq!(place.fails(&["rm", &id]).0, 6);
}

#[test]
fn inspect_counts_what_a_layer_has() {
    let place = Place::new();
    let id = place.with_layer();
    let json = &place.json(&["inspect", &id])[0];
    assert_eq!(
        (&json["files"], &json["directories"], &json["links"], &json["whiteouts"]),
        (&3.into(), &1.into(), &2.into(), &2.into())
    );
    assert_eq!(json["tar_size"], small().len());
}
