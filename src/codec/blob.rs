//! A layer blob as a stream of tar bytes, verified on the way.
//!
//! [`BlobReader`] tells the compression by the first bytes, decompresses into the caller's buffer (which should be
//! large, 1 MiB say: nothing is buffered between the decompressor and it) and hashes the blob as stored, to its last
//! byte. It does not compare the digest with an expected one; whoever asked for the blob does, with
//! [`BlobReader::finish`].

use crate::codec::gzip::Gunzip;
use crate::codec::input::{BLOCK, Input};
use crate::codec::media::{Compression, DETECT_LEN};
use crate::codec::zstd::Unzstd;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::Limits;
use std::io::{self, Read};

/// What a blob turned out to be once it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlobSummary {
    /// SHA-256 of the blob as stored.
    pub digest: Digest,
    /// Bytes of the blob as stored.
    pub size: u64,
    /// How it was compressed.
    pub compression: Compression,
    /// Bytes of the tar in it.
    pub tar_len: u64,
}

/// Reads the tar bytes of a layer blob.
///
/// An error stays: once reading failed, every further read fails too, so no caller can take a damaged blob for a short
/// one.
pub struct BlobReader<R> {
    input: Input<R>,
    format: Format,
    tar_len: u64,
    tar_limit: u64,
    state: State,
}

enum Format {
    Plain,
    Gzip(Box<Gunzip>),
    Zstd(Box<Unzstd>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Reading,
    Ended,
    Failed(ErrorKind),
}

impl<R: Read> BlobReader<R> {
    /// Starts reading `source`: takes its first block to tell the compression.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for xz and bzip2, [`ErrorKind::Io`] if the source fails.
    pub fn new(source: R, limits: &Limits) -> Result<Self> {
        Self::with_block(source, limits, BLOCK.max(DETECT_LEN))
    }

    fn with_block(source: R, limits: &Limits, block: usize) -> Result<Self> {
        let mut input = Input::new(source, block);
        input.fill()?;
        let format = match Compression::detect(input.bytes())? {
            Compression::None => Format::Plain,
            Compression::Gzip => Format::Gzip(Box::new(Gunzip::new())),
            Compression::Zstd => Format::Zstd(Box::new(Unzstd::new(limits.zstd_window_log)?)),
        };
        Ok(Self { input, format, tar_len: 0, tar_limit: limits.layer_size, state: State::Reading })
    }

    /// How the blob is compressed.
    pub fn compression(&self) -> Compression {
        match self.format {
            Format::Plain => Compression::None,
            Format::Gzip(_) => Compression::Gzip,
            Format::Zstd(_) => Compression::Zstd,
        }
    }

    /// Digest and sizes of the whole blob.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] unless a read has returned 0: what was not read was not verified.
    pub fn finish(self) -> Result<BlobSummary> {
        if self.state != State::Ended {
            return Err(Error::new(ErrorKind::FailedPrecondition, "the blob was not read to its end"));
        }
        let (compression, tar_len) = (self.compression(), self.tar_len);
        let (digest, size) = self.input.finish()?;
        Ok(BlobSummary { digest, size, compression, tar_len })
    }

    fn read_some(&mut self, out: &mut [u8]) -> Result<usize> {
        let n = match &mut self.format {
            Format::Plain => read_plain(&mut self.input, out)?,
            Format::Gzip(gzip) => gzip.read(&mut self.input, out)?,
            Format::Zstd(zstd) => zstd.read(&mut self.input, out)?,
        };
        self.tar_len += n as u64;
        if self.tar_len > self.tar_limit {
            return Err(Error::limit("the uncompressed layer is too large", self.tar_limit, "more"));
        }
        Ok(n)
    }
}

impl<R: Read> Read for BlobReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self.state {
            _ if out.is_empty() => return Ok(0),
            State::Ended => return Ok(0),
            State::Failed(kind) => return Err(Error::new(kind, "reading the blob failed before").into()),
            State::Reading => {}
        }
        match self.read_some(out) {
            Ok(0) => self.state = State::Ended,
            Ok(n) => return Ok(n),
            Err(e) => {
                self.state = State::Failed(e.kind());
                return Err(e.into());
            }
        }
        Ok(0)
    }
}

fn read_plain<R: Read>(input: &mut Input<R>, out: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < out.len() && input.fill()? {
        let bytes = input.bytes();
        let n = bytes.len().min(out.len() - filled);
        out[filled..filled + n].copy_from_slice(&bytes[..n]);
        input.consume(n);
        filled += n;
    }
    Ok(filled)
}

#[cfg(test)]
#[path = "blob_tests.rs"]
mod tests;
