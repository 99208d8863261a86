//! What fsck asks of the database.

use super::Index;
use crate::error::Result;

/// Complaints of SQLite's own check that are worth telling.
const COMPLAINTS: u32 = 100;

impl Index {
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

    /// Whether a pack is sealed and has this length.
    pub(crate) fn has_sealed(&self, base: u64, len: u64) -> Result<bool> {
        let sql = "SELECT 1 FROM packs WHERE base = ?1 AND len = ?2 AND session IS NULL";
        Ok(self.one(sql, [base as i64, len as i64], |_| Ok(()))?.is_some())
    }
}
