//! From a header and its extended headers to an [`Entry`] and the shape of what follows it.
//!
//! Judges everything that concerns one entry alone. Values follow Go's `archive/tar`; where readers disagree about
//! what an entry is, it is refused (`docs/LIMITS.md` has the list).

use super::header::Header;
use super::names;
use super::pax::{Key, Pax, check_global};
use super::sparse::Map;
use crate::error::{Error, ErrorKind, Result};
use crate::format::entry::{Entry, EntryKind, Time, Xattr};
use crate::limits::Limits;

/// Years 1 to 9999, which is what RFC 3339, and so every tool that prints it, can show.
const MTIME: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// The longest symlink target Linux stores (`PATH_MAX` less the NUL).
const SYMLINK_MAX: usize = 4095;

/// Extended headers waiting for the entry they belong to. The buffers are reused.
#[derive(Default)]
pub(crate) struct Extensions {
    pub(crate) pax: Pax,
    pub(crate) has_pax: bool,
    pub(crate) long_name: Vec<u8>,
    pub(crate) long_link: Vec<u8>,
    global: Vec<u8>,
    /// Extended headers since the last entry, global ones included.
    pub(crate) chain: u32,
}

impl Extensions {
    /// Whether something waits for an entry.
    pub(crate) fn pending(&self) -> bool {
        self.has_pax || !self.long_name.is_empty() || !self.long_link.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        if self.has_pax {
            self.pax.clear();
        }
        self.has_pax = false;
        self.long_name.clear();
        self.long_link.clear();
        self.chain = 0;
    }

    /// Where the body of an extended header of type `kind` gathers.
    pub(crate) fn body(&mut self, kind: u8) -> &mut Vec<u8> {
        match kind {
            b'x' => &mut self.pax.body,
            b'L' => &mut self.long_name,
            b'K' => &mut self.long_link,
            _ => &mut self.global,
        }
    }

    /// Reads a body that is complete.
    pub(crate) fn finish(&mut self, kind: u8, limits: &Limits) -> Result<()> {
        match kind {
            b'x' => {
                self.has_pax = true;
                self.pax.parse(limits)?;
            }
            b'L' => end_long(&mut self.long_name)?,
            b'K' => end_long(&mut self.long_link)?,
            _ => check_global(&self.global)?,
        }
        if self.contradict() {
            return Err(Error::invalid("extended headers for one entry that readers combine differently"));
        }
        Ok(())
    }

    /// Whether the PAX header says what a GNU long name says too, or something about the body.
    ///
    /// Of two names some readers take the first and some the last. A size is applied by some readers to the long name's
    /// own header (GHSA-fp55-jw48-c537).
    fn contradict(&self) -> bool {
        let pax = &self.pax;
        let (name, link) = (!self.long_name.is_empty(), !self.long_link.is_empty());
        let either = name || link;
        (name && pax.names(Key::Path))
            || (link && pax.names(Key::Linkpath))
            || (either && (pax.names(Key::Size) || pax.mentions_sparse()))
    }

    /// Replaces `name`, which is the header's, by what an extended header says.
    pub(crate) fn override_name(&self, name: &mut Vec<u8>) {
        let long = (!self.long_name.is_empty()).then_some(&self.long_name[..]);
        let given = long.or_else(|| self.pax.get(Key::SparseName)).or_else(|| self.pax.get(Key::Path));
        if let Some(given) = given {
            name.clear();
            name.extend_from_slice(given);
        }
    }
}

/// Cuts a GNU long name at its NUL. What some readers would not see behind it is refused.
fn end_long(name: &mut Vec<u8>) -> Result<()> {
    let end = name.iter().position(|&b| b == 0).unwrap_or(name.len());
    if end == 0 || name[end..].iter().any(|&b| b != 0) {
        return Err(Error::invalid("a GNU long name that is empty or goes on after a NUL"));
    }
    name.truncate(end);
    Ok(())
}

/// What comes between an entry's header and the next header.
pub(crate) enum Body {
    /// Stored content of this length.
    Content(u64),
    /// Bytes that belong to no file.
    Ignored(u64),
    /// A hard link that claims content. What follows must read as content to every reader.
    Doubtful(u64),
    /// An old GNU sparse file of this logical size and this much content, whose map goes on in extension blocks.
    OldMap { map: Map, size: u64, stored: u64 },
    /// A sparse file of format 1.0: map and content together have this length.
    DataMap { size: u64, length: u64 },
}

/// An entry and what follows its header. With a map still to come the entry's ranges are not filled in yet.
pub(crate) struct Member {
    pub(crate) entry: Entry,
    pub(crate) body: Body,
    /// A hard link with an absolute target under a relative name.
    pub(crate) outward: bool,
}

