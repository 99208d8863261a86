//! Blocks of directory entries: twelve bytes each, sorted, then their names.

use super::BLOCK_LEN;
use crate::error::{Error, Result};

const ENTRY_LEN: usize = 12;

/// The name of an inode, with `.` and `..` among the others.
pub(super) struct Dirent<'a> {
    pub(super) name: &'a [u8],
    pub(super) inode: usize,
}

/// How many of the sorted `entries` each block takes, and the bytes of the whole.
pub(super) fn blocks(entries: &[Dirent<'_>]) -> (Vec<usize>, usize) {
    let (mut counts, mut count, mut used) = (Vec::new(), 0, 0);
    for entry in entries {
        let len = ENTRY_LEN + entry.name.len();
        if used + len > BLOCK_LEN {
            counts.push(count);
            (count, used) = (0, 0);
        }
        count += 1;
        used += len;
    }
    counts.push(count);
    let len = (counts.len() - 1) * BLOCK_LEN + used;
    (counts, len)
}

/// Appends the blocks; the last is not padded. `target` gives an inode's number and type.
pub(super) fn encode(out: &mut Vec<u8>, entries: &[Dirent<'_>], target: impl Fn(usize) -> (u64, u8)) {
    let (counts, _) = blocks(entries);
    let (mut rest, start) = (entries, out.len());
    for (i, &count) in counts.iter().enumerate() {
        let (block, later) = rest.split_at(count);
        rest = later;
        let mut name_at = ENTRY_LEN * count;
        for entry in block {
            let (nid, kind) = target(entry.inode);
            out.extend_from_slice(&nid.to_le_bytes());
            out.extend_from_slice(&(name_at as u16).to_le_bytes());
            out.extend_from_slice(&[kind, 0]);
            name_at += entry.name.len();
        }
        block.iter().for_each(|entry| out.extend_from_slice(entry.name));
        if i + 1 < counts.len() {
            out.resize(start + (i + 1) * BLOCK_LEN, 0);
        }
    }
}

/// The entries of one block as (name, nid, type).
pub(super) fn decode(block: &[u8]) -> Result<Vec<(&[u8], u64, u8)>> {
    let bad = || Error::corrupt("an EROFS directory block is damaged");
    let offset = |i: usize| {
        let at = i * ENTRY_LEN + 8;
        block.get(at..at + 2).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]]))).ok_or_else(bad)
    };
    let first = offset(0)?;
    if first == 0 || first % ENTRY_LEN != 0 || first > block.len() {
        return Err(bad());
    }
    let count = first / ENTRY_LEN;
    let mut entries = Vec::with_capacity(count);
    for i in 0..count {
        let start = offset(i)?;
        let end = if i + 1 < count { offset(i + 1)? } else { block.len() };
        let mut name = block.get(start..end).ok_or_else(bad)?;
        if i + 1 == count {
            name = name.split(|&b| b == 0).next().unwrap_or_default();
        }
        if name.is_empty() || name.len() > 255 {
            return Err(bad());
        }
        let at = i * ENTRY_LEN;
        let nid = block[at..at + 8].iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
        entries.push((name, nid, block[at + 10]));
    }
    Ok(entries)
}
