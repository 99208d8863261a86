//! What is done to a store while something goes wrong, and what must then be in it.

use crate::build;
use crate::support::{self, names, noise, words};
use layerstore::{
    CommitOptions, Digest, DriverKind, Error, ErrorKind, GcOptions, ImportOptions, Labels, OpenOptions, RebuildOptions,
    RepairOptions, Result, Snapshotter, SnapshotterOptions, Store,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Something a worker does. Layers are named by the seed of [`layer`], commits by that of [`written`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// Opens the store, making it if it is not there.
    Open,
    /// Imports a layer.
    Import(u64),
    /// Imports a layer and keeps its blob.
    Keep(u64),
    /// Makes a layer of what was written to a snapshot: to the upper directory of an overlay for even seeds, where there
    /// are overlays, to a whole tree for odd ones.
    Commit(u64),
    /// Takes what was written to a snapshot as a directory, of which gc makes a layer later.
    Adopt(u64),
    /// Lets go of a layer, so that it may be collected.
    Release(u64),
    /// Makes layers of adopted directories, and collects garbage.
    Gc,
    /// Damages the store: see [`damage`].
    Damage,
    /// Mends the store with the blobs it kept.
    Repair,
    /// Makes the database anew.
    Rebuild,
    /// The operation before this one once more if it failed, else nothing.
    Again,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open => write!(f, "open"),
            Self::Import(seed) => write!(f, "import {seed}"),
            Self::Keep(seed) => write!(f, "keep {seed}"),
            Self::Commit(seed) => write!(f, "commit {seed}"),
            Self::Adopt(seed) => write!(f, "adopt {seed}"),
            Self::Release(seed) => write!(f, "release {seed}"),
            Self::Gc => write!(f, "gc"),
            Self::Damage => write!(f, "damage"),
            Self::Repair => write!(f, "repair"),
            Self::Rebuild => write!(f, "rebuild"),
            Self::Again => write!(f, "again"),
        }
    }
}

impl Op {
    pub(crate) fn parse(line: &str) -> Self {
        let (word, seed) = line.trim().split_once(' ').unwrap_or((line.trim(), "0"));
        let seed = seed.parse().expect("a number");
        match word {
            "open" => Self::Open,
            "import" => Self::Import(seed),
            "keep" => Self::Keep(seed),
            "commit" => Self::Commit(seed),
            "adopt" => Self::Adopt(seed),
            "release" => Self::Release(seed),
            "gc" => Self::Gc,
            "damage" => Self::Damage,
            "repair" => Self::Repair,
            "rebuild" => Self::Rebuild,
            "again" => Self::Again,
            _ => panic!("no such operation: {line}"),
        }
    }

    pub(crate) fn run(self, root: &Path, store: &mut Option<Arc<Store>>) -> Result<()> {
        if matches!(self, Self::Rebuild | Self::Damage) {
            *store = None;
            return if self == Self::Rebuild { rebuild(root) } else { damage(root) };
        }
        if store.is_none() || self == Self::Open {
            *store = None;
            *store = Some(Arc::new(Store::open_with(root, &OpenOptions::default())?));
        }
        let Some(store) = store else { return Ok(()) };
        let options = import_options();
        match self {
            Self::Open | Self::Again | Self::Rebuild | Self::Damage => Ok(()),
            Self::Import(seed) => store.import_layer(&layer(seed)[..], &options, &()).map(drop),
            Self::Keep(seed) => store.import_layer(&layer(seed)[..], &options.keep_blobs(true), &()).map(drop),
            Self::Commit(seed) => commit(store, seed, false),
            Self::Adopt(seed) => commit(store, seed, true),
            Self::Release(seed) => store.release_layer(&diff_id(seed)),
            Self::Gc => gc(store),
            Self::Repair => repair(store),
        }
    }
}

pub(crate) fn import_options() -> ImportOptions {
    ImportOptions::default().threads(support::THREADS).patience(Duration::from_secs(30))
}

fn rebuild(root: &Path) -> Result<()> {
    let report = Store::rebuild(root, &RebuildOptions::default().threads(support::THREADS), &())?;
    assert!(report.is_clean() && report.unsalvaged.is_empty(), "{report:?}");
    Ok(())
}

/// Snapshots by overlays, where there are any, for even seeds, and by copies for odd ones.
pub(crate) fn snapshotter(store: &Arc<Store>, seed: u64) -> Result<Snapshotter> {
    let open = |driver| Snapshotter::open(store.clone(), &SnapshotterOptions::default().driver(driver));
    match if seed.is_multiple_of(2) { open(DriverKind::Overlay) } else { open(DriverKind::Copy) } {
        Err(e) if e.kind() == ErrorKind::Unsupported => open(DriverKind::Copy),
        other => other,
    }
}

/// Writes to a snapshot, as a container would, and commits it. Begun before and stopped, it goes on.
fn commit(store: &Arc<Store>, seed: u64, deferred: bool) -> Result<()> {
    let snapshots = snapshotter(store, seed)?;
    let (key, name) = (format!("work-{seed}"), committed(seed));
    let is_there = |key: &str| match snapshots.stat(key) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        other => other.map(|_| true),
    };
    if is_there(&name)? {
        return Ok(());
    }
    let mounts = match is_there(&key)? {
        true => snapshots.mounts(&key, &())?,
        false => snapshots.prepare(&key, None, &Labels::new(), &())?,
    };
    for (name, content) in written(seed) {
        let path = PathBuf::from(&mounts[0].source).join(name);
        fs::write(path, content).map_err(|e| Error::io("write like a container", e))?;
    }
    snapshots.commit(&name, &key, &CommitOptions::default().deferred(deferred), &()).map(drop)
}

