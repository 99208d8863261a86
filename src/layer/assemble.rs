//! Turns the events of a tar into a layer record, and its contents into chunks and bundles.
//!
//! Chunks are hashed and compressed elsewhere and later, so extents first refer to [`Slot`]s. A block of the record
//! is written once all of its slots have become ids; blocks wait their turn in `pending`.

use super::record::RecordWriter;
use crate::chunk::bundle::Bundle;
use crate::chunk::cutter::Cutter;
use crate::digest::Digest;
use crate::error::Result;
use crate::format::entry::Entry;
use crate::format::item::{Extent, RefExtent};
use crate::format::params::Chunking;
use crate::format::record::BlockBuilder;
use crate::id::ContentId;
use crate::store::{Found, IndexReader, Ingest, Slot};
use crate::sys::publish::Draft;
use crate::tar::Sink;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Blocks that may wait for their chunks before the tar's reader has to: some 8 MiB.
const PENDING_MAX: usize = 4;
/// A file with more extents than this is recorded piece by piece, so that memory stays bounded.
const EXTENTS_MAX: usize = 16 << 10;

/// A chunk that a block's extents point to.
#[derive(Clone)]
enum ChunkRef {
    Known(ContentId),
    Slot(Arc<Slot>),
}

#[derive(PartialEq, Eq, Hash)]
enum RefKey {
    Id(ContentId),
    Slot(u64),
}

impl ChunkRef {
    fn id(&self) -> Option<ContentId> {
        match self {
            Self::Known(id) => Some(*id),
            Self::Slot(slot) => slot.id(),
        }
    }

    fn key(&self) -> RefKey {
        match self {
            Self::Known(id) => RefKey::Id(*id),
            Self::Slot(slot) => RefKey::Slot(slot.number),
        }
    }
}

/// The file whose content is arriving.
struct Current {
    /// Taken when the first piece of it is recorded.
    entry: Option<Entry>,
    segment: u64,
    extents: Vec<RefExtent>,
    left: u64,
    /// Its whole content while that is gathered for a bundle.
    small: Option<Vec<u8>>,
}

/// Receives a tar's events; see the module.
pub(super) struct Assembler<'a> {
    cutter: Cutter,
    current: Option<Current>,
    out: Output<'a>,
}

/// All but the cutter, so that the cutter can call back into it.
struct Output<'a> {
    ingest: &'a Ingest<'a>,
    index: IndexReader<'a>,
    chunking: Chunking,
    record: RecordWriter,
    block: BlockBuilder<ChunkRef>,
    numbers: HashMap<RefKey, u32>,
    pending: VecDeque<BlockBuilder<ChunkRef>>,
    bundle: Bundle,
    /// The open bundle's slot, from its first member on.
    bundle_slot: Option<Arc<Slot>>,
    /// Verbatim bytes since the last item.
    segment: u64,
    entries: u64,
    content: u64,
}

impl<'a> Assembler<'a> {
    pub(super) fn new(ingest: &'a Ingest<'a>) -> Result<Self> {
        let chunking = ingest.store().chunking();
        let out = Output {
            ingest,
            index: ingest.reader()?,
            chunking,
            record: RecordWriter::create(ingest.draft()?)?,
            block: BlockBuilder::default(),
            numbers: HashMap::new(),
            pending: VecDeque::new(),
            bundle: Bundle::default(),
            bundle_slot: None,
            segment: 0,
            entries: 0,
            content: 0,
        };
        Ok(Self { cutter: Cutter::new(&chunking), current: None, out })
    }

    /// An entry whose content the store has: in place of its content come the extents that hold it.
    pub(super) fn stored(&mut self, entry: Entry, extents: &[Extent]) -> Result<()> {
        let segment = std::mem::take(&mut self.out.segment);
        self.out.entries += 1;
        self.out.content += entry.kind.stored_len();
        let mut current = Current { entry: Some(entry), segment, extents: vec![], left: 0, small: None };
        for &Extent { chunk, offset, len } in extents {
            let chunk = self.out.number(ChunkRef::Known(chunk));
            current.extents.push(RefExtent { chunk, offset, len });
            if current.extents.len() >= EXTENTS_MAX {
                self.out.put_part(&mut current)?;
            }
        }
        self.out.put(current)
    }

    /// Ends the record once every chunk is stored. Returns it with the numbers of entries and content bytes.
    pub(super) fn finish(mut self, diff_id: Digest, tar_size: u64) -> Result<(Draft, u64, u64)> {
        let out = &mut self.out;
        out.seal_bundle()?;
        out.put_bytes();
        out.close_block();
        while !out.pending.is_empty() {
            out.write_first()?;
        }
        let (entries, content) = (out.entries, out.content);
        let draft = self.out.record.finish(diff_id, tar_size, entries, content)?;
        Ok((draft, entries, content))
    }
}

