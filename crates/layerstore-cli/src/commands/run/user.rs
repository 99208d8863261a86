//! Whom a command runs as: a `User` of an image's configuration, by the image's own files.
//!
//! The rules are those of Docker and runc (moby/sys `user`, `GetExecUser`): a name or a number, and a group. Without a
//! group, the user's own group and those that list the user.

use layerstore::{Error, Result};
use rustix::fd::AsFd;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use std::fs::File;
use std::io::Read;

/// Most bytes of a user's or group's file: those of large sites have a few megabytes.
const FILE_MAX: u64 = 16 << 20;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Supplementary groups.
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
}

/// Finds the user in the files of an image whose root is open.
pub(super) fn find(root: impl AsFd, asked: &str) -> Result<User> {
    parse(asked, &text(&root, "etc/passwd")?, &text(&root, "etc/group")?)
}

/// Reads a file of the image; an empty text if the image has no such file. Symlinks are resolved inside the image, and
/// opening a FIFO or device does not block.
fn text(root: impl AsFd, path: &str) -> Result<String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let failed = |e: std::io::Error| Error::io("cannot read the image's file", e).subject(path);
    let file = match openat2(root, path, flags, Mode::empty(), resolve) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        Err(e) => return Err(failed(e.into())),
    };
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(Error::invalid("not a regular file").subject(path));
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(Error::limit("the image's file is too large", FILE_MAX, "more").subject(path));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A number that the kernel takes for a user or a group; 2^32 - 1 means "leave alone" to it.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX && text.bytes().all(|b| b.is_ascii_digit()))
}

fn parse(asked: &str, passwd: &str, group: &str) -> Result<User> {
    let (name, group_name) = asked.split_once(':').map_or((asked, None), |(user, group)| (user, Some(group)));
    let name = if name.is_empty() { "0" } else { name };
    let group_name = group_name.filter(|name| !name.is_empty());
    let users: Vec<Vec<&str>> = lines(passwd, 7);
    let found = users.iter().find(|user| user[0] == name).or_else(|| {
        let wanted = number(name)?;
        users.iter().find(|user| number(user[2]) == Some(wanted))
    });
    let unknown = |what| Error::not_found(format!("the image has no such {what}")).subject(asked);
    let ids = |user: &Vec<&str>| Some((number(user[2])?, number(user[3])?));
    let (uid, mut gid) = match found {
        Some(user) => ids(user).ok_or_else(|| Error::invalid("the image's user has no numbers").subject(asked))?,
        None => (number(name).ok_or_else(|| unknown("user"))?, 0),
    };
    let groups: Vec<Vec<&str>> = lines(group, 4);
    let mut more = Vec::new();
    match (group_name, found) {
        (Some(name), _) => {
            let named = groups.iter().find(|group| group[0] == name).and_then(|group| number(group[2]));
            gid = named.or_else(|| number(name)).ok_or_else(|| unknown("group"))?;
        }
        (None, Some(user)) => {
            let lists = |group: &&Vec<&str>| group[3].split(',').any(|member| member == user[0]);
            more.extend(groups.iter().filter(lists).filter_map(|group| number(group[2])));
        }
        (None, None) => {}
    }
    let home = found.map(|user| user[5]).filter(|home| home.starts_with('/')).unwrap_or("/").to_owned();
    Ok(User { uid, gid, groups: more, home })
}

/// Lines of so many fields, the comments left out.
fn lines(text: &str, fields: usize) -> Vec<Vec<&str>> {
    let all = text.lines().map(|line| line.trim()).filter(|line| !line.starts_with('#'));
    all.map(|line| line.split(':').collect::<Vec<_>>()).filter(|line| line.len() >= fields).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# no:x:9:9::/:/\nshort:x:1\napp:x:1000:1001:App:/srv/app:/bin/sh\n\
                          bad:x:-1:4294967295::/:/bin/sh\n1000:x:7:8::/seven:/bin/sh\n";
    const GROUP: &str = "root:x:0:root\nwheel:x:10:root,app\nweb:x:33:app\napp:x:1001:\nodd:x:x:app\n";

    #[test]
    fn users_are_found_as_runc_finds_them() {
        let user = |asked| parse(asked, PASSWD, GROUP).map(|u| (u.uid, u.gid, u.groups, u.home));
        let is = |uid, gid, groups: &[u32], home: &str| (uid, gid, groups.to_vec(), home.to_owned());
        assert_eq!(user("").expect("root"), is(0, 0, &[0, 10], "/root"));
        assert_eq!(user("app").expect("there"), is(1000, 1001, &[10, 33], "/srv/app"));
        assert_eq!(user("app:web").expect("there"), is(1000, 33, &[], "/srv/app"));
        assert_eq!(user("app:77").expect("a number"), is(1000, 77, &[], "/srv/app"));
        assert_eq!(user("1000").expect("a name first"), is(7, 8, &[], "/seven"));
        assert_eq!(user("4711").expect("a number"), is(4711, 0, &[], "/"));
        assert_eq!(user("4711:app").expect("a number"), is(4711, 1001, &[], "/"));
        for unknown in ["nobody", "-1", "+1", "4294967295", "99999999999", "app:none", "app:-1", "\u{1b}[0m"] {
            assert_eq!(user(unknown).expect_err(unknown).kind(), layerstore::ErrorKind::NotFound, "{unknown}");
        }
        assert!(user("bad").is_err());
    }

    #[test]
    fn files_are_read_inside_the_root_and_nothing_is_waited_for() {
        let outside = tempfile::tempdir().expect("a directory");
        let root = outside.path().join("root");
        std::fs::create_dir_all(root.join("etc")).expect("made");
        std::fs::create_dir(outside.path().join("etc")).expect("made");
        std::fs::write(outside.path().join("etc/passwd"), "root:x:5:5::/outside:/\n").expect("written");
        let open = File::open(&root).expect("a directory");
        assert_eq!(find(&open, "0").expect("a number").home, "/");
        std::os::unix::fs::symlink("../../etc/passwd", root.join("etc/passwd")).expect("linked");
        assert!(find(&open, "root").is_err(), "a link does not lead out");
        std::fs::remove_file(root.join("etc/passwd")).expect("there");
        let (fifo, mode) = (rustix::fs::FileType::Fifo, Mode::RWXU);
        rustix::fs::mknodat(rustix::fs::CWD, root.join("etc/passwd"), fifo, mode, 0).expect("made");
        assert!(find(&open, "root").is_err());
    }
}
