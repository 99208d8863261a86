//! Which of a store's directories a mount shows.

use super::table::{Line, Next, Table};
use std::collections::HashSet;
use std::io::BufRead;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Source of overlays whose lower directories have names that say nothing, because this library had to hand them over as
/// descriptors.
pub(crate) const NAMELESS: &str = "layerstore";

/// Directories of a store that hold content: those below have names of their own.
const CONTENT: [&str; 4] = ["snapshots", "trees", "mounts", "images"];

/// Where a store is: in its file system, and in the trees of names that processes see.
#[derive(Debug)]
pub(super) struct Home {
    /// The file system's device in mount tables, and the store's path in it. `None` if the store's mount is in no table
    /// that this process sees, as in a chroot.
    at: Option<(Vec<u8>, PathBuf)>,
    store: PathBuf,
    /// The store's own path, and every other that leads to it.
    names: HashSet<PathBuf>,
}

/// What a mount shows of a store.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Shows {
    /// Names below the store, such as `snapshots/3/fs`.
    pub(super) names: Vec<PathBuf>,
    /// The one it writes to.
    pub(super) writes: Option<PathBuf>,
    /// It may be any: what it shows has no name.
    pub(super) any: bool,
}

impl Shows {
    pub(super) fn nothing(&self) -> bool {
        self.names.is_empty() && !self.any
    }
}

impl Home {
    /// Looks for the mount with this id in a table of this process; without an id, for the one that the path leads to.
    pub(super) fn find(store: &Path, mount: Option<u64>, table: &mut Table<impl BufRead>) -> std::io::Result<Self> {
        let mut found: Option<Line> = None;
        while let Some(next) = table.next()? {
            let Next::Line(line) = next else { continue };
            let better = || match mount {
                Some(id) => line.id == id,
                None => {
                    let len = |line: &Line| line.point.as_os_str().len();
                    store.starts_with(&line.point) && found.as_ref().is_none_or(|found| len(&line) >= len(found))
                }
            };
            if better() {
                found = Some(line);
            }
        }
        let at = found.and_then(|line| {
            let below = store.strip_prefix(&line.point).ok()?;
            Some((line.device, plain(&line.root?.join(below))))
        });
        Ok(Self { at, store: store.to_owned(), names: HashSet::from([store.to_owned()]) })
    }

    /// Notes if a mount makes the store visible under another name. Whether that was new.
    pub(super) fn learn(&mut self, line: &Line) -> bool {
        let Some((device, path)) = &self.at else { return false };
        let Some(root) = line.root.as_deref().filter(|_| line.device == *device) else { return false };
        let Ok(below) = path.strip_prefix(root) else { return false };
        self.names.insert(plain(&line.point.join(below)))
    }

    /// What a mount shows, by what cannot be any text: a bind by the file system's device and the directory in it, an
    /// overlay by its directories, EROFS by its image.
    pub(super) fn shows(&self, line: &Line) -> Shows {
        let mut shows = Shows::default();
        if let Some(name) = self.bound(line) {
            shows.writes = Some(name.clone());
            shows.names.push(name);
            return shows;
        }
        match &line.kind[..] {
            b"overlay" => self.overlay(line, &mut shows),
            b"erofs" => shows.names.extend(self.below(Path::new(std::ffi::OsStr::from_bytes(&line.source)))),
            _ => {}
        }
        shows
    }

    /// The name below the store that a bind mount shows.
    fn bound(&self, line: &Line) -> Option<PathBuf> {
        let root = line.root.as_deref()?;
        match &self.at {
            Some((device, path)) => {
                let below = root.strip_prefix(path).ok().filter(|_| line.device == *device)?;
                content(below)
            }
            None => self.ending(root),
        }
    }

    /// The name below the store of a path of which only the end is known, because where this process's root is in the
    /// file system is not.
    fn ending(&self, path: &Path) -> Option<PathBuf> {
        let own: Vec<_> = self.store.iter().skip(1).collect();
        let parts: Vec<_> = path.iter().skip(1).collect();
        let at = parts.windows(own.len().max(1)).position(|window| window == own)?;
        content(&parts[at + own.len()..].iter().collect::<PathBuf>())
    }

