//! The parser against two other readers: of a tar that both accept they must say the same entries.
//!
//! One is the model of Go's `archive/tar` in `go.rs`, which is what containerd and Docker read layers with. It is
//! compared in all that an entry has. What Go's callers do is done here: paths are cleaned, attributes are the SCHILY
//! ones, a plain file at the root is passed over (here it is the root directory). Nothing is compared where a hard link
//! claims content, which Go takes for the next header.
//!
//! The other is the `tar` crate, compared in paths, kinds, sizes and contents. Most of what one of them refuses the other
//! may take. Where both accept and differ on purpose, nothing is compared:
//!
//! - PAX records with a key twice, no value or a line end in it: here the last counts, an empty value deletes the key and
//!   lengths rule; the crate takes the first, also if it is empty, and splits at line ends.
//! - Global PAX headers, which the crate lists as entries, and sparse files of PAX, which it does not know.
//! - Bodies of what has none here: links, directories, devices with a size in the header or a PAX record. The crate skips
//!   as many bytes.
//! - `x/` of an old-style file without content, which is a directory here.
//! - Extension headers without a magic, which the crate takes for files.
//! - A prefix in a header that the crate does not know as ustar, for GNU's magic or another version: it leaves it out.
//! - More than one NUL after a GNU long name, of which the crate takes all but the last for the name.
//! - Types the crate calls files: contiguous ones. Unknown types are refused here.
//! - What follows the end: the crate does not look at it, here it must be zeros.

use super::go::{self, GoEntry};
use super::grammar;
use super::ingest::repair_checksums;
use crate::error::Result;
use crate::format::entry::{Entry, EntryKind, Time, Xattr};
use crate::limits::Limits;
use crate::tar::{Parser, Sink};
use std::io::Read;

/// Most bytes of a content that are compared.
const COMPARED: u64 = 1 << 20;

/// What one of the two says of an entry.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    path: Vec<u8>,
    kind: Kind,
    /// Bytes, holes included; 0 for what is no file.
    size: u64,
    content: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
    Symlink(Vec<u8>),
    Hardlink(Vec<u8>),
    CharDevice,
    BlockDevice,
    Fifo,
}

/// Collects entries with their stored content.
#[derive(Default)]
struct Ours(Vec<(Entry, Vec<u8>)>);

