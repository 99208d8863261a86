//! What applying a layer did to the tree below it, noted while it happens.
//!
//! Comparing whole trees would cost every layer of a chain the size of the tree; this costs what the layer changed. Only
//! what touches inodes of the lower tree is noted: all else is new, and known by when it was born.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::node::Attributes;
use super::{Change, Node, NodeId, Outline, Tree};
use crate::error::Result;
use crate::observe::Observer;

/// What was, where it may have changed.
#[derive(Clone, Debug, Default)]
pub(super) struct Journal {
    /// By directory of the lower tree, what names of it that were used meanwhile led to before.
    pub(super) names: HashMap<NodeId, BTreeMap<Box<[u8]>, Option<NodeId>>>,
    /// Attributes of lower inodes before they were set.
    pub(super) attributes: HashMap<NodeId, Attributes>,
    /// Lower inodes that got another name.
    pub(super) linked: HashSet<NodeId>,
    /// How many names lower inodes had before they lost one.
    pub(super) links: HashMap<NodeId, u32>,
    /// Lower inodes that have no name any more. They stay where they are until the journal is dropped.
    gone: Vec<NodeId>,
}

impl<C: Clone + PartialEq> Tree<C> {
    /// As [`apply`](Self::apply), and gives what a directory must hold to be stacked over those of the layers below.
    pub(crate) fn apply_outlined<I>(mut self, layer: I, observer: &dyn Observer) -> Result<(Self, Outline<C>)>
    where
        I: IntoIterator<Item = Result<Change<C>>>,
    {
        self.generation += 1;
        self.journal = Some(Box::default());
        let mut tree = self.apply(layer, observer)?;
        let journal = tree.journal.take().unwrap_or_default();
        let outline = tree.outline_over(&journal);
        for id in journal.gone {
            *tree.node_mut(id) = Node::implied_directory();
            tree.free.push(id);
        }
        Ok((tree, outline))
    }

    /// Whether an inode was there before the layer that is applied with a journal.
    pub(super) fn is_lower(&self, id: NodeId) -> bool {
        self.node(id).born < self.generation
    }

    /// The journal, if `id` was there before it.
    fn journal_of(&mut self, id: NodeId) -> Option<&mut Journal> {
        if self.journal.is_some() && self.is_lower(id) { self.journal.as_deref_mut() } else { None }
    }

    pub(super) fn note_attach(&mut self, dir: NodeId, name: &[u8], id: NodeId) {
        if let Some(journal) = self.journal_of(dir) {
            journal.names.entry(dir).or_default().entry(name.into()).or_insert(None);
        }
        if let Some(journal) = self.journal_of(id) {
            journal.linked.insert(id);
        }
    }

    pub(super) fn note_detach(&mut self, dir: NodeId, name: &[u8], id: NodeId) {
        if let Some(journal) = self.journal_of(dir) {
            journal.names.entry(dir).or_default().entry(name.into()).or_insert(Some(id));
        }
    }

    pub(super) fn note_attributes(&mut self, id: NodeId) {
        let attributes = self.node(id).attributes.clone();
        if let Some(journal) = self.journal_of(id) {
            journal.attributes.entry(id).or_insert(attributes);
        }
    }

    /// Before `id` loses a name. Whether it must stay even without any.
    pub(super) fn note_release(&mut self, id: NodeId) -> bool {
        let links = self.node(id).links;
        let Some(journal) = self.journal_of(id) else { return false };
        journal.links.entry(id).or_insert(links);
        if links == 1 {
            journal.gone.push(id);
        }
        true
    }
}
