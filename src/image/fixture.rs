//! Small images and tars for the tests of this floor.

use crate::codec::media::Compression;
use crate::codec::writer::BlobWriter;
use crate::digest::Digest;
use crate::error::Error;
use crate::image::layout::{IndexEntry, LayoutWriter};
use crate::image::manifest::{LayerBlob, manifest_for};
use serde_json::json;
use std::io::Write;
use std::path::Path;
use std::process::Command;

/// A tar member with a right checksum, padded.
pub(crate) fn member(kind: u8, name: &str, link: &str, content: &[u8]) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..107].copy_from_slice(b"0000644");
    block[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    block[136..147].copy_from_slice(b"00000000000");
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link.as_bytes());
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    block.extend_from_slice(content);
    block.resize(block.len().next_multiple_of(512), 0);
    block
}

/// Sets the checksum of the header that `block` begins with.
pub(crate) fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block[..512].iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// A whole tar.
pub(crate) fn tar(members: &[Vec<u8>]) -> Vec<u8> {
    [members.concat(), vec![0; 1024]].concat()
}

/// A layer with one file.
pub(crate) fn layer(name: &str) -> Vec<u8> {
    tar(&[member(b'0', name, "", &name.as_bytes().repeat(200))])
}

pub(crate) fn compress(bytes: &[u8], compression: Compression) -> Vec<u8> {
    let mut writer = BlobWriter::new(Vec::new(), compression).unwrap();
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap().2
}

/// A config for layers given as tars.
pub(crate) fn config(architecture: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<_> = layers.iter().map(|tar| Digest::of(tar)).collect();
    let rootfs = json!({ "type": "layers", "diff_ids": diff_ids });
    let config = json!({ "os": "linux", "architecture": architecture, "config": {}, "rootfs": rootfs });
    config.to_string().into_bytes()
}

/// Writes an image; its entry without a name.
pub(crate) fn write_image(out: &mut LayoutWriter, architecture: &str, layers: &[Vec<u8>]) -> IndexEntry {
    let mut blobs = Vec::new();
    for (i, tar) in layers.iter().enumerate() {
        let compression = [Compression::Gzip, Compression::Zstd, Compression::None][i % 3];
        let bytes = compress(tar, compression);
        let write = |w: &mut dyn Write| w.write_all(&bytes).map_err(|e| Error::io("write", e));
        let (digest, size) = out.blob(write).unwrap();
        blobs.push(LayerBlob { digest, size, compression });
    }
    let config = config(architecture, layers);
    let digest = out.bytes(&config).unwrap();
    let manifest = manifest_for((digest, config.len() as u64), &blobs, None).unwrap();
    IndexEntry::new(out.bytes(&manifest).unwrap(), manifest.len() as u64)
}

/// Runs skopeo; false, with a note, if there is none.
pub(crate) fn skopeo(args: &[&str]) -> bool {
    let mut command = Command::new("skopeo");
    match command.args(["--insecure-policy"]).args(args).output() {
        Ok(output) => {
            assert!(output.status.success(), "skopeo {args:?}: {}", String::from_utf8_lossy(&output.stderr));
            true
        }
        Err(_) => {
            println!("skipped: skopeo is not installed");
            false
        }
    }
}

/// `transport:path:name`, as skopeo wants it.
pub(crate) fn at(transport: &str, path: &Path, name: &str) -> String {
    format!("{transport}:{}:{name}", path.display())
}
