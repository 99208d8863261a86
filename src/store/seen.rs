//! What one import has seen: the chunks it stores and the small files it bundles.
//!
//! Both grow with a layer's distinct content, and a layer may have ten million files. So beyond a bound they move to a
//! scratch database in the session's directory, which goes with the session; nothing in it has to survive anything.

use super::index::db_error;
use crate::error::Result;
use crate::id::ContentId;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Most entries of each kind in memory: the hash tables then have 2^19 places, some 43 MiB together.
const MEMORY: usize = 400_000;
/// Pages of the scratch database in memory, KiB.
const CACHE: i64 = 8192;

const SCHEMA: &str = "
    CREATE TABLE claimed (id BLOB PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE bundled (id BLOB PRIMARY KEY, chunk BLOB NOT NULL, start INTEGER NOT NULL) WITHOUT ROWID;";

/// A chunk whose id a worker is still to find out.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) number: u64,
    id: OnceLock<ContentId>,
}

impl Slot {
    pub(super) fn new(number: u64) -> Self {
        Self { number, id: OnceLock::new() }
    }

    pub(crate) fn id(&self) -> Option<ContentId> {
        self.id.get().copied()
    }

    /// Says what the chunk's id is, once.
    pub(super) fn fill(&self, id: ContentId) {
        let _ = self.id.set(id);
    }
}

/// Where a small file already is.
pub(crate) enum Found {
    /// In a chunk whose id is known.
    Stored { chunk: ContentId, offset: u32 },
    /// In a bundle of this import.
    Pending { bundle: Arc<Slot>, offset: u32 },
}

/// See the module.
pub(super) struct Seen {
    /// Chunks this import has stored or is about to.
    claimed: HashSet<ContentId>,
    /// Small files this import has bundled.
    bundled: HashMap<ContentId, (Arc<Slot>, u32)>,
    limit: usize,
    scratch_path: PathBuf,
    /// Made when memory does not do.
    scratch: Option<Connection>,
}

impl Seen {
    /// Nothing yet. A scratch database, if it comes to that, is made in `dir`.
    pub(super) fn new(dir: &Path) -> Self {
        Self::with_limit(dir, MEMORY)
    }

    fn with_limit(dir: &Path, limit: usize) -> Self {
        let scratch_path = dir.join("scratch.db");
        Self { claimed: HashSet::new(), bundled: HashMap::new(), limit, scratch_path, scratch: None }
    }

    /// True for who asks first: the chunk is theirs to store.
    pub(super) fn claim(&mut self, id: ContentId) -> Result<bool> {
        if self.claimed.contains(&id) || self.was_claimed(&id)? {
            return Ok(false);
        }
        if self.claimed.len() >= self.limit {
            self.move_claimed().map_err(db_error("move chunk ids to scratch"))?;
        }
        Ok(self.claimed.insert(id))
    }

