//! Extracted trees, and layers stacked by overlayfs, against what the layers say.
//!
//! Owners, devices and mounts need root; every test that mounts does so in a mount namespace of its own.

mod support;

use layerstore::{
    CreateOptions, Digest, DriverKind, EntryKind, ErrorKind, Event, ExtractOptions, IdMap, Labels, Lost, Observer,
    SnapshotterOptions, Store,
};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use support::layers::{Layer, assert_same, commit_chain, everything, expected, snapshotter, xattr};
use support::listing::{differences, list};
use support::{Random, namespaced, needs, noise, store};

#[test]
fn everything_is_as_the_layer_says() {
    if !needs::root("everything_is_as_the_layer_says") {
        return;
    }
    let (_dir, store) = store();
    let layer = everything(&store);
    let disk = support::disk_dir();
    for threads in [1, 3] {
        let dest = disk.path().join(threads.to_string());
        let options = ExtractOptions::default().strict(true).threads(threads.try_into().expect("not 0"));
        let report = store.extract(&[layer], &dest, &options, &()).expect("extracts");
        assert_same(&expected(&store, &[layer]), &list(&dest));
        assert_eq!((report.lost, report.directories, report.links), (0, 7, 4));
        let holes = fs::metadata(dest.join("sparse")).expect("there");
        assert!(holes.blocks() * 512 < 1 << 20, "holes stay holes");
        assert_eq!(fs::metadata(dest.join("hole")).expect("there").blocks(), 0);
    }
}

/// An umask, a set-group-ID parent and default access control lists change nothing.
#[test]
fn surroundings_do_not_show() {
    if !needs::root("surroundings_do_not_show") {
        return;
    }
    let (_dir, store) = store();
    let layer = everything(&store);
    let disk = support::disk_dir();
    fs::set_permissions(disk.path(), fs::Permissions::from_mode(0o2777)).expect("ours");
    std::os::unix::fs::chown(disk.path(), None, Some(77)).expect("root");
    let acl =
        [2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 4, 0, 0, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255];
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(disk.path(), "system.posix_acl_default", &acl, flags).expect("access control lists");
    let dest = disk.path().join("tree");
    store.extract(&[layer], &dest, &ExtractOptions::default().strict(true), &()).expect("extracts");
    assert_same(&expected(&store, &[layer]), &list(&dest));
}

#[test]
fn only_nothing_and_empty_directories_are_written_to() {
    let (dir, store) = store();
    let layer = Layer::own().dir("", 0o755).file("a/b", b"x").put(&store);
    let options = ExtractOptions::default();
    let at = |name: &str| dir.path().join(name);
    let extract = |name: &str| store.extract(&[layer], &at(name), &options, &());
    fs::create_dir(at("empty")).expect("fresh");
    extract("empty").expect("an empty directory");
    assert_eq!(extract("empty").expect_err("taken").kind(), ErrorKind::AlreadyExists);
    assert!(at("empty/a/b").exists());
    fs::write(at("file"), "x").expect("fresh");
    assert_eq!(extract("file").expect_err("taken").kind(), ErrorKind::AlreadyExists);
    symlink("nowhere", at("link")).expect("fresh");
    assert_eq!(extract("link").expect_err("taken").kind(), ErrorKind::AlreadyExists);
    assert!(!at("nowhere").exists());
    assert_eq!(extract("no/parent").expect_err("no parent").kind(), ErrorKind::NotFound);
}

/// Stops after some bytes.
struct Stop(AtomicU64);

impl Observer for Stop {
    fn event(&self, event: Event) {
        if let Event::Extracted { bytes } = event {
            self.0.fetch_add(bytes, Relaxed);
        }
    }

    fn cancelled(&self) -> bool {
        self.0.load(Relaxed) > 1_000_000
    }
}

