//! What an import has stored so far and the database does not know yet, in bounded memory.
//!
//! Both lists begin as maps. Past a size they move to a temporary database in the session's directory, which is neither
//! synced nor journalled: it ends with the import.

use super::ingest::Slot;
use crate::error::{Error, Result};
use crate::id::ContentId;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

/// Entries of each map kept in memory: together some 60 MiB.
const HOT_MAX: usize = 300_000;

/// Where a small file already is.
pub(crate) enum Found {
    /// In a chunk whose id is known.
    Stored { chunk: ContentId, offset: u32 },
    /// In a bundle of this import that is still to be hashed.
    Pending { bundle: Arc<Slot>, offset: u32 },
}

/// Chunks claimed by one import.
pub(super) struct Claimed {
    hot: HashSet<ContentId>,
    cold: Cold,
}

/// Small files bundled by one import.
pub(super) struct Bundled {
    hot: HashMap<ContentId, (Arc<Slot>, u32)>,
    cold: Cold,
}

impl Claimed {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { hot: HashSet::new(), cold: Cold::new(dir.join("claimed.db")) }
    }

    /// Claims a chunk; false if it was claimed before.
    pub(super) fn insert(&mut self, id: ContentId) -> Result<bool> {
        if self.hot.contains(&id) || self.cold.get(&id)?.is_some() {
            return Ok(false);
        }
        if self.hot.len() >= HOT_MAX {
            let rows = self.hot.drain().map(|id| (id, id, 0));
            self.cold.put(rows)?;
        }
        Ok(self.hot.insert(id))
    }
}

impl Bundled {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { hot: HashMap::new(), cold: Cold::new(dir.join("bundled.db")) }
    }

    pub(super) fn find(&self, id: &ContentId) -> Result<Option<Found>> {
        if let Some((slot, offset)) = self.hot.get(id) {
            return Ok(Some(Found::Pending { bundle: slot.clone(), offset: *offset }));
        }
        let place = self.cold.get(id)?;
        Ok(place.map(|(chunk, offset)| Found::Stored { chunk, offset }))
    }

    /// Notes where a small file goes; one that another layer noted first stays where it is.
    pub(super) fn note(&mut self, id: ContentId, slot: &Arc<Slot>, offset: u32) -> Result<()> {
        if self.hot.len() >= HOT_MAX {
            // Bundles in the making cannot move: nobody knows their ids yet. There are few at a time.
            let done = self.hot.extract_if(|_, (slot, _)| slot.id().is_some());
            let rows = done.filter_map(|(id, (slot, offset))| Some((id, slot.id()?, offset)));
            self.cold.put(rows)?;
        }
        self.hot.entry(id).or_insert_with(|| (slot.clone(), offset));
        Ok(())
    }
}

/// The part on disk.
struct Cold {
    path: PathBuf,
    db: Option<Connection>,
}

impl Cold {
    fn new(path: PathBuf) -> Self {
        Self { path, db: None }
    }

    fn get(&self, id: &ContentId) -> Result<Option<(ContentId, u32)>> {
        let Some(db) = &self.db else { return Ok(None) };
        let get = || {
            let mut sql = db.prepare_cached("SELECT chunk, start FROM pending WHERE id = ?1")?;
            sql.query_row([id.as_bytes()], |r| Ok((ContentId::from_bytes(r.get(0)?), r.get(1)?))).optional()
        };
        get().map_err(failed)
    }

    fn put(&mut self, rows: impl Iterator<Item = (ContentId, ContentId, u32)>) -> Result<()> {
        let db = match &mut self.db {
            Some(db) => db,
            none => none.insert(create(&self.path).map_err(failed)?),
        };
        let mut rows: Vec<_> = rows.collect();
        rows.sort_unstable();
        let put = || {
            let tx = db.transaction()?;
            let mut sql = tx.prepare_cached("INSERT OR IGNORE INTO pending VALUES (?1, ?2, ?3)")?;
            for (id, chunk, start) in rows {
                sql.execute(params![id.as_bytes(), chunk.as_bytes(), start])?;
            }
            drop(sql);
            tx.commit()
        };
        put().map_err(failed)
    }
}

fn create(path: &std::path::Path) -> rusqlite::Result<Connection> {
    let db = Connection::open(path)?;
    db.pragma_update(None, "journal_mode", "OFF")?;
    db.pragma_update(None, "synchronous", "OFF")?;
    db.pragma_update(None, "cache_size", -16_384)?;
    let schema = "CREATE TABLE pending (id BLOB PRIMARY KEY, chunk BLOB, start INTEGER) WITHOUT ROWID";
    db.execute_batch(schema).map(|()| db)
}

fn failed(e: rusqlite::Error) -> Error {
    Error::new(crate::ErrorKind::Io, format!("temporary index of the import: {e}")).source(e)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u32) -> ContentId {
        ContentId::of(&n.to_le_bytes())
    }

    #[test]
    fn remembers_past_what_memory_holds() {
        let dir = tempfile::tempdir().unwrap();
        let mut claimed = Claimed::new(dir.path().into());
        let mut bundled = Bundled::new(dir.path().into());
        let (done, open) = (Slot::new(0), Slot::new(1));
        done.set(id(u32::MAX));
        let count = HOT_MAX as u32 + 1000;
        bundled.note(id(count), &open, 5).unwrap();
        for n in 0..count {
            assert!(claimed.insert(id(n)).unwrap());
            bundled.note(id(n), &done, n).unwrap();
        }
        assert!(claimed.cold.db.is_some() && bundled.cold.db.is_some());
        assert!(claimed.hot.len() <= HOT_MAX && bundled.hot.len() <= HOT_MAX);
        for n in (0..count).step_by(997) {
            assert!(!claimed.insert(id(n)).unwrap());
            let place = match bundled.find(&id(n)).unwrap() {
                Some(Found::Stored { chunk, offset }) => (chunk, offset),
                Some(Found::Pending { bundle, offset }) => (bundle.id().unwrap(), offset),
                None => panic!("{n} forgotten"),
            };
            assert_eq!(place, (id(u32::MAX), n));
        }
        assert!(matches!(bundled.find(&id(count)).unwrap(), Some(Found::Pending { offset: 5, .. })));
        assert!(bundled.find(&id(count + 1)).unwrap().is_none());
    }
}
