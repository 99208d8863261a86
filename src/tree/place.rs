//! Where a path leads inside the root: symlinks followed, `..` stopped at the root.
//!
//! One walk serves parents of entries, targets of hard links, parents of whiteouts and look-ups; what is at each name is
//! asked of the caller. `..` undoes the step before it even where that directory does not exist yet, as containerd
//! (`fs.RootPath`) and umoci (`SecureJoin`) do; the kernel would fail there.

use super::NodeId;
use crate::error::{Error, Result};

/// Symlinks followed in one path before it counts as a loop; the kernel's `MAXSYMLINKS`.
const MAX_LINKS: u32 = 40;

/// Names gone through in one path, those of symlinks' targets and `..` included: a path alone has no more than 2,048,
/// but the targets of 40 links may have 80,000.
const MAX_STEPS: u32 = 4096;

/// What is at a name.
pub(super) enum Found<'a> {
    /// A directory of the tree.
    Directory(NodeId),
    /// Nothing, or a directory that is not in the tree (yet).
    Missing,
    /// A symlink with this text.
    Symlink(&'a [u8]),
    /// What is neither; `None` if the tree does not have it (yet).
    Other(Option<NodeId>),
}

/// Where a path ended.
pub(super) enum End<'a> {
    /// At a directory, there or still to be made.
    Directory(Place<'a>),
    /// At what is no directory, as the very last step.
    Inode(NodeId),
    /// The path goes on after what is no directory.
    NotDirectory,
}

/// A directory inside the root, whose last components may not exist yet.
pub(super) struct Place<'a> {
    /// The directories that exist, from the root on.
    directories: Vec<NodeId>,
    /// The names from the root to here: first those of `directories`, then the missing ones.
    names: Vec<&'a [u8]>,
    /// A step into nothing was undone by `..`: once something is there, the path may lead elsewhere.
    provisional: bool,
}

impl<'a> Place<'a> {
    fn root() -> Self {
        Self { directories: vec![NodeId(0)], names: Vec::new(), provisional: false }
    }

    /// Whether names that are added later can change where the path leads.
    pub(super) fn provisional(&self) -> bool {
        self.provisional
    }

    /// The directory, if it exists.
    pub(super) fn directory(&self) -> Option<NodeId> {
        if self.missing().is_empty() { self.directories.last().copied() } else { None }
    }

    /// The deepest directory that exists.
    pub(super) fn deepest(&self) -> NodeId {
        self.directories.last().copied().unwrap_or(NodeId(0))
    }

    /// The names to be made below [`deepest`](Self::deepest).
    pub(super) fn missing(&self) -> &[&'a [u8]] {
        &self.names[self.directories.len() - 1..]
    }

    /// All names from the root, symlinks resolved.
    pub(super) fn names(&self) -> &[&'a [u8]] {
        &self.names
    }

    fn enter(&mut self, name: &'a [u8], id: Option<NodeId>) {
        self.names.push(name);
        self.directories.extend(id);
    }

    fn leave(&mut self) {
        self.provisional |= !self.missing().is_empty();
        self.names.pop();
        self.directories.truncate(self.names.len() + 1);
    }
}

