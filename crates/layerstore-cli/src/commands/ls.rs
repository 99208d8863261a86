//! `layerstore ls`.

use crate::args::Ls;
use crate::context::Context;
use crate::errors::{Failure, Hint};
use crate::interrupt;
use crate::names::{Named, escape, find, normal};
use crate::output::time;
use base64::Engine;
use layerstore::{Entry, EntryKind, Error, Whiteout};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::io::Write;

pub(crate) fn run(context: &Context, args: &Ls) -> Result<(), Failure> {
    let store = context.store()?;
    let below = normal(args.path.as_deref().unwrap_or_default())?;
    let mut found = false;
    let mut show = |entry: &Entry| match depth(&entry.path, &below) {
        Some(depth) if depth <= args.depth.unwrap_or(usize::MAX) => {
            found = true;
            print(context, args, entry)
        }
        Some(_) => {
            found = true;
            Ok(())
        }
        None => Ok(()),
    };
    match find(&store, &args.what)? {
        Named::Image(image) => {
            for entry in store.root_watched(&image.layers, &context.progress(None))?.list() {
                interrupt::check()?;
                show(&entry.entry)?;
            }
        }
        Named::Layer(info) => {
            for entry in store.layer(&info.diff_id)?.entries()? {
                interrupt::check()?;
                show(&entry?.entry)?;
            }
        }
    }
    if found || below.is_empty() {
        return Ok(());
    }
    Err(Error::not_found("no such path").subject(String::from_utf8_lossy(&below)).subject(&args.what))
        .hint("without a path, `layerstore ls` lists everything")
}

/// How many steps `path` lies below `root`; `None` if elsewhere.
fn depth(path: &[u8], root: &[u8]) -> Option<usize> {
    let steps = |rest: &[u8]| rest.iter().filter(|&&b| b == b'/').count();
    match path.strip_prefix(root)? {
        [] => Some(0),
        rest if root.is_empty() => Some(steps(rest) + 1),
        rest if rest[0] == b'/' => Some(steps(rest)),
        _ => None,
    }
}

fn print(context: &Context, args: &Ls, entry: &Entry) -> Result<(), Failure> {
    let out = context.out();
    if context.json() {
        return out.json(&to_json(entry));
    }
    let shown = |name: &[u8]| -> Vec<u8> {
        let name: &[u8] = if name.is_empty() { b"." } else { name };
        if out.is_terminal() { escape(name).into_bytes() } else { name.to_vec() }
    };
    let mut line = if args.long { attributes(entry).into_bytes() } else { Vec::new() };
    line.extend(shown(&entry.path));
    if args.long {
        match &entry.kind {
            EntryKind::Symlink { target } => line.extend([&b" -> "[..], &shown(target)].concat()),
            EntryKind::Hardlink { target } => line.extend([&b" link to "[..], &shown(target)].concat()),
            _ => {}
        }
        match entry.whiteout() {
            Some(Whiteout::Remove(name)) => line.extend([&b"  (removes "[..], &shown(name), b")"].concat()),
            Some(Whiteout::Opaque) => line.extend(b"  (hides what lower layers have here)"),
            None => {}
        }
    }
    line.push(b'\n');
    Ok(out.lock().write_all(&line)?)
}

/// As `tar -tv` has it: `h` marks hard links, `w` whiteouts.
fn attributes(entry: &Entry) -> String {
    let size: Cow<'_, str> = match &entry.kind {
        EntryKind::File { size, .. } => size.to_string().into(),
        EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } => {
            format!("{major},{minor}").into()
        }
        _ => "0".into(),
    };
    let owner = format!("{}/{}", entry.uid, entry.gid);
    format!("{} {owner:<9} {size:>11} {} ", mode(entry), time(entry.mtime.secs))
}

