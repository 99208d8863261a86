//! A model of how Go's `archive/tar` (1.23) reads a tar: headers, extended headers and sparse files.
//!
//! It is written after the behaviour of that package and shares no code with `src/tar`, so that a mistake of one is not
//! in the other. It decides as little as Go does: what an entry then means on disk is for whoever compares. Go refuses
//! some things later, while content is read; here the whole entry is read at once.

use std::collections::BTreeMap;

const BLOCK: usize = 512;
/// Longest extended header.
const SPECIAL_MAX: usize = 1 << 20;

/// Why Go stops; it does not matter which check it was.
#[derive(Debug)]
pub(super) struct Refused;

type Result<T> = std::result::Result<T, Refused>;

/// One entry that `Reader.Next` returns and what `Reader.Read` then gives.
#[derive(Debug, Default)]
pub(super) struct GoEntry {
    pub(super) kind: u8,
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) mode: i64,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) mtime: (i64, i64),
    /// What the header claims, also where there is no body.
    pub(super) size: i64,
    /// The parts of a file that are stored, with their offsets.
    pub(super) data: Vec<(u64, Vec<u8>)>,
    pub(super) device: (i64, i64),
    /// All records of the PAX header.
    pub(super) records: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// All entries of `tar`, those of global headers left out.
pub(super) fn read(tar: &[u8]) -> Result<Vec<GoEntry>> {
    let mut reader = Reader { rest: tar };
    let mut entries = Vec::new();
    while let Some(entry) = reader.next()? {
        if entry.kind != b'g' {
            entries.push(entry);
        }
    }
    Ok(entries)
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(Refused)?;
        self.rest = rest;
        Ok(taken)
    }

    /// The body of an entry and its padding, which may be cut off by the end of the input.
    fn body(&mut self, len: i64) -> Result<&'a [u8]> {
        let len = usize::try_from(len).map_err(|_| Refused)?;
        let body = self.take(len)?;
        let padding = len.wrapping_neg() % BLOCK;
        self.rest = &self.rest[padding.min(self.rest.len())..];
        Ok(body)
    }

    /// The next block that is a header; `None` at the end of the archive.
    fn block(&mut self) -> Result<Option<&'a [u8]>> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let block = self.take(BLOCK)?;
        if block.iter().any(|&b| b != 0) {
            return Ok(Some(block));
        }
        // One block of zeros and the end, or two of them.
        match self.rest.is_empty() || self.take(BLOCK)?.iter().all(|&b| b == 0) {
            true => Ok(None),
            false => Err(Refused),
        }
    }

    fn next(&mut self) -> Result<Option<GoEntry>> {
        let mut records = BTreeMap::new();
        let (mut long_name, mut long_link) = (Vec::new(), Vec::new());
        loop {
            let Some(block) = self.block()? else { return Ok(None) };
            let (mut entry, format) = header(block)?;
            let length = body_length(&entry)?;
            match entry.kind {
                b'x' => records = pax(self.special(length)?)?,
                b'g' => {
                    pax(self.special(length)?)?;
                    return Ok(Some(entry));
                }
                b'L' => long_name = c_string(self.special(length)?).to_vec(),
                b'K' => long_link = c_string(self.special(length)?).to_vec(),
                _ => {
                    merge(&mut entry, &records)?;
                    entry.records = records;
                    if !long_name.is_empty() {
                        entry.name = long_name;
                    }
                    if !long_link.is_empty() {
                        entry.link = long_link;
                    }
                    if entry.kind == 0 {
                        entry.kind = if entry.name.ends_with(b"/") { b'5' } else { b'0' };
                    }
                    self.content(&mut entry, block, format)?;
                    return Ok(Some(entry));
                }
            }
        }
    }

    fn special(&mut self, length: i64) -> Result<&'a [u8]> {
        let body = self.body(length)?;
        if body.len() > SPECIAL_MAX { Err(Refused) } else { Ok(body) }
    }

    fn content(&mut self, entry: &mut GoEntry, block: &[u8], format: Format) -> Result<()> {
        let length = body_length(entry)?;
        let (map, stored) = if entry.kind == b'S' {
            if format != Format::Gnu {
                return Err(Refused);
            }
            entry.size = numeric(&block[483..495])?;
            (Some(self.old_map(block)?), self.body(length)?)
        } else {
            let stored = self.body(length)?;
            pax_map(entry, stored)?
        };
        let Some(map) = map else {
            if !stored.is_empty() {
                entry.data.push((0, stored.to_vec()));
            }
            return Ok(());
        };
        if header_only(entry.kind) {
            return Err(Refused);
        }
        entry.data = spread(&map, entry.size, stored)?;
        Ok(())
    }

    fn old_map(&mut self, block: &[u8]) -> Result<Vec<(i64, i64)>> {
        let mut map = Vec::new();
        let (mut fields, mut more) = (&block[386..482], block[482] > 0);
        loop {
            for pair in fields.chunks(24) {
                if pair[0] == 0 {
                    break;
                }
                map.push((numeric(&pair[..12])?, numeric(&pair[12..])?));
            }
            if !more {
                return Ok(map);
            }
            let block = self.take(BLOCK)?;
            (fields, more) = (&block[..504], block[504] > 0);
        }
    }
}

