//! Garbage collection: what nothing needs goes, what anything needs stays, whatever happens beside it.
//!
//! The test binary runs itself as other processes: `a_child` does what [`ROLE`] asks for and else nothing.

#[path = "../hostile/build.rs"]
#[allow(dead_code, reason = "a part of the builders is wanted")]
mod build;
mod plans;
#[path = "../support/mod.rs"]
mod support;

use build::tar;
use layerstore::{
    Detected, Digest, DriverKind, ErrorKind, GarbageKind, GcOptions, GcPlan, GcReport, ImportOptions, Keeper, Labels,
    Limits, Selector, Snapshotter, SnapshotterOptions, Store, detect,
};
use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};
use support::{assert_empty, export, import, names, noise, rows, store, walk, words, write_image};

const ROLE: &str = "LAYERSTORE_TEST_GC_ROLE";

/// A layer of a large file and many small ones of its own, and of others that all layers of a `family` have.
fn layer(family: u64, seed: u64) -> Vec<u8> {
    let large = |name: &str, seed| build::file(format!("{name}/large"), noise(seed, 600_000));
    let small = |name: &str, seed: u64| {
        let file = |n| build::file(format!("{name}/{n}"), words(seed * 1000 + n, 2500));
        (0..60).map(file).collect::<Vec<_>>().concat()
    };
    let family = family + 1_000_000;
    tar(&[large("own", seed), large("family", family), small("own", seed), small("family", family)])
}

fn plan(store: &Store) -> GcPlan {
    store.gc_plan(&GcOptions::default(), &()).expect("a sound store")
}

fn gc(store: &Store) -> GcReport {
    store.gc(&plan(store), &GcOptions::default(), &()).expect("a sound store")
}

/// Disk the store takes, the database left out, which keeps its size.
fn disk(store: &Store) -> u64 {
    let usage = store.usage().expect("a sound store");
    usage.total() - usage.database
}

fn image(store: &Store, dir: &Path, name: &str, tars: &[Vec<u8>]) {
    let layout = dir.join(name);
    write_image(&layout, tars);
    let Ok(Detected::Image(source)) = detect(&layout, dir, &Limits::default()) else { panic!("no image") };
    let options = ImportOptions::default().threads(support::THREADS).keep_blobs(true);
    store.import_image(&source, &Selector::default(), Some(name), &options, &()).expect("a good image");
}

#[test]
fn an_empty_store_has_no_garbage() {
    let (_dir, store) = store();
    assert!(plan(&store).is_empty());
    assert_eq!(gc(&store), GcReport::default());
}