/// Builds the entry of `header`, whose name after extended headers is `name`.
pub(crate) fn build(header: &Header<'_>, name: &[u8], ext: &mut Extensions, limits: &Limits) -> Result<Member> {
    let size = match ext.pax.integer(Key::Size)? {
        Some(size) => size,
        None => header.size()?,
    };
    let size = u64::try_from(size).map_err(|_| Error::invalid("a negative size").actual(size))?;
    let path = names::normalise(name, limits)?;
    let outward = header.kind() == b'1' && link_name(header, ext).starts_with(b"/") && !name.starts_with(b"/");
    let (kind, body) = kind(header, name, &path, size, ext, limits)?;
    if path.is_empty() && kind != EntryKind::Directory {
        return Err(Error::invalid("the root is not a directory"));
    }
    let time = Time { secs: header.mtime()?, nanos: 0 };
    let entry = Entry {
        mode: (header.mode()? & 0o7777) as u16,
        uid: id("uid", ext.pax.integer(Key::Uid)?, header.uid()?)?,
        gid: id("gid", ext.pax.integer(Key::Gid)?, header.gid()?)?,
        mtime: mtime(ext.pax.mtime()?.unwrap_or(time))?,
        xattrs: ext.pax.take_xattrs()?,
        path,
        kind,
    };
    Ok(Member { entry, body, outward })
}

