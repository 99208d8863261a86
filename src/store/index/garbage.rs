//! Chunks that gc found dead, and the counters that order its work against imports.
//!
//! A dead chunk moves from `chunks` to `dead_chunks`, where look-ups do not find it, with the *generation* of the move.
//! Imports that began in an earlier generation may count on it and revive it when they commit. Once none of them is
//! left, its row goes and its space may be punched out.

use super::{Change, Index, all, db_error, one};
use crate::error::{Error, Result};
use crate::format::pack::{Codec, Location};
use crate::id::ContentId;
use rusqlite::{Row, params};

/// A row of `chunks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkRow {
    pub(crate) n: u64,
    pub(crate) id: ContentId,
    pub(crate) location: Location,
    /// CRC-32 of the stored bytes, for who holds them against the pack's table; the database has none.
    pub(crate) sum: Option<u32>,
}

/// A row of `dead_chunks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeadChunk {
    pub(crate) chunk: ChunkRow,
    pub(crate) generation: u64,
}

pub(super) const COLUMNS: &str = "n, id, block, stored, raw";

/// Columns of a row that are yet to be checked, which has errors that SQLite's closures cannot carry.
pub(super) type Raw = (i64, [u8; 32], u32, u32, u32, i64);

pub(super) fn raw(r: &Row<'_>) -> rusqlite::Result<Raw> {
    Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?, r.get(5)?))
}

pub(super) fn chunk((n, id, block, stored, raw_len, _): &Raw) -> Result<ChunkRow> {
    let id = ContentId::from_bytes(*id);
    let codec = Codec::from_u8((stored >> 24) as u8).map_err(|e| e.subject(format!("chunk {id}")))?;
    let location = Location { block: *block, stored_len: stored & 0xff_ffff, raw_len: *raw_len, codec };
    let location = location.validate().map_err(|e| e.subject(format!("chunk {id}")))?;
    Ok(ChunkRow { n: *n as u64, id, location, sum: None })
}

fn dead(row: &Raw) -> Result<DeadChunk> {
    Ok(DeadChunk { chunk: chunk(row)?, generation: row.5 as u64 })
}

const GENERATION: &str = "SELECT value FROM counters WHERE name = 'generation'";

impl Index {
    /// How often chunks have been found dead.
    pub(crate) fn generation(&self) -> Result<u64> {
        Ok(self.one(GENERATION, [], |r| r.get::<_, i64>(0))?.unwrap_or_default() as u64)
    }

    /// Up to `limit` chunks whose numbers come after `n`, in order.
    pub(crate) fn chunks_after(&self, n: u64, limit: u32) -> Result<Vec<ChunkRow>> {
        let sql = format!("SELECT {COLUMNS}, 0 FROM chunks WHERE n > ?1 ORDER BY n LIMIT ?2");
        let rows: Vec<ChunkRow> =
            self.all(&sql, params![n as i64, limit], raw)?.iter().map(chunk).collect::<Result<_>>()?;
        ascending(n, rows.iter().map(|row| row.n)).map(|()| rows)
    }

    /// As [`chunks_after`](Self::chunks_after), of dead chunks.
    pub(crate) fn dead_after(&self, n: u64, limit: u32) -> Result<Vec<DeadChunk>> {
        let sql = format!("SELECT {COLUMNS}, generation FROM dead_chunks WHERE n > ?1 ORDER BY n LIMIT ?2");
        let rows: Vec<DeadChunk> =
            self.all(&sql, params![n as i64, limit], raw)?.iter().map(dead).collect::<Result<_>>()?;
        ascending(n, rows.iter().map(|row| row.chunk.n)).map(|()| rows)
    }
}

/// Whether numbers ascend from above `last`. A damaged page may say otherwise, and whoever goes on from the last number
/// would go on for ever.
fn ascending(mut last: u64, numbers: impl Iterator<Item = u64>) -> Result<()> {
    for n in numbers {
        if n <= last {
            return Err(Error::corrupt("rows of the database are not in order")
                .expected(format!("above {last}"))
                .actual(n));
        }
        last = n;
    }
    Ok(())
}

