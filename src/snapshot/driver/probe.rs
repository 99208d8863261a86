//! Whether this kernel can be trusted with EROFS mounts of packs: two small packs, every byte compared.
//!
//! Kernels up to at least 6.18 join reads of consecutive block numbers without comparing devices
//! (`z_erofs_submit_queue` in `fs/erofs/zdata.c`): an extent that begins in one pack at the number where the one before
//! ended in another is read from the wrong pack. Packs own disjoint ranges of numbers, so that never comes to pass; the
//! probe sees that it does not, with the same layout but for that.

use crate::error::{Error, ErrorKind, Result};
use crate::format::entry::Time;
use crate::format::erofs::write::{self, Body, Data, Inode, Piece};
use crate::format::pack::{BLOCK, Codec, Location};
use crate::store::Store;
use crate::sys::mount::FileSystem;
use crate::sys::publish::publish_bytes;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes of each chunk of the probe; incompressible ones take as many blocks.
const CHUNK: u32 = 8 << 10;
const FILE: &[u8] = b"probe";

/// Runs the probe, or believes what it said earlier of this kernel and store.
pub(super) fn check(store: &Store) -> Result<()> {
    let uname = rustix::system::uname();
    let kernel = format!("{} {}", uname.release().to_string_lossy(), uname.version().to_string_lossy());
    let name = format!("probe-{}", &blake3::hash(kernel.as_bytes()).to_hex()[..16]);
    let known = store.path().join("images").join(&name);
    if std::fs::read(&known).is_ok_and(|found| found == kernel.as_bytes()) {
        return Ok(());
    }
    let scratch = store.scratch()?;
    let first = u64::from(CHUNK);
    // A pack begins with a block that is no chunk's.
    if !run(scratch.path(), [BLOCK, 2 * BLOCK + first])? {
        let e = Error::new(ErrorKind::Unsupported, "this kernel reads wrong bytes from an EROFS image of packs");
        return Err(e.subject(kernel));
    }
    publish_bytes(kernel.as_bytes(), scratch.path().join("known"), &store.path().join("images"), &name)
}

/// Mounts a file of three chunks, from two packs, whose data begins at these addresses, which are offsets in the packs'
/// files too; whether it reads right. The mount is never attached anywhere.
fn run(dir: &Path, starts: [u64; 2]) -> Result<bool> {
    let noise = |seed: u8| {
        let mut bytes = vec![0; CHUNK as usize];
        blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
        bytes
    };
    let text = b"layerstore ".repeat(CHUNK as usize / 11 + 1);
    let text = &text[..CHUNK as usize];
    let packed = zstd::bulk::compress(text, 1).map_err(|e| Error::io("compress the probe", e))?;
    let (one, two) = (noise(1), noise(2));
    let location = |address: u64, stored: usize, codec| Location {
        block: (address / BLOCK) as u32,
        stored_len: stored as u32,
        raw_len: CHUNK,
        codec,
    };
    let places = [
        location(starts[0], one.len(), Codec::Raw),
        location(starts[1], two.len(), Codec::Raw),
        location(starts[1] + u64::from(CHUNK), packed.len(), Codec::Zstd),
    ];
    let files = [dir.join("pack-0"), dir.join("pack-1")];
    for (path, end) in files.iter().zip([places[0].end(), places[2].end()]) {
        let file = std::fs::File::create(path).map_err(|e| Error::io("create a pack of the probe", e))?;
        let write = |bytes: &[u8], place: &Location| file.write_all_at(bytes, place.address());
        let written = match path == &files[0] {
            true => write(&one, &places[0]),
            false => write(&two, &places[1]).and_then(|()| write(&packed, &places[2])),
        };
        written.and_then(|()| file.set_len(end)).map_err(|e| Error::io("write a pack of the probe", e))?;
    }
    let bytes = write::build(&inodes(&places), &[], &[places[0].end(), places[2].end()])?;
    let image = dir.join("image");
    std::fs::write(&image, bytes).map_err(|e| Error::io("write the probe's image", e))?;
    let erofs = FileSystem::open("erofs")?;
    erofs.set("source", &image.to_string_lossy())?;
    files.iter().try_for_each(|path| erofs.set("device", &path.to_string_lossy()))?;
    let root = erofs.detached(true)?;
    let mut read = Vec::new();
    let file = rustix::fs::openat(&root, FILE, rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty());
    let file = file.map_err(|e| Error::io("open the probe's file", e))?;
    let whole = std::fs::File::from(file).read_to_end(&mut read);
    Ok(whole.is_ok() && read == [&one[..], &two, text].concat())
}

fn inodes(places: &[Location; 3]) -> [Inode<'static>; 2] {
    let pieces = places.iter().map(|location| Piece::Chunk { location: *location, len: CHUNK }).collect();
    let file = Body::File { size: 3 * u64::from(CHUNK), data: Data::Pieces(pieces) };
    let root = Body::Directory { children: vec![(FILE, 1)], parent: 0 };
    let mtime = Time::default();
    [root, file].map(|body| Inode { mode: 0o700, uid: 0, gid: 0, mtime, links: 1, xattrs: &[], body })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bug itself. When a kernel passes this, the reason for the address rule is gone there, not the rule.
    #[test]
    fn adjacent_numbers_in_two_packs_read_wrong_and_a_block_between_them_right() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: mounting EROFS needs root");
            return;
        }
        let dir = || tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let far = u64::from(CHUNK);
        match run(dir().path(), [BLOCK, BLOCK + far]) {
            Ok(true) => println!("skipped: this kernel compares devices before it joins reads"),
            Ok(false) => {}
            Err(e) => panic!("{e}"),
        }
        assert!(run(dir().path(), [BLOCK, 2 * BLOCK + far]).unwrap());
    }

    #[test]
    fn the_answer_is_remembered() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: mounting EROFS needs root");
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
    }
}
