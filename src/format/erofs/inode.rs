//! The fixed part of an inode. Always the extended form: the compact one has no time of its own.

use super::superblock::bad;
use super::{LAYOUT_CHUNKS, LAYOUT_INLINE, Put, u16_at, u32_at, u64_at};
use crate::error::Result;
use crate::format::entry::Time;

pub(super) const LEN: usize = 64;

pub(super) const TYPE: u16 = 0o170_000;
pub(super) const DIRECTORY: u16 = 0o040_000;
pub(super) const FILE: u16 = 0o100_000;
pub(super) const SYMLINK: u16 = 0o120_000;
pub(super) const CHAR_DEVICE: u16 = 0o020_000;
pub(super) const BLOCK_DEVICE: u16 = 0o060_000;
pub(super) const FIFO: u16 = 0o010_000;

/// `struct erofs_inode_extended`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) layout: u16,
    /// Length of the attributes after it, as [`super::xattrs::len`] counts.
    pub(super) xattr_count: u16,
    /// With the type.
    pub(super) mode: u16,
    pub(super) size: u64,
    /// First block, number of blocks, device or form of the chunks: by layout and type.
    pub(super) value: u32,
    pub(super) number: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    pub(super) links: u32,
}

impl Head {
    pub(super) fn encode(&self, out: &mut [u8], at: usize) {
        let mut put = Put::new(out, at);
        put.u16(1 | self.layout << 1).u16(self.xattr_count).u16(self.mode).u16(0).u64(self.size).u32(self.value);
        put.u32(self.number).u32(self.uid).u32(self.gid).u64(self.mtime.secs as u64).u32(self.mtime.nanos);
        put.u32(self.links);
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        let bytes = bytes.get(..LEN).ok_or_else(|| bad("an inode reaches past the end"))?;
        let form = u16_at(bytes, 0);
        let layout = form >> 1;
        if form & 1 == 0 || !(layout <= LAYOUT_INLINE || layout == LAYOUT_CHUNKS) {
            return Err(bad("an inode of unknown form"));
        }
        Ok(Self {
            layout,
            xattr_count: u16_at(bytes, 2),
            mode: u16_at(bytes, 4),
            size: u64_at(bytes, 8),
            value: u32_at(bytes, 16),
            number: u32_at(bytes, 20),
            uid: u32_at(bytes, 24),
            gid: u32_at(bytes, 28),
            mtime: Time { secs: u64_at(bytes, 32) as i64, nanos: u32_at(bytes, 40) },
            links: u32_at(bytes, 44),
        })
    }
}

/// The type of an inode in a directory entry (`enum` of `EROFS_FT_*`).
pub(super) fn file_type(mode: u16) -> u8 {
    match mode & TYPE {
        FILE => 1,
        DIRECTORY => 2,
        CHAR_DEVICE => 3,
        BLOCK_DEVICE => 4,
        FIFO => 5,
        SYMLINK => 7,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_and_every_byte_counts() {
        let head = Head {
            layout: LAYOUT_CHUNKS,
            xattr_count: 7,
            mode: FILE | 0o4755,
            size: 1 << 40,
            value: 5,
            number: 6,
            uid: 70_000,
            gid: 80_000,
            mtime: Time { secs: -2, nanos: 999_999_999 },
            links: 70_001,
        };
        let mut bytes = vec![0; LEN];
        head.encode(&mut bytes, 0);
        assert_eq!(Head::decode(&bytes).expect("sound"), head);
        for at in (0..48).filter(|at| !(6..8).contains(at)) {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            assert!(!Head::decode(&bytes).is_ok_and(|h| h == head), "{at}");
        }
        assert!(Head::decode(&bytes[..63]).is_err());
    }
}
