//! Reading a mount table (proc_pid_mountinfo(5)), one line at a time: memory does not grow with the
//! table.

use std::ffi::OsString;
use std::io::{self, BufRead, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// The longest line that is read. 500 lower directories of 4 KiB each, with every byte escaped, are
/// 8 MB.
const LINE_MAX: usize = 10 << 20;

/// What the kernel appends to the root of a bind mount whose directory was removed.
const DELETED: &[u8] = b"//deleted";

/// A line of the table: one mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) id: u64,
    /// The mount that this one is mounted on.
    pub(super) parent: u64,
    /// The file system, as `major:minor`. Not always the device that stat(2) tells of what is in
    /// it.
    pub(super) device: Vec<u8>,
    /// The directory of the file system that is shown; `None` for one that was removed.
    pub(super) root: Option<PathBuf>,
    /// Where it is mounted, as the process sees it whose table this is.
    pub(super) point: PathBuf,
    pub(super) kind: Vec<u8>,
    /// What was mounted. For many kinds of file systems any text.
    pub(super) source: Vec<u8>,
    /// The options of the file system, still escaped, as commas and colons in values are told by
    /// that.
    options: Vec<u8>,
}

impl Line {
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        let (mount, rest) = split_at(line, b" - ")?;
        let mut fields = mount.split(|&b| b == b' ');
        let mut field = || fields.next();
        let (id, parent, device, root, point) = (field()?, field()?, field()?, field()?, field()?);
        let mut rest = rest.splitn(3, |&b| b == b' ');
        let (kind, source, options) = (rest.next()?, rest.next()?, rest.next()?);
        let root = unescape(root);
        let root = if root.ends_with(DELETED) { None } else { Some(path(root)) };
        Some(Self {
            id: number(id)?,
            parent: number(parent)?,
            device: device.to_vec(),
            root,
            point: path(unescape(point)),
            kind: unescape(kind),
            source: unescape(source),
            options: options.to_vec(),
        })
    }

    /// The directories that an overlay's options name, with the option. The kernel writes a list of
    /// lower directories in several ways, depending on its version and on how they were given;
    /// where a text can be read in two ways, both are among the results.
    pub(super) fn overlay_paths(&self) -> Vec<(&[u8], PathBuf)> {
        let mut found = Vec::new();
        for option in self.options.split(|&b| b == b',') {
            let Some(at) = option.iter().position(|&b| b == b'=') else { continue };
            let (key, value) = (&option[..at], &option[at + 1..]);
            let values = match key {
                b"lowerdir" => lowers(value),
                // Given one by one, they are not escaped; before Linux 6.5, and by mount(2), they
                // may be.
                b"lowerdir+" | b"datadir+" | b"upperdir" | b"workdir" => both(&unescape(value)),
                _ => continue,
            };
            found.extend(values.into_iter().filter(|value| !value.is_empty()).map(|value| (key, path(value))));
        }
        found
    }
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn path(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes))
}

fn split_at<'a>(line: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = line.windows(separator.len()).position(|found| found == separator)?;
    Some((&line[..at], &line[at + separator.len()..]))
}

/// The directories of a `lowerdir` value, each as it is and without the backslashes that mount(2)
/// takes.
fn lowers(value: &[u8]) -> Vec<Vec<u8>> {
    const BACKSLASH: &[u8] = b"\\134";
    let (mut found, mut start, mut joined) = (Vec::new(), 0, 0);
    for at in (0..value.len()).filter(|&at| value[at] == b':').chain([value.len()]) {
        found.extend(both(&unescape(&value[start..at])));
        // A colon after a backslash is part of a name, unless the name ends with the backslash.
        if !value[joined..at].ends_with(BACKSLASH) {
            if joined != start {
                found.extend(both(&unescape(&value[joined..at])));
            }
            joined = at + 1;
        }
        start = at + 1;
    }
    found
}

/// A value as it is, and if it has backslashes, as overlayfs reads it.
fn both(value: &[u8]) -> Vec<Vec<u8>> {
    let mut found = vec![value.to_vec()];
    if value.contains(&b'\\') {
        let (mut plain, mut bytes) = (Vec::with_capacity(value.len()), value.iter());
        while let Some(&byte) = bytes.next() {
            plain.push(if byte == b'\\' { *bytes.next().unwrap_or(&byte) } else { byte });
        }
        found.push(plain);
    }
    found
}

