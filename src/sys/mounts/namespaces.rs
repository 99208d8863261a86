//! The mount tables that count, each once.
//!
//! Any user makes user namespaces, mounts in them what he likes, and gives it any source and any
//! path: he makes a directory of the same name in a root of his own. So a mount namespace counts
//! only if whoever owns its user namespace could get at the store: the user that this process is,
//! who owns the store, or root. That is told by who made the user namespace, as a container runtime
//! does for its containers. The tables of others are not read at all.

use crate::sys::raw;
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes of a table read at a time.
const BUFFER: usize = 64 << 10;
/// How many processes of one namespace are looked at that have different roots: a table leaves out
/// what is not below its process's root.
const ROOTS_MAX: usize = 16;

/// A namespace, as the device and inode of its file.
type Id = (u64, u64);

fn id(file: &File) -> io::Result<Id> {
    file.metadata().map(|meta| (meta.dev(), meta.ino()))
}

/// This process's own table.
pub(super) fn own() -> io::Result<BufReader<File>> {
    open(Path::new("/proc/self"))
}

fn open(process: &Path) -> io::Result<BufReader<File>> {
    File::open(process.join("mountinfo")).map(|file| BufReader::with_capacity(BUFFER, file))
}

/// Who looks.
struct Me {
    uid: u32,
    user_namespace: Option<Id>,
}

impl Me {
    fn new() -> Self {
        let user_namespace = File::open("/proc/self/ns/user").and_then(|file| id(&file)).ok();
        Self { uid: rustix::process::geteuid().as_raw(), user_namespace }
    }

    /// Whether mounts of a mount namespace count. Where that cannot be told, they do.
    fn counts(&self, namespace: &File) -> bool {
        // The kernel names no user namespace that is not this process's or below it: such a one is
        // above, as a process in a foreign one would not have been found.
        let Ok(owner) = raw::owning_user_namespace(namespace.as_fd()) else { return true };
        let owner = File::from(owner);
        if self.user_namespace.is_some() && id(&owner).ok() == self.user_namespace {
            return true;
        }
        raw::user_namespace_owner(owner.as_fd()).map_or(true, |uid| uid == 0 || uid == self.uid)
    }
}

/// What is known of a mount namespace.
enum Known {
    Foreign,
    /// It counts, and was read as processes with these roots see it.
    Read(Vec<OsString>),
}

/// Passes over what cannot be opened because its process has ended, or is hidden from this one. Any
/// other failure, such as a lack of descriptors, says nothing of what is mounted.
fn seen<T>(opened: io::Result<T>) -> io::Result<Option<T>> {
    match opened {
        Ok(opened) => Ok(Some(opened)),
        Err(e) => match Errno::from_io_error(&e) {
            Some(Errno::NOENT | Errno::SRCH | Errno::INVAL | Errno::ACCESS | Errno::PERM) => Ok(None),
            _ => Err(e),
        },
    }
}

/// Calls `visit` with each table that counts, this process's own first. An error if one could not be
/// opened that may count.
pub(super) fn each(mut visit: impl FnMut(BufReader<File>)) -> io::Result<()> {
    let me = Me::new();
    let mut known: HashMap<Id, Known> = HashMap::new();
    // Its root is not remembered: in a chroot it looks like the root of all, and the table lacks
    // what is outside.
    visit(own()?);
    for process in fs::read_dir("/proc")?.flatten() {
        if !process.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let path = process.path();
        let Some(namespace) = seen(File::open(path.join("ns/mnt")))? else { continue };
        let Ok(at) = id(&namespace) else { continue };
        match known.get(&at) {
            Some(Known::Foreign) => continue,
            Some(Known::Read(roots)) if roots.len() >= ROOTS_MAX => continue,
            None if !me.counts(&namespace) => {
                known.insert(at, Known::Foreign);
                continue;
            }
            _ => {}
        }
        // The link's text only: what is looked up below it may be anybody's file system.
        let Ok(root) = fs::read_link(path.join("root")).map(OsString::from) else { continue };
        let roots = match known.entry(at).or_insert_with(|| Known::Read(vec![])) {
            Known::Read(roots) if !roots.contains(&root) => roots,
            _ => continue,
        };
        // One that has ended meanwhile is no reason to leave the others of its namespace out.
        if let Some(table) = seen(open(&path))? {
            roots.push(root);
            visit(table);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_descriptors_is_not_taken_for_a_process_that_ended() {
        let opened = |errno: Errno| seen::<()>(Err(errno.into())).map_err(|e| e.raw_os_error());
        for gone in [Errno::NOENT, Errno::SRCH, Errno::INVAL, Errno::ACCESS, Errno::PERM] {
            assert_eq!(opened(gone), Ok(None));
        }
        for failure in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::IO] {
            assert_eq!(opened(failure), Err(Some(failure.raw_os_error())));
        }
        assert_eq!(seen(Ok(1)).ok(), Some(Some(1)));
    }
}
