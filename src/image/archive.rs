//! Where the members of an image archive are, found by their tar headers alone.
//!
//! This is not the parser for layers: an image archive has a few plain members, of which only name, link target, place
//! and length matter. It reads headers and seeks over contents. Read are ustar, PAX (`path`, `linkpath`, `size`) and
//! GNU long names; names are compared after `./` is taken off. A name that is absolute or has `..` is in no table and
//! so can not be asked for.

use crate::error::{Error, ErrorKind, Result};
use crate::limits::Limits;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

const BLOCK: u64 = 512;

/// An image has a handful of members per layer; this many is no image.
const MAX_MEMBERS: usize = 100_000;

/// Bytes of all names and link targets in a table; a thousand layers have a tenth of a MiB.
const MAX_NAME_BYTES: usize = 16 << 20;

/// What a name in the archive stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Member {
    File {
        offset: u64,
        len: u64,
    },
    /// Another member's name, already resolved against the place of this one.
    Link(String),
    /// The name is there, but what it means is not clear: given twice, or in a form that is not read.
    Unclear(&'static str),
}

/// The members of a tar by name.
pub(crate) type Table = HashMap<String, Member>;

/// A tar in a file, or on the way into one.
pub(crate) trait Source {
    /// The file, which holds what [`up_to`](Self::up_to) said last.
    fn file(&self) -> &File;
    /// The smaller of `end` and the tar's length.
    fn up_to(&mut self, end: u64) -> Result<u64>;
}

/// A tar that is all there.
struct Whole<'a> {
    file: &'a File,
    len: u64,
}

impl<'a> Whole<'a> {
    fn new(file: &'a File) -> Result<Self> {
        let len = file.metadata().map_err(|e| Error::io("cannot read the archive", e))?.len();
        Ok(Self { file, len })
    }
}

impl Source for Whole<'_> {
    fn file(&self) -> &File {
        self.file
    }

    fn up_to(&mut self, end: u64) -> Result<u64> {
        Ok(end.min(self.len))
    }
}

/// Where one scan stands.
struct Scanner<'a, S> {
    source: S,
    position: u64,
    /// Content of the member given out last, to be passed over.
    pending: u64,
    limits: &'a Limits,
}

/// A header, with what extended ones before it said.
struct Header {
    name: String,
    link: String,
    kind: u8,
    len: u64,
    sparse: bool,
}

#[derive(Default)]
struct Extended {
    path: Option<String>,
    link: Option<String>,
    len: Option<u64>,
    sparse: bool,
}

/// Reads the table of the tar in `file`.
pub(crate) fn scan(file: &File, limits: &Limits) -> Result<Table> {
    scan_source(Whole::new(file)?, limits)
}

/// Reads a tar's table, and of the tar no more than to its end marker.
pub(crate) fn scan_source(source: impl Source, limits: &Limits) -> Result<Table> {
    let mut scanner = Scanner::new(source, limits);
    let mut table = Table::new();
    let mut count = 0;
    let mut name_bytes = 0;
    while let Some((header, offset)) = scanner.next()? {
        count += 1;
        if count > MAX_MEMBERS {
            return Err(Error::limit("too many members for an image archive", MAX_MEMBERS, "more"));
        }
        if let Some(long) = [&header.name, &header.link].into_iter().find(|n| n.len() > limits.path) {
            let e = Error::limit("a name is too long for an image archive", limits.path, long.len());
            return Err(e.subject(format!("tar member at {offset}")));
        }
        let Some(name) = normal(&header.name) else { continue };
        let member = match header.kind {
            _ if header.sparse => Member::Unclear("it is a sparse file"),
            b'0' | 0 | b'7' => Member::File { offset, len: header.len },
            b'1' => normal(&header.link).map_or(Member::Unclear("its link leaves the archive"), Member::Link),
            b'2' => resolve(&name, &header.link).map_or(Member::Unclear("its link leaves the archive"), Member::Link),
            _ => continue,
        };
        name_bytes += name.len() + if let Member::Link(target) = &member { target.len() } else { 0 };
        if name_bytes > MAX_NAME_BYTES {
            return Err(Error::limit("the names are too long for an image archive", MAX_NAME_BYTES, "more"));
        }
        let known = table.entry(name);
        known.and_modify(|m| *m = Member::Unclear("there are two of that name")).or_insert(member);
    }
    Ok(table)
}

