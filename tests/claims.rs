//! What a store holds is not undone or redefined by what comes later: races and manifests that claim too much.

mod support;

use layerstore::{
    Compression, Detected, Digest, ErrorKind, ExportOptions, ExportTarget, ImageImport, ImageSource, ImportOptions,
    Limits, Selector, Store, detect,
};
use serde_json::json;
use std::fs;
use std::io::{Cursor, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc;
use support::{compress, export, import, store, words};

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, *content).expect("works");
    }
    tar.into_inner().expect("works")
}

/// Gives its first part, then the second only when told to.
struct Halting {
    first: Cursor<Vec<u8>>,
    second: Cursor<Vec<u8>>,
    reached: mpsc::Sender<()>,
    go_on: mpsc::Receiver<()>,
    waited: bool,
}

impl Read for Halting {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.first.read(buffer)?;
        if n > 0 {
            return Ok(n);
        }
        if !std::mem::replace(&mut self.waited, true) {
            self.reached.send(()).expect("works");
            self.go_on.recv().expect("works");
        }
        self.second.read(buffer)
    }
}

#[test]
fn a_known_layer_keeps_the_record_that_was_acknowledged() {
    let (_dir, store) = store();
    let shared = words(1, 5000);
    let layer = tar(&[("x", &shared), ("y", &words(2, 5000)), ("big", &words(3, 3_000_000))]);
    let (reached, wait) = mpsc::channel();
    let (tell, go_on) = mpsc::channel();
    let (first, second) = layer.split_at(layer.len() / 2);
    let slow = Halting {
        first: Cursor::new(first.to_vec()),
        second: Cursor::new(second.to_vec()),
        reached,
        go_on,
        waited: false,
    };
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| store.import_layer(slow, &ImportOptions::default(), &()));
        wait.recv().expect("works");
        // Puts the shared file into another bundle, so that the two imports of the layer make different records.
        import(&store, &tar(&[("other", &shared)]));
        let quick = import(&store, &layer);
        let record = store.path().join("layers").join(format!("{}.layer", quick.diff_id.hex()));
        let inode = fs::metadata(&record).expect("works").ino();
        tell.send(()).expect("works");
        let slow = slow.join().expect("works").expect("works").0;
        assert!(slow.known && slow.diff_id == quick.diff_id);
        assert_eq!(fs::metadata(&record).expect("works").ino(), inode, "the record was replaced");
        assert_eq!(export(&store, &quick.diff_id), layer);
    });
}

fn blob(layout: &Path, bytes: &[u8]) -> Digest {
    let digest = Digest::of(bytes);
    fs::create_dir_all(layout.join("blobs/sha256")).expect("works");
    fs::write(layout.join("blobs/sha256").join(digest.hex()), bytes).expect("works");
    digest
}

/// An image of one layer whose configuration says `diff_id`, whatever the blob holds.
fn image(layout: &Path, gzip: &[u8], diff_id: Digest) -> ImageSource {
    let config = json!({
        "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    });
    let config = config.to_string().into_bytes();
    let descriptor = |media_type: &str, bytes: &[u8]| json!({ "mediaType": media_type, "digest": blob(layout, bytes), "size": bytes.len() });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", gzip)],
    });
    let manifest = manifest.to_string().into_bytes();
    let index = json!({
        "schemaVersion": 2,
        "manifests": [descriptor("application/vnd.oci.image.manifest.v1+json", &manifest)],
    });
    fs::write(layout.join("index.json"), index.to_string()).expect("works");
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("works");
    source(layout)
}

fn source(path: &Path) -> ImageSource {
    match detect(path, &std::env::temp_dir(), &Limits::default()).expect("works") {
        Detected::Image(source) => source,
        _ => panic!("no image"),
    }
}

fn import_image(store: &Store, source: &ImageSource) -> layerstore::Result<ImageImport> {
    store.import_image(source, &Selector::default(), Some("image"), &ImportOptions::default(), &())
}

#[test]
fn a_manifest_cannot_claim_a_blob_for_another_layer() {
    let (dir, store) = store();
    let (a, b) = (tar(&[("a", b"aaa")]), tar(&[("b", b"bbb")]));
    let (gzip_a, gzip_b) = (compress(&a, Compression::Gzip), compress(&b, Compression::Gzip));
    let one = image(&dir.path().join("one"), &gzip_a, Digest::of(&a));
    let two = image(&dir.path().join("two"), &gzip_b, Digest::of(&b));
    import_image(&store, &one).expect("works");
    import_image(&store, &two).expect("works");
    // Both the blob and the layer are known, but not to belong together.
    let lie = image(&dir.path().join("lie"), &gzip_a, Digest::of(&b));
    let error = import_image(&store, &lie).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(import_image(&store, &one).expect("works").layers[0].known);
}

#[test]
fn a_docker_archive_with_compressed_layers_gets_a_true_manifest() {
    let (dir, store) = store();
    let layer = tar(&[("file", &words(4, 20_000))]);
    let config = json!({
        "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [Digest::of(&layer)] },
    });
    let config = config.to_string().into_bytes();
    let name = format!("{}.json", Digest::of(&config).hex());
    let manifest = json!([{ "Config": name, "RepoTags": ["a:b"], "Layers": ["layer.tar.gz"] }]).to_string();
    let gzip = compress(&layer, Compression::Gzip);
    let archive = dir.path().join("archive.tar");
    let parts: [(&str, &[u8]); 3] = [("manifest.json", manifest.as_bytes()), (&name, &config), ("layer.tar.gz", &gzip)];
    fs::write(&archive, tar(&parts)).expect("works");
    import_image(&store, &source(&archive)).expect("works");
    let out = dir.path().join("out");
    let target = ExportTarget::Layout(out.clone());
    let image = store.image("image").expect("works");
    store.export_image(&image, &target, &ExportOptions::default(), &()).expect("works");
    // What was written is consistent: another store takes it.
    let other = Store::open(dir.path().join("other")).expect("works");
    assert_eq!(import_image(&other, &source(&out)).expect("works").layers[0].tar_size, layer.len() as u64);
}
