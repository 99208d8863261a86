//! What is mounted from a store, by the mount table: also what plain mount(8) mounted, and no more after umount(8).

use layerstore::Mount;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A line of the mount table (proc_pid_mountinfo(5)).
struct Line {
    device: Vec<u8>,
    /// Which directory of the file system is shown.
    root: PathBuf,
    dir: PathBuf,
    kind: Vec<u8>,
    source: PathBuf,
    options: String,
}

/// A mount that shows something of the store at `store`, an absolute path without links.
pub(crate) struct Mounted {
    /// Where.
    pub(crate) dir: PathBuf,
    /// The mount, as far as the table tells.
    pub(crate) mount: Mount,
}

/// The store's mounts in this mount namespace that nothing else is mounted over; not those inside of it, which it has for
/// its own use.
pub(crate) fn from_store(store: &Path) -> Vec<Mounted> {
    of_table(&std::fs::read("/proc/self/mountinfo").unwrap_or_default(), store)
}

fn of_table(table: &[u8], store: &Path) -> Vec<Mounted> {
    let lines: Vec<Line> = table.split(|&b| b == b'\n').filter_map(parse).collect();
    // Binds tell the directory in its file system: where the store is in its own leads back to a path.
    let home =
        lines.iter().rev().filter(|line| store.starts_with(&line.dir)).max_by_key(|line| line.dir.as_os_str().len());
    let topmost = |(at, line): &(usize, &Line)| lines[at + 1..].iter().all(|later| later.dir != line.dir);
    let shown = |line: &Line| Some(Mounted { dir: line.dir.clone(), mount: shows(line, home?, store)? });
    let outside = lines.iter().enumerate().filter(|(_, line)| !line.dir.starts_with(store));
    outside.filter(topmost).filter_map(|(_, line)| shown(line)).collect()
}

/// The mount, if it is of the store.
fn shows(line: &Line, home: &Line, store: &Path) -> Option<Mount> {
    let within = |path: &Path| path != store && path.starts_with(store);
    let mount = |kind: &str, source: &Path, options: Vec<String>| {
        let source = source.to_string_lossy().into_owned();
        Some(Mount { kind: kind.to_owned(), source, target: String::new(), options })
    };
    if line.kind == b"overlay" {
        let options: Vec<String> = line.options.split(',').map(str::to_owned).collect();
        let of_store = |option: &String| {
            option.split_once('=').is_some_and(|(_, paths)| paths.split(':').any(|path| within(Path::new(path))))
        };
        return if options.iter().any(of_store) { mount("overlay", &line.source, options) } else { None };
    }
    if within(&line.source) {
        return mount("bind", &line.source, vec!["ro".to_owned()]);
    }
    let below = line.root.strip_prefix(&home.root).ok().filter(|_| line.device == home.device)?;
    let path = home.dir.join(below);
    if within(&path) { mount("bind", &path, vec!["rw".to_owned()]) } else { None }
}

fn parse(line: &[u8]) -> Option<Line> {
    let fields: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let path = |at: usize| Some(PathBuf::from(OsStr::from_bytes(&unescape(fields.get(at)?))));
    Some(Line {
        device: fields.get(2)?.to_vec(),
        root: path(3)?,
        dir: path(4)?,
        kind: fields.get(dash + 1)?.to_vec(),
        source: path(dash + 2)?,
        options: String::from_utf8_lossy(&unescape(fields.get(dash + 3)?)).into_owned(),
    })
}

/// `\040` and the like become what they stand for.
fn unescape(field: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::with_capacity(field.len()), field);
    while let [first, tail @ ..] = rest {
        let code = tail.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stores_mounts_are_told_from_others() {
        let table = b"1 0 8:1 / / rw - ext4 /dev/sda rw
2 1 8:2 /data /var/lib rw - ext4 /dev/sdb rw
3 1 0:9 / /image ro - erofs /var/lib/store/images/1.erofs ro
4 1 0:8 / /over\\040lay rw - overlay none rw,lowerdir+=/var/lib/store/trees/1,upperdir=/var/lib/store/snapshots/1/fs
5 1 8:2 /data/store/snapshots/2/fs /bind rw - ext4 /dev/sdb rw
6 1 8:1 /data/store/snapshots/2/fs /elsewhere rw - ext4 /dev/sda rw
7 1 0:7 / /other rw - overlay none rw,lowerdir=/var/lib/stores
7 1 0:9 / /var/lib/store/mounts/1 ro - erofs /var/lib/store/images/1.erofs ro
8 1 0:6 / /covered rw - erofs /var/lib/store/images/1.erofs ro
9 1 0:5 / /covered rw - tmpfs tmpfs rw
";
        let found = of_table(table, Path::new("/var/lib/store"));
        let dirs: Vec<_> = found.iter().map(|found| found.dir.to_str().expect("text")).collect();
        assert_eq!(dirs, ["/image", "/over lay", "/bind"]);
        assert!(found[1].mount.options.contains(&"upperdir=/var/lib/store/snapshots/1/fs".to_owned()));
        assert_eq!(found[2].mount.source, "/var/lib/store/snapshots/2/fs");
    }
}
