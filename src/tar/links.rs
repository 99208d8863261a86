//! The verdicts on hard links that need the entries before them.
//!
//! A hard link to a directory of its own layer can never be made, and a target whose parents pass through a symlink of
//! its own layer names different files for different readers (lexical, resolved, resolved inside the root). Both are
//! refused on sight. Whether a target exists at all is not decided here: it may be in a lower layer.
//!
//! A hard link under a relative name may have an absolute target, which means the image's root. Readers that take it
//! for the host's root make a link to a file of the host; a later entry of the same path then writes into that file
//! where the reader does not remove the link first (CVE-2018-20990). Such a later entry is refused: no builder writes
//! one.
//!
//! Memory is bounded by remembering only a 64-bit hash of each path that is a directory, a symlink or such a hard link:
//! 10 million of them take 151 MB. The hash is keyed at random, so nobody can prepare collisions; at 10 million paths
//! the chance that one false verdict ever appears in a layer of 10 million hard links is below 10^-4. The set is split
//! in shards that grow one at a time, so growth needs no second copy of everything.

use crate::error::{Error, Result};
use crate::format::entry::{Entry, EntryKind};
use std::collections::HashSet;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};

/// With 256 shards, one that doubles holds 1/256 of the paths twice.
const SHARD_BITS: u32 = 8;

/// Set in the hash of a symlink and cleared in that of a directory. Neither the shard nor the slot depends on it.
const SYMLINK: u64 = 1 << 48;

/// Set in the hash of a hard link with an absolute target under a relative name.
const OUTWARD: u64 = 1 << 49;

/// What the layer said so far about paths that matter to hard links. Of several entries of a path the last counts.
pub(crate) struct LinkCheck {
    key: RandomState,
    shards: Vec<HashSet<u64, BuildHasherDefault<Identity>>>,
}

impl LinkCheck {
    pub(crate) fn new() -> Self {
        Self { key: RandomState::new(), shards: vec![HashSet::default(); 1 << SHARD_BITS] }
    }

    /// Takes the next entry of the layer; an error refuses it.
    ///
    /// What lay below a directory that is replaced is not forgotten. That can only refuse a link to a path that is not
    /// there any more. `outward` tells a hard link with an absolute target under a relative name.
    pub(crate) fn entry(&mut self, entry: &Entry, outward: bool) -> Result<()> {
        if let EntryKind::Hardlink { target } = &entry.kind {
            self.check(target)?;
        }
        let mut hasher = self.key.build_hasher();
        entry.path.split(|&b| b == b'/').for_each(|component| absorb(&mut hasher, component));
        let hash = hasher.finish() & !(SYMLINK | OUTWARD);
        let shard = &mut self.shards[shard_of(hash)];
        if shard.contains(&(hash | OUTWARD)) {
            return Err(Error::invalid("an entry that replaces a hard link with an absolute target"));
        }
        if outward {
            shard.insert(hash | OUTWARD);
        }
        match entry.kind {
            EntryKind::Directory => {
                shard.remove(&(hash | SYMLINK));
                shard.insert(hash);
            }
            EntryKind::Symlink { .. } => {
                shard.remove(&hash);
                shard.insert(hash | SYMLINK);
            }
            _ if shard.is_empty() => {}
            _ => {
                shard.remove(&hash);
                shard.remove(&(hash | SYMLINK));
            }
        }
        Ok(())
    }

    /// One pass over the target: its parents have its prefixes as paths.
    fn check(&self, target: &[u8]) -> Result<()> {
        let mut hasher = self.key.build_hasher();
        let mut components = target.split(|&b| b == b'/').peekable();
        while let Some(component) = components.next() {
            absorb(&mut hasher, component);
            let hash = hasher.finish() & !(SYMLINK | OUTWARD);
            let shard = &self.shards[shard_of(hash)];
            if components.peek().is_some() {
                if shard.contains(&(hash | SYMLINK)) {
                    return Err(Error::invalid("a hard link whose target lies behind a symlink of this layer"));
                }
            } else if shard.contains(&hash) {
                return Err(Error::invalid("a hard link to a directory"));
            }
        }
        Ok(())
    }
}

