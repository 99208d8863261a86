//! Operations of a store, in any order and with writing that fails at any point, against a model of what must be there.
//!
//! Writing fails by the process's limit on the size of files, which packs, records and the database reach at different
//! steps. What failed must have happened or not, as a whole, and nothing that was there before may be lost.

use super::odd::Odd;
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::format::entry::{Entry, EntryKind, Time};
use crate::layer::ImportOptions;
use crate::limits::Limits;
use crate::snapshot::{CommitOptions, DriverKind, Labels, Snapshotter, SnapshotterOptions};
use crate::store::Store;
use crate::tar::Writer;
use crate::upkeep::{FsckOptions, GcOptions};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

/// Bytes of the input that make one operation.
const STEP: usize = 2;
/// Most operations of one input: each begins with a store on disk.
const MOST: usize = 24;
/// Bytes from here on make odd trees.
const ODD: u8 = 0x70;
/// Layers there are to import, and snapshots to prepare.
const LAYERS: u8 = 6;
const SNAPSHOTS: u8 = 3;

/// Files of a root, by name.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

/// What a snapshot must show.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shown {
    committed: bool,
    files: Files,
    /// Odd trees it has; at most one of them cannot be in a layer.
    odd: Vec<Odd>,
    /// The name of the committed snapshot below.
    parent: Option<String>,
}

/// What must be there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    /// Layers held by themselves.
    held: BTreeSet<u8>,
    snapshots: BTreeMap<String, Shown>,
    /// What commits were numbered with.
    commits: u32,
}

/// An operation, chosen by an input's bytes and by what there is.
#[derive(Clone, Debug)]
enum Operation {
    Import(u8),
    Release(u8),
    /// A committed snapshot of a layer that is held.
    Base(u8),
    Prepare(String, Option<String>),
    /// Not the store's: what a container does.
    Write(String, u8),
    /// Likewise.
    MakeOdd(String, Odd),
    Commit(String, String),
    Remove(String),
    Collect,
    Check,
    Reopen,
}

/// A store, and what must be in it.
struct Trial {
    dir: tempfile::TempDir,
    snapshots: Option<Snapshotter>,
    model: Model,
}

/// Does what the input says. With `failing`, writing fails where the input says so; the process must ignore `SIGXFSZ`.
pub fn store_operations(input: &[u8], failing: bool) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut trial = Trial { dir, snapshots: None, model: Model::default() };
    trial.reopen();
    for step in input.chunks_exact(STEP).take(MOST) {
        let limit = (failing && step[0] & 0x80 != 0).then(|| 4096u64 << (step[1] >> 5));
        if let Some(operation) = trial.choose(step[0] & 0x7f, step[1] & 0x1f) {
            trial.apply(&operation, limit);
        }
    }
    trial.reopen();
    trial.verify(true);
}

impl Drop for Trial {
    fn drop(&mut self) {
        self.snapshots = None;
        // Deeper than the temporary directory itself could remove it.
        crate::sys::remove::remove_tree(&self.dir.path().join("store")).expect("all can be removed");
    }
}

impl Trial {
    fn snapshots(&self) -> &Snapshotter {
        self.snapshots.as_ref().expect("a store is open")
    }

    fn reopen(&mut self) {
        self.snapshots = None;
        let store = Store::open(self.dir.path().join("store")).expect("a sound store");
        let options = SnapshotterOptions::default().driver(DriverKind::Copy);
        self.snapshots = Some(Snapshotter::open(Arc::new(store), &options).expect("copying works anywhere"));
    }