    fn overlay(&self, line: &Line, shows: &mut Shows) {
        let paths = line.overlay_paths();
        let (mut elsewhere, mut vague, mut nameless) = (false, vec![], false);
        for (key, path) in &paths {
            let name = self.below(path);
            let written = matches!(*key, b"upperdir" | b"workdir");
            if *key == b"upperdir" && name.is_some() {
                shows.writes.clone_from(&name);
            }
            match name {
                Some(name) => shows.names.push(name),
                None if is_descriptor(path) => nameless = true,
                None if path.is_relative() => vague.extend(self.relative(path)),
                // This library's overlays write nowhere but to the store.
                None => elsewhere |= written,
            }
        }
        if !elsewhere {
            shows.names.extend(vague);
            shows.any |= nameless && line.source == NAMELESS.as_bytes();
        }
        shows.names.sort();
        shows.names.dedup();
    }

    /// The name below the store of a path that leads into it.
    fn below(&self, path: &Path) -> Option<PathBuf> {
        let path = plain(path);
        match path.ancestors().find(|above| self.names.contains(*above)) {
            Some(store) => content(path.strip_prefix(store).ok()?),
            None if self.at.is_none() => self.ending(&path),
            None => None,
        }
    }

    /// The name below the store of a path that was given from a directory in it or above it. containerd shortens long
    /// lists of lower directories like this.
    fn relative(&self, path: &Path) -> Option<PathBuf> {
        let parts: Vec<&std::ffi::OsStr> = path.iter().filter(|part| *part != ".").collect();
        let from = |at: usize| parts[at..].iter().collect::<PathBuf>();
        let is_content = |part: &std::ffi::OsStr| CONTENT.iter().any(|dir| part == *dir);
        if let Some(at) = parts.iter().position(|part| is_content(part)) {
            let above: PathBuf = parts[..at].iter().collect();
            return content(&from(at)).filter(|_| at == 0 || self.names.iter().any(|name| name.ends_with(&above)));
        }
        let (first, second) = (parts.first()?, parts.get(1));
        let text = first.to_str()?;
        let number = text.bytes().all(|b| b.is_ascii_digit());
        if number && second.is_some_and(|second| *second == "fs" || *second == "work") {
            return Some(Path::new("snapshots").join(from(0)));
        }
        let digest = text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
        digest.then(|| Path::new("trees").join(from(0)))
    }
}

/// Paths as the kernel follows them, as far as the text tells: without `.` and doubled slashes.
fn plain(path: &Path) -> PathBuf {
    path.components().collect()
}

/// A name below the store, if it is of a directory or file with content, or of something in that.
fn content(below: &Path) -> Option<PathBuf> {
    let first = below.iter().next()?;
    (CONTENT.iter().any(|dir| first == *dir) && below.iter().count() >= 2).then(|| below.to_owned())
}

