//! layerstore: a content-addressable store for container layers.
#![warn(rust_2018_idioms)]

mod codec;
mod digest;
mod error;
mod format;
mod id;
mod image;
mod limits;
mod observe;

pub use codec::blob::{BlobReader, BlobSummary};
pub use codec::media::Compression;
pub use codec::writer::BlobWriter;
pub use digest::{Digest, Hasher};
pub use error::{Error, ErrorKind, Result};
pub use format::entry::{DataRange, Entry, EntryKind, Time, Whiteout, Xattr};
pub use id::ContentId;
pub use image::layout::{IndexEntry, LayoutWriter};
pub use image::manifest::{LayerBlob, manifest_for};
pub use image::plan::{Candidate, ImagePlan, PlannedLayer, Platform, RawManifest, Selector};
pub use image::source::{Detected, ImageSource, detect};
pub use limits::Limits;
pub use observe::{Event, Observer};
