//! Reading a layer: its entries, one after the other, as the tar had them.

use super::content::FileReader;
use super::record::RecordReader;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::format::entry::Entry;
use crate::format::item::{Extent, Item};
use crate::store::Store;

/// A layer of a store.
#[derive(Clone, Debug)]
pub struct Layer<'s> {
    store: &'s Store,
    diff_id: Digest,
    tar_size: u64,
    entries: u64,
    content: u64,
}

/// An entry with the place of its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerEntry {
    /// The entry as its tar header describes it.
    pub entry: Entry,
    /// Where its stored bytes lie, in order; empty for all but files with content.
    pub extents: Vec<Extent>,
}

impl Store {
    /// Opens a layer.
    ///
    /// # Errors
    /// `NotFound` if the store does not have it, `Corrupt` if its record is damaged.
    pub fn layer(&self, diff_id: &Digest) -> Result<Layer<'_>> {
        let Some(info) = self.with_index(|index| index.layer(diff_id))? else {
            return Err(Error::not_found("no such layer").subject(diff_id));
        };
        let trailer = RecordReader::open(&self.record_path(diff_id), diff_id)?.trailer;
        if (trailer.tar_size, trailer.entries) != (info.tar_size, info.entries) {
            return Err(Error::corrupt("layer record and database disagree").subject(diff_id));
        }
        let (tar_size, entries, content) = (trailer.tar_size, trailer.entries, trailer.content);
        Ok(Layer { store: self, diff_id: *diff_id, tar_size, entries, content })
    }

    /// What the record of a layer says of it, whether or not the database knows the layer.
    pub(crate) fn recorded_layer(&self, diff_id: &Digest) -> Result<crate::LayerInfo> {
        let trailer = RecordReader::open(&self.record_path(diff_id), diff_id)?.trailer;
        let (tar_size, entries) = (trailer.tar_size, trailer.entries);
        Ok(crate::LayerInfo { diff_id: *diff_id, tar_size, entries, held: false })
    }

    /// The entries that the record of a layer has, whether or not the database knows the layer.
    pub(crate) fn recorded_entries(&self, diff_id: &Digest) -> Result<Entries> {
        let record = RecordReader::open(&self.record_path(diff_id), diff_id)?;
        Ok(Entries { items: Items::of(record), next: None, done: false })
    }

    /// All layers, by diff_id.
    ///
    /// # Errors
    /// `Corrupt` or `Io` from the database.
    pub fn layers(&self) -> Result<Vec<crate::LayerInfo>> {
        self.with_index(|index| index.layers())
    }
}

impl<'s> Layer<'s> {
    /// SHA-256 of the uncompressed tar.
    pub fn diff_id(&self) -> Digest {
        self.diff_id
    }

    /// Bytes of the uncompressed tar.
    pub fn tar_size(&self) -> u64 {
        self.tar_size
    }

    /// Number of entries.
    pub fn len(&self) -> u64 {
        self.entries
    }

    /// Whether the tar has no entries.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Bytes of file content in the tar.
    pub fn content_size(&self) -> u64 {
        self.content
    }

    /// The entries in the tar's order. Memory does not depend on their number.
    ///
    /// # Errors
    /// `Corrupt` if the record is missing or damaged.
    pub fn entries(&self) -> Result<Entries> {
        let items = Items::open(self)?;
        Ok(Entries { items, next: None, done: false })
    }

    pub(super) fn store(&self) -> &'s Store {
        self.store
    }

    /// Opens the content of one of this layer's files.
    ///
    /// # Errors
    /// `InvalidInput` if `entry` is not a regular file.
    pub fn open(&self, entry: &LayerEntry) -> Result<FileReader<'s>> {
        FileReader::new(self.store, &entry.entry.kind, entry.extents.clone())
    }

    /// The last entry of this path, which is the one that counts. `path` is in normal form: see [`Entry::path`].
    ///
    /// # Errors
    /// `NotFound` if the layer has no such entry; `Corrupt` if the record is damaged.
    pub fn find(&self, path: &[u8]) -> Result<LayerEntry> {
        let mut found = None;
        for entry in self.entries()? {
            let entry = entry?;
            if entry.entry.path == path {
                found = Some(entry);
            }
        }
        let name = || String::from_utf8_lossy(path).into_owned();
        found.ok_or_else(|| Error::not_found("no such entry").subject(name()).subject(self.diff_id))
    }
}