fn kind(
    header: &Header<'_>,
    name: &[u8],
    path: &[u8],
    size: u64,
    ext: &Extensions,
    limits: &Limits,
) -> Result<(EntryKind, Body)> {
    let sparse = ext.pax.mentions_sparse();
    if sparse && !matches!(header.kind(), b'0' | 0 | b'7') {
        return Err(Error::invalid("GNU.sparse on something that is not a plain file"));
    }
    let named_directory = name.last().is_none_or(|&b| b == b'/');
    Ok(match header.kind() {
        // Go has looked for the slash before it takes `GNU.sparse.name`, so this would be a file to it.
        b'0' | b'7' | 0 | b'S' if named_directory && (sparse || header.kind() == b'S') => {
            return Err(Error::invalid("a sparse file named like a directory"));
        }
        b'0' | b'7' | 0 if named_directory => directory_as_file(header.kind(), name, path, size)?,
        b'0' | b'7' | 0 if sparse => pax_sparse(ext, size, limits)?,
        b'0' | b'7' | 0 => (EntryKind::File { size: logical(size, limits)?, sparse: None }, Body::Content(size)),
        b'S' => old_sparse(header, ext, size, limits)?,
        b'1' => {
            let target = hardlink(header, path, ext, limits)?;
            (EntryKind::Hardlink { target }, hardlink_body(header, ext, size)?)
        }
        // The types below have no content whatever their size says, as in Go.
        b'2' => (EntryKind::Symlink { target: symlink(header, ext)? }, Body::Ignored(0)),
        b'3' | b'4' => (device(header)?, Body::Ignored(0)),
        b'5' if name.is_empty() => return Err(Error::invalid("an entry without a name")),
        b'5' => (EntryKind::Directory, Body::Ignored(0)),
        b'6' => (EntryKind::Fifo, Body::Ignored(0)),
        other => {
            let message = format!("unknown entry type '{}'", other.escape_ascii());
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
    })
}

/// A plain file whose name ends in `/`, or has no bytes at all: a directory of tars from before type `5`.
///
/// GNU tar, libarchive and Python make a directory of any such file, Go only of one of type NUL: types `0` and `7` stay
/// files to it, and so to containerd and Docker. Content after type NUL is skipped by GNU tar and taken for the next
/// header by Go. All agree on type NUL without content. The root cannot be a file: containerd passes over such an
/// entry, with its content, whatever its type.
fn directory_as_file(kind: u8, name: &[u8], path: &[u8], size: u64) -> Result<(EntryKind, Body)> {
    if names::is_bare_root(name) {
        return Err(Error::invalid(if name.is_empty() {
            "an entry without a name"
        } else {
            "the root as a plain file"
        }));
    }
    if size > 0 && (kind == 0 || !path.is_empty()) {
        return Err(Error::invalid("a plain file named like a directory, with content"));
    }
    if kind != 0 && !path.is_empty() {
        return Err(Error::invalid("a plain file named like a directory, which only some readers make of it"));
    }
    Ok((EntryKind::Directory, Body::Ignored(size)))
}

fn pax_sparse(ext: &Extensions, length: u64, limits: &Limits) -> Result<(EntryKind, Body)> {
    let pax = &ext.pax;
    let unknown = || Error::new(ErrorKind::Unsupported, "an unknown version of GNU.sparse");
    let in_data = match (pax.get(Key::SparseMajor), pax.get(Key::SparseMinor)) {
        (Some(b"1"), Some(b"0")) => true,
        (Some(b"0"), Some(b"0" | b"1")) | (None, None) => false,
        _ => return Err(unknown()),
    };
    let size = match (pax.integer(Key::SparseSize)?, pax.integer(Key::SparseRealsize)?) {
        (Some(a), Some(b)) if a != b => return Err(Error::invalid("two different sizes of a sparse file")),
        (a, b) => a.or(b).ok_or_else(|| Error::invalid("a sparse file without its logical size"))?,
    };
    let size = u64::try_from(size).map_err(|_| Error::invalid("a negative size").actual(size))?;
    let size = logical(size, limits)?;
    let list = pax.get(Key::SparseMap);
    let spread = &pax.spread.map;
    let map = match (in_data, list) {
        (true, None) if !spread.is_used() => {
            return Ok((EntryKind::File { size, sparse: None }, Body::DataMap { size, length }));
        }
        (false, Some(list)) if !spread.is_used() => Map::parse_list(list, limits)?,
        (false, None) if spread.is_used() => spread.clone(),
        // Go reads a plain file where neither a version nor a map is told, GNU tar one hole.
        (false, None) => return Err(Error::invalid("a sparse file without its map")),
        _ => return Err(Error::invalid("two maps of a sparse file")),
    };
    let count = pax.integer(Key::SparseNumblocks)?.and_then(|n| usize::try_from(n).ok());
    if count != Some(map.count()) {
        return Err(Error::invalid("GNU.sparse.numblocks is not the number of ranges"));
    }
    let sparse = Some(map.finish(size, length)?);
    Ok((EntryKind::File { size, sparse }, Body::Content(length)))
}

fn old_sparse(header: &Header<'_>, ext: &Extensions, stored: u64, limits: &Limits) -> Result<(EntryKind, Body)> {
    let Some(block) = header.gnu_sparse() else {
        return Err(Error::new(ErrorKind::Unsupported, "a sparse file that is not GNU's"));
    };
    if ext.pax.get(Key::Size).is_some() {
        return Err(Error::invalid("PAX size on an old sparse file, which has two sizes"));
    }
    let size = header.gnu_real_size()?;
    let size = u64::try_from(size).map_err(|_| Error::invalid("a negative size").actual(size))?;
    let size = logical(size, limits)?;
    let mut map = Map::default();
    push_old(&mut map, block.ranges(), limits)?;
    if block.extended {
        return Ok((EntryKind::File { size, sparse: None }, Body::OldMap { map, size, stored }));
    }
    let sparse = Some(map.finish(size, stored)?);
    Ok((EntryKind::File { size, sparse }, Body::Content(stored)))
}

/// Appends what one block of an old GNU sparse map says.
pub(crate) fn push_old(map: &mut Map, ranges: impl Iterator<Item = Option<(i64, i64)>>, limits: &Limits) -> Result<()> {
    for range in ranges {
        let numbers = range.and_then(|(offset, len)| Some((u64::try_from(offset).ok()?, u64::try_from(len).ok()?)));
        let (offset, len) = numbers.ok_or_else(|| Error::invalid("a sparse map with a bad number"))?;
        map.push(offset, len, limits)?;
    }
    Ok(())
}

/// The text of a link: from an extended header or the header.
fn link_name<'a>(header: &Header<'a>, ext: &'a Extensions) -> &'a [u8] {
    match (&ext.long_link[..], ext.pax.get(Key::Linkpath)) {
        (b"", Some(path)) => path,
        (b"", None) => header.link_name(),
        (long, _) => long,
    }
}

fn symlink(header: &Header<'_>, ext: &Extensions) -> Result<Vec<u8>> {
    let target = link_name(header, ext);
    check_symlink(target)?;
    Ok(target.to_vec())
}

fn check_symlink(target: &[u8]) -> Result<()> {
    if target.is_empty() || target.contains(&0) {
        return Err(Error::invalid("a symlink with an empty target or a NUL byte in it"));
    }
    if target.len() > SYMLINK_MAX {
        return Err(Error::limit("the target of a symlink is too long", SYMLINK_MAX, target.len()));
    }
    Ok(())
}

/// The target of a hard link in normal form: its name below the image's root, whether it begins with `/` or not.
///
/// Kaniko writes absolute targets under relative names. containerd, Docker, umoci and GNU tar take both from the root
/// that they extract into. `links.rs` has the rest of the rule.
fn hardlink(header: &Header<'_>, path: &[u8], ext: &Extensions, limits: &Limits) -> Result<Vec<u8>> {
    let raw = link_name(header, ext);
    let target = names::normalise(raw, limits).map_err(|e| e.subject("hard link target"))?;
    check_hardlink(path, &target)?;
    Ok(target)
}

/// The body of a hard link that claims `size` bytes.
///
/// Go has none and GNU tar looks for the next header in it. libarchive skips it, in GNU and v7 headers not, and writes
/// it into the file where a PAX header came before. Only content of a plain ustar header means the same entries to all
/// that read on; the parser makes sure that no block of it could be a header.
fn hardlink_body(header: &Header<'_>, ext: &Extensions, size: u64) -> Result<Body> {
    match size {
        0 => Ok(Body::Ignored(0)),
        _ if ext.pending() || !header.is_ustar() => {
            Err(Error::invalid("a hard link that claims content, which readers take differently"))
        }
        size => Ok(Body::Doubtful(size)),
    }
}

fn check_hardlink(path: &[u8], target: &[u8]) -> Result<()> {
    match target {
        b"" => Err(Error::invalid("a hard link to the root or to nothing")),
        _ if target == path => Err(Error::invalid("a hard link to itself")),
        _ => Ok(()),
    }
}

fn device(header: &Header<'_>) -> Result<EntryKind> {
    let (major, minor) = header.device()?;
    let number = |n: i64| u32::try_from(n).map_err(|_| Error::invalid("a device number out of range").actual(n));
    let (major, minor) = (number(major)?, number(minor)?);
    let kind = match header.kind() {
        b'3' => EntryKind::CharDevice { major, minor },
        _ => EntryKind::BlockDevice { major, minor },
    };
    check_device(&kind)?;
    Ok(kind)
}

/// Linux has 12 bits of major and 20 of minor; character device 0:0 is the whiteout of overlayfs.
fn check_device(kind: &EntryKind) -> Result<()> {
    match kind {
        EntryKind::CharDevice { major: 0, minor: 0 } => {
            Err(Error::invalid("character device 0:0, which is an overlayfs whiteout"))
        }
        EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor }
            if *major >= 1 << 12 || *minor >= 1 << 20 =>
        {
            Err(Error::invalid("a device number out of range").actual(format_args!("{major}:{minor}")))
        }
        _ => Ok(()),
    }
}

