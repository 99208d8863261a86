//! Extended attributes: beside their inode, or once for all inodes where they repeat.
//!
//! Beside an inode stands a header of twelve bytes with the number of shared attributes, their places in units of four
//! bytes from the shared area on, then the inode's own. An attribute is the length of its name, a number for the
//! name's prefix, the length of its value, the rest of the name, and the value, filled up to four bytes.

use super::superblock::{bad, unsupported};
use super::{Put, u16_at, u32_at};
use crate::error::Result;
use crate::format::entry::Xattr;
use std::collections::HashMap;

const HEADER_LEN: usize = 12;
const UNIT: usize = 4;
/// `EROFS_XATTR_INDEX_*`. The two of ACLs are whole names.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];
/// Shared attributes of one inode; their number is a byte.
const SHARED_MAX: usize = 255;

fn prefix(name: &[u8]) -> Option<(&[u8], u8)> {
    let found = PREFIXES.iter().find_map(|(prefix, index)| Some((name.strip_prefix(*prefix)?, *index)));
    found.filter(|(rest, index)| rest.is_empty() == matches!(index, 2 | 3) && rest.len() <= 255)
}

fn encode(xattr: &Xattr) -> Result<Vec<u8>> {
    let name = String::from_utf8_lossy(&xattr.name);
    let (rest, index) =
        prefix(&xattr.name).ok_or_else(|| unsupported("an attribute's name", "a known prefix", &name))?;
    let len = u16::try_from(xattr.value.len());
    let len = len.map_err(|_| unsupported("an attribute's value", u16::MAX, xattr.value.len()).subject(name))?;
    let mut out = vec![0; (UNIT + rest.len() + xattr.value.len()).next_multiple_of(UNIT)];
    Put::new(&mut out, 0).bytes(&[rest.len() as u8, index]).u16(len).bytes(rest).bytes(&xattr.value);
    Ok(out)
}

/// The attributes that more than one inode has, in the order in which they first repeat.
#[derive(Default)]
pub(super) struct Shared {
    places: HashMap<Vec<u8>, u32>,
    pub(super) bytes: Vec<u8>,
}

impl Shared {
    /// Looks through the attributes of all inodes, in order.
    pub(super) fn new<'a>(all: impl Iterator<Item = &'a [Xattr]>) -> Result<Self> {
        let (mut seen, mut shared) = (HashMap::new(), Self::default());
        for xattr in all.flatten() {
            let encoded = encode(xattr)?;
            let count = seen.entry(encoded).or_insert_with_key(|_| 0u32);
            *count += 1;
            if *count == 2 {
                let encoded = encode(xattr)?;
                let place = (shared.bytes.len() / UNIT) as u32;
                shared.bytes.extend_from_slice(&encoded);
                shared.places.insert(encoded, place);
            }
        }
        Ok(shared)
    }

    /// What stands after an inode with these attributes: nothing if it has none.
    pub(super) fn beside(&self, xattrs: &[Xattr]) -> Result<Vec<u8>> {
        if xattrs.is_empty() {
            return Ok(vec![]);
        }
        let (mut places, mut own) = (Vec::new(), Vec::new());
        for xattr in xattrs {
            let encoded = encode(xattr)?;
            match self.places.get(&encoded).filter(|_| places.len() < SHARED_MAX) {
                Some(place) => places.push(*place),
                None => own.extend_from_slice(&encoded),
            }
        }
        let mut out = vec![0; HEADER_LEN + UNIT * places.len()];
        out[4] = places.len() as u8;
        let mut put = Put::new(&mut out, HEADER_LEN);
        places.into_iter().for_each(|place| {
            put.u32(place);
        });
        out.extend_from_slice(&own);
        match count(out.len()) {
            Some(_) => Ok(out),
            None => Err(unsupported("bytes of an inode's attributes", UNIT * usize::from(u16::MAX), out.len())),
        }
    }
}

/// `i_xattr_icount` for `len` bytes beside an inode.
pub(super) fn count(len: usize) -> Option<u16> {
    if len == 0 { Some(0) } else { u16::try_from(1 + (len - HEADER_LEN) / UNIT).ok() }
}

/// Bytes beside an inode with this `i_xattr_icount`.
pub(super) fn len(count: u16) -> usize {
    if count == 0 { 0 } else { HEADER_LEN + UNIT * (usize::from(count) - 1) }
}