impl Sink for Assembler<'_> {
    fn segment(&mut self, bytes: &[u8]) -> Result<()> {
        let out = &mut self.out;
        out.block.segments.extend_from_slice(bytes);
        out.segment += bytes.len() as u64;
        if out.block.is_full() {
            out.put_bytes();
            out.close_full_block()?;
        }
        Ok(())
    }

    fn entry(&mut self, entry: Entry) -> Result<()> {
        let left = entry.kind.stored_len();
        let segment = std::mem::take(&mut self.out.segment);
        self.out.entries += 1;
        self.out.content += left;
        let small = (left < self.out.chunking.small_file.into()).then(Vec::new);
        let current = Current { entry: Some(entry), segment, extents: vec![], left, small };
        if left == 0 {
            return self.out.put(current);
        }
        self.current = Some(current);
        Ok(())
    }

    fn content(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(current) = &mut self.current else { return Ok(()) };
        current.left -= bytes.len() as u64;
        let done = current.left == 0;
        let (out, cutter) = (&mut self.out, &mut self.cutter);
        match &mut current.small {
            Some(gathered) if done && gathered.is_empty() => {
                let extent = out.put_small(bytes)?;
                current.extents.push(extent);
            }
            Some(gathered) => {
                gathered.extend_from_slice(bytes);
                if done {
                    let extent = out.put_small(&std::mem::take(gathered))?;
                    current.extents.push(extent);
                }
            }
            None => {
                let mut emit = |chunk: &[u8]| {
                    let extent = out.put_chunk(chunk)?;
                    current.extents.push(extent);
                    if current.extents.len() >= EXTENTS_MAX { out.put_part(current) } else { Ok(()) }
                };
                cutter.push(bytes, &mut emit)?;
                if done {
                    cutter.finish(&mut emit)?;
                }
            }
        }
        match self.current.take_if(|_| done) {
            Some(current) => self.out.put(current),
            None => Ok(()),
        }
    }
}

impl Output<'_> {
    fn number(&mut self, chunk: ChunkRef) -> u32 {
        let next = self.block.refs.len() as u32;
        let number = *self.numbers.entry(chunk.key()).or_insert(next);
        if number == next {
            self.block.refs.push(chunk);
        }
        number
    }

    /// Stores a piece of a large file.
    fn put_chunk(&mut self, bytes: &[u8]) -> Result<RefExtent> {
        let slot = self.ingest.slot();
        self.ingest.submit(slot.clone(), bytes.to_vec(), vec![])?;
        Ok(RefExtent { chunk: self.number(ChunkRef::Slot(slot)), offset: 0, len: bytes.len() as u32 })
    }

    /// Finds a small file that was seen before, or adds it to the open bundle.
    fn put_small(&mut self, content: &[u8]) -> Result<RefExtent> {
        let id = ContentId::of(content);
        let len = content.len() as u32;
        let (chunk, offset) = match self.ingest.find_member(&id, &self.index)? {
            Some(Found::Stored { chunk, offset }) => (ChunkRef::Known(chunk), offset),
            Some(Found::Pending { bundle, offset }) => (ChunkRef::Slot(bundle), offset),
            None => self.bundle_new(id, content)?,
        };
        Ok(RefExtent { chunk: self.number(chunk), offset, len })
    }

    fn bundle_new(&mut self, id: ContentId, content: &[u8]) -> Result<(ChunkRef, u32)> {
        if !self.bundle.has_room(content.len(), self.chunking.bundle) {
            self.seal_bundle()?;
        }
        let ingest = self.ingest;
        let slot = self.bundle_slot.get_or_insert_with(|| ingest.slot()).clone();
        let offset = self.bundle.add(id, content);
        self.ingest.note_member(id, &slot, offset)?;
        Ok((ChunkRef::Slot(slot), offset))
    }

    fn seal_bundle(&mut self) -> Result<()> {
        let Some(slot) = self.bundle_slot.take() else { return Ok(()) };
        let bundle = std::mem::take(&mut self.bundle);
        self.ingest.submit(slot, bundle.bytes, bundle.members)
    }

    fn put(&mut self, current: Current) -> Result<()> {
        match &current.entry {
            Some(entry) => self.block.items.entry(entry, current.segment, &current.extents, false),
            None => self.block.items.more(&current.extents, false),
        }
        if self.block.is_full() { self.close_full_block() } else { Ok(()) }
    }

    /// Records the extents so far of a file that goes on.
    fn put_part(&mut self, current: &mut Current) -> Result<()> {
        let extents = std::mem::take(&mut current.extents);
        match current.entry.take() {
            Some(entry) => self.block.items.entry(&entry, current.segment, &extents, true),
            None => self.block.items.more(&extents, true),
        }
        self.close_full_block()
    }

    fn put_bytes(&mut self) {
        let len = std::mem::take(&mut self.segment);
        if len > 0 {
            self.block.items.bytes(len);
        }
    }

    fn close_block(&mut self) {
        if !self.block.is_empty() {
            self.numbers.clear();
            self.pending.push_back(std::mem::take(&mut self.block));
        }
    }

    /// Closes the block and writes those whose chunks are known, waiting only when too many are not.
    fn close_full_block(&mut self) -> Result<()> {
        self.close_block();
        while let Some(first) = self.pending.front() {
            if self.pending.len() <= PENDING_MAX && first.refs.iter().any(|r| r.id().is_none()) {
                break;
            }
            // Whoever waits has handed over its own bundle first, so two layers cannot wait for each other.
            if self.pending.len() > PENDING_MAX {
                self.seal_bundle()?;
            }
            self.write_first()?;
        }
        Ok(())
    }

    fn write_first(&mut self) -> Result<()> {
        let Some(block) = self.pending.pop_front() else { return Ok(()) };
        self.ingest.wait(|| block.refs.iter().all(|r| r.id().is_some()))?;
        let ids: Vec<_> = block.refs.iter().filter_map(ChunkRef::id).collect();
        self.record.append(&block.seal(&ids)?)
    }
}
