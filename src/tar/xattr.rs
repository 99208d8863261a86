//! Which extended attributes of a tar become attributes of an entry, and how PAX writes them.
//!
//! Two encodings exist: `SCHILY.xattr.<name>` with the value as it is (star, GNU tar, Go), and
//! `LIBARCHIVE.xattr.<name, percent-encoded>` with the value in base64 (libarchive, which writes both). Go, and so every
//! container engine, knows only the first, and so does GNU tar: an attribute in the second form alone is ignored, and
//! one in both forms must have the same value in both. The exception is a name with a `=`, which would end a PAX key:
//! only the second form can have it, and [`super::Writer`] writes it so. Bounds are the kernel's
//! (`include/uapi/linux/limits.h`: XATTR_NAME_MAX, XATTR_SIZE_MAX, XATTR_LIST_MAX).

use crate::error::{Error, Result};
use crate::format::base64;
use crate::format::entry::Xattr;

pub(crate) const SCHILY: &[u8] = b"SCHILY.xattr.";
pub(crate) const LIBARCHIVE: &[u8] = b"LIBARCHIVE.xattr.";

const NAME_MAX: usize = 255;
const VALUE_MAX: usize = 65_536;
/// Bound on all names of a file, each with its NUL.
const NAMES_MAX: usize = 65_536;

/// Which of the two encodings an attribute came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Schily,
    Libarchive,
}

/// The attributes of one entry while its PAX header is read.
#[derive(Default)]
pub(crate) struct Collector {
    found: Vec<Found>,
}

/// One record of an attribute.
struct Found {
    name: Vec<u8>,
    /// `None` for base64 that is none.
    value: Option<Vec<u8>>,
    source: Source,
}

impl Collector {
    pub(crate) fn clear(&mut self) {
        self.found.clear();
    }

