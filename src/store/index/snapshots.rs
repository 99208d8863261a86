//! Snapshots and their labels: rows only. What they mean is the business of `snapshot/`.

use super::{Change, Index, all, db_error, digest, one};
use crate::digest::Digest;
use crate::error::{Error, Result};
use rusqlite::types::Type;
use rusqlite::{Connection, Params, Row, params};
use std::collections::{BTreeMap, HashSet};

/// Whose key it is, and the key.
pub(crate) type SnapshotKey<'a> = (&'a str, &'a str);

/// A row of `snapshots`, with its labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotRow {
    /// Its number, which no other snapshot ever gets; 0 before it is inserted.
    pub(crate) n: u64,
    pub(crate) namespace: String,
    pub(crate) key: String,
    /// 1 view, 2 active, 3 committed.
    pub(crate) kind: u8,
    pub(crate) parent: Option<u64>,
    pub(crate) layer: Option<Digest>,
    /// How its directory holds changes: 0 overlay, 1 overlay with `user.` attributes, 2 the whole tree.
    pub(crate) form: u8,
    /// Directories below the store that its mounts stack, the lowest first.
    pub(crate) lowers: Vec<String>,
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
    /// Nanoseconds since 1970.
    pub(crate) created: i64,
    pub(crate) updated: i64,
    pub(crate) labels: BTreeMap<String, String>,
}

pub(super) const SNAPSHOT: &str =
    "SELECT n, namespace, key, kind, parent, layer, form, lowers, bytes, inodes, created, updated FROM snapshots";

pub(super) fn row(r: &Row<'_>) -> rusqlite::Result<SnapshotRow> {
    let unsigned = |column| r.get::<_, i64>(column).map(|v| v as u64);
    let lowers: String = r.get(7)?;
    Ok(SnapshotRow {
        n: unsigned(0)?,
        namespace: r.get(1)?,
        key: r.get(2)?,
        kind: r.get(3)?,
        parent: r.get::<_, Option<i64>>(4)?.map(|v| v as u64),
        layer: match r.get_ref(5)?.data_type() {
            Type::Null => None,
            _ => Some(digest(r, 5)?),
        },
        form: r.get(6)?,
        lowers: lowers.lines().map(str::to_owned).collect(),
        bytes: unsigned(8)?,
        inodes: unsigned(9)?,
        created: r.get(10)?,
        updated: r.get(11)?,
        labels: BTreeMap::new(),
    })
}

pub(super) fn snapshots(db: &Connection) -> Result<Vec<SnapshotRow>> {
    all(db, SNAPSHOT, [], row)
}

impl Index {
    pub(crate) fn snapshot(&self, (namespace, key): SnapshotKey<'_>) -> Result<Option<SnapshotRow>> {
        one_snapshot(&self.db, "namespace = ?1 AND key = ?2", [namespace, key])
    }

    pub(crate) fn snapshot_numbered(&self, n: u64) -> Result<Option<SnapshotRow>> {
        one_snapshot(&self.db, "n = ?1", [n as i64])
    }

    /// All snapshots of a namespace by number, parents so before children; of all namespaces without one.
    pub(crate) fn snapshots(&self, namespace: Option<&str>) -> Result<Vec<SnapshotRow>> {
        let sql = format!("{SNAPSHOT} WHERE ?1 IS NULL OR namespace = ?1 ORDER BY n");
        let mut rows = self.all(&sql, [namespace], row)?;
        let sql = "SELECT l.snapshot, l.name, l.value FROM snapshot_labels l JOIN snapshots s ON s.n = l.snapshot \
                   WHERE ?1 IS NULL OR s.namespace = ?1 ORDER BY l.snapshot";
        let labels = self.all(sql, [namespace], |r| Ok((r.get::<_, i64>(0)? as u64, r.get(1)?, r.get(2)?)))?;
        for (n, name, value) in labels {
            if let Ok(at) = rows.binary_search_by_key(&n, |row| row.n) {
                rows[at].labels.insert(name, value);
            }
        }
        Ok(rows)
    }

    /// Numbers of the snapshots with this label, and when they were updated last, in nanoseconds since 1970.
    pub(crate) fn snapshots_labelled(&self, label: &str) -> Result<Vec<(u64, i64)>> {
        let sql = "SELECT s.n, s.updated FROM snapshots s JOIN snapshot_labels l ON l.snapshot = s.n WHERE l.name = ?1";
        self.all(sql, [label], |r| Ok((r.get::<_, i64>(0)? as u64, r.get(1)?)))
    }
}

/// The snapshot for which `condition` holds, and its labels.
fn one_snapshot(db: &Connection, condition: &str, of: impl Params) -> Result<Option<SnapshotRow>> {
    let Some(mut snapshot) = one(db, &format!("{SNAPSHOT} WHERE {condition}"), of, row)? else { return Ok(None) };
    let sql = "SELECT name, value FROM snapshot_labels WHERE snapshot = ?1";
    let labels = all(db, sql, [snapshot.n as i64], |r| Ok((r.get(0)?, r.get(1)?)))?;
    snapshot.labels = labels.into_iter().collect();
    Ok(Some(snapshot))
}

