//! Whole operations: import on few and on all CPUs, and what is done with an image afterwards.

use super::Source;
use crate::errors::Failure;
use layerstore::{
    Chunking, Digest, DriverKind, Error, ExtractOptions, FsckOptions, GcOptions, ImportOptions, Labels, Observer,
    OpenOptions, Snapshotter, SnapshotterOptions, Store, remove_tree,
};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What was measured.
pub(super) struct Whole {
    pub(super) done: Vec<Done>,
    /// Bytes on disk that the store took.
    pub(super) disk: u64,
    /// What could not be measured here, and why.
    pub(super) left_out: Vec<String>,
}

pub(super) struct Done {
    pub(super) what: String,
    /// That were worked through; 0 where the time does not depend on it.
    pub(super) bytes: u64,
    pub(super) time: Duration,
}

/// The CPUs this process may use.
pub(super) fn cpus() -> Vec<usize> {
    let set = sched_getaffinity(None);
    let cpus: Vec<usize> =
        set.map(|set| (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect()).unwrap_or_default();
    if cpus.is_empty() { vec![0] } else { cpus }
}

/// Lets this thread, and those it starts, run on these CPUs.
fn run_on(cpus: &[usize]) -> Result<(), Error> {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|&cpu| set.set(cpu));
    sched_setaffinity(None, &set).map_err(|e| Error::io("choose CPUs", std::io::Error::from(e)))
}

fn timed<T>(work: impl FnOnce() -> layerstore::Result<T>) -> Result<(T, Duration), Error> {
    let begin = Instant::now();
    Ok((work()?, begin.elapsed()))
}

pub(super) fn measure(
    source: &Source,
    work: &Path,
    chunking: &Chunking,
    options: &ImportOptions,
    threads: Option<NonZeroUsize>,
    observer: &dyn Observer,
) -> Result<Whole, Failure> {
    let mut whole = Whole { done: vec![], disk: 0, left_out: vec![] };
    let (all, root) = (cpus(), work.join("store"));
    let some = std::iter::successors(Some(1), |n| Some(n * 2)).take_while(|&n| n < all.len());
    for n in some.chain([all.len()]) {
        remove_tree(&root)?;
        run_on(&all[..n])?;
        let threads = threads.or(NonZeroUsize::new(n)).unwrap_or(NonZeroUsize::MIN);
        let store = Store::open_with(&root, &OpenOptions::default().chunking(*chunking))?;
        let imported = timed(|| import(&store, source, &options.clone().threads(threads), observer));
        run_on(&all)?;
        let (layers, time) = imported?;
        let what = if n == 1 { "import on 1 CPU".into() } else { format!("import on {n} CPUs") };
        whole.note(what, tar_bytes(&store, &layers)?, time);
    }
    let store = Arc::new(Store::open(&root)?);
    let (layers, again) = timed(|| import(&store, source, options, observer))?;
    let tar = tar_bytes(&store, &layers)?;
    whole.note("import again", 0, again);
    let threads = threads.or(NonZeroUsize::new(all.len())).unwrap_or(NonZeroUsize::MIN);
    let export = || {
        layers
            .iter()
            .try_for_each(|layer| store.layer(layer)?.export(&mut std::io::sink(), threads, observer).map(drop))
    };
    whole.note("export the tars", tar, timed(export)?.1);
    let tree = work.join("tree");
    let (report, time) =
        timed(|| store.extract(&layers, &tree, &ExtractOptions::default().threads(threads), observer))?;
    whole.note("extract the tree", report.bytes, time);
    whole.mount(&store, &layers, observer)?;
    let (report, time) = timed(|| store.fsck(&FsckOptions::default().full(true).threads(threads), observer))?;
    debug_assert!(report.is_clean());
    whole.note("fsck --full", store.usage()?.packs, time);
    let (_, time) = timed(|| store.gc_plan(&GcOptions::default(), observer))?;
    whole.note("gc, with nothing to do", 0, time);
    whole.disk = store.usage()?.total();
    Ok(whole)
}

/// Imports all layers; returns them, the lowest first.
fn import(
    store: &Store,
    source: &Source,
    options: &ImportOptions,
    observer: &dyn Observer,
) -> layerstore::Result<Vec<Digest>> {
    match source {
        Source::Image { image, selector, .. } => {
            let import = store.import_image(image, selector, Some("image"), options, observer)?;
            Ok(import.layers.iter().map(|layer| layer.diff_id).collect())
        }
        Source::Layer(_) => Ok(vec![store.import_layer(source.open(0)?, options, observer)?.0.diff_id]),
    }
}

fn tar_bytes(store: &Store, layers: &[Digest]) -> Result<u64, Error> {
    layers.iter().map(|layer| Ok(store.layer(layer)?.tar_size())).sum()
}

impl Whole {
    fn note(&mut self, what: impl Into<String>, bytes: u64, time: Duration) {
        self.done.push(Done { what: what.into(), bytes, time });
    }

    /// The first mount of the chain, for which its metadata image is made, and a later one.
    fn mount(&mut self, store: &Arc<Store>, layers: &[Digest], observer: &dyn Observer) -> Result<(), Failure> {
        let snapshots = match Snapshotter::open(store.clone(), &SnapshotterOptions::default().driver(DriverKind::Erofs))
        {
            Ok(snapshots) => snapshots,
            Err(e) => {
                self.left_out.push(format!("mounting (erofs): {e}"));
                return Ok(());
            }
        };
        let mut top: Option<String> = None;
        for layer in layers {
            let name = format!("{}-{}", top.as_deref().unwrap_or("chain"), &layer.hex()[..12]);
            snapshots.commit_layer(&name, top.as_deref(), layer, &Labels::new())?;
            top = Some(name);
        }
        let view = || snapshots.view("bench", top.as_deref(), &Labels::new(), observer).map(drop);
        self.note("mount (erofs), the first time", 0, timed(view)?.1);
        let unmount_all = || -> layerstore::Result<()> {
            let mounts = fs::read_dir(store.path().join("mounts")).map_err(|e| Error::io("read a directory", e))?;
            mounts.flatten().try_for_each(|mount| layerstore::unmount(&mount.path()))
        };
        unmount_all()?;
        self.note("mount (erofs), later", 0, timed(|| snapshots.mounts("bench", observer).map(drop))?.1);
        Ok(unmount_all()?)
    }
}
