//! A content-addressable store for container layers, and what builders and runtimes need around it.
//!
//! layerstore takes OCI layers apart into deduplicated, compressed chunks, keeps them durably, and gives each layer's
//! tar back bit for bit. File contents are read, and whole images listed, without unpacking anything. The store is a
//! directory that any number of processes share without a daemon.
//!
//! ```
//! use layerstore::{Entry, EntryKind, ImportOptions, Limits, Store, TarWriter, Time};
//! # let dir = tempfile::tempdir()?;
//! # let dir = dir.path().join("store");
//!
//! // A layer with one file; usually it comes from a registry, as tar, tar+gzip or tar+zstd.
//! let mut tar = TarWriter::new(Vec::new(), &Limits::default());
//! let kind = EntryKind::File { size: 6, sparse: None };
//! let mtime = Time { secs: 1_700_000_000, nanos: 0 };
//! tar.entry(&Entry { path: b"etc/motd".into(), kind, mode: 0o644, uid: 0, gid: 0, mtime, xattrs: vec![] })?;
//! tar.content(b"hello\n")?;
//! let tar = tar.finish()?;
//!
//! let store = Store::open(dir)?;
//! let (layer, _) = store.import_layer(&tar[..], &ImportOptions::default(), &())?;
//!
//! // Read one file, and export the layer: the same bytes as came in.
//! let mut content = Vec::new();
//! store.root(&[layer.diff_id])?.open(b"/etc/motd")?.copy_to(&mut content)?;
//! assert_eq!(content, b"hello\n");
//! let mut back = Vec::new();
//! store.layer(&layer.diff_id)?.export(&mut back, 2.try_into()?, &())?;
//! assert_eq!(back, tar);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Words
//! - *blob*: bytes with an OCI digest, such as a compressed layer.
//! - *diff_id*: SHA-256 of a layer's uncompressed tar; the layer's id here.
//! - *chain_id*: the OCI id of layers applied in order ([`Digest::chain`]).
//! - *chunk*: a piece of content, named by the BLAKE3 of its raw bytes ([`ContentId`]).
//! - *bundle*: a chunk made of many small files.
//! - *extent*: a piece of a chunk that holds a piece of a file ([`Extent`]).
//! - *pack*: a file of chunks.
//! - *segment*: tar bytes between contents, kept verbatim.
//! - *layer*: an immutable list of entries with extents and segments ([`Layer`]).
//! - *root*: the tree that layers give when applied in order ([`Root`]).
//! - *whiteout*: an entry that removes something of the layers below ([`Whiteout`]).
//!
//! # What it does not do
//! It pulls from no registry and runs no container. It trusts its own directory, which only its owner may enter; every
//! byte that comes from outside, and every byte it reads back, is checked. See `docs/ARCHITECTURE.md`, `FORMAT.md`,
//! `ORDERING.md` and `LIMITS.md` in the repository.
#![warn(rust_2018_idioms)]

mod chunk;
mod codec;
mod digest;
mod error;
mod format;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod id;
mod image;
#[cfg(any(test, feature = "internals"))]
#[doc(hidden)]
pub mod internals;
mod layer;
mod limits;
mod observe;
mod snapshot;
mod store;
mod sys;
mod tar;
mod tree;
mod upkeep;

pub use codec::blob::{BlobReader, BlobSummary};
pub use codec::chunk::Compress;
pub use codec::media::Compression;
pub use codec::writer::BlobWriter;
pub use digest::{Digest, Hasher, OciDigest};
pub use error::{Advice, Error, ErrorKind, Result, is_unprintable, printable};
pub use format::entry::{DataRange, Entry, EntryKind, Time, Whiteout, Xattr};
pub use format::item::Extent;
pub use format::params::Chunking;
pub use id::ContentId;
pub use image::additional::{AdditionalImage, AdditionalLayer, AdditionalLayers, AdditionalOptions};
pub use image::append::AppendOptions;
pub use image::export::{ExportOptions, ExportTarget, ImageExport};
pub use image::import::ImageImport;
pub use image::layout::{IndexEntry, LayoutWriter};
pub use image::manifest::{LayerBlob, manifest_for};
pub use image::names::{DigestPrefix, check as check_image_name};
pub use image::plan::{Candidate, ImagePlan, PlannedLayer, RawManifest, Selector};
pub use image::platform::Platform;
pub use image::source::{Detected, ImageSource, detect};
pub use layer::{
    Changes, CreateOptions, Entries, FileReader, ImportOptions, ImportStats, Layer, LayerEntry, LayerExport,
    LayerImport, Root, Stage, StageTime, StageTimes, time_stages,
};
pub use limits::Limits;
pub use observe::{Event, Observer};
pub use snapshot::{
    Absorbed, CommitOptions, DirectIo, DirectIoDecision, DriverKind, ExtractOptions, ExtractReport, IdMap, Labels,
    Loss, Lost, Mount, MountPoint, Mounted, NotAbsorbed, RemoveOptions, SnapshotFilter, SnapshotInfo, SnapshotKind,
    SnapshotUsage, Snapshotter, SnapshotterOptions, UnmountReport, can_mount, mount_all, unmount,
};
pub use store::{ImageInfo, LayerInfo, Lease, OpenOptions, Store};
pub use sys::cache::ReadOnce;
pub use sys::remove::remove_tree;
pub use tar::Writer as TarWriter;
pub use upkeep::{
    DamageKind, Finding, FsckCounts, FsckOptions, FsckReport, Garbage, GarbageKind, GcOptions, GcPlan, GcReport,
    ImageUsage, Keeper, Kept, PartOfChunk, RebuildOptions, RebuildReport, RecompressOptions, RecompressReport,
    RepairOptions, RepairReport, RepairSource, Usage, UsageByImage,
};

/// The examples of README.md, compiled and run with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
