//! Trees as a container can make them: deeper than a stack, wider than the limit of descriptors, renamed meanwhile.

use super::dirs::Dir;
use super::remove::{Remove, remove_tree};
use super::scan::{Bounds, scan};
use super::upper::disk_usage;
use super::walk::{self, Id, Visitor};
use crate::error::ErrorKind;
use crate::limits::Limits;
use rustix::fs::{CWD, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::{Errno, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::ffi::CStr;
use std::fs;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

const DEPTH: usize = 20_000;
const NOBODY: u32 = 65534;
/// Says to a child which test it runs.
const INSIDE: &str = "LAYERSTORE_TEST_CONFINED";

/// Runs the calling test, called `name`, again in a process that has 64 descriptors, on a thread with 256 KiB of stack.
/// `user` is who it runs as.
fn confined(name: &str, user: Option<u32>, work: impl FnOnce() + Send) {
    if std::env::var_os(INSIDE).is_some_and(|inside| inside == name) {
        let maximum = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum }).unwrap();
        let small = std::thread::Builder::new().stack_size(256 << 10);
        std::thread::scope(|scope| small.spawn_scoped(scope, work).unwrap().join().unwrap());
        return;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("sys::walk_tests::{name}"), "--nocapture"]).env(INSIDE, name);
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// In memory if there is such a place: what is many here would be slow on a disk.
fn place() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn open(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

/// Makes `levels` directories inside each other, each with `beside` empty directories beside the next.
fn deep(top: &Path, levels: usize, beside: usize) {
    let mut at = open(top);
    for _ in 0..levels {
        for n in 0..=beside {
            rustix::fs::mkdirat(&at, format!("d{n}"), Mode::RWXU).unwrap();
        }
        at = rustix::fs::openat(&at, "d0", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    }
    rustix::fs::openat(&at, "f", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
}

/// Makes `count` directories with long names, each with a file.
fn wide(top: &Path, count: usize) {
    let top = open(top);
    for n in 0..count {
        let name = format!("{n:0>250}");
        rustix::fs::mkdirat(&top, &name, Mode::RWXU).unwrap();
        rustix::fs::openat(&top, name + "/f", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
    }
}

#[test]
fn a_deep_tree_is_measured_and_removed() {
    confined("a_deep_tree_is_measured_and_removed", None, || {
        let scratch = place();
        let top = scratch.path().join("top");
        fs::create_dir(&top).unwrap();
        deep(&top, DEPTH, 0);
        assert_eq!(disk_usage(&top).unwrap().1, 1 + DEPTH as u64 + 1);
        remove_tree(&top).unwrap();
        assert!(!top.exists());
    });
}

/// All directories that are still to be visited are in different directories.
#[test]
fn a_comb_is_measured_and_removed() {
    confined("a_comb_is_measured_and_removed", None, || {
        let scratch = place();
        let top = scratch.path().join("top");
        fs::create_dir(&top).unwrap();
        deep(&top, 2000, 3);
        assert_eq!(disk_usage(&top).unwrap().1, 1 + 2000 * 4 + 1);
        remove_tree(&top).unwrap();
        assert!(!top.exists());
    });
}

/// Directories that wait for their turn are closed, all but some.
#[test]
fn a_comb_is_scanned_and_a_deeper_one_refused() {
    confined("a_comb_is_scanned_and_a_deeper_one_refused", None, || {
        let scratch = place();
        let (top, bounds) = (scratch.path().join("top"), Bounds::layer(&Limits::default()));
        fs::create_dir(&top).unwrap();
        deep(&top, 1000, 2);
        for threads in [1, 4] {
            let found = scan(&top, threads, &bounds, &()).unwrap();
            assert_eq!(found.dirs.len(), 1 + 3 * 1000);
            assert_eq!(found.dirs.iter().map(Vec::len).sum::<usize>(), 3 * 1000 + 1);
        }
        fs::create_dir(scratch.path().join("deeper")).unwrap();
        deep(&scratch.path().join("deeper"), DEPTH, 0);
        let error = scan(scratch.path(), 2, &bounds, &()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{error}");
        remove_tree(&scratch.path().join("deeper")).unwrap();
        remove_tree(&top).unwrap();
    });
}

/// More names than are held at a time.
#[test]
fn a_wide_tree_is_measured_and_removed() {
    confined("a_wide_tree_is_measured_and_removed", None, || {
        let scratch = place();
        let top = scratch.path().join("top");
        fs::create_dir(&top).unwrap();
        wide(&top, 20_000);
        assert_eq!(disk_usage(&top).unwrap().1, 1 + 2 * 20_000);
        Dir::open(&top).unwrap().empty().unwrap();
        assert_eq!(fs::read_dir(&top).unwrap().count(), 0);
    });
}

#[test]
fn what_its_owner_closed_is_removed() {
    let root = rustix::process::geteuid().is_root();
    confined("what_its_owner_closed_is_removed", root.then_some(NOBODY), || {
        assert!(!rustix::process::geteuid().is_root());
        let scratch = place();
        let top = scratch.path().join("top");
        for (name, mode) in [("none", 0), ("read", 0o444), ("enter", 0o111), ("both", 0o555)] {
            fs::create_dir_all(top.join(name).join("d/e")).unwrap();
            fs::write(top.join(name).join("d/f"), "x").unwrap();
            fs::set_permissions(top.join(name).join("d"), fs::Permissions::from_mode(mode)).unwrap();
            fs::set_permissions(top.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        let error = disk_usage(&top).unwrap_err();
        assert_eq!(error.io_error().unwrap().kind(), std::io::ErrorKind::PermissionDenied, "{error}");
        remove_tree(&top).unwrap();
        assert!(!top.exists());
    });
}

#[test]
fn the_rest_is_removed_when_something_cannot_be() {
    let scratch = tempfile::tempdir().unwrap();
    let top = scratch.path().join("top");
    fs::create_dir_all(top.join("a/stays")).unwrap();
    fs::create_dir_all(top.join("b/goes")).unwrap();
    let stays = top.join("a/stays/f");
    fs::write(&stays, "x").unwrap();
    let file = fs::File::open(&stays).unwrap();
    if rustix::fs::ioctl_setflags(&file, rustix::fs::IFlags::IMMUTABLE).is_err() {
        println!("skipped: the_rest_is_removed_when_something_cannot_be: files cannot be made immutable");
        return;
    }
    let error = remove_tree(&top).unwrap_err();
    rustix::fs::ioctl_setflags(&file, rustix::fs::IFlags::empty()).unwrap();
    assert!(error.to_string().starts_with(&stays.display().to_string()), "{error}");
    assert!(stays.exists() && !top.join("b").exists());
    remove_tree(&top).unwrap();
    assert!(!top.exists());
}

#[test]
fn a_name_that_is_no_directory_goes_and_one_that_is_not_there_is_fine() {
    let scratch = place();
    let at = |name: &str| scratch.path().join(name);
    fs::create_dir(at("d")).unwrap();
    symlink("d", at("link")).unwrap();
    fs::write(at("f"), "x").unwrap();
    for name in ["link", "f", "none", "none/none"] {
        remove_tree(&at(name)).unwrap();
    }
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
}

/// Moves a directory away while the walk is below it.
struct Mover<'a> {
    from: &'a Path,
    to: &'a Path,
    moved: bool,
    begun: u32,
    seen: Vec<Id>,
}

impl Visitor for Mover<'_> {
    fn begin(&mut self) {
        self.begun += 1;
        self.seen.clear();
    }

    fn open(&mut self, dir: BorrowedFd<'_>, name: &CStr, parent: Id) -> Result<(OwnedFd, Stat)> {
        walk::subdirectory(dir, name, parent)
    }

    fn entered(&mut self, stat: &Stat) {
        self.seen.push(walk::id(stat));
    }

    fn name(&mut self, _: BorrowedFd<'_>, name: &CStr, kind: FileType) -> Result<bool> {
        if name == c"f" && !self.moved {
            fs::rename(self.from, self.to).unwrap();
            self.moved = true;
        }
        Ok(kind == FileType::Directory)
    }

    fn no_directory(&mut self, _: BorrowedFd<'_>, _: &CStr) -> Result<()> {
        Err(Errno::NOTDIR)
    }
}

#[test]
fn a_walk_does_not_follow_a_directory_that_is_moved() {
    let scratch = place();
    let (top, outside) = (scratch.path().join("top"), scratch.path().join("outside"));
    fs::create_dir(&top).unwrap();
    fs::create_dir_all(outside.join("beside")).unwrap();
    deep(&top, 60, 1);
    let secret = walk::id(&rustix::fs::stat(&outside).unwrap());
    let (from, to) = (top.join("d0/d0/d0"), outside.join("d0"));
    let mut mover = Mover { from: &from, to: &to, moved: false, begun: 0, seen: vec![] };
    walk::below(open(&top), &mut mover).unwrap();
    assert_eq!(mover.begun, 2, "it begins anew");
    assert!(!mover.seen.contains(&secret));
    // The top, two levels of two directories, and what is left of the third.
    assert_eq!(mover.seen.len(), 1 + 2 + 2 + 1);
}

/// Removes, and exchanges each directory for a symlink between its listing and its opening.
struct Exchange<'a> {
    link: &'a Path,
    outside: &'a Path,
}

impl Visitor for Exchange<'_> {
    fn open(&mut self, dir: BorrowedFd<'_>, name: &CStr, parent: Id) -> Result<(OwnedFd, Stat)> {
        symlink(self.outside, self.link).unwrap();
        rustix::fs::renameat_with(dir, name, CWD, self.link, RenameFlags::EXCHANGE)?;
        let opened = Remove.open(dir, name, parent);
        remove_tree(self.link).unwrap();
        opened
    }

    fn name(&mut self, dir: BorrowedFd<'_>, name: &CStr, kind: FileType) -> Result<bool> {
        Remove.name(dir, name, kind)
    }

    fn no_directory(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        Remove.no_directory(dir, name)
    }

    fn left(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        Remove.left(dir, name)
    }
}

#[test]
fn a_directory_that_was_exchanged_for_a_symlink_is_not_entered() {
    let scratch = place();
    let (top, outside, link) =
        (scratch.path().join("top"), scratch.path().join("outside"), scratch.path().join("link"));
    fs::create_dir(&top).unwrap();
    fs::create_dir(&outside).unwrap();
    deep(&outside, 3, 1);
    let before = disk_usage(&outside).unwrap();
    deep(&top, 3, 1);
    walk::below(open(&top), &mut Exchange { link: &link, outside: &outside }).unwrap();
    assert_eq!(fs::read_dir(&top).unwrap().count(), 0);
    assert_eq!(disk_usage(&outside).unwrap(), before);
}

/// Somebody exchanges directories of the tree for symlinks that lead outside, all the time.
#[test]
fn nothing_outside_is_removed_whatever_is_exchanged() {
    let scratch = place();
    let (top, outside, links) =
        (scratch.path().join("top"), scratch.path().join("outside"), scratch.path().join("links"));
    fs::create_dir(&outside).unwrap();
    deep(&outside, 40, 2);
    let before = disk_usage(&outside).unwrap();
    for _ in 0..20 {
        fs::create_dir(&top).unwrap();
        fs::create_dir(&links).unwrap();
        deep(&top, 40, 2);
        let parents: Vec<OwnedFd> = (0..30).map(|n| open(&top.join("d0/".repeat(n)))).collect();
        (0..parents.len()).for_each(|n| symlink(&outside, links.join(n.to_string())).unwrap());
        let (aside, stop, began) = (open(&links), AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    for (n, parent) in parents.iter().enumerate() {
                        let link = n.to_string();
                        // What is removed already cannot be exchanged.
                        let _ = rustix::fs::renameat_with(parent, "d0", &aside, link, RenameFlags::EXCHANGE);
                    }
                    began.store(true, Relaxed);
                }
            });
            while !began.load(Relaxed) {
                std::thread::yield_now();
            }
            // A directory that comes back all the time may keep its parent from being removed.
            let _ = (0..10).any(|_| remove_tree(&top).is_ok());
            stop.store(true, Relaxed);
        });
        remove_tree(&top).unwrap();
        remove_tree(&links).unwrap();
        assert_eq!(disk_usage(&outside).unwrap(), before);
    }
}

/// Removes, and counts the directories that are opened.
#[derive(Default)]
struct Opened(usize);

impl Visitor for Opened {
    fn is_done(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> bool {
        Remove.is_done(dir, name)
    }

    fn open(&mut self, dir: BorrowedFd<'_>, name: &CStr, parent: Id) -> Result<(OwnedFd, Stat)> {
        self.0 += 1;
        Remove.open(dir, name, parent)
    }

    fn name(&mut self, dir: BorrowedFd<'_>, name: &CStr, kind: FileType) -> Result<bool> {
        Remove.name(dir, name, kind)
    }

    fn no_directory(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        Remove.no_directory(dir, name)
    }

    fn left(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        Remove.left(dir, name)
    }
}

#[test]
fn empty_directories_are_removed_without_being_opened() {
    let scratch = place();
    deep(scratch.path(), 3, 5);
    let mut opened = Opened::default();
    walk::below(open(scratch.path()), &mut opened).unwrap();
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    assert_eq!(opened.0, 3, "those that something is in");
}
