//! Which compression a layer blob has: by its first bytes, and by the media type a manifest gives it.
//!
//! The bytes decide; the media type is what others were told. Sources: OCI image-spec `layer.md` and `media-types.md`,
//! Docker's "Image Manifest V2, Schema 2".

use crate::error::{Advice, Error, ErrorKind, Result};
use std::fmt;

/// How a layer blob is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Compression {
    /// The tar itself.
    None,
    /// One or more gzip members (RFC 1952).
    Gzip,
    /// One or more zstd frames (RFC 8878).
    Zstd,
}

/// How many bytes [`Compression::detect`] wants to see; fewer only if there are no more.
pub(crate) const DETECT_LEN: usize = 10;

const ZSTD_MAGIC: u32 = 0xFD2F_B528;
/// The low four bits are free: sixteen magics.
const ZSTD_SKIPPABLE: u32 = 0x184D_2A50;

impl Compression {
    /// Tells the compression from the first bytes of a blob (at least ten, unless the blob is shorter).
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for xz and bzip2, which some tools read though no specification allows them in
    /// images.
    pub fn detect(start: &[u8]) -> Result<Self> {
        let unsupported = |name| {
            Err(Error::new(ErrorKind::Unsupported, format!("{name} compression is not supported"))
                .advise(Advice::OtherCompression))
        };
        if start.starts_with(&[0x1f, 0x8b]) {
            return Ok(Self::Gzip);
        }
        if let Some(magic) = start.first_chunk().map(|b| u32::from_le_bytes(*b))
            && (magic == ZSTD_MAGIC || is_skippable(magic))
        {
            return Ok(Self::Zstd);
        }
        if start.starts_with(b"\xfd7zXZ\0") {
            return unsupported("xz");
        }
        // "BZh" alone could begin the name of a tar's first entry, so the block or end-of-stream magic is wanted too.
        if let [b'B', b'Z', b'h', b'1'..=b'9', block @ ..] = start
            && (block.starts_with(b"1AY&SY") || block.starts_with(b"\x17\x72\x45\x38\x50\x90"))
        {
            return unsupported("bzip2");
        }
        Ok(Self::None)
    }

    /// The OCI media type of a layer compressed like this.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }

    /// As one word: `none`, `gzip` or `zstd`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

pub(crate) fn is_skippable(magic: u32) -> bool {
    magic & !0xF == ZSTD_SKIPPABLE
}

pub(crate) fn is_zstd_frame(magic: u32) -> bool {
    magic == ZSTD_MAGIC
}

/// What a media type says about a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LayerType {
    pub(crate) compression: Compression,
    /// Nondistributable ("foreign"): the registry need not have it, so a layout may lack it.
    pub(crate) foreign: bool,
}

impl LayerType {
    /// Reads a layer's media type; `None` if it is not that of a tar layer.
    pub(crate) fn parse(media_type: &str) -> Option<Self> {
        const OCI: [&str; 2] =
            ["application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.nondistributable.v1.tar"];
        const DOCKER: [&str; 2] =
            ["application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar"];
        for (foreign, (oci, docker)) in [false, true].into_iter().zip(OCI.into_iter().zip(DOCKER)) {
            let compression = match (media_type.strip_prefix(oci), media_type.strip_prefix(docker)) {
                (Some(""), _) | (_, Some("")) => Compression::None,
                (Some("+gzip"), _) | (_, Some(".gzip")) => Compression::Gzip,
                (Some("+zstd"), _) | (_, Some(".zstd")) => Compression::Zstd,
                _ => continue,
            };
            return Some(Self { compression, foreign });
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_compression_by_first_bytes() {
        let kinds: [(&[u8], Compression); 8] = [
            (b"", Compression::None),
            (b"etc/passwd", Compression::None),
            (b"BZh9-notes", Compression::None),
            (b"\x1f\x8b\x08\0", Compression::Gzip),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
            (b"\x50\x2a\x4d\x18", Compression::Zstd),
            (b"\x5f\x2a\x4d\x18", Compression::Zstd),
            (b"\x60\x2a\x4d\x18", Compression::None),
        ];
        for (bytes, kind) in kinds {
            assert_eq!(Compression::detect(bytes).unwrap(), kind, "{bytes:x?}");
        }
    }

    #[test]
    fn names_what_it_does_not_support() {
        for (bytes, name) in
            [(&b"\xfd7zXZ\0\0\x04"[..], "xz"), (b"BZh91AY&SY", "bzip2"), (b"BZh9\x17rE8P\x90", "bzip2")]
        {
            let e = Compression::detect(bytes).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Unsupported);
            assert!(e.to_string().contains(name), "{e}");
        }
    }

    #[test]
    fn media_types_round_trip() {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let parsed = LayerType::parse(compression.media_type());
            assert_eq!(parsed, Some(LayerType { compression, foreign: false }));
        }
        let foreign = |compression| Some(LayerType { compression, foreign: true });
        let docker = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
        assert_eq!(LayerType::parse(docker), foreign(Compression::Gzip));
        let oci = "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd";
        assert_eq!(LayerType::parse(oci), foreign(Compression::Zstd));
        let plain = LayerType::parse("application/vnd.docker.image.rootfs.diff.tar.gzip");
        assert_eq!(plain, Some(LayerType { compression: Compression::Gzip, foreign: false }));
        for other in ["application/wasm", "application/vnd.oci.image.layer.v1.tar+xz", ""] {
            assert_eq!(LayerType::parse(other), None, "{other}");
        }
    }
}
