//! Layer blobs out: a tar compressed the same way every time.
//!
//! The same tar gives the same blob, and so the same digest, whatever the sizes of the writes: input is cut into blocks
//! of a fixed size before a compressor sees it, and nothing of the time, host or file name enters a header. It stays
//! the same only as long as the compressors do; a new release of one may give other bytes, which is why exports name
//! the digest.

use crate::codec::media::Compression;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use flate2::{Compress, Crc, FlushCompress, Status};
use std::io::{self, Write};
use zstd::stream::raw::{CParameter, Encoder, InBuffer, Operation, OutBuffer};

/// Input is compressed in pieces of exactly this size, but for the last.
const PIECE: usize = 128 << 10;

/// Magic, deflate, no flags, no time, no extra flags, unknown operating system.
const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];

/// Compresses a tar into a layer blob.
///
/// Dropping it without [`finish`](Self::finish) leaves a blob that every reader refuses as cut short, unless it is
/// uncompressed.
pub struct BlobWriter<W> {
    out: Hashed<W>,
    format: Format,
    piece: Vec<u8>,
    space: Vec<u8>,
}

enum Format {
    Plain,
    Gzip { deflate: Box<Compress>, crc: Crc },
    Zstd(Box<Encoder<'static>>),
}

impl<W: Write> BlobWriter<W> {
    /// Writes to `inner` with the default level: gzip 6, zstd 3 (with a checksum).
    pub fn new(inner: W, compression: Compression) -> Result<Self> {
        let level = if compression == Compression::Zstd { 3 } else { 6 };
        Self::with_level(inner, compression, level)
    }

    /// Writes to `inner` with a level of the compression's own scale (gzip 0 to 9, zstd 1 to 22).
    pub fn with_level(inner: W, compression: Compression, level: u8) -> Result<Self> {
        let mut out = Hashed { inner, hasher: Hasher::default() };
        let levels = match compression {
            Compression::None => 0..=u8::MAX,
            Compression::Gzip => 0..=9,
            Compression::Zstd => 1..=22,
        };
        if !levels.contains(&level) {
            let e = Error::invalid(format!("no such {compression} level"));
            return Err(e.expected(format!("{} to {}", levels.start(), levels.end())).actual(level));
        }
        let format = match compression {
            Compression::None => Format::Plain,
            Compression::Gzip => {
                out.write(&GZIP_HEADER)?;
                let deflate = Box::new(Compress::new(flate2::Compression::new(level.into()), false));
                Format::Gzip { deflate, crc: Crc::new() }
            }
            Compression::Zstd => Format::Zstd(Box::new(zstd_encoder(level)?)),
        };
        Ok(Self { out, format, piece: Vec::with_capacity(PIECE), space: vec![0; PIECE] })
    }

    /// Ends the blob; its digest, its size, and the inner writer (which is not flushed).
    pub fn finish(mut self) -> Result<(Digest, u64, W)> {
        self.compress(true)?;
        if let Format::Gzip { deflate, crc } = &self.format {
            let (crc, len) = (crc.sum(), deflate.total_in() as u32);
            self.out.write(&crc.to_le_bytes())?;
            self.out.write(&len.to_le_bytes())?;
        }
        let size = self.out.hasher.len();
        Ok((self.out.hasher.finish(), size, self.out.inner))
    }

    /// Compresses the piece and empties it.
    fn compress(&mut self, last: bool) -> Result<()> {
        let Self { out, format, piece, space } = self;
        match format {
            Format::Plain => out.write(piece)?,
            Format::Gzip { deflate, crc } => {
                crc.update(piece);
                deflate_piece(deflate, piece, last, space, out)?;
            }
            Format::Zstd(encoder) => zstd_piece(encoder, piece, last, space, out)?,
        }
        piece.clear();
        Ok(())
    }
}

impl<W: Write> Write for BlobWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full piece is compressed when more comes, not at once: the last one must be known to be the last.
        if self.piece.len() == PIECE && !bytes.is_empty() {
            self.compress(false)?;
        }
        let n = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    /// Does nothing: a flush in the stream would change its bytes.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn zstd_encoder(level: u8) -> Result<Encoder<'static>> {
    let failed = |e| Error::io("cannot set up zstd", e);
    let mut encoder = Encoder::new(level.into()).map_err(failed)?;
    encoder.set_parameter(CParameter::ChecksumFlag(true)).map_err(failed)?;
    Ok(encoder)
}

