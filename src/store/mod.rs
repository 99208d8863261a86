//! The store: packs of chunks, the database that finds them, and the sessions that add to them.
//!
//! A [`Store`] is a directory; any number of processes and threads may have it open. Floors above add what a layer or
//! an image means; this one knows chunks, names of files, and durability.

mod chunk_refs;
mod index;
mod ingest;
mod lease;
mod open;
mod packs;
mod pending;
mod read;
mod reserve;
mod session;
mod swap;

pub(crate) use chunk_refs::chunk_refs;
pub(crate) use index::{BlobInfo, Change, ChunkRow, Index, LeaseRef, Roots, Salvage, SnapshotRow};
pub use index::{ImageInfo, LayerInfo};
pub(crate) use ingest::{IndexReader, Ingest, Slot};
pub use lease::Lease;
pub(crate) use lease::{chain_ids, now};
pub use open::{OpenOptions, Store};
pub(crate) use open::{has, take_alone};
pub(crate) use packs::{RESERVE as PACK_MAX, pack_base};
pub(crate) use pending::Found;
pub(crate) use read::{ChunkReader, RawChunk};
pub(crate) use session::{Moves, Outcome, Scratch};
pub(crate) use swap::put as put_database;
