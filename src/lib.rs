//! layerstore: a content-addressable store for container layers.
#![warn(rust_2018_idioms)]

mod digest;
mod error;
mod format;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod id;
mod limits;
mod observe;
#[cfg_attr(
    not(any(test, feature = "fuzzing")),
    expect(dead_code, unused_imports, reason = "the ingest that drives it is not here yet")
)]
mod tar;

pub use digest::{Digest, Hasher};
pub use error::{Error, ErrorKind, Result};
pub use format::entry::{DataRange, Entry, EntryKind, Time, Whiteout, Xattr};
pub use id::ContentId;
pub use limits::Limits;
pub use observe::{Event, Observer};
