//! How the kernel caches what it reads for mounted images.
//!
//! Files of an EROFS mount are cached once they are read, as files of any file system are. To fill those pages the kernel
//! reads packs. By default it does so through the packs' own page cache, which then holds all compressed bytes too. The
//! mount option `directio` reads past it: less memory, and less of the processor and the disk where memory is short.

use crate::error::{Error, ErrorKind, Result};
use crate::format::erofs::Pack;
use crate::format::pack::{BLOCK, Codec};
use crate::store::Store;
use std::str::FromStr;

/// The first releases without CVE-2026-23224, in the kernel's stable series. In those before, direct I/O of a mount from
/// a file can use memory that was freed.
const FIXED: [[u32; 3]; 3] = [[6, 12, 72], [6, 18, 11], [6, 19, 1]];
/// Every release from this one on is without it.
const FIXED_SINCE: [u32; 3] = [7, 0, 0];

/// Whether mounts of EROFS images read packs past the page cache, by the mount option `directio`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DirectIo {
    /// They do where the kernel is known to be free of CVE-2026-23224: 6.12.72 and later 6.12, 6.18.11 and later 6.18,
    /// 6.19.1 and later.
    #[default]
    Auto,
    /// They do. For kernels of which it is known otherwise that they have the fix.
    On,
    /// They do not.
    Off,
}

/// What became of [`DirectIo`], and why.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DirectIoDecision {
    /// Whether `directio` is used.
    pub used: bool,
    /// Why, for people.
    pub reason: String,
}

impl DirectIo {
    /// `auto`, `on` or `off`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        }
    }

    /// Decides for the kernel that runs.
    pub fn decide(self) -> DirectIoDecision {
        self.decide_for(&rustix::system::uname().release().to_string_lossy())
    }

    fn decide_for(self, release: &str) -> DirectIoDecision {
        let (used, reason) = match self {
            Self::On => (true, "it was asked for".to_owned()),
            Self::Off => (false, "it was turned off".to_owned()),
            Self::Auto => match is_fixed(release) {
                Some(true) => (true, format!("Linux {release} has the fix for CVE-2026-23224")),
                Some(false) => {
                    let reason = "is older than the fix for CVE-2026-23224, or cannot be told to have it";
                    (false, format!("Linux {release} {reason}; `on` overrides this"))
                }
                None => (false, format!("'{release}' is no release that is known; `on` overrides this")),
            },
        };
        DirectIoDecision { used, reason }
    }
}

/// Whether a kernel of this release has the fix. Distributions put fixes into releases with smaller numbers: of those
/// nothing is known. `None` if it is no release.
fn is_fixed(release: &str) -> Option<bool> {
    let end = release.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(release.len());
    let (numbers, rest) = release.split_at(end);
    let mut numbers = numbers.split('.').map(|n| n.parse::<u32>().ok());
    let version = [numbers.next()??, numbers.next()??, numbers.next().map_or(Some(0), |n| n)?];
    // What leads to a release may lack what the release has.
    let candidate = rest.starts_with("-rc");
    let since = |first: [u32; 3]| if candidate { version > first } else { version >= first };
    Some(since(FIXED_SINCE) || FIXED.iter().any(|first| version[..2] == first[..2] && since(*first)))
}

impl std::fmt::Display for DirectIo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for DirectIo {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = [Self::Auto, Self::On, Self::Off].into_iter().find(|value| value.as_str() == name);
        found.ok_or_else(|| Error::invalid("unknown value for direct I/O").expected("auto, on or off").actual(name))
    }
}

/// How to mount images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::snapshot) struct Caching {
    pub(in crate::snapshot) direct_io: DirectIo,
    /// The kernel keeps no compressed blocks (`cache_strategy=disabled`).
    pub(in crate::snapshot) drop_compressed: bool,
}

/// Refuses to drop compressed blocks of packs that are better kept: the kernel reads chunks that are stored as they are, or
/// with LZ4, up to five times as often then.
pub(super) fn check_droppable(store: &Store, packs: &[Pack]) -> Result<()> {
    let mut bytes = [0u64; 3];
    for pack in packs {
        let sums = store.with_index(|index| index.raw_bytes(&(pack.base / BLOCK..pack.end / BLOCK)))?;
        bytes.iter_mut().zip(sums).for_each(|(sum, more)| *sum += more);
    }
    let [raw, lz4, zstd] = [Codec::Raw, Codec::Lz4, Codec::Zstd].map(|codec| bytes[codec.to_u8() as usize]);
    if lz4 == 0 && raw <= zstd {
        return Ok(());
    }
    let e =
        Error::new(ErrorKind::FailedPrecondition, "compressed blocks can be dropped only of content stored with zstd");
    let mib = |bytes: u64| bytes >> 20;
    Err(e.expected("no LZ4, and no more content stored as it is than with zstd").actual(format!(
        "{} MiB with LZ4, {} MiB as it is, {} MiB with zstd",
        mib(lz4),
        mib(raw),
        mib(zstd)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_told_apart() {
        let fixed = [
            "6.12.72",
            "6.12.100-1",
            "6.12.73+deb13-amd64",
            "6.18.11",
            "6.18.44-fc-v657",
            "6.19.1",
            "6.19.12-arch1-1",
            "7.0",
            "7.0.0",
            "7.0.0-1-default",
            "7.1.0-rc1",
            "7.0.1-rc1",
            "10.2",
        ];
        let not = [
            "6.12.71",
            "6.12",
            "6.12.0-55.el10.x86_64",
            "6.12.72-rc1",
            "6.13.99",
            "6.14.0",
            "6.17.13-fc43",
            "6.18",
            "6.18.10",
            "6.18.11-rc2",
            "6.19",
            "6.19.0-5-generic",
            "6.19.1-rc1",
            "7.0.0-rc1",
            "7.0-rc7",
            "5.15.200",
            "6.1.170",
        ];
        fixed.iter().for_each(|release| assert_eq!(is_fixed(release), Some(true), "{release}"));
        not.iter().for_each(|release| assert_eq!(is_fixed(release), Some(false), "{release}"));
        for odd in ["", "6", "6.", ".6.18", "v6.18.44", "6..18", "6.18.", "99999999999.1.1", "six"] {
            assert_eq!(is_fixed(odd), None, "{odd}");
        }
    }

    #[test]
    fn what_is_asked_for_overrides_the_release() {
        let used = |value: DirectIo, release| value.decide_for(release).used;
        assert!(used(DirectIo::On, "6.17.1") && !used(DirectIo::Off, "7.0.0"));
        assert!(used(DirectIo::Auto, "7.0.0") && !used(DirectIo::Auto, "6.17.1") && !used(DirectIo::Auto, "odd"));
        for value in [DirectIo::Auto, DirectIo::On, DirectIo::Off] {
            assert_eq!(value.as_str().parse::<DirectIo>().unwrap(), value);
        }
        assert!("yes".parse::<DirectIo>().is_err());
    }
}
