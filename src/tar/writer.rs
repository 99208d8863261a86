//! The deterministic writer of new layers: the same entries give the same bytes, on every machine and in every version.
//!
//! An entry is one ustar header if that can say everything, else a PAX header before it holds what does not fit, its
//! records sorted by key. Names of users and groups are not written. Sparse files are GNU.sparse 1.0; an xattr whose
//! name has a `=`, which would end a PAX key, is written in libarchive's encoding. What [`super::Parser`] would refuse
//! is not written, and what it reads back is the entry that was given.

use super::account::Account;
use super::header::{BLOCK, Block, ZERO};
use super::{member, xattr};
use crate::error::{Error, Result};
use crate::format::base64;
use crate::format::entry::{DataRange, Entry, EntryKind, Time};
use crate::limits::Limits;
use std::io::Write;

const NAME: usize = 100;
const PREFIX: usize = 155;
/// The largest octal numbers of the 8 and 12 byte fields, which end in NUL.
const MAX_8: u64 = (1 << 21) - 1;
const MAX_12: u64 = (1 << 33) - 1;

/// Writes one tar to `W`.
pub struct Writer<W> {
    out: W,
    limits: Limits,
    account: Account,
    /// Content the last entry still owes, and the padding after it.
    owed: u64,
    padding: usize,
}

/// PAX records of one entry.
#[derive(Default)]
struct Records(Vec<(Vec<u8>, Vec<u8>)>);

/// What the ustar header of an entry says.
struct Ustar<'a> {
    kind: u8,
    prefix: &'a [u8],
    name: &'a [u8],
    link: &'a [u8],
    mode: u64,
    uid: u64,
    gid: u64,
    size: u64,
    mtime: u64,
    device: (u64, u64),
}

impl<W: Write> Writer<W> {
    /// Writes a tar to `out`, refusing entries that `limits` would refuse on the way in.
    pub fn new(out: W, limits: &Limits) -> Self {
        Self { out, limits: limits.clone(), account: Account::default(), owed: 0, padding: 0 }
    }

    /// Writes the headers of `entry`; `entry.kind.stored_len()` bytes of content must follow.
    pub fn entry(&mut self, entry: &Entry) -> Result<()> {
        self.write_entry(entry).map_err(|e| e.subject(format!("entry \"{}\"", entry.path.escape_ascii())))
    }

    fn write_entry(&mut self, entry: &Entry) -> Result<()> {
        self.close()?;
        member::check(entry, &self.limits)?;
        self.account.add(entry, self.limits.attributes)?;
        let mut records = Records::default();
        let map = sparse_map(&entry.kind);
        let stored = entry.kind.stored_len();
        let size = stored + map.len() as u64;
        let name = full_name(entry);
        let header = ustar(entry, &name, size, &mut records);
        // The path of a sparse file is GNU.sparse.name; a reader that knows no sparse files makes this one.
        let shown = [b"GNUSparseFile.0/", entry.split_path().1].concat();
        let header = if map.is_empty() { header } else { Ustar { prefix: b"", name: cut(&shown), ..header } };
        self.headers(entry, &records.sorted(), &header)?;
        self.raw(&map)?;
        self.owed = stored;
        self.padding = (stored.next_multiple_of(BLOCK as u64) - stored) as usize;
        Ok(())
    }

    /// Writes the next bytes of the last entry's content.
    pub fn content(&mut self, bytes: &[u8]) -> Result<()> {
        let left = self.owed.checked_sub(bytes.len() as u64);
        self.owed = left.ok_or_else(|| Error::invalid("more content than the entry has"))?;
        self.raw(bytes)
    }

    /// The output so far.
    pub(crate) fn output(&mut self) -> &mut W {
        &mut self.out
    }

    /// The caller writes this much of the last entry's content itself, past this writer.
    pub(crate) fn content_elsewhere(&mut self, len: u64) -> Result<()> {
        let left = self.owed.checked_sub(len);
        self.owed = left.ok_or_else(|| Error::invalid("more content than the entry has"))?;
        Ok(())
    }

    /// Writes the end marker and gives back the output, which is not flushed.
    pub fn finish(mut self) -> Result<W> {
        self.close()?;
        self.raw(&[0; 2 * BLOCK])?;
        Ok(self.out)
    }