    /// Takes one PAX record if it is an attribute, and says so.
    pub(crate) fn record(&mut self, key: &[u8], value: &[u8]) -> Result<bool> {
        if let Some(name) = key.strip_prefix(SCHILY) {
            if check(name, value)? {
                self.found.push(Found { name: name.to_vec(), value: Some(value.to_vec()), source: Source::Schily });
            }
        } else if let Some(name) = key.strip_prefix(LIBARCHIVE) {
            let Some(name) = percent_decode(name) else { return Ok(true) };
            let value = base64::decode_loose(value);
            let not_base64 = || Error::invalid("an xattr that is not base64");
            // Only such a name counts by itself; another is held against what SCHILY says.
            if !name.contains(&b'=') || check(&name, value.as_deref().ok_or_else(not_base64)?)? {
                self.found.push(Found { name, value, source: Source::Libarchive });
            }
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// The attributes, sorted by name; of records with the same key the last counts.
    pub(crate) fn finish(&mut self) -> Result<Vec<Xattr>> {
        if self.found.is_empty() {
            return Ok(Vec::new());
        }
        self.found.sort_by(|a, b| a.name.cmp(&b.name));
        let mut xattrs: Vec<Xattr> = Vec::with_capacity(self.found.len());
        // Of a name's records: the last of each source, which must then agree.
        for group in self.found.chunk_by(|a, b| a.name == b.name) {
            let last = |source| group.iter().rfind(|found| found.source == source);
            let kept = match (last(Source::Schily), last(Source::Libarchive)) {
                (Some(a), Some(b)) if a.value != b.value => {
                    let name = a.name.escape_ascii();
                    return Err(Error::invalid(format!("xattr {name} has two different values")));
                }
                (None, Some(found)) => Some(found).filter(|found| found.name.contains(&b'=')),
                (found, _) => found,
            };
            let whole = kept.and_then(|found| Some(Xattr { name: found.name.clone(), value: found.value.clone()? }));
            xattrs.extend(whole);
        }
        self.found.clear();
        check_names(&xattrs)?;
        Ok(xattrs)
    }
}

/// Bounds the names of one file as the kernel does for `listxattr`.
pub(crate) fn check_names(xattrs: &[Xattr]) -> Result<()> {
    let total: usize = xattrs.iter().map(|x| x.name.len() + 1).sum();
    if total > NAMES_MAX {
        return Err(Error::limit("the names of the xattrs are too long together", NAMES_MAX, total));
    }
    Ok(())
}

/// Whether the attribute belongs to the entry (`true`), is for another system (`false`), or must not exist.
pub(crate) fn check(name: &[u8], value: &[u8]) -> Result<bool> {
    let shown = name[..name.len().min(NAME_MAX)].escape_ascii();
    if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
        // In a lower directory these would steer overlayfs: redirect, opaque, metacopy, whiteout.
        return Err(Error::invalid(format!("xattr {shown} belongs to overlayfs")));
    }
    match name.iter().position(|&b| b == b'.').map(|dot| name.split_at(dot + 1)) {
        Some((b"user." | b"trusted." | b"security.", rest)) if !rest.is_empty() => {}
        Some((b"system.", b"posix_acl_access" | b"posix_acl_default")) if is_acl(value) => {}
        Some((b"system.", b"posix_acl_access" | b"posix_acl_default")) => {
            return Err(Error::invalid(format!("xattr {shown} is not an ACL")));
        }
        Some((b"system.", _)) => return Err(Error::invalid(format!("xattr {shown} is not supported in layers"))),
        Some((b"user." | b"trusted." | b"security.", _)) => {
            return Err(Error::invalid(format!("xattr {shown} has an empty name")));
        }
        _ => return Ok(false),
    }
    if name.contains(&0) {
        return Err(Error::invalid(format!("xattr {shown} has a NUL in its name")));
    }
    if name.len() > NAME_MAX {
        return Err(Error::limit(format!("the name of xattr {shown}... is too long"), NAME_MAX, name.len()));
    }
    if value.len() > VALUE_MAX {
        return Err(Error::limit(format!("the value of xattr {shown} is too long"), VALUE_MAX, value.len()));
    }
    Ok(true)
}

/// Whether the kernel would take `value` as an ACL (`fs/posix_acl.c`, `posix_acl_valid`): version 2, then entries of
/// tag, permissions and id in the order owner, users, group, groups, mask, others.
fn is_acl(value: &[u8]) -> bool {
    const USER: u16 = 2;
    const GROUP: u16 = 8;
    let Some((&[2, 0, 0, 0], entries)) = value.split_first_chunk() else { return false };
    let (entries, rest) = entries.as_chunks::<8>();
    let (mut last, mut seen) = (0u16, 0u16);
    for &[t0, t1, p0, p1, id @ ..] in entries {
        let (tag, permissions) = (u16::from_le_bytes([t0, t1]), u16::from_le_bytes([p0, p1]));
        let named = tag == USER || tag == GROUP;
        let ordered = tag > last || (named && tag == last);
        if !matches!(tag, 1 | 2 | 4 | 8 | 16 | 32) || permissions > 7 || !ordered || (named && id == [0xff; 4]) {
            return false;
        }
        last = tag;
        seen |= tag;
    }
    let needs_mask = seen & (USER | GROUP) != 0;
    rest.is_empty() && seen & 0b10_0101 == 0b10_0101 && (!needs_mask || seen & 16 != 0)
}

fn percent_decode(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |b: u8| (b as char).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.iter().copied();
    while let Some(byte) = rest.next() {
        out.push(match byte {
            b'%' => digit(rest.next()?)? << 4 | digit(rest.next()?)?,
            byte => byte,
        });
    }
    Some(out)
}

/// The form of a name that survives in a PAX key.
pub(crate) fn percent_encode(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    for &byte in name {
        match byte {
            b'%' | b'=' | 0..=32 | 127.. => out.extend_from_slice(format!("%{byte:02X}").as_bytes()),
            byte => out.push(byte),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use proptest::prelude::*;

    /// u::rwx u:1000:r g::rx m::rx o::r, as `getfattr` shows it.
    const ACL: &[u8] = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x04\0\xe8\x03\0\0\x04\0\x05\0\xff\xff\xff\xff\x10\0\x05\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";

    #[test]
    fn sorts_the_namespaces() {
        let kind = |name: &str, value: &[u8]| check(name.as_bytes(), value).map_err(|e| e.kind());
        for kept in ["user.a", "trusted.x", "security.selinux", "user.overlayx", "trusted.overlay"] {
            assert_eq!(kind(kept, b""), Ok(true), "{kept}");
        }
        for foreign in ["com.apple.quarantine", "nodot", "", ".x"] {
            assert_eq!(kind(foreign, b""), Ok(false), "{foreign}");
        }
        for bad in ["trusted.overlay.x", "user.overlay.opaque", "system.nfs4_acl", "system.", "user.", "user.a\0b"] {
            assert_eq!(kind(bad, b""), Err(ErrorKind::InvalidInput), "{bad}");
        }
        assert_eq!(kind("system.posix_acl_access", ACL), Ok(true));
        assert_eq!(kind(&format!("user.{}", "n".repeat(250)), b""), Ok(true));
        assert_eq!(kind(&format!("user.{}", "n".repeat(251)), b""), Err(ErrorKind::LimitExceeded));
        assert_eq!(kind("user.a", &[0; 65_536]), Ok(true));
        assert_eq!(kind("user.a", &[0; 65_537]), Err(ErrorKind::LimitExceeded));
    }

    #[test]
    fn acls_are_what_the_kernel_takes() {
        assert!(is_acl(ACL));
        assert!(!is_acl(&ACL[..4]), "no entries");
        assert!(!is_acl(&ACL[..ACL.len() - 1]), "cut");
        assert!(!is_acl(&ACL[..ACL.len() - 8]), "no entry for others");
        assert!(!is_acl(&[&ACL[..28], &ACL[36..]].concat()), "no mask");
        for (at, byte) in [(0, 1), (4, 64), (6, 8), (12, 4)] {
            let mut bad = ACL.to_vec();
            bad[at] = byte;
            assert!(!is_acl(&bad), "byte {at}");
        }
    }

    #[test]
    fn both_encodings_may_agree_and_not_differ() {
        let mut found = Collector::default();
        let mut of = |records: &[(&str, &str)]| {
            found.clear();
            for (key, value) in records {
                assert!(found.record(key.as_bytes(), value.as_bytes())?);
            }
            found.finish()
        };
        let a = Xattr { name: b"user.a".to_vec(), value: b"vv".to_vec() };
        let both = [("LIBARCHIVE.xattr.user.%61", "dnY"), ("SCHILY.xattr.user.a", "vv")];
        assert_eq!(of(&both).unwrap(), std::slice::from_ref(&a));
        assert_eq!(of(&both[1..]).unwrap(), [a]);
        let differ = [("LIBARCHIVE.xattr.user.a", "dnY="), ("SCHILY.xattr.user.a", "vw")];
        assert_eq!(of(&differ).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(of(&[("SCHILY.xattr.user.a", "1"), ("SCHILY.xattr.user.a", "2")]).unwrap()[0].value, b"2");
        assert!(of(&[("LIBARCHIVE.xattr.user.a", "a"), ("SCHILY.xattr.user.a", "i")]).is_err(), "not base64");
    }

    #[test]
    fn libarchive_alone_counts_only_for_names_that_schily_cannot_have() {
        let mut found = Collector::default();
        let mut of = |key: &str, value: &str| {
            found.clear();
            assert!(found.record(key.as_bytes(), value.as_bytes())?);
            found.finish()
        };
        for (key, value) in [
            ("LIBARCHIVE.xattr.user.a", "dnY"),
            ("LIBARCHIVE.xattr.security.capability", "AQAAAgAEAAAAAAAAAAAAAAAAAAA"),
            ("LIBARCHIVE.xattr.trusted.overlay.redirect", "L3g"),
            ("LIBARCHIVE.xattr.user.a%g0", ""),
            ("LIBARCHIVE.xattr.user.a", "a"),
            ("LIBARCHIVE.xattr.user.a%00", ""),
        ] {
            assert_eq!(of(key, value).unwrap(), [], "{key}");
        }
        let a = Xattr { name: b"user.a=".to_vec(), value: b"vv".to_vec() };
        assert_eq!(of("LIBARCHIVE.xattr.user.a%3d", "dnY").unwrap(), [a]);
        assert!(of("LIBARCHIVE.xattr.user.a%3d", "a").is_err());
        assert!(of("LIBARCHIVE.xattr.trusted.overlay.%3d", "").is_err());
    }

    proptest! {
        #[test]
        fn percent_encoding_round_trips(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(percent_decode(&percent_encode(&bytes)), Some(bytes));
        }
    }
}
