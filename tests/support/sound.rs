//! A sound store to damage, and everything it can be asked.

use super::layers::Layer;
use super::{noise, words, write_image};
use layerstore::{Detected, Digest, ExportOptions, ExportTarget, ImportOptions, Limits, Selector, Store, detect};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A store with one image of two layers, its blobs kept, and what it held when it was sound.
pub(crate) struct Sound {
    pub(crate) dir: TempDir,
    pub(crate) root: PathBuf,
    pub(crate) tars: BTreeMap<Digest, Vec<u8>>,
}

/// With small files, a file of one and one of several chunks, compressed ones and others.
pub(crate) fn sound() -> Sound {
    sound_of(40, 200_000, 400_000)
}

/// As [`sound`], with so many small files, bytes of noise and bytes of text.
pub(crate) fn sound_of(small: u64, noisy: usize, text: usize) -> Sound {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (mut first, mut second) = (Layer::own(), Layer::own());
    first.dir("etc", 0o755);
    for n in 0..small {
        first.file(&format!("etc/{n}"), &words(n, 300));
    }
    first.file("bin/noise", &noise(1, noisy));
    second.file("text", &words(5, text)).symlink("s", "etc/1").file("e", b"");
    let tars = [first.tar(), second.tar()];
    let layout = dir.path().join("layout");
    write_image(&layout, &tars);
    let root = dir.path().join("store");
    let store = Store::open(&root).expect("a store");
    let Ok(Detected::Image(source)) = detect(&layout, dir.path(), &Limits::default()) else { panic!("no image") };
    let options = ImportOptions::default().keep_blobs(true);
    store.import_image(&source, &Selector::default(), Some("i"), &options, &()).expect("a good image");
    let tars = tars.into_iter().map(|tar| (Digest::of(&tar), tar)).collect();
    Sound { dir, root, tars }
}

/// Reads everything the store has in every way there is. What it gives is right or an error; which errors there were.
pub(crate) fn read_all(sound: &Sound) -> Vec<layerstore::Error> {
    let mut errors = Vec::new();
    let store = match Store::open(&sound.root) {
        Ok(store) => store,
        Err(e) => return vec![e],
    };
    for (diff_id, tar) in &sound.tars {
        match super::try_export(&store, diff_id) {
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

pub(crate) fn flip(path: &Path, place: u64) {
    let file = fs::File::options().read(true).write(true).open(path).expect("a file of the store");
    let mut byte = [0];
    file.read_exact_at(&mut byte, place).expect("a byte of it");
    file.write_all_at(&[byte[0] ^ 0x40], place).expect("a byte of it");
}

/// Every file of the store that holds content, `STORE` included.
pub(crate) fn files(sound: &Sound) -> Vec<PathBuf> {
    let mut files: Vec<_> = super::content_files(&sound.root).into_keys().map(|p| sound.root.join(p)).collect();
    files.push(sound.root.join("STORE"));
    files
}