    /// Ends the last entry.
    fn close(&mut self) -> Result<()> {
        if self.owed > 0 {
            return Err(Error::invalid("less content than the last entry has").actual(format!("{} missing", self.owed)));
        }
        let padding = std::mem::take(&mut self.padding);
        self.raw(&ZERO[..padding])
    }

    fn headers(&mut self, entry: &Entry, records: &[u8], header: &Ustar<'_>) -> Result<()> {
        if !records.is_empty() {
            let size = records.len() as u64;
            if size > self.limits.extension {
                return Err(Error::limit("the PAX header would be too long", self.limits.extension, size));
            }
            let name = [b"PaxHeaders/", entry.split_path().1].concat();
            let pax = Ustar { kind: b'x', prefix: b"", name: cut(&name), link: b"", mode: 0o644, size, ..Ustar::ZERO };
            self.raw(&pax.block())?;
            self.raw(records)?;
            self.raw(&ZERO[..records.len().next_multiple_of(BLOCK) - records.len()])?;
        }
        self.raw(&header.block())
    }

    fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|e| Error::from_io("write tar", e))
    }
}

/// The name in the form tars use: directories end in `/`, and the root is `./`.
fn full_name(entry: &Entry) -> Vec<u8> {
    let mut name = if entry.path.is_empty() { b".".to_vec() } else { entry.path.clone() };
    if entry.kind == EntryKind::Directory {
        name.push(b'/');
    }
    name
}

/// Fills a header, and `records` with what does not fit.
fn ustar<'a>(entry: &'a Entry, name: &'a [u8], size: u64, records: &mut Records) -> Ustar<'a> {
    let (kind, link, device) = match &entry.kind {
        EntryKind::File { .. } => (b'0', &b""[..], (0, 0)),
        EntryKind::Hardlink { target } => (b'1', &target[..], (0, 0)),
        EntryKind::Symlink { target } => (b'2', &target[..], (0, 0)),
        EntryKind::CharDevice { major, minor } => (b'3', &b""[..], (u64::from(*major), u64::from(*minor))),
        EntryKind::BlockDevice { major, minor } => (b'4', &b""[..], (u64::from(*major), u64::from(*minor))),
        EntryKind::Directory => (b'5', &b""[..], (0, 0)),
        EntryKind::Fifo => (b'6', &b""[..], (0, 0)),
    };
    let (mut prefix, mut short) = (&b""[..], cut(name));
    if let EntryKind::File { size, sparse: Some(_) } = &entry.kind {
        records.add(b"GNU.sparse.major", b"1");
        records.add(b"GNU.sparse.minor", b"0");
        records.text(b"GNU.sparse.name", name);
        records.add(b"GNU.sparse.realsize", size.to_string());
    } else if let Some(parts) = split(name) {
        (prefix, short) = parts;
    } else {
        records.text(b"path", name);
    }
    if link.len() > NAME {
        records.text(b"linkpath", link);
    }
    let mut number = |key: &[u8], value: u64, max: u64| {
        if value > max {
            records.add(key, value.to_string());
        }
        // Readers without PAX get the largest number rather than 0, which is root.
        value.min(max)
    };
    let (uid, gid) = (number(b"uid", entry.uid.into(), MAX_8), number(b"gid", entry.gid.into(), MAX_8));
    let size = number(b"size", size, MAX_12);
    let seconds = u64::try_from(entry.mtime.secs).unwrap_or(0).min(MAX_12);
    if entry.mtime != (Time { secs: seconds as i64, nanos: 0 }) {
        records.add(b"mtime", decimal(entry.mtime));
    }
    for attribute in &entry.xattrs {
        records.xattr(&attribute.name, &attribute.value);
    }
    Ustar {
        kind,
        prefix,
        name: short,
        link: cut(link),
        mode: entry.mode.into(),
        uid,
        gid,
        size,
        mtime: seconds,
        device,
    }
}

/// Splits a name into prefix and name at the last slash that allows it, or `None` if it needs PAX.
fn split(name: &[u8]) -> Option<(&[u8], &[u8])> {
    if name.len() <= NAME {
        return Some((b"", name));
    }
    // The slash at the end of a directory's name must stay with the name.
    let searched = &name[..(PREFIX + 1).min(name.len() - 1)];
    let slash = searched.iter().rposition(|&b| b == b'/')?;
    let (prefix, rest) = (&name[..slash], &name[slash + 1..]);
    (rest.len() <= NAME).then_some((prefix, rest))
}

