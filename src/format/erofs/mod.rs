//! EROFS metadata images whose file contents lie in packs: what the kernel mounts without anything being extracted.
//!
//! `docs/FORMAT.md`, section "Metadata images", says which parts of the format are used and why; the layouts are those of
//! Linux `fs/erofs/erofs_fs.h`. Nothing here does I/O: [`write::build`] is a pure function from inodes and chunk
//! locations to bytes, and [`read`] takes any bytes and trusts none.
//!
//! | file | what |
//! | --- | --- |
//! | `superblock.rs` | the superblock, the compression configurations, the device table |
//! | `inode.rs` | the fixed part of an inode |
//! | `index.rs` | the extent index of a compressed file |
//! | `dirs.rs` | blocks of directory entries |
//! | `xattrs.rs` | extended attributes, shared where they repeat |
//! | `packed.rs` | the bundles as one file, which small files are ranges of |
//! | `write.rs` | the image: where everything goes, then its bytes |
//! | `read.rs` | an image's tree, and the addresses it refers to |

mod dirs;
mod index;
mod inode;
mod packed;
pub(crate) mod read;
#[cfg(any(test, feature = "internals"))]
pub(crate) mod sample;
mod superblock;
#[cfg(test)]
mod tests;
pub(crate) mod write;
mod xattrs;

#[cfg(any(test, feature = "internals"))]
pub(crate) use superblock::reseal;
pub(crate) use superblock::{Check, Pack};

use super::pack::BLOCK;
use crate::error::Result;

/// Unit of everything in an image: the kernel's page, and the store's block.
const BLOCK_LEN: usize = BLOCK as usize;
/// An inode is named by its place in units of this, counted from the block `meta_blkaddr`.
const SLOT: usize = 32;

/// Content in blocks one after the other (`EROFS_INODE_FLAT_PLAIN`).
const LAYOUT_PLAIN: u16 = 0;
/// Extents by the full index, or a range of the packed inode (`EROFS_INODE_COMPRESSED_FULL`).
const LAYOUT_COMPRESSED: u16 = 1;
/// As plain, but what is less than a block stands beside the inode (`EROFS_INODE_FLAT_INLINE`).
const LAYOUT_INLINE: u16 = 2;
/// Pieces of equal length, each somewhere or a hole (`EROFS_INODE_CHUNK_BASED`).
const LAYOUT_CHUNKS: u16 = 4;

/// In the header of a compressed file: all of it is a range of the packed inode, from the offset in the other bits.
const FRAGMENT: u64 = 1 << 63;
/// In `i_u` of a chunk-based file: each piece has an entry of eight bytes. The low five bits are the pieces' length,
/// as a power of two of blocks.
const CHUNK_INDEXES: u32 = 0x20;
/// An entry of a hole.
const HOLE: [u8; 8] = [0xff; 8];

/// Number by which the kernel knows a device (`new_encode_dev`): 12 bits of major, 20 of minor.
fn encode_device(major: u32, minor: u32) -> Result<u32> {
    if major > 0xfff || minor > 0xf_ffff {
        return Err(superblock::unsupported("a device's number", "4095:1048575", format!("{major}:{minor}")));
    }
    Ok((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

fn decode_device(device: u32) -> (u32, u32) {
    ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xf_ff00))
}

/// Bytes written one after the other into room that is there.
struct Put<'o> {
    out: &'o mut [u8],
    at: usize,
}

impl<'o> Put<'o> {
    fn new(out: &'o mut [u8], at: usize) -> Self {
        Self { out, at }
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.out[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
        self
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn skip(&mut self, len: usize) -> &mut Self {
        self.at += len;
        self
    }
}

/// A number at `at` of bytes that were measured before.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