/// Whether a name says only which descriptor of a process it was.
fn is_descriptor(path: &Path) -> bool {
    path.starts_with("/proc") || path.starts_with("/dev/fd") || path == Path::new("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(table: &str, store: &str) -> Home {
        Home::find(Path::new(store), None, &mut Table::new(table.as_bytes())).expect("text")
    }

    fn shows(home: &Home, line: &str) -> (Vec<String>, bool) {
        let shows = home.shows(&Line::parse(line.as_bytes()).expect(line));
        (shows.names.iter().map(|name| name.display().to_string()).collect(), shows.any)
    }

    const TABLE: &str = "1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 8:2 /data /var/lib rw - ext4 /dev/sdb rw\n";

    #[test]
    fn what_a_mount_shows_is_told_by_what_it_is() {
        let home = home(TABLE, "/var/lib/store");
        let none: (Vec<String>, bool) = (vec![], false);
        for (line, expected) in [
            ("3 1 0:9 / /x ro - erofs /var/lib/store/images/1.erofs ro", "images/1.erofs"),
            ("4 1 0:8 / /x rw - overlay none rw,lowerdir+=/var/lib/store/trees/1,upperdir=/u", "trees/1"),
            ("4 1 0:8 / /x rw - overlay none rw,lowerdir=/a:/var/lib/store/snapshots/4/fs:/b", "snapshots/4/fs"),
            ("5 1 8:2 /data/store/snapshots/2/fs /x rw - ext4 /dev/sdb rw", "snapshots/2/fs"),
            ("5 1 0:8 / /x rw - overlay none rw,lowerdir=11/fs:snapshots/12/fs", "snapshots/11/fs"),
        ] {
            assert_eq!(shows(&home, line).0[0], expected, "{line}");
        }
        for line in [
            "3 1 0:9 / /x rw - tmpfs /var/lib/store/snapshots/1 rw",
            "3 1 0:9 / /x rw - fuse.x /var/lib/store/trees/1 rw,upperdir=/var/lib/store/trees/1",
            "5 1 8:1 /data/store/snapshots/2/fs /x rw - ext4 /dev/sda rw",
            "5 1 8:2 /data/store/snapshots/2/fs//deleted /x rw - ext4 /dev/sdb rw",
            "5 1 8:2 /data/stores/snapshots/2/fs /x rw - ext4 /dev/sdb rw",
            "5 1 8:2 /data/store /x rw - ext4 /dev/sdb rw",
            "5 1 8:2 /data/store/snapshots /x rw - ext4 /dev/sdb rw",
            "4 1 0:8 / /x rw - overlay none rw,lowerdir=/var/lib/stores/trees/1",
            // Of other programs.
            "4 1 0:8 / /x rw - overlay overlay rw,lowerdir=l/ABC:l/DEF,upperdir=/var/lib/docker/1/diff",
            "4 1 0:8 / /x rw - overlay overlay rw,lowerdir=11/fs:12/fs,upperdir=/other/snapshots/13/fs",
            "4 1 0:8 / /x rw - overlay composefs ro,lowerdir+=/proc/self/fd/5,datadir+=/proc/self/fd/6",
        ] {
            assert_eq!(shows(&home, line), none, "{line}");
        }
        let nameless = "4 1 0:8 / /x rw - overlay layerstore ro,lowerdir+=/proc/self/fd/5,lowerdir+=/proc/self/fd/6";
        assert_eq!(shows(&home, nameless), (vec![], true));
    }

    #[test]
    fn a_store_on_an_overlay_is_told_from_the_overlay() {
        let table = "1 0 0:30 / / rw - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w\n";
        let home = home(table, "/store");
        assert_eq!(shows(&home, table.trim()).0, [""; 0]);
        let bind = "2 1 0:30 /store/snapshots/1/fs /x rw - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w";
        assert_eq!(shows(&home, bind).0, ["snapshots/1/fs"]);
        let own = "2 1 0:31 / /x rw - overlay overlay rw,lowerdir=/store/trees/1,upperdir=/store/snapshots/2/fs";
        assert_eq!(shows(&home, own).0, ["snapshots/2/fs", "trees/1"]);
    }

    #[test]
    fn other_names_of_the_store_are_learned() {
        let mut home = home(TABLE, "/var/lib/store");
        let line = "3 1 0:9 / /x rw - overlay o rw,lowerdir=/in/a/container/snapshots/7/fs";
        assert_eq!(shows(&home, line).0, [""; 0]);
        let parse = |line: &str| Line::parse(line.as_bytes()).expect(line);
        assert!(!home.learn(&parse("4 1 8:1 /data/store /in/a/container rw - ext4 /dev/sda rw")), "another device");
        assert!(!home.learn(&parse("4 1 8:2 /data/store/trees /in rw - ext4 /dev/sda rw")), "only a part");
        assert!(home.learn(&parse("4 1 8:2 /data/store /in/a/container rw - ext4 /dev/sdb rw")));
        assert!(!home.learn(&parse("4 1 8:2 /data/store /in/a/container rw - ext4 /dev/sdb rw")), "known");
        assert_eq!(shows(&home, line).0, ["snapshots/7/fs"]);
    }

    #[test]
    fn in_a_chroot_the_end_of_the_path_tells() {
        let home = Home::find(Path::new("/s/tore"), Some(9), &mut Table::new(TABLE.as_bytes())).expect("text");
        assert_eq!(home.at, None);
        let bind = |root: &str| shows(&home, &format!("5 1 8:7 {root} /x rw - ext4 /dev/sdb rw")).0;
        assert_eq!(bind("/jail/s/tore/snapshots/3/fs"), ["snapshots/3/fs"]);
        assert_eq!(bind("/jail/other/snapshots/3/fs"), [""; 0]);
        let over = |lower: &str| shows(&home, &format!("5 1 0:7 / /x rw - overlay o rw,lowerdir={lower}")).0;
        assert_eq!(over("/s/tore/snapshots/4/fs"), ["snapshots/4/fs"]);
        assert_eq!(over("/jail/s/tore/snapshots/4/fs"), ["snapshots/4/fs"], "mounted from outside");
        assert_eq!(over("/jail/tore/snapshots/4/fs"), [""; 0]);
    }
}
