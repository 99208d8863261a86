//! Reading chunks back: find, read, decode, and check the BLAKE3 of every one.

use super::index::Index;
use super::open::Store;
use crate::codec::chunk::Decoder;
use crate::error::{Error, ErrorKind, Result};
use crate::format::pack::{self, BLOCK, Location};
use crate::id::ContentId;
use crate::sys::cache::ReadOnce;
use crate::sys::publish::io_error;
use std::collections::BTreeMap;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

/// Most pack files kept open at a time.
const OPEN_MAX: usize = 256;

/// A chunk's raw bytes, verified.
pub(crate) type RawChunk = Arc<Vec<u8>>;

/// Open pack files by the addresses they own.
#[derive(Default)]
pub(super) struct PackFiles {
    open: Mutex<BTreeMap<u64, OpenPack>>,
}

#[derive(Clone)]
struct OpenPack {
    end: u64,
    file: Arc<ReadOnce>,
}

impl PackFiles {
    /// Lets go of the pages that reading brought into the cache.
    fn let_go(&self) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.values().for_each(|pack| pack.file.pause());
    }

    fn close(&self) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn get(&self, store: &Store, index: &Index, location: &Location) -> Result<Arc<ReadOnce>> {
        let address = u64::from(location.block) * BLOCK;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, pack)) = open.range(..=address).next_back()
            && location.end() <= pack.end
        {
            return Ok(pack.file.clone());
        }
        let packs = index.packs()?;
        let at = packs.partition_point(|&(base, _)| base <= address);
        let found =
            at.checked_sub(1).map(|i| packs[i]).filter(|&(base, len)| location.end() <= base.saturating_add(len));
        let (base, len) =
            found.ok_or_else(|| Error::corrupt("a chunk lies in no pack").actual(format!("{location:?}")))?;
        let path = store.pack_path(base);
        let file = File::open(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::corrupt("pack file is missing").subject(path.display()),
            _ => io_error("open", &path, e),
        })?;
        let file = ReadOnce::new(file);
        let mut head = [0; pack::HEADER_LEN];
        read_exact(&file, &mut head, base)
            .and_then(|()| pack::check_header(&head, base))
            .map_err(|e| e.subject(path.display()))?;
        if open.len() >= OPEN_MAX {
            open.clear();
        }
        let file = Arc::new(file);
        open.insert(base, OpenPack { end: base.saturating_add(len), file: file.clone() });
        Ok(file)
    }
}

impl Store {
    /// Closes a pack that was removed: as long as it is open, its space is not given back.
    pub(crate) fn close_pack(&self, base: u64) {
        self.packs.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&base);
    }
}

fn read_exact(file: &ReadOnce, bytes: &mut [u8], offset: u64) -> Result<()> {
    file.read_exact_at(bytes, offset).map_err(|e| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => Error::corrupt("file ends too early"),
        _ => Error::io("read", e),
    })
}

/// Reads chunks, one at a time, on one thread.
pub(crate) struct ChunkReader<'s> {
    store: &'s Store,
    index: Option<Index>,
    decoder: Decoder,
    /// The stored bytes of the last chunk, for their memory.
    stored: Vec<u8>,
}

impl<'s> ChunkReader<'s> {
    pub(crate) fn new(store: &'s Store) -> Result<Self> {
        Ok(Self { store, index: Some(store.take_index()?), decoder: Decoder::new()?, stored: Vec::new() })
    }

    /// The chunk's raw bytes.
    ///
    /// # Errors
    /// `Corrupt`, naming the chunk, if the store does not have it or its bytes do not match its id.
    pub(crate) fn read(&mut self, id: &ContentId) -> Result<RawChunk> {
        let mut raw = Vec::new();
        let read = self.read_found(id, &mut raw);
        let read = self.or_elsewhere(read, id, &mut raw);
        read.map(|()| Arc::new(raw)).map_err(|e| e.subject(format!("chunk {id}")))
    }

    /// Where a chunk lies. It may be moved from there, and stays readable there for a while.
    ///
    /// # Errors
    /// `Corrupt`, naming the chunk, if the store does not have it.
    pub(crate) fn locate(&self, id: &ContentId) -> Result<Location> {
        let found = self.index().chunk(id)?;
        found.ok_or_else(|| Error::corrupt("the store does not have this chunk").subject(format!("chunk {id}")))
    }

    /// As [`read`](Self::read), for a chunk that was located before, into `raw`, whose memory is used again.
    pub(crate) fn read_into(&mut self, id: &ContentId, location: &Location, raw: &mut Vec<u8>) -> Result<()> {
        let read = self.read_located(id, location, raw);
        self.or_elsewhere(read, id, raw).map_err(|e| e.subject(format!("chunk {id}")))
    }

    /// Looks again where a chunk is that could not be read. Since that was asked, gc may have removed the pack and an import
    /// stored it anew, or it may have been compressed again, and gc have given back where it was.
    fn or_elsewhere(&mut self, read: Result<()>, id: &ContentId, raw: &mut Vec<u8>) -> Result<()> {
        if !read.as_ref().is_err_and(|e| e.kind() == ErrorKind::Corrupt) {
            return read;
        }
        self.store.packs.close();
        self.read_found(id, raw).or(read)
    }

    fn index(&self) -> &Index {
        self.index.as_ref().expect("a reader holds its connection until it is dropped")
    }

    fn read_found(&mut self, id: &ContentId, raw: &mut Vec<u8>) -> Result<()> {
        let location = self.index().chunk(id)?;
        let location = location.ok_or_else(|| Error::corrupt("the store does not have this chunk"))?;
        self.read_located(id, &location, raw)
    }

    fn read_located(&mut self, id: &ContentId, location: &Location, raw: &mut Vec<u8>) -> Result<()> {
        let file = self.store.packs.get(self.store, self.index(), location)?;
        self.stored.resize(location.stored_len as usize, 0);
        read_exact(&file, &mut self.stored, location.address())?;
        self.decoder.decode_into(location.codec, &mut self.stored, location.raw_len, raw)?;
        let actual = ContentId::of(raw);
        if actual == *id {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Corrupt, "chunk bytes do not match their id").expected(id).actual(actual))
    }
}

impl Drop for ChunkReader<'_> {
    fn drop(&mut self) {
        self.store.packs.let_go();
        if let Some(index) = self.index.take() {
            self.store.give_index(index);
        }
    }
}