#[test]
fn what_only_a_removed_image_had_goes() {
    let (dir, store) = store();
    let tars = [layer(1, 1), layer(1, 2), layer(1, 3)];
    image(&store, dir.path(), "one", &tars[..2]);
    let alone = disk(&store);
    image(&store, dir.path(), "two", &tars[1..]);
    assert!(plan(&store).is_empty());
    let both = disk(&store);

    store.remove_image("two").unwrap();
    let plan = plan(&store);
    let kinds: BTreeSet<_> = plan.garbage.iter().map(|g| g.kind.as_str()).collect();
    assert_eq!(kinds, ["blob", "layer", "pack"].into());
    assert_eq!(plan.garbage.iter().filter(|g| g.kind == GarbageKind::Layer).count(), 1);
    // Configuration, manifest, and the blob of the layer that goes.
    assert_eq!(plan.garbage.iter().filter(|g| g.kind == GarbageKind::Blob).count(), 3);
    let report = store.gc(&plan, &GcOptions::default(), &()).unwrap();
    assert_eq!((report.bytes(), report.waiting, report.chunks), (plan.bytes(), 0, plan.chunks));
    assert_eq!(disk(&store), both - report.bytes());
    assert_eq!(disk(&store), alone, "the store is as if the second image had never been there");
    assert!(tars[..2].iter().all(|tar| export(&store, &Digest::of(tar)) == *tar));
    assert_eq!(store.layer(&Digest::of(&tars[2])).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(crate::plan(&store).is_empty(), "a second gc finds nothing");

    store.remove_image("one").unwrap();
    gc(&store);
    assert_empty(&store, "the last image is gone");
}

#[test]
fn dead_chunks_are_punched_out_of_packs_that_stay() {
    let (_dir, store) = store();
    let (first, second) = (layer(1, 1), layer(1, 2));
    let first = import(&store, &first).diff_id;
    import(&store, &second);
    let packs = store.usage().unwrap().packs;
    store.release_layer(&first).unwrap();
    let plan = plan(&store);
    assert!(plan.punch > 500_000, "{plan:?}");
    let report = store.gc(&plan, &GcOptions::default(), &()).unwrap();
    assert_eq!((report.punched, report.unpunched), (plan.punch, 0));
    assert_eq!(store.usage().unwrap().packs, packs - plan.punch);
    assert!(export(&store, &Digest::of(&second)) == second);
    // What was punched out can be had again.
    assert_eq!(import(&store, &layer(1, 1)).diff_id, first);
    assert!(export(&store, &first) == layer(1, 1) && export(&store, &Digest::of(&second)) == second);
}

#[test]
fn addresses_of_removed_packs_stay_unused() {
    let (_dir, store) = store();
    let mut seen = BTreeSet::new();
    for seed in 0..4 {
        let id = import(&store, &layer(seed, seed)).diff_id;
        let packs = names(store.path(), "packs");
        assert!(packs.iter().all(|pack| seen.insert(pack.clone())), "{packs:?} after {seen:?}");
        store.release_layer(&id).unwrap();
        gc(&store);
        assert_empty(&store, "a layer came and went");
    }
}

#[test]
fn small_files_of_a_dead_bundle_are_stored_anew() {
    let (_dir, store) = store();
    let small = |name: &str| tar(&[build::file(name, words(1, 3000))]);
    let first = import(&store, &small("a")).diff_id;
    store.release_layer(&first).unwrap();
    gc(&store);
    assert_eq!(rows(store.path(), "members"), 0);
    // Numbers of chunks are given out again: they must not lead to the old place.
    import(&store, &tar(&[build::file("b", words(2, 3000))]));
    let again = import(&store, &small("c")).diff_id;
    assert!(export(&store, &again) == small("c"));
}

/// A layer's blob that waits before its end until it is told to go on.
struct Halting {
    rest: Vec<u8>,
    halt_at: usize,
    reached: Sender<()>,
    go_on: Receiver<()>,
}

impl Halting {
    fn new(tar: &[u8]) -> (Self, Receiver<()>, Sender<()>) {
        let ((reached, wait), (tell, go_on)) = (channel(), channel());
        (Self { rest: tar.to_vec(), halt_at: 1, reached, go_on }, wait, tell)
    }
}

impl Read for Halting {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.rest.len() <= self.halt_at && self.halt_at > 0 {
            self.halt_at = 0;
            self.reached.send(()).expect("a test that waits");
            // What was read is chunked by then; the workers are not slower than this.
            self.go_on.recv().expect("a test that goes on");
        }
        let len = buffer.len().min(self.rest.len().saturating_sub(self.halt_at));
        buffer[..len].copy_from_slice(&self.rest[..len]);
        self.rest.drain(..len);
        Ok(len)
    }
}

/// Runs `meanwhile` while an import of `tar` has seen all of it but the last byte.
fn beside_an_import(store: &Store, tar: &[u8], meanwhile: impl FnOnce()) {
    let (reader, reached, go_on) = Halting::new(tar);
    std::thread::scope(|scope| {
        // Dropped when `meanwhile` panics, so that the import ends.
        let go_on = go_on;
        let import = scope.spawn(|| store.import_layer(reader, &ImportOptions::default(), &()));
        reached.recv().expect("an import");
        std::thread::sleep(Duration::from_millis(200));
        meanwhile();
        go_on.send(()).expect("an import");
        import.join().expect("an import").expect("a good layer");
    });
}

