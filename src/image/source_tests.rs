//! Image sources of every form, and with every check broken once.

use super::*;
use crate::digest::Digest;
use crate::error::ErrorKind;
use crate::image::fixture::{at, compress, config, layer, member, skopeo, tar, write_image};
use crate::image::layout::{IndexEntry, LayoutWriter};
use crate::image::platform::Platform;
use crate::image::tar_writer::TarWriter;
use serde_json::{Value, json};
use std::fs;
use tempfile::TempDir;

fn found(path: &Path) -> Result<Detected> {
    detect(path, path.parent().unwrap(), &Limits::default())
}

fn source(path: &Path) -> ImageSource {
    match found(path).unwrap() {
        Detected::Image(source) => source,
        Detected::Layer => panic!("{} was taken for a layer", path.display()),
    }
}

fn layers() -> Vec<Vec<u8>> {
    vec![layer("one"), layer("two"), layer("three")]
}

/// Reads all layers of an image and holds them against their diff_ids.
fn check(source: &ImageSource, plan: &ImagePlan, expected: &[Vec<u8>]) {
    assert_eq!(plan.layers.len(), expected.len());
    for (layer, tar) in plan.layers.iter().zip(expected) {
        let mut reader = BlobReader::new(source.open_layer(layer).unwrap(), &Limits::default()).unwrap();
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        let summary = reader.finish().unwrap();
        assert!(bytes == *tar && layer.diff_id == Digest::of(tar));
        assert!(layer.blob.is_none_or(|blob| blob == summary.digest));
        assert_eq!(layer.size, Some(summary.size));
    }
}

fn oci() -> (TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("layout");
    let mut out = LayoutWriter::directory(&root).unwrap();
    let entry = write_image(&mut out, "amd64", &layers());
    out.finish(&[entry.reference("a")]).unwrap();
    (dir, root)
}

fn put(root: &Path, bytes: &[u8]) -> Value {
    let digest = Digest::of(bytes);
    fs::write(root.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
    json!({ "digest": digest, "size": bytes.len() })
}

fn read_json(root: &Path, name: &str) -> Value {
    serde_json::from_slice(&fs::read(root.join(name)).unwrap()).unwrap()
}

fn blob_path(digest: &Value) -> String {
    format!("blobs/sha256/{}", &digest.as_str().unwrap()[7..])
}

/// Lets `change` loose on the manifest and config, with digests that are right again afterwards.
fn changed(change: impl FnOnce(&mut Value, &mut Value)) -> Result<ImagePlan> {
    let (_dir, root) = oci();
    let mut index = read_json(&root, "index.json");
    let mut manifest = read_json(&root, &blob_path(&index["manifests"][0]["digest"]));
    let mut config = read_json(&root, &blob_path(&manifest["config"]["digest"]));
    change(&mut manifest, &mut config);
    let descriptor = put(&root, config.to_string().as_bytes());
    manifest["config"]["digest"] = descriptor["digest"].clone();
    manifest["config"]["size"] = descriptor["size"].clone();
    let mut descriptor = put(&root, manifest.to_string().as_bytes());
    descriptor["mediaType"] = index["manifests"][0]["mediaType"].clone();
    index["manifests"] = json!([descriptor]);
    fs::write(root.join("index.json"), index.to_string()).unwrap();
    source(&root).select(&Selector::default())
}

#[test]
fn reads_a_layout_and_its_archive() {
    let (dir, root) = oci();
    let archive = dir.path().join("a.tar");
    let mut out = LayoutWriter::archive(&archive).unwrap();
    let entry = write_image(&mut out, "amd64", &layers());
    out.finish(&[entry.reference("a")]).unwrap();
    let gzipped = dir.path().join("a.tar.gz");
    fs::write(&gzipped, compress(&fs::read(&archive).unwrap(), Compression::Gzip)).unwrap();
    for path in [root, archive, gzipped] {
        let source = source(&path);
        let candidate = &source.candidates()[0];
        assert_eq!(candidate.platform, Some("linux/amd64".parse().unwrap()), "from the config");
        let plan = source.select(&Selector::default().reference("a")).unwrap();
        let manifest = plan.manifest.as_ref().unwrap();
        assert_eq!((Digest::of(&manifest.json), Some(manifest.digest.into())), (manifest.digest, candidate.manifest));
        assert_eq!(plan.config_digest, Digest::of(&plan.config));
        check(&source, &plan, &layers());
    }
}

#[test]
fn tells_layers_from_images() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        for bytes in [layer("etc/hosts"), tar(&[]), tar(&[member(b'0', "index.json", "", b"{}")]), Vec::new()] {
            fs::write(&path, compress(&bytes, compression)).unwrap();
            assert!(matches!(found(&path).unwrap(), Detected::Layer), "{compression}");
        }
    }
    assert_eq!(found(dir.path()).err().unwrap().kind(), ErrorKind::InvalidInput);
    assert_eq!(found(&dir.path().join("none")).err().unwrap().kind(), ErrorKind::Io);
}

