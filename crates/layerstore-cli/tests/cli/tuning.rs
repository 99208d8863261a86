//! Choosing how content is stored, measuring it, and storing it otherwise later.

use crate::support::{Place, with_layout};
use std::fs;

#[test]
fn bench_measures_what_it_is_given_and_leaves_nothing() {
    let (place, layout) = with_layout(&[]);
    let work = place.path("work");
    fs::create_dir(&work).expect("a directory");
    let work = work.to_str().expect("a plain name");
    let bench = &place.json(&["bench", &layout, "--ref", "demo:1", "--dir", work, "--chunks", "16:64:256"])[0];
    let bytes = |list: &str, what: &str| {
        let list = bench[list].as_array().expect("a list").iter();
        let found = list.clone().find(|one| one["what"].as_str().is_some_and(|w| w.starts_with(what)));
        let found = found.unwrap_or_else(|| panic!("no {what} in {bench}"));
        assert!(found["seconds"].as_f64() > Some(0.0), "{found}");
        found["bytes"].as_u64().expect("a number")
    };
    let tar = bytes("stages", "take the tars apart");
    assert!(tar > bytes("stages", "read the blobs") && tar > bytes("stages", "compress"));
    for whole in ["import on 1 CPU", "export the tars"] {
        assert_eq!(bytes("whole", whole), tar, "{whole}");
    }
    assert!(bench["disk"].as_u64() > Some(0));
    assert_eq!(fs::read_dir(work).expect("a directory").count(), 0);
    assert!(!place.path("store").exists(), "it has a store of its own");

    // By name, what the store has.
    place.ok(&["import", &layout, "--ref", "demo:1", "--name", "app"]);
    let text = place.text(&["bench", "app", "--dir", work, "--threads", "1"]);
    assert!(
        text.contains("SHA-256 of the tars") && text.contains("import again") && text.contains("on disk"),
        "{text}"
    );
    assert_eq!(place.fails(&["bench", "nothing"]).0, 3);
}

#[test]
fn a_store_is_made_with_chunks_of_a_size() {
    let place = Place::new();
    assert_eq!(place.fails(&["init", "--chunks", "64:100:256"]).0, 5);
    assert!(!place.path("store").exists());
    place.ok(&["init", "--chunks", "16:64:128", "--bundle", "128", "--small-file", "16"]);
    let store = fs::read_to_string(place.path("store/STORE")).expect("text");
    for line in
        ["chunk-min 16384\n", "chunk-avg 65536\n", "chunk-max 131072\n", "bundle 131072\n", "small-file 16384\n"]
    {
        assert!(store.contains(line), "{store}");
    }
    assert_eq!(place.fails(&["init"]).0, 4);
    place.with_layer();
}

#[test]
fn what_was_stored_in_haste_is_compressed_again() {
    let (place, layout) = with_layout(&[]);
    place.ok(&["import", &layout, "--ref", "demo:1", "--name", "app", "--compress", "raw"]);
    let packs = || place.json(&["usage"])[0]["disk"]["packs"].as_u64().expect("a number");
    let before = packs();
    let report = &place.json(&["recompress", "--no-gc"])[0];
    assert!(report["moved"].as_u64() > Some(0) && report["saved"].as_u64() > Some(0), "{report}");
    assert!(report["freed"].is_null() && packs() > before);
    place.ok(&["gc"]);
    assert!(packs() < before);
    assert!(place.text(&["recompress"]).starts_with("0 of "));
    assert!(place.json(&["fsck", "--full"]).iter().all(|line| line["kind"].is_null()));
}
