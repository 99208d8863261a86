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
use rustix::io::Errno;
use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
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
    let mut fresh = Fresh::default();
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
    fresh.undo.clear();
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
#[derive(Default)]
struct Fresh {
    undo: Vec<Undo>,
    /// The directory above the last one: those of one extraction lie beside each other.
    above: Option<(PathBuf, Rc<Dir>)>,
}

/// How a directory goes again. Its name may be somebody else's by then, who must not lose anything by that.
enum Undo {
    /// It was made here, with this name in the directory above it, and is this inode.
    Remove(Rc<Dir>, Vec<u8>, (u64, u64)),
    /// It was there, empty and entered by whom it said.
    Empty(Dir, Access),
}

impl Fresh {
    fn above(&mut self, path: &Path) -> rustix::io::Result<Rc<Dir>> {
        if let Some((_, dir)) = self.above.as_ref().filter(|(of, _)| of == path) {
            return Ok(dir.clone());
        }
        let dir = Rc::new(Dir::resolve(path)?);
        self.above = Some((path.to_owned(), dir.clone()));
        Ok(dir)
    }

    fn target(&mut self, outline: Outline<Content>, path: PathBuf) -> Result<Target> {
        let failed = |what: &str, e| io_error(what, &path, e);
        let taken = || {
            let e = Error::new(ErrorKind::AlreadyExists, "something is there already");
            e.expected("nothing, or an empty directory").subject(path.display())
        };
        // Whoever may write above could exchange the directory between two looks at the path: there is one.
        let (above, made, root) = match path.file_name() {
            Some(name) => {
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let above = self.above(parent).map_err(|e| failed("open the directory above", e))?;
                let made = match above.make(name.as_bytes()) {
                    Ok(()) => true,
                    Err(Errno::EXIST) => false,
                    Err(e) => return Err(failed("create directory", e)),
                };
                let root = above.below(name.as_bytes(), true).map_err(|_| taken())?;
                (Some((above, name.as_bytes().to_vec())), made, root)
            }
            // `.`, `..` or the like.
            None => (None, false, Dir::resolve(&path).map_err(|_| taken())?),
        };
        let failed = |e| failed("prepare directory", e);
        // One that was made just now, too: somebody may have put another in its place.
        if !root.is_empty().map_err(failed)? {
            return Err(taken());
        }
        let undo = match above {
            Some((above, name)) if made => Undo::Remove(above, name, root.inode().map_err(failed)?),
            _ => Undo::Empty(root.below(b"", true).map_err(failed)?, root.access().map_err(failed)?),
        };
        self.undo.push(undo);
        let given = root.seclude().map_err(failed)?;
        Ok(Target { outline, root, given, path })
    }
}

impl Undo {
    fn run(&self) -> std::io::Result<()> {
        match self {
            Self::Remove(above, name, made) => {
                let dir = above.below(name, true)?;
                if dir.inode()? != *made {
                    return Ok(());
                }
                dir.empty()?;
                // Removes nothing but an empty directory, whatever has the name.
                Ok(above.remove_empty(name)?)
            }
            Self::Empty(dir, access) => {
                dir.empty()?;
                Ok(dir.restore(access)?)
            }
        }
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        for undo in &self.undo {
            // Whatever error led here is told; what cannot be removed on top of it is seen by whoever looks.
            let _ = undo.run();
        }
    }
}