/// Three gigabytes of zeros are fourteen megabytes of gzip.
#[test]
fn a_compressed_archive_is_written_no_further_than_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.tgz");
    let mut bytes = tar(&docker_members("config.json", None));
    for (zeros, taken) in [(512 << 10, true), (4 << 20, false)] {
        bytes.resize(bytes.len() + zeros, 0);
        for compression in [Compression::Gzip, Compression::Zstd] {
            fs::write(&path, compress(&bytes, compression)).unwrap();
            let kind = found(&path).err().map(|e| e.kind());
            assert_eq!(kind, (!taken).then_some(ErrorKind::LimitExceeded), "{zeros} {compression}");
        }
    }
}

/// The checksum of a gzip stream is after the tar's end.
#[test]
fn a_compressed_archive_is_checked_to_its_last_byte() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.tgz");
    let mut bytes = tar(&docker_members("config.json", None));
    // More than is read at a time.
    bytes.resize((1 << 20) + 4096, 0);
    let mut gzip = compress(&bytes, Compression::Gzip);
    let sum = gzip.len() - 8;
    gzip[sum] ^= 1;
    fs::write(&path, gzip).unwrap();
    assert_eq!(found(&path).err().map(|e| e.kind()), Some(ErrorKind::InvalidInput));
}

/// Told by its header, before a byte of it is written: larger than a layer may be, or than what is free.
#[test]
fn a_member_that_cannot_be_kept_is_refused_at_its_header() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.tgz");
    for (len, limits) in [(2 << 20, Limits::default().layer_size(1 << 20)), (u64::MAX >> 4, Limits::default())] {
        let mut head = Vec::new();
        let cut = TarWriter::new(&mut head).file("blobs/sha256/x", len, &mut std::io::empty());
        cut.expect_err("no content");
        fs::write(&path, compress(&head, Compression::Gzip)).unwrap();
        let e = detect(&path, dir.path(), &limits).err().expect("too large");
        assert_eq!((e.kind(), e.message()), (ErrorKind::LimitExceeded, SPOOL_LIMIT), "{e}");
    }
}

#[test]
fn manifest_and_config_must_match_their_digests() {
    for which in ["manifest", "config", "manifest size", "config size"] {
        let (_dir, root) = oci();
        let mut path = blob_path(&read_json(&root, "index.json")["manifests"][0]["digest"]);
        if which.starts_with("config") {
            path = blob_path(&read_json(&root, &path)["config"]["digest"]);
        }
        let mut bytes = fs::read(root.join(&path)).unwrap();
        match which.contains("size") {
            true => bytes.push(b'\n'),
            false => *bytes.iter_mut().find(|b| **b == b':').unwrap() = b';',
        }
        fs::write(root.join(&path), bytes).unwrap();
        let e = source(&root).select(&Selector::default()).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::InvalidInput, "{which}: {e}");
        let word = if which.contains("size") { "size" } else { "digest" };
        assert!(e.message().contains(word), "{which}: {e}");
    }
}

#[test]
fn a_manifest_is_held_against_the_config_and_the_blobs() {
    assert!(changed(|_, _| ()).is_ok());
    let kind = |change: fn(&mut Value, &mut Value)| changed(change).unwrap_err().kind();
    assert_eq!(kind(|_, c| c["rootfs"]["diff_ids"] = json!([])), ErrorKind::InvalidInput);
    assert_eq!(kind(|_, c| c["rootfs"]["type"] = json!("tree")), ErrorKind::InvalidInput);
    assert!(changed(|_, c| c["history"] = json!([{}, {}, {}, {}])).is_ok(), "more entries than layers");
    assert_eq!(kind(|m, _| m["schemaVersion"] = json!(1)), ErrorKind::Unsupported);
    assert_eq!(
        kind(|m, _| m["config"]["mediaType"] = json!("application/vnd.oci.empty.v1+json")),
        ErrorKind::Unsupported
    );
    assert_eq!(kind(|m, _| m["layers"][0]["mediaType"] = json!("application/wasm")), ErrorKind::Unsupported);
    assert_eq!(kind(|m, _| m["layers"][0]["size"] = json!(1)), ErrorKind::InvalidInput);
    assert_eq!(kind(|m, _| m["layers"][0]["digest"] = json!("sha384:00")), ErrorKind::Unsupported);
    assert_eq!(kind(|m, _| m["layers"][0]["digest"] = json!("sha256:../../../x")), ErrorKind::InvalidInput);
    assert_eq!(kind(|m, _| m["layers"][0]["digest"] = json!(Digest::of(b"gone"))), ErrorKind::NotFound);
    let foreign = changed(|m, _| {
        m["layers"][0]["digest"] = json!(Digest::of(b"gone"));
        m["layers"][0]["mediaType"] = json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
    });
    let e = foreign.unwrap_err();
    assert!(e.kind() == ErrorKind::Unsupported && e.message().contains("foreign"), "{e}");
}