/// The attributes beside an inode, sorted; `shared` is the area of the shared ones.
pub(super) fn decode(beside: &[u8], shared: &[u8]) -> Result<Vec<Xattr>> {
    let damaged = || bad("damaged extended attributes");
    if beside.is_empty() {
        return Ok(vec![]);
    }
    let places = HEADER_LEN + UNIT * usize::from(*beside.get(4).ok_or_else(damaged)?);
    let (head, mut own) = beside.split_at_checked(places).ok_or_else(damaged)?;
    let mut out = Vec::new();
    for place in head[HEADER_LEN..].chunks_exact(UNIT) {
        let at = (u32_at(place, 0) as usize).checked_mul(UNIT).ok_or_else(damaged)?;
        out.push(decode_one(shared.get(at..).ok_or_else(damaged)?)?.0);
    }
    while !own.is_empty() {
        let (xattr, len) = decode_one(own)?;
        out.push(xattr);
        own = own.get(len..).ok_or_else(damaged)?;
    }
    out.sort_unstable();
    Ok(out)
}

fn decode_one(bytes: &[u8]) -> Result<(Xattr, usize)> {
    let damaged = || bad("a damaged extended attribute");
    let (head, rest) = bytes.split_at_checked(UNIT).ok_or_else(damaged)?;
    let (name_len, value_len) = (usize::from(head[0]), usize::from(u16_at(head, 2)));
    let prefix = PREFIXES.iter().find(|(_, index)| *index == head[1]).ok_or_else(damaged)?.0;
    let (name, rest) = rest.split_at_checked(name_len).ok_or_else(damaged)?;
    let value = rest.get(..value_len).ok_or_else(damaged)?;
    let xattr = Xattr { name: [prefix, name].concat(), value: value.to_vec() };
    Ok((xattr, (UNIT + name_len + value_len).next_multiple_of(UNIT)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn xattr(name: &str, value: &[u8]) -> Xattr {
        Xattr { name: name.as_bytes().to_vec(), value: value.to_vec() }
    }

    const NAMES: [&str; 6] =
        ["user.a", "user.bb", "trusted.x", "security.capability", "system.posix_acl_access", "user.ccc"];

    fn any_xattr() -> impl Strategy<Value = Xattr> {
        (proptest::sample::select(&NAMES[..]), proptest::collection::vec(0u8..3, 0..9)).prop_map(|(n, v)| xattr(n, &v))
    }

    proptest! {
        #[test]
        fn come_back(lists in proptest::collection::vec(proptest::collection::btree_set(any_xattr(), 0..5), 1..12)) {
            let lists: Vec<Vec<_>> = lists.into_iter().map(|l| l.into_iter().collect()).collect();
            let shared = Shared::new(lists.iter().map(|l| &l[..])).expect("known names");
            for list in &lists {
                let beside = shared.beside(list).expect("few");
                prop_assert_eq!(len(count(beside.len()).expect("few")), beside.len());
                prop_assert_eq!(&decode(&beside, &shared.bytes).expect("sound"), list);
            }
        }

        #[test]
        fn any_bytes_are_taken(beside in proptest::collection::vec(0u8..8, 0..60), shared in proptest::collection::vec(0u8..8, 0..60)) {
            let _ = decode(&beside, &shared);
        }
    }

    #[test]
    fn repeated_ones_are_shared_and_others_not() {
        let (same, own) = ([xattr("user.a", b"123")], [xattr("user.b", b"123")]);
        let shared = Shared::new([&same[..], &own, &same, &same].into_iter()).expect("known names");
        assert_eq!(shared.bytes.len(), 8);
        assert_eq!(shared.beside(&same).expect("few").len(), HEADER_LEN + 4);
        assert_eq!(shared.beside(&own).expect("few").len(), HEADER_LEN + 8);
    }

    #[test]
    fn what_the_format_cannot_hold_is_told() {
        for (name, len) in [("com.apple.x", 1), ("user.", 1), ("system.posix_acl_access2", 1), ("user.a", 65_536)] {
            let xattr = xattr(name, &vec![0; len]);
            let refused = Shared::default().beside(&[xattr]).unwrap_err();
            assert_eq!(refused.kind(), crate::ErrorKind::Unsupported, "{name}");
        }
        assert!(Shared::default().beside(&[xattr("user.a", &[0; 65_535])]).is_ok());
        let many: Vec<_> = (0..5).map(|i| xattr(&format!("user.{i}"), &[0; 65_000])).collect();
        assert!(Shared::default().beside(&many).is_err());
    }
}
