//! A blob's bytes, block by block, hashed on the way.
//!
//! Hashing costs about a fifth of what inflating does, so it runs on a thread of its own: a block that was consumed is
//! sent there and comes back empty. The thread starts with the second block; small blobs never pay for one.

use crate::digest::{Digest, Hasher};
use crate::error::{Error, ErrorKind, Result};
use std::io::{ErrorKind as IoKind, Read};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

/// Size of a block as read from the source.
pub(crate) const BLOCK: usize = 256 << 10;

/// Blocks in flight to the hashing thread, so that it may be late for a moment on a busy machine without holding up the
/// reader; with the one in use they bound the memory of an input.
const IN_FLIGHT: usize = 8;

/// Most zeros after a compressed stream. The largest records of tapes are 16 MiB.
pub(crate) const PADDING_MAX: u64 = 64 << 20;

/// The source of a blob with the hash of everything read from it.
pub(crate) struct Input<R> {
    source: R,
    block_size: usize,
    block: Vec<u8>,
    /// Bytes of `block` already consumed.
    position: usize,
    ended: bool,
    hashing: Hashing,
}

enum Hashing {
    Here(Hasher),
    Thread(HashThread),
}

struct HashThread {
    full: SyncSender<Vec<u8>>,
    empty: Receiver<Vec<u8>>,
    result: JoinHandle<Hasher>,
}

impl<R: Read> Input<R> {
    /// An input that reads blocks of `block_size` bytes; nothing is read yet.
    pub(crate) fn new(source: R, block_size: usize) -> Self {
        let hashing = Hashing::Here(Hasher::default());
        Self { source, block_size, block: Vec::new(), position: 0, ended: false, hashing }
    }

    /// What is left of the current block.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.block[self.position..]
    }

    /// Marks the first `n` of [`bytes`](Self::bytes) as used.
    pub(crate) fn consume(&mut self, n: usize) {
        self.position += n;
        debug_assert!(self.position <= self.block.len());
    }

    /// Makes sure that [`bytes`](Self::bytes) is not empty; false at the end of the source.
    pub(crate) fn fill(&mut self) -> Result<bool> {
        if self.position < self.block.len() {
            return Ok(true);
        }
        if self.ended {
            return Ok(false);
        }
        let spent = std::mem::take(&mut self.block);
        self.block = self.hash(spent)?;
        self.position = 0;
        self.read_block()?;
        Ok(!self.block.is_empty())
    }

    /// The next byte, `None` at the end of the source.
    pub(crate) fn byte(&mut self) -> Result<Option<u8>> {
        if !self.fill()? {
            return Ok(None);
        }
        let byte = self.bytes().first().copied();
        self.consume(1);
        Ok(byte)
    }

    /// Passes over `n` bytes; false if the source ends before.
    pub(crate) fn skip(&mut self, mut n: u64) -> Result<bool> {
        while n > 0 {
            if !self.fill()? {
                return Ok(false);
            }
            let step = n.min(self.bytes().len() as u64);
            self.consume(step as usize);
            n -= step;
        }
        Ok(true)
    }

    /// Reads the padding after a compressed stream up to the end of the source, the current byte included.
    ///
    /// Writers of tapes fill their last record with zeros; bsdtar does so on pipes, after compressing.
    ///
    /// # Errors
    /// `InvalidInput` with `message` if a byte is not zero, `LimitExceeded` beyond [`PADDING_MAX`].
    pub(crate) fn zeros_to_end(&mut self, message: impl Fn() -> String) -> Result<()> {
        let mut read = 0;
        while self.fill()? {
            let bytes = self.bytes();
            if bytes.iter().any(|&b| b != 0) {
                return Err(Error::invalid(message()).expected("the end, more of the stream, or zeros alone"));
            }
            let len = bytes.len();
            read += len as u64;
            if read > PADDING_MAX {
                return Err(Error::limit("too many zeros follow the compressed stream", PADDING_MAX, read));
            }
            self.consume(len);
        }
        Ok(())
    }

    /// Digest and length of all bytes the source had. Call after [`fill`](Self::fill) returned false.
    pub(crate) fn finish(mut self) -> Result<(Digest, u64)> {
        debug_assert!(self.ended && self.bytes().is_empty());
        let rest = std::mem::take(&mut self.block);
        self.hash(rest)?;
        let hasher = match self.hashing {
            Hashing::Here(hasher) => hasher,
            Hashing::Thread(HashThread { full, result, .. }) => {
                drop(full);
                result.join().map_err(|_| thread_died())?
            }
        };
        Ok((hasher.clone().finish(), hasher.len()))
    }

    /// Fills the block whole, so that slow sources with short reads do not make short blocks.
    fn read_block(&mut self) -> Result<()> {
        self.block.resize(self.block_size, 0);
        let mut len = 0;
        while len < self.block_size {
            match self.source.read(&mut self.block[len..]) {
                Ok(0) => {
                    self.ended = true;
                    break;
                }
                Ok(n) => len += n,
                Err(e) if e.kind() == IoKind::Interrupted => {}
                Err(e) => {
                    self.block.clear();
                    return Err(Error::from_io("cannot read the blob", e));
                }
            }
        }
        self.block.truncate(len);
        Ok(())
    }

    /// Hashes a consumed block and gives an empty one back.
    fn hash(&mut self, block: Vec<u8>) -> Result<Vec<u8>> {
        if block.is_empty() {
            return Ok(block);
        }
        match &mut self.hashing {
            Hashing::Here(hasher) if self.ended => hasher.update(&block),
            Hashing::Here(hasher) => {
                let mut thread = HashThread::start(std::mem::take(hasher), self.block_size)?;
                let empty = thread.exchange(block);
                self.hashing = Hashing::Thread(thread);
                return empty;
            }
            Hashing::Thread(thread) => return thread.exchange(block),
        }
        Ok(block)
    }
}

