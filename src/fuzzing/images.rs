//! Image archives and the JSON in them: what must hold of detecting, listing and planning.

use super::ingest::repair_checksums;
use crate::digest::Digest;
use crate::format::entry::{Entry, EntryKind, Time};
use crate::image::manifest::manifest_for;
use crate::image::plan::{ImagePlan, MAX_CANDIDATES, PlannedLayer};
use crate::image::source::{Detected, ImageSource, detect};
use crate::limits::Limits;
use crate::tar::Writer;
use std::io::{Read, Write};

/// Plans that are made of one archive.
const PLANS: usize = 8;

/// The first byte says what the rest is: an archive (0), an archive whose checksums are to be set right (1), or else
/// JSON documents, each up to a NUL: configuration, manifest, an index inside the index, `index.json`, `manifest.json`.
/// In them `@0` to `@3` stand for the digests of the earlier documents, with `#0` to `#3` for their lengths. A document
/// that is empty is left out. Whatever it is: no panic, bounded lists, and a plan only of what matches its digests.
pub fn image_archive(input: &[u8]) {
    plans(input);
}

/// How many images could be planned.
pub(super) fn plans(input: &[u8]) -> usize {
    let Some((kind, rest)) = input.split_first() else { return 0 };
    let archive = match kind {
        0 => rest.to_vec(),
        1 => repair_checksums(rest),
        _ => documents(rest),
    };
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(&archive).expect("a temporary file");
    let limits = Limits::default().layer_size(16 << 20);
    let Ok(Detected::Image(source)) = detect(file.path(), &std::env::temp_dir(), &limits) else { return 0 };
    assert!(source.candidates().len() <= MAX_CANDIDATES);
    source.plans().take(PLANS).flatten().map(|plan| check(&source, &plan)).count()
}

fn check(source: &ImageSource, plan: &ImagePlan) {
    assert_eq!(Digest::of(&plan.config), plan.config_digest);
    if let Some(manifest) = &plan.manifest {
        assert_eq!(Digest::of(&manifest.json), manifest.digest);
        let config = (plan.config_digest, plan.config.len() as u64);
        manifest_for(config, &[], Some(&manifest.json)).expect("a manifest that was read is an object");
    }
    plan.layers.iter().take(PLANS).for_each(|layer| read_some(source, layer));
}

fn read_some(source: &ImageSource, layer: &PlannedLayer) {
    if let Ok(reader) = source.open_layer(layer) {
        let mut bytes = Vec::new();
        let read = reader.take(1 << 20).read_to_end(&mut bytes);
        assert!(read.is_err() || layer.size.is_none_or(|size| bytes.len() as u64 == size.min(1 << 20)));
    }
}

/// An archive of the documents in `input`.
fn documents(input: &[u8]) -> Vec<u8> {
    let mut known: Vec<Vec<u8>> = Vec::new();
    let mut writer = Writer::new(Vec::new(), &Limits::default());
    let mut add = |name: String, content: &[u8]| {
        let kind = EntryKind::File { size: content.len() as u64, sparse: None };
        let path = name.into_bytes();
        let entry = Entry { path, kind, mode: 0o644, uid: 0, gid: 0, mtime: Time::default(), xattrs: vec![] };
        writer.entry(&entry).and_then(|()| writer.content(content)).expect("a plain file");
    };
    for (number, document) in input.split(|&b| b == 0).take(5).enumerate() {
        let document = filled(document, &known);
        match number {
            _ if document.is_empty() => {}
            3 => {
                add("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#);
                add("index.json".into(), &document);
            }
            4 => add("manifest.json".into(), &document),
            _ => add(format!("blobs/sha256/{}", Digest::of(&document).hex()), &document),
        }
        known.push(document);
    }
    writer.finish().expect("a tar in memory")
}

/// A document with the digests and lengths of earlier ones in it.
fn filled(document: &[u8], known: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(document.len());
    let mut bytes = document.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let number = bytes.peek().and_then(|digit| known.get(usize::from(digit.wrapping_sub(b'0'))));
        match (byte, number) {
            (b'@', Some(earlier)) => out.extend_from_slice(Digest::of(earlier).to_string().as_bytes()),
            (b'#', Some(earlier)) => out.extend_from_slice(earlier.len().to_string().as_bytes()),
            _ => {
                out.push(byte);
                continue;
            }
        }
        bytes.next();
    }
    out
}