    fn choose(&self, kind: u8, which: u8) -> Option<Operation> {
        let pick = |committed: bool| {
            let all: Vec<_> = self.model.snapshots.iter().filter(|(_, s)| s.committed == committed).collect();
            (!all.is_empty()).then(|| all[usize::from(which) % all.len()].0.clone())
        };
        if kind >= ODD {
            let (key, odd) = (pick(false)?, Odd::of(which));
            let has = &self.model.snapshots[&key].odd;
            // With two reasons to be refused, either may be found first.
            let second = odd.refusal().is_some() && refusal(has).is_some();
            return (!second && !has.contains(&odd)).then_some(Operation::MakeOdd(key, odd));
        }
        Some(match kind % 16 {
            0..4 => Operation::Import(which % LAYERS),
            4 => Operation::Release(which % LAYERS),
            5 => Operation::Base(which % LAYERS),
            6..8 => Operation::Prepare(format!("work-{}", which % SNAPSHOTS), pick(true)),
            8 | 9 => Operation::Write(pick(false)?, which),
            10 | 11 => Operation::Commit(pick(false)?, format!("made-{}", self.model.commits)),
            12 => Operation::Remove(if which & 1 == 0 { pick(true).or(pick(false)) } else { pick(false) }?),
            13 => Operation::Collect,
            14 => Operation::Check,
            _ => Operation::Reopen,
        })
    }

    /// Does one operation, and holds what came of it against the model.
    fn apply(&mut self, operation: &Operation, limit: Option<u64>) {
        let before = self.model.clone();
        let expected = after(&before, operation);
        if let Operation::Reopen = operation {
            return self.reopen();
        }
        // What a container writes, or fails to, is its own affair.
        let limit = limit.filter(|_| !matches!(operation, Operation::Write(..) | Operation::MakeOdd(..)));
        let done = limited(limit, || self.run(operation));
        match (done, expected) {
            (Ok(()), Ok(after)) => self.model = after,
            (Err(e), Err(kind)) if e.kind() == kind => {}
            // A layer that nothing keeps is there until gc comes by.
            (Err(e), Ok(_)) if e.kind() == ErrorKind::NotFound && of_garbage(&before, operation) => {}
            (Err(e), expected) if limit.is_some() => {
                // Done or not done, but nothing between.
                self.reopen();
                let held = self.held();
                let after = expected.unwrap_or_else(|_| before.clone());
                let happened = held == after.held && self.keys() == keys(&after);
                let unhappened = held == before.held && self.keys() == keys(&before);
                assert!(happened || unhappened, "{operation:?} failed half-way: {e}: {held:?} {:?}", self.keys());
                self.model = if happened { after } else { before };
            }
            (done, expected) => panic!("{operation:?}: {done:?}, expected {expected:?}"),
        }
        self.verify(limit.is_some());
    }

    fn run(&self, operation: &Operation) -> Result<()> {
        let (snapshots, labels) = (self.snapshots(), Labels::new());
        let store = snapshots.store();
        match operation {
            Operation::Import(n) => {
                let options = ImportOptions::default().threads(NonZeroUsize::MIN);
                store.import_layer(&tar(*n)[..], &options, &()).map(drop)
            }
            Operation::Release(n) => store.release_layer(&Digest::of(&tar(*n))),
            Operation::Base(n) => snapshots.commit_layer(&format!("base-{n}"), None, &Digest::of(&tar(*n)), &labels),
            Operation::Prepare(key, parent) => snapshots.prepare(key, parent.as_deref(), &labels, &()).map(drop),
            Operation::Write(key, which) => {
                let (name, content) = written(*which);
                let path = self.directory(key).join(name);
                let _ = std::fs::remove_file(&path);
                std::fs::write(path, content).map_err(|e| crate::error::Error::io("write", e))
            }
            Operation::MakeOdd(key, odd) => {
                odd.make(&self.directory(key));
                Ok(())
            }
            Operation::Commit(key, name) => snapshots.commit(name, key, &CommitOptions::default(), &()).map(drop),
            Operation::Remove(key) => snapshots.remove(key),
            Operation::Collect => {
                let options = GcOptions::default();
                snapshots.cleanup()?;
                let plan = store.gc_plan(&options, &())?;
                store.gc(&plan, &options, &()).map(drop)
            }
            Operation::Check | Operation::Reopen => Ok(()),
        }
    }

