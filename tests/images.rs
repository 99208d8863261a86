//! Images made and judged by other tools: umoci builds and unpacks them, skopeo copies and inspects them.

mod support;

use layerstore::{
    AppendOptions, Detected, Digest, Event, ExportOptions, ExportTarget, ImageImport, ImageSource, ImportOptions,
    Limits, Observer, Selector, Store, detect,
};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use support::layers::Layer;
use support::{assert_empty, assert_refusal, content_files, noise, store, words};
use tempfile::TempDir;

/// Says why a test does not run, where its tool is missing.
fn have(tool: &str) -> bool {
    let there = Command::new(tool).arg("--version").output().is_ok();
    if !there {
        println!("skipped: needs {tool}");
    }
    there
}

fn run(tool: &str, args: &[&str]) -> String {
    let out = Command::new(tool).args(args).output().expect("the tool runs");
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{tool} {args:?}: {stdout}{stderr}");
    stdout.into_owned()
}

fn skopeo(args: &[&str]) -> String {
    run("skopeo", &[&["--insecure-policy"], args].concat())
}

fn umoci(args: &[&str]) -> String {
    let rootless = args[0] != "init" && args[0] != "new" && !is_root();
    let extra: &[&str] = if rootless { &["--rootless"] } else { &[] };
    run("umoci", &[&args[..1], extra, &args[1..]].concat())
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// `path:tag` or `transport:path:tag`.
fn at(transport: &str, path: &Path) -> String {
    format!("{transport}{}:latest", path.display())
}

/// An image of five layers that umoci made, a whiteout and an opaque directory among them.
struct Image {
    dir: TempDir,
    layout: PathBuf,
}

impl Image {
    /// `None`, with a note, without umoci.
    fn build() -> Option<Self> {
        if !have("umoci") {
            return None;
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let layout = dir.path().join("layout");
        let image = at("", &layout);
        umoci(&["init", "--layout", layout.to_str().expect("text")]);
        umoci(&["new", "--image", &image]);
        let (first, second) = (dir.path().join("first"), dir.path().join("second"));
        base_tree(&first);
        second_tree(&second);
        let text = |path: &Path| path.to_str().expect("text").to_owned();
        umoci(&["insert", "--image", &image, &text(&first), "/"]);
        umoci(&["insert", "--image", &image, &text(&second), "/usr/share/more"]);
        umoci(&["insert", "--image", &image, "--whiteout", "/etc/gone"]);
        umoci(&["insert", "--image", &image, "--opaque", &text(&second), "/opt"]);
        umoci(&["insert", "--image", &image, &text(&first.join("bin/large")), "/bin/again"]);
        Some(Self { dir, layout })
    }

    fn source(&self) -> ImageSource {
        source(&self.layout)
    }

    /// A path beside the layout.
    fn beside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

fn base_tree(root: &Path) {
    for dir in ["bin", "etc", "opt/old", "usr/share", "var/empty"] {
        fs::create_dir_all(root.join(dir)).expect("a directory");
    }
    fs::write(root.join("bin/large"), noise(1, 700_000)).expect("a file");
    fs::set_permissions(root.join("bin/large"), fs::Permissions::from_mode(0o4755)).expect("a mode");
    fs::write(root.join("etc/gone"), "to be removed").expect("a file");
    fs::write(root.join("opt/old/hidden"), "to be hidden").expect("a file");
    (0..60).for_each(|n| fs::write(root.join(format!("etc/f{n}")), words(n, 50 * n as usize)).expect("a file"));
    fs::hard_link(root.join("etc/f1"), root.join("etc/hard")).expect("a link");
    symlink("../etc/f2", root.join("usr/link")).expect("a link");
    symlink("/etc", root.join("usr/absolute")).expect("a link");
}

fn second_tree(root: &Path) {
    fs::create_dir_all(root.join("sub")).expect("a directory");
    fs::write(root.join("same-as-large"), noise(1, 700_000)).expect("a file");
    fs::write(root.join("sub/text"), words(9, 200_000)).expect("a file");
    fs::write(root.join("sub/empty"), "").expect("a file");
}

fn source(path: &Path) -> ImageSource {
    let spool = path.parent().expect("a parent");
    match detect(path, spool, &Limits::default()).expect("an image") {
        Detected::Image(source) => source,
        _ => panic!("{} was not taken for an image", path.display()),
    }
}

/// Notes which layers were read and which were known.
#[derive(Default)]
struct Log {
    finished: Mutex<Vec<(usize, Digest, bool)>>,
    read: Mutex<u64>,
}

impl Observer for Log {
    fn event(&self, event: Event) {
        match event {
            Event::LayerFinished { layer, diff_id, known } => {
                self.finished.lock().expect("no panic").push((layer, diff_id, known));
            }
            Event::LayerProgress { bytes, .. } => *self.read.lock().expect("no panic") += bytes,
            _ => {}
        }
    }
}

fn import(store: &Store, source: &ImageSource, keep: bool) -> (ImageImport, Log) {
    let log = Log::default();
    let options = ImportOptions::default().keep_blobs(keep).threads(support::THREADS);
    let done = store.import_image(source, &Selector::default(), Some("test"), &options, &log).expect("a good image");
    (done, log)
}

/// Path to everything that can be told of a file.
type Listing = BTreeMap<PathBuf, String>;

/// What umoci makes of an image.
fn unpacked(layout: &Path, into: &Path) -> Listing {
    umoci(&["unpack", "--image", &at("", layout), into.to_str().expect("text")]);
    let mut out = Listing::new();
    list(&into.join("rootfs"), Path::new(""), &mut out);
    out
}

fn list(dir: &Path, below: &Path, out: &mut Listing) {
    for found in fs::read_dir(dir).expect("a directory") {
        let found = found.expect("a directory");
        let (path, meta) = (found.path(), found.metadata().expect("a file"));
        let content = match &meta {
            m if m.is_symlink() => fs::read_link(&path).expect("a link").display().to_string(),
            m if m.is_file() => Digest::of(&fs::read(&path).expect("a file")).to_string(),
            _ => String::new(),
        };
        let what = (meta.mode(), meta.uid(), meta.gid(), meta.mtime(), meta.nlink());
        out.insert(below.join(found.file_name()), format!("{what:?} {content}"));
        if meta.is_dir() {
            list(&path, &below.join(found.file_name()), out);
        }
    }
}

#[test]
fn an_image_goes_in_and_out_the_same_with_its_blobs_kept() {
    let Some(image) = Image::build() else { return };
    let (_dir, store) = store();
    let (done, log) = import(&store, &image.source(), true);
    let plan = image.source().select(&Selector::default()).expect("one image");
    let planned: Vec<_> = plan.layers.iter().filter_map(|l| l.diff_id.sha256()).collect();
    assert_eq!(done.layers.iter().map(|l| l.diff_id).collect::<Vec<_>>(), planned);
    assert_eq!((planned.len(), Some(done.manifest)), (5, plan.manifest.map(|m| m.digest)));
    assert!(log.finished.into_inner().expect("no panic").iter().all(|&(.., known)| !known));

    let out = image.beside("out");
    let target = ExportTarget::Layout(out.clone());
    let info = store.image("test").expect("the image");
    let options = ExportOptions::default().reference("latest");
    let exported = store.export_image(&info, &target, &options, &()).expect("an export");
    assert!(exported.identical && exported.manifest == exported.original && exported.original == done.manifest);
    assert_eq!(exported.config, plan.config_digest);
    let there = unpacked(&out, &image.beside("bundle-out"));
    assert!(there == unpacked(&image.layout, &image.beside("bundle-in")), "umoci unpacks another tree");
    assert!(there.contains_key(Path::new("bin/again")) && !there.contains_key(Path::new("etc/gone")));

    // The tree that the library itself composes has the same names.
    let root = store.root(&planned).expect("layers that fit");
    let mut names: Vec<_> = root.list().map(|e| PathBuf::from(as_text(&e.entry.path))).collect();
    names.retain(|name| !name.as_os_str().is_empty());
    assert_eq!(names.len(), there.len());
    assert!(names.iter().all(|name| there.contains_key(name)), "{names:?}");
}

fn as_text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

#[test]
fn without_its_blobs_an_image_keeps_config_and_diff_ids() {
    let Some(image) = Image::build() else { return };
    let (_dir, store) = store();
    let (done, _) = import(&store, &image.source(), false);
    let info = store.image("test").expect("the image");
    let out = image.beside("out");
    let options = ExportOptions::default().reference("latest");
    let exported = store.export_image(&info, &ExportTarget::Layout(out.clone()), &options, &()).expect("an export");
    let plan = source(&out).select(&Selector::default()).expect("one image");
    assert_eq!((plan.config_digest, exported.config), (done.config, done.config));
    let diff_ids = plan.layers.iter().map(|l| l.diff_id);
    assert!(diff_ids.eq(done.layers.iter().map(|l| l.diff_id)));
    assert_eq!(plan.manifest.expect("a manifest").digest, exported.manifest);
    assert_eq!(exported.identical, exported.manifest == done.manifest, "`identical` must be honest");
    let there = unpacked(&out, &image.beside("bundle-out"));
    assert!(there == unpacked(&image.layout, &image.beside("bundle-in")), "umoci unpacks another tree");
    let again = store.export_image(&info, &ExportTarget::Archive(image.beside("a.tar")), &options, &()).expect("again");
    assert_eq!(again, exported, "the same export gives the same bytes");
}

#[test]
fn skopeo_takes_what_is_exported() {
    let Some(image) = Image::build() else { return };
    if !have("skopeo") {
        return;
    }
    let (_dir, store) = store();
    let (done, _) = import(&store, &image.source(), false);
    let info = store.image("test").expect("the image");
    let (layout, archive) = (image.beside("out"), image.beside("out.tar"));
    let options = ExportOptions::default().reference("latest");
    for (target, from) in [
        (ExportTarget::Layout(layout.clone()), at("oci:", &layout)),
        (ExportTarget::Archive(archive.clone()), at("oci-archive:", &archive)),
    ] {
        let exported = store.export_image(&info, &target, &options, &()).expect("an export");
        let inspected: serde_json::Value = serde_json::from_str(&skopeo(&["inspect", &from])).expect("JSON");
        assert_eq!(inspected["Digest"], exported.manifest.to_string());
        assert_eq!(inspected["Layers"].as_array().map(Vec::len), Some(5));
        let copy = image.beside("copy");
        skopeo(&["copy", &from, &at("oci:", &copy)]);
        assert_eq!(source(&copy).select(&Selector::default()).expect("one image").config_digest, done.config);
        fs::remove_dir_all(&copy).expect("the copy");
    }
    skopeo(&["inspect", &format!("docker-archive:{}", archive.display())]);
}

/// An image with a layer on top is one to skopeo, umoci and podman: they check digests, sizes and diff_ids, and podman
/// makes its root.
#[test]
fn others_take_an_image_with_one_more_layer() {
    let Some(image) = Image::build() else { return };
    if !have("skopeo") {
        return;
    }
    let (_dir, store) = store();
    import(&store, &image.source(), false);
    let before = store.image("test").expect("the image");
    let layer = Layer::new().file("etc/appended", b"appended").file("etc/.wh.hard", b"").put(&store);
    let options = AppendOptions::default().created(Some(1_700_000_000)).created_by("a test");
    let after = store.append_layer(&before, "more", &layer, &options).expect("appends");
    let layout = image.beside("more");
    let target = ExportTarget::Layout(layout.clone());
    store.export_image(&after, &target, &ExportOptions::default().reference("latest"), &()).expect("an export");

    let config: serde_json::Value =
        serde_json::from_str(&skopeo(&["inspect", "--config", &at("oci:", &layout)])).expect("JSON");
    assert_eq!(config["rootfs"]["diff_ids"].as_array().map(Vec::len), Some(6));
    assert_eq!(config["rootfs"]["diff_ids"][5], layer.to_string());
    let history = config["history"].as_array().expect("a list");
    assert_eq!(history.last().map(|h| &h["created_by"]), Some(&"a test".into()));
    skopeo(&["copy", &at("oci:", &layout), &format!("docker-archive:{}", image.beside("d.tar").display())]);
    let (mut old, new) =
        (unpacked(&image.layout, &image.beside("bundle-old")), unpacked(&layout, &image.beside("bundle-new")));
    old.remove(Path::new("etc/hard")).expect("removed by the layer");
    let (appended, linked) = (Path::new("etc/appended"), Path::new("etc/f1"));
    assert!(new.contains_key(appended) && !new.contains_key(Path::new("etc/hard")));
    let rest = |tree: Listing| -> Listing { tree.into_iter().filter(|(p, _)| p != appended && p != linked).collect() };
    assert!(rest(old) == rest(new), "umoci unpacks something else besides");

    let test = "a_layer_is_added_to_an_image by podman";
    if !support::needs::root(test) || !support::needs::programs(test, &["podman"]) {
        return;
    }
    let storage = |name: &str| image.beside(name).to_str().expect("text").to_owned();
    let (graph, run_root) = (storage("graph"), storage("run"));
    let podman = |args: &[&str]| {
        let own = ["--root", &graph, "--runroot", &run_root, "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"];
        run("podman", &[&own, args].concat())
    };
    let archive = image.beside("more.tar");
    let options = ExportOptions::default().reference("localhost/more:1");
    store.export_image(&after, &ExportTarget::Archive(archive.clone()), &options, &()).expect("an export");
    podman(&["load", "--quiet", "--signature-policy", &policy(&image), "--input", archive.to_str().expect("text")]);
    let root = podman(&["image", "mount", "localhost/more:1"]);
    assert_eq!(fs::read(Path::new(root.trim()).join("etc/appended")).expect("there"), b"appended");
    podman(&["image", "unmount", "localhost/more:1"]);
}

/// A policy for podman that takes images without signatures.
fn policy(image: &Image) -> String {
    let path = image.beside("policy.json");
    fs::write(&path, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).expect("a file");
    path.to_str().expect("text").to_owned()
}

#[test]
fn a_docker_archive_by_skopeo_is_the_same_image() {
    let Some(image) = Image::build() else { return };
    if !have("skopeo") {
        return;
    }
    let (_dir, store) = store();
    let archive = image.beside("docker.tar");
    let to = format!("docker-archive:{}:name:tag", archive.display());
    skopeo(&["copy", &at("oci:", &image.layout), &to]);
    let plan = image.source().select(&Selector::default()).expect("one image");
    let done = import(&store, &source(&archive), false).0;
    assert!(done.layers.iter().map(|l| l.diff_id).eq(plan.layers.iter().map(|l| l.diff_id)));
    // The layers are there, but not proven to be what the layout's blobs hold: those are read once, and add nothing.
    let (proving, log) = import(&store, &image.source(), false);
    assert!(log.read.into_inner().expect("no panic") > 0);
    assert_eq!(proving.stats.new_chunks, 0);
    let (_, log) = import(&store, &image.source(), false);
    assert_eq!(log.read.into_inner().expect("no panic"), 0);
}

#[test]
fn an_image_known_already_is_not_read() {
    let Some(image) = Image::build() else { return };
    let (_dir, store) = store();
    let (first, log) = import(&store, &image.source(), true);
    assert!(log.read.into_inner().expect("no panic") > 0);
    let before = content_files(store.path());
    let (again, log) = import(&store, &image.source(), true);
    assert_eq!(log.read.into_inner().expect("no panic"), 0, "bytes were read");
    let finished = log.finished.into_inner().expect("no panic");
    assert_eq!(finished.len(), 5);
    assert!(finished.iter().all(|&(.., known)| known) && again.layers.iter().all(|l| l.known));
    assert_eq!((again.manifest, again.stats), (first.manifest, layerstore::ImportStats::default()));
    assert_eq!(content_files(store.path()), before);
}

/// Without some blob kept, an import that wants them reads the layers once more, and stores no chunk again.
#[test]
fn blobs_can_be_had_later() {
    let Some(image) = Image::build() else { return };
    let (_dir, store) = store();
    import(&store, &image.source(), false);
    let (done, log) = import(&store, &image.source(), true);
    assert!(log.read.into_inner().expect("no panic") > 0);
    assert_eq!(done.stats.new_chunks, 0);
    let info = store.image("test").expect("the image");
    let target = ExportTarget::Layout(image.beside("out"));
    let exported = store.export_image(&info, &target, &ExportOptions::default(), &()).expect("an export");
    assert!(exported.identical);
}

#[test]
fn one_wrong_byte_is_refused_and_nothing_stays() {
    let Some(image) = Image::build() else { return };
    let (_dir, store) = store();
    let plan = image.source().select(&Selector::default()).expect("one image");
    let manifest = plan.manifest.expect("a manifest").digest;
    let layers = plan.layers.iter().filter_map(|l| l.blob?.sha256());
    // Of a gzip blob, byte 4 is a time that only the digest covers.
    for digest in layers.chain([plan.config_digest, manifest]) {
        let blob = image.layout.join("blobs/sha256").join(digest.hex());
        let good = fs::read(&blob).expect("a blob");
        for place in [4, good.len() / 2, good.len() - 1] {
            let mut bad = good.clone();
            bad[place] ^= 1;
            fs::write(&blob, &bad).expect("the blob");
            let options = ImportOptions::default().keep_blobs(true);
            let done = match detect(&image.layout, image.dir.path(), &Limits::default()) {
                Ok(Detected::Image(source)) => store.import_image(&source, &Selector::default(), None, &options, &()),
                Ok(_) => panic!("not taken for an image"),
                Err(e) => Err(e),
            };
            let what = format!("byte {place} of {digest}");
            assert_refusal(&done.err().unwrap_or_else(|| panic!("{what} went unnoticed")), &what);
            assert_empty(&store, &what);
        }
        fs::write(&blob, &good).expect("the blob");
    }
    import(&store, &image.source(), true);
    assert_eq!(support::names(store.path(), "packs"), ["00000001000.pack"]);
}
