//! Odd trees that a container makes: deep, wide, sparse, closed, and such as no layer may hold.

use super::operations::Files;
use crate::error::ErrorKind;
use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mkdirat, mknodat, openat};
use rustix::io::Errno;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// An odd tree, below a name of its own in a snapshot's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Odd {
    /// As deep as a layer may be.
    Deep,
    TooDeep,
    Wide,
    /// Most of it is a hole.
    Sparse,
    /// Directories that their owner may not enter.
    Closed,
    Fifo,
    /// The name of a whiteout.
    WhiteoutName,
    /// The device that is a whiteout in an overlay.
    WhiteoutDevice,
}

/// Levels of a layer at most, one of which is the tree's own name.
const DEPTH: usize = 1024;
const SPARSE: u64 = 3_000_000;

impl Odd {
    pub(super) fn of(which: u8) -> Self {
        match which % 8 {
            0 => Self::Deep,
            1 => Self::TooDeep,
            2 => Self::Wide,
            3 => Self::Sparse,
            4 => Self::Closed,
            5 => Self::Fifo,
            6 => Self::WhiteoutName,
            _ => Self::WhiteoutDevice,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Deep => "deep",
            Self::TooDeep => "too-deep",
            Self::Wide => "wide",
            Self::Sparse => "sparse",
            Self::Closed => "closed",
            Self::Fifo => "fifo",
            Self::WhiteoutName => "whiteout-name",
            Self::WhiteoutDevice => "whiteout-device",
        }
    }

    /// Why a directory with it cannot become a layer.
    pub(super) fn refusal(self) -> Option<ErrorKind> {
        match self {
            Self::TooDeep => Some(ErrorKind::LimitExceeded),
            Self::WhiteoutName | Self::WhiteoutDevice => Some(ErrorKind::InvalidInput),
            // Nobody but root can read it.
            Self::Closed if !rustix::process::geteuid().is_root() => Some(ErrorKind::Io),
            _ => None,
        }
    }

    /// Adds the regular files that it consists of.
    pub(super) fn add_files(self, files: &mut Files) {
        if self == Self::Sparse {
            let mut content = vec![0; SPARSE as usize];
            content[SPARSE as usize - 1] = 1;
            files.insert(self.name().to_owned(), content);
        }
    }

    /// Makes it in `dir`, unless it is there.
    pub(super) fn make(self, dir: &Path) {
        match self.try_make(&dir.join(self.name())) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => panic!("{self:?}: {e}"),
        }
    }

    fn try_make(self, path: &Path) -> rustix::io::Result<()> {
        match self {
            Self::Fifo => return mknodat(CWD, path, FileType::Fifo, Mode::RUSR, 0),
            Self::WhiteoutDevice => return mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)),
            Self::Sparse => {
                let file = openat(CWD, path, OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY, Mode::RUSR | Mode::WUSR)?;
                std::fs::File::from(file).write_all_at(&[1], SPARSE - 1).expect("a file of its own");
                return Ok(());
            }
            _ => mkdirat(CWD, path, Mode::RWXU)?,
        }
        let below = |name: &str, mode| mkdirat(CWD, path.join(name), mode);
        match self {
            Self::Deep => chain(path, DEPTH - 1),
            Self::TooDeep => chain(path, DEPTH + 200),
            Self::Wide => (0..300).try_for_each(|n| below(&n.to_string(), Mode::RWXU)),
            Self::Closed => (0..4).try_for_each(|n| below(&n.to_string(), Mode::from_raw_mode(0o111 * n))),
            _ => below(".wh.x", Mode::RWXU),
        }
    }
}

fn chain(top: &Path, levels: usize) -> rustix::io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = openat(CWD, top, flags, Mode::empty())?;
    for _ in 0..levels {
        mkdirat(&at, "d", Mode::RWXU)?;
        at = openat(&at, "d", flags, Mode::empty())?;
    }
    Ok(())
}