    /// Where this import has bundled a small file with this content.
    pub(super) fn member(&self, id: &ContentId) -> Result<Option<Found>> {
        if let Some((bundle, offset)) = self.bundled.get(id) {
            return Ok(Some(Found::Pending { bundle: bundle.clone(), offset: *offset }));
        }
        let Some(db) = &self.scratch else { return Ok(None) };
        let query = || {
            let sql = "SELECT chunk, start FROM bundled WHERE id = ?1";
            let row = |r: &rusqlite::Row<'_>| {
                Ok(Found::Stored { chunk: ContentId::from_bytes(r.get(0)?), offset: r.get(1)? })
            };
            db.prepare_cached(sql)?.query_row([id.as_bytes()], row).optional()
        };
        query().map_err(db_error("look into scratch"))
    }

    /// A small file is being bundled; if another layer has done so meanwhile, theirs counts.
    pub(super) fn note_member(&mut self, id: ContentId, bundle: &Arc<Slot>, offset: u32) -> Result<()> {
        if self.bundled.len() >= self.limit {
            self.move_bundled().map_err(db_error("move small files to scratch"))?;
        }
        self.bundled.entry(id).or_insert_with(|| (bundle.clone(), offset));
        Ok(())
    }

    fn was_claimed(&self, id: &ContentId) -> Result<bool> {
        let Some(db) = &self.scratch else { return Ok(false) };
        let query = || db.prepare_cached("SELECT 1 FROM claimed WHERE id = ?1")?.exists([id.as_bytes()]);
        query().map_err(db_error("look into scratch"))
    }

    fn scratch(&mut self) -> rusqlite::Result<&mut Connection> {
        let db = match self.scratch.take() {
            Some(db) => db,
            None => {
                let db = Connection::open(&self.scratch_path)?;
                // No journal and no syncs: it is of no use to anybody but this process.
                db.pragma_update(None, "journal_mode", "OFF")?;
                db.pragma_update(None, "synchronous", "OFF")?;
                db.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
                db.pragma_update(None, "cache_size", -CACHE)?;
                db.execute_batch(SCHEMA)?;
                db
            }
        };
        Ok(self.scratch.insert(db))
    }

    fn move_claimed(&mut self) -> rusqlite::Result<()> {
        let mut ids: Vec<_> = self.claimed.drain().collect();
        // Ascending, so that the pages of the tree are filled in order.
        ids.sort_unstable();
        let tx = self.scratch()?.transaction()?;
        let mut insert = tx.prepare_cached("INSERT INTO claimed (id) VALUES (?1)")?;
        ids.iter().try_for_each(|id| insert.execute([id.as_bytes()]).map(drop))?;
        drop(insert);
        tx.commit()
    }

    /// Moves the files whose bundles have an id by now; of the others there are only as many as workers have before them.
    fn move_bundled(&mut self) -> rusqlite::Result<()> {
        let done = self.bundled.extract_if(|_, (bundle, _)| bundle.id().is_some());
        let mut done: Vec<_> = done.filter_map(|(id, (bundle, start))| Some((id, bundle.id()?, start))).collect();
        // Without this, a map full of unfinished bundles would be searched for finished ones at every call.
        self.limit = self.limit.max(2 * self.bundled.len());
        done.sort_unstable_by_key(|(id, ..)| *id);
        let tx = self.scratch()?.transaction()?;
        let sql = "INSERT INTO bundled (id, chunk, start) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
        let mut insert = tx.prepare_cached(sql)?;
        for (id, chunk, start) in &done {
            insert.execute(params![id.as_bytes(), chunk.as_bytes(), start])?;
        }
        drop(insert);
        tx.commit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u32) -> ContentId {
        ContentId::of(&n.to_le_bytes())
    }

    #[test]
    fn chunks_are_claimed_once_in_memory_and_beyond() {
        let dir = tempfile::tempdir().unwrap();
        let mut seen = Seen::with_limit(dir.path(), 100);
        for n in 0..1000 {
            assert!(seen.claim(id(n)).unwrap(), "{n}");
            assert!(!seen.claim(id(n / 2)).unwrap(), "{n}");
        }
        assert!((0..1000).all(|n| !seen.claim(id(n)).unwrap()));
        assert!(seen.claimed.len() <= 100 && seen.scratch.is_some());
    }

    #[test]
    fn small_files_are_found_in_memory_and_beyond() {
        let dir = tempfile::tempdir().unwrap();
        let mut seen = Seen::with_limit(dir.path(), 100);
        let slots: Vec<_> = (0..100).map(|n| Arc::new(Slot::new(n))).collect();
        for n in 0..1000 {
            assert!(seen.member(&id(n)).unwrap().is_none());
            let slot = &slots[n as usize / 10];
            seen.note_member(id(n), slot, n).unwrap();
            if n % 10 == 9 {
                slot.fill(id(1_000_000 + n / 10));
            }
        }
        assert!(seen.bundled.len() <= 100);
        for n in 0..1000 {
            let (chunk, offset) = match seen.member(&id(n)).unwrap().unwrap() {
                Found::Stored { chunk, offset } => (Some(chunk), offset),
                Found::Pending { bundle, offset } => (bundle.id(), offset),
            };
            assert_eq!((chunk, offset), (Some(id(1_000_000 + n / 10)), n));
        }
    }

    #[test]
    fn files_of_unfinished_bundles_stay_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let mut seen = Seen::with_limit(dir.path(), 100);
        let slot = Arc::new(Slot::new(0));
        (0..150).for_each(|n| seen.note_member(id(n), &slot, n).unwrap());
        assert!((0..150).all(|n| matches!(seen.member(&id(n)), Ok(Some(Found::Pending { .. })))));
    }
}
