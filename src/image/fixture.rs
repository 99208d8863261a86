//! Small images and tars for the tests of this floor.

use crate::codec::media::Compression;
use crate::codec::writer::BlobWriter;
use crate::digest::{Digest, OciDigest};
use crate::error::{Error, Result};
use crate::image::export::{ExportOptions, ExportTarget};
use crate::image::import::ImageImport;
use crate::image::layout::{IndexEntry, LayoutWriter};
use crate::image::manifest::{LayerBlob, manifest_for};
use crate::image::plan::Selector;
use crate::image::source::{Detected, ImageSource, detect};
use crate::image::spec::{OCI_CONFIG, OCI_MANIFEST, REF_NAME};
use crate::layer::ImportOptions;
use crate::limits::Limits;
use crate::store::{ImageInfo, Store};
use crate::upkeep::GcOptions;
use serde_json::{Value, json};
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
        blobs.push(LayerBlob { digest: digest.into(), size, compression });
    }
    let config = config(architecture, layers);
    let digest = out.bytes(&config).unwrap();
    let manifest = manifest_for((digest, config.len() as u64), &blobs, None).unwrap();
    IndexEntry::new(out.bytes(&manifest).unwrap(), manifest.len() as u64)
}

/// A layout whose documents a test writes by hand.
pub(crate) struct Layout {
    pub(crate) dir: tempfile::TempDir,
    /// By which algorithm everything is named.
    pub(crate) algorithm: OciDigest,
}

impl Layout {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), algorithm: Digest::of(b"").into() }
    }

    pub(crate) fn sha512() -> Self {
        Self { algorithm: OciDigest::Sha512([0; 64]), ..Self::new() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a blob; its descriptor.
    pub(crate) fn put(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = self.algorithm.same_of(bytes);
        let path = self.path().join("blobs").join(digest.algorithm());
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join(digest.hex()), bytes).unwrap();
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    /// Writes a configuration of layers given as tars.
    pub(crate) fn config(&self, layers: &[Vec<u8>], more: &Value) -> Value {
        let diff_ids: Vec<_> = layers.iter().map(|tar| self.algorithm.same_of(tar)).collect();
        let mut config = json!({ "os": "linux", "architecture": "amd64", "config": {} });
        config["rootfs"] = json!({ "type": "layers", "diff_ids": diff_ids });
        merge(&mut config, more);
        self.put(OCI_CONFIG, config.to_string().as_bytes())
    }

    /// Writes an image; the descriptor of its manifest.
    pub(crate) fn image(&self, layers: &[Vec<u8>], compression: Compression, more: &Value) -> Value {
        let blob = |tar: &Vec<u8>| self.put(compression.media_type(), &compress(tar, compression));
        let mut manifest = json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST });
        manifest["config"] = self.config(layers, &json!({}));
        manifest["layers"] = layers.iter().map(blob).collect();
        merge(&mut manifest, more);
        self.put(OCI_MANIFEST, manifest.to_string().as_bytes())
    }

    /// Writes the index, and opens the layout.
    pub(crate) fn open(&self, manifests: Value) -> ImageSource {
        self.index(&json!({ "schemaVersion": 2, "manifests": manifests }));
        source(self.path())
    }

    pub(crate) fn index(&self, index: &Value) {
        std::fs::write(self.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        std::fs::write(self.path().join("index.json"), index.to_string()).unwrap();
    }
}

fn merge(into: &mut Value, more: &Value) {
    for (key, value) in more.as_object().into_iter().flatten() {
        into[key] = value.clone();
    }
}

/// The descriptor with a name.
pub(crate) fn named(mut descriptor: Value, name: &str) -> Value {
    descriptor["annotations"] = json!({ REF_NAME: name });
    descriptor
}

pub(crate) fn source(path: &Path) -> ImageSource {
    match detect(path, path.parent().unwrap(), &Limits::default()).unwrap() {
        Detected::Image(source) => source,
        Detected::Layer => panic!("{} was taken for a layer", path.display()),
    }
}

pub(crate) fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    (dir, store)
}

pub(crate) fn import_as(store: &Store, source: &ImageSource, name: Option<&str>, keep: bool) -> Result<ImageImport> {
    store.import_image(source, &Selector::default(), name, &ImportOptions::default().keep_blobs(keep), &())
}

pub(crate) fn exported(store: &Store, image: &ImageInfo, to: &Path) -> Value {
    let target = ExportTarget::Layout(to.to_owned());
    store.export_image(image, &target, &ExportOptions::default(), &()).unwrap();
    json_of(&to.join("index.json"))["manifests"][0].clone()
}

pub(crate) fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

pub(crate) fn collect(store: &Store) {
    let options = GcOptions::default();
    let plan = store.gc_plan(&options, &()).unwrap();
    store.gc(&plan, &options, &()).unwrap();
}

pub(crate) fn import(store: &Store, source: &ImageSource) -> Result<ImageImport> {
    import_as(store, source, None, true)
}

pub(crate) fn two() -> Vec<Vec<u8>> {
    vec![layer("one"), layer("two")]
}

/// A `docker save` archive of images with the given names, beside an index with other lists.
pub(crate) fn saved(images: &[(&str, Value)], manifests: Option<Value>) -> Result<ImageSource> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tar");
    let mut members = Vec::new();
    let mut put = |bytes: &[u8]| {
        let name = format!("blobs/sha256/{}", Digest::of(bytes).hex());
        members.push(member(b'0', &name, "", bytes));
        name
    };
    let mut list = Vec::new();
    for (content, tags) in images {
        let layers = [layer(content)];
        let config = put(&config("amd64", &layers));
        list.push(json!({ "Config": config, "RepoTags": tags, "Layers": [put(&layers[0])] }));
    }
    if let Some(manifests) = manifests {
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        members.push(member(b'0', "index.json", "", index.to_string().as_bytes()));
        members.push(member(b'0', "oci-layout", "", br#"{"imageLayoutVersion":"1.0.0"}"#));
    }
    members.push(member(b'0', "manifest.json", "", json!(list).to_string().as_bytes()));
    std::fs::write(&path, tar(&members)).unwrap();
    match detect(&path, dir.path(), &Limits::default())? {
        Detected::Image(source) => Ok(source),
        Detected::Layer => panic!("taken for a layer"),
    }
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
