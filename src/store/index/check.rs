//! What fsck asks of the database.

use super::Index;
use crate::error::{Error, Result};

/// Complaints of SQLite's own check that are worth telling.
const COMPLAINTS: u32 = 100;

/// Queries that count rows which others do not bear out, and what such rows are. Every one of them holds in each
/// committed state, so gc and imports meanwhile cause none.
const CONTRADICTIONS: [(&str, &str); 8] = [
    (
        "SELECT count(*) FROM members m WHERE NOT EXISTS (SELECT 1 FROM chunks WHERE n = m.chunk) \
         AND NOT EXISTS (SELECT 1 FROM dead_chunks WHERE n = m.chunk)",
        "small files in no bundle",
    ),
    (
        "SELECT 2 - count(*) FROM counters WHERE name IN ('generation', 'top') AND typeof(value) = 'integer'",
        "lost counters",
    ),
    (
        "SELECT count(*) FROM snapshots WHERE kind NOT IN (1, 2, 3) OR form NOT IN (0, 1, 2) OR n < 1 OR bytes < 0 \
         OR inodes < 0 OR typeof(lowers) <> 'text' OR typeof(key) <> 'text' OR typeof(namespace) <> 'text'",
        "snapshots that make no sense",
    ),
    (
        "SELECT count(*) FROM snapshots s WHERE parent IS NOT NULL \
         AND NOT EXISTS (SELECT 1 FROM snapshots WHERE n = s.parent AND kind = 3)",
        "snapshots whose parent is none",
    ),
    (
        "SELECT count(*) FROM snapshots s WHERE layer IS NOT NULL \
         AND NOT EXISTS (SELECT 1 FROM layers WHERE diff_id = s.layer)",
        "snapshots whose layer the store does not have",
    ),
    (
        "SELECT count(*) FROM snapshot_labels l WHERE NOT EXISTS (SELECT 1 FROM snapshots WHERE n = l.snapshot)",
        "labels of no snapshot",
    ),
    (
        "SELECT count(*) FROM lease_refs r WHERE kind NOT IN (1, 2, 3) \
         OR NOT EXISTS (SELECT 1 FROM leases WHERE n = r.lease)",
        "what no lease keeps",
    ),
    (
        "SELECT count(*) FROM sqlite_sequence \
         WHERE name = 'snapshots' AND seq < (SELECT coalesce(max(n), 0) FROM snapshots) \
         OR name = 'leases' AND seq < (SELECT coalesce(max(n), 0) FROM leases)",
        "numbers that would be used twice",
    ),
];

/// Tables whose rows say what is kept, and that only a second copy bears out.
const ROOTS: [&str; 9] =
    ["images", "image_layers", "layers", "blobs", "snapshots", "snapshot_labels", "leases", "lease_refs", "packs"];

impl Index {
    /// Whether the rows that say what is kept are as they were written. Who removes what they do not name asks first:
    /// a damaged one names something else.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(crate) fn check_roots(&self) -> Result<()> {
        for table in ROOTS {
            let sql = format!("PRAGMA integrity_check('{table}')");
            let found: Vec<String> = self.all(&sql, [], |r| r.get(0))?;
            if let Some(what) = found.iter().find(|line| *line != "ok") {
                return Err(Error::corrupt("rows of the database that say what is kept are damaged").actual(what));
            }
        }
        Ok(())
    }

    /// What SQLite finds wrong with its file; with `full` its indexes are compared with their tables as well.
    pub(crate) fn complaints(&self, full: bool) -> Result<Vec<String>> {
        let check = if full { "integrity_check" } else { "quick_check" };
        let mut found: Vec<String> = self.all(&format!("PRAGMA {check}({COMPLAINTS})"), [], |r| r.get(0))?;
        found.retain(|line| line != "ok");
        Ok(found)
    }

    /// Small files whose bundles are in use.
    pub(crate) fn live_members(&self) -> Result<u64> {
        let sql = "SELECT count(*) FROM members m JOIN chunks c ON c.n = m.chunk";
        Ok(self.one(sql, [], |r| r.get::<_, i64>(0))?.unwrap_or_default() as u64)
    }

    /// What is wrong with rows of which SQLite knows only that they are whole.
    pub(crate) fn contradictions(&self) -> Result<Vec<String>> {
        let mut told = Vec::new();
        for (sql, what) in CONTRADICTIONS {
            let count = self.one(sql, [], |r| r.get::<_, i64>(0))?.unwrap_or_default();
            if count > 0 {
                told.push(format!("{what}: {count}"));
            }
        }
        Ok(told)
    }

    /// Whether a pack is sealed and has this length.
    pub(crate) fn has_sealed(&self, base: u64, len: u64) -> Result<bool> {
        let sql = "SELECT 1 FROM packs WHERE base = ?1 AND len = ?2 AND session IS NULL";
        Ok(self.one(sql, [base as i64, len as i64], |_| Ok(()))?.is_some())
    }
}
