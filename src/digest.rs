//! SHA-256 digests in OCI form (`sha256:<64 lower-case hex digits>`), and a hasher that counts.
//!
//! Source: OCI image-spec `descriptor.md`, section "Digests". Other algorithms are refused as unsupported.

use crate::error::{Error, ErrorKind, Result};
use sha2::Digest as _;
use std::fmt;
use std::str::FromStr;

/// The SHA-256 of some bytes: of a blob, of an uncompressed layer tar (diff_id) or of a chain of those (chain_id).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Wraps raw SHA-256 output.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Hashes `bytes` at once.
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// The 64 hex digits without the algorithm prefix, as used in file names.
    pub fn hex(&self) -> String {
        hex(&self.0)
    }

    /// Parses 64 lower-case hex digits.
    pub fn from_hex(text: &str) -> Result<Self> {
        parse_hex(text).map(Self).ok_or_else(|| Error::invalid("not 64 lower-case hex digits").subject(text))
    }

    /// The OCI chain_id of a layer with diff_id `diff_id` on top of `parent` (image-spec `config.md`).
    pub fn chain(parent: Option<Self>, diff_id: Self) -> Self {
        match parent {
            None => diff_id,
            Some(parent) => Self::of(format!("{parent} {diff_id}").as_bytes()),
        }
    }

    /// The chain_id of all `layers`, lowest first; `None` without layers.
    pub fn chain_of(layers: &[Self]) -> Option<Self> {
        layers.iter().fold(None, |parent, layer| Some(Self::chain(parent, *layer)))
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    let mut out = String::with_capacity(bytes.len() * 2);
    for b in bytes {
        let _ = write!(out, "{b:02x}");
    }
    out
}

pub(crate) fn parse_hex(text: &str) -> Option<[u8; 32]> {
    let text = text.as_bytes();
    if text.len() != 64 {
        return None;
    }
    let nibble = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(out)
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once(':') {
            Some(("sha256", hex)) => Self::from_hex(hex),
            Some((algorithm, _)) => {
                let message = format!("digest algorithm '{algorithm}' is not supported, only sha256 is");
                Err(Error::new(ErrorKind::Unsupported, message).subject(text))
            }
            None => Err(Error::invalid("not a digest").subject(text).expected("sha256:<64 hex digits>")),
        }
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// SHA-256 over a stream, with the number of bytes seen.
#[derive(Clone, Default)]
pub struct Hasher {
    sha: sha2::Sha256,
    len: u64,
}

impl Hasher {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.sha.update(bytes);
        self.len += bytes.len() as u64;
    }

    /// Bytes added so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing was added yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The digest of all bytes added.
    pub fn finish(self) -> Digest {
        Digest(self.sha.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn parses_and_prints() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>().unwrap(), Digest::of(b""));
        assert_eq!(Hasher::default().finish(), Digest::of(b""));
    }

    #[test]
    fn refuses_what_is_not_a_sha256() {
        for bad in ["", "sha256:", "sha256:E3", &EMPTY.to_uppercase(), &EMPTY[..70], &format!("{EMPTY}0")] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
        let e = "sha512:00".parse::<Digest>().unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn chains_as_the_image_spec_says() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        assert_eq!(Digest::chain(None, a), a);
        assert_eq!(Digest::chain(Some(a), b), Digest::of(format!("{a} {b}").as_bytes()));
        assert_eq!(Digest::chain_of(&[a, b]), Some(Digest::chain(Some(a), b)));
        assert_eq!(Digest::chain_of(&[]), None);
    }
}
