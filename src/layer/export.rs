//! The exact tar of a layer: verbatim segments and contents in turn, proven by the diff_id at the end.
//!
//! Chunks are read, decoded and verified by workers ahead of the writer, each once while it stays in a bounded window.

use super::read::Layer;
use super::record::RecordReader;
use crate::digest::Hasher;
use crate::error::{Error, ErrorKind, Result};
use crate::format::item::{Extent, Item};
use crate::id::ContentId;
use crate::observe::{Event, Observer, check};
use crate::store::{ChunkReader, RawChunk, Store};
use crossbeam_channel::{Receiver, Sender};
use std::collections::{HashMap, VecDeque};
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Memory that may be waiting for the writer, bytes.
const AHEAD: u64 = 32 << 20;
/// Pieces that may be waiting: of a file of zeros, millions fit one chunk.
const PIECES: usize = 64 << 10;
/// What a chunk is reckoned to take, whichever part of it is wanted.
const CHUNK: u64 = 256 << 10;
/// Chunks remembered behind the writer: small files of one directory often lie in few bundles.
const KEPT: usize = 128;

/// What an export gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayerExport {
    /// Bytes of tar written.
    pub tar_size: u64,
}

/// A chunk that a worker fills in.
#[derive(Default)]
struct Pending {
    chunk: Mutex<Option<Result<RawChunk>>>,
    filled: Condvar,
}

impl Pending {
    fn fill(&self, chunk: Result<RawChunk>) {
        *self.chunk.lock().unwrap_or_else(PoisonError::into_inner) = Some(chunk);
        self.filled.notify_all();
    }

    fn wait(&self) -> Result<RawChunk> {
        let guard = self.chunk.lock().unwrap_or_else(PoisonError::into_inner);
        let mut guard = self.filled.wait_while(guard, |c| c.is_none()).unwrap_or_else(PoisonError::into_inner);
        match guard.take() {
            Some(Ok(chunk)) => {
                *guard = Some(Ok(chunk.clone()));
                Ok(chunk)
            }
            Some(Err(e)) => Err(e),
            None => Err(Error::corrupt("chunk was not read")),
        }
    }
}

/// A piece of the tar, in order.
enum Piece {
    Verbatim(Vec<u8>),
    Content { chunk: Arc<Pending>, extent: Extent, charge: u64 },
}

impl Piece {
    fn charge(&self) -> u64 {
        match self {
            Self::Verbatim(bytes) => bytes.len() as u64,
            Self::Content { charge, .. } => *charge,
        }
    }
}

impl Layer<'_> {
    /// Writes the layer's tar to `out`, bit for bit as it was imported, reading chunks on `threads` threads.
    ///
    /// # Errors
    /// `Corrupt` if any byte of the store that the tar needs is damaged, at the latest when the whole does not
    /// have the layer's diff_id; what was written before is then not to be used. `NotFound` if the layer was removed
    /// since, and gc has taken it. `Io` from `out`. `Cancelled`.
    pub fn export(
        &self,
        out: &mut dyn Write,
        threads: std::num::NonZeroUsize,
        observer: &dyn Observer,
    ) -> Result<LayerExport> {
        let (ask, asked) = crossbeam_channel::unbounded::<(ContentId, Arc<Pending>)>();
        let store = self.store();
        let written = std::thread::scope(|scope| {
            for _ in 0..threads.get() {
                let asked = asked.clone();
                scope.spawn(move || read_chunks(store, &asked));
            }
            drop(asked);
            let (items, extents) = (Items::of(self.record()?), vec![].into_iter());
            let mut export = Export { items, extents, ask, known: Window::default(), observer };
            export.write(out, self)
        });
        store.unless_removed(&[self.diff_id()], written).map_err(|e| e.subject(self.diff_id()))
    }
}

fn read_chunks(store: &Store, asked: &Receiver<(ContentId, Arc<Pending>)>) {
    let mut reader = ChunkReader::new(store);
    for (id, pending) in asked {
        pending.fill(match &mut reader {
            Ok(reader) => reader.read(&id),
            Err(e) => Err(Error::new(e.kind(), e.to_string())),
        });
    }
}

/// Chunks asked for lately, oldest first.
#[derive(Default)]
struct Window {
    chunks: HashMap<ContentId, Arc<Pending>>,
    order: VecDeque<ContentId>,
}

struct Export<'a> {
    items: Items,
    /// Of the last item, those not planned yet: a large file has more than may be ahead of the writer.
    extents: std::vec::IntoIter<Extent>,
    ask: Sender<(ContentId, Arc<Pending>)>,
    known: Window,
    observer: &'a dyn Observer,
}