/// The fields of one block, and its format.
fn header(block: &[u8]) -> Result<(GoEntry, Format)> {
    let sum = octal(&block[148..156])?;
    let spaced = || block.iter().enumerate().map(|(at, &b)| if (148..156).contains(&at) { b' ' } else { b });
    let unsigned: i64 = spaced().map(i64::from).sum();
    let signed: i64 = spaced().map(|b| i64::from(b as i8)).sum();
    if sum != unsigned && sum != signed {
        return Err(Refused);
    }
    let format = match (&block[257..263], &block[263..265], &block[508..512]) {
        (b"ustar\0", _, b"tar\0") => Format::Star,
        (b"ustar\0", ..) => Format::Ustar,
        (b"ustar ", b" \0", _) => Format::Gnu,
        _ => Format::V7,
    };
    let mut entry = GoEntry {
        kind: block[156],
        name: c_string(&block[..100]).to_vec(),
        link: c_string(&block[157..257]).to_vec(),
        mode: numeric(&block[100..108])?,
        uid: numeric(&block[108..116])?,
        gid: numeric(&block[116..124])?,
        size: numeric(&block[124..136])?,
        mtime: (numeric(&block[136..148])?, 0),
        ..GoEntry::default()
    };
    let prefix = match format {
        Format::V7 => return Ok((entry, format)),
        Format::Ustar => c_string(&block[345..500]),
        Format::Star => {
            numeric(&block[476..488])?;
            numeric(&block[488..500])?;
            c_string(&block[345..476])
        }
        Format::Gnu => {
            let bad = |time: &[u8]| time[0] != 0 && numeric(time).is_err();
            let old = if bad(&block[345..357]) || bad(&block[357..369]) { c_string(&block[345..500]) } else { b"" };
            if old.is_ascii() { old } else { b"" }
        }
    };
    entry.device = (numeric(&block[329..337])?, numeric(&block[337..345])?);
    if !prefix.is_empty() {
        entry.name = [prefix, b"/", &entry.name].concat();
    }
    Ok((entry, format))
}

fn header_only(kind: u8) -> bool {
    (b'1'..=b'6').contains(&kind)
}

fn body_length(entry: &GoEntry) -> Result<i64> {
    match entry.size {
        _ if header_only(entry.kind) => Ok(0),
        size if size < 0 => Err(Refused),
        size => Ok(size),
    }
}

fn c_string(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or_default()
}

fn octal(field: &[u8]) -> Result<i64> {
    let is_filler = |b: &u8| *b == b' ' || *b == 0;
    let Some(first) = field.iter().position(|b| !is_filler(b)) else { return Ok(0) };
    let last = field.iter().rposition(|b| !is_filler(b)).unwrap_or(first);
    let digits = std::str::from_utf8(c_string(&field[first..=last])).map_err(|_| Refused)?;
    if digits.starts_with('+') {
        return Err(Refused);
    }
    u64::from_str_radix(digits, 8).map(|n| n as i64).map_err(|_| Refused)
}

/// Octal, or base-256 where the top bit is set.
fn numeric(field: &[u8]) -> Result<i64> {
    if field[0] & 0x80 == 0 {
        return octal(field);
    }
    let negative = field[0] & 0x40 != 0;
    let mut value: i128 = 0;
    for (at, &byte) in field.iter().enumerate() {
        let byte = if negative { !byte } else { byte };
        value = value << 8 | i128::from(if at == 0 { byte & 0x7f } else { byte });
    }
    let value = i64::try_from(value).map_err(|_| Refused)?;
    Ok(if negative { !value } else { value })
}

fn decimal(text: &[u8]) -> Result<i64> {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(Refused)
}

/// The records of a PAX header; a map of format 0.0 becomes one of 0.1.
fn pax(mut body: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let (mut records, mut map) = (BTreeMap::new(), Vec::<Vec<u8>>::new());
    while !body.is_empty() {
        let space = body.iter().position(|&b| b == b' ').ok_or(Refused)?;
        let length = usize::try_from(decimal(&body[..space])?).map_err(|_| Refused)?;
        if length < 5 || length > body.len() || space + 1 >= length - 1 {
            return Err(Refused);
        }
        let (record, rest) = body.split_at(length);
        body = rest;
        let [pair @ .., b'\n'] = &record[space + 1..] else { return Err(Refused) };
        let equals = pair.iter().position(|&b| b == b'=').ok_or(Refused)?;
        let (key, value) = (&pair[..equals], &pair[equals + 1..]);
        let judged = if matches!(key, b"path" | b"linkpath" | b"uname" | b"gname") { value } else { key };
        if judged.contains(&0) {
            return Err(Refused);
        }
        match key {
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                let wanted: &[u8] = if map.len() % 2 == 0 { b"GNU.sparse.offset" } else { b"GNU.sparse.numbytes" };
                if key != wanted || value.contains(&b',') {
                    return Err(Refused);
                }
                map.push(value.to_vec());
            }
            _ => drop(records.insert(key.to_vec(), value.to_vec())),
        }
    }
    if !map.is_empty() {
        records.insert(b"GNU.sparse.map".to_vec(), map.join(&b','));
    }
    Ok(records)
}