#[test]
fn an_import_brings_back_what_it_counts_on() {
    let (_dir, store) = store();
    let old = import(&store, &layer(1, 1)).diff_id;
    let new = layer(1, 2);
    beside_an_import(&store, &new, || {
        store.release_layer(&old).unwrap();
        let report = gc(&store);
        assert!(report.chunks > 5 && report.waiting == report.chunks && report.punched == 0, "{report:?}");
        // A second one while they wait changes nothing.
        assert_eq!(gc(&store).waiting, report.chunks);
    });
    assert!(export(&store, &Digest::of(&new)) == new);
    let report = gc(&store);
    assert!(report.waiting == 0 && report.punched > 500_000, "{report:?}");
    assert!(export(&store, &Digest::of(&new)) == new);
    // Small files that came back are found again: only the layer's own are new.
    let before = rows(store.path(), "members");
    import(&store, &layer(1, 3));
    assert_eq!(rows(store.path(), "members"), before + 60);
}

/// What an import stored although another one was first is dead space.
#[test]
fn copies_that_lost_the_race_are_freed() {
    let (_dir, store) = store();
    let (slow, quick) = (layer(1, 1), layer(1, 2));
    beside_an_import(&store, &slow, || {
        import(&store, &quick);
    });
    let plan = plan(&store);
    assert!(plan.chunks == 0 && plan.punch > 500_000, "{plan:?}");
    let report = gc(&store);
    assert_eq!((report.punched, report.chunks), (plan.punch, 0));
    assert!([&slow, &quick].iter().all(|tar| export(&store, &Digest::of(tar)) == **tar));
    assert!(crate::plan(&store).is_empty());
}

#[test]
fn a_lease_keeps_what_it_was_given() {
    let (dir, store) = store();
    let tars = [layer(1, 1), layer(1, 2)];
    image(&store, dir.path(), "i", &tars);
    let info = store.image("i").unwrap();
    let other = import(&store, &layer(2, 3)).diff_id;

    let lease = store.lease(Some(Duration::from_secs(600))).unwrap();
    lease.image(&info).unwrap();
    lease.layer(&other).unwrap();
    assert_eq!(lease.layer(&Digest::of(b"none")).unwrap_err().kind(), ErrorKind::NotFound);
    store.remove_image("i").unwrap();
    store.release_layer(&other).unwrap();
    let report = gc(&store);
    let kinds: BTreeSet<_> = report.removed.iter().map(|g| g.kind).collect();
    assert_eq!((kinds, report.chunks), ([].into(), 0), "{report:?}");
    assert!(store.image_config(&info).is_ok() && store.image_manifest(&info).is_ok());
    assert!(tars.iter().all(|tar| export(&store, &Digest::of(tar)) == *tar));
    drop(lease);
    assert_eq!(rows(store.path(), "leases") + rows(store.path(), "lease_refs"), 0);
    gc(&store);
    assert_empty(&store, "the lease was dropped");
}

#[test]
fn a_lease_ends_with_its_time() {
    let (_dir, store) = store();
    let id = import(&store, &layer(1, 1)).diff_id;
    let lease = store.lease(Some(Duration::ZERO)).unwrap();
    lease.layer(&id).unwrap();
    lease.renew(Some(Duration::from_secs(60))).unwrap();
    store.release_layer(&id).unwrap();
    assert!(plan(&store).is_empty());
    lease.renew(Some(Duration::ZERO)).unwrap();
    gc(&store);
    assert_empty(&store, "the lease's time was over");
    assert_eq!(lease.renew(None).unwrap_err().kind(), ErrorKind::FailedPrecondition);
    assert_eq!(lease.layer(&id).unwrap_err().kind(), ErrorKind::FailedPrecondition);
}

