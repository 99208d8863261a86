//! layerstore: a content-addressable store for container layers.
#![warn(rust_2018_idioms)]

mod chunk;
mod codec;
mod digest;
mod error;
mod format;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod id;
mod image;
mod layer;
mod limits;
mod observe;
mod store;
mod sys;
mod tar;
mod tree;
mod upkeep;

pub use codec::blob::{BlobReader, BlobSummary};
pub use codec::chunk::Compress;
pub use codec::media::Compression;
pub use codec::writer::BlobWriter;
pub use digest::{Digest, Hasher};
pub use error::{Error, ErrorKind, Result};
pub use format::entry::{DataRange, Entry, EntryKind, Time, Whiteout, Xattr};
pub use format::item::Extent;
pub use format::params::Chunking;
pub use id::ContentId;
pub use image::export::{ExportOptions, ExportTarget, ImageExport};
pub use image::import::ImageImport;
pub use image::layout::{IndexEntry, LayoutWriter};
pub use image::manifest::{LayerBlob, manifest_for};
pub use image::plan::{Candidate, ImagePlan, PlannedLayer, Platform, RawManifest, Selector};
pub use image::source::{Detected, ImageSource, detect};
pub use layer::{Entries, FileReader, ImportOptions, ImportStats, Layer, LayerEntry, LayerExport, LayerImport, Root};
pub use limits::Limits;
pub use observe::{Event, Observer};
pub use store::{ImageInfo, LayerInfo, OpenOptions, Store};
pub use upkeep::Usage;