#[test]
fn json_has_a_limit() {
    let (_dir, root) = oci();
    fs::write(root.join("index.json"), vec![b' '; JSON_LIMIT as usize + 1]).unwrap();
    assert_eq!(found(&root).err().unwrap().kind(), ErrorKind::LimitExceeded);
}

/// A layout with an index in the index: two platforms, an attestation, and one that was not copied.
fn multi_platform() -> (TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("layout");
    let mut out = LayoutWriter::directory(&root).unwrap();
    for architecture in ["amd64", "arm64"] {
        let entry = write_image(&mut out, architecture, &[layer(architecture)]);
        out = finish_and_reopen(out, &root, entry.reference(architecture));
    }
    let mut manifests = read_json(&root, "index.json")["manifests"].as_array().unwrap().clone();
    for manifest in &mut manifests {
        let architecture = manifest["annotations"]["org.opencontainers.image.ref.name"].clone();
        manifest["platform"] = json!({ "os": "linux", "architecture": architecture });
        manifest.as_object_mut().unwrap().remove("annotations");
    }
    let mut extra = manifests[0].clone();
    extra["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
    let mut attestation = manifests[0].clone();
    attestation["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
    let mut absent = manifests[0].clone();
    absent["digest"] = json!(Digest::of(b"not copied"));
    let artifact = json!({ "mediaType": "application/x-unknown", "digest": Digest::of(b""), "size": 0 });
    manifests.extend([extra, attestation, absent, artifact]);
    let nested = json!({ "schemaVersion": 2, "manifests": manifests });
    let mut descriptor = put(&root, nested.to_string().as_bytes());
    descriptor["mediaType"] = json!("application/vnd.oci.image.index.v1+json");
    let name = json!({ "io.containerd.image.name": "docker.io/library/x:1", "org.opencontainers.image.ref.name": "1" });
    descriptor["annotations"] = name;
    fs::write(root.join("index.json"), json!({ "schemaVersion": 2, "manifests": [descriptor] }).to_string()).unwrap();
    (dir, root)
}

fn finish_and_reopen(out: LayoutWriter, root: &Path, entry: IndexEntry) -> LayoutWriter {
    out.finish(&[entry]).unwrap();
    LayoutWriter::directory(root).unwrap()
}

#[test]
fn chooses_by_platform_in_nested_indexes() {
    let (_dir, root) = multi_platform();
    let source = source(&root);
    assert_eq!(source.candidates().len(), 2, "attestations, unknown and absent manifests are no candidates");
    for architecture in ["amd64", "arm64"] {
        let platform: Platform = format!("linux/{architecture}").parse().unwrap();
        for name in ["x:1", "1", "docker.io/library/x:1"] {
            let selector = Selector::default().reference(name).platform(platform.clone());
            let plan = source.select(&selector).unwrap();
            check(&source, &plan, &[layer(architecture)]);
        }
    }
    let e = source.select(&Selector::default().platform("linux/s390x".parse().unwrap())).unwrap_err();
    assert!(e.kind() == ErrorKind::NotFound && e.message().contains("linux/arm64"), "{e}");
}

#[test]
fn an_index_that_nests_too_deeply_is_refused() {
    let (_dir, root) = oci();
    let mut descriptor = read_json(&root, "index.json")["manifests"][0].clone();
    for _ in 0..20 {
        let index = json!({ "schemaVersion": 2, "manifests": [descriptor] });
        descriptor = put(&root, index.to_string().as_bytes());
        descriptor["mediaType"] = json!("application/vnd.oci.image.index.v1+json");
    }
    fs::write(root.join("index.json"), json!({ "manifests": [descriptor] }).to_string()).unwrap();
    assert_eq!(found(&root).err().unwrap().kind(), ErrorKind::LimitExceeded);
}

/// A `docker save` archive of the older form: the second image's layer.tar is a link to the first one's.
fn docker_members(config_name: &str, manifest: Option<Value>) -> Vec<Vec<u8>> {
    let (one, two) = (layer("one"), layer("two"));
    let config = config("amd64", &[one.clone(), two.clone(), one.clone()]);
    let names = ["aa/layer.tar", "bb/layer.tar", "cc/layer.tar"];
    let manifest = manifest.unwrap_or_else(
        || json!([{ "Config": config_name, "RepoTags": ["x:1", "docker.io/me/x:2"], "Layers": names }]),
    );
    vec![
        member(b'0', &format!("{}/VERSION", "a".repeat(64)), "", b"1.0"),
        member(b'0', names[0], "", &one),
        member(b'0', names[1], "", &compress(&two, Compression::Gzip)),
        member(b'2', names[2], "../aa/layer.tar", b""),
        member(b'0', config_name, "", &config),
        member(b'0', "manifest.json", "", manifest.to_string().as_bytes()),
    ]
}

fn docker(config_name: &str, manifest: Option<Value>) -> Result<ImagePlan> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.tar");
    fs::write(&path, tar(&docker_members(config_name, manifest))).unwrap();
    source(&path).select(&Selector::default())
}

#[test]
fn reads_docker_archives_plain_compressed_and_unpacked() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = tar(&docker_members("config.json", None));
    let (plain, gzip, zstd) = (dir.path().join("x.tar"), dir.path().join("x.tgz"), dir.path().join("x.tzst"));
    fs::write(&plain, &bytes).unwrap();
    fs::write(&gzip, compress(&bytes, Compression::Gzip)).unwrap();
    fs::write(&zstd, compress(&bytes, Compression::Zstd)).unwrap();
    let unpacked = dir.path().join("unpacked");
    for name in ["aa", "bb", "cc"] {
        fs::create_dir_all(unpacked.join(name)).unwrap();
    }
    let table = archive::scan(&File::open(&plain).unwrap(), &Limits::default()).unwrap();
    for (name, file) in table.iter().filter(|(name, _)| !name.contains("VERSION")) {
        match file {
            archive::Member::File { offset, len } => {
                fs::write(unpacked.join(name), &bytes[*offset as usize..(offset + len) as usize]).unwrap();
            }
            _ => std::os::unix::fs::symlink("../aa/layer.tar", unpacked.join(name)).unwrap(),
        }
    }
    for path in [plain, gzip, zstd, unpacked] {
        let source = source(&path);
        assert_eq!(source.candidates().len(), 2, "one image under two names");
        for reference in ["x:1", "me/x:2"] {
            let plan = source.select(&Selector::default().reference(reference)).unwrap();
            assert!(plan.manifest.is_none());
            check(&source, &plan, &[layer("one"), layer("two"), layer("one")]);
        }
        assert!(source.select(&Selector::default()).is_ok());
    }
}

