//! One thread's part of the work: leaves and their content.

use super::Target;
use super::attributes::{Kind, Setter, refused};
use super::chunks::{Chunks, Shared};
use super::options::{ExtractOptions, Losses, Lost};
use super::plan::{Job, LeafAt, Plan};
use crate::error::{Error, ErrorKind, Result};
use crate::format::entry::DataRange;
use crate::layer::{Content, Piece, place};
use crate::observe::{Event, Observer, check};
use crate::store::Store;
use crate::sys::dirs::{Dir, Inode};
use crate::sys::raw::clear_umask;
use crate::sys::sparse;
use crate::tree::{Leaf, NodeKind};
use rustix::fs::FileType;
use rustix::io::Errno;
use std::collections::HashSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Files of equal content open at a time.
const TOGETHER: usize = 64;
/// Directories a thread keeps open.
const DIRS: usize = 64;

/// What all threads see.
pub(super) struct Work<'a> {
    pub(super) store: &'a Store,
    pub(super) targets: &'a [Target],
    pub(super) plan: &'a Plan,
    pub(super) options: &'a ExtractOptions,
    pub(super) losses: &'a Losses,
    pub(super) observer: &'a dyn Observer,
    pub(super) shared: Shared,
    /// One thread failed.
    pub(super) stop: AtomicBool,
    /// Devices that could not be made.
    pub(super) missing: Mutex<HashSet<LeafAt>>,
}

impl Work<'_> {
    /// Fails when the work is to stop.
    fn check(&self) -> Result<()> {
        match self.stop.load(Relaxed) {
            true => Err(Error::new(ErrorKind::Cancelled, "another thread failed")),
            false => check(self.observer),
        }
    }

    /// Does jobs until none is left; `own` is this thread's number.
    pub(super) fn run(&self, own: usize) -> Result<()> {
        match self.jobs(own) {
            // Because of another thread's error, which is the one to tell.
            Err(e) if e.kind() == ErrorKind::Cancelled && !self.observer.cancelled() => Ok(()),
            Err(e) => {
                self.stop.store(true, Relaxed);
                Err(e)
            }
            Ok(()) => Ok(()),
        }
    }

    fn jobs(&self, own: usize) -> Result<()> {
        let chunks = Chunks::new(self.store, self.plan, &self.shared)?;
        let leaves = Leaves { work: self, umask: clear_umask() };
        let mut worker = Worker { leaves, chunks, dirs: (0..DIRS).map(|_| None).collect() };
        while let Some(job) = self.plan.queue.take(own) {
            check(self.observer)?;
            if self.stop.load(Relaxed) {
                break;
            }
            let bytes = match job {
                Job::Plain(range) => worker.plain(&self.plan.plain[range.clone()])?,
                Job::Singles(range) => worker.singles(range.clone())?,
                Job::Group(number) => worker.group(&self.plan.groups[*number])?,
            };
            self.observer.event(Event::Extracted { bytes });
        }
        Ok(())
    }
}

/// The leaves, and what is done to them once they are there.
#[derive(Clone, Copy)]
struct Leaves<'a> {
    work: &'a Work<'a>,
    umask: u16,
}

impl<'a> Leaves<'a> {
    fn setter(&self, target: u32) -> Setter<'a> {
        let target = &self.work.targets[target as usize];
        Setter { target, options: self.work.options, losses: self.work.losses, umask: self.umask }
    }

    fn get(&self, at: LeafAt) -> &'a Leaf<Content> {
        &self.work.targets[at.target as usize].outline.leaves[at.leaf as usize]
    }

    fn finish(&self, at: LeafAt, file: &File) -> Result<()> {
        let leaf = self.get(at);
        self.setter(at.target).set(Inode::Open(file.as_fd()), &leaf.spot, &leaf.attributes, Kind::Other)
    }

    fn set_len(&self, at: LeafAt, file: &File, size: u64) -> Result<()> {
        file.set_len(size).map_err(|e| match e.raw_os_error().map(Errno::from_raw_os_error) {
            // Too long for it is an invalid argument for some.
            Some(Errno::FBIG | Errno::INVAL) => {
                let most = sparse::longest(file, size);
                let e = Error::new(ErrorKind::Unsupported, "the file system holds no file this long");
                self.named(at, e.expected(format!("at most {most} bytes")).actual(size))
            }
            _ => self.write_failed(at, e),
        })
    }

    fn write_failed(&self, at: LeafAt, e: std::io::Error) -> Error {
        self.setter(at.target).failed("write", &self.get(at).spot, e)
    }

    fn named(&self, at: LeafAt, e: Error) -> Error {
        e.subject(String::from_utf8_lossy(&self.setter(at.target).path(&self.get(at).spot)))
    }
}

struct Worker<'a> {
    leaves: Leaves<'a>,
    chunks: Chunks<'a>,
    /// Open directories, each in the slot its number leads to.
    dirs: Vec<Option<(u32, u32, Dir)>>,
}

/// Makes sure that `(target, dir)` is open in its slot. Apart from [`Worker`], whose other parts are borrowed meanwhile.
fn open_dir<'d>(dirs: &'d mut [Option<(u32, u32, Dir)>], targets: &[Target], at: (u32, u32)) -> Result<&'d Dir> {
    let slot = &mut dirs[(at.0 as usize * 31 + at.1 as usize) % DIRS];
    if slot.as_ref().is_none_or(|open| (open.0, open.1) != at) {
        *slot = None;
        let target = &targets[at.0 as usize];
        let dir = target.open(at.1, false)?;
        *slot = Some((at.0, at.1, dir));
    }
    slot.as_ref().map(|open| &open.2).ok_or_else(|| Error::invalid("a directory is not open"))
}