/// Lets records replace fields; empty ones leave them alone.
fn merge(entry: &mut GoEntry, records: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<()> {
    for (key, value) in records.iter().filter(|(_, value)| !value.is_empty()) {
        match &key[..] {
            b"path" => entry.name = value.clone(),
            b"linkpath" => entry.link = value.clone(),
            b"uid" => entry.uid = decimal(value)?,
            b"gid" => entry.gid = decimal(value)?,
            b"size" => entry.size = decimal(value)?,
            b"mtime" => entry.mtime = time(value)?,
            b"atime" | b"ctime" => drop(time(value)?),
            _ => {}
        }
    }
    Ok(())
}

/// Seconds and nanoseconds since 1970, the latter not negative.
fn time(text: &[u8]) -> Result<(i64, i64)> {
    let mut parts = text.splitn(2, |&b| b == b'.');
    let (whole, part) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let seconds = decimal(whole)?;
    if !part.iter().all(u8::is_ascii_digit) {
        return Err(Refused);
    }
    let nanos = (0..9).fold(0, |n, at| n * 10 + i64::from(part.get(at).map_or(0, |digit| digit - b'0')));
    match whole.starts_with(b"-") && nanos > 0 {
        true => Ok((seconds.checked_sub(1).ok_or(Refused)?, 1_000_000_000 - nanos)),
        false => Ok((seconds, nanos)),
    }
}

type Map = Vec<(i64, i64)>;

/// The map of a sparse file that the PAX header tells of, and the stored bytes after the map; `None` for other files.
///
/// Takes over name and size of the sparse file.
fn pax_map<'b>(entry: &mut GoEntry, stored: &'b [u8]) -> Result<(Option<Map>, &'b [u8])> {
    let get = |key: &str| entry.records.get(key.as_bytes()).map_or(&b""[..], |value| value);
    let in_data = match (get("GNU.sparse.major"), get("GNU.sparse.minor")) {
        (b"0", b"0" | b"1") => false,
        (b"1", b"0") => true,
        (b"", b"") if !get("GNU.sparse.map").is_empty() => false,
        _ => return Ok((None, stored)),
    };
    let size = match (get("GNU.sparse.size"), get("GNU.sparse.realsize")) {
        (b"", b"") => entry.size,
        (b"", size) | (size, _) => decimal(size)?,
    };
    let name = get("GNU.sparse.name").to_vec();
    let listed = get("GNU.sparse.map").to_vec();
    let count = get("GNU.sparse.numblocks").to_vec();
    entry.size = size;
    if !name.is_empty() {
        entry.name = name;
    }
    if in_data {
        let (map, used) = data_map(stored)?;
        return Ok((Some(map), &stored[used..]));
    }
    let numbers: Vec<&[u8]> = if listed.is_empty() { vec![] } else { listed.split(|&b| b == b',').collect() };
    if usize::try_from(decimal(&count)?).ok().and_then(|count| count.checked_mul(2)) != Some(numbers.len()) {
        return Err(Refused);
    }
    let map = numbers.chunks(2).map(|pair| Ok((decimal(pair[0])?, decimal(pair[1])?))).collect::<Result<_>>()?;
    Ok((Some(map), stored))
}

/// The map of format 1.0, and the bytes of the blocks that hold it.
fn data_map(stored: &[u8]) -> Result<(Map, usize)> {
    let mut lines = stored.split_inclusive(|&b| b == b'\n');
    let (mut map, mut used) = (Vec::new(), 0);
    let mut number = || -> Result<i64> {
        let line = lines.next().ok_or(Refused)?;
        used += line.len();
        decimal(line.strip_suffix(b"\n").ok_or(Refused)?)
    };
    let count = number()?;
    if count < 0 {
        return Err(Refused);
    }
    for _ in 0..count {
        map.push((number()?, number()?));
    }
    let used = used.next_multiple_of(BLOCK);
    if used > stored.len() { Err(Refused) } else { Ok((map, used)) }
}

/// The stored parts at their offsets; every stored byte must belong to one.
fn spread(map: &[(i64, i64)], size: i64, mut stored: &[u8]) -> Result<Vec<(u64, Vec<u8>)>> {
    let (mut data, mut end) = (Vec::new(), 0);
    for &(offset, length) in map {
        let next = offset.checked_add(length).ok_or(Refused)?;
        if offset < end || length < 0 || next > size {
            return Err(Refused);
        }
        end = next;
        let (part, rest) = stored.split_at_checked(length as usize).ok_or(Refused)?;
        stored = rest;
        if length > 0 {
            data.push((offset as u64, part.to_vec()));
        }
    }
    if size < 0 || !stored.is_empty() { Err(Refused) } else { Ok(data) }
}
