//! PAX extended headers: `<length> <key>=<value>\n` records, and the ones that mean something here.
//!
//! The length is decimal and counts the whole record. Keys are judged as in Go's `archive/tar`: an empty value deletes
//! the key (but an empty xattr is an xattr: containerd and Docker set it, and PAX has no other way to write one), of
//! equal keys the last counts, unknown keys are ignored. GNU.sparse.* is only collected; `sparse.rs` judges it.

use super::sparse::Map;
use super::xattr;
use crate::error::{Error, ErrorKind, Result};
use crate::format::entry::{Time, Xattr};
use crate::limits::Limits;
use std::ops::Range;

/// Keys whose values an entry is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Path,
    Linkpath,
    Size,
    Uid,
    Gid,
    Mtime,
    SparseMajor,
    SparseMinor,
    SparseName,
    SparseRealsize,
    SparseSize,
    SparseNumblocks,
    SparseMap,
}

const KEYS: [(&[u8], Key); 13] = [
    (b"path", Key::Path),
    (b"linkpath", Key::Linkpath),
    (b"size", Key::Size),
    (b"uid", Key::Uid),
    (b"gid", Key::Gid),
    (b"mtime", Key::Mtime),
    (b"GNU.sparse.major", Key::SparseMajor),
    (b"GNU.sparse.minor", Key::SparseMinor),
    (b"GNU.sparse.name", Key::SparseName),
    (b"GNU.sparse.realsize", Key::SparseRealsize),
    (b"GNU.sparse.size", Key::SparseSize),
    (b"GNU.sparse.numblocks", Key::SparseNumblocks),
    (b"GNU.sparse.map", Key::SparseMap),
];

/// Keys of a global header that change no entry here.
const GLOBAL: [&[u8]; 8] =
    [b"comment", b"atime", b"ctime", b"uname", b"gname", b"SCHILY.archtype", b"SCHILY.release", b"GNU.volume.label"];

/// Vendors whose keys some tar reader applies to entries, and the two namespaces that POSIX keeps for itself.
const APPLIED: [&[u8]; 7] = [b"GNU", b"SCHILY", b"LIBARCHIVE", b"RHT", b"SUN", b"realtime", b"security"];

/// One extended header of type `x`. The buffers are reused from entry to entry.
#[derive(Default)]
pub(crate) struct Pax {
    /// The header's bytes; `values` point into it.
    pub(crate) body: Vec<u8>,
    values: [Option<Range<usize>>; KEYS.len()],
    /// Which keys have a record, one with an empty value included.
    named: [bool; KEYS.len()],
    xattrs: xattr::Collector,
    /// The map of sparse format 0.0, which is spread over repeated records.
    pub(crate) spread: SpreadMap,
}

/// `GNU.sparse.offset` and `GNU.sparse.numbytes`, which must alternate.
#[derive(Default)]
pub(crate) struct SpreadMap {
    pub(crate) map: Map,
    offset: Option<u64>,
}

impl Pax {
    pub(crate) fn clear(&mut self) {
        self.body.clear();
        self.values = Default::default();
        self.named = Default::default();
        self.xattrs.clear();
        self.spread = SpreadMap::default();
    }

    /// Reads the records of `body`.
    pub(crate) fn parse(&mut self, limits: &Limits) -> Result<()> {
        let mut at = 0;
        while at < self.body.len() {
            let record = Record::parse(&self.body, at)?;
            at = record.end;
            let (key, value) = (&self.body[record.key.clone()], &self.body[record.value.clone()]);
            if let Some((_, known)) = KEYS.iter().find(|(name, _)| *name == key) {
                let textual = matches!(known, Key::Path | Key::Linkpath | Key::SparseName);
                if textual && value.contains(&0) {
                    return Err(Error::invalid(format!("PAX {} with a NUL byte", key.escape_ascii())));
                }
                if value.is_empty() && *known as usize >= Key::SparseMajor as usize {
                    // GNU tar and libarchive take the empty value, Go takes none.
                    return Err(Error::invalid(format!("PAX {} without a value", key.escape_ascii())));
                }
                self.named[*known as usize] = true;
                self.values[*known as usize] = (!value.is_empty()).then_some(record.value);
            } else if !self.xattrs.record(key, value)? {
                self.spread.record(key, value, limits)?;
            }
        }
        self.spread.finish()
    }

    /// The value of `key`, if it has one.
    pub(crate) fn get(&self, key: Key) -> Option<&[u8]> {
        self.values[key as usize].clone().map(|range| &self.body[range])
    }

    /// Whether there is a record of `key`, even one that says nothing.
    pub(crate) fn names(&self, key: Key) -> bool {
        self.named[key as usize]
    }

    /// The value of `key` as a number, which may have a sign as in Go.
    pub(crate) fn integer(&self, key: Key) -> Result<Option<i64>> {
        self.get(key).map(|value| integer(value).ok_or_else(|| bad(key, value))).transpose()
    }