impl Export<'_> {
    fn write(&mut self, out: &mut dyn Write, layer: &Layer<'_>) -> Result<LayerExport> {
        let mut hasher = Hasher::default();
        let mut ahead = VecDeque::new();
        let mut waiting = 0;
        let mut more = true;
        while more || !ahead.is_empty() {
            while more && waiting < AHEAD && ahead.len() < PIECES {
                more = self.plan(&mut ahead, &mut waiting)?;
            }
            let Some(piece) = ahead.pop_front() else { continue };
            check(self.observer)?;
            let chunk;
            let bytes = match &piece {
                Piece::Verbatim(bytes) => &bytes[..],
                Piece::Content { chunk: pending, extent, .. } => {
                    chunk = pending.wait()?;
                    let (start, len) = (extent.offset as usize, extent.len as usize);
                    let bytes = chunk.get(start..start + len);
                    bytes.ok_or_else(|| Error::corrupt("extent reaches past its chunk"))?
                }
            };
            waiting -= piece.charge();
            hasher.update(bytes);
            out.write_all(bytes).map_err(|e| Error::from_io("write the tar", e))?;
            self.observer.event(Event::Exported { bytes: bytes.len() as u64 });
        }
        let (tar_size, actual) = (hasher.len(), hasher.finish());
        if actual != layer.diff_id() {
            let e = Error::new(ErrorKind::Corrupt, "the exported tar does not have the layer's diff_id");
            return Err(e.expected(layer.diff_id()).actual(actual));
        }
        Ok(LayerExport { tar_size })
    }

    /// Queues the next piece and asks for its chunk; false at the end.
    fn plan(&mut self, ahead: &mut VecDeque<Piece>, waiting: &mut u64) -> Result<bool> {
        if let Some(extent) = self.extents.next() {
            let (chunk, charge) = self.pending(&extent.chunk)?;
            *waiting += charge;
            ahead.push_back(Piece::Content { chunk, extent, charge });
            return Ok(true);
        }
        let Some(item) = self.items.next_item()? else { return Ok(false) };
        let segment = item.segment();
        self.extents = match item {
            Item::Entry { extents, .. } | Item::More { extents, .. } => extents.into_iter(),
            Item::Bytes(_) => vec![].into_iter(),
        };
        if segment > 0 {
            // Headers and padding between two files: one write where nothing lies between.
            let bytes = self.items.segment(segment);
            match ahead.back_mut() {
                Some(Piece::Verbatim(last)) => last.extend_from_slice(bytes),
                _ => ahead.push_back(Piece::Verbatim(bytes.to_vec())),
            }
            *waiting += segment;
        }
        Ok(true)
    }

    /// A chunk, asked for now or lately, and the memory it adds.
    fn pending(&mut self, id: &ContentId) -> Result<(Arc<Pending>, u64)> {
        if let Some(pending) = self.known.chunks.get(id) {
            return Ok((pending.clone(), 0));
        }
        let pending = Arc::<Pending>::default();
        self.ask.send((*id, pending.clone())).map_err(|_| Error::corrupt("no thread reads chunks any more"))?;
        self.known.chunks.insert(*id, pending.clone());
        self.known.order.push_back(*id);
        if self.known.order.len() > KEPT
            && let Some(oldest) = self.known.order.pop_front()
        {
            self.known.chunks.remove(&oldest);
        }
        Ok((pending, CHUNK))
    }
}

/// The items of a whole record, with the verbatim bytes that go with them.
struct Items {
    record: RecordReader,
    ready: std::vec::IntoIter<Item>,
    segments: Vec<u8>,
    used: usize,
}

impl Items {
    fn of(record: RecordReader) -> Self {
        Self { record, ready: vec![].into_iter(), segments: vec![], used: 0 }
    }

    /// The next item, or `None` when every byte of the record was read and found sound.
    fn next_item(&mut self) -> Result<Option<Item>> {
        loop {
            if let Some(item) = self.ready.next() {
                return Ok(Some(item));
            }
            let Some(block) = self.record.next_block()? else { return Ok(None) };
            let (items, segments) = block.items_and_segments()?;
            (self.ready, self.segments, self.used) = (items.into_iter(), segments, 0);
        }
    }

    /// The next `len` verbatim bytes; callers ask for what the items say, in order, which is what a block has.
    fn segment(&mut self, len: u64) -> &[u8] {
        let start = self.used;
        self.used += len as usize;
        &self.segments[start..self.used]
    }
}