/// The items of a whole record, with the verbatim bytes that go with them.
pub(super) struct Items {
    record: RecordReader,
    ready: std::vec::IntoIter<Item>,
    segments: Vec<u8>,
    used: usize,
}

impl Items {
    pub(super) fn open(layer: &Layer<'_>) -> Result<Self> {
        let record = RecordReader::open(&layer.store.record_path(&layer.diff_id), &layer.diff_id)?;
        Ok(Self::of(record))
    }

    fn of(record: RecordReader) -> Self {
        Self { record, ready: vec![].into_iter(), segments: vec![], used: 0 }
    }

    /// The next item, or `None` when every byte of the record was read and found sound.
    pub(super) fn next_item(&mut self) -> Result<Option<Item>> {
        loop {
            if let Some(item) = self.ready.next() {
                return Ok(Some(item));
            }
            if self.used != self.segments.len() {
                return Err(Error::corrupt("a record's block has bytes that no item owns"));
            }
            let Some(block) = self.record.next_block()? else { return Ok(None) };
            self.ready = block.items().collect::<Result<Vec<_>>>()?.into_iter();
            (self.segments, self.used) = (block.segments, 0);
            self.check_segments()?;
        }
    }

    /// Item lengths come from a checksummed block, but sums are checked all the same before slicing by them.
    fn check_segments(&self) -> Result<()> {
        let lens = self.ready.as_slice().iter().map(|item| match item {
            Item::Entry { segment, .. } => *segment,
            Item::Bytes(len) => *len,
            Item::More { .. } => 0,
        });
        let total = lens.fold(0u64, u64::saturating_add);
        if total == self.segments.len() as u64 {
            return Ok(());
        }
        let e = Error::corrupt("items and segments of a record's block disagree");
        Err(e.expected(total).actual(self.segments.len()))
    }

    /// The next `len` verbatim bytes; callers ask for what the items say, in order.
    pub(super) fn segment(&mut self, len: u64) -> &[u8] {
        let start = self.used;
        self.used += len as usize;
        &self.segments[start..self.used]
    }
}

/// Iterator over a layer's entries. After an error it yields nothing more.
pub struct Entries {
    items: Items,
    next: Option<LayerEntry>,
    done: bool,
}

impl Entries {
    fn advance(&mut self) -> Result<Option<LayerEntry>> {
        while let Some(item) = self.items.next_item()? {
            match item {
                Item::Entry { segment, entry, extents, .. } => {
                    self.items.segment(segment);
                    if let Some(complete) = self.next.replace(LayerEntry { entry, extents }) {
                        return complete.checked().map(Some);
                    }
                }
                Item::More { extents, .. } => match &mut self.next {
                    Some(entry) => entry.extents.extend(extents),
                    None => return Err(Error::corrupt("a record begins with extents of no entry")),
                },
                Item::Bytes(len) => drop(self.items.segment(len)),
            }
        }
        self.done = true;
        self.next.take().map(LayerEntry::checked).transpose()
    }
}

impl LayerEntry {
    /// An entry's extents must hold exactly its content.
    fn checked(self) -> Result<Self> {
        let total: u64 = self.extents.iter().map(|e| u64::from(e.len)).sum();
        let expected = self.entry.kind.stored_len();
        if total == expected {
            return Ok(self);
        }
        let e = Error::corrupt("extents do not hold a file's content").expected(expected).actual(total);
        Err(e.subject(String::from_utf8_lossy(&self.entry.path)))
    }
}

impl Iterator for Entries {
    type Item = Result<LayerEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.advance();
        self.done |= next.is_err();
        next.transpose()
    }
}
