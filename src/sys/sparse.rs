//! Holes of files: where they are, how to make them, and how long a file may be.

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes copied at a time.
const STEP: u64 = 256 << 10;

/// An offset from `offset` on before which a file of `size` bytes has only zeros, as far as its file system tells.
pub(crate) fn data_from(file: &File, offset: u64, size: u64) -> u64 {
    match seek(file, SeekFrom::Data(offset)) {
        Ok(data) => data.clamp(offset, size),
        Err(Errno::NXIO) => size,
        Err(_) => offset,
    }
}

/// Where the data ends that is at `offset` of a file of `size` bytes, as far as its file system tells.
pub(crate) fn hole_from(file: &File, offset: u64, size: u64) -> u64 {
    seek(file, SeekFrom::Hole(offset)).map_or(size, |hole| hole.clamp(offset, size))
}

/// Copies the content of `from`, which has `size` bytes, to the empty file `to`. Holes stay holes. `each` is called
/// before every step and may stop it.
///
/// # Errors
/// Those of reading and writing, and of `each`.
pub(crate) fn copy(from: &File, to: &File, size: u64, mut each: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    to.set_len(size)?;
    let mut buffer = vec![0; STEP as usize];
    let mut at = data_from(from, 0, size);
    while at < size {
        each()?;
        let end = hole_from(from, at, size).min(at + STEP).max(at + 1);
        let part = &mut buffer[..(end - at) as usize];
        from.read_exact_at(part, at)?;
        to.write_all_at(part, at)?;
        at = data_from(from, end, size);
    }
    Ok(())
}

/// The most bytes that a file may have which could not get `size`: the file system's limit. The file has that many
/// afterwards.
pub(crate) fn longest(file: &File, size: u64) -> u64 {
    let (mut fits, mut fails) = (0, size);
    while fails - fits > 1 {
        let middle = fits + (fails - fits) / 2;
        match file.set_len(middle) {
            Ok(()) => fits = middle,
            Err(_) => fails = middle,
        }
    }
    fits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_copied_as_holes() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let size = 3 << 40;
        from.set_len(size).unwrap();
        for at in [0, 1 << 30, size - 3] {
            from.write_all_at(b"abc", at).unwrap();
        }
        let mut steps = 0;
        copy(&from, &to, size, || {
            steps += 1;
            Ok(())
        })
        .unwrap();
        assert!(to.metadata().unwrap().len() == size && steps <= 3, "{steps}");
        for at in [0, 1 << 30, size - 3] {
            let mut found = [0; 3];
            to.read_exact_at(&mut found, at).unwrap();
            assert_eq!(&found, b"abc");
        }
        let stopped = copy(&from, &tempfile::tempfile().unwrap(), size, || Err(io::Error::other("stop")));
        assert_eq!(stopped.unwrap_err().to_string(), "stop");
    }

    #[test]
    fn the_longest_file_is_found() {
        let file = tempfile::tempfile().unwrap();
        let most = longest(&file, u64::MAX);
        assert_eq!(file.metadata().unwrap().len(), most);
        assert!(most >= 1 << 40 && file.set_len(most + 1).is_err());
    }
}
