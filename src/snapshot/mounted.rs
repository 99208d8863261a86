//! What is mounted from a store, and taking it away.

use super::Snapshotter;
use super::model::SnapshotKind;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Change, SnapshotRow, Store};
use crate::sys::mount;
use crate::sys::mounts::{self, InUse, Shown};
use std::path::{Path, PathBuf};

/// A mount that shows something of a store, in the mount namespace of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mounted {
    /// Where it is mounted. Below the store's own directory for mounts that snapshots share.
    pub dir: PathBuf,
    /// What it shows, as names below the store: `snapshots/3/fs`, `trees/<chain_id>`,
    /// `images/<chain_id>.erofs`. Empty if the kernel does not tell which of the store's
    /// directories those are.
    pub shows: Vec<PathBuf>,
    /// The one of those that is written to through it.
    pub writes: Option<PathBuf>,
    /// Another mount is on top of it, so that nothing leads to it.
    pub covered: bool,
}

/// What [`Store::unmount_all`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnmountReport {
    /// Where nothing of the store is mounted any more, in this order.
    pub unmounted: Vec<PathBuf>,
    /// Where something is still mounted, because somebody uses it or another mount covers it.
    pub in_use: Vec<PathBuf>,
}

impl From<Shown> for Mounted {
    fn from(shown: Shown) -> Self {
        Self { dir: shown.dir, shows: shown.names, writes: shown.writes, covered: shown.covered }
    }
}

impl Store {
    /// What is mounted from this store in the mount namespace of this process, however it was
    /// mounted, in the order of the mount table. Mounts below the store's own directory, which
    /// snapshots share, are among it.
    ///
    /// # Errors
    /// `Io` if the mount table cannot be read.
    pub fn mounts(&self) -> Result<Vec<Mounted>> {
        Ok(mounts::shown(self.path())?.into_iter().map(Mounted::from).collect())
    }

    /// Takes away every mount of this store in the mount namespace of this process: those of
    /// snapshots, and those below its own directory that snapshots share. After that the store's
    /// directory can be moved or removed.
    ///
    /// Snapshots stay. [`Snapshotter::mounts`] brings back what they share, as after a reboot;
    /// whoever still has the mounts that an earlier call returned must call it before mounting
    /// them.
    ///
    /// # Errors
    /// `Io`. What is in use is no error: it stays, and the report names it.
    pub fn unmount_all(&self) -> Result<UnmountReport> {
        let mut report = UnmountReport::default();
        loop {
            let mut found = mounts::shown(self.path())?;
            let before = report.unmounted.len();
            // What was mounted last may be on top of the others.
            while let Some(shown) = found.pop() {
                // By its path nothing else than this mount may be taken away.
                if !shown.covered && self.unmount(&shown)? {
                    report.unmounted.push(shown.dir);
                }
            }
            if report.unmounted.len() == before {
                report.in_use = mounts::shown(self.path())?.into_iter().map(|shown| shown.dir).collect();
                report.in_use.dedup();
                return Ok(report);
            }
        }
    }

    /// False if the mount is in use, or no longer where it was.
    fn unmount(&self, shown: &Shown) -> Result<bool> {
        // In a transaction: a snapshot that is being made finds a shared mount there or does not.
        let unmount = |_: &Change<'_>| mount::unmount_with_id(&shown.dir, shown.id);
        let done = match shown.dir.starts_with(self.path()) {
            true => self.with_index(|index| index.write(unmount)),
            false => mount::unmount_with_id(&shown.dir, shown.id),
        };
        match done {
            Err(e) if matches!(e.kind(), ErrorKind::Busy | ErrorKind::NotFound) => Ok(false),
            other => other,
        }
    }
}

impl Snapshotter {
    /// Where a snapshot is mounted: `None` if it is not. The list has the places that this process
    /// sees, and is empty if all are in other mount namespaces.
    ///
    /// For an active snapshot, and a view that has a directory of its own, those mount namespaces
    /// count that root or the store's owner made. Of other views mounts are alike, and only those
    /// are looked at that this process sees: a view is taken to be mounted if there are as many
    /// such mounts as there are such views.
    ///
    /// # Errors
    /// `NotFound`; `Io` if the mount table cannot be read.
    pub fn mount_points(&self, key: &str) -> Result<Option<Vec<PathBuf>>> {
        self.mounts_showing(&self.row(key)?)
    }

    /// # Errors
    /// `Busy` if a snapshot is known to be mounted.
    pub(super) fn check_unmounted(&self, row: &SnapshotRow) -> Result<()> {
        let dirs = match self.mounts_showing(row) {
            // Without /proc nobody knows: work goes on there, and the caller must know what is
            // mounted.
            Ok(None) => return Ok(()),
            Err(e) if matches!(e.kind(), ErrorKind::Io | ErrorKind::NotFound) => return Ok(()),
            other => other?.unwrap_or_default(),
        };
        let places: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
        let places = if places.is_empty() { "another mount namespace".to_owned() } else { places.join(", ") };
        let e = Error::new(ErrorKind::Busy, "the snapshot is mounted; unmount it first");
        Err(e.subject(format!("snapshot {}", row.key)).actual(places))
    }

    fn mounts_showing(&self, row: &SnapshotRow) -> Result<Option<Vec<PathBuf>>> {
        let kind = SnapshotKind::from_u8(row.kind)?;
        if kind == SnapshotKind::Committed {
            return Ok(None);
        }
        let here = || mounts::shown(self.store.path());
        if kind == SnapshotKind::View && !row.lowers.is_empty() {
            let dirs: Vec<PathBuf> = self.like(row, here()?).map(|shown| shown.dir).collect();
            let rows = self.store.with_index(|index| index.snapshots(None))?;
            let views = rows.iter().filter(|other| other.kind == row.kind && other.lowers == row.lowers).count();
            return Ok((!dirs.is_empty() && dirs.len() >= views).then_some(dirs));
        }
        let n = row.n.to_string();
        if !InUse::of(self.store.path()).certainly_shows("snapshots", &n) {
            return Ok(None);
        }
        let own = Path::new("snapshots").join(n);
        let shows = |shown: &Shown| shown.names.iter().any(|name| name.starts_with(&own));
        Ok(Some(here()?.into_iter().filter(shows).map(|shown| shown.dir).collect()))
    }

    /// Mounts outside of the store that show what a view without a directory of its own does, and
    /// nothing else.
    fn like(&self, view: &SnapshotRow, here: Vec<Shown>) -> impl Iterator<Item = Shown> {
        let name = |lower: &String| match (lower.strip_prefix("mounts/"), view.lowers.len()) {
            // A bind of the mounted image is another mount of it.
            (Some(chain), 1) => Path::new("images").join(format!("{chain}.erofs")),
            _ => PathBuf::from(lower),
        };
        let mut names: Vec<PathBuf> = view.lowers.iter().map(name).collect();
        names.sort();
        let store = self.store.path().to_owned();
        here.into_iter().filter(move |shown| shown.names == names && !shown.dir.starts_with(&store))
    }
}
