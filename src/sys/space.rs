//! Blocks of files: given back to the file system, taken, and how many are left.

use super::publish::io_error;
use crate::error::Result;
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, fstatvfs, seek};
use rustix::io::Errno;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::Path;

/// Frees the blocks of a range, which then reads as zeros; false if the file system cannot.
pub(crate) fn punch(file: &File, path: &Path, range: Range<u64>) -> Result<bool> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    loop {
        match fallocate(file, flags, range.start, range.end - range.start) {
            Ok(()) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(false),
            Err(e) => return Err(io_error("punch a hole into", path, e)),
        }
    }
}

/// Gives an empty file blocks for `len` bytes, which read as zeros.
pub(crate) fn allocate(file: &File, path: &Path, len: u64) -> Result<()> {
    fallocate(file, FallocateFlags::empty(), 0, len).map_err(|e| io_error("allocate", path, e))
}

/// Bytes that anybody may still write to the file system of a file; `u64::MAX` if it does not tell.
pub(crate) fn free_space(file: impl AsFd) -> u64 {
    match fstatvfs(file) {
        // As a tmpfs without a limit.
        Ok(stat) if stat.f_blocks > 0 => stat.f_bavail.saturating_mul(stat.f_frsize),
        _ => u64::MAX,
    }
}

/// The parts of a range that have blocks, ascending. All of it where the file system does not tell.
pub(crate) fn allocated(file: &File, path: &Path, range: Range<u64>) -> Result<Vec<Range<u64>>> {
    let mut found = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start.max(at),
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL) => at,
            Err(e) => return Err(io_error("look for holes in", path, e)),
        };
        if start >= range.end {
            break;
        }
        let end = seek(file, SeekFrom::Hole(start)).map_or(range.end, |end| end.min(range.end));
        found.push(start..end.max(start + 1));
        at = end.max(start + 1);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn what_is_punched_is_free_and_zero() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let file = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
        file.write_all_at(&[7; 1 << 20], 1 << 20).unwrap();
        file.sync_all().unwrap();
        let whole = 0..2 << 20;
        assert_eq!(allocated(&file, &path, whole.clone()).unwrap(), vec![1 << 20..2 << 20]);
        let before = file.metadata().unwrap().blocks();
        assert!(punch(&file, &path, (1 << 20) + 4096..(1 << 20) + 8192 * 4).unwrap());
        assert!(file.metadata().unwrap().blocks() < before);
        let left = allocated(&file, &path, whole).unwrap();
        assert_eq!(left, vec![1 << 20..(1 << 20) + 4096, (1 << 20) + 8192 * 4..2 << 20]);
        let mut byte = [1];
        file.read_exact_at(&mut byte, (1 << 20) + 5000).unwrap();
        assert_eq!((byte, file.metadata().unwrap().len()), ([0], 2 << 20));
    }
}
