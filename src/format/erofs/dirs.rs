//! Blocks of directory entries: twelve bytes each, sorted, then their names.

use super::superblock::bad;
use super::{BLOCK_LEN, Put, u16_at, u64_at};
use crate::error::Result;

const ENTRY_LEN: usize = 12;
const NAME_MAX: usize = 255;

/// A name, the number of its inode, and its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dirent<'a> {
    pub(super) name: &'a [u8],
    pub(super) nid: u64,
    pub(super) kind: u8,
}

/// Calls `block` with the number of names in each block; returns the bytes of the whole. Names are in byte order, `.`
/// and `..` among them.
fn split<'n>(names: impl Iterator<Item = &'n [u8]>, mut block: impl FnMut(usize)) -> usize {
    let (mut full, mut count, mut used) = (0, 0, 0);
    for name in names {
        let len = ENTRY_LEN + name.len();
        if used + len > BLOCK_LEN {
            block(count);
            (full, count, used) = (full + 1, 0, 0);
        }
        count += 1;
        used += len;
    }
    block(count);
    full * BLOCK_LEN + used
}

/// Bytes of a directory with these names.
pub(super) fn len<'n>(names: impl Iterator<Item = &'n [u8]>) -> usize {
    split(names, |_| ())
}

/// Appends the directory; its last block is not filled up.
pub(super) fn encode(out: &mut Vec<u8>, entries: &[Dirent<'_>]) {
    let mut counts = Vec::new();
    let len = split(entries.iter().map(|e| e.name), |count| counts.push(count));
    let start = out.len();
    out.resize(start + len, 0);
    let mut rest = entries;
    for (i, count) in counts.into_iter().enumerate() {
        let (block, later) = rest.split_at(count);
        rest = later;
        let at = start + i * BLOCK_LEN;
        let mut name_at = ENTRY_LEN * count;
        for (i, entry) in block.iter().enumerate() {
            Put::new(out, at + ENTRY_LEN * i).u64(entry.nid).u16(name_at as u16).bytes(&[entry.kind, 0]);
            Put::new(out, at + name_at).bytes(entry.name);
            name_at += entry.name.len();
        }
    }
}

/// The entries of one block, not more than which may be checked without looking at others.
pub(super) fn decode<'a>(block: &'a [u8], mut each: impl FnMut(Dirent<'a>) -> Result<()>) -> Result<()> {
    let damaged = || bad("a damaged directory");
    let name_at = |i: usize| {
        let entry = block.get(i * ENTRY_LEN..(i + 1) * ENTRY_LEN);
        entry.map(|entry| usize::from(u16_at(entry, 8))).ok_or_else(damaged)
    };
    let first = name_at(0)?;
    if first == 0 || first % ENTRY_LEN != 0 || first > block.len() {
        return Err(damaged());
    }
    let count = first / ENTRY_LEN;
    for i in 0..count {
        let end = if i + 1 < count { name_at(i + 1)? } else { block.len() };
        let mut name = block.get(name_at(i)?..end).ok_or_else(damaged)?;
        if i + 1 == count {
            // What is left of the block after the last name is zeros.
            name = name.split(|&b| b == 0).next().unwrap_or_default();
        }
        if name.is_empty() || name.len() > NAME_MAX || name.iter().any(|b| matches!(b, 0 | b'/')) {
            return Err(damaged());
        }
        let entry = &block[i * ENTRY_LEN..];
        each(Dirent { name, nid: u64_at(entry, 0), kind: entry[10] })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn come_back(names in proptest::collection::btree_set("[a-z.]{1,255}", 1..200)) {
            let entry = |(i, name): (usize, &'static [u8])| Dirent { name, nid: i as u64 * 977, kind: (i % 8) as u8 };
            let names: Vec<&'static [u8]> = names.into_iter().map(|n| &*n.into_bytes().leak()).collect();
            let entries: Vec<_> = names.iter().copied().enumerate().map(entry).collect();
            let mut bytes = Vec::new();
            encode(&mut bytes, &entries);
            prop_assert_eq!(bytes.len(), len(names.iter().copied()));
            let mut back = Vec::new();
            for block in bytes.chunks(BLOCK_LEN) {
                decode(block, |e| { back.push(e); Ok(()) }).expect("sound");
            }
            prop_assert_eq!(back, entries);
        }

        #[test]
        fn any_bytes_are_taken(block in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&block, |e| { assert!(!e.name.is_empty()); Ok(()) });
        }
    }
}
