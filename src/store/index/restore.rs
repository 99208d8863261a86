//! What only a rebuild writes: rows that otherwise come about step by step.

use super::Change;
use crate::error::Result;
use rusqlite::params;

impl Change<'_> {
    /// Adds a sealed pack.
    pub(crate) fn add_pack(&self, base: u64, len: u64) -> Result<()> {
        let sql = "INSERT INTO packs (base, len, session) VALUES (?1, ?2, NULL)";
        self.run(sql, params![base as i64, len as i64]).map(drop)
    }

    /// Addresses below `top` are not given out as long as there are others.
    pub(crate) fn raise_top(&self, top: u64) -> Result<()> {
        self.run("UPDATE counters SET value = max(value, ?1) WHERE name = 'top'", [top as i64]).map(drop)
    }

    /// The next snapshot gets a higher number than `n`.
    pub(crate) fn raise_snapshots(&self, n: u64) -> Result<()> {
        let sql = "INSERT INTO sqlite_sequence (name, seq) SELECT 'snapshots', 0 \
                   WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'snapshots')";
        self.run(sql, [])?;
        let sql = "UPDATE sqlite_sequence SET seq = max(seq, ?1) WHERE name = 'snapshots'";
        self.run(sql, [n as i64]).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Index, SnapshotRow};
    use crate::format::pack::BLOCK;

    #[test]
    fn neither_addresses_nor_numbers_are_given_out_below_what_was_raised() {
        let dir = tempfile::tempdir().unwrap();
        let mut index = Index::open(&dir.path().join("db"), true).unwrap();
        index.write(|c| c.add_pack(8 * BLOCK, BLOCK).and_then(|()| c.raise_top(20 * BLOCK))).unwrap();
        index.write(|c| c.raise_snapshots(7).and_then(|()| c.raise_snapshots(3))).unwrap();
        assert_eq!(index.packs().unwrap(), [(8 * BLOCK, BLOCK)]);
        assert_eq!(index.write(|c| c.reserve_pack(BLOCK, "s")).unwrap(), 20 * BLOCK);
        let row = SnapshotRow {
            n: 0,
            namespace: String::new(),
            key: "k".into(),
            kind: 2,
            parent: None,
            layer: None,
            form: 0,
            lowers: vec![],
            bytes: 0,
            inodes: 0,
            created: 0,
            updated: 0,
            labels: Default::default(),
        };
        assert_eq!(index.write(|c| c.put_snapshot(&row)).unwrap(), 8);
    }
}