/// What fits of a name that is given in full elsewhere.
fn cut(name: &[u8]) -> &[u8] {
    &name[..name.len().min(NAME)]
}

/// The map of sparse format 1.0, whole blocks; empty for what is not sparse.
fn sparse_map(kind: &EntryKind) -> Vec<u8> {
    let EntryKind::File { size, sparse: Some(ranges) } = kind else { return Vec::new() };
    let mut ranges = ranges.clone();
    if ranges.last().is_none_or(|last| last.offset + last.len < *size) {
        // GNU tar makes a hole at the end from an empty range there, not from the size.
        ranges.push(DataRange { offset: *size, len: 0 });
    }
    let mut map = format!("{}\n", ranges.len()).into_bytes();
    for range in &ranges {
        map.extend_from_slice(format!("{}\n{}\n", range.offset, range.len).as_bytes());
    }
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

/// Seconds as PAX writes them: sign, whole part and fraction without trailing zeros.
fn decimal(time: Time) -> String {
    let (sign, whole, nanos) = match (time.secs, time.nanos) {
        (secs, 0) => return secs.to_string(),
        (secs, nanos) if secs < 0 => ("-", -(secs + 1), 1_000_000_000 - nanos),
        (secs, nanos) => ("", secs, nanos),
    };
    let digits = format!("{nanos:09}");
    format!("{sign}{whole}.{}", digits.trim_end_matches('0'))
}

impl Records {
    fn add(&mut self, key: &[u8], value: impl AsRef<[u8]>) {
        self.0.push((key.to_vec(), value.as_ref().to_vec()));
    }

    /// A record that POSIX wants in UTF-8 unless the header says it is not.
    fn text(&mut self, key: &[u8], value: &[u8]) {
        if std::str::from_utf8(value).is_err() && !self.0.iter().any(|(key, _)| key == b"hdrcharset") {
            self.add(b"hdrcharset", b"BINARY");
        }
        self.add(key, value);
    }

    fn xattr(&mut self, name: &[u8], value: &[u8]) {
        if name.contains(&b'=') {
            let key = [xattr::LIBARCHIVE, &xattr::percent_encode(name)].concat();
            self.add(&key, base64::encode_unpadded(value));
        } else {
            self.add(&[xattr::SCHILY, name].concat(), value);
        }
    }

    /// The body of the PAX header.
    fn sorted(mut self) -> Vec<u8> {
        self.0.sort();
        let mut body = Vec::new();
        for (key, value) in &self.0 {
            let rest = key.len() + value.len() + b" =\n".len();
            // The length counts its own digits, which may make it one digit longer.
            let digits = |n: usize| n.to_string().len();
            let mut length = rest + digits(rest);
            length = rest + digits(length);
            body.extend_from_slice(format!("{length} ").as_bytes());
            body.extend_from_slice(key);
            body.push(b'=');
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        body
    }
}

impl Ustar<'_> {
    const ZERO: Self =
        Self { kind: 0, prefix: b"", name: b"", link: b"", mode: 0, uid: 0, gid: 0, size: 0, mtime: 0, device: (0, 0) };

    fn block(&self) -> Block {
        let mut block = ZERO;
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, self.name);
        for (at, value) in [(100, self.mode), (108, self.uid), (116, self.gid)] {
            put(at, format!("{value:07o}\0").as_bytes());
        }
        for (at, value) in [(124, self.size), (136, self.mtime)] {
            put(at, format!("{value:011o}\0").as_bytes());
        }
        put(148, b"        ");
        put(156, &[self.kind]);
        put(157, self.link);
        put(257, b"ustar\x0000");
        for (at, value) in [(329, self.device.0), (337, self.device.1)] {
            put(at, format!("{value:07o}\0").as_bytes());
        }
        put(345, self.prefix);
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::entry::Xattr;
    use crate::tar::tests::entries;
    use proptest::prelude::*;

    fn written(entries: &[Entry]) -> Result<Vec<u8>> {
        let mut writer = Writer::new(Vec::new(), &Limits::default());
        for entry in entries {
            writer.entry(entry)?;
            writer.content(&vec![b'x'; entry.kind.stored_len() as usize])?;
        }
        writer.finish()
    }

    fn file(path: &str) -> Entry {
        let kind = EntryKind::File { size: 0, sparse: None };
        Entry { path: path.into(), kind, mode: 0o644, uid: 0, gid: 0, mtime: Time::default(), xattrs: vec![] }
    }

    fn path() -> impl Strategy<Value = Vec<u8>> {
        let byte = any::<u8>().prop_map(|b| if b == 0 || b == b'/' { b'_' } else { b });
        let short = proptest::collection::vec(byte.clone(), 1..20);
        let component = prop_oneof![9 => short, 1 => proptest::collection::vec(byte, 90..=255)];
        let named = |name: &Vec<u8>| !matches!(&name[..], b"." | b"..") && !name.starts_with(b".wh.");
        proptest::collection::vec(component.prop_filter("a name", named), 1..15).prop_map(|parts| parts.join(&b'/'))
    }

    fn sparse() -> impl Strategy<Value = EntryKind> {
        let gaps = proptest::collection::vec((0u64..10_000, 1u64..600), 0..70);
        (gaps, 0u64..1 << 36).prop_map(|(gaps, tail)| {
            let (mut ranges, mut end) = (Vec::new(), 0);
            for (gap, len) in gaps {
                ranges.push(DataRange { offset: end + gap, len });
                end += gap + len;
            }
            EntryKind::File { size: end + tail, sparse: Some(ranges) }
        })
    }

    fn kind() -> impl Strategy<Value = EntryKind> {
        prop_oneof![
            Just(EntryKind::Directory),
            (0u64..3000).prop_map(|size| EntryKind::File { size, sparse: None }),
            sparse(),
            path().prop_map(|target| EntryKind::Symlink { target }),
            path().prop_map(|target| EntryKind::Hardlink { target }),
            (1u32..1 << 12, 0u32..1 << 20).prop_map(|(major, minor)| EntryKind::CharDevice { major, minor }),
            (0u32..1 << 12, 0u32..1 << 20).prop_map(|(major, minor)| EntryKind::BlockDevice { major, minor }),
            Just(EntryKind::Fifo),
        ]
    }

    fn xattrs() -> impl Strategy<Value = Vec<Xattr>> {
        let rest = proptest::collection::vec(1u8..=255, 1..30);
        let space = prop_oneof![Just(&b"user."[..]), Just(&b"trusted."[..]), Just(&b"security."[..])];
        let name = (space, rest).prop_map(|(space, rest)| [space, &rest].concat());
        let value = proptest::collection::vec(any::<u8>(), 0..100);
        proptest::collection::btree_map(name, value, 0..5)
            .prop_map(|map| map.into_iter().map(|(name, value)| Xattr { name, value }).collect())
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let secs = prop_oneof![0i64..1 << 34, -62_135_596_800i64..=253_402_300_799, -3i64..3];
        let nanos = prop_oneof![Just(0u32), 0u32..1_000_000_000];
        let mtime = (secs, nanos).prop_map(|(secs, nanos)| Time { secs, nanos });
        let id = || prop_oneof![0u32..3000, 0u32..u32::MAX];
        (path(), kind(), 0u16..0o10000, id(), id(), mtime, xattrs())
            .prop_map(|(path, kind, mode, uid, gid, mtime, xattrs)| Entry { path, kind, mode, uid, gid, mtime, xattrs })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(given in proptest::collection::vec(entry(), 1..4)) {
            let check = |e: &Entry| member::check(e, &Limits::default()).is_ok();
            // Links between random entries of one layer may be refused; that is not the writer's.
            let given: Vec<_> = given.into_iter().filter(check).collect();
            let tar = written(&given).unwrap();
            prop_assert_eq!(tar.len() % BLOCK, 0);
            prop_assert_eq!(entries(&tar).unwrap(), given);
        }
    }

    #[test]
    fn plain_entries_are_plain_ustar() {
        let tar = written(&[file("a/b")]).unwrap();
        assert_eq!(tar.len(), 3 * BLOCK);
        let root = Entry { kind: EntryKind::Directory, ..file("") };
        let tar = written(std::slice::from_ref(&root)).unwrap();
        assert_eq!((&tar[..3], entries(&tar).unwrap()), (&b"./\0"[..], vec![root]));
    }

    #[test]
    fn names_split_where_they_can() {
        let (a, b) = ("p".repeat(155), "n".repeat(100));
        for (name, records) in [(format!("{a}/{b}"), 0), (format!("{a}p/{b}"), 1), (format!("{a}/{b}n"), 1)] {
            let tar = written(&[file(&name)]).unwrap();
            assert_eq!(tar.len(), (3 + 2 * records) * BLOCK, "{name}");
            assert_eq!(entries(&tar).unwrap()[0].path, name.as_bytes());
        }
        let directory = Entry { kind: EntryKind::Directory, ..file(&"d".repeat(100)) };
        assert_eq!(entries(&written(std::slice::from_ref(&directory)).unwrap()).unwrap(), [directory]);
    }

    #[test]
    fn a_hole_at_the_end_is_marked() {
        let ranges = vec![DataRange { offset: 8, len: 2 }];
        let map = |size| sparse_map(&EntryKind::File { size, sparse: Some(ranges.clone()) });
        assert!(map(10).starts_with(b"1\n8\n2\n\0"));
        assert!(map(11).starts_with(b"2\n8\n2\n11\n0\n\0"));
    }

    #[test]
    fn times_are_decimal() {
        let of = |secs, nanos| decimal(Time { secs, nanos });
        assert_eq!(of(-2, 500_000_000), "-1.5");
        assert_eq!(of(-1, 750_000_000), "-0.25");
        assert_eq!(of(1, 1), "1.000000001");
        assert_eq!(of(-3, 0), "-3");
    }

    #[test]
    fn what_the_parser_refuses_is_not_written() {
        let with = |change: fn(&mut Entry)| {
            let mut entry = file("a");
            change(&mut entry);
            written(&[entry]).map_err(|e| e.to_string())
        };
        assert!(with(|_| ()).is_ok());
        for bad in [
            (|e| e.path = b"a/../b".to_vec()) as fn(&mut Entry),
            |e| e.path = b"a/".to_vec(),
            |e| e.path.clear(),
            |e| e.mode = 0o10000,
            |e| e.uid = u32::MAX,
            |e| e.gid = u32::MAX,
            |e| e.mtime.nanos = 1_000_000_000,
            |e| e.mtime.secs = i64::MAX,
            |e| e.kind = EntryKind::CharDevice { major: 0, minor: 0 },
            |e| e.kind = EntryKind::Symlink { target: vec![] },
            |e| e.kind = EntryKind::Hardlink { target: b"a".to_vec() },
            |e| e.kind = EntryKind::File { size: 1, sparse: Some(vec![DataRange { offset: 1, len: 1 }]) },
            |e| e.kind = EntryKind::File { size: 1, sparse: Some(vec![DataRange { offset: 0, len: 0 }]) },
            |e| e.xattrs = vec![Xattr { name: b"com.apple".to_vec(), value: vec![] }],
            |e| e.xattrs = vec![Xattr { name: b"user.a".to_vec(), value: vec![] }; 2],
        ] {
            assert!(with(bad).is_err());
        }
    }

    #[test]
    fn refuses_more_attributes_than_are_read_back() {
        let xattr = Xattr { name: b"user.a".to_vec(), value: vec![0; 1000] };
        let mut writer = Writer::new(Vec::new(), &Limits::default().attributes(1000));
        writer.entry(&Entry { xattrs: vec![xattr.clone()], ..file("a") }).unwrap();
        let e = writer.entry(&Entry { xattrs: vec![xattr], ..file("b") }).unwrap_err();
        assert_eq!((e.kind(), e.subjects()), (crate::ErrorKind::LimitExceeded, &["entry \"b\"".to_owned()][..]));
    }

    #[test]
    fn content_must_be_as_long_as_promised() {
        let mut writer = Writer::new(Vec::new(), &Limits::default());
        writer.entry(&Entry { kind: EntryKind::File { size: 2, sparse: None }, ..file("a") }).unwrap();
        assert!(writer.content(b"xxx").is_err());
        writer.content(b"x").unwrap();
        assert!(writer.entry(&file("b")).is_err());
        assert!(writer.finish().is_err());
    }
}
