//! One member of a layer, as its tar describes it, in normal form.
//!
//! An [`Entry`] does not know other entries: whether a hard link's target exists or a parent is a symlink is decided
//! when layers are composed into a tree.

/// Seconds since 1970-01-01T00:00:00Z and nanoseconds after that second (so -1.5 s is `{ secs: -2, nanos: 500_000_000 }`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub secs: i64,
    /// 0..=999_999_999.
    pub nanos: u32,
}

impl Time {
    /// `2026-01-31T23:59:00Z`, without the fraction (RFC 3339; H. Hinnant, "chrono-compatible low-level date algorithms").
    pub fn to_rfc3339(&self) -> String {
        let (days, rest) = (self.secs.div_euclid(86_400), self.secs.rem_euclid(86_400));
        let z = days.saturating_add(719_468);
        let (era, doe) = (z.div_euclid(146_097), z.rem_euclid(146_097));
        let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        let mp = (5 * doy + 2) / 153;
        let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
        let year = yoe + era * 400 + i64::from(month <= 2);
        let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

/// A run of stored bytes at a logical offset of a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DataRange {
    /// Offset in the file.
    pub offset: u64,
    /// Bytes there; what no range covers reads as zero.
    pub len: u64,
}

/// An extended attribute.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Xattr {
    /// Full name with its namespace, for example `security.capability`.
    pub name: Vec<u8>,
    /// The value, any bytes.
    pub value: Vec<u8>,
}

/// What an entry is, with what only that type has.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Logical size in bytes.
        size: u64,
        /// For a sparse file where its stored bytes lie, ascending and disjoint; `None` for one without holes.
        sparse: Option<Vec<DataRange>>,
    },
    /// A symbolic link; the target is kept as it is.
    Symlink {
        /// The link's text.
        target: Vec<u8>,
    },
    /// Another name for an entry of this layer or of one below.
    Hardlink {
        /// Path of the other name, in the normal form of [`Entry::path`].
        target: Vec<u8>,
    },
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

impl EntryKind {
    /// Bytes of content the tar holds for this entry: the logical size less holes; 0 for all but files.
    pub fn stored_len(&self) -> u64 {
        match self {
            Self::File { sparse: Some(ranges), .. } => ranges.iter().map(|r| r.len).sum(),
            Self::File { size, sparse: None } => *size,
            _ => 0,
        }
    }
}

/// One member of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Components joined by `/`, without leading or trailing slash, `.` or `..`; empty for the root. Any bytes but NUL.
    pub path: Vec<u8>,
    /// Its type.
    pub kind: EntryKind,
    /// Permission bits, setuid, setgid and sticky (mask 07777).
    pub mode: u16,
    /// Owner; never `u32::MAX`.
    pub uid: u32,
    /// Group; never `u32::MAX`.
    pub gid: u32,
    /// Modification time.
    pub mtime: Time,
    /// Attributes the kernel can hold, sorted by name, names unique.
    pub xattrs: Vec<Xattr>,
}

/// What a `.wh.` name asks for (image-spec `layer.md`, "Whiteouts").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whiteout<'a> {
    /// Removes this name of lower layers from the directory.
    Remove(&'a [u8]),
    /// Hides everything lower layers have in the directory.
    Opaque,
}

impl Entry {
    /// Directory part and last component of the path.
    pub fn split_path(&self) -> (&[u8], &[u8]) {
        match self.path.iter().rposition(|&b| b == b'/') {
            Some(i) => (&self.path[..i], &self.path[i + 1..]),
            None => (b"", &self.path),
        }
    }

    /// Whether this entry is a whiteout, whatever its type.
    pub fn whiteout(&self) -> Option<Whiteout<'_>> {
        match self.split_path().1.strip_prefix(b".wh.")? {
            b".wh..opq" => Some(Whiteout::Opaque),
            name => Some(Whiteout::Remove(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(path: &str) -> Entry {
        let time = Time::default();
        let path = path.as_bytes().to_vec();
        Entry { path, kind: EntryKind::Fifo, mode: 0, uid: 0, gid: 0, mtime: time, xattrs: vec![] }
    }

    #[test]
    fn times_are_civil_utc() {
        let cases = [
            (0, "1970-01-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (-62_167_219_200, "0000-01-01T00:00:00Z"),
        ];
        for (secs, text) in cases {
            assert_eq!(Time { secs, nanos: 5 }.to_rfc3339(), text);
        }
    }

    #[test]
    fn recognises_whiteouts() {
        assert_eq!(named("a/.wh.b").whiteout(), Some(Whiteout::Remove(b"b")));
        assert_eq!(named(".wh..wh..opq").whiteout(), Some(Whiteout::Opaque));
        assert_eq!(named("a/.wh.b/c").whiteout(), None);
        assert_eq!(named("wh.x").whiteout(), None);
    }
}
