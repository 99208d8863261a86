//! Layers onto mounts that are not of a snapshot here: what any snapshotter of containerd's prepared.

use super::commit::whole_tree;
use super::extract::{self, ExtractOptions};
use super::mount::Mount;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::layer::{ImportOptions, LayerImport, Source};
use crate::observe::Observer;
use crate::store::{Change, Store};
use crate::sys::dirs::Dir;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

impl Store {
    /// Applies a layer to what these mounts show, and with `sync` brings it to disk. The layer is imported first, so that
    /// nothing is changed by one that is not what it should be; it is not held afterwards.
    ///
    /// # Errors
    /// `Unsupported` for mounts other than one bind or overlay that can be written to; those of importing and of
    /// [`extract`](Self::extract). What a failure leaves is neither the tree before nor the one after.
    pub fn apply_to(
        &self,
        mounts: &[Mount],
        blob: impl Read + Send,
        options: &ImportOptions,
        sync: bool,
        observer: &dyn Observer,
    ) -> Result<LayerImport> {
        let root = root_of(mounts)?;
        let lease = self.lease(None)?;
        let keep = |change: &Change<'_>, layer: &Digest| lease.keep_with(change, layer);
        let (layer, _) = self.import_layer_for(blob, options, observer, &keep)?;
        self.apply_layer(root, &layer.diff_id, sync, observer)?;
        Ok(layer)
    }

    /// [`apply_to`](Self::apply_to) without reading anything, if the layer of this blob is in the store; else `None`.
    ///
    /// # Errors
    /// As [`apply_to`](Self::apply_to).
    pub fn apply_known_to(
        &self,
        mounts: &[Mount],
        blob: &Digest,
        sync: bool,
        observer: &dyn Observer,
    ) -> Result<Option<LayerImport>> {
        let root = root_of(mounts)?;
        let Some(blob) = self.with_index(|index| index.blob(blob))? else { return Ok(None) };
        let lease = self.lease(None)?;
        match lease.layer(&blob.diff_id) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            kept => kept?,
        }
        let Some(layer) = self.known_layer(&blob.diff_id)? else { return Ok(None) };
        self.apply_layer(root, &layer.diff_id, sync, observer)?;
        Ok(Some(layer))
    }

    fn apply_layer(&self, root: OwnedFd, layer: &Digest, sync: bool, observer: &dyn Observer) -> Result<()> {
        // It is mounted nowhere, so this is the only way to it. The dot: what is opened is no symlink then.
        let path = PathBuf::from(format!("/proc/self/fd/{}/.", root.as_raw_fd()));
        let options = ExtractOptions::default().strict(true).sync(sync);
        let before = whole_tree(&path, options.thread_count(), observer)?;
        let changes = self.layer(layer)?.changes()?;
        let changes = changes.map(|change| change.map(|(entry, content)| (entry, content.map(Source::Stored))));
        let after = before.clone().apply(changes, observer).map_err(|e| e.subject(format!("layer {layer}")))?;
        extract::layer_onto(self, (&before, &after), (Dir::from(root), path), &options, observer)
    }
}

fn root_of(mounts: &[Mount]) -> Result<OwnedFd> {
    match mounts {
        [mount] if mount.target.is_empty() => mount.open_root(),
        _ => Err(Error::new(ErrorKind::Unsupported, "several mounts are not applied to")),
    }
}
