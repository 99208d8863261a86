//! The hostile suite written to disk and mounted, by every driver, in 256 MiB of memory: what is taken gives the tree that
//! its layer says, and nothing outside of it is touched. And extraction into a directory that somebody else changes.
//!
//! The directory that the cases' symlinks lead to, `/srv/T`, is there, in a mount namespace of the test's own.

#[path = "hostile/mod.rs"]
#[allow(dead_code, reason = "how a case is compressed does not matter here")]
mod suite;
mod support;

use layerstore::{Digest, DriverKind, ErrorKind, ExtractOptions, ImportOptions, Labels, Snapshotter, Store};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use suite::{Case, NEED_A_LOWER_LAYER, Verdict, cases};
use support::cgroup::bounded;
use support::layers::{Layer, assert_same, commit_chain, expected, snapshotter};
use support::listing::{Listing, list};
use support::{assert_refusal, disk_dir, inside, namespaced, words};

/// What an import and an extraction may take, whatever the layer.
const MEMORY: u64 = 256 << 20;
/// Where the built cases are: building some takes more memory than that.
const CASES: &str = "LAYERSTORE_TEST_HOSTILE";
/// Trees of more names are compared by their number.
const COMPARED: u64 = 10_000;
/// The case of 200,000 names, each of which is a header.
const MANY: &str = "1M-empty-files.tar";
/// Attributes that the kernel checks or refuses itself: where it does not take them, the extraction says so.
const KERNELS_OWN: [&str; 2] = ["xattr-security-evm.tar", "xattr-security-selinux.tar"];

fn long() -> bool {
    std::env::var_os("LAYERSTORE_LONG").is_some()
}

/// Files and directories outside that no case may change.
struct Canaries {
    places: Vec<PathBuf>,
    before: Vec<Listing>,
}

impl Canaries {
    fn new(places: Vec<PathBuf>) -> Self {
        let before = places.iter().map(|place| list(place)).collect();
        Self { places, before }
    }

    fn assert_untouched(&self, by: &str) {
        for (place, before) in self.places.iter().zip(&self.before) {
            let found = support::listing::differences(before, &list(place));
            assert!(found.is_empty(), "{by} changed {}: {found:?}", place.display());
        }
    }
}

/// A directory with files worth attacking.
fn bait(dir: &Path) {
    fs::create_dir_all(dir.join("d")).expect("a directory");
    for name in ["f", "victim", "passwd", "d/f"] {
        fs::write(dir.join(name), format!("canary {name}")).expect("a file");
    }
}

/// Makes `/srv/T` and `/etc` places that only this mount namespace has, with bait in them.
fn private_places() -> Canaries {
    for (dir, at) in [("/srv", "/srv/T"), ("/etc", "/etc")] {
        rustix::mount::mount("canary", dir, "tmpfs", rustix::mount::MountFlags::empty(), None).expect("a tmpfs");
        bait(Path::new(at));
    }
    Canaries::new(vec!["/srv".into(), "/etc".into()])
}

/// How a layer gets to a directory.
#[derive(Clone, Copy, Debug)]
enum Way {
    Extract,
    Driver(DriverKind),
}

/// Where one way's store and directories are.
struct Place {
    dir: PathBuf,
    way: Way,
    store: Option<Snapshotter>,
    plain: Store,
}

impl Place {
    fn new(dir: PathBuf, way: Way) -> Self {
        fs::create_dir(&dir).expect("a directory");
        let root = dir.join("store");
        let plain = Store::open(&root).expect("a store");
        let store = match way {
            Way::Extract => None,
            Way::Driver(driver) => Some(snapshotter(&root, driver)),
        };
        fs::create_dir(dir.join("out")).expect("a directory");
        Self { dir, way, store, plain }
    }

    /// Hands the tree of a layer to `look`.
    fn see(&self, layer: &Digest, look: impl FnOnce(&Path)) -> layerstore::Result<()> {
        let Some(snapshots) = &self.store else {
            let dest = self.dir.join("out/tree");
            self.plain.extract(&[*layer], &dest, &ExtractOptions::default().strict(true), &())?;
            look(&dest);
            fs::remove_dir_all(dest).expect("a tree");
            return Ok(());
        };
        let top = commit_chain(snapshots, &[*layer]);
        let seen = snapshots.prepare("work", Some(&top), &Labels::new(), &()).map(|mounts| match self.way {
            Way::Driver(DriverKind::Copy) => look(Path::new(&mounts[0].source)),
            _ => inside(&self.dir.join("out"), &mounts, look),
        });
        if seen.is_ok() {
            snapshots.remove("work").expect("removes");
        }
        snapshots.remove(&top).expect("removes");
        snapshots.cleanup().expect("cleans up");
        seen
    }
}

fn try_case(place: &Place, case: &Case, blob: &Path) {
    let name = format!("{} by {:?}", case.name, place.way);
    let file = fs::File::open(blob).expect("a case");
    let options = ImportOptions::default().threads(support::THREADS);
    let layer = match (place.plain.import_layer(file, &options, &()), case.verdict) {
        (Ok((done, _)), Verdict::Safe) => done.diff_id,
        (Err(e), Verdict::Reject) => return assert_refusal(&e, &name),
        (Ok(_), Verdict::Reject) => panic!("{name} was taken, but: {}", case.reason),
        (Err(e), Verdict::Safe) => panic!("{name} was refused: {e}"),
    };
    let many = place.plain.layer(&layer).expect("a layer").len();
    let seen = place.see(&layer, |root| {
        if many <= COMPARED {
            assert_same(&expected(&place.plain, &[layer]), &list(root));
        } else {
            let names = fs::read_dir(root.join("d")).expect("its directory").count() as u64;
            assert_eq!(names, many, "{name}");
        }
    });
    match seen {
        Ok(()) => assert!(!NEED_A_LOWER_LAYER.contains(&case.name), "{name} stands alone"),
        Err(e) if NEED_A_LOWER_LAYER.contains(&case.name) => assert_refusal(&e, &name),
        Err(e) => {
            let told = e.kind() == ErrorKind::FailedPrecondition && KERNELS_OWN.contains(&case.name);
            assert!(told, "{name}: {e}");
            println!("{name}: {e}");
        }
    }
}