impl HashThread {
    fn start(mut hasher: Hasher, block_size: usize) -> Result<Self> {
        let (full, blocks) = sync_channel::<Vec<u8>>(IN_FLIGHT);
        // Unbounded, but it never holds more than the blocks that exist, and so never blocks the thread's exit.
        let (returned, empty) = channel();
        for _ in 0..IN_FLIGHT {
            let _ = returned.send(Vec::with_capacity(block_size));
        }
        let work = move || {
            for block in blocks {
                hasher.update(&block);
                if returned.send(block).is_err() {
                    break;
                }
            }
            hasher
        };
        let result = std::thread::Builder::new()
            .name("layerstore-hash".into())
            .spawn(work)
            .map_err(|e| Error::io("cannot start the hashing thread", e))?;
        Ok(Self { full, empty, result })
    }

    fn exchange(&mut self, block: Vec<u8>) -> Result<Vec<u8>> {
        self.full.send(block).map_err(|_| thread_died())?;
        self.empty.recv().map_err(|_| thread_died())
    }
}

fn thread_died() -> Error {
    Error::new(ErrorKind::Io, "the hashing thread died")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_every_byte_whatever_the_block_size() {
        let bytes: Vec<u8> = (0..1000u32).map(|i| (i * 7) as u8).collect();
        for block in [1, 3, 10, 500, 999, 1000, 1001] {
            let mut input = Input::new(&bytes[..], block);
            assert_eq!(input.byte().unwrap(), Some(0));
            assert!(input.skip(600).unwrap());
            assert_eq!(input.byte().unwrap(), Some(bytes[601]));
            assert!(!input.skip(1000).unwrap());
            assert_eq!(input.byte().unwrap(), None);
            assert_eq!(input.finish().unwrap(), (Digest::of(&bytes), 1000), "block {block}");
        }
    }

    #[test]
    fn a_failing_source_is_an_io_error() {
        struct Fails;
        impl Read for Fails {
            fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
                Err(std::io::Error::other("disk"))
            }
        }
        let e = Input::new(Fails, 10).fill().unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Io);
        assert_eq!(e.io_error().unwrap().to_string(), "disk");
    }

    #[test]
    fn dropping_an_input_early_is_fine() {
        let mut input = Input::new(std::io::repeat(1), 16);
        assert!(input.skip(1000).unwrap());
        drop(input);
    }
}