fn mode(entry: &Entry) -> String {
    let (kind, _) = kind(entry);
    let bit = |bit: u16, c: char| if entry.mode & bit != 0 { c } else { '-' };
    let mut text = String::from(kind);
    for (shift, special, set, unset) in [(6, 0o4000, 's', 'S'), (3, 0o2000, 's', 'S'), (0, 0o1000, 't', 'T')] {
        text.push(bit(4 << shift, 'r'));
        text.push(bit(2 << shift, 'w'));
        text.push(match (entry.mode & special != 0, entry.mode & (1 << shift) != 0) {
            (true, true) => set,
            (true, false) => unset,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// The letter and the word for an entry's type.
fn kind(entry: &Entry) -> (char, &'static str) {
    match (&entry.kind, entry.whiteout()) {
        (_, Some(Whiteout::Remove(_))) => ('w', "whiteout"),
        (_, Some(Whiteout::Opaque)) => ('w', "opaque"),
        (EntryKind::Directory, _) => ('d', "directory"),
        (EntryKind::File { .. }, _) => ('-', "file"),
        (EntryKind::Symlink { .. }, _) => ('l', "symlink"),
        (EntryKind::Hardlink { .. }, _) => ('h', "hardlink"),
        (EntryKind::CharDevice { .. }, _) => ('c', "char-device"),
        (EntryKind::BlockDevice { .. }, _) => ('b', "block-device"),
        (EntryKind::Fifo, _) => ('p', "fifo"),
    }
}

fn to_json(entry: &Entry) -> Value {
    let mut json = json!({
        "type": kind(entry).1, "mode": format!("{:04o}", entry.mode), "uid": entry.uid, "gid": entry.gid,
        "mtime": { "secs": entry.mtime.secs, "nanos": entry.mtime.nanos },
    });
    put_bytes(&mut json, "path", &entry.path);
    match &entry.kind {
        EntryKind::File { size, sparse } => {
            json["size"] = (*size).into();
            if sparse.is_some() {
                json["stored"] = entry.kind.stored_len().into();
            }
        }
        EntryKind::Symlink { target } | EntryKind::Hardlink { target } => put_bytes(&mut json, "target", target),
        EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } => {
            json["device"] = json!([major, minor]);
        }
        EntryKind::Directory | EntryKind::Fifo => {}
    }
    if let Some(Whiteout::Remove(name)) = entry.whiteout() {
        put_bytes(&mut json, "removes", name);
    }
    if !entry.xattrs.is_empty() {
        let xattr = |x: &layerstore::Xattr| (String::from_utf8_lossy(&x.name).into_owned(), base64(&x.value).into());
        json["xattrs_b64"] = Value::Object(entry.xattrs.iter().map(xattr).collect());
    }
    json
}

/// Bytes as text, and where text cannot say them, exactly as well under `<key>_b64`.
fn put_bytes(json: &mut Value, key: &str, bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if matches!(text, Cow::Owned(_)) {
        json[format!("{key}_b64")] = base64(bytes).into();
    }
    json[key] = text.into();
}

fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_from_the_path_given() {
        assert_eq!(depth(b"etc", b""), Some(1));
        assert_eq!(depth(b"", b""), Some(0));
        assert_eq!(depth(b"etc", b"etc"), Some(0));
        assert_eq!(depth(b"etc/a/b", b"etc"), Some(2));
        assert_eq!(depth(b"etcetera", b"etc"), None);
    }

    #[test]
    fn long_lines_and_json_say_everything() {
        let mut entry = Entry {
            path: b"bin/\xff".to_vec(),
            kind: EntryKind::File { size: 7, sparse: None },
            mode: 0o4754,
            uid: 1,
            gid: 2,
            mtime: layerstore::Time { secs: 0, nanos: 5 },
            xattrs: vec![],
        };
        assert_eq!(attributes(&entry), "-rwsr-xr-- 1/2                 7 1970-01-01 00:00 ");
        let json = to_json(&entry);
        assert_eq!((&json["path"], &json["path_b64"]), (&"bin/\u{fffd}".into(), &"YmluL/8=".into()));
        entry.path = b"etc/.wh.motd".to_vec();
        assert_eq!((to_json(&entry)["type"].as_str(), mode(&entry).chars().next()), (Some("whiteout"), Some('w')));
    }
}