impl<'a> Worker<'a> {
    fn create(&mut self, at: LeafAt) -> Result<File> {
        let (setter, leaf) = (self.leaves.setter(at.target), self.leaves.get(at));
        let dir = open_dir(&mut self.dirs, self.leaves.work.targets, (at.target, leaf.spot.dir))?;
        let created = dir.create(&leaf.spot.name, setter.creation_mode(&leaf.attributes));
        created.map_err(|e| setter.failed("create", &leaf.spot, e))
    }

    /// Files of one piece, a chunk's one after the other.
    fn singles(&mut self, range: std::ops::Range<usize>) -> Result<u64> {
        let (leaves, mut bytes) = (self.leaves, 0);
        for single in &leaves.work.plan.singles[range] {
            let file = self.create(single.at)?;
            let piece = piece(self.chunks.get(single.chunk)?, single.offset, single.len);
            let piece = piece.map_err(|e| leaves.named(single.at, e))?;
            write_all(&file, piece).map_err(|e| leaves.write_failed(single.at, e))?;
            leaves.finish(single.at, &file)?;
            bytes += u64::from(single.len);
        }
        Ok(bytes)
    }

    /// Files of equal content, or one of many pieces.
    fn group(&mut self, group: &[LeafAt]) -> Result<u64> {
        let (leaves, mut bytes) = (self.leaves, 0);
        for together in group.chunks(TOGETHER) {
            let files = together.iter().map(|at| self.create(*at)).collect::<Result<Vec<_>>>()?;
            let NodeKind::File { size, sparse: holes, content } = &leaves.get(together[0]).kind else { continue };
            let mut end = 0;
            if holes.is_some() {
                // First, since the file system may hold no file that long.
                together.iter().zip(&files).try_for_each(|(at, file)| leaves.set_len(*at, file, *size))?;
            }
            let whole = [DataRange { offset: 0, len: *size }];
            for Piece { offset, extent } in place(holes.as_deref().unwrap_or(&whole), content.to_vec())? {
                leaves.work.check()?;
                let number = leaves.work.plan.number(&extent.chunk)?;
                let raw = self.chunks.get(number)?;
                let piece = piece(raw, extent.offset, extent.len).map_err(|e| leaves.named(together[0], e))?;
                for (at, file) in together.iter().zip(&files) {
                    file.write_all_at(piece, offset).map_err(|e| leaves.write_failed(*at, e))?;
                }
                end = offset + u64::from(extent.len);
                bytes += u64::from(extent.len) * files.len() as u64;
            }
            for (at, file) in together.iter().zip(&files) {
                if holes.is_none() && end < *size {
                    leaves.set_len(*at, file, *size)?;
                }
                leaves.finish(*at, file)?;
            }
        }
        Ok(bytes)
    }

    /// Leaves that need no chunk.
    fn plain(&mut self, list: &[LeafAt]) -> Result<u64> {
        let leaves = self.leaves;
        for &at in list {
            let (setter, leaf) = (leaves.setter(at.target), leaves.get(at));
            if let NodeKind::File { size, .. } = leaf.kind {
                let file = self.create(at)?;
                if size > 0 {
                    leaves.set_len(at, &file, size)?;
                }
                leaves.finish(at, &file)?;
                continue;
            }
            let (spot, attributes) = (&leaf.spot, &leaf.attributes);
            let mode = setter.creation_mode(attributes);
            let dir = open_dir(&mut self.dirs, self.leaves.work.targets, (at.target, spot.dir))?;
            let (kind, made) = match &leaf.kind {
                NodeKind::Symlink { target } => (Kind::Symlink, dir.symlink(&spot.name, target)),
                NodeKind::Fifo => (Kind::Other, dir.node(&spot.name, FileType::Fifo, mode, 0, 0)),
                NodeKind::CharDevice { major: 0, minor: 0 } => (Kind::Other, Err(Errno::ILSEQ)),
                NodeKind::CharDevice { major, minor } => {
                    (Kind::Other, dir.node(&spot.name, FileType::CharacterDevice, mode, *major, *minor))
                }
                NodeKind::BlockDevice { major, minor } => {
                    (Kind::Other, dir.node(&spot.name, FileType::BlockDevice, mode, *major, *minor))
                }
                NodeKind::Directory { .. } | NodeKind::File { .. } => continue,
            };
            match (made, &leaf.kind) {
                (Ok(()), _) => setter.set(Inode::Named(dir, &spot.name), spot, attributes, kind)?,
                (Err(Errno::ILSEQ), NodeKind::CharDevice { major: 0, minor: 0 }) => {
                    return Err(leaves.named(at, Error::corrupt("a device that overlayfs takes for a whiteout")));
                }
                (Err(e), NodeKind::CharDevice { major, minor } | NodeKind::BlockDevice { major, minor })
                    if refused(e) =>
                {
                    leaves.work.missing.lock().unwrap_or_else(|e| e.into_inner()).insert(at);
                    leaves.work.losses.add(setter.path(spot), Lost::Device { major: *major, minor: *minor })?;
                }
                (Err(e), _) => return Err(setter.failed("create", spot, e)),
            }
        }
        Ok(0)
    }
}

/// A file's part of a chunk.
fn piece(raw: &[u8], offset: u32, len: u32) -> Result<&[u8]> {
    let end = offset as usize + len as usize;
    raw.get(offset as usize..end).ok_or_else(|| Error::corrupt("extent reaches past its chunk"))
}

fn write_all(mut file: &File, bytes: &[u8]) -> std::io::Result<()> {
    std::io::Write::write_all(&mut file, bytes)
}