#[test]
fn docker_names_are_looked_up_and_digests_held_against_bytes() {
    let bad_name = format!("{}.json", "0".repeat(64));
    let e = docker(&bad_name, None).unwrap_err();
    assert!(e.kind() == ErrorKind::InvalidInput && e.message().contains("digest"), "{e}");
    let with_layer = |name: &str| {
        let names = ["aa/layer.tar", "bb/layer.tar", name];
        docker("config.json", Some(json!([{ "Config": "config.json", "RepoTags": null, "Layers": names }])))
    };
    assert!(with_layer("cc/layer.tar").is_ok());
    for (name, kind) in [
        ("../aa/layer.tar", ErrorKind::InvalidInput),
        ("/etc/passwd", ErrorKind::InvalidInput),
        ("aa/../aa/layer.tar", ErrorKind::InvalidInput),
        ("gone", ErrorKind::NotFound),
    ] {
        assert_eq!(with_layer(name).unwrap_err().kind(), kind, "{name}");
    }
}

#[test]
fn skopeo_writes_what_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("layout");
    // One layer, and so gzip: skopeo does not put zstd into docker archives.
    let mut out = LayoutWriter::directory(&root).unwrap();
    let entry = write_image(&mut out, "amd64", &layers()[..1]);
    out.finish(&[entry.reference("a")]).unwrap();
    let archive = dir.path().join("skopeo.tar");
    for (transport, name) in [("docker-archive", "x:1"), ("oci-archive", "x")] {
        let _ = fs::remove_file(&archive);
        if !skopeo(&["copy", &at("oci", &root, "a"), &at(transport, &archive, name)]) {
            return;
        }
        let source = source(&archive);
        let plan = source.select(&Selector::default().reference(name)).unwrap();
        check(&source, &plan, &layers()[..1]);
    }
}