/// The names of the first members, at most `count`, for telling what a tar is: as far as it can be read, and without
/// directories.
pub(crate) fn first_names(file: &File, limits: &Limits, count: usize) -> Vec<String> {
    let mut names = Vec::new();
    let Ok(whole) = Whole::new(file) else { return names };
    let mut scanner = Scanner::new(whole, limits);
    while names.len() < count
        && let Ok(Some((header, _))) = scanner.next()
    {
        if header.kind != b'5' {
            names.push(normal(&header.name).unwrap_or_default());
        }
    }
    names
}

impl<'a, S: Source> Scanner<'a, S> {
    fn new(source: S, limits: &'a Limits) -> Self {
        Self { source, position: 0, pending: 0, limits }
    }

    /// The next member and the place of its content; `None` at the end of the archive.
    fn next(&mut self) -> Result<Option<(Header, u64)>> {
        let mut extended = Extended::default();
        let pending = std::mem::take(&mut self.pending);
        self.pass(pending)?;
        for _ in 0..=self.limits.extension_chain {
            let Some(block) = self.block()? else { return Ok(None) };
            let header = parse(&block).map_err(|e| e.subject(format!("tar header at {}", self.position - BLOCK)))?;
            match header.kind {
                b'x' | b'L' | b'K' => {
                    let bytes = self.extension(header.len)?;
                    extended.add(header.kind, &bytes)?;
                }
                // Global headers say nothing of names or places that would matter here; Go ignores them too.
                b'g' => self.pass(header.len)?,
                b'S' => return Err(Error::new(ErrorKind::Unsupported, "a sparse file in an image archive")),
                _ => return Ok(Some(self.member(header, extended))),
            }
        }
        Err(Error::limit("too many extended tar headers for one member", self.limits.extension_chain, "more"))
    }

    fn member(&mut self, mut header: Header, extended: Extended) -> (Header, u64) {
        header.name = extended.path.unwrap_or(header.name);
        header.link = extended.link.unwrap_or(header.link);
        header.len = extended.len.unwrap_or(header.len);
        header.sparse = extended.sparse;
        // Links, directories and devices have no content, whatever their size field says.
        if (b'1'..=b'6').contains(&header.kind) {
            header.len = 0;
        }
        self.pending = header.len;
        (header, self.position)
    }

    /// The next header block; `None` at the end: two blocks of zeros, or the end of the file.
    fn block(&mut self) -> Result<Option<[u8; BLOCK as usize]>> {
        let mut zeros = 0;
        while self.source.up_to(self.position + 1)? > self.position {
            let mut block = [0; BLOCK as usize];
            self.read(&mut block)?;
            if block.iter().any(|&b| b != 0) {
                return if zeros == 0 { Ok(Some(block)) } else { Err(Error::invalid("a single zero block in a tar")) };
            }
            zeros += 1;
            if zeros == 2 {
                break;
            }
        }
        Ok(None)
    }

    fn extension(&mut self, len: u64) -> Result<Vec<u8>> {
        if len > self.limits.extension {
            return Err(Error::limit("an extended tar header is too large", self.limits.extension, len));
        }
        let mut bytes = vec![0; len as usize];
        self.read(&mut bytes)?;
        self.pass_padding(len)?;
        Ok(bytes)
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.check(bytes.len() as u64)?;
        let failed = |e| Error::io("cannot read the archive", e);
        self.source.file().read_exact_at(bytes, self.position).map_err(failed)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn pass(&mut self, len: u64) -> Result<()> {
        self.check(len)?;
        self.position += len;
        self.pass_padding(len)
    }

    fn pass_padding(&mut self, len: u64) -> Result<()> {
        // The last member's padding may be missing; nothing that counts is in it.
        self.position = self.source.up_to(self.position + (BLOCK - len % BLOCK) % BLOCK)?;
        Ok(())
    }

    fn check(&mut self, len: u64) -> Result<()> {
        let left = self.source.up_to(self.position.saturating_add(len))? - self.position;
        if len > left {
            return Err(Error::invalid("the tar is cut short").expected(format!("{len} bytes")).actual(left));
        }
        Ok(())
    }
}

impl Extended {
    fn add(&mut self, kind: u8, bytes: &[u8]) -> Result<()> {
        match kind {
            b'L' => self.path = Some(text(until_nul(bytes))),
            b'K' => self.link = Some(text(until_nul(bytes))),
            _ => self.add_records(bytes)?,
        }
        Ok(())
    }