    fn directory(&self, key: &str) -> std::path::PathBuf {
        let mounts = self.snapshots().mounts(key, &()).expect("a snapshot that must be there");
        Path::new(&mounts[0].source).to_owned()
    }

    fn held(&self) -> BTreeSet<u8> {
        let layers = self.snapshots().store().layers().expect("a database");
        let held: BTreeSet<Digest> = layers.into_iter().filter(|l| l.held).map(|l| l.diff_id).collect();
        (0..LAYERS).filter(|n| held.contains(&Digest::of(&tar(*n)))).collect()
    }

    fn keys(&self) -> BTreeSet<String> {
        let mut keys = BTreeSet::new();
        let walk = self.snapshots().walk(|info| {
            keys.insert(format!("{} {}", info.kind.as_str(), info.key));
            Ok(())
        });
        walk.expect("a database");
        keys
    }

    /// Everything is there as it must be; with `full` every byte of it.
    fn verify(&self, full: bool) {
        let store = self.snapshots().store();
        assert_eq!((self.held(), self.keys()), (self.model.held.clone(), keys(&self.model)));
        let report = store.fsck(&FsckOptions::default().full(full), &()).expect("not cancelled");
        assert!(report.is_clean(), "{:#?}", report.findings);
        if !full {
            return;
        }
        for n in &self.model.held {
            let mut back = Vec::new();
            let layer = store.layer(&Digest::of(&tar(*n))).expect("a layer that is held");
            layer.export(&mut back, NonZeroUsize::MIN, &()).expect("a sound layer");
            assert!(back == tar(*n), "layer {n} came out otherwise");
        }
        for (key, shown) in &self.model.snapshots {
            let files = match shown.committed {
                false => files_in(&self.directory(key)),
                true => {
                    let layers = self.snapshots().layers(key, &()).expect("a committed snapshot");
                    let root = store.root(&layers).expect("its layers");
                    let listed = root.list().filter(|e| matches!(e.entry.kind, EntryKind::File { .. }));
                    listed
                        .map(|e| {
                            let mut content = Vec::new();
                            root.open(&e.entry.path).and_then(|f| f.copy_to(&mut content)).expect("a file");
                            (String::from_utf8_lossy(&e.entry.path).into_owned(), content)
                        })
                        .collect()
                }
            };
            assert!(files == shown.files, "snapshot {key} shows other files: {:?}", files.keys());
        }
    }
}

/// The model after an operation that nothing disturbs, or the error it must give.
fn after(model: &Model, operation: &Operation) -> std::result::Result<Model, ErrorKind> {
    let mut now = model.clone();
    match operation {
        Operation::Import(n) => drop(now.held.insert(*n)),
        Operation::Release(n) => drop(now.held.remove(n)),
        Operation::Base(n) => {
            let key = format!("base-{n}");
            if now.snapshots.contains_key(&key) {
                return Err(ErrorKind::AlreadyExists);
            }
            now.snapshots.insert(key, Shown { committed: true, files: files(*n), odd: vec![], parent: None });
        }
        Operation::Prepare(key, parent) => {
            if now.snapshots.contains_key(key) {
                return Err(ErrorKind::AlreadyExists);
            }
            let below = parent.as_ref().map(|parent| &now.snapshots[parent]);
            let (files, odd) = below.map(|below| (below.files.clone(), below.odd.clone())).unwrap_or_default();
            now.snapshots.insert(key.clone(), Shown { committed: false, files, odd, parent: parent.clone() });
        }
        Operation::Write(key, which) => {
            let (name, content) = written(*which);
            now.snapshots.get_mut(key).expect("a snapshot").files.insert(name, content);
        }
        Operation::MakeOdd(key, odd) => {
            let shown = now.snapshots.get_mut(key).expect("a snapshot");
            odd.add_files(&mut shown.files);
            shown.odd.push(*odd);
        }
        Operation::Commit(key, name) => {
            if let Some(kind) = refusal(&now.snapshots[key].odd) {
                return Err(kind);
            }
            let shown = now.snapshots.remove(key).expect("a snapshot");
            now.snapshots.insert(name.clone(), Shown { committed: true, ..shown });
            now.commits += 1;
        }
        Operation::Remove(key) => {
            if now.snapshots.values().any(|s| s.parent.as_ref() == Some(key)) {
                return Err(ErrorKind::FailedPrecondition);
            }
            now.snapshots.remove(key);
        }
        Operation::Collect | Operation::Check | Operation::Reopen => {}
    }
    Ok(now)
}

