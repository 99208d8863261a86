//! Where the content of a file is that is to become part of a layer: in the store, or still in a directory.

use super::content::FileReader;
use super::root::Content;
use crate::error::{Error, Result};
use crate::format::entry::{DataRange, EntryKind};
use crate::store::Store;
use crate::sys::scan::{ScannedDir, join};
use crate::sys::sparse;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Content of a regular file. Equal sources have equal content; different ones may.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// In chunks.
    Stored(Content),
    /// In a directory that is being committed.
    Disk(Arc<DiskFile>),
}

impl PartialEq for Source {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Stored(a), Self::Stored(b)) => Arc::ptr_eq(a, b) || a == b,
            (Self::Disk(a), Self::Disk(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

/// A regular file of a scanned directory.
#[derive(Debug)]
pub(crate) struct DiskFile {
    pub(crate) dir: Arc<ScannedDir>,
    /// The directory it is in, below that.
    pub(crate) place: Arc<DiskPlace>,
    pub(crate) name: Box<[u8]>,
    pub(crate) size: u64,
    /// Its whole content, where that was read already.
    pub(crate) bytes: Option<Box<[u8]>>,
}

/// The path of a directory, shared by all files in it: very many files may lie below a very long path.
#[derive(Debug, Default)]
pub(crate) struct DiskPlace(pub(crate) Vec<u8>);

impl DiskFile {
    /// Below the scanned directory.
    pub(crate) fn path(&self) -> Vec<u8> {
        join(&self.place.0, &self.name)
    }

    /// Opens it, through directories only.
    ///
    /// # Errors
    /// Those of [`ScannedDir::open_file`].
    pub(crate) fn open(&self) -> Result<File> {
        self.dir.open_file(&self.path())
    }
}

/// Reads any source by logical offset.
pub(super) enum SourceReader<'a> {
    Stored(Box<FileReader<'a>>),
    Memory(&'a [u8]),
    File(File, &'a DiskFile),
}

impl<'a> SourceReader<'a> {
    pub(super) fn open(
        store: &'a Store,
        source: &'a Source,
        size: u64,
        sparse: Option<&[DataRange]>,
    ) -> Result<SourceReader<'a>> {
        let disk = match source {
            Source::Stored(extents) => {
                let kind = EntryKind::File { size, sparse: sparse.map(<[_]>::to_vec) };
                return Ok(Self::Stored(Box::new(FileReader::new(store, &kind, extents.to_vec())?)));
            }
            Source::Disk(disk) => disk,
        };
        if let Some(bytes) = &disk.bytes {
            return Ok(Self::Memory(bytes));
        }
        let file = disk.open()?;
        let len = file.metadata().map_err(|e| Error::io("stat a file", e))?.len();
        if len == disk.size { Ok(Self::File(file, disk)) } else { Err(disk.dir.changed(&disk.path())) }
    }

    /// Fills all of `buffer`, which ends at the file's end at the latest.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        match self {
            Self::Stored(reader) => match reader.read_at(buffer, offset)? {
                len if len == buffer.len() => Ok(()),
                _ => Err(Error::corrupt("a file ends too early")),
            },
            Self::Memory(bytes) => {
                let start = offset as usize;
                let part = bytes.get(start..start + buffer.len());
                buffer.copy_from_slice(part.ok_or_else(|| Error::corrupt("a file ends too early"))?);
                Ok(())
            }
            Self::File(file, disk) => file.read_exact_at(buffer, offset).map_err(|e| match e.kind() {
                std::io::ErrorKind::UnexpectedEof => disk.dir.changed(&disk.path()),
                _ => Error::io("read", e).subject(disk.dir.named(&disk.path()).display()),
            }),
        }
    }

    /// An offset from `offset` on before which there are only zeros, as far as that is known without reading.
    pub(super) fn data_from(&self, offset: u64, size: u64) -> u64 {
        match self {
            Self::Stored(reader) => reader.data_from(offset).min(size),
            Self::Memory(_) => offset,
            Self::File(file, _) => sparse::data_from(file, offset, size),
        }
    }

    /// Where the data ends that is at `offset`, as far as that is known without reading.
    pub(super) fn hole_from(&self, offset: u64, size: u64) -> u64 {
        match self {
            Self::Stored(reader) => reader.hole_from(offset).min(size),
            Self::Memory(_) => size,
            Self::File(file, _) => sparse::hole_from(file, offset, size),
        }
    }
}
