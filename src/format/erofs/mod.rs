//! EROFS metadata images whose file data lies in packs: what the kernel mounts without anything being extracted.
//!
//! `docs/FORMAT.md`, section "Metadata images", says which part of the format is used and why; the layouts are those of
//! Linux `fs/erofs/erofs_fs.h`. Nothing here does I/O: [`write::build`] is a pure function from inodes and chunk
//! locations to bytes, and [`read`] understands any bytes without trusting them.
//!
//! | file | what |
//! | --- | --- |
//! | `write.rs` | the image: placement of inodes, and what surrounds them |
//! | `index.rs` | the extent index of a compressed file |
//! | `dirs.rs` | blocks of directory entries |
//! | `xattrs.rs` | extended attributes, shared where they repeat |
//! | `read.rs` | the tree of an image, and the addresses it refers to |

mod dirs;
mod index;
pub(crate) mod read;
#[cfg(test)]
mod tests;
pub(crate) mod write;
mod xattrs;

use super::pack::BLOCK;

/// Unit of everything in an image: the kernel's page, and the store's block.
const BLOCK_LEN: usize = BLOCK as usize;
/// Where the superblock stands.
const SUPER: usize = 1024;
const SUPER_LEN: usize = 128;
const MAGIC: u32 = 0xe0f5_e1e2;
/// An inode is named by its place in units of this, from the block `meta_blkaddr` on.
const SLOT: usize = 32;
/// Extended inodes only: the compact ones have no time of their own.
const INODE_LEN: usize = 64;
/// One device, in the table after the superblock.
const DEVICE_LEN: usize = 128;

const COMPAT_CHECKSUM: u32 = 1;
const COMPAT_MTIME: u32 = 2;
const ZERO_PADDING: u32 = 1;
const COMPRESSION_CONFIGS: u32 = 2;
const DEVICE_TABLE: u32 = 8;
const FRAGMENTS: u32 = 0x20;
const FEATURES: u32 = ZERO_PADDING | COMPRESSION_CONFIGS | DEVICE_TABLE | FRAGMENTS;

const ALGORITHM_LZ4: u8 = 0;
const ALGORITHM_ZSTD: u8 = 3;

/// Data in blocks one after the other.
const LAYOUT_PLAIN: u16 = 0;
/// Extents by the full index, or a range of the packed inode.
const LAYOUT_COMPRESSED: u16 = 1;
/// As plain, the tail beside the inode.
const LAYOUT_INLINE: u16 = 2;

/// Of a whole file that is a range of the packed inode: the header's top bit.
const FRAGMENT: u64 = 1 << 63;

/// Number by which the kernel knows a device (`new_encode_dev`).
fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

fn decode_device(rdev: u32) -> (u32, u32) {
    ((rdev >> 8) & 0xfff, (rdev & 0xff) | ((rdev >> 12) & 0xf_ff00))
}

/// CRC-32C as the superblock has it: seed all ones, no final inversion.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

/// The first half of the BLAKE3 of an image with checksum and UUID zero.
fn identity(image: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&image[..SUPER + 4]).update(&[0; 4]).update(&image[SUPER + 8..SUPER + 48]);
    hasher.update(&[0; 16]).update(&image[SUPER + 64..]);
    let mut id = [0; 16];
    id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    id
}
