//! Whether this kernel can be trusted with EROFS mounts of packs: two small packs, every byte compared.
//!
//! Kernels up to at least 6.18 join reads of consecutive block numbers without comparing devices
//! (`z_erofs_submit_queue` in `fs/erofs/zdata.c`): an extent that begins in one pack at the number where the one before
//! ended in another is read from the wrong pack. Packs own disjoint ranges of numbers whose first block is no chunk's, so
//! that never comes to pass; the probe sees that it does not.
//!
//! The image has all that images of layers have: chunks of each codec side by side, in one file and across packs,
//! ranges of bundles, holes, long directories, attributes.

use crate::error::{Error, ErrorKind, Result};
use crate::format::entry::{Time, Xattr};
use crate::format::erofs::Pack;
use crate::format::erofs::write::{self, Body, Data, Inode, Source};
use crate::format::pack::{BLOCK, Codec, Location};
use crate::store::Store;
use crate::sys::mount::{self, FileSystem};
use crate::sys::publish::publish_bytes;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Mode, OFlags};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// `TMPFS_MAGIC` of `include/uapi/linux/magic.h`.
const TMPFS: i64 = 0x0102_1994;

/// Runs the probe, or believes what it said earlier of this kernel and file system.
///
/// # Errors
/// `Unsupported` with the reason.
pub(super) fn check(store: &Store) -> Result<()> {
    // What the kernel allows depends on who asks, so this is not remembered.
    mount::may_mount("erofs")?;
    let uname = rustix::system::uname();
    let fs = rustix::fs::statfs(store.path()).map_err(|e| Error::io("stat the file system of the store", e))?;
    if fs.f_type == TMPFS {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "the kernel mounts no EROFS image from tmpfs, where the store is",
        ));
    }
    let kernel =
        format!("{} {} on {:x}\n", uname.release().to_string_lossy(), uname.version().to_string_lossy(), fs.f_type);
    let name = format!("probe-{}", &blake3::hash(kernel.as_bytes()).to_hex()[..16]);
    let known = store.path().join("images").join(&name);
    if std::fs::read(&known).is_ok_and(|found| found == kernel.as_bytes()) {
        return Ok(());
    }
    let scratch = store.scratch()?;
    let run = Probe::new(BLOCK)?.run(scratch.path());
    let unsupported = |e: Error| Error::new(ErrorKind::Unsupported, "this kernel cannot mount packs").source(e);
    if let Some(wrong) = run.map_err(|e| if e.kind() == ErrorKind::Unsupported { e } else { unsupported(e) })? {
        let e = Error::new(ErrorKind::Unsupported, "this kernel reads wrong bytes from an EROFS image of packs");
        return Err(e.subject(wrong).actual(kernel.trim_end()));
    }
    publish_bytes(kernel.as_bytes(), scratch.path().join("known"), &store.path().join("images"), &name)
}

/// Two packs being laid out, and what files of the image must read as.
struct Probe {
    packs: [Draft; 2],
    around: u64,
    files: Vec<(&'static str, Vec<u8>, Data)>,
    bundles: Vec<Location>,
}

/// A pack: chunks, and the bytes stored for them.
struct Draft {
    base: u64,
    next: u64,
    stored: Vec<(Location, Vec<u8>)>,
}

impl Draft {
    fn new(base: u64, around: u64) -> Self {
        Self { base, next: base + around, stored: vec![] }
    }

    fn add(&mut self, raw: &[u8], codec: Codec) -> Result<Location> {
        let stored = match codec {
            Codec::Raw => raw.to_vec(),
            Codec::Lz4 => lz4_flex::block::compress(raw),
            Codec::Zstd => zstd::bulk::compress(raw, 1).map_err(|e| Error::io("compress the probe", e))?,
        };
        let (stored_len, raw_len) = (stored.len() as u32, raw.len() as u32);
        let location = Location { block: (self.next / BLOCK) as u32, stored_len, raw_len, codec };
        self.next = location.end();
        self.stored.push((location, stored));
        Ok(location)
    }

