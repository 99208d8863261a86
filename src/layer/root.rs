//! The root file system that layers give together, to look into without mounting anything.

use super::content::FileReader;
use super::read::{Layer, LayerEntry};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::format::entry::EntryKind;
use crate::format::item::Extent;
use crate::store::Store;
use crate::tree::{Change, NodeKind, Tree, squash};
use crossbeam_channel::Sender;
use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;

/// Layers applied in order, by the rules of the image-spec (`layer.md`, "Applying Changesets").
pub struct Root<'s> {
    store: &'s Store,
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
        Ok(Root { store: self, tree: self.tree(layers)? })
    }

    /// The tree behind [`root`](Self::root).
    pub(crate) fn tree(&self, layers: &[Digest]) -> Result<Tree<Content>> {
        self.tree_on(Tree::new(), layers)
    }

    /// `tree` with layers applied to it, lowest first. Their records are read on other threads, a few layers ahead.
    pub(super) fn tree_on(&self, mut tree: Tree<Content>, layers: &[Digest]) -> Result<Tree<Content>> {
        let named = |diff_id: &Digest| format!("layer {diff_id}");
        let read = |diff_id: &Digest| {
            let changes = self.layer(diff_id)?.changes()?.collect::<Result<Vec<_>>>();
            changes.map_err(|e| e.subject(named(diff_id)))
        };
        let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(layers.len());
        let (ask, asked) = crossbeam_channel::unbounded::<(&Digest, Sender<_>)>();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    for (diff_id, to) in &asked {
                        // Whoever asked may have given up.
                        let _ = to.send(read(diff_id));
                    }
                });
            }
            // Dropped when this is over, however it ends: then the threads end.
            let ask = ask;
            let mut coming = layers.iter();
            let mut answers = VecDeque::new();
            for diff_id in layers {
                for next in coming.by_ref().take(threads + 1 - answers.len()) {
                    let (to, from) = crossbeam_channel::bounded(1);
                    answers.push_back(from);
                    let _ = ask.send((next, to));
                }
                // No answer: the thread panicked, and so will this one.
                let answer = answers.pop_front().and_then(|from| from.recv().ok());
                let changes = answer.unwrap_or_else(|| read(diff_id))?;
                tree = tree.apply(changes.into_iter().map(Ok)).map_err(|e| e.subject(named(diff_id)))?;
            }
            Ok(tree)
        })
    }
}

impl Layer<'_> {
    /// The entries as a tree takes them.
    pub(crate) fn changes(&self) -> Result<impl Iterator<Item = Result<Change<Content>>> + use<>> {
        let change = |entry: Result<LayerEntry>| {
            let LayerEntry { entry, extents } = entry?;
            let content = matches!(entry.kind, EntryKind::File { .. }).then(|| extents.into());
            Ok((entry, content))
        };
        Ok(self.entries()?.map(change))
    }
}

impl<'s> Root<'s> {
    /// Every name, sorted by path bytes with parents first; of several names of one file all but the first are hard links.
    pub fn list(&self) -> Vec<LayerEntry> {
        let entries = squash(&self.tree).into_iter();
        entries.map(|(entry, content)| LayerEntry { entry, extents: content.map_or(vec![], |c| c.to_vec()) }).collect()
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
                FileReader::new(self.store, &kind, content.to_vec())
            }
            _ => Err(named(Error::invalid("not a regular file"))),
        }
    }
}
