//! An exit code per kind of failure, and nothing left behind.

use crate::support::{Place, file, noise, small};
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};

fn kind(outcome: &(i32, serde_json::Value)) -> (i32, &str) {
    (outcome.0, outcome.1["kind"].as_str().unwrap_or_default())
}

#[test]
fn io_usage_and_not_found() {
    let place = Place::new();
    assert_eq!(kind(&place.fails(&["import", "missing.tar"])), (1, "io"));
    assert!(!place.path("store").exists(), "a mistyped path makes no store");
    assert_eq!(kind(&place.fails(&["frobnicate"])), (2, "usage"));
    assert_eq!(kind(&place.fails(&["import", "x", "--compress", "zstd:99"])), (2, "usage"));
    assert_eq!(kind(&place.fails(&["recompress", "--compress", "raw"])), (2, "usage"));
    let missing = place.fails(&["cat"]).1["error"].to_string();
    assert!(
        missing.contains("<NAME|DIFF_ID>") && missing.contains("<PATH>") && !missing.contains("Usage"),
        "{missing}"
    );
    for reader in [&["images"][..], &["ls", "x"], &["usage"], &["rm", "x"]] {
        assert_eq!(kind(&place.fails(reader)), (3, "not-found"));
    }
    assert!(!place.path("store").exists(), "only an import makes a store");
    let id = place.with_layer();
    assert_eq!(kind(&place.fails(&["ls", &id, "no/such"])), (3, "not-found"));
    assert_eq!(kind(&place.fails(&["ls", "0123456789"])), (3, "not-found"));
}

#[test]
fn nothing_is_overwritten() {
    let place = Place::new();
    let id = place.with_layer();
    fs::write(place.path("thesis"), "x").expect("written");
    assert_eq!(kind(&place.fails(&["export", &id, "thesis"])), (4, "already-exists"));
    assert_eq!(fs::read(place.path("thesis")).expect("read"), b"x");
}

#[test]
fn refused_input_leaves_nothing() {
    let place = Place::new();
    fs::write(place.path("junk"), noise(5000)).expect("written");
    assert_eq!(kind(&place.fails(&["import", "junk"])), (5, "invalid-input"));
    fs::write(place.path("layer.tar"), small()).expect("written");
    let wrong = format!("sha256:{}", "0".repeat(64));
    let refused = place.fails(&["import", "layer.tar", "--expect", &wrong]);
    assert_eq!((kind(&refused), refused.1["expected"].as_str()), ((5, "invalid-input"), Some(&*wrong)));
    assert_eq!(kind(&place.fails(&["import", "layer.tar", "--name", "x"])), (5, "invalid-input"));
    assert_eq!(kind(&place.fails(&["import", "-"])), (5, "invalid-input"), "nothing came");
    // What comes by a pipe may be an image; that is not what helps a layer.
    for (source, helps) in [("layer.tar", "diff_id"), ("-", "give its file")] {
        let mut command = place.command(&["import", source, "--ref", "app:1", "--json"]);
        command.stdin(fs::File::open(place.path("layer.tar")).expect("open"));
        let output = command.output().expect("runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(5) && text.contains(helps), "{text}");
    }
    fs::write(place.path("nothing"), "").expect("written");
    assert_eq!(kind(&place.fails(&["import", "nothing"])), (5, "invalid-input"));
    fs::write(place.path("xz"), b"\xfd7zXZ\0\0\x04aaaaaaaaaaaaaaaaaaaa").expect("written");
    assert_eq!(kind(&place.fails(&["import", "xz"])), (7, "unsupported"));
    let mut tar = tar::Builder::new(Vec::new());
    file(&mut tar, "x".repeat(2 << 20), b"");
    fs::write(place.path("long"), tar.into_inner().expect("a tar")).expect("written");
    assert_eq!(kind(&place.fails(&["import", "long"])), (10, "limit-exceeded"));
    assert!(place.json(&["layers"]).is_empty());
}

#[test]
fn an_open_store_is_refused() {
    let place = Place::new();
    place.with_layer();
    fs::set_permissions(place.path("store"), fs::Permissions::from_mode(0o755)).expect("changed");
    let refused = place.fails(&["layers"]);
    assert_eq!(kind(&refused), (6, "failed-precondition"));
}

#[test]
fn a_damaged_byte_is_found() {
    let place = Place::new();
    let id = place.with_layer();
    let packs = fs::read_dir(place.path("store/packs")).expect("packs").flatten();
    let pack = fs::File::options().read(true).write(true).open(packs.last().expect("a pack").path()).expect("opened");
    let len = pack.metadata().expect("metadata").len();
    // Noise is stored as it is, so its middle is content wherever the pack begins.
    let at = len - 300_000;
    let mut byte = [0];
    pack.read_exact_at(&mut byte, at).expect("read");
    pack.write_all_at(&[byte[0] ^ 1], at).expect("written");
    assert_eq!(kind(&place.fails(&["export", &id, "out.tar"])), (8, "corrupt"));
    let (code, error) = place.fails(&["cat", &id, "etc/big"]);
    assert!(code == 8 && error["hint"].as_str().is_some_and(|hint| hint.contains("fsck")), "{error}");
    assert!(!place.path("out.tar").exists(), "a file is there whole or not at all");
    let left = fs::read_dir(place.dir.path()).expect("listed").flatten().count();
    assert_eq!(left, 2, "the store and the layer it was made from");
}

#[test]
fn text_errors_have_causes_and_hints() {
    let place = Place::new();
    let output = place.run(&["import", "missing.tar"]);
    let text = String::from_utf8(output.stderr).expect("text");
    let lines: Vec<_> = text.lines().collect();
    let starts = |i: usize, with: &str| lines.get(i).is_some_and(|line| line.starts_with(with));
    assert!(starts(0, "error: missing.tar") && starts(1, "cause: ") && starts(2, "hint: "), "{text}");
}
