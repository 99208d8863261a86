//! layerstore: a content-addressable store for container layers.
#![warn(rust_2018_idioms)]

mod digest;
mod error;
mod format;
mod id;
mod limits;
mod observe;
#[cfg_attr(not(test), expect(dead_code, reason = "the store above is not written yet"))]
mod tree;

pub use digest::{Digest, Hasher};
pub use error::{Error, ErrorKind, Result};
pub use format::entry::{DataRange, Entry, EntryKind, Time, Whiteout, Xattr};
pub use id::ContentId;
pub use limits::Limits;
pub use observe::{Event, Observer};
