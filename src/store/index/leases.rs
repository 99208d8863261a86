//! Leases and what they keep: rows only.

use super::{Change, Index, all, db_error, digest, one};
use crate::digest::Digest;
use crate::error::{Error, Result};
use rusqlite::{Connection, Row, params};

/// What a lease keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum LeaseRef {
    /// A layer, by diff_id.
    Layer(Digest),
    /// A file of `blobs/`.
    Blob(Digest),
    /// What was made of a chain: its extracted directory and its metadata image, by chain_id.
    Chain(Digest),
}

impl LeaseRef {
    fn columns(&self) -> (u8, &Digest) {
        match self {
            Self::Layer(digest) => (1, digest),
            Self::Blob(digest) => (2, digest),
            Self::Chain(digest) => (3, digest),
        }
    }

    fn from_columns(kind: u8, digest: Digest) -> Result<Self> {
        match kind {
            1 => Ok(Self::Layer(digest)),
            2 => Ok(Self::Blob(digest)),
            3 => Ok(Self::Chain(digest)),
            _ => Err(Error::corrupt("a lease keeps something of an unknown kind").actual(kind)),
        }
    }
}

/// A row of `leases` with its refs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeaseRow {
    pub(crate) n: u64,
    /// The process, as `sys::process` writes it.
    pub(crate) owner: String,
    /// Seconds since 1970; `None`: as long as the owner lives.
    pub(crate) expires: Option<i64>,
    pub(crate) refs: Vec<LeaseRef>,
}

pub(super) fn leases(db: &Connection) -> Result<Vec<LeaseRow>> {
    let row = |r: &Row<'_>| {
        let n = r.get::<_, i64>(0)? as u64;
        Ok(LeaseRow { n, owner: r.get(1)?, expires: r.get(2)?, refs: vec![] })
    };
    let mut rows = all(db, "SELECT n, owner, expires FROM leases ORDER BY n", [], row)?;
    for lease in &mut rows {
        let sql = "SELECT kind, digest FROM lease_refs WHERE lease = ?1";
        let refs = all(db, sql, [lease.n as i64], |r| Ok((r.get(0)?, digest(r, 1)?)))?;
        lease.refs =
            refs.into_iter().map(|(kind, digest)| LeaseRef::from_columns(kind, digest)).collect::<Result<_>>()?;
    }
    Ok(rows)
}

impl Index {
    pub(crate) fn leases(&self) -> Result<Vec<LeaseRow>> {
        leases(&self.db)
    }
}

impl Change<'_> {
    pub(crate) fn add_lease(&self, owner: &str, expires: Option<i64>) -> Result<u64> {
        self.run("INSERT INTO leases (owner, expires) VALUES (?1, ?2)", params![owner, expires])?;
        Ok(self.tx.last_insert_rowid() as u64)
    }

    /// Lets a lease keep something more. Whether that is there is for the caller to see.
    pub(crate) fn add_lease_ref(&self, lease: u64, keep: &LeaseRef) -> Result<()> {
        let (kind, digest) = keep.columns();
        let sql = "INSERT INTO lease_refs (lease, kind, digest) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
        self.run(sql, params![lease as i64, kind, digest.as_bytes()]).map(drop)
    }

    pub(crate) fn has_lease(&self, lease: u64) -> Result<bool> {
        let query = || self.tx.prepare_cached("SELECT 1 FROM leases WHERE n = ?1")?.exists([lease as i64]);
        query().map_err(db_error("read"))
    }

    /// Sets when a lease ends; false if it has.
    pub(crate) fn renew_lease(&self, lease: u64, expires: Option<i64>) -> Result<bool> {
        Ok(self.run("UPDATE leases SET expires = ?2 WHERE n = ?1", params![lease as i64, expires])? > 0)
    }

    /// Ends a lease if its end is still the one that was seen, and nobody has renewed it since.
    pub(crate) fn drop_lease_as_seen(&self, lease: u64, expires: Option<i64>) -> Result<()> {
        let sql = "SELECT 1 FROM leases WHERE n = ?1 AND expires IS ?2";
        match one(self.tx, sql, params![lease as i64, expires], |_| Ok(()))? {
            Some(()) => self.drop_lease(lease),
            None => Ok(()),
        }
    }

    pub(crate) fn drop_lease(&self, lease: u64) -> Result<()> {
        self.run("DELETE FROM lease_refs WHERE lease = ?1", [lease as i64])?;
        self.run("DELETE FROM leases WHERE n = ?1", [lease as i64]).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever saw a lease's end and ends it later leaves one alone that was renewed meanwhile.
    #[test]
    fn a_renewed_lease_is_not_ended() {
        let dir = tempfile::tempdir().unwrap();
        let mut index = Index::open(&dir.path().join("db"), true).unwrap();
        let n = index.write(|c| c.add_lease("me", Some(5))).unwrap();
        let forever = index.write(|c| c.add_lease("me", None)).unwrap();
        assert!(index.write(|c| c.renew_lease(n, Some(9))).unwrap());
        index.write(|c| c.drop_lease_as_seen(n, Some(5))).unwrap();
        assert_eq!(index.leases().unwrap().len(), 2);
        index.write(|c| c.drop_lease_as_seen(n, Some(9)).and_then(|()| c.drop_lease_as_seen(forever, None))).unwrap();
        assert!(index.leases().unwrap().is_empty());
    }
}
