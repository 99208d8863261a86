//! Random access to one file's content, without unpacking anything else.

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::format::entry::{DataRange, EntryKind};
use crate::format::item::Extent;
use crate::id::ContentId;
use crate::observe::{Observer, check};
use crate::store::{ChunkReader, RawChunk, Store};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

/// Bytes copied at a time.
const STEP: usize = 256 << 10;

/// A regular file's content. Shared freely between threads; reads lock it one at a time.
pub struct FileReader<'s> {
    store: &'s Store,
    /// Those it was opened from, where they keep its content.
    layers: Arc<[Digest]>,
    size: u64,
    /// Ascending and disjoint; what lies between is a hole and reads as zeros.
    pieces: Vec<Piece>,
    state: Mutex<State<'s>>,
}

/// A piece of a chunk at an offset of a file.
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) extent: Extent,
}

impl Piece {
    fn end(&self) -> u64 {
        self.offset + u64::from(self.extent.len)
    }
}

struct State<'s> {
    chunks: ChunkReader<'s>,
    /// The chunk used last: sequential readers ask for it again.
    last: Option<(ContentId, RawChunk)>,
}

impl<'s> FileReader<'s> {
    pub(crate) fn new(store: &'s Store, kind: &EntryKind, extents: Vec<Extent>) -> Result<Self> {
        let EntryKind::File { size, sparse } = kind else {
            return Err(Error::invalid("not a regular file"));
        };
        let whole = [DataRange { offset: 0, len: *size }];
        let pieces = place(sparse.as_deref().unwrap_or(&whole), extents)?;
        let state = Mutex::new(State { chunks: ChunkReader::new(store)?, last: None });
        Ok(Self { store, layers: Arc::default(), size: *size, pieces, state })
    }

    /// The content is there as long as the store has these layers.
    pub(super) fn of(mut self, layers: Arc<[Digest]>) -> Self {
        self.layers = layers;
        self
    }

