//! Untrusted tar to entries and segments, and entries to a deterministic tar.
//!
//! ```text
//! archive   = member* end
//! member    = extension* header map-block* map-lines? content? padding
//! extension = header (x, g, L, K) body padding
//! end       = nothing | zero block | two zero blocks and any number of zeros
//! ```
//!
//! No I/O happens here and nothing is resolved against a filesystem: the [`Parser`] is pushed bytes and tells a [`Sink`]
//! what they are. Every byte reaches the sink once, as content of a file or in a verbatim *segment*, so the tar can be
//! put together again bit for bit. What a layer's entries mean together is for `tree`, except verdicts on hard links
//! that one pass can give ([`links`]).
//!
//! Accepted is what Go's `archive/tar` accepts, less what tar readers understand differently.

mod account;
mod header;
mod links;
mod member;
mod names;
mod parser;
mod pax;
mod sparse;
mod writer;
mod xattr;

#[cfg(test)]
mod tests;

pub(crate) use account::Account;
pub(crate) use parser::{Parser, Sink};
pub use writer::Writer;
pub(crate) use xattr::check as xattr_is_kept;
