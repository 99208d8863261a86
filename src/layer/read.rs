//! Reading a layer: its entries, one after the other, as the tar had them.

use super::content::FileReader;
use super::record::RecordReader;
use crate::digest::Digest;
use crate::error::{Advice, Error, ErrorKind, Result};
use crate::format::entry::Entry;
use crate::format::item::{Extent, Item};
use crate::observe::{Observer, check};
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
            return Err(Error::not_found("no such layer").subject(diff_id).advise(Advice::List));
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
        RecordReader::open(&self.record_path(diff_id), diff_id).map(Entries::of)
    }

    /// What reading something of layers gave; damage is no damage if one of them is not in the store any more.
    ///
    /// # Errors
    /// `NotFound` for such a layer; else what `read` has.
    pub(super) fn unless_removed<T>(&self, layers: &[Digest], read: Result<T>) -> Result<T> {
        let Err(error) = read else { return read };
        if error.kind() == ErrorKind::Corrupt {
            for layer in layers {
                if self.with_index(|index| index.layer(layer))?.is_none() {
                    let gone = Error::not_found("the layer was removed, and gc has taken what is read of it");
                    return Err(gone.subject(layer).source(error));
                }
            }
        }
        Err(error)
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
    /// `Corrupt` if the record is missing or damaged; `NotFound` if the layer was removed since, and gc has taken it.
    pub fn entries(&self) -> Result<Entries> {
        self.record().map(Entries::of)
    }

    /// The record itself.
    pub(super) fn record(&self) -> Result<RecordReader> {
        let record = RecordReader::open(&self.store.record_path(&self.diff_id), &self.diff_id);
        self.store.unless_removed(&[self.diff_id], record)
    }

    pub(super) fn store(&self) -> &'s Store {
        self.store
    }

    /// Opens the content of one of this layer's files.
    ///
    /// # Errors
    /// `InvalidInput` if `entry` is not a regular file.
    pub fn open(&self, entry: &LayerEntry) -> Result<FileReader<'s>> {
        let reader = FileReader::new(self.store, &entry.entry.kind, entry.extents.clone())?;
        Ok(reader.of([self.diff_id].into()))
    }

    /// The last entry of this path, which is the one that counts. `path` is in normal form: see [`Entry::path`].
    ///
    /// # Errors
    /// `NotFound` if the layer has no such entry; `Corrupt` if the record is damaged.
    pub fn find(&self, path: &[u8]) -> Result<LayerEntry> {
        self.find_watched(path, &())
    }

    /// [`find`](Self::find) that an observer can stop: it goes through all entries.
    ///
    /// # Errors
    /// As [`find`](Self::find); `Cancelled`.
    pub fn find_watched(&self, path: &[u8], observer: &dyn Observer) -> Result<LayerEntry> {
        let mut found = None;
        for entry in self.entries()? {
            check(observer)?;
            let entry = entry?;
            if entry.entry.path == path {
                found = Some(entry);
            }
        }
        let name = || String::from_utf8_lossy(path).into_owned();
        found.ok_or_else(|| Error::not_found("no such entry").subject(name()).subject(self.diff_id))
    }
}

/// Iterator over a layer's entries. After an error it yields nothing more.
pub struct Entries {
    joined: Joined<Blocks>,
}

impl Entries {
    fn of(record: RecordReader) -> Self {
        Self { joined: Joined::of(Blocks { record }) }
    }
}

impl Iterator for Entries {
    type Item = Result<LayerEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        self.joined.next()
    }
}

/// The items of a record, block by block.
struct Blocks {
    record: RecordReader,
}

impl Iterator for Blocks {
    type Item = Result<Vec<Item>>;

    fn next(&mut self) -> Option<Self::Item> {
        let block = self.record.next_block().transpose()?;
        Some(block.and_then(|block| block.items()))
    }
}

/// Entries from the items of blocks: an entry's extents may go on in further items. After an error it yields nothing more.
pub(super) struct Joined<B> {
    blocks: B,
    ready: std::vec::IntoIter<Item>,
    next: Option<LayerEntry>,
    done: bool,
}

impl<B: Iterator<Item = Result<Vec<Item>>>> Joined<B> {
    pub(super) fn of(blocks: B) -> Self {
        Self { blocks, ready: vec![].into_iter(), next: None, done: false }
    }

    fn advance(&mut self) -> Result<Option<LayerEntry>> {
        loop {
            let Some(item) = self.ready.next() else {
                let Some(items) = self.blocks.next() else { break };
                self.ready = items?.into_iter();
                continue;
            };
            match item {
                Item::Entry { entry, extents, .. } => {
                    if let Some(complete) = self.next.replace(LayerEntry { entry, extents }) {
                        return complete.checked().map(Some);
                    }
                }
                Item::More { extents, .. } => match &mut self.next {
                    Some(entry) => entry.extents.extend(extents),
                    None => return Err(Error::corrupt("a record begins with extents of no entry")),
                },
                Item::Bytes(_) => {}
            }
        }
        self.done = true;
        self.next.take().map(LayerEntry::checked).transpose()
    }
}

impl<B: Iterator<Item = Result<Vec<Item>>>> Iterator for Joined<B> {
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
