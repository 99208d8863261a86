//! Snapshots have nothing of the directories around the store.

use crate::support::{self, namespaced};
use crate::{DRIVERS, Place, open, there};
use layerstore::DriverKind;
use rustix::fs::{Mode, XattrFlags};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

const NAME: &str = "surroundings::snapshots_have_nothing_of_their_surroundings";

/// A default access list that lets user 1234 in: u::rwx, u:1234:rwx, g::rwx, m::rwx, o::---.
fn access_list() -> Vec<u8> {
    let entries: [(u16, u16, u32); 5] = [(1, 7, !0), (2, 7, 1234), (4, 7, !0), (16, 7, !0), (32, 0, !0)];
    let bytes = entries
        .iter()
        .flat_map(|(tag, bits, id)| [&tag.to_le_bytes()[..], &bits.to_le_bytes(), &id.to_le_bytes()].concat());
    2u32.to_le_bytes().into_iter().chain(bytes).collect()
}

/// Gives a directory a group and an access list that everything made in it inherits; false where there are none.
fn spread(dir: &Path) -> bool {
    chown(dir, None, Some(1234)).expect("root");
    fs::set_permissions(dir, fs::Permissions::from_mode(0o2775)).expect("set");
    let flags = XattrFlags::empty();
    rustix::fs::setxattr(dir, "system.posix_acl_default", &access_list(), flags).is_ok()
}

/// Owner, mode and names of access lists.
fn inherited(path: &Path) -> (u32, u32, u32, bool) {
    let meta = fs::symlink_metadata(path).expect("stat");
    let mut names = vec![0; 4096];
    let len = rustix::fs::llistxattr(path, &mut names[..]).expect("names");
    let lists = names[..len].windows(9).any(|part| part == b"posix_acl");
    (meta.uid(), meta.gid(), meta.mode() & 0o7777, lists)
}

/// Neither an access list nor a group of a directory around the store becomes part of a snapshot or a layer.
#[test]
fn snapshots_have_nothing_of_their_surroundings() {
    if !namespaced(NAME) {
        return;
    }
    let there: Vec<DriverKind> = there().collect();
    let tries = [(0, 0o022), (1, 0o022), (2, 0o022), (0, 0o077), (1, 0o000)].map(|(n, umask)| (DRIVERS[n], umask));
    for (driver, umask) in tries.into_iter().filter(|(driver, _)| there.contains(driver)) {
        let dir = support::disk_dir();
        if !spread(dir.path()) {
            support::needs::skip(NAME, "a file system with access lists, for a part of it");
        }
        rustix::process::umask(Mode::from_raw_mode(umask));
        let snapshots = open(dir.path(), driver, "test");
        let store = snapshots.store().path().to_owned();
        assert_eq!(inherited(&store), (0, 0, 0o700, false), "a new store");
        assert_eq!(inherited(&store.join("snapshots")), (0, 0, 0o700, false), "a new store's directory");
        // A store that was made before.
        for name in ["tmp", "snapshots", "trees", "mounts", "images"] {
            spread(&store.join(name));
        }
        let place = Place { dir, snapshots };
        rustix::process::umask(Mode::from_raw_mode(0o022));
        let check = |root: &Path, name: &str| {
            assert_eq!(inherited(root), (0, 0, 0o755, false), "{name} by {}, its root", driver);
            fs::write(root.join(name), "x").expect("written");
            fs::create_dir(root.join(format!("{name}-d"))).expect("made");
            let made = format!("{name} by {}, what was made in it", driver);
            assert_eq!(inherited(&root.join(name)), (0, 0, 0o644, false), "{made}");
            assert_eq!(inherited(&root.join(format!("{name}-d"))), (0, 0, 0o755, false), "{made}");
        };
        place.write("base", None, false, |root| check(root, "base"));
        place.write("top", Some("base"), true, |root| check(root, "top"));
        let done = place.snapshots.absorb(&()).expect("absorbs");
        assert!(done.failed.is_empty(), "{done:?}");
        let layers = place.snapshots.layers("top", &()).expect("layers");
        for layer in layers {
            for entry in place.snapshots.store().layer(&layer).expect("a layer").entries().expect("entries") {
                let entry = entry.expect("an entry").entry;
                assert!(entry.gid == 0 && entry.xattrs.is_empty() && entry.mode & 0o7000 == 0, "{entry:?}");
            }
        }
    }
}