    /// PAX records: `<length> <key>=<value>\n`, the length counting all of it.
    fn add_records(&mut self, mut bytes: &[u8]) -> Result<()> {
        let bad = || Error::invalid("a PAX record is malformed");
        while !bytes.is_empty() {
            let space = bytes.iter().take(20).position(|&b| b == b' ').ok_or_else(bad)?;
            let len = decimal(&bytes[..space]).and_then(|n| usize::try_from(n).ok()).ok_or_else(bad)?;
            let record = bytes.get(space + 1..len).and_then(|r| r.strip_suffix(b"\n")).ok_or_else(bad)?;
            let equals = record.iter().position(|&b| b == b'=').ok_or_else(bad)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => self.path = Some(text(value)),
                b"linkpath" => self.link = Some(text(value)),
                b"size" => self.len = Some(decimal(value).ok_or_else(bad)?),
                _ => self.sparse |= key.starts_with(b"GNU.sparse."),
            }
            bytes = &bytes[len..];
        }
        Ok(())
    }
}

fn parse(block: &[u8; 512]) -> Result<Header> {
    let sum = octal(&block[148..156]);
    let unsigned: u64 =
        block.iter().enumerate().map(|(i, &b)| if (148..156).contains(&i) { 32 } else { b.into() }).sum();
    if sum != Some(unsigned) {
        return Err(Error::invalid("the checksum does not match"));
    }
    let len = number(&block[124..136]).ok_or_else(|| Error::invalid("the size is malformed"))?;
    let mut name = text(until_nul(&block[..100]));
    // Old GNU headers keep times where POSIX has the prefix.
    if &block[257..263] == b"ustar\0" && block[345] != 0 {
        name = format!("{}/{name}", text(until_nul(&block[345..500])));
    }
    Ok(Header { name, link: text(until_nul(&block[157..257])), kind: block[156], len, sparse: false })
}

/// A size: octal, or base 256 where the first bit is set (GNU), as files of 8 GiB and more need.
fn number(field: &[u8]) -> Option<u64> {
    match field {
        [0x80, rest @ ..] => rest.iter().try_fold(0u64, |n, &b| Some(n.checked_mul(256)? + u64::from(b))),
        [first, ..] if first & 0x80 != 0 => None,
        _ => octal(field),
    }
    .filter(|&n| n <= i64::MAX as u64)
}

fn octal(field: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    if digits.is_empty() {
        return Some(0);
    }
    digits
        .bytes()
        .try_fold(0u64, |n, b| (b'0'..=b'7').contains(&b).then(|| n.checked_mul(8)?.checked_add((b - b'0').into()))?)
}

fn decimal(digits: &[u8]) -> Option<u64> {
    let all_digits = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| all_digits)?.parse().ok().filter(|&n: &u64| n <= i64::MAX as u64)
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or_default()
}

/// Names that matter are ASCII; any other only has to differ from those.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A relative path without `.`, `..` and empty parts; `None` if it leaves the root or is the root.
pub(crate) fn normal(name: &str) -> Option<String> {
    resolve("", name)
}

/// A symlink's target against the name it is at.
fn resolve(name: &str, target: &str) -> Option<String> {
    if target.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            // Only a link may go up; a name that does is refused, even if it comes back.
            ".." if name.is_empty() => return None,
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