impl Sink for Ours {
    fn segment(&mut self, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn entry(&mut self, entry: Entry) -> Result<()> {
        self.0.push((entry, vec![]));
        Ok(())
    }

    fn content(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some(last) = self.0.last_mut() {
            last.1.extend_from_slice(bytes);
        }
        Ok(())
    }
}

/// The first byte says what the rest is: a tar (0), a tar whose checksums are to be set right (1), or the choices that
/// make one by a grammar (2 and 3); of other bytes the two lowest bits count.
pub fn tar_differential(input: &[u8]) {
    let Some((seed, rest)) = input.split_first() else { return };
    match seed & 3 {
        0 => compare(rest),
        1 => compare(&repair_checksums(rest)),
        _ => compare(&grammar::tar(rest)),
    }
}

/// Whether this parser and Go's reader both accept `tar`, with at least one entry.
#[cfg(test)]
pub(super) fn accepted_by_both(tar: &[u8]) -> bool {
    let (mut parser, mut ours) = (Parser::new(&Limits::default()), Ours::default());
    let accepted = parser.push(tar, &mut ours).is_ok() && parser.finish().is_ok();
    accepted && go::read(tar).is_ok_and(|entries| !entries.is_empty())
}

fn compare(tar: &[u8]) {
    let (mut parser, mut ours) = (Parser::new(&Limits::default()), Ours::default());
    if parser.push(tar, &mut ours).is_err() || parser.finish().is_err() {
        return;
    }
    compare_with_go(tar, &ours.0);
    if peculiar(tar).unwrap_or(true) {
        return;
    }
    let Ok(theirs) = theirs(tar) else { return };
    let ours: Vec<Said> = ours.0.into_iter().filter_map(said).collect();
    assert_eq!(ours, theirs, "the crate's are the second");
}

/// An entry as both this parser and Go's callers have it.
#[derive(Debug, PartialEq, Eq)]
struct Whole {
    entry: Entry,
    /// Stored parts of a file at their offsets.
    data: Vec<(u64, Vec<u8>)>,
}

fn compare_with_go(tar: &[u8], ours: &[(Entry, Vec<u8>)]) {
    let Ok(theirs) = go::read(tar) else { return };
    if theirs.iter().any(|entry| entry.kind == b'1' && entry.size > 0) {
        return;
    }
    let ours: Vec<Whole> = ours.iter().map(|(entry, stored)| whole(entry.clone(), stored)).collect();
    let theirs: Vec<Whole> = theirs.into_iter().map(of_go).collect();
    assert_eq!(ours, theirs, "Go's are the second");
}

fn whole(mut entry: Entry, mut stored: &[u8]) -> Whole {
    // Go has no attribute with such a name: the PAX key would end there.
    entry.xattrs.retain(|xattr| !xattr.name.contains(&b'='));
    let mut data = Vec::new();
    if let EntryKind::File { size, sparse } = &mut entry.kind {
        let all = (*size > 0).then_some((0, *size));
        let ranges = sparse.take().map(|ranges| ranges.iter().map(|range| (range.offset, range.len)).collect());
        for (offset, len) in ranges.unwrap_or_else(|| Vec::from_iter(all)) {
            let (part, rest) = stored.split_at(len as usize);
            stored = rest;
            data.push((offset, part.to_vec()));
        }
    }
    Whole { entry, data }
}

/// What containerd makes of an entry of Go's reader.
fn of_go(go: GoEntry) -> Whole {
    let path = normal(&go.name);
    let (major, minor) = (go.device.0 as u32, go.device.1 as u32);
    let (kind, data) = match go.kind {
        b'1' => (EntryKind::Hardlink { target: normal(&go.link) }, vec![]),
        b'2' => (EntryKind::Symlink { target: go.link }, vec![]),
        b'3' => (EntryKind::CharDevice { major, minor }, vec![]),
        b'4' => (EntryKind::BlockDevice { major, minor }, vec![]),
        b'5' => (EntryKind::Directory, vec![]),
        b'6' => (EntryKind::Fifo, vec![]),
        _ if path.is_empty() => (EntryKind::Directory, vec![]),
        _ => (EntryKind::File { size: go.size as u64, sparse: None }, go.data),
    };
    let xattr = |(key, value): (Vec<u8>, Vec<u8>)| {
        let name = key.strip_prefix(b"SCHILY.xattr.")?.to_vec();
        let known = [&b"user."[..], b"trusted.", b"security.", b"system."];
        known.iter().any(|space| name.starts_with(space)).then_some(Xattr { name, value })
    };
    let entry = Entry {
        path,
        kind,
        mode: (go.mode & 0o7777) as u16,
        uid: go.uid as u32,
        gid: go.gid as u32,
        mtime: Time { secs: go.mtime.0, nanos: go.mtime.1 as u32 },
        xattrs: go.records.into_iter().filter_map(xattr).collect(),
    };
    Whole { entry, data }
}

/// An entry of this parser; `None` for a sparse file too large to write out.
fn said((entry, stored): (Entry, Vec<u8>)) -> Option<Said> {
    let Entry { path, kind, .. } = entry;
    let (kind, size, content) = match kind {
        EntryKind::Directory => (Kind::Directory, 0, vec![]),
        EntryKind::File { size, sparse: None } => (Kind::File, size, stored),
        EntryKind::File { size, sparse: Some(ranges) } if size <= COMPARED => {
            let (mut whole, mut at) = (vec![0; size as usize], 0);
            for range in ranges {
                let (start, len) = (range.offset as usize, range.len as usize);
                whole[start..start + len].copy_from_slice(&stored[at..at + len]);
                at += len;
            }
            (Kind::File, size, whole)
        }
        EntryKind::File { .. } => return None,
        EntryKind::Symlink { target } => (Kind::Symlink(target), 0, vec![]),
        EntryKind::Hardlink { target } => (Kind::Hardlink(target), 0, vec![]),
        EntryKind::CharDevice { .. } => (Kind::CharDevice, 0, vec![]),
        EntryKind::BlockDevice { .. } => (Kind::BlockDevice, 0, vec![]),
        EntryKind::Fifo => (Kind::Fifo, 0, vec![]),
    };
    Some(Said { path, kind, size, content })
}

/// A path in the normal form of [`Entry::path`].
fn normal(path: &[u8]) -> Vec<u8> {
    let names: Vec<&[u8]> = path.split(|&b| b == b'/').filter(|name| !matches!(*name, b"" | b".")).collect();
    names.join(&b'/')
}

fn theirs(tar: &[u8]) -> std::io::Result<Vec<Said>> {
    let mut all = Vec::new();
    for entry in tar::Archive::new(tar).entries()? {
        let mut entry = entry?;
        let (path, kind) = (entry.path_bytes().into_owned(), entry.header().entry_type());
        let target = entry.link_name_bytes().map(|link| link.into_owned()).unwrap_or_default();
        let kind = match kind {
            tar::EntryType::Directory => Kind::Directory,
            tar::EntryType::Symlink => Kind::Symlink(target),
            tar::EntryType::Link => Kind::Hardlink(normal(&target)),
            tar::EntryType::Char => Kind::CharDevice,
            tar::EntryType::Block => Kind::BlockDevice,
            tar::EntryType::Fifo => Kind::Fifo,
            _ => Kind::File,
        };
        let (mut size, mut content) = (0, vec![]);
        if kind == Kind::File {
            size = entry.size();
            if size > COMPARED && entry.header().entry_type() == tar::EntryType::GNUSparse {
                continue;
            }
            entry.read_to_end(&mut content)?;
        }
        let old_directory = kind == Kind::File && path.ends_with(b"/") && size == 0;
        let root = kind == Kind::File && normal(&path).is_empty();
        let (kind, size, content) =
            if old_directory || root { (Kind::Directory, 0, vec![]) } else { (kind, size, content) };
        all.push(Said { path: normal(&path), kind, size, content });
    }
    Ok(all)
}

/// Whether the two differ on purpose: see the [module](self).
fn peculiar(tar: &[u8]) -> std::io::Result<bool> {
    for entry in tar::Archive::new(tar).entries()?.raw(true) {
        let mut entry = entry?;
        let header = entry.header();
        let kind = header.entry_type();
        let content = matches!(kind, tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse);
        let other_prefix = header.as_ustar().is_none() && header.as_bytes()[345..500].iter().any(|b| *b != 0);
        let extension = kind.is_pax_local_extensions() || kind.is_gnu_longname() || kind.is_gnu_longlink();
        let body = !content && !extension && entry.size() > 0;
        // The crate knows extensions only under a magic.
        let no_magic = extension && header.as_ustar().is_none() && header.as_gnu().is_none();
        if no_magic || kind.is_pax_global_extensions() || body || other_prefix && kind != tar::EntryType::GNUSparse {
            return Ok(true);
        }
        if kind.is_gnu_longname() || kind.is_gnu_longlink() {
            let mut name = Vec::new();
            entry.read_to_end(&mut name)?;
            if name.iter().filter(|&&b| b == 0).count() > 1 {
                return Ok(true);
            }
        }
        if kind.is_pax_local_extensions() {
            let mut records = Vec::new();
            entry.read_to_end(&mut records)?;
            if peculiar_records(&records) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Whether a key is there twice, a value is empty or holds a line end, or a sparse file or a size is told.
fn peculiar_records(mut records: &[u8]) -> bool {
    let mut keys = std::collections::HashSet::new();
    while !records.is_empty() {
        let Some(space) = records.iter().position(|&b| b == b' ') else { return true };
        let len = std::str::from_utf8(&records[..space]).ok().and_then(|text| text.parse::<usize>().ok());
        let Some(record) = len.filter(|len| *len > space + 1).and_then(|len| records.get(space + 1..len)) else {
            return true;
        };
        let equals = record.iter().position(|&b| b == b'=').unwrap_or(record.len());
        let key = &record[..equals];
        let lines = record.iter().filter(|&&b| b == b'\n').count();
        let deletes = record[equals..].starts_with(b"=\n");
        let told = key == b"size" || key.starts_with(b"GNU.sparse.");
        if !keys.insert(key) || lines != 1 || deletes || told {
            return true;
        }
        records = &records[space + 1 + record.len()..];
    }
    false
}
