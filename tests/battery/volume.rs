//! File systems on loop devices.

use crate::support::needs;
use crate::sys;
use rustix::mount::{UnmountFlags, unmount};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Gives this test mounts of its own; where it cannot have loop devices and FUSE it says why there is no test.
pub(crate) fn may_mount() -> bool {
    let test = this_test();
    if !needs::root(&test) || !needs::programs(&test, &["mount"]) {
        return false;
    }
    for device in ["/dev/loop-control", "/dev/fuse"] {
        if let Err(e) = File::options().read(true).write(true).open(device) {
            return needs::skip(&test, format!("{device}: {e}"));
        }
    }
    sys::private_mounts().map_or_else(|e| needs::skip(&test, format!("mounts of its own: {e}")), |()| true)
}

/// The name of the test that this thread runs, if each has a thread.
fn this_test() -> String {
    std::thread::current().name().unwrap_or("a test of the battery").to_owned()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Ext4,
    Xfs,
    Btrfs,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// Whether it can be made and mounted here; where not, it says so.
    pub(crate) fn is_there(self) -> bool {
        let (test, name) = (this_test(), self.name());
        if let Err(e) = rustix::mount::fsopen(name, rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC) {
            return needs::skip(&test, format!("a kernel that mounts {name}: {e}"));
        }
        needs::programs(&test, &[&format!("mkfs.{name}")])
    }

    /// The smallest that mkfs makes, or 64 MiB.
    fn size(self) -> u64 {
        match self {
            Self::Ext4 => 64 << 20,
            Self::Xfs => 300 << 20,
            Self::Btrfs => 128 << 20,
        }
    }

    /// Bytes that the file system takes to be written whole or not at all.
    pub(crate) fn sector(self) -> usize {
        if self == Self::Btrfs { 4096 } else { 512 }
    }

    /// Makes one in a file.
    pub(crate) fn format(self, path: &Path, options: &[&str]) {
        self.format_sized(path, self.size(), options);
    }

    /// Makes one of this size, which must not be less than mkfs makes.
    pub(crate) fn format_sized(self, path: &Path, size: u64, options: &[&str]) {
        File::create(path).and_then(|f| f.set_len(size)).expect("an image file");
        let quiet = if self == Self::Ext4 { ["-q", "-F"] } else { ["-q", "-f"] };
        run(Command::new(format!("mkfs.{}", self.name())).args(quiet).args(options).arg(path));
    }
}

/// A mounted file system, unmounted on drop.
pub(crate) struct Mounted {
    pub(crate) dir: PathBuf,
}

impl Mounted {
    /// Mounts the image in `file` on a directory, which is made. Fails if the file system does not mount.
    pub(crate) fn mount(kind: Kind, file: &Path, dir: &Path) -> Result<Self, String> {
        std::fs::create_dir_all(dir).expect("a mount point");
        let mut command = Command::new("mount");
        // The mount is all that keeps the loop device.
        command.args(["-t", kind.name(), "-o", "loop"]).arg(file).arg(dir);
        let out = command.stdin(Stdio::null()).output().expect("mount(8)");
        if !out.status.success() {
            return Err(format!("{} does not mount: {}", kind.name(), String::from_utf8_lossy(&out.stderr)));
        }
        Ok(Self { dir: dir.to_owned() })
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.dir.join("store")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A worker that another test just began has this process's files open until it is another program. A mount that
        // is only detached lives on, and the next one of the same file is then of what was in it before.
        for _ in 0..500 {
            match unmount(&self.dir, UnmountFlags::empty()) {
                Err(rustix::io::Errno::BUSY) if !std::thread::panicking() => {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                Ok(()) => return,
                Err(_) => break,
            }
        }
        // A test that panics may have files open in it: then it goes with the last of them.
        let _ = unmount(&self.dir, UnmountFlags::DETACH);
    }
}

fn run(command: &mut Command) {
    let out = command.stdin(Stdio::null()).output().expect("a command of the file system's tools");
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// A directory in memory where there is one, as the images are read and written a lot.
pub(crate) fn memory_dir() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    let made = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
    made.expect("a temporary directory")
}
