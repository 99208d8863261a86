//! What the entries of a layer take in memory once they are read, beside a fixed share of each.

use crate::error::{Error, Result};
use crate::format::entry::{DataRange, Entry, EntryKind};

/// What each entry has free: a long path and a capability or a label, as real layers have them.
const FREE: u64 = 256;
/// What an extended attribute takes beside its name and value.
const XATTR: u64 = 64;

/// Entries and their bytes so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Account {
    entries: u64,
    bytes: u64,
}

impl Account {
    /// Entries that were added.
    pub(crate) fn entries(&self) -> u64 {
        self.entries
    }

    /// Adds an entry; together they may have `most` bytes more than each has free.
    ///
    /// # Errors
    /// `LimitExceeded`.
    pub(crate) fn add(&mut self, entry: &Entry, most: u64) -> Result<()> {
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(bytes(entry));
        let most = most.saturating_add(FREE.saturating_mul(self.entries));
        if self.bytes > most {
            let message = "too many bytes of paths, link targets, extended attributes and sparse maps";
            return Err(Error::limit(message, most, self.bytes));
        }
        Ok(())
    }
}

fn bytes(entry: &Entry) -> u64 {
    let kind = match &entry.kind {
        EntryKind::Symlink { target } | EntryKind::Hardlink { target } => target.len(),
        EntryKind::File { sparse: Some(ranges), .. } => ranges.len() * size_of::<DataRange>(),
        _ => 0,
    };
    let xattrs = entry.xattrs.iter().map(|x| (x.name.len() + x.value.len()) as u64 + XATTR);
    (entry.path.len() + kind) as u64 + xattrs.sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::format::entry::{Time, Xattr};

    fn entry(path: &str, kind: EntryKind, xattrs: Vec<Xattr>) -> Entry {
        Entry { path: path.into(), kind, mode: 0o644, uid: 0, gid: 0, mtime: Time::default(), xattrs }
    }

    #[test]
    fn everything_of_variable_size_counts() {
        let (range, xattr) =
            (DataRange { offset: 0, len: 1 }, Xattr { name: b"user.a".to_vec(), value: b"12345".to_vec() });
        for (counted, entry) in [
            (3, entry("a/b", EntryKind::Fifo, vec![])),
            (5, entry("a", EntryKind::Symlink { target: b"1234".to_vec() }, vec![])),
            (5, entry("a", EntryKind::Hardlink { target: b"1234".to_vec() }, vec![])),
            (1, entry("a", EntryKind::File { size: 9, sparse: None }, vec![])),
            (33, entry("a", EntryKind::File { size: 9, sparse: Some(vec![range; 2]) }, vec![])),
            (151, entry("a", EntryKind::Directory, vec![xattr; 2])),
        ] {
            assert_eq!(bytes(&entry), counted, "{entry:?}");
        }
    }

    #[test]
    fn small_entries_never_reach_the_limit_and_large_ones_share_it() {
        let sized = |len: usize| entry("a", EntryKind::Symlink { target: vec![b't'; len - 1] }, vec![]);
        let mut account = Account::default();
        assert!((0..100).all(|_| account.add(&sized(256), 0).is_ok()));
        account.add(&sized(356), 100).unwrap();
        assert_eq!(account.add(&sized(257), 100).unwrap_err().kind(), ErrorKind::LimitExceeded);
    }
}
