//! Damage anywhere in a store gives an error, never other bytes.

mod support;

use layerstore::ErrorKind;
use std::fs;
use support::sound::{Sound, files, flip, read_all, sound};

const FIRST_PACK: u64 = 4096;

/// The same error wherever it is met: the store is corrupt.
fn assert_corrupt(sound: &Sound, what: &str) {
    let errors = read_all(sound);
    assert!(!errors.is_empty(), "{what} went unnoticed");
    for e in &errors {
        assert_eq!(e.kind(), ErrorKind::Corrupt, "{what}: {e:?}");
    }
}

/// Bytes of a pack that reads depend on: its header, and of each chunk what is stored. Taken from the database.
fn pack_bytes_in_use(sound: &Sound) -> Vec<std::ops::Range<u64>> {
    let db = rusqlite::Connection::open(sound.root.join("index.db")).expect("the database");
    let mut query = db.prepare("SELECT block, stored FROM chunks").expect("a query");
    let chunks = query.query_map([], |r| Ok((r.get::<_, u32>(0)?, r.get::<_, u32>(1)?))).expect("rows");
    let stored = chunks.map(|row| {
        let (block, stored) = row.expect("a row");
        let (start, codec, len) = (u64::from(block) * 4096, stored >> 24, u64::from(stored & 0xff_ffff));
        let start = if codec == 0 { start } else { start + len.next_multiple_of(4096) - len };
        start..start + len
    });
    let header = FIRST_PACK..FIRST_PACK + 56;
    stored.chain([header]).collect()
}

/// Some places of a file, or all if it is small.
fn places(range: std::ops::Range<u64>) -> impl Iterator<Item = u64> {
    let step = ((range.end - range.start) / 40).max(1);
    let last = range.end - 1;
    range.step_by(step as usize).chain([last])
}

#[test]
fn a_sound_store_has_no_errors() {
    let sound = sound();
    assert!(read_all(&sound).is_empty());
    let kinds: Vec<_> = files(&sound).iter().filter_map(|p| p.parent()?.file_name().map(|n| n.to_owned())).collect();
    assert!(["packs", "layers", "blobs"].iter().all(|kind| kinds.iter().any(|k| k == kind)));
}

#[test]
fn a_flipped_byte_of_a_pack_is_noticed() {
    let sound = sound();
    let pack = sound.root.join("packs/00000001000.pack");
    // A damaged version is refused as another version, which tests of golden stores look at.
    let version = FIRST_PACK + 8..FIRST_PACK + 12;
    for place in pack_bytes_in_use(&sound).into_iter().flat_map(places).filter(|p| !version.contains(p)) {
        flip(&pack, place);
        assert_corrupt(&sound, &format!("byte {place} of the pack"));
        flip(&pack, place);
    }
    assert!(read_all(&sound).is_empty(), "the pack was not put back");
}

/// Reads need neither a pack's table nor its padding: damage there must not disturb them, or give other bytes.
#[test]
fn damage_that_no_read_needs_disturbs_none() {
    let sound = sound();
    let pack = sound.root.join("packs/00000001000.pack");
    let end = fs::metadata(&pack).expect("the pack").len();
    let table = pack_bytes_in_use(&sound).iter().map(|r| r.end.next_multiple_of(4096)).max().expect("chunks");
    for place in places(table..end) {
        flip(&pack, place);
        assert!(read_all(&sound).is_empty(), "byte {place} of the pack");
        flip(&pack, place);
    }
}

#[test]
fn a_flipped_byte_of_any_other_file_is_noticed() {
    let sound = sound();
    for path in files(&sound).into_iter().filter(|p| !p.to_string_lossy().ends_with(".pack")) {
        let len = fs::metadata(&path).expect("a file").len();
        for place in places(0..len) {
            flip(&path, place);
            let what = format!("byte {place} of {}", path.display());
            let errors = read_all(&sound);
            assert!(!errors.is_empty(), "{what} went unnoticed");
            // A version is damaged too, but says so in its own way.
            let trailer = len.saturating_sub(136);
            let versions = [8..12, trailer + 8..trailer + 12];
            let version = versions.iter().any(|at| at.contains(&place)) || path.ends_with("STORE");
            for e in errors {
                let fits = e.kind() == ErrorKind::Corrupt || version && e.kind() == ErrorKind::Unsupported;
                assert!(fits, "{what}: {e:?}");
            }
            flip(&path, place);
        }
    }
    assert!(read_all(&sound).is_empty(), "something was not put back");
}

#[test]
fn a_shortened_or_missing_file_is_noticed() {
    let sound = sound();
    for path in files(&sound) {
        let good = fs::read(&path).expect("a file");
        let what = path.display().to_string();
        let is_pack = what.ends_with(".pack");
        // The last block of a pack is table and footer.
        let lengths =
            if is_pack { vec![0, 5000, good.len() - 20_000] } else { vec![0, good.len() / 2, good.len() - 1] };
        for len in lengths {
            fs::write(&path, &good[..len]).expect("the file");
            assert_corrupt(&sound, &format!("{what} cut to {len}"));
        }
        if !path.ends_with("STORE") {
            fs::remove_file(&path).expect("the file");
            assert_corrupt(&sound, &format!("{what} removed"));
        }
        fs::write(&path, &good).expect("the file");
    }
    assert!(read_all(&sound).is_empty(), "something was not put back");
}

/// A store without `STORE` is one that was never finished; it is finished anew and what is in it stays readable.
#[test]
fn a_missing_store_file_loses_nothing() {
    let sound = sound();
    fs::remove_file(sound.root.join("STORE")).expect("the file");
    assert!(read_all(&sound).is_empty());
}

#[test]
fn a_damaged_database_is_noticed() {
    let sound = sound();
    let db = sound.root.join("index.db");
    rusqlite::Connection::open(&db)
        .and_then(|db| db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())))
        .expect("the database");
    let good = fs::read(&db).expect("the database");
    for len in [1, 100, good.len() / 2] {
        fs::write(&db, &good[..len]).expect("the database");
        assert_corrupt(&sound, &format!("database cut to {len}"));
    }
    fs::write(&db, [&[0x40], &good[1..]].concat()).expect("the database");
    assert_corrupt(&sound, "first byte of the database");
    fs::remove_file(&db).expect("the database");
    assert!(!read_all(&sound).is_empty(), "a missing database went unnoticed");
    fs::write(&db, &good).expect("the database");
    assert!(read_all(&sound).is_empty(), "the database was not put back");
}
