//! Identity of stored content: the BLAKE3 hash of the raw (uncompressed) bytes.

use crate::digest::{hex, parse_hex};
use crate::error::{Error, Result};
use std::fmt;

/// Names a chunk, or the whole content of a small file, by the BLAKE3 hash of its raw bytes.
///
/// Identity does not depend on codec or place, so a chunk can be recompressed or moved without a new name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentId([u8; 32]);

impl ContentId {
    /// Hashes `raw`.
    pub fn of(raw: &[u8]) -> Self {
        Self(*blake3::hash(raw).as_bytes())
    }

    /// Wraps a hash read from disk.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first eight bytes. Those of different chunks differ, but for accidents that nobody will see.
    pub(crate) fn prefix(&self) -> u64 {
        let (head, _) = self.0.split_at(8);
        head.iter().fold(0, |n, b| n << 8 | u64::from(*b))
    }

    /// Parses 64 lower-case hex digits.
    pub fn from_hex(text: &str) -> Result<Self> {
        parse_hex(text).map(Self).ok_or_else(|| Error::invalid("not a content id: 64 hex digits").subject(text))
    }
}

impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_blake3_and_round_trips_as_hex() {
        let id = ContentId::of(b"");
        assert_eq!(id.to_string(), "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262");
        assert_eq!(ContentId::from_hex(&id.to_string()).unwrap(), id);
        assert!(ContentId::from_hex("af").is_err());
    }
}