#[test]
fn directories_and_images_of_no_chain_go() {
    let (dir, store) = store();
    let tars = [layer(1, 1), layer(1, 2)];
    image(&store, dir.path(), "i", &tars);
    let ids: Vec<_> = tars.iter().map(|tar| Digest::of(tar)).collect();
    let chains = [Digest::chain(None, ids[0]), Digest::chain(Some(ids[0]), ids[1]), Digest::chain(None, ids[1])];
    let path = |name: String| store.path().join(name);
    for chain in &chains {
        fs::create_dir_all(path(format!("trees/{}/a/b", chain.hex()))).unwrap();
        fs::write(path(format!("trees/{}/a/f", chain.hex())), noise(1, 100_000)).unwrap();
        fs::write(path(format!("images/{}.erofs", chain.hex())), noise(2, 50_000)).unwrap();
    }
    fs::create_dir_all(path("snapshots/17/fs/etc".into())).unwrap();
    // Directories alone take no space on a tmpfs.
    fs::write(path("snapshots/17/fs/etc/f".into()), noise(3, 10_000)).unwrap();
    let open = fs::File::open(path(format!("images/{}.erofs", chains[2].hex()))).unwrap();
    let planned = plan(&store);
    let kinds: Vec<_> = planned.garbage.iter().map(|g| g.kind).collect();
    assert_eq!(kinds, [GarbageKind::Tree, GarbageKind::Image, GarbageKind::Snapshot]);
    assert!(planned.garbage.iter().all(|g| g.bytes > 0 && !g.why.is_empty()));

    let report = gc(&store);
    let kinds: Vec<_> = report.removed.iter().map(|g| g.kind).collect();
    assert_eq!(kinds, [GarbageKind::Tree, GarbageKind::Snapshot], "an image somebody has open stays");
    drop(open);
    assert_eq!(gc(&store).removed.len(), 1);
    let kept: BTreeSet<_> = chains[..2].iter().map(Digest::hex).collect();
    assert_eq!(names(store.path(), "trees").into_iter().collect::<BTreeSet<_>>(), kept);
    assert_eq!((names(store.path(), "images").len(), names(store.path(), "snapshots").len()), (2, 0));
    assert!(names(store.path(), "tmp").is_empty());
    store.remove_image("i").unwrap();
    gc(&store);
    assert_empty(&store, "the image is gone");
    assert!(names(store.path(), "trees").is_empty() && names(store.path(), "images").is_empty());
}

/// What became needed between plan and gc stays.
#[test]
fn a_plan_removes_no_more_than_what_is_garbage_still() {
    let (_dir, store) = store();
    let tar = layer(1, 1);
    let id = import(&store, &tar).diff_id;
    store.release_layer(&id).unwrap();
    let plan = plan(&store);
    assert!(!plan.is_empty());
    assert!(import(&store, &tar).known);
    let report = store.gc(&plan, &GcOptions::default(), &()).unwrap();
    assert_eq!((report.removed, report.chunks), (vec![], 0));
    assert!(export(&store, &id) == tar);
    assert_eq!(store.layers().unwrap().len(), 1);
}

#[test]
fn leftovers_of_unfinished_imports_go() {
    let (_dir, store) = store();
    let tar = layer(1, 1);
    let id = import(&store, &tar).diff_id;
    let stray = Digest::of(b"stray").hex();
    fs::write(store.path().join("layers").join(format!("{stray}.layer")), "x").unwrap();
    fs::write(store.path().join("blobs").join(&stray), "x").unwrap();
    fs::write(store.path().join("blobs").join("README"), "not ours").unwrap();
    assert_eq!(gc(&store).removed.len(), 2);
    assert_eq!(names(store.path(), "blobs"), ["README"]);
    assert!(export(&store, &id) == tar);
}