/// All cases one way.
fn all(test: &str, way: Way) {
    let cases_dir = disk_dir();
    if std::env::var_os(CASES).is_none() {
        for case in cases() {
            let mut tar = (case.build)();
            if case.name == MANY && !long() && matches!(way, Way::Driver(DriverKind::Copy | DriverKind::Overlay)) {
                // These write files with the code that `extracted` shows all of them.
                tar.drain(20_000 * 512..tar.len() - 1024);
            }
            fs::write(cases_dir.path().join(case.name), tar).expect("a case");
        }
    }
    if !bounded(test, MEMORY, &[(CASES, cases_dir.path())]) || !namespaced(test) {
        return;
    }
    let blobs = PathBuf::from(std::env::var_os(CASES).expect("the cases"));
    let mut canaries = private_places();
    let dir = disk_dir();
    let beside = dir.path().join("beside");
    bait(&beside);
    canaries.places.push(beside.clone());
    canaries.before.push(list(&beside));
    let place = Place::new(dir.path().join("place"), way);
    let mut count = 0;
    for case in cases() {
        try_case(&place, case, &blobs.join(case.name));
        canaries.assert_untouched(case.name);
        let names = |dir: &Path| fs::read_dir(dir).expect("a directory").count();
        assert_eq!((names(dir.path()), names(&place.dir), names(&place.dir.join("out"))), (2, 2, 0), "{}", case.name);
        count += 1;
    }
    println!("{test}: {count} cases, canaries untouched");
    assert_eq!(count, 109);
}

#[test]
fn extracted() {
    all("extracted", Way::Extract);
}

#[test]
fn by_the_copy_driver() {
    all("by_the_copy_driver", Way::Driver(DriverKind::Copy));
}

#[test]
fn by_the_overlay_driver() {
    all("by_the_overlay_driver", Way::Driver(DriverKind::Overlay));
}

#[test]
fn by_the_erofs_driver() {
    all("by_the_erofs_driver", Way::Driver(DriverKind::Erofs));
}

/// Puts a symlink to `canary` in the place of `dir`, and back, until `stop`; how often.
fn swap(dir: &Path, canary: &Path, stop: &AtomicBool) -> u64 {
    let away = dir.with_file_name(format!(".away-{}", dir.file_name().expect("a name").to_string_lossy()));
    let mut swaps = 0;
    while !stop.load(Relaxed) {
        if fs::rename(dir, &away).is_err() {
            continue;
        }
        if symlink(canary, dir).is_ok() {
            swaps += 1;
            std::thread::yield_now();
            let _ = fs::remove_file(dir);
        }
        let _ = fs::rename(&away, dir);
    }
    swaps
}

/// Whoever can write to a directory while a tree is extracted into it can spoil the tree, and lead nothing outside.
#[test]
fn swapped_directories_lead_nowhere() {
    let dir = disk_dir();
    let store = Store::open(dir.path().join("store")).expect("a store");
    let mut layer = Layer::own();
    for d in 0..12 {
        layer.dir(&format!("d{d}"), 0o750).dir(&format!("d{d}/d"), 0o711);
        for n in 0..40 {
            layer.file(&format!("d{d}/d/f{n}"), &words(n, 500)).file(&format!("d{d}/{n}"), b"x");
        }
        layer.hardlink(&format!("d{d}/link"), &format!("d{d}/d/f0")).symlink(&format!("d{d}/d/victim"), "f1");
    }
    let layer = layer.put(&store);
    let canary = dir.path().join("canary");
    bait(&canary);
    let canaries = Canaries::new(vec![canary.clone()]);
    let until = Instant::now() + Duration::from_secs(if long() { 120 } else { 5 });
    let (mut spoilt, mut whole, mut swaps) = (0, 0, 0);
    for round in 0.. {
        if Instant::now() > until {
            break;
        }
        let dest = dir.path().join("dest");
        // One that is there is emptied after a failure instead of removed.
        if round % 2 == 0 {
            fs::create_dir(&dest).expect("a directory");
        }
        let attacked = [dest.clone(), dest.join("d0"), dest.join("d5"), dest.join("d5/d"), dest.join("d11/d")];
        let attacked = &attacked[round % attacked.len()];
        let stop = AtomicBool::new(false);
        let done = std::thread::scope(|scope| {
            let attacker = scope.spawn(|| swap(attacked, &canary, &stop));
            let done = store.extract(&[layer], &dest, &ExtractOptions::default().sync(false), &());
            stop.store(true, Relaxed);
            swaps += attacker.join().expect("an attacker");
            done
        });
        canaries.assert_untouched(&format!("round {round}: {done:?}"));
        if done.is_ok() {
            whole += 1
        } else {
            spoilt += 1
        }
        let _ = fs::remove_dir_all(&dest);
        let _ = fs::remove_dir_all(dir.path().join(".away-dest"));
    }
    println!("{swaps} swaps: {spoilt} extractions spoilt, {whole} whole");
    assert!(swaps > 20 && spoilt > 2, "{swaps} swaps, {spoilt} extractions spoilt: nothing was shown");
}