#[test]
fn a_failure_leaves_nothing() {
    let (dir, store) = store();
    let mut layer = Layer::own();
    for n in 0..40 {
        layer.file(&format!("d/{n}"), &noise(n, 200_000));
    }
    let layer = layer.put(&store);
    let dest = dir.path().join("dest");
    let extract = |observer: &dyn Observer| store.extract(&[layer], &dest, &ExtractOptions::default(), observer);
    assert_eq!(extract(&Stop(AtomicU64::new(0))).expect_err("stopped").kind(), ErrorKind::Cancelled);
    assert!(!dest.exists());
    fs::create_dir(&dest).expect("fresh");
    fs::set_permissions(&dest, fs::Permissions::from_mode(0o2751)).expect("ours");
    // A damaged chunk.
    let pack = support::names(store.path(), "packs").pop().expect("a pack");
    let path = store.path().join("packs").join(pack);
    let file = fs::OpenOptions::new().read(true).write(true).open(&path).expect("a pack");
    let base = u64::from_str_radix(path.file_stem().expect("a name").to_str().expect("hex"), 16).expect("hex");
    std::os::unix::fs::FileExt::write_all_at(&file, &[9; 100], base + 4096 + 300_000).expect("writes");
    let e = extract(&()).expect_err("damaged");
    assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
    assert_eq!(fs::read_dir(&dest).expect("still there").count(), 0);
    assert_eq!(fs::metadata(&dest).expect("still there").mode() & 0o7777, 0o2751, "as it was");
}

/// ext4 has a block for a file's attributes, and says of what is larger that the disk is full.
#[test]
fn attributes_too_large_for_the_file_system_are_told() {
    let disk = support::disk_dir();
    let (probe, value) = (disk.path().join("probe"), vec![7; 6000]);
    fs::write(&probe, "").expect("fresh");
    let none = rustix::fs::XattrFlags::empty();
    if rustix::fs::setxattr(&probe, "user.big", &value, none) != Err(rustix::io::Errno::NOSPC) {
        println!("skipped: attributes_too_large_for_the_file_system_are_told: it takes them");
        return;
    }
    let store = Store::open(disk.path().join("store")).expect("a store");
    let mut layer = Layer::own();
    let kind = EntryKind::File { size: 1, sparse: None };
    layer.entry("f", kind, |e| e.xattrs = vec![xattr("user.big", &value), xattr("user.small", b"v")], b"x");
    layer.entry("d", EntryKind::Directory, |e| (e.mode, e.xattrs) = (0o750, vec![xattr("user.big", &value)]), b"");
    let layer = layer.put(&store);
    let extract = |strict: bool| {
        let options = ExtractOptions::default().strict(strict);
        store.extract(&[layer], &disk.path().join("tree"), &options, &())
    };
    let e = extract(true).expect_err("cannot be set");
    assert_eq!(e.kind(), ErrorKind::FailedPrecondition, "{e}");
    let report = extract(false).expect("extracts");
    let lost: Vec<_> = report.losses.iter().map(|loss| (&loss.path[..], loss.what.to_string())).collect();
    assert_eq!(lost, [(&b"d"[..], "attribute user.big".into()), (b"f", "attribute user.big".into())]);
    let mut want = expected(&store, &[layer]);
    want.values_mut().for_each(|line| drop(line.xattrs.remove("user.big")));
    assert_same(&want, &list(&disk.path().join("tree")));
    if !needs::root("attributes_too_large_for_the_file_system_are_told by drivers") {
        return;
    }
    // Drivers do with it as with all that cannot be set.
    for (driver, refused) in [(DriverKind::Copy, None), (DriverKind::Overlay, Some(ErrorKind::FailedPrecondition))] {
        let snapshots = snapshotter(&disk.path().join("store"), driver);
        let top = commit_chain(&snapshots, &[layer]);
        let mounts = snapshots.prepare("work", Some(&top), &Labels::new(), &());
        assert_eq!(mounts.as_ref().err().map(layerstore::Error::kind), refused, "{driver:?}");
        if let Ok(mounts) = mounts {
            assert_same(&want, &list(Path::new(&mounts[0].source)));
            snapshots.remove("work").expect("removes");
        }
        snapshots.remove(&top).expect("removes");
    }
}

