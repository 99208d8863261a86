//! fsck finds damage wherever it is, and says whom it hurts.

#[path = "hostile/build.rs"]
#[allow(dead_code, reason = "a part of the builders is wanted")]
mod build;
mod support;

use layerstore::{Digest, FsckOptions, FsckReport, Store};
use std::fs;
use std::os::unix::fs::FileExt;
use support::{import, noise, store, words};

fn full(store: &Store) -> FsckReport {
    store.fsck(&FsckOptions::default().full(true), &()).expect("not cancelled")
}

#[test]
fn damage_of_packs_and_records_is_found_and_names_the_layer() {
    let (_dir, store) = store();
    let small: Vec<_> = (0..20).map(|n| build::file(format!("etc/{n}"), words(n, 300))).collect();
    let tar = [small.concat(), build::file("noise", noise(1, 150_000)), vec![0; 1024]].concat();
    let layer: Digest = import(&store, &tar).diff_id;
    let clean = full(&store);
    assert!(clean.is_clean() && clean.counts.read > 0 && clean.counts.read == clean.counts.chunks, "{clean:?}");

    let files = support::content_files(store.path()).into_keys().map(|p| store.path().join(p));
    for path in files.filter(|p| p.is_file()) {
        let good = fs::read(&path).expect("a file");
        let places = (0..good.len()).step_by(if std::env::var_os("LAYERSTORE_LONG").is_some() { 1 } else { 997 });
        let file = fs::File::options().write(true).open(&path).expect("a file");
        let found = |what: &str| {
            let report = full(&store);
            assert!(report.findings.iter().any(|f| f.layers == [layer]), "{what} of {}: {report:?}", path.display());
        };
        for place in places.chain([good.len() - 1]) {
            file.write_all_at(&[good[place] ^ 0x40], place as u64).expect("a byte");
            found(&format!("byte {place}"));
            file.write_all_at(&good[place..=place], place as u64).expect("a byte");
        }
        file.set_len(good.len() as u64 - 1).expect("a cut");
        found("a cut");
        fs::remove_file(&path).expect("a file");
        found("loss");
        fs::write(&path, &good).expect("a file");
        assert!(full(&store).is_clean());
    }
}
