//! What a layer changes, before it is one: from two trees, to a layer of the store or a tar anywhere.

use super::compare::{Comparing, SourceTree, make_comparable};
use super::source::Source;
use crate::codec::chunk::Compress;
use crate::digest::Digest;
use crate::error::Result;
use crate::format::entry::Entry;
use crate::limits::Limits;
use crate::observe::Observer;
use crate::store::Store;
use crate::tar::Account;
use crate::tree::{DiffPlan, Differences};
use std::num::NonZeroUsize;
use std::time::Duration;

/// How to make a layer. Start from `CreateOptions::default()` and change what matters.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    pub(crate) limits: Limits,
    pub(crate) compress: Compress,
    pub(crate) threads: usize,
    pub(crate) epoch: Option<i64>,
    pub(crate) patience: Duration,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            compress: Compress::default(),
            threads: std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            epoch: None,
            patience: Duration::from_secs(600),
        }
    }
}

impl CreateOptions {
    /// What the layer may hold at most.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// How new chunks are compressed.
    #[must_use]
    pub fn compress(mut self, compress: Compress) -> Self {
        self.compress = compress;
        self
    }

    /// Threads that read, hash and compress. Default: the CPUs this process may use.
    #[must_use]
    pub fn threads(mut self, threads: NonZeroUsize) -> Self {
        self.threads = threads.get();
        self
    }

    /// Times later than this many seconds after 1970 become this, as `SOURCE_DATE_EPOCH` asks for, so that a build
    /// gives the same layer whenever it runs. Default: times stay.
    #[must_use]
    pub fn epoch(mut self, epoch: Option<i64>) -> Self {
        self.epoch = epoch;
        self
    }

    /// How long to wait for another process that makes or imports the same layer. Default ten minutes.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    pub(crate) fn comparing(&self) -> Comparing {
        Comparing { epoch: self.epoch, threads: self.threads }
    }
}

/// The entries of a layer that is not made yet, in its order: sorted, parents first, whiteouts first in their
/// directory. The same trees give the same changes, whatever they were made with.
pub struct Changes {
    lower: SourceTree,
    upper: SourceTree,
    plan: DiffPlan,
}

impl Changes {
    /// The entries, each made when its turn comes: together their paths may take far more memory than the trees.
    pub fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        self.iter().map(|(entry, _)| entry)
    }

    /// The entries with their contents.
    pub(super) fn iter(&self) -> Differences<'_, Source> {
        Differences::new(Some((&self.lower, &self.plan)), &self.upper)
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.plan.len()
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What makes `lower` `upper`.
    pub(crate) fn between(
        store: &Store,
        lower: SourceTree,
        mut upper: SourceTree,
        options: &CreateOptions,
        observer: &dyn Observer,
    ) -> Result<Self> {
        make_comparable(store, &lower, &mut upper, options.comparing(), observer)?;
        let plan = DiffPlan::new(&lower, &upper, observer)?;
        Ok(Self { lower, upper, plan })
    }

    /// As [`between`](Self::between), for changes that become a layer at once: they are refused as soon as they exceed
    /// what one may have.
    pub(crate) fn for_layer(
        store: &Store,
        lower: SourceTree,
        upper: SourceTree,
        options: &CreateOptions,
        observer: &dyn Observer,
    ) -> Result<Self> {
        let changes = Self::between(store, lower, upper, options, observer)?;
        let mut account = Account::default();
        changes.entries().try_for_each(|entry| account.add(&entry, options.limits.attributes))?;
        Ok(changes)
    }
}

impl Store {
    /// What turns the root of the layers `lower` into that of the layers `upper`, each lowest first; either may be
    /// empty. Contents are read only where their places do not tell whether they are equal, and layers that both begin
    /// with are composed once.
    ///
    /// Two special cases have names of their own. Layers are *squashed*, into one that gives their root by itself, by
    /// `diff(&[], layers)`; and *merged*, into one that does over `base` what they do one after the other, by
    /// `diff(base, &[base, layers].concat())`.
    ///
    /// # Errors
    /// As [`root`](Self::root); `Cancelled`.
    pub fn diff(
        &self,
        lower: &[Digest],
        upper: &[Digest],
        options: &CreateOptions,
        observer: &dyn Observer,
    ) -> Result<Changes> {
        let shared = lower.iter().zip(upper).take_while(|(a, b)| a == b).count();
        let both = self.tree(&lower[..shared], observer)?;
        let upper = self.tree_on(both.clone(), &upper[shared..], observer)?.map(Source::Stored);
        let lower = self.tree_on(both, &lower[shared..], observer)?.map(Source::Stored);
        Changes::between(self, lower, upper, options, observer)
    }

    /// The tree of layers, its contents as sources.
    pub(crate) fn source_tree(&self, layers: &[Digest], observer: &dyn Observer) -> Result<SourceTree> {
        Ok(self.tree(layers, observer)?.map(Source::Stored))
    }
}
