//! Digests in OCI form (`sha256:<64 lower-case hex digits>`, `sha512:<128>`), and hashers that count.
//!
//! The store names everything by SHA-256 ([`Digest`]). Documents of images may also use SHA-512 ([`OciDigest`]).
//! Source: OCI image-spec `descriptor.md`, section "Digests". Other algorithms are refused as unsupported.

use crate::error::{Error, ErrorKind, Result};
use sha2::Digest as _;
use std::fmt;
use std::io;
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

pub(crate) fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let nibble = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let mut out = [0; N];
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

/// A digest as the documents of images name bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum OciDigest {
    /// SHA-256, the algorithm of the store and of nearly all images.
    Sha256(Digest),
    /// The 64 bytes of a SHA-512, which the specification registers too.
    Sha512([u8; 64]),
}

impl OciDigest {
    /// The name of the algorithm, which is also that of the directory in an image layout.
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "sha256",
            Self::Sha512(_) => "sha512",
        }
    }

    /// The hex digits without the algorithm.
    pub fn hex(&self) -> String {
        match self {
            Self::Sha256(digest) => digest.hex(),
            Self::Sha512(bytes) => hex(bytes),
        }
    }

    /// The SHA-256, if it is one.
    pub fn sha256(&self) -> Option<Digest> {
        match self {
            Self::Sha256(digest) => Some(*digest),
            Self::Sha512(_) => None,
        }
    }

    /// Hashes `bytes` with the algorithm of this digest.
    #[must_use]
    pub fn same_of(&self, bytes: &[u8]) -> Self {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.finish()
    }

    /// Whether these bytes may be the ones that `digest` is of. Of a SHA-512 only the bytes themselves tell.
    pub(crate) fn may_be(&self, digest: &Digest) -> bool {
        self.sha256().is_none_or(|own| own == *digest)
    }

    /// A hasher of the algorithm of this digest.
    pub(crate) fn hasher(&self) -> OciHasher {
        match self {
            Self::Sha256(_) => OciHasher::Sha256(Hasher::default()),
            Self::Sha512(_) => OciHasher::sha512(),
        }
    }

    /// A digest without its algorithm: 64 hex digits are a SHA-256, 128 a SHA-512.
    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        match text.len() {
            64 => parse_hex(text).map(Digest).map(Self::Sha256),
            _ => parse_hex(text).map(Self::Sha512),
        }
    }
}

impl From<Digest> for OciDigest {
    fn from(digest: Digest) -> Self {
        Self::Sha256(digest)
    }
}

impl PartialEq<Digest> for OciDigest {
    fn eq(&self, other: &Digest) -> bool {
        self.sha256() == Some(*other)
    }
}

impl PartialEq<OciDigest> for Digest {
    fn eq(&self, other: &OciDigest) -> bool {
        other == self
    }
}

impl fmt::Display for OciDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm(), self.hex())
    }
}

impl fmt::Debug for OciDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for OciDigest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once(':') {
            Some(("sha256", _)) => text.parse().map(Self::Sha256),
            Some(("sha512", hex)) => parse_hex(hex)
                .map(Self::Sha512)
                .ok_or_else(|| Error::invalid("not 128 lower-case hex digits").subject(text)),
            Some((algorithm, _)) => {
                let message = format!("digest algorithm '{algorithm}' is not supported, only sha256 and sha512 are");
                Err(Error::new(ErrorKind::Unsupported, message).subject(text))
            }
            None => Err(Error::invalid("not a digest").subject(text).expected("sha256:<64 hex digits>")),
        }
    }
}

impl serde::Serialize for OciDigest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for OciDigest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A hash over a stream by either algorithm, with the number of bytes seen.
#[derive(Clone)]
pub(crate) enum OciHasher {
    Sha256(Hasher),
    Sha512 { sha: Box<sha2::Sha512>, len: u64 },
}

impl OciHasher {
    pub(crate) fn sha512() -> Self {
        Self::Sha512 { sha: Box::default(), len: 0 }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512 { sha, len } => {
                sha.update(bytes);
                *len += bytes.len() as u64;
            }
        }
    }

    /// Bytes added so far.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Sha256(hasher) => hasher.len(),
            Self::Sha512 { len, .. } => *len,
        }
    }

    pub(crate) fn finish(self) -> OciDigest {
        match self {
            Self::Sha256(hasher) => hasher.finish().into(),
            Self::Sha512 { sha, .. } => OciDigest::Sha512(sha.finalize().into()),
        }
    }
}

/// Passes bytes on and hashes those that were taken.
pub(crate) struct Hashed<W>(pub(crate) W, pub(crate) OciHasher);

impl<W: io::Write> io::Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.0.write(bytes)?;
        self.1.update(&bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
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

    /// The digest of no bytes is that of FIPS 180-4's examples.
    #[test]
    fn takes_both_algorithms_of_the_specification() {
        let empty = "sha512:cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce\
                     47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e";
        let wide: OciDigest = empty.parse().unwrap();
        assert_eq!((wide.to_string().as_str(), wide.sha256()), (empty, None));
        assert_eq!((wide.same_of(b""), OciHasher::sha512().finish()), (wide, wide));
        assert_eq!(OciDigest::from_hex(&empty[7..]), Some(wide));
        let narrow: OciDigest = EMPTY.parse().unwrap();
        assert!(narrow == Digest::of(b"") && Digest::of(b"") == narrow && wide != Digest::of(b""));
        assert_eq!(OciDigest::from_hex(&EMPTY[7..]), Some(narrow));
        for bad in ["sha512:00", &empty.to_uppercase(), &EMPTY.replace("256", "512"), &empty.replace("512", "256")] {
            assert!(bad.parse::<OciDigest>().is_err(), "{bad}");
        }
        assert_eq!("sha384:00".parse::<OciDigest>().unwrap_err().kind(), ErrorKind::Unsupported);
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