/// All that has to be done for a store to be as small as it can be.
pub(crate) fn gc(store: &Arc<Store>) -> Result<()> {
    // What fails is passed over and reported.
    if let Some(failed) = snapshotter(store, 1)?.absorb(&())?.failed.pop() {
        return Err(failed.error);
    }
    make_room(store)
}

/// All that takes things away.
pub(crate) fn make_room(store: &Arc<Store>) -> Result<()> {
    snapshotter(store, 1)?.cleanup()?;
    let options = GcOptions::default();
    store.gc(&store.gc_plan(&options, &())?, &options, &()).map(drop)
}

pub(crate) fn repair(store: &Store) -> Result<()> {
    let report = store.repair(None, &RepairOptions::default().threads(support::THREADS), &())?;
    match report.is_clean() {
        true => Ok(()),
        // An error of the disk that a part of the repair met is in its report.
        false => Err(Error::io("repair", std::io::Error::other(format!("{report:?}")))),
    }
}

/// Damages the first pack, its first chunk as well as its footer, and removes the record of the first layer whose blob was
/// kept.
pub(crate) fn damage(root: &Path) -> Result<()> {
    let work = || {
        let first = &names(root, "packs")[0];
        let base = u64::from_str_radix(&first[..11], 16).expect("a pack's address");
        let pack = File::options().read(true).write(true).open(root.join("packs").join(first))?;
        let end = pack.metadata()?.len();
        for place in [base + 2 * 4096 - 1, end - 50] {
            let mut byte = [0];
            pack.read_exact_at(&mut byte, place)?;
            pack.write_all_at(&[byte[0] ^ 0x40], place)?;
        }
        pack.sync_all()?;
        let db = rusqlite::Connection::open(root.join("index.db")).expect("the database");
        let kept = "SELECT lower(hex(diff_id)) FROM blobs WHERE kept = 1 ORDER BY diff_id LIMIT 1";
        let kept: String = db.query_row(kept, [], |r| r.get(0)).expect("a blob that was kept");
        let layers = root.join("layers");
        fs::remove_file(layers.join(format!("{kept}.layer")))?;
        File::open(layers)?.sync_all()
    };
    work().map_err(|e| Error::io("damage", e))
}

/// A small layer: files of its own, files it shares with its neighbour, and for every fourth seed enough that a pack
/// is written in several pieces.
pub(crate) fn layer(seed: u64) -> Vec<u8> {
    let own = (0..4).map(|n| build::file(format!("{seed}/small{n}"), words(seed * 10 + n, 1500)));
    let shared = (0..3).map(|n| build::file(format!("shared{n}"), words(seed / 2 * 10 + n, 900)));
    let large = [
        build::file(format!("{seed}/large"), noise(seed, if seed % 4 == 3 { 1_400_000 } else { 70_000 })),
        build::file("shared-large", noise(1000 + seed / 2, 90_000)),
    ];
    let parts: Vec<_> = [build::dir(&format!("{seed}/"))].into_iter().chain(own).chain(shared).chain(large).collect();
    build::tar(&parts)
}

pub(crate) fn diff_id(seed: u64) -> Digest {
    Digest::of(&layer(seed))
}

/// What is written to a snapshot: a file of its own, and contents that the layer of the same seed has too.
pub(crate) fn written(seed: u64) -> BTreeMap<String, Vec<u8>> {
    let large = noise(1000 + seed / 2, 90_000);
    [("own", words(seed * 7, 2000)), ("shared", words(seed / 2 * 10, 900)), ("large", large)]
        .map(|(name, content)| (name.to_owned(), content))
        .into()
}

/// The name of a committed snapshot.
pub(crate) fn committed(seed: u64) -> String {
    format!("made-{seed}")
}

/// What must be in a store.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expected {
    /// It was acknowledged that there is a store.
    pub(crate) made: bool,
    /// Layers that were acknowledged, and that nobody has begun to let go of.
    pub(crate) layers: BTreeSet<u64>,
    /// Commits that were acknowledged.
    pub(crate) commits: BTreeSet<u64>,
    /// It was damaged, and not acknowledged that it was mended.
    pub(crate) damaged: bool,
}

impl Expected {
    /// The operation is about to begin.
    pub(crate) fn begun(&mut self, op: Op) {
        match op {
            Op::Release(seed) => drop(self.layers.remove(&seed)),
            Op::Damage => self.damaged = true,
            _ => {}
        }
    }

    pub(crate) fn acknowledged(&mut self, op: Op) {
        self.made = true;
        match op {
            Op::Import(seed) | Op::Keep(seed) => drop(self.layers.insert(seed)),
            Op::Commit(seed) | Op::Adopt(seed) => drop(self.commits.insert(seed)),
            Op::Repair => self.damaged = false,
            _ => {}
        }
    }

    /// After a worker was given `script` and gave `answers`.
    pub(crate) fn after(&mut self, script: &[Op], answers: &[Answer]) {
        for (n, op) in script.iter().enumerate() {
            self.begun(*op);
            match answers.get(n) {
                Some(Answer::Done(op)) => self.acknowledged(*op),
                Some(Answer::Failed { .. }) => {}
                None => break,
            }
        }
        // What is let go of later in the script may have been when the worker died.
        script.iter().skip(answers.len()).take(1).for_each(|op| self.begun(*op));
    }
}

/// What a worker says of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// For [`Op::Again`], the operation that was done again or needed not be.
    Done(Op),
    Failed {
        op: Op,
        kind: String,
        message: String,
    },
}
