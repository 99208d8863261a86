//! Extended attributes beside their inode, or in one place for all inodes where they repeat.

use crate::error::{Error, ErrorKind, Result};
use crate::format::entry::Xattr;
use std::collections::HashMap;

/// What stands before an inode's attributes.
const HEADER_LEN: usize = 12;
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];
/// Shared attributes of one inode; the count is a byte.
const SHARED_MAX: usize = 255;

fn encode(xattr: &Xattr) -> Result<Vec<u8>> {
    let found = PREFIXES.iter().find_map(|(prefix, index)| Some((xattr.name.strip_prefix(*prefix)?, *index)));
    let (name, index) = found.ok_or_else(|| {
        let e = Error::new(ErrorKind::Unsupported, "an attribute EROFS has no prefix for");
        e.actual(String::from_utf8_lossy(&xattr.name))
    })?;
    let value_len = u16::try_from(xattr.value.len());
    let value_len = value_len.map_err(|_| Error::limit("an attribute's value", u16::MAX, xattr.value.len()))?;
    let mut out = vec![name.len() as u8, index];
    out.extend_from_slice(&value_len.to_le_bytes());
    out.extend_from_slice(name);
    out.extend_from_slice(&xattr.value);
    out.resize(out.len().next_multiple_of(4), 0);
    Ok(out)
}

/// The attributes that more than one inode has.
#[derive(Default)]
pub(super) struct Shared {
    ids: HashMap<Vec<u8>, u32>,
    pub(super) bytes: Vec<u8>,
}

impl Shared {
    /// Looks through all inodes' attributes, in order.
    pub(super) fn new<'a>(all: impl Iterator<Item = &'a [Xattr]>) -> Result<Self> {
        let (mut seen, mut shared) = (HashMap::new(), Self::default());
        for xattr in all.flatten() {
            let encoded = encode(xattr)?;
            let count: &mut u32 = seen.entry(encoded.clone()).or_insert(0);
            *count += 1;
            if *count == 2 {
                shared.ids.insert(encoded.clone(), (shared.bytes.len() / 4) as u32);
                shared.bytes.extend_from_slice(&encoded);
            }
        }
        Ok(shared)
    }

    /// What stands after an inode with these attributes, and its `i_xattr_icount`.
    pub(super) fn beside(&self, xattrs: &[Xattr]) -> Result<(Vec<u8>, u16)> {
        if xattrs.is_empty() {
            return Ok((vec![], 0));
        }
        let (mut ids, mut own) = (Vec::new(), Vec::new());
        for xattr in xattrs {
            let encoded = encode(xattr)?;
            match self.ids.get(&encoded).filter(|_| ids.len() < SHARED_MAX) {
                Some(id) => ids.push(*id),
                None => own.extend_from_slice(&encoded),
            }
        }
        let mut out = vec![0; HEADER_LEN];
        out[4] = ids.len() as u8;
        ids.iter().for_each(|id| out.extend_from_slice(&id.to_le_bytes()));
        out.extend_from_slice(&own);
        let count = 1 + (out.len() - HEADER_LEN) / 4;
        let count = u16::try_from(count).map_err(|_| Error::limit("attributes of an inode", u16::MAX, count))?;
        Ok((out, count))
    }
}

/// Bytes beside an inode for its `i_xattr_icount`.
pub(super) fn len(icount: u16) -> usize {
    if icount == 0 { 0 } else { HEADER_LEN + 4 * (usize::from(icount) - 1) }
}

/// The attributes beside an inode; `shared` gives the bytes from a shared one on.
pub(super) fn decode<'a>(beside: &'a [u8], shared: impl Fn(u32) -> &'a [u8]) -> Result<Vec<Xattr>> {
    let bad = || Error::corrupt("extended attributes of an EROFS image are damaged");
    if beside.is_empty() {
        return Ok(vec![]);
    }
    let count = usize::from(*beside.get(4).ok_or_else(bad)?);
    let ids = beside.get(HEADER_LEN..HEADER_LEN + 4 * count).ok_or_else(bad)?;
    let mut out = Vec::new();
    for id in ids.chunks_exact(4) {
        out.push(decode_one(shared(u32::from_le_bytes([id[0], id[1], id[2], id[3]])))?.0);
    }
    let mut own = &beside[HEADER_LEN + 4 * count..];
    while !own.is_empty() {
        let (xattr, len) = decode_one(own)?;
        out.push(xattr);
        own = own.get(len..).ok_or_else(bad)?;
    }
    out.sort();
    Ok(out)
}

fn decode_one(bytes: &[u8]) -> Result<(Xattr, usize)> {
    let bad = || Error::corrupt("an extended attribute of an EROFS image is damaged");
    let head = bytes.get(..4).ok_or_else(bad)?;
    let (name_len, value_len) = (usize::from(head[0]), usize::from(u16::from_le_bytes([head[2], head[3]])));
    let prefix = PREFIXES.iter().find(|(_, index)| *index == head[1]).ok_or_else(bad)?.0;
    let end = 4 + name_len + value_len;
    let name = bytes.get(4..4 + name_len).ok_or_else(bad)?;
    let value = bytes.get(4 + name_len..end).ok_or_else(bad)?;
    Ok((Xattr { name: [prefix, name].concat(), value: value.to_vec() }, end.next_multiple_of(4)))
}
