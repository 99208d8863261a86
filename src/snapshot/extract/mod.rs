//! Trees and layers written into directories.
//!
//! A directory is written top-down, relative to open directories, into a root that nobody else may enter before it is
//! complete, and that is fresh but for `onto.rs`: no name of an image is ever looked up through a symlink, so none can lead outside.
//!
//! | file | what |
//! | --- | --- |
//! | `options.rs` | what may be asked, and what is told |
//! | `plan.rs` | contents to jobs, each chunk once |
//! | `chunks.rs` | chunks read, verified and kept for later jobs |
//! | `write.rs` | leaves and their content |
//! | `frame.rs` | directories before the leaves; links, whiteouts and attributes of directories after them |
//! | `attributes.rs` | owner, attributes, mode, time |
//! | `onto.rs` | a layer onto a directory that holds the tree below it |
//! | `verify.rs` | what is there against what was written |

mod attributes;
mod chunks;
mod frame;
mod onto;
mod options;
mod plan;
mod verify;
mod write;

pub(crate) use onto::layer_onto;
pub(crate) use options::Overlay;
pub use options::{ExtractOptions, ExtractReport, IdMap, Loss, Lost};
pub(crate) use verify::{Difference, differences};

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::layer::Content;
use crate::observe::Observer;
use crate::store::Store;
use crate::sys::dirs::{Access, Dir, Owner};
use crate::sys::publish::io_error;
use crate::tree::{NodeKind, Outline, Tree};
use options::Losses;
use plan::{LeafAt, Plan};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use write::Work;

/// A directory being written.
struct Target {
    outline: Outline<Content>,
    root: Dir,
    /// Owner of what is created in it.
    given: Owner,
    path: PathBuf,
}

impl Store {
    /// Writes the tree of `layers`, the lowest first, to `dest`, which is made, or is an empty directory. Needs no
    /// privileges: what cannot be set without is in the report. If it fails, what was written is removed again, and a
    /// directory that was there has its owner and mode again.
    ///
    /// # Errors
    /// `AlreadyExists` if `dest` is something else; `NotFound` for an unknown layer; `Corrupt`, `Io`, `Cancelled`;
    /// `FailedPrecondition` for what cannot be set, with [`ExtractOptions::strict`].
    pub fn extract(
        &self,
        layers: &[Digest],
        dest: &Path,
        options: &ExtractOptions,
        observer: &dyn Observer,
    ) -> Result<ExtractReport> {
        tree_directory(self, &self.tree(layers, observer)?, dest, options, observer)
    }
}

/// Writes a whole tree to `dest`, as [`Store::extract`].
pub(crate) fn tree_directory(
    store: &Store,
    tree: &Tree<Content>,
    dest: &Path,
    options: &ExtractOptions,
    observer: &dyn Observer,
) -> Result<ExtractReport> {
    extract(store, vec![(tree.outline(), dest.to_owned())], options, observer)
}

/// Writes layers of a chain as directories that overlayfs stacks: `wanted` pairs positions in `layers` with fresh
/// directories. Stacked over those of the layers below, each shows the tree up to it.
pub(crate) fn layer_directories(
    store: &Store,
    layers: &[Digest],
    wanted: &[(usize, PathBuf)],
    options: &ExtractOptions,
    observer: &dyn Observer,
) -> Result<ExtractReport> {
    extract(store, outlines(store, layers, wanted, observer)?, options, observer)
}

/// What [`layer_directories`] writes, paired with where.
pub(crate) fn outlines(
    store: &Store,
    layers: &[Digest],
    wanted: &[(usize, PathBuf)],
    observer: &dyn Observer,
) -> Result<Vec<(Outline<Content>, PathBuf)>> {
    let mut tree = Tree::new();
    let mut outlines = Vec::new();
    for (position, layer) in layers.iter().enumerate() {
        let changes = store.layer(layer)?.changes()?;
        let named = |e: Error| e.subject(format!("layer {layer}"));
        match wanted.iter().find(|(at, _)| *at == position) {
            None => tree = tree.apply(changes, observer).map_err(named)?,
            Some((_, dest)) => {
                let (applied, outline) = tree.apply_outlined(changes, observer).map_err(named)?;
                tree = applied;
                outlines.push((outline, dest.clone()));
            }
        }
    }
    Ok(outlines)
}

