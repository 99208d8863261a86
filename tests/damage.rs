//! Damage anywhere in a store gives an error, never other bytes.

#[path = "hostile/build.rs"]
#[allow(dead_code, reason = "a part of the builders is wanted")]
mod build;
mod support;

use layerstore::{
    Detected, Digest, ErrorKind, ExportOptions, ExportTarget, ImportOptions, Limits, Selector, Store, detect,
};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use support::{noise, words, write_image};
use tempfile::TempDir;

const FIRST_PACK: u64 = 4096;

/// A store with one image of two layers, its blobs kept, and what it held when it was sound.
struct Sound {
    dir: TempDir,
    root: PathBuf,
    tars: BTreeMap<Digest, Vec<u8>>,
}

fn tar(parts: &[Vec<u8>]) -> Vec<u8> {
    [parts.concat(), vec![0; 1024]].concat()
}

fn sound() -> Sound {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let small: Vec<_> = (0..40).map(|n| build::file(format!("etc/{n}"), words(n, 300))).collect();
    let first = tar(&[build::dir("etc/"), small.concat(), build::file("bin/noise", noise(1, 200_000))]);
    let second = tar(&[build::file("text", words(5, 400_000)), build::symlink("s", "etc/1"), build::file("e", "")]);
    let layout = dir.path().join("layout");
    write_image(&layout, &[first.clone(), second.clone()]);
    let root = dir.path().join("store");
    let store = Store::open(&root).expect("a store");
    let Ok(Detected::Image(source)) = detect(&layout, dir.path(), &Limits::default()) else { panic!("no image") };
    let options = ImportOptions::default().keep_blobs(true);
    store.import_image(&source, &Selector::default(), Some("i"), &options, &()).expect("a good image");
    let tars = [first, second].into_iter().map(|tar| (Digest::of(&tar), tar)).collect();
    Sound { dir, root, tars }
}

/// Reads everything the store has in every way there is. What it gives is right or an error; which errors there were.
fn read_all(sound: &Sound) -> Vec<layerstore::Error> {
    let mut errors = Vec::new();
    let store = match Store::open(&sound.root) {
        Ok(store) => store,
        Err(e) => return vec![e],
    };
    for (diff_id, tar) in &sound.tars {
        match support::try_export(&store, diff_id) {
            Ok(back) => assert!(back == *tar, "other bytes were exported"),
            Err(e) => errors.push(e),
        }
        if let Err(e) = read_files(&store, diff_id, tar) {
            errors.push(e);
        }
    }
    if let Err(e) = store.root(&sound.tars.keys().copied().collect::<Vec<_>>()) {
        errors.push(e);
    }
    let out = tempfile::tempdir_in(sound.dir.path()).expect("a directory");
    let exported = store.image("i").and_then(|image| {
        let config = store.image_config(&image)?;
        assert_eq!(Digest::of(&config), image.config, "other bytes were read");
        let target = ExportTarget::Layout(out.path().join("layout"));
        store.export_image(&image, &target, &ExportOptions::default(), &())
    });
    match exported {
        Ok(exported) => assert!(exported.identical, "another image was exported"),
        Err(e) => errors.push(e),
    }
    errors
}

/// Every file by itself, against the bytes in the tar.
fn read_files(store: &Store, diff_id: &Digest, tar: &[u8]) -> layerstore::Result<()> {
    let layer = store.layer(diff_id)?;
    for entry in layer.entries()? {
        let entry = entry?;
        if entry.entry.kind.stored_len() > 0 {
            let mut content = Vec::new();
            layer.open(&entry)?.copy_to(&mut content)?;
            let found = tar.windows(content.len().min(300)).any(|w| w == &content[..w.len()]);
            assert!(found, "other bytes were read");
        }
    }
    Ok(())
}

/// The same error wherever it is met: the store is corrupt.
fn assert_corrupt(sound: &Sound, what: &str) {
    let errors = read_all(sound);
    assert!(!errors.is_empty(), "{what} went unnoticed");
    for e in &errors {
        assert_eq!(e.kind(), ErrorKind::Corrupt, "{what}: {e:?}");
    }
}

fn flip(path: &Path, place: u64) {
    let file = fs::File::options().read(true).write(true).open(path).expect("a file of the store");
    let mut byte = [0];
    file.read_exact_at(&mut byte, place).expect("a byte of it");
    file.write_all_at(&[byte[0] ^ 0x40], place).expect("a byte of it");
}

/// Every file of the store that holds content, `STORE` included.
fn files(sound: &Sound) -> Vec<PathBuf> {
    let mut files: Vec<_> = support::content_files(&sound.root).into_keys().map(|p| sound.root.join(p)).collect();
    files.push(sound.root.join("STORE"));
    files
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
            let version = (8..12).contains(&place) || path.ends_with("STORE");
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