/// Replaces the octal escapes of the kernel (`\040`) with what they stand for.
fn unescape(field: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::with_capacity(field.len()), field);
    while let [first, tail @ ..] = rest {
        let octal = |digits: &[u8]| {
            let value = digits.iter().try_fold(0u32, |sum, d| Some(sum * 8 + (*d as char).to_digit(8)?))?;
            u8::try_from(value).ok()
        };
        match tail.get(..3).filter(|_| *first == b'\\').and_then(octal) {
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

/// What a table has next.
#[derive(Debug)]
pub(super) enum Next {
    Line(Line),
    /// A line that is too long, or none that this version understands.
    Unknown,
}

/// A table being read.
pub(super) struct Table<R> {
    reader: R,
    line: Vec<u8>,
}

impl<R: BufRead> Table<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, line: Vec::new() }
    }

    /// The next line; `None` after the last.
    pub(super) fn next(&mut self) -> io::Result<Option<Next>> {
        self.line.clear();
        if (&mut self.reader).take(LINE_MAX as u64).read_until(b'\n', &mut self.line)? == 0 {
            return Ok(None);
        }
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
        } else if self.line.len() == LINE_MAX {
            self.skip()?;
            self.line = Vec::new();
            return Ok(Some(Next::Unknown));
        }
        Ok(Some(Line::parse(&self.line).map_or(Next::Unknown, Next::Line)))
    }

    /// Skips the rest of a line.
    fn skip(&mut self) -> io::Result<()> {
        loop {
            let buffer = self.reader.fill_buf()?;
            let (len, end) = match buffer.iter().position(|&b| b == b'\n') {
                Some(at) => (at + 1, true),
                None => (buffer.len(), buffer.is_empty()),
            };
            self.reader.consume(len);
            if end {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn line(text: &str) -> Line {
        Line::parse(text.as_bytes()).expect(text)
    }

    #[test]
    fn fields_are_read_and_escapes_replaced() {
        let read =
            line(r"36 35 98:0 /mnt\0401 /mnt\0112\134x rw,noatime master:1 shared:2 - ext3 /dev/a\040b rw,errors=x");
        assert_eq!((read.id, read.parent, &read.device[..]), (36, 35, &b"98:0"[..]));
        assert_eq!(read.root.as_deref(), Some(Path::new("/mnt 1")));
        assert_eq!(read.point, Path::new("/mnt\t2\\x"));
        assert_eq!((&read.kind[..], &read.source[..]), (&b"ext3"[..], &b"/dev/a b"[..]));
        // An empty source, and options with a space.
        let read = line("1 2 0:5 / /x rw - tmpfs  rw,a b");
        assert_eq!((&read.source[..], &read.options[..]), (&b""[..], &b"rw,a b"[..]));
        assert_eq!(line("1 2 0:5 /gone//deleted /x rw - ext4 d rw").root, None);
        for not in ["", "1", "1 2 0:5 / /x rw", "1 2 0:5 / - ext4 d rw", "x 2 0:5 / /x rw - ext4 d rw", "1 2 3 - a b"] {
            assert_eq!(Line::parse(not.as_bytes()), None, "{not}");
        }
    }

    fn paths(options: &str) -> Vec<String> {
        let line = line(&format!("1 2 0:5 / /x rw - overlay overlay {options}"));
        let paths = line.overlay_paths().into_iter();
        paths.map(|(key, path)| format!("{}={}", String::from_utf8_lossy(key), path.display())).collect()
    }

    #[test]
    fn an_overlays_directories_are_found_however_they_are_written() {
        let found = paths("rw,lowerdir=/a:/b,upperdir=/u,workdir=/w,index=off");
        assert_eq!(found, ["lowerdir=/a", "lowerdir=/b", "upperdir=/u", "workdir=/w"]);
        let found = paths("ro,lowerdir+=/a:b,lowerdir+=/c,datadir+=/d");
        assert_eq!(found, ["lowerdir+=/a:b", "lowerdir+=/c", "datadir+=/d"]);
        // As mount(2) was given it, shown by Linux 6.8 and later and before 6.5; then as 6.5 to 6.7
        // show it.
        for text in [r"lowerdir=/a\134:b\134\054c:/d", r"lowerdir=/a\072b\054c:/d"] {
            let found = paths(text);
            assert!(
                ["lowerdir=/a:b,c", "lowerdir=/d"].iter().all(|name| found.contains(&(*name).to_owned())),
                "{found:?}"
            );
        }
        // Data-only lower directories stand after two colons.
        assert!(paths("lowerdir=/a::/d").contains(&"lowerdir=/d".to_owned()));
        // A name that ends with a backslash.
        assert!(paths(r"lowerdir=/a\134:/b").contains(&"lowerdir=/b".to_owned()));
        assert!(paths(r"upperdir=/a\134\134b").contains(&r"upperdir=/a\b".to_owned()));
    }

    #[test]
    fn long_lines_are_passed_over_in_little_memory() {
        let long = vec![b'x'; LINE_MAX + 5];
        let text = [b"1 2 0:5 / /a rw - ext4 d rw\n", &long[..], b"\nnothing\n1 2 0:5 / /b rw - ext4 d rw"].concat();
        let mut table = Table::new(&text[..]);
        let mut next = || match table.next().expect("bytes") {
            Some(Next::Line(line)) => line.point.display().to_string(),
            Some(Next::Unknown) => "unknown".to_owned(),
            None => "end".to_owned(),
        };
        assert_eq!([next(), next(), next(), next(), next()], ["/a", "unknown", "unknown", "/b", "end"]);
    }
}