fn extract(
    store: &Store,
    outlines: Vec<(Outline<Content>, PathBuf)>,
    options: &ExtractOptions,
    observer: &dyn Observer,
) -> Result<ExtractReport> {
    let mut fresh = Fresh(Vec::new());
    let mut targets = Vec::new();
    for (outline, path) in outlines {
        targets.push(fresh.target(outline, path)?);
    }
    let losses = Losses::new(options.strict);
    frame::make(&targets, options.threads, observer)?;
    let missing = leaves(store, &targets, options, &losses, observer)?;
    frame::complete(&targets, options, &losses, &missing, observer)?;
    if let (true, Some(target)) = (options.sync, targets.first()) {
        target.root.sync_file_system().map_err(|e| io_error("sync the file system of", &target.path, e))?;
    }
    fresh.0.clear();
    let mut report = count(&targets);
    losses.into_report(&mut report);
    Ok(report)
}

/// Writes the leaves; returns devices that could not be made.
fn leaves(
    store: &Store,
    targets: &[Target],
    options: &ExtractOptions,
    losses: &Losses,
    observer: &dyn Observer,
) -> Result<HashSet<LeafAt>> {
    let plan = Plan::new(store, targets, options.threads, observer)?;
    let work = Work {
        store,
        targets,
        plan: &plan,
        options,
        losses,
        observer,
        shared: Default::default(),
        stop: false.into(),
        missing: Default::default(),
    };
    in_parallel(options.threads, |own| work.run(own))?;
    Ok(work.missing.into_inner().unwrap_or_else(|e| e.into_inner()))
}

/// Runs `work` on threads of its own, numbered from 0; the first error wins, what follows from it does not.
fn in_parallel(threads: usize, work: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..threads.max(1)).map(|own| scope.spawn(move || work(own))).collect();
        let join = |t: std::thread::ScopedJoinHandle<'_, _>| t.join().unwrap_or_else(|e| std::panic::resume_unwind(e));
        let done: Vec<Result<()>> = threads.into_iter().map(join).collect();
        done.into_iter().collect()
    })
}

fn count(targets: &[Target]) -> ExtractReport {
    let mut report = ExtractReport::default();
    for Target { outline, .. } in targets {
        report.directories += outline.dirs.len() as u64;
        report.links += outline.links.len() as u64;
        for leaf in &outline.leaves {
            match &leaf.kind {
                NodeKind::File { content, .. } => {
                    report.files += 1;
                    report.bytes += content.iter().map(|extent| u64::from(extent.len)).sum::<u64>();
                }
                _ => report.others += 1,
            }
        }
    }
    report
}

/// Directories that go again unless all of them are complete.
struct Fresh(Vec<Undo>);

/// How a directory goes again.
enum Undo {
    /// It was made here.
    Remove(PathBuf),
    /// It was there, empty and entered by whom it said.
    Empty(Dir, Access),
}

impl Fresh {
    fn target(&mut self, outline: Outline<Content>, path: PathBuf) -> Result<Target> {
        let made = match std::fs::create_dir(&path) {
            Ok(()) => true,
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => false,
            Err(e) => return Err(io_error("create directory", &path, e)),
        };
        let taken = || {
            let e = Error::new(ErrorKind::AlreadyExists, "something is there already");
            e.expected("nothing, or an empty directory").subject(path.display())
        };
        let root = Dir::open(&path).map_err(|_| taken())?;
        let failed = |e| io_error("prepare directory", &path, e);
        // One that was made just now, too: somebody may have put another in its place.
        if !root.is_empty().map_err(failed)? {
            return Err(taken());
        }
        let undo = match made {
            true => Undo::Remove(path.clone()),
            false => Undo::Empty(root.below(b"", true).map_err(failed)?, root.access().map_err(failed)?),
        };
        self.0.push(undo);
        let given = root.seclude().map_err(failed)?;
        Ok(Target { outline, root, given, path })
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        for undo in &self.0 {
            // Whatever error led here is told; what cannot be removed on top of it is seen by whoever looks.
            let _ = match undo {
                Undo::Remove(path) => std::fs::remove_dir_all(path),
                Undo::Empty(dir, access) => dir.empty().and_then(|()| Ok(dir.restore(access)?)),
            };
        }
    }
}