impl Change<'_> {
    /// Directories below the store that mounts of snapshots stack.
    pub(crate) fn snapshot_lowers(&self) -> Result<HashSet<String>> {
        let rows = all(self.tx, "SELECT lowers FROM snapshots", [], |r| r.get::<_, String>(0))?;
        Ok(rows.iter().flat_map(|lowers| lowers.lines()).map(str::to_owned).collect())
    }

    /// As [`Index::snapshot`], within this transaction.
    pub(crate) fn snapshot(&self, (namespace, key): SnapshotKey<'_>) -> Result<Option<SnapshotRow>> {
        one_snapshot(self.tx, "namespace = ?1 AND key = ?2", [namespace, key])
    }

    /// As [`Index::snapshot_numbered`], within this transaction.
    pub(crate) fn snapshot_numbered(&self, n: u64) -> Result<Option<SnapshotRow>> {
        one_snapshot(self.tx, "n = ?1", [n as i64])
    }

    /// Whether any snapshot has this one as its parent.
    pub(crate) fn snapshot_has_children(&self, n: u64) -> Result<bool> {
        let sql = "SELECT 1 FROM snapshots WHERE parent = ?1 LIMIT 1";
        let query = || self.tx.prepare_cached(sql)?.exists([n as i64]);
        query().map_err(db_error("read"))
    }

    /// All snapshots of all namespaces, labels left out.
    pub(crate) fn snapshots(&self) -> Result<Vec<SnapshotRow>> {
        snapshots(self.tx)
    }

    /// Adds a snapshot, or writes one that has a number anew. Returns its number.
    pub(crate) fn put_snapshot(&self, s: &SnapshotRow) -> Result<u64> {
        if s.lowers.iter().any(|l| l.contains('\n')) {
            return Err(Error::invalid("a line break in the name of a lower directory"));
        }
        let number = (s.n > 0).then_some(s.n as i64);
        let sql = "INSERT INTO snapshots (n, namespace, key, kind, parent, layer, form, lowers, bytes, inodes, \
                   created, updated) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12) \
                   ON CONFLICT (n) DO UPDATE SET (namespace, key, kind, parent, layer, form, lowers, bytes, inodes, \
                   created, updated) = (?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)";
        let parent = s.parent.map(|p| p as i64);
        let layer = s.layer.as_ref().map(Digest::as_bytes);
        let (lowers, bytes, inodes) = (s.lowers.join("\n"), s.bytes as i64, s.inodes as i64);
        let (namespace, key) = (&s.namespace, &s.key);
        let values =
            params![number, namespace, key, s.kind, parent, layer, s.form, lowers, bytes, inodes, s.created, s.updated];
        self.run(sql, values)?;
        let n = number.unwrap_or_else(|| self.tx.last_insert_rowid());
        self.run("DELETE FROM snapshot_labels WHERE snapshot = ?1", [n])?;
        for (name, value) in &s.labels {
            let sql = "INSERT INTO snapshot_labels (snapshot, name, value) VALUES (?1, ?2, ?3)";
            self.run(sql, params![n, name, value])?;
        }
        Ok(n as u64)
    }

    /// The committed snapshot's changes are a layer from now on; false if it is gone.
    pub(crate) fn set_snapshot_layer(&self, n: u64, layer: &Digest) -> Result<bool> {
        let sql = "UPDATE snapshots SET layer = ?2 WHERE n = ?1";
        Ok(self.run(sql, params![n as i64, layer.as_bytes()])? > 0)
    }

    pub(crate) fn remove_snapshot(&self, n: u64) -> Result<()> {
        self.run("DELETE FROM snapshot_labels WHERE snapshot = ?1", [n as i64])?;
        self.run("DELETE FROM snapshots WHERE n = ?1", [n as i64]).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_round_trip_and_numbers_are_never_given_twice() {
        let dir = tempfile::tempdir().unwrap();
        let mut index = Index::open(&dir.path().join("db"), true).unwrap();
        let row = SnapshotRow {
            n: 0,
            namespace: "ns".into(),
            key: "a/b c".into(),
            kind: 2,
            parent: None,
            layer: Some(Digest::of(b"l")),
            form: 1,
            lowers: vec!["trees/1".into(), "snapshots/3/fs".into()],
            bytes: 5,
            inodes: 6,
            created: -7,
            updated: 8,
            labels: [("k".to_owned(), "v".to_owned())].into(),
        };
        let n = index.write(|c| c.put_snapshot(&row)).unwrap();
        let child = SnapshotRow { key: "child".into(), parent: Some(n), layer: None, ..row.clone() };
        let m = index.write(|c| c.put_snapshot(&child)).unwrap();
        assert_eq!(index.snapshot(("ns", "a/b c")).unwrap(), Some(SnapshotRow { n, ..row.clone() }));
        assert_eq!(index.snapshot(("other", "a/b c")).unwrap(), None);
        assert!(index.write(|c| c.snapshot_has_children(n)).unwrap());
        let renamed = SnapshotRow { n: m, key: "new".into(), labels: BTreeMap::new(), ..child };
        assert_eq!(index.write(|c| c.put_snapshot(&renamed)).unwrap(), m);
        assert_eq!(index.snapshots(Some("ns")).unwrap(), [SnapshotRow { n, ..row.clone() }, renamed]);
        index.write(|c| c.remove_snapshot(m)).unwrap();
        assert!(!index.write(|c| c.snapshot_has_children(n)).unwrap());
        let next = index.write(|c| c.put_snapshot(&SnapshotRow { key: "next".into(), ..row.clone() })).unwrap();
        assert!(next > m, "a number names a directory that may still be there");
    }
}