impl Change<'_> {
    pub(crate) fn generation(&self) -> Result<u64> {
        Ok(one(self.tx, GENERATION, [], |r| r.get::<_, i64>(0))?.unwrap_or_default() as u64)
    }

    /// The highest number a chunk has, dead or alive: no two may share one.
    pub(super) fn last_chunk(&self) -> Result<i64> {
        let sql = "SELECT max(coalesce((SELECT max(n) FROM chunks), 0), coalesce((SELECT max(n) FROM dead_chunks), 0))";
        Ok(one(self.tx, sql, [], |r| r.get(0))?.unwrap_or_default())
    }

    /// Begins a new generation.
    pub(crate) fn next_generation(&self) -> Result<u64> {
        self.run("UPDATE counters SET value = value + 1 WHERE name = 'generation'", [])?;
        self.generation()
    }

    /// Takes a chunk out of what look-ups find; false if it is not there any more.
    pub(crate) fn kill_chunk(&self, n: u64, generation: u64) -> Result<bool> {
        let sql =
            format!("INSERT INTO dead_chunks ({COLUMNS}, generation) SELECT {COLUMNS}, ?2 FROM chunks WHERE n = ?1");
        let moved = self.run(&sql, params![n as i64, generation as i64])?;
        self.run("DELETE FROM chunks WHERE n = ?1", [n as i64])?;
        Ok(moved > 0)
    }

    /// Brings a dead chunk back, if there is no living one of the same content; false if there is neither.
    pub(crate) fn revive_chunk(&self, id: &ContentId) -> Result<bool> {
        if one(self.tx, "SELECT 1 FROM chunks WHERE id = ?1", [id.as_bytes()], |_| Ok(()))?.is_some() {
            return Ok(true);
        }
        let sql = "SELECT n FROM dead_chunks WHERE id = ?1 ORDER BY generation DESC LIMIT 1";
        let Some(n) = one(self.tx, sql, [id.as_bytes()], |r| r.get::<_, i64>(0))? else { return Ok(false) };
        let sql = format!("INSERT INTO chunks ({COLUMNS}) SELECT {COLUMNS} FROM dead_chunks WHERE n = ?1");
        self.run(&sql, [n])?;
        self.run("DELETE FROM dead_chunks WHERE n = ?1", [n])?;
        Ok(true)
    }

    /// Forgets small files in bundles that died in `generation` or before, of those whose ids begin with one of a range
    /// of bytes, both ends included.
    pub(crate) fn forget_members(&self, [first, last]: [u8; 2], generation: u64) -> Result<()> {
        let until: Vec<u8> = std::iter::once(last).chain([0xff; 31]).collect();
        let sql = "DELETE FROM members WHERE id >= ?1 AND id <= ?2 \
                   AND chunk IN (SELECT n FROM dead_chunks WHERE generation <= ?3)";
        self.run(sql, params![[first], until, generation as i64]).map(drop)
    }

    /// Forgets a dead chunk; nothing can bring it back.
    pub(crate) fn bury_chunk(&self, n: u64) -> Result<()> {
        self.run("DELETE FROM dead_chunks WHERE n = ?1", [n as i64]).map(drop)
    }

    /// Removes a pack without chunks; its addresses are left alone.
    pub(crate) fn drop_pack(&self, base: u64) -> Result<()> {
        let sql = "UPDATE counters SET value = max(value, (SELECT max(base + len) FROM packs)) WHERE name = 'top'";
        self.run(sql, [])?;
        let sql = "DELETE FROM packs WHERE base = ?1 AND session IS NULL";
        self.run(sql, [base as i64]).map(drop)
    }

    /// Whether addresses from `base` on belong to a pack, finished or not.
    pub(crate) fn has_pack(&self, base: u64) -> Result<bool> {
        Ok(one(self.tx, "SELECT 1 FROM packs WHERE base = ?1", [base as i64], |_| Ok(()))?.is_some())
    }

    /// Forgets the layers of configurations that no image has.
    pub(crate) fn drop_unnamed_configs(&self) -> Result<u64> {
        let sql = "DELETE FROM image_layers WHERE config NOT IN (SELECT config FROM images)";
        self.run(sql, []).map(|rows| rows as u64)
    }

    /// Forgets a layer.
    pub(crate) fn drop_layer(&self, diff_id: &crate::Digest) -> Result<()> {
        self.run("DELETE FROM layers WHERE diff_id = ?1", [diff_id.as_bytes()]).map(drop)
    }

    /// Forgets in which blobs layers came that are not there any more.
    pub(crate) fn drop_blobs_of_no_layer(&self) -> Result<u64> {
        let sql = "DELETE FROM blobs WHERE diff_id NOT IN (SELECT diff_id FROM layers)";
        self.run(sql, []).map(|rows| rows as u64)
    }

    /// The layers there are.
    pub(crate) fn layer_ids(&self) -> Result<Vec<crate::Digest>> {
        all(self.tx, "SELECT diff_id FROM layers", [], |r| super::digest(r, 0))
    }

    /// Whether a blob's bytes are kept.
    pub(crate) fn keeps_blob(&self, digest: &crate::Digest) -> Result<bool> {
        let query = || {
            let mut sql = self.tx.prepare_cached("SELECT 1 FROM blobs WHERE digest = ?1 AND kept")?;
            sql.exists([digest.as_bytes()])
        };
        query().map_err(db_error("read"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::pack::{Member, TableChunk};

    fn table(seed: &[u8], block: u32) -> TableChunk {
        let location = Location { block, stored_len: 100, raw_len: 3, codec: Codec::Zstd };
        let location = Location { stored_len: 3, ..location };
        let member = Member { id: ContentId::of(&[seed, b"file"].concat()), len: 3 };
        TableChunk { id: ContentId::of(seed), location, sum: None, members: vec![member] }
    }

    #[test]
    fn the_dead_are_not_found_and_come_back_with_their_members() {
        let dir = tempfile::tempdir().unwrap();
        let mut index = Index::open(&dir.path().join("db"), true).unwrap();
        let (id, file) = (ContentId::of(b"a"), ContentId::of(b"afile"));
        index.write(|c| c.add_chunks(vec![table(b"a", 5), table(b"b", 6)])).unwrap();
        let rows = index.chunks_after(0, 9).unwrap();
        let n = rows.iter().find(|r| r.id == id).unwrap().n;
        let generation = index.write(|c| c.next_generation()).unwrap();
        assert!(index.write(|c| c.kill_chunk(n, generation)).unwrap());
        assert!(!index.write(|c| c.kill_chunk(n, generation)).unwrap());
        assert_eq!((index.chunk(&id).unwrap(), index.member(&file).unwrap()), (None, None));
        assert_eq!(index.dead_after(0, 9).unwrap().len(), 1);

        assert!(index.write(|c| c.revive_chunk(&id)).unwrap());
        assert_eq!(index.chunk(&id).unwrap().unwrap().block, 5);
        assert_eq!(index.member(&file).unwrap().unwrap().chunk, id);
        assert!(index.dead_after(0, 9).unwrap().is_empty());
        assert!(!index.write(|c| c.revive_chunk(&ContentId::of(b"c"))).unwrap());
    }

    #[test]
    fn a_copy_of_dead_content_takes_its_small_files_and_no_number_is_shared() {
        let dir = tempfile::tempdir().unwrap();
        let mut index = Index::open(&dir.path().join("db"), true).unwrap();
        index.write(|c| c.add_chunks(vec![table(b"a", 5)])).unwrap();
        index.write(|c| c.kill_chunk(1, c.next_generation()?)).unwrap();
        index.write(|c| c.add_chunks(vec![table(b"a", 9)])).unwrap();
        let row = index.chunks_after(0, 9).unwrap()[0];
        assert_eq!((row.n, row.location.block), (2, 9));
        let file = ContentId::of(b"afile");
        index.write(|c| c.forget_members([0, 255], 1)).unwrap();
        index.write(|c| c.bury_chunk(1)).unwrap();
        assert_eq!(index.member(&file).unwrap().unwrap().chunk, ContentId::of(b"a"));
        index.write(|c| c.kill_chunk(2, c.next_generation()?)).unwrap();
        index.write(|c| c.forget_members([0, 255], 2)).unwrap();
        let left: i64 = index.db.query_row("SELECT count(*) FROM members", [], |r| r.get(0)).unwrap();
        assert_eq!(left, 0);
    }

    #[test]
    fn addresses_of_a_removed_pack_are_not_given_out_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut index = Index::open(&dir.path().join("db"), true).unwrap();
        let base = index.write(|c| c.reserve_pack(1 << 20, "s")).unwrap();
        index.write(|c| c.drop_pack(base)).unwrap();
        assert!(index.write(|c| c.has_pack(base)).unwrap(), "a pack in the making is nobody else's");
        index.write(|c| c.seal_pack(base, 8192).and_then(|()| c.drop_pack(base))).unwrap();
        assert!(!index.write(|c| c.has_pack(base)).unwrap());
        let next = index.write(|c| c.reserve_pack(1 << 20, "s")).unwrap();
        assert!(next >= base + 8192, "{next}");
    }
}
