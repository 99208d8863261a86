//! Named files of an image source: those of a directory, or the members of an archive.
//!
//! Names come from JSON that was written by somebody else. In an archive they are looked up in a table and nothing
//! else; in a directory they must be relative, without `..`, and the kernel is asked to resolve them beneath the
//! directory.

use crate::error::{Advice, Error, ErrorKind, Result};
use crate::image::archive::{self, Member, Table};
use crate::limits::Limits;
use crate::sys::cache::ReadOnce;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

/// Links to links: the archives of old Docker versions have one step.
const MAX_LINKS: usize = 8;

/// A set of named files.
pub(crate) enum Members {
    Directory(OwnedFd),
    Archive { file: Arc<ReadOnce>, table: Table },
}

impl Members {
    pub(crate) fn directory(path: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty());
        root.map(Self::Directory).map_err(|e| Error::io("cannot open the directory", e).subject(path.display()))
    }

    pub(crate) fn archive(file: File, limits: &Limits) -> Result<Self> {
        let table = archive::scan(&file, limits)?;
        Ok(Self::scanned(file, table))
    }

    /// The members of an archive whose table is known.
    pub(crate) fn scanned(file: File, table: Table) -> Self {
        Self::Archive { file: Arc::new(ReadOnce::new(file)), table }
    }

    /// Whether an archive has a member whose name fits; of a directory no names are known.
    pub(crate) fn any(&self, fits: impl Fn(&str) -> bool) -> bool {
        match self {
            Self::Directory(_) => false,
            Self::Archive { table, .. } => table.keys().any(|name| fits(name)),
        }
    }

    /// Opens a file; `None` if there is none of that name.
    pub(crate) fn open(&self, name: &str) -> Result<Option<MemberReader>> {
        let wanted =
            archive::normal(name).ok_or_else(|| Error::invalid("a name that leaves the image").subject(name))?;
        match self {
            Self::Directory(root) => open_beneath(root, &wanted),
            Self::Archive { file, table } => Ok(find(table, &wanted)?.map(|(offset, len)| MemberReader {
                file: Arc::clone(file),
                offset,
                left: len,
            })),
        }
        .map_err(|e| e.subject(name))
    }

    /// Opens a file that must be there.
    pub(crate) fn require(&self, name: &str) -> Result<MemberReader> {
        self.open(name)?
            .ok_or_else(|| Error::not_found("the image lacks a file").subject(name).advise(Advice::GetAgain))
    }

    /// Reads a whole file of at most `limit` bytes; `None` if there is none of that name.
    pub(crate) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(reader) = self.open(name)? else { return Ok(None) };
        let len = reader.len();
        if len > limit {
            return Err(Error::limit("the file is too large", limit, len).subject(name));
        }
        let mut bytes = Vec::with_capacity(len as usize);
        reader.take(limit).read_to_end(&mut bytes).map_err(|e| Error::io("cannot read", e).subject(name))?;
        Ok(Some(bytes))
    }
}

/// Follows links in the table to a file's place.
fn find(table: &Table, name: &str) -> Result<Option<(u64, u64)>> {
    let mut name = name;
    for _ in 0..MAX_LINKS {
        match table.get(name) {
            None => return Ok(None),
            Some(Member::File { offset, len }) => return Ok(Some((*offset, *len))),
            Some(Member::Link(target)) => name = target,
            Some(Member::Unclear(why)) => return Err(Error::invalid(format!("the member can not be used: {why}"))),
        }
    }
    Err(Error::invalid("too many links in the archive"))
}

fn open_beneath(root: &OwnedFd, name: &str) -> Result<Option<MemberReader>> {
    // Not blocking: a FIFO must not make us wait for its writer before we see that it is none of ours.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file = match rustix::fs::openat2(root, name, flags, Mode::empty(), beneath) {
        Ok(fd) => File::from(fd),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
        Err(rustix::io::Errno::XDEV) => return Err(Error::invalid("a link leaves the image")),
        Err(e) => return Err(Error::io("cannot open", e)),
    };
    let metadata = file.metadata().map_err(|e| Error::io("cannot open", e))?;
    if !metadata.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(Some(MemberReader { left: metadata.len(), file: Arc::new(ReadOnce::new(file)), offset: 0 }))
}

/// Reads one file; readers of the same archive do not disturb each other.
pub(crate) struct MemberReader {
    file: Arc<ReadOnce>,
    offset: u64,
    left: u64,
}

impl MemberReader {
    /// Bytes not yet read.
    pub(crate) fn len(&self) -> u64 {
        self.left
    }
}

impl Read for MemberReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let want = self.left.min(out.len() as u64) as usize;
        let n = self.file.read_at(&mut out[..want], self.offset)?;
        self.offset += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_directory_gives_only_what_is_beneath_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("image");
        std::fs::create_dir_all(root.join("a")).unwrap();
        std::fs::write(dir.path().join("secret"), "s").unwrap();
        std::fs::write(root.join("a/file"), "x").unwrap();
        symlink("a/file", root.join("inside")).unwrap();
        symlink("../secret", root.join("outside")).unwrap();
        symlink("/etc/passwd", root.join("absolute")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, root.join("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let members = Members::directory(&root).unwrap();
        for good in ["a/file", "./a//file", "inside"] {
            assert_eq!(members.read(good, 10).unwrap().unwrap(), b"x", "{good}");
        }
        for bad in ["outside", "absolute", "../secret", "a/../../secret", "a/../a/file", "/etc/passwd", "fifo", "a", ""]
        {
            let e = members.open(bad).err().unwrap_or_else(|| panic!("{bad} was opened"));
            assert_eq!(e.kind(), ErrorKind::InvalidInput, "{bad}: {e}");
        }
        assert!(members.open("none/such").unwrap().is_none());
        assert!(members.open("a/file/x").unwrap().is_none());
        assert_eq!(members.read("a/file", 0).unwrap_err().kind(), ErrorKind::LimitExceeded);
    }
}