/// Whether it is about a layer that nothing keeps, which may be there or not.
fn of_garbage(model: &Model, operation: &Operation) -> bool {
    let (Operation::Release(n) | Operation::Base(n)) = operation else { return false };
    !model.held.contains(n) && !model.snapshots.contains_key(&format!("base-{n}"))
}

/// Why a snapshot with these cannot be committed.
fn refusal(odd: &[Odd]) -> Option<ErrorKind> {
    odd.iter().find_map(|odd| odd.refusal())
}

fn keys(model: &Model) -> BTreeSet<String> {
    let kind = |shown: &Shown| if shown.committed { "committed" } else { "active" };
    model.snapshots.iter().map(|(key, shown)| format!("{} {key}", kind(shown))).collect()
}

/// Runs `work` while no file may grow beyond `limit` bytes.
fn limited<T>(limit: Option<u64>, work: impl FnOnce() -> T) -> T {
    let Some(limit) = limit else { return work() };
    let whole = getrlimit(Resource::Fsize);
    let set = |current| setrlimit(Resource::Fsize, Rlimit { current, maximum: whole.maximum });
    set(Some(limit)).expect("a lower limit");
    let out = work();
    set(whole.current).expect("the limit there was");
    out
}

/// Bytes without pattern, the same for the same seed.
fn noise(seed: u8, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut out);
    out
}

/// What layer `n` holds: layers share small and large files with those beside them.
fn files(n: u8) -> Files {
    let small = |seed: u8| (format!("small-{seed}"), noise(seed, 100 + usize::from(seed)));
    let mut files: Files = [small(n), small(n + 1), ("same".to_owned(), noise(n / 2, 3000))].into();
    files.insert("large".to_owned(), noise(100 + n / 2, 70_000 + 30_000 * usize::from(n % 3)));
    files
}

/// What a container writes.
fn written(which: u8) -> (String, Vec<u8>) {
    let len = [0, 10, 5000, 90_000][usize::from(which >> 3) % 4];
    (format!("written-{}", which % 4), noise(200 + which, len))
}

fn tar(n: u8) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), &Limits::default());
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    for (name, content) in files(n) {
        let kind = EntryKind::File { size: content.len() as u64, sparse: None };
        let mtime = Time { secs: 1_600_000_000, nanos: 0 };
        let entry = Entry { path: name.into_bytes(), kind, mode: 0o644, uid, gid, mtime, xattrs: vec![] };
        writer.entry(&entry).and_then(|()| writer.content(&content)).expect("writing to memory");
    }
    writer.finish().expect("writing to memory")
}

fn files_in(dir: &Path) -> Files {
    // Those of odd trees are beside them.
    let read = |found: std::io::Result<std::fs::DirEntry>| {
        let found = found?;
        let name = found.file_name().to_string_lossy().into_owned();
        found.file_type()?.is_file().then(|| Ok((name, std::fs::read(found.path())?))).transpose()
    };
    let found = std::fs::read_dir(dir).expect("a snapshot's directory");
    let files: std::io::Result<Files> = found.filter_map(|found| read(found).transpose()).collect();
    files.expect("files")
}
