//! The hostile suite against a real store: what is refused leaves nothing behind, what is taken comes out as it came in.

#[path = "hostile/mod.rs"]
mod suite;
mod support;

use layerstore::{Digest, ErrorKind, ImportOptions, Store};
use std::io::Read;
use suite::{Case, NEED_A_LOWER_LAYER, Verdict, build, cases};
use support::{assert_empty, assert_refusal, compress, content_files, import, names, store, try_export};

/// The first pack of a store: if anything had kept addresses, it could not have this name.
const FIRST_PACK: &str = "00000001000.pack";

fn good_layer() -> Vec<u8> {
    [build::file("good", b"good content"), vec![0; 1024]].concat()
}

fn named(verdict: Verdict) -> Vec<&'static Case> {
    cases().filter(|case| case.verdict == verdict).collect()
}

#[test]
fn there_are_as_many_cases_as_the_page_says() {
    assert_eq!((named(Verdict::Reject).len(), named(Verdict::Safe).len()), (67, 42));
}

#[test]
fn what_is_refused_leaves_nothing() {
    let (_dir, store) = store();
    for case in named(Verdict::Reject) {
        let options = ImportOptions::default().keep_blobs(true);
        let name = case.name;
        match store.import_layer(&(case.build)()[..], &options, &()) {
            Ok(_) => panic!("{name} was taken, but: {}", case.reason),
            Err(e) => assert_refusal(&e, name),
        }
        assert_empty(&store, name);
    }
    import(&store, &good_layer());
    assert_eq!(names(store.path(), "packs"), [FIRST_PACK]);
}

/// The same with content before the fault, enough that packs have been begun.
#[test]
fn what_is_refused_late_leaves_nothing() {
    let (_dir, store) = store();
    let begun: Vec<u8> = (0..40).flat_map(|n| build::file(format!("begun/{n}"), support::noise(n, 300_000))).collect();
    let parts = ["dotdot.tar", "pax-dangling.tar", "trunc-body.tar", "chr00.tar", "unknown-type.tar"];
    for case in cases().filter(|case| parts.contains(&case.name)) {
        let layer = [&begun[..], &(case.build)()].concat();
        for compression in [layerstore::Compression::None, layerstore::Compression::Zstd] {
            let e = store.import_layer(&compress(&layer, compression)[..], &ImportOptions::default(), &());
            assert_refusal(&e.map(drop).expect_err(case.name), case.name);
            assert_empty(&store, case.name);
        }
    }
    import(&store, &good_layer());
    assert_eq!(names(store.path(), "packs"), [FIRST_PACK]);
}

#[test]
fn a_digest_other_than_expected_leaves_nothing() {
    let (_dir, store) = store();
    let (layer, other) = (good_layer(), Digest::of(b"other"));
    let wrong = [ImportOptions::default().expected_diff_id(other), ImportOptions::default().expected_blob(other)];
    for options in wrong {
        let e = store.import_layer(&layer[..], &options, &()).expect_err("another digest");
        assert_refusal(&e, "wrong digest");
        let found = Digest::of(&layer).to_string();
        assert_eq!(e.mismatch(), (Some(&*other.to_string()), Some(&*found)));
        assert_empty(&store, "wrong digest");
    }
}

/// bsdtar compresses into a pipe with zeros at the end.
#[test]
fn zeros_after_the_stream_count_for_the_digest() {
    let layer = good_layer();
    for compression in [layerstore::Compression::Gzip, layerstore::Compression::Zstd] {
        let bare = compress(&layer, compression);
        let padded = [&bare[..], &[0; 10_240]].concat();
        let (_dir, store) = store();
        let without = ImportOptions::default().expected_blob(Digest::of(&bare));
        let e = store.import_layer(&padded[..], &without, &()).expect_err("another digest");
        assert_refusal(&e, "zeros that the digest does not cover");
        assert_empty(&store, "zeros that the digest does not cover");
        let with = ImportOptions::default().expected_blob(Digest::of(&padded)).keep_blobs(true);
        store.import_layer(&padded[..], &with, &()).expect("zeros that the digest covers");
        assert!(try_export(&store, &Digest::of(&layer)).expect("a sound layer") == layer);
        let kept = store.path().join("blobs").join(Digest::of(&padded).hex());
        assert!(std::fs::read(kept).expect("a kept blob") == padded);
    }
}

#[test]
fn what_is_taken_comes_out_the_same() {
    let (_dir, store) = store();
    for case in named(Verdict::Safe) {
        let name = case.name;
        let blob = (case.build)();
        let done = store.import_layer(&blob[..], &ImportOptions::default(), &());
        let done = done.unwrap_or_else(|e| panic!("{name} was refused: {e}")).0;
        let mut tar = Vec::new();
        if case.is_plain() {
            tar.clone_from(&blob);
        } else {
            flate2::read::MultiGzDecoder::new(&blob[..]).read_to_end(&mut tar).expect("a gzip blob");
        }
        assert_eq!(done.diff_id, Digest::of(&tar), "{name}");
        let back = try_export(&store, &done.diff_id).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(back == tar, "{name}: exported otherwise than imported");
        check_entries(&store, &done.diff_id, name);
        let composed = store.root(&[done.diff_id]);
        match NEED_A_LOWER_LAYER.contains(&name) {
            true => assert_refusal(&composed.map(drop).expect_err(name), name),
            false => drop(composed.unwrap_or_else(|e| panic!("{name} cannot be composed: {e}"))),
        }
    }
    assert!(content_files(store.path()).keys().all(|path| !path.starts_with("tmp")), "drafts left");
}

/// Small blobs must not become large trees: xattrs of zeros compress ten thousand times.
#[test]
fn attributes_are_limited_by_layer() {
    let (_dir, store) = store();
    let value = vec![0; 65_536];
    let records: Vec<_> = (0..15).map(|n| (format!("SCHILY.xattr.user.a{n}"), &value[..])).collect();
    let one = build::pax(&records);
    let layer = |files: u32| {
        let files: Vec<_> = (0..files).map(|n| [&one[..], &build::file(format!("f{n}"), b"")].concat()).collect();
        compress(&build::tar(&files), layerstore::Compression::Zstd)
    };
    let taken = import(&store, &layer(60));
    assert_eq!(store.root(&[taken.diff_id]).expect("composes").list().count(), 60);
    let (_dir, store) = support::store();
    let e = store.import_layer(&layer(80)[..], &ImportOptions::default(), &()).map(drop).expect_err("80 MB");
    assert_eq!(e.kind(), ErrorKind::LimitExceeded);
    assert!(e.subjects().iter().any(|s| s.starts_with("entry \"f68\" at byte")), "{e}");
    assert_empty(&store, "attributes");
}

/// Every entry can be listed, and every file read.
fn check_entries(store: &Store, diff_id: &Digest, name: &str) {
    let layer = store.layer(diff_id).expect(name);
    let mut count = 0;
    for entry in layer.entries().expect(name) {
        let entry = entry.expect(name);
        count += 1;
        if entry.entry.kind.stored_len() > 0 {
            let file = layer.open(&entry).expect(name);
            assert_eq!(file.copy_to(&mut std::io::sink()).expect(name), file.size(), "{name}");
        }
    }
    assert_eq!(count, layer.len(), "{name}");
}