/// As long as it is unknown what a layer needs, nothing goes.
#[test]
fn a_damaged_record_stops_gc() {
    let (_dir, store) = store();
    let tars = [layer(1, 1), layer(1, 2)];
    let ids: Vec<_> = tars.iter().map(|tar| import(&store, tar).diff_id).collect();
    store.release_layer(&ids[0]).unwrap();
    let record = store.path().join("layers").join(format!("{}.layer", ids[1].hex()));
    let good = fs::read(&record).unwrap();
    for at in [0, 20, 80, 120, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&record, bad).unwrap();
        let error = store.gc_plan(&GcOptions::default(), &()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{at}: {error}");
        // Plans of the time before, also one that found no chunk to remove.
        for chunks in [0, 1] {
            let mut plan = GcPlan::default();
            plan.chunks = chunks;
            let error = store.gc(&plan, &GcOptions::default(), &()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{at}: {error}");
        }
    }
    fs::write(&record, good).unwrap();
    assert!(tars.iter().all(|tar| export(&store, &Digest::of(tar)) == *tar));
}

fn spawn(role: &[&str]) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command.args(["a_child", "--exact", "--nocapture"]).env(ROLE, role.join("\t"));
    command.stdout(Stdio::piped()).spawn().expect("this test runs")
}

#[test]
fn a_child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let role: Vec<&str> = role.split('\t').collect();
    match role[..] {
        ["lease", root, id] => {
            let store = Store::open(root).expect("a store");
            let lease = store.lease(None).expect("a lease");
            lease.layer(&id.parse().expect("a digest")).expect("a layer");
            println!("\nready");
            std::thread::sleep(Duration::from_secs(600));
        }
        ["import", root, seed, millis] => import_and_release(root, number(seed), number(millis)),
        ["gc", root, millis] => collect(root, number(millis)),
        _ => panic!("no such role: {role:?}"),
    }
}

fn number(text: &str) -> u64 {
    text.parse().expect("a number")
}

#[test]
fn a_lease_ends_with_its_process() {
    let (_dir, store) = store();
    let tar = layer(1, 1);
    let id = import(&store, &tar).diff_id;
    let mut child = spawn(&["lease", store.path().to_str().unwrap(), &id.to_string()]);
    let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while line.trim() != "ready" {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut out, &mut line).unwrap() > 0, "the child ended early");
    }
    store.release_layer(&id).unwrap();
    assert!(gc(&store).removed.is_empty());
    assert!(export(&store, &id) == tar);
    child.kill().unwrap();
    child.wait().unwrap();
    drop(Store::open(store.path()).unwrap());
    assert_eq!(rows(store.path(), "leases"), 0, "the next open ends it");
    gc(&store);
    assert_empty(&store, "the lease's process was killed");
}

const FAMILIES: u64 = 2;
const SEEDS: u64 = 3;

/// Imports layers over and over and lets go of them at once. What a lease keeps can be read as long as it does.
fn import_and_release(root: &str, mut seed: u64, millis: u64) {
    let store = Store::open(root).expect("a store");
    let (begin, mut rounds, mut new) = (Instant::now(), 0u64, 0u64);
    while begin.elapsed().as_millis() < u128::from(millis) {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let tar = layer((seed >> 33) % FAMILIES, (seed >> 40) % SEEDS);
        let options = ImportOptions::default().threads(support::THREADS);
        let (done, stats) = store.import_layer(&tar[..], &options, &()).expect("a good layer");
        let lease = store.lease(None).expect("a lease");
        match lease.layer(&done.diff_id) {
            // Another process let go of it, and gc came by.
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            other => other.expect("a layer"),
        }
        store.release_layer(&done.diff_id).expect("a layer");
        assert!(export(&store, &done.diff_id) == tar, "other bytes came out");
        rounds += 1;
        new += stats.new_chunks;
    }
    println!("\nimports {rounds}, new chunks {new}");
}