    pub(crate) fn mtime(&self) -> Result<Option<Time>> {
        self.get(Key::Mtime).map(|value| time(value).ok_or_else(|| bad(Key::Mtime, value))).transpose()
    }

    /// The attributes, once.
    pub(crate) fn take_xattrs(&mut self) -> Result<Vec<Xattr>> {
        self.xattrs.finish()
    }

    /// Whether any record speaks of a sparse file.
    pub(crate) fn mentions_sparse(&self) -> bool {
        self.spread.map.is_used() || self.values[Key::SparseMajor as usize..].iter().any(Option::is_some)
    }
}

impl SpreadMap {
    fn record(&mut self, key: &[u8], value: &[u8], limits: &Limits) -> Result<()> {
        let Some(name) = key.strip_prefix(b"GNU.sparse.") else { return forbid(key) };
        let number = || unsigned(value).ok_or_else(|| Error::invalid("a sparse map with a bad number"));
        match (name, self.offset) {
            (b"offset", None) => self.offset = Some(number()?),
            (b"numbytes", Some(offset)) => {
                self.map.push(offset, number()?, limits)?;
                self.offset = None;
            }
            (b"offset" | b"numbytes", _) => {
                return Err(Error::invalid("GNU.sparse.offset and GNU.sparse.numbytes do not alternate"));
            }
            _ => {
                let message = format!("PAX {} is of an unknown sparse format", key.escape_ascii());
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
        }
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        match self.offset {
            Some(_) => Err(Error::invalid("GNU.sparse.offset without GNU.sparse.numbytes")),
            None => Ok(()),
        }
    }
}

/// star's sparse files give the size of the file here, which libarchive applies and Go ignores.
fn forbid(key: &[u8]) -> Result<()> {
    match key {
        b"SCHILY.realsize" => Err(Error::new(ErrorKind::Unsupported, "a sparse file of star")),
        _ => Ok(()),
    }
}

/// Refuses a global header that would change entries for some reader.
///
/// POSIX applies the keys of a global header to every entry that follows. Go, and so every container engine, applies
/// none. Keys of the form `VENDOR.keyword` change nothing anywhere, unless the vendor is one that readers know.
pub(crate) fn check_global(body: &[u8]) -> Result<()> {
    let mut at = 0;
    while at < body.len() {
        let record = Record::parse(body, at)?;
        at = record.end;
        let key = &body[record.key];
        let vendor = key.iter().position(|&b| b == b'.').map(|dot| &key[..dot]);
        let ignored = vendor.is_some_and(|vendor| !vendor.is_empty() && !APPLIED.contains(&vendor));
        if !ignored && !GLOBAL.contains(&key) {
            let key = key[..key.len().min(64)].escape_ascii();
            return Err(Error::invalid(format!("global PAX header with {key}, which readers disagree on")));
        }
    }
    Ok(())
}

/// Where key and value of one record are, and where the next begins.
struct Record {
    key: Range<usize>,
    value: Range<usize>,
    end: usize,
}

impl Record {
    fn parse(body: &[u8], at: usize) -> Result<Self> {
        let bad = |why: &str| Error::invalid(format!("bad PAX record at {at}: {why}"));
        // No length that fits has more digits; without the bound a megabyte of them would be scanned per record.
        let digits = body[at..].iter().take(20).position(|&b| b == b' ').ok_or_else(|| bad("no length"))?;
        let length = unsigned(&body[at..at + digits]).and_then(|n| usize::try_from(n).ok());
        let length = length.ok_or_else(|| bad("the length is not a number"))?;
        if length > body.len() - at {
            return Err(bad("it is longer than the header"));
        }
        let (start, end) = (at + digits + 1, at + length);
        if end <= start || body[end - 1] != b'\n' {
            return Err(bad("it does not end in a newline"));
        }
        let pair = &body[start..end - 1];
        let equals = pair.iter().position(|&b| b == b'=').ok_or_else(|| bad("no '='"))?;
        let (key, value) = (start..start + equals, start + equals + 1..end - 1);
        if key.is_empty() || body[key.clone()].contains(&0) {
            return Err(bad("the key is empty or has a NUL byte"));
        }
        if matches!(&body[key.clone()], b"uname" | b"gname") && body[value.clone()].contains(&0) {
            return Err(bad("a NUL byte in the value"));
        }
        Ok(Self { key, value, end })
    }
}

fn bad(key: Key, value: &[u8]) -> Error {
    let name = KEYS[key as usize].0.escape_ascii();
    let value = value[..value.len().min(40)].escape_ascii();
    Error::invalid(format!("PAX {name} is not a number in range")).actual(value)
}

/// Digits only.
pub(crate) fn unsigned(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |value, &digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

fn integer(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `[-]seconds[.fraction]`; digits after the ninth are cut off, as in Go.
fn time(text: &[u8]) -> Option<Time> {
    let (whole, fraction) = match text.iter().position(|&b| b == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &b""[..]),
    };
    let secs = integer(whole)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0'));
    let nanos = digits.take(9).fold(0u32, |n, digit| n * 10 + u32::from(digit - b'0'));
    if whole[0] == b'-' && nanos > 0 {
        return Some(Time { secs: secs.checked_sub(1)?, nanos: 1_000_000_000 - nanos });
    }
    Some(Time { secs, nanos })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &[u8]) -> Result<Pax> {
        let mut pax = Pax { body: body.to_vec(), ..Pax::default() };
        pax.parse(&Limits::default()).map(|()| pax)
    }

    #[test]
    fn keys_index_their_table() {
        for (i, (_, key)) in KEYS.iter().enumerate() {
            assert_eq!(*key as usize, i);
        }
    }

    #[test]
    fn last_record_wins_and_empty_deletes() {
        let pax = parse(b"9 path=a\n9 path=b\n12 uid=1000\n7 uid=\n13 comment==\n").unwrap();
        assert_eq!((pax.get(Key::Path), pax.get(Key::Uid)), (Some(&b"b"[..]), None));
    }

    #[test]
    fn records_are_strict() {
        assert!(parse(b"").is_ok());
        assert!(parse(b"9 path=a\n").is_ok());
        assert!(parse(b"009 a=b\n").is_err());
        for bad in [
            &b"0 path=a\n"[..],
            b"30 path=abc",
            b"6 abc\n",
            b"11 path=a\n",
            b"8 path=a\n",
            b"9 path=a ",
            b"-9 path=a\n",
            b"+9 path=a\n",
            b" path=a\n",
            b"5 =a\n",
            b"10 pa\0h=a\n",
            b"12 path=a\0b\n",
            b"13 uname=a\0b\n",
            b"9 path=a\n\0",
            b"99999999999999999999 path=a\n",
            b"11111111111111111111111111111111111111",
        ] {
            assert!(parse(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn times_have_fractions_and_signs() {
        let of = |text: &str| time(text.as_bytes()).map(|t| (t.secs, t.nanos));
        assert_eq!(of("12"), Some((12, 0)));
        assert_eq!(of("12."), Some((12, 0)));
        assert_eq!(of("-1.5"), Some((-2, 500_000_000)));
        assert_eq!(of("-0.25"), Some((-1, 750_000_000)));
        assert_eq!(of("1.0000000019"), Some((1, 1)));
        for bad in ["", ".5", "nan", "1e308", "1.-5", "1.5x", " 1", "0x10", "9223372036854775808", "-"] {
            assert_eq!(of(bad), None, "{bad}");
        }
        assert_eq!(of("-9223372036854775808.5"), None);
    }

    fn global(key: &str) -> Result<()> {
        let rest = key.len() + " =1\n".len();
        let digits = if rest + 1 < 10 { 1 } else { 2 };
        check_global(format!("{} {key}=1\n", rest + digits).as_bytes())
    }

    #[test]
    fn global_headers_change_no_entry() {
        for key in
            ["comment", "atime", "GNU.volume.label", "VENDOR.keyword", "ACME.build.id", "APK-TOOLS.checksum.SHA1"]
        {
            assert!(global(key).is_ok(), "{key}");
        }
        for key in [
            "path",
            "linkpath",
            "size",
            "mtime",
            "uid",
            "gid",
            "hdrcharset",
            "unknown",
            ".keyword",
            "SCHILY.xattr.user.a",
            "SCHILY.realsize",
            "LIBARCHIVE.xattr.user.a",
            "RHT.security.selinux",
            "SUN.holesdata",
            "GNU.sparse.major",
            "GNU.volume.filename",
            "security.x",
        ] {
            let e = global(key).unwrap_err();
            assert!(e.message().contains(key), "{key}: {e}");
        }
        let both = [&b"16 ACME.id=1\n"[..], b"9 path=a\n"].concat();
        assert!(check_global(&both[1..]).is_err(), "a harmless key does not hide another");
    }

    #[test]
    fn an_empty_value_deletes_no_key_of_a_sparse_file() {
        for key in ["major", "minor", "name", "realsize", "size", "numblocks", "map"] {
            let rest = key.len() + " GNU.sparse.=\n".len();
            let body = format!("{} GNU.sparse.{key}=\n", rest + 2);
            assert!(parse(body.as_bytes()).err().unwrap().message().contains("without a value"), "{key}");
        }
        let deleted = parse(b"8 path=\n").unwrap();
        assert!(deleted.names(Key::Path) && deleted.get(Key::Path).is_none());
    }

    #[test]
    fn spread_maps_alternate() {
        assert!(parse(b"23 GNU.sparse.offset=0\n25 GNU.sparse.numbytes=1\n").unwrap().mentions_sparse());
        assert!(parse(b"23 GNU.sparse.offset=0\n").is_err());
        assert!(parse(b"25 GNU.sparse.numbytes=1\n").is_err());
        assert!(parse(b"20 GNU.sparse.xxx=1\n").is_err());
    }
}
