//! Snapshots: layers composed to something that can be mounted, written to, and made a layer again.
//!
//! The model is containerd's (`core/snapshots/snapshotter.go`): a snapshot is *active* (writable), a *view*
//! (read-only) or *committed* (immutable, may be a parent), and has a key. Preparing gives mounts as data; the caller
//! mounts them or has the library do it. State is in the store's database, one transaction a change, so that any number
//! of processes share it; each client has a *namespace* of its own, so that keys of different clients never meet.
//!
//! | file | what |
//! | --- | --- |
//! | `model.rs` | kinds, infos, labels |
//! | `snapshotter.rs` | opening, prepare, view, mounts |
//! | `lifecycle.rs` | commit, remove, update, and looking |
//! | `chain.rs` | what a snapshot stands on: layers, and above them directories that are no layers yet |
//! | `apply.rs` | layer blobs into snapshots, and back |
//! | `foreign.rs` | layers onto mounts of others |
//! | `absorb.rs` | directories into layers |
//! | `filter.rs` | choosing snapshots in containerd's filter language |
//! | `cleanup.rs` | directories of removed snapshots, mounts that nobody uses |
//! | `implied.rs` | snapshots of images' layers, which go by themselves |
//! | `mounted.rs` | what is mounted, and unmounting all of it |
//! | `driver/` | layers as directories |
//! | `stale.rs` | metadata images that serve no new mount |
//! | `extract/` | trees and layers written into directories |
//! | `mount.rs` | mounts as values |
//!
//! # From prepare to commit
//! A committed snapshot's changes are a layer of the store, or for a while the directory they were written to: then it
//! is *adopted* as it is, which takes no time, and *absorbed* into a layer later. Absorbing changes no tree, so
//! snapshots prepared before go on with the directory, later ones use the layer.

mod absorb;
mod apply;
mod chain;
mod cleanup;
mod commit;
mod driver;
pub(crate) mod extract;
mod filter;
mod foreign;
mod implied;
mod lifecycle;
mod merge;
mod model;
mod mount;
mod mounted;
mod names;
mod options;
mod snapshotter;
pub(crate) mod stale;

pub use absorb::{Absorbed, NotAbsorbed};
pub(crate) use cleanup::{lost_snapshot, needs_directory};
#[cfg(any(test, feature = "internals"))]
pub(crate) use driver::build_image;
pub use driver::{DirectIo, DirectIoDecision, DriverKind};
pub use extract::{ExtractOptions, ExtractReport, IdMap, Loss, Lost};
pub use filter::SnapshotFilter;
pub(crate) use implied::{IMPLIED, Implied, drop_implied};
pub use lifecycle::{CommitOptions, RemoveOptions};
pub use model::{Labels, SnapshotInfo, SnapshotKind, SnapshotUsage};
pub use mount::{Mount, MountPoint, can_mount, mount_all, unmount};
pub use mounted::{Mounted, UnmountReport};
pub use options::SnapshotterOptions;
pub use snapshotter::Snapshotter;
