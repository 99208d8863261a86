//! Making a layer of changes: its tar is written and at once taken apart, and never exists as a whole.
//!
//! Headers come from the deterministic [`Writer`], contents from chunks or files. The tar's bytes go to SHA-256 and, for
//! a layer of the store, to the assembler as the segments, entries and contents that a parser would have found. What the
//! store has is not cut and looked up again: its extents go into the record as they are.

use super::assemble::Assembler;
use super::changes::{Changes, CreateOptions};
use super::holes::{HOLE, data_ranges};
use super::import::{ImportStats, Keep, LayerDone, LayerImport, hold, import_stats};
use super::source::{Source, SourceReader};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::format::entry::{DataRange, Entry, EntryKind, Time};
use crate::format::item::Extent;
use crate::id::ContentId;
use crate::limits::Limits;
use crate::observe::{Event, Observer, check};
use crate::store::{ChunkReader, Ingest, LayerInfo, RawChunk, Store};
use crate::tar::{Sink, Writer};
use std::io::Write;

/// Bytes read from a large file at a time.
const STEP: usize = 256 << 10;

impl Store {
    /// Makes a layer of `changes`, durable and held as one that was imported. If the store has it already, nothing is
    /// added.
    ///
    /// # Errors
    /// `FailedPrecondition` if a file changes while it is read; `InvalidInput` and `LimitExceeded` for what no layer
    /// may hold; `Corrupt`; `Cancelled`; `Io`. In all of these nothing of the layer stays.
    pub fn create_layer(
        &self,
        changes: &Changes,
        options: &CreateOptions,
        observer: &dyn Observer,
    ) -> Result<(LayerImport, ImportStats)> {
        self.create_layer_for(changes, options, observer, &hold)
    }

    /// [`create_layer`](Self::create_layer) whose last transaction also has what keeps the layer: `keep` is called in it.
    pub(crate) fn create_layer_for(
        &self,
        changes: &Changes,
        options: &CreateOptions,
        observer: &dyn Observer,
        keep: Keep<'_>,
    ) -> Result<(LayerImport, ImportStats)> {
        let ingest = Ingest::begin(self, options.compress, options.threads)?;
        let done = ingest.run(options.threads, || {
            let _guard = ingest.guard();
            let target = Target::Layer(Box::new(Assembler::new(&ingest)?));
            let tar = TarMaker::new(self, target, options, observer)?.run(changes)?;
            let Target::Layer(assembler) = tar.target else { return Err(Error::invalid("no layer was made")) };
            let (record, entries, content) = assembler.finish(tar.diff_id, tar.size)?;
            let info = LayerInfo { diff_id: tar.diff_id, tar_size: tar.size, entries, held: false };
            Ok(LayerDone::made(info, content, record))
        })?;
        let stats = import_stats(&ingest, std::slice::from_ref(&done));
        let import = self.keep_layer(ingest, done, None, (options.patience, observer), keep)?;
        Ok((import, stats))
    }

    /// Writes the tar that [`create_layer`](Self::create_layer) would make of `changes` to `out`; returns its diff_id
    /// and size. To compress it, give a [`BlobWriter`](crate::BlobWriter).
    ///
    /// # Errors
    /// As [`create_layer`](Self::create_layer), and `Io` from `out`.
    pub fn write_layer(
        &self,
        changes: &Changes,
        out: &mut dyn Write,
        options: &CreateOptions,
        observer: &dyn Observer,
    ) -> Result<(Digest, u64)> {
        let tar = TarMaker::new(self, Target::Stream(out), options, observer)?.run(changes)?;
        Ok((tar.diff_id, tar.size))
    }
}

/// Who gets the tar.
enum Target<'a> {
    Layer(Box<Assembler<'a>>),
    Stream(&'a mut dyn Write),
}

struct TarMaker<'a> {
    store: &'a Store,
    target: Target<'a>,
    writer: Writer<Vec<u8>>,
    hasher: Hasher,
    chunks: ChunkReader<'a>,
    /// The chunk used last: small files of one directory often lie in one bundle.
    last: Option<(ContentId, RawChunk)>,
    buffer: Vec<u8>,
    limits: &'a Limits,
    epoch: Option<i64>,
    observer: &'a dyn Observer,
}

struct Made<'a> {
    target: Target<'a>,
    diff_id: Digest,
    size: u64,
}

impl<'a> TarMaker<'a> {
    fn new(
        store: &'a Store,
        target: Target<'a>,
        options: &'a CreateOptions,
        observer: &'a dyn Observer,
    ) -> Result<Self> {
        Ok(Self {
            store,
            target,
            writer: Writer::new(Vec::new(), &options.limits),
            hasher: Hasher::default(),
            chunks: ChunkReader::new(store)?,
            last: None,
            buffer: vec![0; STEP],
            limits: &options.limits,
            epoch: options.epoch,
            observer,
        })
    }

