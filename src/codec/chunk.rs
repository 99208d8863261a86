//! Chunk codecs: raw bytes to what a pack stores, and back.
//!
//! A chunk is stored raw when compression does not make it smaller.
//! Identity (BLAKE3 of the raw bytes) is checked by whoever reads, not here.

use crate::error::{Error, Result};
use crate::format::pack::{CHUNK_RAW_MAX, Codec};
use zstd::zstd_safe::CParameter;

/// How new chunks are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compress {
    /// As the import's pace allows, chunk by chunk: zstd tuned for speed while the compressors are what others wait
    /// for, level 3 while they would idle. A chunk's identity does not depend on it.
    #[default]
    Auto,
    /// Not at all.
    Raw,
    /// LZ4 blocks: least work to write and to read.
    Lz4,
    /// Zstandard frames at this level, 1 to 19. Level 1 is tuned for chunks: see `docs/ARCHITECTURE.md`.
    Zstd(i32),
}

impl Compress {
    /// # Errors
    /// `InvalidInput` for a zstd level outside 1 to 19: higher ones need windows the kernel's EROFS refuses.
    pub(crate) fn validate(self) -> Result<Self> {
        match self {
            Self::Zstd(level) if !(1..=19).contains(&level) => {
                Err(Error::invalid("zstd level out of range").expected("1 to 19").actual(level))
            }
            ok => Ok(ok),
        }
    }
}

/// `auto`, `raw`, `lz4`, `zstd` or `zstd:LEVEL`.
impl std::str::FromStr for Compress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wanted =
            || Error::invalid("no such compression").expected("auto, raw, lz4, zstd or zstd:LEVEL").actual(text);
        match text.split_once(':').map_or((text, None), |(codec, level)| (codec, Some(level))) {
            ("auto", None) => Ok(Self::Auto),
            ("raw", None) => Ok(Self::Raw),
            ("lz4", None) => Ok(Self::Lz4),
            ("zstd", None) => Ok(Self::Zstd(1)),
            ("zstd", Some(level)) => Self::Zstd(level.parse().map_err(|_| wanted())?).validate(),
            _ => Err(wanted()),
        }
    }
}

/// zstd's level 1 with a larger table and shorter matches: 1.1 % smaller for 6 % of its speed.
const TUNED: [CParameter; 2] = [CParameter::HashLog(15), CParameter::MinMatch(5)];
/// zstd's level 1 with a table of 16 KiB, which stays in the first cache, and matches from 7 bytes on.
const FAST: [CParameter; 2] = [CParameter::HashLog(12), CParameter::MinMatch(7)];
/// The level of chunks that nobody waits for.
const LEISURE: i32 = 3;

type Zstd = zstd::bulk::Compressor<'static>;

/// Compresses chunks one after the other, reusing its working memory.
pub(crate) struct Encoder {
    method: Method,
    out: Vec<u8>,
}

enum Method {
    Raw,
    Lz4,
    Zstd(Zstd),
    Auto { fast: Zstd, strong: Zstd },
}

impl Encoder {
    pub(crate) fn new(compress: Compress) -> Result<Self> {
        let method = match compress {
            Compress::Raw => Method::Raw,
            Compress::Lz4 => Method::Lz4,
            Compress::Zstd(1) => Method::Zstd(zstd(1, &TUNED)?),
            Compress::Zstd(level) => Method::Zstd(zstd(level, &[])?),
            Compress::Auto => Method::Auto { fast: zstd(1, &FAST)?, strong: zstd(LEISURE, &[])? },
        };
        Ok(Self { method, out: Vec::new() })
    }

    /// What to store for `raw`: compressed, or `raw` itself when that is not larger (the kernel wants it so).
    ///
    /// `hurry` says that others wait for this chunk; only [`Compress::Auto`] heeds it.
    pub(crate) fn encode<'a>(&'a mut self, raw: &'a [u8], hurry: bool) -> Result<(Codec, &'a [u8])> {
        let out = &mut self.out;
        let codec = match &mut self.method {
            Method::Raw => return Ok((Codec::Raw, raw)),
            Method::Lz4 => {
                out.resize(lz4_flex::block::get_maximum_output_size(raw.len()), 0);
                let len = lz4_flex::block::compress_into(raw, out);
                out.truncate(len.map_err(|e| Error::io("compress a chunk", std::io::Error::other(e)))?);
                Codec::Lz4
            }
            Method::Zstd(zstd) => frame(zstd, raw, out)?,
            Method::Auto { fast, .. } if hurry => frame(fast, raw, out)?,
            Method::Auto { strong, .. } => frame(strong, raw, out)?,
        };
        if self.out.len() >= raw.len() { Ok((Codec::Raw, raw)) } else { Ok((codec, &self.out)) }
    }
}

fn zstd(level: i32, tuned: &[CParameter]) -> Result<Zstd> {
    let mut zstd = Zstd::new(level).map_err(|e| Error::io("set up zstd", e))?;
    // A chunk's id already proves its bytes; the size is needed to decode in one step.
    let plain = [CParameter::ChecksumFlag(false), CParameter::ContentSizeFlag(true)];
    for parameter in plain.iter().chain(tuned) {
        zstd.set_parameter(*parameter).map_err(|e| Error::io("set up zstd", e))?;
    }
    Ok(zstd)
}

fn frame(zstd: &mut Zstd, raw: &[u8], out: &mut Vec<u8>) -> Result<Codec> {
    out.clear();
    out.reserve(zstd::zstd_safe::compress_bound(raw.len()));
    zstd.compress_to_buffer(raw, out).map_err(|e| Error::io("compress a chunk", e))?;
    Ok(Codec::Zstd)
}