/// What would lead outside stays a symlink; what goes through one is where it leads inside.
#[test]
fn symlinks_lead_nowhere() {
    let (dir, store) = store();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).expect("fresh");
    let text = outside.to_str().expect("plain");
    let mut layer = Layer::own();
    layer.symlink("out", text).file("out/planted", b"x").symlink("up", "../../outside").file("up/planted", b"x");
    layer.symlink("f", &format!("{text}/f")).file("f", b"x").symlink("l", &format!("{text}/l")).hardlink("m", "l");
    let layer = layer.put(&store);
    let dest = dir.path().join("deep/dest");
    fs::create_dir(dir.path().join("deep")).expect("fresh");
    store.extract(&[layer], &dest, &ExtractOptions::default(), &()).expect("extracts");
    assert_eq!(fs::read_dir(&outside).expect("there").count(), 0);
    assert!(dest.join("outside/planted").exists(), "inside the root");
    assert!(dest.join("m").is_symlink());
}

/// As another user: what cannot be set is told, the rest is as it should be.
#[test]
fn without_privileges_losses_are_told() {
    if !needs::root("without_privileges_losses_are_told") {
        return;
    }
    let name = "without_privileges_losses_are_told";
    const STORE: &str = "LAYERSTORE_TEST_UNPRIVILEGED";
    if let Some(dir) = std::env::var_os(STORE) {
        return unprivileged(Path::new(&dir));
    }
    let disk = support::disk_dir();
    fs::set_permissions(disk.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    everything(&Store::open(disk.path().join("store")).expect("a store"));
    let mut pending = vec![disk.path().to_owned()];
    while let Some(path) = pending.pop() {
        std::os::unix::fs::chown(&path, Some(NOBODY), Some(NOBODY)).expect("root");
        if path.is_dir() {
            pending.extend(fs::read_dir(&path).expect("ours").map(|found| found.expect("ours").path()));
        }
    }
    let mut command = std::process::Command::new(std::env::current_exe().expect("a test binary"));
    command.args(["--exact", name, "--nocapture"]).env(STORE, disk.path()).env("TMPDIR", disk.path());
    let output = std::os::unix::process::CommandExt::uid(&mut command, NOBODY);
    let output = std::os::unix::process::CommandExt::gid(output, NOBODY).output().expect("runs");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

const NOBODY: u32 = 65534;

/// Runs as nobody.
fn unprivileged(dir: &Path) {
    let store = Store::open(dir.join("store")).expect("a store");
    let layer = store.layers().expect("a layer")[0].diff_id;
    let dest = dir.join("tree");
    let strict = store.extract(&[layer], &dest, &ExtractOptions::default().strict(true), &());
    assert_eq!(strict.expect_err("owners cannot be set").kind(), ErrorKind::FailedPrecondition);
    assert!(!dest.exists());
    let report = store.extract(&[layer], &dest, &ExtractOptions::default(), &()).expect("extracts");
    // Directories of mode 0 keep even their owner out.
    fs::set_permissions(dest.join("d/closed"), fs::Permissions::from_mode(0o700)).expect("ours");
    fs::set_permissions(dest.join("closed"), fs::Permissions::from_mode(0o400)).expect("ours");
    let lost = |path: &[u8]| -> Vec<Lost> {
        report.losses.iter().filter(|loss| loss.path == path).map(|loss| loss.what.clone()).collect()
    };
    let mut want = expected(&store, &[layer]);
    want.get_mut(&b"d/closed"[..]).expect("there").mode = 0o040_700;
    want.get_mut(&b"closed"[..]).expect("there").mode = 0o100_400;
    for (path, line) in &mut want {
        let (uid, gid) = (line.uid, line.gid);
        (line.uid, line.gid) = (NOBODY, NOBODY);
        if line.first != *path {
            continue;
        }
        assert!(lost(path).contains(&Lost::Owner { uid, gid }) || line.rdev != 0, "{}", path.escape_ascii());
        line.mode &= !(if line.mode & 0o6000 > 0 { 0o6000 } else { 0 });
        line.xattrs.retain(|name, _| {
            let user = name.starts_with("user.");
            assert!(user != lost(path).contains(&Lost::Xattr { name: name.clone().into() }), "{name}");
            user
        });
    }
    for (name, major, minor) in [("null", 1, 3), ("disk", 259, 70_000)] {
        assert_eq!(lost(name.as_bytes()), [Lost::Device { major, minor }]);
        want.remove(name.as_bytes());
    }
    want.remove(&b"null-link"[..]);
    assert_eq!(lost(b"suid"), [Lost::Owner { uid: 5, gid: 6 }, Lost::Mode { mode: 0o6755 }]);
    assert_same(&want, &list(&dest));
    assert_eq!(report.lost, report.losses.len() as u64);
}

/// Users of the image become others, as in a user namespace.
#[test]
fn ids_are_mapped() {
    if !needs::root("ids_are_mapped") {
        return;
    }
    let (dir, store) = store();
    let mut layer = Layer::new();
    let kind = || EntryKind::File { size: 0, sparse: None };
    layer.file("root", b"").entry("user", kind(), |e| (e.uid, e.gid) = (1000, 1001), b"");
    layer.entry("lost", kind(), |e| (e.uid, e.mode) = (70_000, 0o4755), b"");
    let layer = layer.put(&store);
    let map = [IdMap { inside: 0, outside: 100_000, count: 65_536 }];
    let options = ExtractOptions::default().uid_maps(map).gid_maps(map);
    let report = store.extract(&[layer], &dir.path().join("t"), &options, &()).expect("extracts");
    let owner = |name: &str| fs::metadata(dir.path().join("t").join(name)).map(|m| (m.uid(), m.gid())).expect("there");
    assert_eq!((owner(""), owner("root"), owner("user")), ((100_000, 100_000), (100_000, 100_000), (101_000, 101_001)));
    let lost: Vec<_> = report.losses.into_iter().map(|loss| loss.what).collect();
    assert_eq!(lost, [Lost::Owner { uid: 70_000, gid: 0 }, Lost::Mode { mode: 0o4755 }]);
    assert_eq!(fs::metadata(dir.path().join("t/lost")).expect("there").mode() & 0o7777, 0o755);
}

/// Random stacks, as every driver shows them and extracted as a whole; and merged into fewer layers.
#[test]
fn random_stacks_are_the_same_however_they_are_had() {
    let name = "random_stacks_are_the_same_however_they_are_had";
    if !namespaced(name) {
        return;
    }
    let disk = support::disk_dir();
    let store = Arc::new(Store::open(disk.path().join("store")).expect("a store"));
    let drivers = [DriverKind::Erofs, DriverKind::Overlay, DriverKind::Copy].map(|driver| {
        support::layers::open(store.clone(), driver, &SnapshotterOptions::default().namespace(driver.as_str()))
    });
    let mut random = Random::new("stacks");
    let (mut stacks, mut names) = (0, 0);
    for stack in 0..120 {
        let layers = random_stack(&store, &mut random);
        if layers.is_empty() {
            continue;
        }
        let want = expected(&store, &layers);
        let whole = disk.path().join("whole");
        store.extract(&layers, &whole, &ExtractOptions::default().strict(true).sync(false), &()).expect("extracts");
        assert_same(&want, &list(&whole));
        fs::remove_dir_all(&whole).expect("ours");
        for snapshots in &drivers {
            let mut parent: Option<String> = None;
            for (depth, layer) in layers.iter().enumerate() {
                let key = format!("{stack}-{depth}");
                snapshots.commit_layer(&key, parent.as_deref(), layer, &Labels::new()).expect("commits");
                parent = Some(key);
            }
            let mounts = snapshots.view("view", parent.as_deref(), &Labels::new(), &()).expect("views");
            let found = differences(&want, &support::inside(disk.path(), &mounts, list));
            let driver = snapshots.driver();
            assert!(found.is_empty(), "{driver:?}: stack {stack} {layers:?}\n{}", found.join("\n"));
            snapshots.remove("view").expect("removes");
        }
        // Merged from some layer on, and squashed.
        for base in [layers.len() / 2, 0] {
            let changes = store.diff(&layers[..base], &layers, &CreateOptions::default(), &()).expect("a diff");
            let merged = store.create_layer(&changes, &CreateOptions::default(), &()).expect("a layer").0.diff_id;
            let fewer = [&layers[..base], &[merged]].concat();
            assert_same(&want, &expected(&store, &fewer));
        }
        (stacks, names) = (stacks + 1, names + want.len());
    }
    assert!(stacks > 80 && names > 400, "{stacks} stacks, {names} names");
}

/// Layers that can be composed. Some cannot be: a hard link to itself is refused at import, one to nothing here.
fn random_stack(store: &Store, random: &mut Random) -> Vec<Digest> {
    let mut layers = Vec::new();
    for _ in 0..=random.below(4) {
        let tar = Layer::random(random).tar();
        let Ok((imported, _)) = store.import_layer(&tar[..], &Default::default(), &()) else { continue };
        layers.push(imported.diff_id);
        if store.root(&layers).is_err() {
            layers.pop();
        }
    }
    layers
}

/// Where nobody may set `trusted.*`, marks are `user.overlay.*`.
#[test]
fn overlays_work_in_a_user_namespace() {
    let name = "overlays_work_in_a_user_namespace";
    const INSIDE: &str = "LAYERSTORE_TEST_USER_NAMESPACE";
    if std::env::var_os(INSIDE).is_none() {
        return needs::run_again(name, "a user namespace with mounts of its own", |command| {
            needs::own_mounts(needs::as_root_of_own_users(command)).env(INSIDE, "yes");
        });
    }
    let disk = support::disk_dir();
    let store = Arc::new(Store::open(disk.path().join("store")).expect("a store"));
    let lower = Layer::new().dir("d", 0o755).file("d/a", b"1").file("d/b", b"2").file("e/f", b"3").put(&store);
    let upper = Layer::new().file("d/.wh..wh..opq", b"").file("d/c", b"4").file("e/.wh.f", b"").put(&store);
    let snapshots = support::layers::open(store.clone(), DriverKind::Overlay, &SnapshotterOptions::default());
    snapshots.commit_layer("1", None, &lower, &Labels::new()).expect("commits");
    snapshots.commit_layer("2", Some("1"), &upper, &Labels::new()).expect("commits");
    let mounts = snapshots.prepare("work", Some("2"), &Labels::new(), &()).expect("prepares");
    assert!(mounts[0].options.iter().any(|o| o == "userxattr"), "{mounts:?}");
    let target = disk.path().join("mounted");
    fs::create_dir(&target).expect("fresh");
    layerstore::mount_all(&mounts, &target).expect("mounts");
    let got = list(&target);
    layerstore::unmount(&target).expect("unmounts");
    assert_same(&expected(&store, &[lower, upper]), &got);
}

/// A process in a user namespace of its own whose users 0 to 65535 are `first` and following outside.
struct UserNamespace(std::process::Child);

/// What holds a [`UserNamespace`]: it ends when its input does. As a test it does nothing.
#[test]
fn a_holder() {
    if std::env::var_os(HOLDER).is_some() {
        std::io::stdin().lines().for_each(drop);
    }
}

const HOLDER: &str = "LAYERSTORE_TEST_HOLDER";

impl UserNamespace {
    /// Leaves the test off where there are no user namespaces.
    fn new(first: u32) -> Self {
        use std::process::{Command, Stdio};
        let mut holder = Command::new(std::env::current_exe().expect("a test binary"));
        holder.args(["--exact", "a_holder", "--nocapture"]).env(HOLDER, "yes");
        holder.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = match needs::own_users(&mut holder).spawn() {
            Err(e) if needs::refused(&e) => needs::leave_off(format!("a user namespace, which is refused here: {e}")),
            child => Self(child.expect("this test runs")),
        };
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{}/{map}", child.0.id()), format!("0 {first} 65536")).expect("root");
        }
        child
    }

    fn open(&self) -> fs::File {
        fs::File::open(format!("/proc/{}/ns/user", self.0.id())).expect("procfs")
    }
}

impl Drop for UserNamespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Id-mapped mounts show other owners of one extracted tree, and write as them.
#[test]
fn mounts_map_ids() {
    let name = "mounts_map_ids";
    if !namespaced(name) {
        return;
    }
    let disk = support::disk_dir();
    let store = Arc::new(Store::open(disk.path().join("store")).expect("a store"));
    let one = Layer::new().file("f", b"1").entry("g", EntryKind::Fifo, |e| e.uid = 7, b"").put(&store);
    let two = Layer::new().file("h", b"2").put(&store);
    let snapshots = support::layers::open(store, DriverKind::Overlay, &SnapshotterOptions::default());
    snapshots.commit_layer("1", None, &one, &Labels::new()).expect("commits");
    snapshots.commit_layer("2", Some("1"), &two, &Labels::new()).expect("commits");
    let namespace = UserNamespace::new(100_000);
    let target = disk.path().join("mounted");
    fs::create_dir(&target).expect("fresh");
    let owner = |name: &str| fs::metadata(target.join(name)).map(|m| (m.uid(), m.gid())).expect("there");
    let view = snapshots.view("v", Some("1"), &Labels::new(), &()).expect("views");
    let stacked = snapshots.view("s", Some("2"), &Labels::new(), &()).expect("views");
    for mounts in [view, stacked] {
        use std::os::fd::AsFd;
        match mounts[0].mount_id_mapped(&target, namespace.open().as_fd()) {
            Err(e) if e.kind() == ErrorKind::Unsupported => return println!("skipped: {name}: {e}"),
            other => other.expect("mounts"),
        }
        assert_eq!((owner("f"), owner("g")), ((100_000, 100_000), (100_007, 100_000)));
        assert!(fs::write(target.join("new"), "x").is_err(), "a view is read-only");
        layerstore::unmount(&target).expect("unmounts");
    }
    let active = snapshots.prepare("a", Some("2"), &Labels::new(), &()).expect("prepares");
    use std::os::fd::AsFd;
    let refused = active[0].mount_id_mapped(&target, namespace.open().as_fd()).expect_err("writable");
    assert_eq!(refused.kind(), ErrorKind::Unsupported);

    // Its lower directories have no names in the mount table, and stay all the same.
    let stacked = snapshots.mounts("s", &()).expect("mounts");
    stacked[0].mount_id_mapped(&target, namespace.open().as_fd()).expect("mounts");
    for key in ["v", "s", "a", "2", "1"] {
        snapshots.remove(key).expect("removes");
    }
    [one, two].iter().for_each(|layer| snapshots.store().release_layer(layer).expect("releases"));
    let trees = || {
        let plan = snapshots.store().gc_plan(&layerstore::GcOptions::default(), &()).expect("a plan");
        let goes = plan.garbage.iter().filter(|garbage| garbage.kind == layerstore::GarbageKind::Tree).count();
        (goes, plan.mounted.iter().filter(|path| path.starts_with("trees")).count())
    };
    assert_eq!(trees(), (0, 2));
    layerstore::unmount(&target).expect("unmounts");
    assert_eq!(trees(), (2, 0));
}

/// A parameter of the new mount API holds 255 bytes; paths may be longer.
#[test]
fn long_paths_are_mounted() {
    let name = "long_paths_are_mounted";
    if !namespaced(name) {
        return;
    }
    let disk = support::disk_dir();
    let deep = disk.path().join("x".repeat(200)).join("y: z,\\".repeat(20));
    fs::create_dir_all(&deep).expect("fresh");
    let store = Arc::new(Store::open(deep.join("store")).expect("a store"));
    let layers = ["a", "b", "c"].map(|name| Layer::new().file(name, name.as_bytes()).put(&store));
    let snapshots = support::layers::open(store, DriverKind::Overlay, &SnapshotterOptions::default());
    let mut parent = None;
    for (name, layer) in ["1", "2", "3"].into_iter().zip(&layers) {
        snapshots.commit_layer(name, parent, layer, &Labels::new()).expect("commits");
        parent = Some(name);
    }
    let mounts = snapshots.prepare("work", parent, &Labels::new(), &()).expect("prepares");
    let target = disk.path().join("mounted");
    fs::create_dir(&target).expect("fresh");
    layerstore::mount_all(&mounts, &target).expect("mounts");
    fs::write(target.join("d"), "d").expect("writable");
    let names: Vec<_> = list(&target).into_keys().collect();
    layerstore::unmount(&target).expect("unmounts");
    assert_eq!(names, [&b""[..], b"a", b"b", b"c", b"d"]);
}