#[cfg(test)]
thread_local! {
    /// Steps that this thread made in all paths, for tests of how much work something is.
    pub(super) static STEPS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Follows `path` from the root; `find` says what is at a name of a place. Fails on a loop of symlinks, beyond
/// `depth` components and after 4,096 steps.
pub(super) fn follow<'a, F>(path: &'a [u8], depth: usize, mut find: F) -> Result<End<'a>>
where
    F: FnMut(&Place<'a>, &'a [u8]) -> Result<Found<'a>>,
{
    let mut place = Place::root();
    let (mut links, mut steps) = (0, 0);
    // Texts still to be followed, innermost last.
    let mut pending = vec![path];
    while let Some(text) = pending.pop() {
        steps += 1;
        #[cfg(test)]
        STEPS.set(STEPS.get() + 1);
        if steps > MAX_STEPS {
            return Err(Error::limit("a path leads through too many names", MAX_STEPS, steps));
        }
        let (name, rest) = match text.iter().position(|&b| b == b'/') {
            Some(i) => (&text[..i], &text[i + 1..]),
            None => (text, &b""[..]),
        };
        if !rest.is_empty() {
            pending.push(rest);
        }
        match name {
            b"" | b"." => continue,
            b".." => {
                place.leave();
                continue;
            }
            _ => {}
        }
        match find(&place, name)? {
            Found::Directory(id) => place.enter(name, Some(id)),
            Found::Missing => place.enter(name, None),
            Found::Symlink(target) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Error::invalid("symbolic links form a loop or too long a chain")
                        .expected(format!("at most {MAX_LINKS} in a path")));
                }
                if target.starts_with(b"/") {
                    place.names.clear();
                    place.directories.truncate(1);
                }
                pending.push(target);
            }
            Found::Other(Some(id)) if pending.is_empty() => return Ok(End::Inode(id)),
            Found::Other(_) => return Ok(End::NotDirectory),
        }
        if place.names.len() > depth {
            return Err(Error::limit("directories nested too deep", depth, place.names.len()));
        }
    }
    Ok(End::Directory(place))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Directories a (1) and a/b (2); links s -> a, abs -> /a/b, up -> ../../a, l -> l, deep -> x/../y; a file f.
    fn find<'a>(place: &Place<'a>, name: &'a [u8]) -> Result<Found<'a>> {
        Ok(match (place.directory(), name) {
            (Some(NodeId(0)), b"a") => Found::Directory(NodeId(1)),
            (Some(NodeId(1)), b"b") => Found::Directory(NodeId(2)),
            (Some(NodeId(0)), b"s") => Found::Symlink(b"a"),
            (Some(NodeId(0)), b"abs") => Found::Symlink(b"/a//b/"),
            (Some(NodeId(1)), b"up") => Found::Symlink(b"../../a"),
            (Some(NodeId(0)), b"l") => Found::Symlink(b"l"),
            (Some(NodeId(0)), b"deep") => Found::Symlink(b"x/../y"),
            (Some(NodeId(0)), b"f") => Found::Other(Some(NodeId(9))),
            _ => Found::Missing,
        })
    }

    fn shown(path: &str) -> String {
        match follow(path.as_bytes(), 5, find) {
            Ok(End::Directory(place)) => {
                let names: Vec<_> = place.names().iter().map(|n| String::from_utf8_lossy(n)).collect();
                format!("/{} {} {}", names.join("/"), place.deepest().0, place.missing().len())
            }
            Ok(End::Inode(id)) => format!("inode {}", id.0),
            Ok(End::NotDirectory) => "not a directory".into(),
            Err(e) => e.kind().to_string(),
        }
    }

    /// containerd `fs.RootPath`, umoci `SecureJoin`; openat2(2) RESOLVE_IN_ROOT.
    #[test]
    fn stays_inside_the_root() {
        assert_eq!(shown(""), "/ 0 0");
        assert_eq!(shown("s/b"), "/a/b 2 0");
        assert_eq!(shown("abs"), "/a/b 2 0");
        assert_eq!(shown("a/up/b"), "/a/b 2 0");
        assert_eq!(shown("deep/z"), "/y/z 0 2");
        assert_eq!(shown("a/n/m"), "/a/n/m 1 2");
        assert_eq!(shown("f"), "inode 9");
        assert_eq!(shown("f/x"), "not a directory");
        assert_eq!(shown("f/.."), "not a directory");
        assert_eq!(shown("l/x"), "invalid-input");
        assert_eq!(shown("n/n/n/n/n/n"), "limit-exceeded");
        assert_eq!(shown(&"a/../".repeat(2048)), "/ 0 0");
        assert_eq!(shown(&"a/../".repeat(2049)), "limit-exceeded");
    }
}
