//! An image for tests and fuzz targets to begin with.

use super::write::{Body, Data, Inode, Source, build};
use super::{BLOCK_LEN, Pack};
use crate::format::entry::{Time, Xattr};
use crate::format::pack::{BLOCK, Codec, Location};

fn location(block: u32, raw_len: u32, codec: Codec) -> Location {
    let stored_len = if codec == Codec::Raw { raw_len } else { raw_len / 3 };
    Location { block, stored_len, raw_len, codec }
}

fn inode(body: Body<'_>) -> Inode<'_> {
    let mtime = Time { secs: 1_700_000_000, nanos: 5 };
    Inode { mode: 0o644, uid: 70_000, gid: 3, mtime, links: 1, xattrs: &[], body }
}

/// An image of a bit of everything.
pub(crate) fn image() -> Vec<u8> {
    let text = |text: &str| text.as_bytes().to_vec();
    let xattrs = [Xattr { name: text("user.a"), value: text("1") }, Xattr { name: text("user.b"), value: text("2") }];
    let long = vec![b'l'; 4090];
    let chunks = vec![location(9, 100_000, Codec::Zstd), location(30, 5000, Codec::Lz4)];
    let inside = Data::Inside { bits: 0, pieces: vec![Some(vec![7; BLOCK_LEN]), None, Some(vec![8; 5])] };
    let children: Vec<(&[u8], u32)> =
        vec![(b"chunks", 1), (b"dev", 2), (b"dir", 3), (b"hard", 1), (b"long", 4), (b"small", 5), (b"sparse", 6)];
    let inodes = vec![
        Inode { xattrs: &xattrs[..1], ..inode(Body::Directory { children, parent: 0 }) },
        Inode { links: 2, ..inode(Body::File { size: 105_000, data: Data::Chunks(chunks) }) },
        inode(Body::CharDevice { major: 4000, minor: 70_000 }),
        Inode { xattrs: &xattrs, ..inode(Body::Directory { children: vec![], parent: 0 }) },
        inode(Body::Symlink(&long)),
        inode(Body::File { size: 10, data: Data::Fragment { bundle: 1, offset: 2 } }),
        inode(Body::File { size: 8197, data: inside }),
    ];
    let bundles = vec![location(40, 90, Codec::Raw), location(41, 9000, Codec::Zstd)];
    let packs = vec![Pack { base: BLOCK, end: 36 * BLOCK }, Pack { base: 39 * BLOCK, end: 50 * BLOCK }];
    build(&Source { inodes, bundles, packs }).expect("an image")
}