fn collect(root: &str, millis: u64) {
    let store = Store::open(root).expect("a store");
    let (begin, mut rounds, mut chunks, mut waited, mut bytes) = (Instant::now(), 0u64, 0u64, 0u64, 0u64);
    while begin.elapsed().as_millis() < u128::from(millis) {
        let report = gc(&store);
        (rounds, chunks) = (rounds + 1, chunks + report.chunks);
        (waited, bytes) = (waited + u64::from(report.waiting > 0), bytes + report.bytes());
    }
    println!("\ngc {rounds}, {chunks} chunks died, {waited} had to wait, {bytes} bytes freed");
}

/// Several processes import layers that share content and let go of them, while others collect garbage.
#[test]
fn gc_beside_imports_loses_nothing() {
    let (_dir, store) = store();
    let root = store.path().to_str().unwrap();
    let long = std::env::var_os("LAYERSTORE_LONG").is_some();
    let millis = if long { "300000" } else { "6000" };
    let seeds = ["1", "22", "333"];
    let mut children: Vec<Child> = seeds.iter().map(|seed| spawn(&["import", root, seed, millis])).collect();
    children.extend((0..2).map(|_| spawn(&["gc", root, millis])));
    let mut died = false;
    for child in children {
        let out = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success(), "{text}");
        let line = text.lines().rfind(|l| l.contains("imports ") || l.contains("gc ")).unwrap_or_default();
        println!("{line}");
        died |= line.contains("chunks died") && !line.contains(", 0 chunks");
    }
    assert!(died, "no chunk ever died: nothing was shown");
    let tars: Vec<_> = (0..FAMILIES).flat_map(|family| (0..SEEDS).map(move |seed| layer(family, seed))).collect();
    for tar in &tars {
        import(&store, tar);
    }
    let report = gc(&store);
    assert_eq!(report.waiting, 0);
    assert!(tars.iter().all(|tar| export(&store, &Digest::of(tar)) == *tar));
    tars.iter().for_each(|tar| store.release_layer(&Digest::of(tar)).unwrap());
    gc(&store);
    assert_empty(&store, "all was let go of");
    assert_eq!(rows(store.path(), "dead_chunks") + rows(store.path(), "leases"), 0);
}

/// Killed between the row of a pack and its file, gc left the file; the next takes it.
#[test]
fn packs_without_a_row_go() {
    let (_dir, store) = store();
    import(&store, &layer(1, 1));
    let lost = store.path().join("packs/000ff000000.pack");
    fs::write(&lost, noise(1, 100_000)).expect("a file");
    let found = plan(&store);
    assert_eq!(
        found.garbage.iter().map(|g| (g.kind, &g.name[..])).collect::<Vec<_>>(),
        [(GarbageKind::Pack, "000ff000000")]
    );
    assert_eq!(gc(&store).removed, found.garbage);
    assert!(!lost.exists() && plan(&store).is_empty() && names(store.path(), "packs").len() == 1);
}

/// What images are said to take alone is what comes back without them, and all of it together is what the file system
/// says.
#[test]
fn usage_by_image_is_what_removing_it_gives_back() {
    let (dir, store) = store();
    let all = |store: &Store| {
        let mut bytes = 0;
        walk(store.path(), &mut |_, meta| bytes += meta.blocks() * 512);
        bytes
    };
    image(&store, dir.path(), "a", &[layer(1, 1), layer(2, 2)]);
    image(&store, dir.path(), "b", &[layer(1, 1), layer(3, 3)]);
    import(&store, &layer(4, 4));
    import(&store, &layer(2, 2));
    let usage = store.usage_by_image(&()).expect("usage");
    let names: Vec<_> = usage.images.iter().map(|i| &i.name[..]).collect();
    assert_eq!(names, ["a", "b"]);
    let near = |a: u64, b: u64, what: &str| assert!(a.abs_diff(b) * 100 <= all(&store), "{what}: {a} and {b}");
    near(usage.total(), all(&store), "the sum");
    assert!(usage.overhead * 4 < all(&store), "{usage:?}");
    assert!(usage.images.iter().all(|i| i.shared > 0) && usage.others > 0 && usage.reclaimable == 0, "{usage:?}");
    for name in ["b", "a"] {
        let (before, usage) = (disk(&store), store.usage_by_image(&()).expect("usage"));
        let alone = usage.images.iter().find(|i| i.name == name).expect("listed").exclusive;
        store.remove_image(name).expect("removed");
        near(store.usage_by_image(&()).expect("usage").reclaimable, alone, name);
        gc(&store);
        near(before - disk(&store), alone, name);
    }
}