fn logical(size: u64, limits: &Limits) -> Result<u64> {
    if size > limits.file_size {
        return Err(Error::limit("a file is too large", limits.file_size, size));
    }
    Ok(size)
}

/// `u32::MAX` means "leave it" to `chown`, and larger ids would be cut to 32 bits.
fn id(what: &str, pax: Option<i64>, header: i64) -> Result<u32> {
    let id = pax.unwrap_or(header);
    let fits = u32::try_from(id).ok().filter(|&id| id != u32::MAX);
    fits.ok_or_else(|| Error::invalid(format!("a {what} out of range")).actual(id))
}

fn mtime(time: Time) -> Result<Time> {
    if !MTIME.contains(&time.secs) {
        return Err(Error::invalid("a modification time outside the years 1 to 9999").actual(time.secs));
    }
    Ok(time)
}

/// Refuses an entry that [`build`] would never return, so that the writer cannot write what the parser refuses.
pub(crate) fn check(entry: &Entry, limits: &Limits) -> Result<()> {
    let normal = |path: &[u8]| names::normalise(path, limits).map(|p| p == path);
    if !normal(&entry.path)? {
        return Err(Error::invalid("a path that is not in normal form"));
    }
    if entry.path.is_empty() && entry.kind != EntryKind::Directory {
        return Err(Error::invalid("the root is not a directory"));
    }
    match &entry.kind {
        EntryKind::Symlink { target } => check_symlink(target)?,
        EntryKind::Hardlink { target } if !normal(target)? => {
            return Err(Error::invalid("a hard link target that is not in normal form"));
        }
        EntryKind::Hardlink { target } => check_hardlink(&entry.path, target)?,
        EntryKind::File { size, sparse: None } => drop(logical(*size, limits)?),
        EntryKind::File { size, sparse: Some(ranges) } => {
            let mut map = Map::default();
            ranges.iter().try_for_each(|range| map.push(range.offset, range.len, limits))?;
            let kept = map.finish(logical(*size, limits)?, entry.kind.stored_len())?;
            if kept.len() != ranges.len() {
                return Err(Error::invalid("a sparse file with an empty range"));
            }
        }
        kind => check_device(kind)?,
    }
    id("uid", None, entry.uid.into())?;
    id("gid", None, entry.gid.into())?;
    mtime(entry.mtime)?;
    if entry.mode > 0o7777 || entry.mtime.nanos > 999_999_999 {
        return Err(Error::invalid("a mode or modification time out of range"));
    }
    check_xattrs(&entry.xattrs)
}

fn check_xattrs(xattrs: &[Xattr]) -> Result<()> {
    for xattr in xattrs {
        if !super::xattr::check(&xattr.name, &xattr.value)? {
            return Err(Error::invalid("an xattr that no Linux filesystem has"));
        }
    }
    if !xattrs.is_sorted_by(|a, b| a.name < b.name) {
        return Err(Error::invalid("xattrs that are not sorted by name, or repeated"));
    }
    super::xattr::check_names(xattrs)
}
