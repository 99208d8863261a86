//! Paths of entries: their normal form, their bounds, and which whiteout names may exist.
//!
//! A name is bytes without NUL. Nothing is resolved here: symlinks of the layer matter only in `links.rs` and when
//! layers are composed into a tree.

use crate::error::{Error, ErrorKind, Result};
use crate::limits::Limits;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// The normal form of `raw`: no leading or trailing `/`, no `.` and no empty components; empty for the root.
///
/// A `..` is refused even where it would stay inside the root: readers differ on whether it is resolved before or
/// after symlinks.
pub(crate) fn normalise(raw: &[u8], limits: &Limits) -> Result<Vec<u8>> {
    let mut path = Vec::with_capacity(raw.len().min(limits.path));
    let mut depth = 0;
    for component in raw.split(|&b| b == b'/') {
        match component {
            b"" | b"." => continue,
            b".." => return Err(Error::invalid("a path with a '..' component")),
            name if name.len() > limits.name => {
                return Err(Error::limit("a file name is too long", limits.name, name.len()));
            }
            _ => whiteout(component)?,
        }
        depth += 1;
        if depth > limits.depth {
            return Err(Error::limit("a path has too many components", limits.depth, depth));
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(component);
        if path.len() > limits.path {
            return Err(Error::limit("a path is too long", limits.path, raw.len()));
        }
    }
    if path.contains(&0) {
        return Err(Error::invalid("a path with a NUL byte"));
    }
    Ok(path)
}

/// Whether `raw` names the root by slashes alone, or names nothing.
pub(crate) fn is_bare_root(raw: &[u8]) -> bool {
    raw.iter().all(|&b| b == b'/')
}

/// Whether the last component of `raw` is a whiteout.
pub(crate) fn is_whiteout(raw: &[u8]) -> bool {
    let mut named = raw.rsplit(|&b| b == b'/').filter(|name| !matches!(*name, b"" | b"."));
    named.next().is_some_and(|last| last.starts_with(WHITEOUT))
}

/// Refuses whiteout names that remove nothing, the directory itself or its parent, and markers of markers.
fn whiteout(component: &[u8]) -> Result<()> {
    match component.strip_prefix(WHITEOUT) {
        None => Ok(()),
        Some(b"" | b"." | b"..") => Err(Error::invalid("a whiteout that names no file")),
        Some(b".wh.aufs" | b".wh.plnk" | b".wh.orph") => {
            Err(Error::new(ErrorKind::Unsupported, "aufs metadata, which no overlay layer has"))
        }
        Some(hidden) if hidden.starts_with(WHITEOUT) && component != OPAQUE => {
            Err(Error::invalid("a whiteout of a whiteout"))
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(raw: &[u8]) -> Result<Vec<u8>> {
        normalise(raw, &Limits::default())
    }

    #[test]
    fn drops_what_does_not_name() {
        for raw in ["a/b", "/a/b", "./a//b/", "a/./b/.", "///a/b//"] {
            assert_eq!(of(raw.as_bytes()).unwrap(), b"a/b", "{raw}");
        }
        for raw in ["", "/", ".", "./", "/./."] {
            assert_eq!(of(raw.as_bytes()).unwrap(), b"", "{raw}");
        }
        assert_eq!(of(b"...").unwrap(), b"...");
        assert_eq!(of(b"caf\xe9").unwrap(), b"caf\xe9");
    }

    #[test]
    fn refuses_parents_and_nul() {
        for raw in [&b".."[..], b"../a", b"a/..", b"a/../b", b"a\0b"] {
            assert_eq!(of(raw).unwrap_err().kind(), ErrorKind::InvalidInput, "{}", raw.escape_ascii());
        }
    }

    #[test]
    fn limits_are_inclusive() {
        let limits = Limits::default();
        let kind = |raw: Vec<u8>| of(&raw).map(drop).map_err(|e| e.kind());
        assert_eq!(kind(vec![b'n'; 255]), Ok(()));
        assert_eq!(kind(vec![b'n'; 256]), Err(ErrorKind::LimitExceeded));
        assert_eq!(kind(b"d/".repeat(limits.depth)), Ok(()));
        assert_eq!(kind(b"d/".repeat(limits.depth + 1)), Err(ErrorKind::LimitExceeded));
        let mut long = [&[b'n'; 255][..], b"/"].concat().repeat(16);
        long.pop();
        assert_eq!((long.len(), kind(long.clone())), (4095, Ok(())));
        long.extend_from_slice(b"/n");
        assert_eq!(kind(long), Err(ErrorKind::LimitExceeded));
    }

    #[test]
    fn knows_the_whiteouts_that_may_exist() {
        for good in ["d/.wh.x", ".wh..wh..opq", "d/.wh.x/y", ".wh...x", ".wh", "d.wh."] {
            assert!(of(good.as_bytes()).is_ok(), "{good}");
        }
        for bad in ["d/.wh.", "d/.wh..", "d/.wh...", ".wh..wh.foo", ".wh..wh.plnk/1.2", ".wh..wh.", "d/.wh../x"] {
            assert!(of(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
