//! Trees copied and moved with all there is to them, as `cp -a` and `mv` do it.

use rustix::fs::{AtFlags, CWD, FileType, Mode, SeekFrom, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

/// Copies what is at `from` to `to`, which is not there, or a directory where `from` is one. Owners, modes, times,
/// attributes, devices, holes and hard links within the tree are kept.
pub(crate) fn copy_tree(from: &Path, to: &Path) {
    copy(from, to, &mut BTreeMap::new()).unwrap_or_else(|e| panic!("copy {}: {e}", from.display()));
}

/// Where the inodes seen so far went.
type Inodes = BTreeMap<(u64, u64), PathBuf>;

fn copy(from: &Path, to: &Path, inodes: &mut Inodes) -> io::Result<()> {
    let meta = fs::symlink_metadata(from)?;
    let kind = FileType::from_raw_mode(meta.mode());
    if kind != FileType::Directory {
        if let Some(first) = inodes.get(&(meta.dev(), meta.ino())) {
            return fs::hard_link(first, to);
        }
        inodes.insert((meta.dev(), meta.ino()), to.to_owned());
    }
    match kind {
        FileType::Directory => {
            if !to.is_dir() {
                fs::create_dir(to)?;
            }
            for found in fs::read_dir(from)? {
                let path = found?.path();
                copy(&path, &to.join(path.file_name().expect("a name")), inodes)?;
            }
        }
        FileType::Symlink => symlink(fs::read_link(from)?, to)?,
        FileType::RegularFile => copy_data(from, to, meta.len())?,
        special => rustix::fs::mknodat(CWD, to, special, Mode::from_raw_mode(0o600), meta.rdev())?,
    }
    copy_attributes(from, to, &meta)
}

/// Data where there is data; the rest stays a hole.
fn copy_data(from: &Path, to: &Path, len: u64) -> io::Result<()> {
    let (from, to) = (fs::File::open(from)?, fs::File::create_new(to)?);
    to.set_len(len)?;
    let mut at = 0;
    loop {
        let start = match rustix::fs::seek(&from, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => return Ok(()),
            start => start?,
        };
        let end = rustix::fs::seek(&from, SeekFrom::Hole(start))?;
        let mut data = vec![0; usize::try_from(end - start).expect("small files")];
        from.read_exact_at(&mut data, start)?;
        to.write_all_at(&data, start)?;
        at = end;
    }
}

fn copy_attributes(from: &Path, to: &Path, meta: &fs::Metadata) -> io::Result<()> {
    lchown(to, Some(meta.uid()), Some(meta.gid()))?;
    if !meta.is_symlink() {
        fs::set_permissions(to, fs::Permissions::from_mode(meta.mode() & 0o7777))?;
    }
    let mut names = vec![0; 64 << 10];
    let len = rustix::fs::llistxattr(from, &mut names[..]).unwrap_or(0);
    for name in names[..len].split(|&b| b == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10];
        let len = rustix::fs::lgetxattr(from, name, &mut value[..])?;
        rustix::fs::lsetxattr(to, name, &value[..len], XattrFlags::empty())?;
    }
    let time = |secs, nanos: i64| Timespec { tv_sec: secs, tv_nsec: nanos as _ };
    let times = Timestamps {
        last_access: time(meta.atime(), meta.atime_nsec()),
        last_modification: time(meta.mtime(), meta.mtime_nsec()),
    };
    Ok(rustix::fs::utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Moves `from` to be `to`, by copying where renaming is refused: overlays refuse it for directories of lower layers.
///
/// # Errors
/// Those of the calls; `to` may be an empty directory, or a file where `from` is none.
pub(crate) fn move_tree(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {}
        done => return done,
    }
    match fs::symlink_metadata(to) {
        Ok(there) if there.is_dir() => fs::remove_dir(to)?,
        Ok(_) if from.is_dir() => return Err(io::ErrorKind::NotADirectory.into()),
        Ok(_) => fs::remove_file(to)?,
        Err(_) => {}
    }
    copy(from, to, &mut BTreeMap::new())?;
    fs::remove_dir_all(from)
}

/// Gives all below `root`, and `root` itself, one time.
pub(crate) fn set_times(root: &Path, secs: i64, nanos: i64) {
    let time = Timespec { tv_sec: secs, tv_nsec: nanos as _ };
    let times = Timestamps { last_access: time, last_modification: time };
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        if fs::symlink_metadata(&path).expect("stat").is_dir() {
            pending.extend(fs::read_dir(&path).expect("read").map(|found| found.expect("found").path()));
        }
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("a time");
    }
}