#[test]
fn keepers_are_named() {
    let (dir, store) = store();
    let (first, second) = (layer(1, 1), layer(2, 2));
    image(&store, dir.path(), "a", &[first.clone(), second.clone()]);
    let (first, second) = (Digest::of(&first), Digest::of(&second));
    let info = store.image("a").expect("the image");
    let keepers = |of: &Digest| store.keepers(of).expect("keepers");
    let by_image = || vec![Keeper::Image("a".into())];
    let chain = Digest::chain_of(&[first, second]).expect("two layers");
    for of in [&first, &second, &info.config, &info.manifest, &chain] {
        assert_eq!(keepers(of), by_image());
    }
    let options = SnapshotterOptions::default().driver(DriverKind::Copy).namespace("n");
    let store = Arc::new(store);
    let snapshots = Snapshotter::open(store.clone(), &options).expect("the copy driver");
    snapshots.commit_layer("s", None, &second, &Labels::new()).expect("commits");
    let lease = store.lease(None).expect("a lease");
    lease.layer(&first).expect("leased");
    store.remove_image("a").expect("removed");
    let keepers = |of: &Digest| store.keepers(of).expect("keepers");
    assert_eq!(keepers(&second), [Keeper::Snapshot { namespace: "n".into(), key: "s".into() }]);
    assert!(matches!(&keepers(&first)[..], [Keeper::Lease(_, None)]), "{:?}", keepers(&first));
    drop(lease);
    assert_eq!((keepers(&first), keepers(&chain), keepers(&info.config)), (vec![], vec![], vec![]));
}

/// What a handle refers to after gc has taken it is not there any more, which is no damage.
#[test]
fn stale_handles_find_nothing() {
    let (dir, store) = store();
    image(&store, dir.path(), "one", &[layer(1, 1)]);
    let one = store.image("one").expect("an image");
    let handle = store.layer(&one.layers[0]).expect("a layer");
    let root = store.root(&one.layers).expect("composes");
    let (early, late) = (root.open(b"own/large").expect("a file"), root.open(b"own/3").expect("a file"));
    let entry = handle.find(b"own/5").expect("an entry");
    let of_layer = handle.open(&entry).expect("a file");
    let mut buffer = [0; 100];
    early.read_at(&mut buffer, 0).expect("reads");
    store.remove_image("one").expect("there");
    early.read_at(&mut buffer, 500_000).expect("gc has not been there");
    gc(&store);
    let gone = |error: Option<layerstore::Error>, what| {
        let error = error.expect(what);
        assert_eq!(error.kind(), ErrorKind::NotFound, "{what}: {error}");
    };
    gone(early.read_at(&mut buffer, 300_000).err(), "an open file that was read from");
    gone(late.read_at(&mut buffer, 0).err(), "an open file");
    gone(of_layer.read_at(&mut buffer, 0).err(), "an open file of a layer");
    gone(root.open(b"own/7").and_then(|file| file.read_at(&mut buffer, 0)).err(), "a root");
    gone(handle.entries().err(), "a layer's entries");
    gone(handle.export(&mut std::io::sink(), support::THREADS, &()).err(), "a layer's export");
    gone(store.image_config(&one).err(), "an image's configuration");
    gone(store.image_manifest(&one).err(), "an image's manifest");
}
