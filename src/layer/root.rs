//! The root file system that layers give together, to look into without mounting anything.

use super::content::FileReader;
use super::read::{Joined, Layer, LayerEntry};
use super::record::{RecordReader, StoredBlock};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::format::entry::EntryKind;
use crate::format::item::{Extent, Item};
use crate::observe::Observer;
use crate::store::Store;
use crate::tree::{Change, NodeKind, Tree, squash};
use crossbeam_channel::{Receiver, Sender};
use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;

/// Most threads that decode records: decoding takes twice the time of applying, which is done on one. It bounds what is
/// decoded ahead, too.
const DECODERS: usize = 4;

/// Layers applied in order, by the rules of the image-spec (`layer.md`, "Applying Changesets").
pub struct Root<'s> {
    store: &'s Store,
    layers: Arc<[Digest]>,
    tree: Tree<Content>,
}

/// Where a file's content lies; shared by all trees that have the file.
pub(crate) type Content = Arc<[Extent]>;

impl Store {
    /// Applies `layers`, the lowest first. Memory grows with the number of entries, not with their content.
    ///
    /// # Errors
    /// `NotFound` if a layer is not in the store; `Corrupt` if one is damaged; `InvalidInput` if they do not fit together,
    /// for example a hard link without a target, naming the layer and the entry.
    pub fn root(&self, layers: &[Digest]) -> Result<Root<'_>> {
        self.root_watched(layers, &())
    }

    /// [`root`](Self::root) that an observer can stop.
    ///
    /// # Errors
    /// As [`root`](Self::root); `Cancelled`.
    pub fn root_watched(&self, layers: &[Digest], observer: &dyn Observer) -> Result<Root<'_>> {
        Ok(Root { store: self, layers: layers.into(), tree: self.tree(layers, observer)? })
    }

    /// The tree behind [`root`](Self::root).
    pub(crate) fn tree(&self, layers: &[Digest], observer: &dyn Observer) -> Result<Tree<Content>> {
        self.tree_on(Tree::new(), layers, observer)
    }

    /// `tree` with layers applied to it, lowest first. Blocks of their records are decoded on other threads, ahead of
    /// where they are applied.
    pub(super) fn tree_on(
        &self,
        mut tree: Tree<Content>,
        layers: &[Digest],
        observer: &dyn Observer,
    ) -> Result<Tree<Content>> {
        let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(DECODERS);
        let (ask, asked) = crossbeam_channel::unbounded::<Job>();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                let asked = asked.clone();
                scope.spawn(move || {
                    for Job { block, to } in asked {
                        // Whoever asked may have given up.
                        let _ = to.send(block.items());
                    }
                });
            }
            // Dropped when this is over, however it ends: then the threads end.
            let mut ahead = Ahead {
                store: self,
                layers: layers.iter(),
                record: None,
                ask,
                coming: VecDeque::new(),
                most: 4 * threads,
            };
            for diff_id in layers {
                let layer = Joined::of(OneLayer { ahead: &mut ahead });
                tree = tree.apply(layer.map(change), observer).map_err(|e| e.subject(format!("layer {diff_id}")))?;
            }
            Ok(tree)
        })
    }
}

/// A block to decode, and who waits for it.
struct Job {
    block: StoredBlock,
    to: Sender<Result<Vec<Item>>>,
}

/// What comes next of some layers' records, read and asked for ahead of its use.
struct Ahead<'a> {
    store: &'a Store,
    /// Those not begun yet.
    layers: std::slice::Iter<'a, Digest>,
    /// Of the layer that is being read.
    record: Option<RecordReader>,
    ask: Sender<Job>,
    coming: VecDeque<Coming>,
    /// How much may be coming: blocks have megabytes.
    most: usize,
}

enum Coming {
    Items(Receiver<Result<Vec<Item>>>),
    Failure(Error),
    LayerEnd,
}

impl Ahead<'_> {
    fn fill(&mut self) {
        while self.coming.len() < self.most {
            match self.read() {
                Ok(Some(coming)) => self.coming.push_back(coming),
                Ok(None) => return,
                // Nothing after it will be used.
                Err(e) => return self.coming.push_back(Coming::Failure(e)),
            }
        }
    }

    /// Reads one step further; `None` after the last layer's end.
    fn read(&mut self) -> Result<Option<Coming>> {
        let record = match &mut self.record {
            Some(record) => record,
            None => match self.layers.next() {
                Some(diff_id) => self.record.insert(self.store.layer(diff_id)?.record()?),
                None => return Ok(None),
            },
        };
        let Some(block) = record.next_block()? else {
            self.record = None;
            return Ok(Some(Coming::LayerEnd));
        };
        let (to, from) = crossbeam_channel::bounded(1);
        self.ask.send(Job { block, to }).map_err(|_| lost())?;
        Ok(Some(Coming::Items(from)))
    }
}

/// Items of the layer whose turn it is.
struct OneLayer<'a, 'b> {
    ahead: &'a mut Ahead<'b>,
}

impl Iterator for OneLayer<'_, '_> {
    type Item = Result<Vec<Item>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.ahead.fill();
        match self.ahead.coming.pop_front()? {
            Coming::Items(from) => Some(from.recv().unwrap_or_else(|_| Err(lost()))),
            Coming::Failure(e) => Some(Err(e)),
            Coming::LayerEnd => None,
        }
    }
}

/// A thread that decodes panicked, which the scope it is in will do as well.
fn lost() -> Error {
    Error::corrupt("no thread decodes records any more")
}

/// An entry as a tree takes it.
fn change(entry: Result<LayerEntry>) -> Result<Change<Content>> {
    let LayerEntry { entry, extents } = entry?;
    let content = matches!(entry.kind, EntryKind::File { .. }).then(|| extents.into());
    Ok((entry, content))
}

impl Layer<'_> {
    /// The entries as a tree takes them.
    pub(crate) fn changes(&self) -> Result<impl Iterator<Item = Result<Change<Content>>> + use<>> {
        Ok(self.entries()?.map(change))
    }
}

impl<'s> Root<'s> {
    /// Every name, directory by directory in the order of names, parents first; of several names of one file all but the
    /// first are hard links. Entries are made one at a time: together their paths may take far more memory than the root.
    pub fn list(&self) -> impl Iterator<Item = LayerEntry> + '_ {
        let entry = |(entry, content): Change<Content>| {
            let extents = content.map_or_else(Vec::new, |content| content.to_vec());
            LayerEntry { entry, extents }
        };
        squash(&self.tree).map(entry)
    }

    /// Opens the regular file that a process inside the root would get by `path`: symlinks are followed and do not
    /// leave the root.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` if it is no regular file or the symlinks go in circles.
    pub fn open(&self, path: &[u8]) -> Result<FileReader<'s>> {
        let named = |e: Error| e.subject(String::from_utf8_lossy(path));
        let id = self.tree.resolve(path).map_err(named)?;
        let id = id.ok_or_else(|| named(Error::not_found("no such file in the image")))?;
        match &self.tree.node(id).kind {
            NodeKind::File { size, sparse, content } => {
                let kind = EntryKind::File { size: *size, sparse: sparse.as_ref().map(|s| s.to_vec()) };
                Ok(FileReader::new(self.store, &kind, content.to_vec())?.of(self.layers.clone()))
            }
            _ => Err(named(Error::invalid("not a regular file"))),
        }
    }
}