    /// Logical size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `buffer` from `offset`; returns how many bytes there were, less than asked for only at the file's end.
    ///
    /// # Errors
    /// `Corrupt` if a chunk is missing or does not match its id; then nothing of it is handed out. `NotFound` if a layer
    /// that the file was opened from was removed since, and gc has taken the content.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        self.store.unless_removed(&self.layers, self.read_pieces(buffer, offset))
    }

    fn read_pieces(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let len = buffer.len().min(usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX));
        let buffer = &mut buffer[..len];
        buffer.fill(0);
        let end = offset + len as u64;
        let first = self.first_after(offset);
        let mut state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        for piece in self.pieces[first..].iter().take_while(|p| p.offset < end) {
            let from = piece.offset.max(offset);
            let to = piece.end().min(end);
            let chunk = state.chunk(&piece.extent.chunk)?;
            let start = (from - piece.offset) + u64::from(piece.extent.offset);
            let source = chunk.get(start as usize..(start + (to - from)) as usize);
            let source = source.ok_or_else(|| {
                Error::corrupt("extent reaches past its chunk").subject(format!("chunk {}", piece.extent.chunk))
            })?;
            buffer[(from - offset) as usize..(to - offset) as usize].copy_from_slice(source);
        }
        Ok(len)
    }

    /// The first piece that ends after `offset`.
    fn first_after(&self, offset: u64) -> usize {
        self.pieces.partition_point(|p| p.end() <= offset)
    }

    /// The first offset from `offset` on that is not in a hole; the size if there is none.
    pub(crate) fn data_from(&self, offset: u64) -> u64 {
        self.pieces.get(self.first_after(offset)).map_or(self.size, |piece| piece.offset.max(offset))
    }

    /// The first offset from `offset` on that is in a hole; the size if there is none.
    pub(crate) fn hole_from(&self, offset: u64) -> u64 {
        let pieces = self.pieces[self.first_after(offset)..].iter();
        let end = |at, piece: &Piece| if piece.offset <= at { Ok(piece.end()) } else { Err(at) };
        pieces.into_iter().try_fold(offset, end).unwrap_or_else(|at| at)
    }

    /// Writes the whole content to `out`, holes as zeros; returns the number of bytes.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at), and `Io` from `out`.
    pub fn copy_to(&self, out: &mut dyn Write) -> Result<u64> {
        self.copy_to_watched(out, &())
    }

    /// [`copy_to`](Self::copy_to) that an observer can stop.
    ///
    /// # Errors
    /// As [`copy_to`](Self::copy_to); `Cancelled`.
    pub fn copy_to_watched(&self, out: &mut dyn Write, observer: &dyn Observer) -> Result<u64> {
        let mut buffer = vec![0; STEP];
        let mut at = 0;
        loop {
            check(observer)?;
            let len = self.read_at(&mut buffer, at)?;
            if len == 0 {
                return Ok(at);
            }
            out.write_all(&buffer[..len]).map_err(|e| Error::from_io("write content", e))?;
            at += len as u64;
        }
    }

    /// Writes the whole content to a regular file, from where it stands, and makes the file end there. Holes stay holes
    /// and cost nothing. Returns the number of bytes.
    ///
    /// # Errors
    /// As [`copy_to_watched`](Self::copy_to_watched).
    pub fn copy_to_file(&self, mut file: &File, observer: &dyn Observer) -> Result<u64> {
        let failed = |e: std::io::Error| Error::io("write content", e);
        let base = file.stream_position().map_err(failed)?;
        let end = base.checked_add(self.size).ok_or_else(|| failed(rustix::io::Errno::FBIG.into()))?;
        // What was there must not show in the holes.
        file.set_len(base).and_then(|()| file.set_len(end)).map_err(failed)?;
        let mut buffer = vec![0; STEP];
        let mut at = self.data_from(0);
        while at < self.size {
            check(observer)?;
            let len = (self.hole_from(at).min(at + STEP as u64) - at) as usize;
            let len = self.read_at(&mut buffer[..len], at)?;
            file.write_all_at(&buffer[..len], base + at).map_err(failed)?;
            at = self.data_from(at + len as u64);
        }
        file.seek(SeekFrom::Start(end)).map_err(failed)?;
        Ok(self.size)
    }

    /// A reader from the file's start.
    pub fn reader(&self) -> impl Read + '_ {
        let mut at = 0;
        ReadFn(move |buffer: &mut [u8]| {
            let len = self.read_at(buffer, at)?;
            at += len as u64;
            Ok(len)
        })
    }
}

struct ReadFn<F>(F);

impl<F: FnMut(&mut [u8]) -> std::io::Result<usize>> Read for ReadFn<F> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        (self.0)(buffer)
    }
}

impl State<'_> {
    fn chunk(&mut self, id: &ContentId) -> Result<RawChunk> {
        match &self.last {
            Some((last, chunk)) if last == id => Ok(chunk.clone()),
            _ => {
                let chunk = self.chunks.read(id)?;
                self.last = Some((*id, chunk.clone()));
                Ok(chunk)
            }
        }
    }
}

/// Lays the stored bytes out over the file's data ranges; an extent that spans two ranges becomes two pieces.
pub(crate) fn place(ranges: &[DataRange], extents: Vec<Extent>) -> Result<Vec<Piece>> {
    let mut pieces = Vec::with_capacity(extents.len());
    let mut ranges = ranges.iter().filter(|r| r.len > 0);
    let mut range = ranges.next().copied();
    for mut extent in extents {
        while extent.len > 0 {
            let Some(r) = &mut range else {
                return Err(Error::corrupt("a file has more stored bytes than places for them"));
            };
            let len = r.len.min(extent.len.into()) as u32;
            pieces.push(Piece { offset: r.offset, extent: Extent { len, ..extent } });
            (extent.offset, extent.len) = (extent.offset + len, extent.len - len);
            *r = DataRange { offset: r.offset + u64::from(len), len: r.len - u64::from(len) };
            if r.len == 0 {
                range = ranges.next().copied();
            }
        }
    }
    Ok(pieces)
}
