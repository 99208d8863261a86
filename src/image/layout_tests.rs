//! Layouts as written, read back by this library and by skopeo.

use super::*;
use crate::image::fixture::{at, layer, skopeo, write_image};
use crate::image::plan::Selector;
use crate::image::source::{Detected, ImageSource, detect};
use crate::limits::Limits;
use std::os::unix::fs::MetadataExt;

fn source(path: &Path) -> ImageSource {
    match detect(path, path.parent().unwrap(), &Limits::default()).unwrap() {
        Detected::Image(source) => source,
        Detected::Layer => panic!("taken for a layer"),
    }
}

fn names(path: &Path) -> Vec<Option<String>> {
    source(path).candidates().iter().map(|c| c.reference.clone()).collect()
}

fn write(mut out: LayoutWriter, name: &str, file: &str) {
    let entry = write_image(&mut out, "amd64", &[layer(file), layer("shared")]);
    out.finish(&[entry.reference(name)]).unwrap();
}

#[test]
fn a_directory_takes_more_images_and_replaces_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("layout");
    write(LayoutWriter::directory(&root).unwrap(), "a", "one");
    let first = source(&root).candidates()[0].manifest;
    let shared = || fs::read_dir(root.join("blobs/sha256")).unwrap().map(|e| e.unwrap().metadata().unwrap().ino());
    let before: Vec<_> = shared().collect();
    write(LayoutWriter::directory(&root).unwrap(), "b", "one");
    assert!(shared().all(|inode| before.contains(&inode)), "blobs that are there are not written again");
    assert_eq!(names(&root), [Some("a".into()), Some("b".into())]);
    write(LayoutWriter::directory(&root).unwrap(), "a", "two");
    assert_eq!(names(&root), [Some("b".into()), Some("a".into())]);
    assert_ne!(source(&root).candidates()[1].manifest, first);
    let left: Vec<_> = fs::read_dir(&root).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "no temporary file stays: {left:?}");
    let mode = fs::metadata(root.join("index.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o444 & !0o022, 0o444 & mode, "readable as other files are: {mode:o}");
}

#[test]
fn a_damaged_blob_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let mut out = LayoutWriter::directory(dir.path()).unwrap();
    let digest = out.bytes(b"content").unwrap();
    let place = dir.path().join(blob_name(digest));
    for damaged in ["cut", "cOntent"] {
        fs::write(&place, damaged).unwrap();
        out.bytes(b"content").unwrap();
        assert_eq!(fs::read(&place).unwrap(), b"content");
    }
}

#[test]
fn the_index_keeps_what_it_does_not_know() {
    let old =
        json!({ "schemaVersion": 2, "annotations": { "x": "y" }, "manifests": [{ "mediaType": "other", "z": 1 }] });
    let entry = IndexEntry::new(Digest::of(b"m"), 1).reference("a").platform("linux/arm/v7".parse().unwrap());
    let new = index(Some(old.to_string().as_bytes()), &[entry]).unwrap();
    let new: Value = serde_json::from_slice(&new).unwrap();
    assert_eq!((&new["annotations"], &new["manifests"][0]), (&old["annotations"], &old["manifests"][0]));
    let platform = json!({ "os": "linux", "architecture": "arm", "variant": "v7" });
    assert_eq!(new["manifests"][1]["platform"], platform);
    for bad in [&b"[]"[..], b"{", br#"{"manifests":1}"#] {
        assert_eq!(index(Some(bad), &[]).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}

#[test]
fn what_is_there_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "precious").unwrap();
    let kind = |r: Result<LayoutWriter>| r.err().map(|e| e.kind());
    assert_eq!(kind(LayoutWriter::directory(dir.path())), Some(ErrorKind::AlreadyExists));
    assert_eq!(kind(LayoutWriter::archive(&dir.path().join("file"))), Some(ErrorKind::AlreadyExists));
    // The file may also come to be in the meantime.
    let path = dir.path().join("late");
    let out = LayoutWriter::archive(&path).unwrap();
    fs::write(&path, "precious").unwrap();
    assert_eq!(out.finish(&[]).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn archives_of_the_same_images_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let paths = ["1.tar", "2.tar"].map(|name| dir.path().join(name));
    for path in &paths {
        write(LayoutWriter::archive(path).unwrap(), "example.com/a:1", "one");
    }
    assert!(fs::read(&paths[0]).unwrap() == fs::read(&paths[1]).unwrap());
    let plan = source(&paths[0]).select(&Selector::default()).unwrap();
    assert_eq!((plan.reference.as_deref(), plan.layers.len()), (Some("example.com/a:1"), 2));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary file stays");
}

#[test]
fn a_manifest_never_written_can_not_be_in_an_archive() {
    let dir = tempfile::tempdir().unwrap();
    let out = LayoutWriter::archive(&dir.path().join("x")).unwrap();
    assert_eq!(out.finish(&[IndexEntry::new(Digest::of(b""), 0)]).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn skopeo_reads_what_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (layout, archive) = (dir.path().join("layout"), dir.path().join("a.tar"));
    write(LayoutWriter::directory(&layout).unwrap(), "a", "one");
    write(LayoutWriter::archive(&archive).unwrap(), "example.com/a:1", "one");
    let sources = [
        at("oci", &layout, "a"),
        at("oci-archive", &archive, "example.com/a:1"),
        at("docker-archive", &archive, "example.com/a:1"),
    ];
    for (i, from) in sources.iter().enumerate() {
        let to = dir.path().join(format!("copy{i}"));
        if !skopeo(&["copy", from, &at("oci", &to, "x")]) {
            return;
        }
        let (ours, copy) = (source(&layout), source(&to));
        let diff_ids = |s: &ImageSource| {
            let plan = s.select(&Selector::default()).unwrap();
            plan.layers.iter().map(|l| l.diff_id).collect::<Vec<_>>()
        };
        assert_eq!(diff_ids(&ours), diff_ids(&copy), "{from}");
    }
}
