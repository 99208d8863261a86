//! What a snapshot is, for its users.

use crate::error::{Error, ErrorKind, Result};
use crate::format::entry::Time;
use crate::store::SnapshotRow;
use std::collections::BTreeMap;

/// Free-form names and values that a snapshot's user gives it.
pub type Labels = BTreeMap<String, String>;

/// What can be done with a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SnapshotKind {
    /// Read-only; goes with its key.
    View,
    /// Can be mounted and written to, and committed.
    Active,
    /// Immutable; can be a parent.
    Committed,
}

impl SnapshotKind {
    /// The kind as containerd writes it: `view`, `active`, `committed`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }

    pub(crate) fn to_u8(self) -> u8 {
        match self {
            Self::View => 1,
            Self::Active => 2,
            Self::Committed => 3,
        }
    }

    pub(super) fn from_u8(n: u8) -> Result<Self> {
        match n {
            1 => Ok(Self::View),
            2 => Ok(Self::Active),
            3 => Ok(Self::Committed),
            other => Err(Error::corrupt("unknown kind of snapshot in the database").actual(other)),
        }
    }
}

impl std::fmt::Display for SnapshotKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A snapshot, as containerd's `snapshots.Info`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotInfo {
    /// Its key; of a committed one its name.
    pub key: String,
    /// Key of the committed snapshot below it.
    pub parent: Option<String>,
    /// What can be done with it.
    pub kind: SnapshotKind,
    /// The user's labels.
    pub labels: Labels,
    /// When it was prepared, or committed.
    pub created: Time,
    /// When its labels changed last.
    pub updated: Time,
}

/// What a snapshot adds to its parents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotUsage {
    /// Bytes of disk; for changes that are chunks already, bytes of content.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// How the directory of a snapshot holds what it adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// An overlay's upper directory.
    Upper,
    /// One whose marks are `user.overlay.*`, as unprivileged overlays write them.
    UserUpper,
    /// All of the tree.
    Whole,
}

impl Form {
    pub(crate) fn to_u8(self) -> u8 {
        match self {
            Self::Upper => 0,
            Self::UserUpper => 1,
            Self::Whole => 2,
        }
    }

    pub(super) fn from_u8(n: u8) -> Result<Self> {
        match n {
            0 => Ok(Self::Upper),
            1 => Ok(Self::UserUpper),
            2 => Ok(Self::Whole),
            other => Err(Error::corrupt("unknown form of a snapshot's directory in the database").actual(other)),
        }
    }
}

pub(super) fn time(nanos: i64) -> Time {
    Time { secs: nanos.div_euclid(1_000_000_000), nanos: nanos.rem_euclid(1_000_000_000) as u32 }
}

/// Now, in nanoseconds since 1970.
pub(super) fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

pub(super) fn info(row: SnapshotRow, parent: Option<String>) -> Result<SnapshotInfo> {
    Ok(SnapshotInfo {
        kind: SnapshotKind::from_u8(row.kind)?,
        key: row.key,
        parent,
        labels: row.labels,
        created: time(row.created),
        updated: time(row.updated),
    })
}

pub(super) fn not_found(key: &str) -> Error {
    Error::not_found("no such snapshot").subject(format!("snapshot {key}"))
}

pub(super) fn taken(key: &str) -> Error {
    Error::new(ErrorKind::AlreadyExists, "a snapshot of this name exists").subject(format!("snapshot {key}"))
}
