//! Drivers: how a chain of layers becomes directories to mount.
//!
//! `erofs` and `overlay` give directories that an overlay stacks below a snapshot's own changes; they differ in where
//! those come from. `copy` needs no mount: every snapshot has the whole tree.

mod direct;
mod erofs;
mod image;
mod overlay;
mod probe;
mod select;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::observe::Observer;
use std::path::PathBuf;
use std::str::FromStr;

pub(super) use direct::Caching;
pub use direct::{DirectIo, DirectIoDecision};
#[cfg(any(test, feature = "internals"))]
pub(crate) use image::build as build_image;
pub(super) use select::{instead_of, open};

/// Which driver serves snapshots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DriverKind {
    /// The first of erofs, overlay and copy that works here.
    #[default]
    Auto,
    /// One kernel mount per chain, straight from the packs; nothing is extracted. Root, Linux 6.15 (or 6.12.41 and
    /// later 6.12).
    Erofs,
    /// Each layer of a chain extracted once, stacked by overlayfs.
    Overlay,
    /// The whole tree in a directory of each snapshot's own. Needs neither mounts nor privileges.
    Copy,
}

impl DriverKind {
    /// `auto`, `erofs`, `overlay` or `copy`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Erofs => "erofs",
            Self::Overlay => "overlay",
            Self::Copy => "copy",
        }
    }
}

impl std::fmt::Display for DriverKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for DriverKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let all = [Self::Auto, Self::Erofs, Self::Overlay, Self::Copy];
        let found = all.into_iter().find(|kind| kind.as_str() == name);
        found.ok_or_else(|| Error::invalid("unknown driver").expected("auto, erofs, overlay or copy").actual(name))
    }
}

/// Gives the tree of layers as directories.
pub(super) trait Driver: Send + Sync {
    fn kind(&self) -> DriverKind;

    /// Directories below the store that, stacked with the last on top, are the tree of `layers`, lowest layer first.
    /// What is not there yet is made, durably, once for all processes; what a reboot took away is brought back.
    /// Never asked of `copy`.
    ///
    /// # Errors
    /// `NotFound` for an unknown layer, `Corrupt`, `Io`, `Unsupported`.
    fn lowers(&self, layers: &[Digest], observer: &dyn Observer) -> Result<Vec<PathBuf>>;

    /// The directories that [`lowers`](Self::lowers) gives, and whether all of them are there already.
    ///
    /// # Errors
    /// `InvalidInput` for a chain without layers.
    fn planned(&self, layers: &[Digest]) -> Result<(Vec<PathBuf>, bool)>;

    /// Whether overlays must keep their marks in `user.overlay.*`, as in user namespaces.
    fn user_marks(&self) -> bool {
        false
    }
}

/// A driver, `None` for `copy`, and what was tried before it and why that does not work here.
pub(super) type Chosen = (Option<Box<dyn Driver>>, Vec<(DriverKind, Error)>);