fn absorb(hasher: &mut impl Hasher, component: &[u8]) {
    hasher.write(component);
    hasher.write_u8(b'/');
}

/// From bits that neither the slot (low) nor the tag (top) of the hash table is made of.
fn shard_of(hash: u64) -> usize {
    (hash >> 40) as usize & ((1 << SHARD_BITS) - 1)
}

/// The set's members are hashes already.
#[derive(Clone, Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only u64 is hashed");
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::entry::Time;

    fn entry(path: &str, kind: EntryKind) -> Entry {
        let path = path.as_bytes().to_vec();
        Entry { path, kind, mode: 0, uid: 0, gid: 0, mtime: Time::default(), xattrs: vec![] }
    }

    fn link(target: &str) -> Entry {
        entry("link", EntryKind::Hardlink { target: target.into() })
    }

    fn symlink(path: &str) -> Entry {
        entry(path, EntryKind::Symlink { target: b"x".to_vec() })
    }

    fn last_verdict(entries: &[Entry]) -> bool {
        let mut check = LinkCheck::new();
        let (last, before) = entries.split_last().unwrap();
        before.iter().for_each(|e| check.entry(e, false).unwrap());
        check.entry(last, false).is_ok()
    }

    #[test]
    fn refuses_directories_and_targets_behind_symlinks() {
        let directory = |path| entry(path, EntryKind::Directory);
        assert!(last_verdict(&[link("a/b")]));
        assert!(!last_verdict(&[directory("a/b"), link("a/b")]));
        assert!(last_verdict(&[directory("a"), link("a/b")]));
        assert!(!last_verdict(&[symlink("a/b"), link("a/b/c/d")]));
        assert!(last_verdict(&[symlink("a/b"), link("a/b")]), "a link to the symlink itself");
        assert!(last_verdict(&[symlink("a/b"), link("a/bc/d")]));
    }

    #[test]
    fn the_last_entry_of_a_path_counts() {
        let directory = |path| entry(path, EntryKind::Directory);
        assert!(last_verdict(&[directory("a"), entry("a", EntryKind::Fifo), link("a")]));
        assert!(last_verdict(&[directory("a"), symlink("a"), link("a")]));
        assert!(last_verdict(&[symlink("a"), directory("a"), link("a/b")]));
        assert!(last_verdict(&[symlink("a"), entry("a", EntryKind::Fifo), link("a/b")]));
    }

    #[test]
    fn a_link_to_an_absolute_target_is_not_replaced() {
        for second in [entry("link", EntryKind::Fifo), entry("link", EntryKind::Directory), symlink("link"), link("b")]
        {
            let mut check = LinkCheck::new();
            check.entry(&link("a"), true).unwrap();
            check.entry(&entry("other", EntryKind::Fifo), false).unwrap();
            assert!(check.entry(&second, false).is_err(), "{second:?}");
            let mut check = LinkCheck::new();
            check.entry(&link("a"), false).unwrap();
            assert!(check.entry(&second, false).is_ok(), "{second:?}");
        }
        let mut check = LinkCheck::new();
        check.entry(&link("a"), true).unwrap();
        assert!(check.entry(&entry("again", EntryKind::Hardlink { target: b"link".to_vec() }), true).is_ok());
    }

    #[test]
    fn ten_million_directories_fit() {
        // hashbrown: powers of two of slots at most 7/8 full, 9 bytes each; see the module doc.
        let per_shard = 10_000_000u64.div_ceil(1 << SHARD_BITS);
        let shard: HashSet<u64> = (0..per_shard).collect();
        let slots = (shard.capacity() * 8 / 7).next_power_of_two();
        assert!((slots * 9) << SHARD_BITS <= 151_000_000, "{slots} slots in a shard");
        let mut shards = LinkCheck::new();
        for i in 0..100_000 {
            shards.entry(&entry(&format!("d{i}"), EntryKind::Directory), false).unwrap();
        }
        let mean = 100_000 >> SHARD_BITS;
        assert!(shards.shards.iter().all(|s| (mean / 2..mean * 2).contains(&s.len())), "uneven shards");
    }
}