    /// After the chunks come blocks as of a table, also where the pack does not own them: the bug reads what is there.
    fn write(&self, path: &Path) -> Result<()> {
        let file = File::create(path).map_err(|e| Error::io("create a pack of the probe", e))?;
        let write = |(location, stored): &(Location, Vec<u8>)| file.write_all_at(stored, location.address());
        let table = || file.write_all_at(&[0x5a; 16 * BLOCK as usize], self.next);
        let written = self.stored.iter().try_for_each(write).and_then(|()| table());
        written.map_err(|e| Error::io("write a pack of the probe", e))
    }
}

fn noise(seed: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

/// Compresses to about a third.
fn text(seed: u8, len: usize) -> Vec<u8> {
    noise(seed, len / 6 + 1)
        .iter()
        .flat_map(|b| [b'a' + b % 16, b' ', b'k', b'a' + b / 16, b'-', b'x'])
        .take(len)
        .collect()
}

impl Probe {
    /// Packs with this many bytes before and after their chunks: a block at least in every store, for header and table;
    /// none to see the kernel's bug.
    fn new(around: u64) -> Result<Self> {
        // Short enough for one reading ahead to ask for both: joining happens within one.
        let [one, two] = [noise(1, 8 << 10), noise(2, 8 << 10)];
        let mut first = Draft::new(BLOCK, around);
        let bundle = text(3, 30_000);
        let mut bundles = vec![first.add(&bundle, Codec::Zstd)?, first.add(b"tiny", Codec::Raw)?];
        let lz4 = text(4, 100_001);
        let lz4_at = first.add(&lz4, Codec::Lz4)?;
        let one_at = first.add(&one, Codec::Raw)?;
        let mut second = Draft::new(first.next + around, around);
        let two_at = second.add(&two, Codec::Raw)?;
        let zstd = text(5, 120_003);
        let zstd_at = second.add(&zstd, Codec::Zstd)?;
        bundles.push(second.add(&bundle[..9000], Codec::Zstd)?);
        let whole = |chunks: &[Location]| Data::Chunks(chunks.to_vec());
        let hole =
            Data::Inside { bits: 1, pieces: vec![None, Some(one[..8192].to_vec()), None, Some(two[..5].to_vec())] };
        let sparse = [&[0; 8192], &one[..8192], &[0; 8192], &two[..5]].concat();
        let files = vec![
            ("across", [&one[..], &two].concat(), whole(&[one_at, two_at])),
            ("mixed", [&lz4[..], &two, &zstd, &one].concat(), whole(&[lz4_at, two_at, zstd_at, one_at])),
            ("range", bundle[777..20_000].to_vec(), Data::Fragment { bundle: 0, offset: 777 }),
            ("range2", bundle[..9000].to_vec(), Data::Fragment { bundle: 2, offset: 0 }),
            ("sparse", sparse, hole),
            ("tiny", b"in".to_vec(), Data::Fragment { bundle: 1, offset: 1 }),
        ];
        Ok(Self { packs: [first, second], around, files, bundles })
    }

    /// Mounts the image, which is never attached anywhere. Returns the name of a file that reads wrong.
    fn run(self, dir: &Path) -> Result<Option<&'static str>> {
        let paths = [dir.join("pack-0"), dir.join("pack-1")];
        for (pack, path) in self.packs.iter().zip(&paths) {
            pack.write(path)?;
        }
        let packs = self.packs.each_ref().map(|pack| Pack { base: pack.base, end: pack.next + self.around });
        let xattrs = [Xattr { name: b"user.probe".to_vec(), value: b"value".to_vec() }];
        let inode = |body| {
            let mtime = Time { secs: -5, nanos: 999_999_999 };
            Inode { mode: 0o640, uid: 70_000, gid: 80_000, mtime, links: 1, xattrs: &xattrs, body }
        };
        let names = self.files.iter().enumerate().map(|(i, file)| (file.0.as_bytes(), i as u32 + 1)).collect();
        let mut inodes = vec![inode(Body::Directory { children: names, parent: 0 })];
        let mut expected = Vec::new();
        for (name, bytes, data) in self.files {
            inodes.push(inode(Body::File { size: bytes.len() as u64, data }));
            expected.push((name, bytes));
        }
        let image = write::build(&Source { inodes, bundles: self.bundles, packs: packs.to_vec() })?;
        let root = mount(dir, &image, &paths)?;
        for (name, bytes) in expected {
            if !reads_as(&root, name, &bytes)? {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }
}

/// A mount of the image, as a descriptor of its root.
fn mount(dir: &Path, image: &[u8], packs: &[PathBuf]) -> Result<OwnedFd> {
    let path = dir.join("image");
    std::fs::write(&path, image).map_err(|e| Error::io("write the probe's image", e))?;
    let erofs = FileSystem::open("erofs")?;
    erofs.set_path("source", &path)?;
    packs.iter().try_for_each(|path| erofs.set_path("device", path))?;
    erofs.detached(true)
}

fn reads_as(root: &OwnedFd, name: &str, bytes: &[u8]) -> Result<bool> {
    let failed = |e: rustix::io::Errno| Error::io("look at the probe's file", e);
    let stat = rustix::fs::statat(root, name, AtFlags::empty()).map_err(failed)?;
    let file = File::from(rustix::fs::openat(root, name, OFlags::RDONLY, Mode::empty()).map_err(failed)?);
    let mut value = [0; 16];
    let value = rustix::fs::fgetxattr(&file, "user.probe", &mut value[..]).map(|len| value[..len].to_vec());
    let mut read = Vec::new();
    // An error is as wrong as other bytes.
    let whole = (&file).read_to_end(&mut read);
    Ok(whole.is_ok()
        && read == bytes
        && (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid) == (0o640, 70_000, 80_000)
        && (stat.st_mtime as i64, stat.st_mtime_nsec as i64) == (-5, 999_999_999)
        && value.is_ok_and(|value| value == b"value"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> bool {
        let refused = mount::may_mount("erofs").err();
        if let Some(e) = &refused {
            println!("skipped: the probe of EROFS: needs to mount it: {e}");
        }
        refused.is_none()
    }

    fn run(around: u64) -> Option<&'static str> {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        Probe::new(around).unwrap().run(dir.path()).unwrap()
    }

    /// The bug itself. When a kernel reads this right, the reason for the address rule is gone there, not the rule.
    #[test]
    fn adjacent_numbers_in_two_packs_read_wrong_and_with_blocks_between_them_right() {
        if !root() {
            return;
        }
        match run(0) {
            None => println!("skipped: this kernel compares devices before it joins reads"),
            Some(file) => assert_eq!(file, "across"),
        }
        assert_eq!(run(BLOCK), None);
    }

    #[test]
    fn the_answer_is_remembered() {
        if !root() {
            return;
        }
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        check(&store).unwrap();
        let files: Vec<_> = std::fs::read_dir(store.path().join("images")).unwrap().flatten().collect();
        assert_eq!(files.len(), 1);
        let before = files[0].metadata().unwrap().modified().unwrap();
        check(&store).unwrap();
        assert_eq!(files[0].metadata().unwrap().modified().unwrap(), before);
        // What another kernel said does not count.
        std::fs::write(files[0].path(), "another").unwrap();
        check(&store).unwrap();
        assert_ne!(std::fs::read(files[0].path()).unwrap(), b"another");
    }
}