/// Decompresses chunks one after the other, reusing its working memory.
pub(crate) struct Decoder {
    zstd: zstd::bulk::Decompressor<'static>,
}

impl Decoder {
    pub(crate) fn new() -> Result<Self> {
        let mut zstd = zstd::bulk::Decompressor::new().map_err(|e| Error::io("set up zstd", e))?;
        let set = zstd.set_parameter(zstd::zstd_safe::DParameter::WindowLogMax(20));
        set.map_err(|e| Error::io("set up zstd", e))?;
        Ok(Self { zstd })
    }

    /// The raw bytes of a chunk; anything but exactly `raw_len` of them is corruption.
    #[cfg(any(test, feature = "internals"))]
    pub(crate) fn decode(&mut self, codec: Codec, mut stored: Vec<u8>, raw_len: u32) -> Result<Vec<u8>> {
        let mut raw = Vec::new();
        self.decode_into(codec, &mut stored, raw_len, &mut raw)?;
        Ok(raw)
    }

    /// Puts the raw bytes of a chunk into `raw`, whose memory is used again; anything but exactly `raw_len` of them is
    /// corruption. What is in `stored` afterwards means nothing.
    pub(crate) fn decode_into(
        &mut self,
        codec: Codec,
        stored: &mut Vec<u8>,
        raw_len: u32,
        raw: &mut Vec<u8>,
    ) -> Result<()> {
        if raw_len > CHUNK_RAW_MAX {
            return Err(Error::corrupt("chunk is longer than any chunk may be").actual(raw_len));
        }
        let raw_len = raw_len as usize;
        match codec {
            Codec::Raw => std::mem::swap(raw, stored),
            Codec::Zstd => {
                raw.clear();
                raw.reserve(raw_len);
                let done = self.zstd.decompress_to_buffer(stored, raw);
                done.map_err(|e| Error::corrupt("chunk is not a sound zstd frame").source(e))?;
            }
            Codec::Lz4 => {
                raw.resize(raw_len, 0);
                let len = lz4_flex::block::decompress_into(stored, raw);
                raw.truncate(len.map_err(|e| Error::corrupt("chunk is not a sound LZ4 block").source(e))?);
            }
        }
        if raw.len() == raw_len {
            Ok(())
        } else {
            Err(Error::corrupt("chunk has another length").expected(raw_len).actual(raw.len()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(compress: Compress, raw: &[u8]) -> (Codec, usize) {
        let mut encoder = Encoder::new(compress).unwrap();
        let (codec, stored) = encoder.encode(raw, true).unwrap();
        let back = Decoder::new().unwrap().decode(codec, stored.to_vec(), raw.len() as u32).unwrap();
        assert_eq!(back, raw);
        (codec, stored.len())
    }

    #[test]
    fn methods_have_names() {
        let parse = |text: &str| text.parse::<Compress>();
        assert_eq!(parse("auto").unwrap(), Compress::default());
        assert_eq!(parse("zstd").unwrap(), Compress::Zstd(1));
        assert_eq!(parse("zstd:19").unwrap(), Compress::Zstd(19));
        assert_eq!(parse("lz4").unwrap(), Compress::Lz4);
        for bad in ["", "gzip", "zstd:20", "zstd:0", "zstd:", "raw:1"] {
            assert_eq!(parse(bad).unwrap_err().kind(), crate::ErrorKind::InvalidInput, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_come_back(raw in proptest::collection::vec(any::<u8>(), 1..5000), repeat in 1usize..40) {
            let raw = raw.repeat(repeat);
            for compress in [Compress::Auto, Compress::Raw, Compress::Lz4, Compress::Zstd(1), Compress::Zstd(19)] {
                prop_assert!(round_trip(compress, &raw).1 <= raw.len());
            }
        }

        #[test]
        fn any_stored_bytes_are_an_error_or_the_right_length(stored in proptest::collection::vec(any::<u8>(), 0..300)) {
            for codec in [Codec::Raw, Codec::Lz4, Codec::Zstd] {
                if let Ok(raw) = Decoder::new().unwrap().decode(codec, stored.clone(), 200) {
                    prop_assert_eq!(raw.len(), 200);
                }
            }
        }
    }

    #[test]
    fn keeps_incompressible_bytes_raw() {
        let noise: Vec<u8> =
            (0u32..3000).flat_map(|n| blake3::hash(&n.to_le_bytes()).as_bytes()[..4].to_vec()).collect();
        for compress in [Compress::Lz4, Compress::Zstd(3)] {
            assert_eq!(round_trip(compress, &noise).0, Codec::Raw);
            assert_ne!(round_trip(compress, &[7; 9000]).0, Codec::Raw);
        }
    }

    #[test]
    fn takes_more_care_when_nobody_waits() {
        let text = include_bytes!("chunk.rs");
        let mut encoder = Encoder::new(Compress::Auto).unwrap();
        let [hurried, careful] = [true, false].map(|hurry| encoder.encode(text, hurry).unwrap().1.len());
        assert!(careful < hurried, "{careful} < {hurried}");
    }

    #[test]
    fn an_lz4_block_never_begins_with_the_padding_byte() {
        // The kernel finds a compressed chunk's start by skipping zeros, so neither codec may begin with one.
        for seed in 0u8..=255 {
            let raw = [seed, 0, 0, 0].repeat(2000);
            for compress in [Compress::Lz4, Compress::Zstd(1)] {
                let mut encoder = Encoder::new(compress).unwrap();
                assert_ne!(encoder.encode(&raw, true).unwrap().1[0], 0);
            }
        }
    }
}