    fn run(mut self, changes: &Changes) -> Result<Made<'a>> {
        for (entry, source) in changes.iter() {
            check(self.observer)?;
            self.change(&entry, source.as_ref()).map_err(|e| e.subject(String::from_utf8_lossy(&entry.path)))?;
        }
        let end = std::mem::replace(&mut self.writer, Writer::new(Vec::new(), self.limits)).finish()?;
        self.segment(&end)?;
        let size = self.hasher.len();
        self.check_size(0)?;
        Ok(Made { target: self.target, diff_id: self.hasher.finish(), size })
    }

    fn change(&mut self, entry: &Entry, source: Option<&Source>) -> Result<()> {
        let mut entry = entry.clone();
        if let Some(epoch) = self.epoch {
            entry.mtime = entry.mtime.min(Time { secs: epoch, nanos: 0 });
        }
        let (Some(source), EntryKind::File { size, sparse }) = (source, &mut entry.kind) else {
            return self.header(&entry).and_then(|()| self.entry(entry));
        };
        let size = *size;
        // A layer's holes depend on the content alone, not on where it comes from.
        let was = sparse.take();
        let mut reader = None;
        if size >= HOLE {
            let opened = reader.insert(SourceReader::open(self.store, source, size, was.as_deref())?);
            *sparse = data_ranges(opened, size, self.limits.sparse_ranges, self.observer)?;
        }
        let same_ranges = was == *sparse;
        self.header(&entry)?;
        let len = entry.kind.stored_len();
        // Before it is read: it may be very long.
        self.check_size(len)?;
        self.writer.content_elsewhere(len)?;
        match source {
            Source::Stored(extents) if same_ranges => self.stored(entry, extents),
            Source::Disk(disk) if reader.is_none() && disk.bytes.is_some() => {
                self.entry(entry)?;
                disk.bytes.as_deref().map_or(Ok(()), |bytes| self.content(bytes))
            }
            source => {
                let reader = match reader {
                    Some(reader) => reader,
                    None => SourceReader::open(self.store, source, size, was.as_deref())?,
                };
                self.stream(entry, &reader, size)
            }
        }
    }

    /// The layer may have `more` bytes than it has now.
    fn check_size(&self, more: u64) -> Result<()> {
        let (most, size) = (self.limits.layer_size, self.hasher.len().saturating_add(more));
        if size > most { Err(Error::limit("the layer is too large", most, size)) } else { Ok(()) }
    }

    /// Writes the headers of `entry`, and before them what fills up the entry before.
    fn header(&mut self, entry: &Entry) -> Result<()> {
        self.writer.entry(entry)?;
        let mut bytes = std::mem::take(self.writer.output());
        self.segment(&bytes)?;
        bytes.clear();
        *self.writer.output() = bytes;
        Ok(())
    }

    /// Content that the store has, ranges and all.
    fn stored(&mut self, entry: Entry, extents: &[Extent]) -> Result<()> {
        let in_layer = match &mut self.target {
            Target::Layer(assembler) => {
                assembler.stored(entry, extents)?;
                true
            }
            Target::Stream(_) => false,
        };
        for extent in extents {
            check(self.observer)?;
            let chunk = self.chunk(&extent.chunk)?;
            let start = extent.offset as usize;
            let bytes = chunk.get(start..start + extent.len as usize);
            let bytes = bytes.ok_or_else(|| Error::corrupt("extent reaches past its chunk"))?;
            if in_layer { self.hash(bytes) } else { self.content(bytes)? }
        }
        Ok(())
    }

    fn chunk(&mut self, id: &ContentId) -> Result<RawChunk> {
        if let Some((last, chunk)) = &self.last
            && last == id
        {
            return Ok(chunk.clone());
        }
        let chunk = self.chunks.read(id)?;
        self.last = Some((*id, chunk.clone()));
        Ok(chunk)
    }

    /// Content that has to be cut into chunks.
    fn stream(&mut self, entry: Entry, reader: &SourceReader<'_>, size: u64) -> Result<()> {
        let ranges = match &entry.kind {
            EntryKind::File { sparse: Some(ranges), .. } => ranges.clone(),
            _ => vec![DataRange { offset: 0, len: size }],
        };
        self.entry(entry)?;
        let mut buffer = std::mem::take(&mut self.buffer);
        for range in ranges {
            let (mut at, end) = (range.offset, range.offset + range.len);
            while at < end {
                check(self.observer)?;
                let part = &mut buffer[..(end - at).min(STEP as u64) as usize];
                reader.read(part, at)?;
                self.content(part)?;
                at += part.len() as u64;
            }
        }
        self.buffer = buffer;
        Ok(())
    }

    fn hash(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.observer.event(Event::LayerProgress { layer: 0, bytes: bytes.len() as u64 });
    }

    fn segment(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        match &mut self.target {
            Target::Layer(assembler) => assembler.segment(bytes),
            Target::Stream(out) => out.write_all(bytes).map_err(|e| Error::from_io("write the tar", e)),
        }
    }

    fn entry(&mut self, entry: Entry) -> Result<()> {
        match &mut self.target {
            Target::Layer(assembler) => assembler.entry(entry),
            Target::Stream(_) => Ok(()),
        }
    }

    fn content(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash(bytes);
        match &mut self.target {
            Target::Layer(assembler) => assembler.content(bytes),
            Target::Stream(out) => out.write_all(bytes).map_err(|e| Error::from_io("write the tar", e)),
        }
    }
}
