//! The store: packs of chunks, the database that finds them, and the sessions that add to them.
//!
//! A [`Store`] is a directory; any number of processes and threads may have it open. Floors above add what a layer or
//! an image means; this one knows chunks, names of files, and durability.

mod index;
mod ingest;
mod open;
mod packs;
mod read;
mod seen;
mod session;

pub(crate) use index::BlobInfo;
pub use index::{ImageInfo, LayerInfo};
pub(crate) use ingest::{IndexReader, Ingest};
pub use open::{OpenOptions, Store};
pub(crate) use read::{ChunkReader, RawChunk};
pub(crate) use seen::{Found, Slot};
pub(crate) use session::Outcome;