fn deflate_piece<W: Write>(
    deflate: &mut Compress,
    mut piece: &[u8],
    last: bool,
    space: &mut [u8],
    out: &mut Hashed<W>,
) -> Result<()> {
    let flush = if last { FlushCompress::Finish } else { FlushCompress::None };
    loop {
        let (total_in, total_out) = (deflate.total_in(), deflate.total_out());
        let status =
            deflate.compress(piece, space, flush).map_err(|e| Error::io("cannot deflate", io::Error::from(e)))?;
        piece = &piece[(deflate.total_in() - total_in) as usize..];
        let produced = (deflate.total_out() - total_out) as usize;
        out.write(&space[..produced])?;
        let done = if last { status == Status::StreamEnd } else { piece.is_empty() && produced < space.len() };
        if done {
            return Ok(());
        }
    }
}

fn zstd_piece<W: Write>(
    encoder: &mut Encoder<'static>,
    piece: &[u8],
    last: bool,
    space: &mut [u8],
    out: &mut Hashed<W>,
) -> Result<()> {
    let failed = |e| Error::io("cannot compress with zstd", e);
    let mut input = InBuffer::around(piece);
    while input.pos() < piece.len() {
        let mut output = OutBuffer::around(&mut *space);
        encoder.run(&mut input, &mut output).map_err(failed)?;
        let produced = output.pos();
        out.write(&space[..produced])?;
    }
    if last {
        loop {
            let mut output = OutBuffer::around(&mut *space);
            let remaining = encoder.finish(&mut output, true).map_err(failed)?;
            let produced = output.pos();
            out.write(&space[..produced])?;
            if remaining == 0 {
                break;
            }
        }
    }
    Ok(())
}

/// A writer with the hash of what went through it.
struct Hashed<W> {
    inner: W,
    hasher: Hasher,
}

impl<W: Write> Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.inner.write_all(bytes).map_err(|e| Error::from_io("cannot write the blob", e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::blob::BlobReader;
    use crate::error::ErrorKind;
    use crate::limits::Limits;
    use std::io::Read;

    const ALL: [Compression; 3] = [Compression::None, Compression::Gzip, Compression::Zstd];

    fn tar(len: usize) -> Vec<u8> {
        (0..len).map(|i| ((i * i) >> 7) as u8 & 0x3f).collect()
    }

    fn blob(tar: &[u8], compression: Compression, write: usize) -> Vec<u8> {
        let mut writer = BlobWriter::new(Vec::new(), compression).unwrap();
        for part in tar.chunks(write) {
            writer.write_all(part).unwrap();
            writer.flush().unwrap();
        }
        let (digest, size, bytes) = writer.finish().unwrap();
        assert_eq!((digest, size), (Digest::of(&bytes), bytes.len() as u64));
        bytes
    }

    #[test]
    fn what_is_written_is_read_back() {
        for len in [0, 1, 511, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE] {
            for compression in ALL {
                let bytes = blob(&tar(len), compression, 70_000);
                let mut reader = BlobReader::new(&bytes[..], &Limits::default()).unwrap();
                let mut back = Vec::new();
                reader.read_to_end(&mut back).unwrap();
                assert!(back == tar(len), "{compression} {len}");
            }
        }
    }

    #[test]
    fn the_bytes_do_not_depend_on_the_writes() {
        let tar = tar(3 * PIECE + 17);
        for compression in ALL {
            let whole = blob(&tar, compression, tar.len());
            for write in [1000, 4096, PIECE, PIECE + 1] {
                assert!(blob(&tar, compression, write) == whole, "{compression} {write}");
            }
        }
    }

    #[test]
    fn nothing_of_the_host_is_in_the_header() {
        assert_eq!(blob(b"x", Compression::Gzip, 1)[..10], GZIP_HEADER);
        // The descriptor of a zstd frame: with checksum, no dictionary.
        assert_eq!(blob(&tar(1000), Compression::Zstd, 7)[4] & 0x07, 0x04);
    }

    #[test]
    fn refuses_levels_that_do_not_exist() {
        for (compression, level) in [(Compression::Gzip, 10), (Compression::Zstd, 0), (Compression::Zstd, 23)] {
            let e = BlobWriter::with_level(Vec::new(), compression, level).err().unwrap();
            assert_eq!(e.kind(), ErrorKind::InvalidInput);
        }
    }
}
