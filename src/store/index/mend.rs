//! What repair asks of the database, and changes in it.

use super::garbage::{COLUMNS, chunk, raw};
use super::{Change, ChunkRow, Index, LayerInfo, all, one};
use crate::error::Result;
use crate::format::pack::TableChunk;
use crate::id::ContentId;
use rusqlite::{Row, params};
use std::collections::HashMap;
use std::ops::Range;

/// Chunks whose first block is in a range.
const BETWEEN: &str = "block >= ?1 AND block < ?2";

impl Index {
    /// Chunks in a range of blocks; rows that make no sense are left out.
    pub(crate) fn chunks_in(&self, blocks: &Range<u64>) -> Result<Vec<ChunkRow>> {
        let sql = format!("SELECT {COLUMNS}, 0 FROM chunks WHERE {BETWEEN} ORDER BY block");
        let rows = self.all(&sql, params![blocks.start as i64, blocks.end as i64], raw)?;
        Ok(rows.iter().flat_map(chunk).collect())
    }

    /// Bytes of content in a range of blocks, by the number of the codec they are stored with.
    pub(crate) fn raw_bytes(&self, blocks: &Range<u64>) -> Result<[u64; 3]> {
        let sql = format!("SELECT stored >> 24, sum(raw) FROM chunks WHERE {BETWEEN} GROUP BY 1");
        let row = |r: &Row<'_>| Ok((r.get::<_, i64>(0)?, r.get::<_, i64>(1)?));
        let mut bytes = [0; 3];
        for (codec, sum) in self.all(&sql, params![blocks.start as i64, blocks.end as i64], row)? {
            if let Some(bytes) = usize::try_from(codec).ok().and_then(|codec| bytes.get_mut(codec)) {
                *bytes = sum.max(0) as u64;
            }
        }
        Ok(bytes)
    }

    /// The small files that are found in these bundles, by their places.
    pub(crate) fn members_of(&self, bundles: &[ContentId]) -> Result<HashMap<ContentId, Vec<(u32, ContentId)>>> {
        let mut numbers = HashMap::new();
        for bundle in bundles {
            let n = self.one("SELECT n FROM chunks WHERE id = ?1", [bundle.as_bytes()], |r| r.get::<_, i64>(0))?;
            numbers.extend(n.map(|n| (n, *bundle)));
        }
        let sql = format!("SELECT chunk, start, id FROM members WHERE {OF_THESE}");
        let row = |r: &Row<'_>| Ok((r.get::<_, i64>(0)?, (r.get(1)?, ContentId::from_bytes(r.get(2)?))));
        let mut members: HashMap<ContentId, Vec<(u32, ContentId)>> = HashMap::new();
        for (n, member) in self.all(&sql, [list(numbers.keys())], row)? {
            members.entry(numbers[&n]).or_default().push(member);
        }
        members.values_mut().for_each(|members| members.sort_unstable());
        Ok(members)
    }
}

/// Members of bundles in a list of numbers. There is no index for that: one look at all is for many.
const OF_THESE: &str = "chunk IN (SELECT value FROM json_each(?1))";

fn list<'n>(numbers: impl Iterator<Item = &'n i64>) -> String {
    format!("[{}]", numbers.map(i64::to_string).collect::<Vec<_>>().join(","))
}

impl Change<'_> {
    /// Chunks that are known are in these places, with these members, from now on. Where they were is space for gc.
    pub(crate) fn move_chunks(&self, chunks: &[TableChunk]) -> Result<()> {
        let (mut moved, mut members) = (Vec::new(), Vec::new());
        for c in chunks {
            let stored = c.location.stored_len | u32::from(c.location.codec.to_u8()) << 24;
            let values = params![c.id.as_bytes(), c.location.block, stored, c.location.raw_len];
            let sql = "UPDATE chunks SET block = ?2, stored = ?3, raw = ?4 WHERE id = ?1 RETURNING n";
            let Some(n) = one(self.tx, sql, values, |r| r.get::<_, i64>(0))? else { continue };
            moved.push(n);
            let mut start = 0;
            for member in &c.members {
                members.push((member.id, n, start));
                start += member.len;
            }
        }
        self.run(&format!("DELETE FROM members WHERE {OF_THESE}"), [list(moved.iter())])?;
        self.add_members(members)
    }

    /// Notes among the dead where chunks are that are about to [move](Self::move_chunks): who found them there before may
    /// read them still, and metadata images may show them there. So their space is given back as that of any dead chunk.
    pub(crate) fn leave_behind(&self, chunks: &[TableChunk]) -> Result<()> {
        let generation = self.next_generation()? as i64;
        let mut n = self.last_chunk()?;
        for c in chunks {
            let sql = "INSERT INTO dead_chunks (n, id, block, stored, raw, generation) \
                       SELECT ?2, id, block, stored, raw, ?3 FROM chunks WHERE id = ?1";
            n += self.run(sql, params![c.id.as_bytes(), n + 1, generation])? as i64;
        }
        Ok(())
    }

    /// Forgets a chunk that is damaged, and which small files are in it.
    pub(crate) fn forget_chunk(&self, id: &ContentId) -> Result<()> {
        let sql = "DELETE FROM members WHERE chunk IN (SELECT n FROM chunks WHERE id = ?1)";
        self.run(sql, [id.as_bytes()])?;
        self.run("DELETE FROM chunks WHERE id = ?1", [id.as_bytes()]).map(drop)
    }

    /// Whether any chunk, damaged or not, is in a range of blocks. Dead ones there are forgotten.
    pub(crate) fn is_used(&self, blocks: &Range<u64>) -> Result<bool> {
        let range = [blocks.start as i64, blocks.end as i64];
        let sql = format!("SELECT 1 FROM chunks WHERE {BETWEEN} LIMIT 1");
        if !all(self.tx, &sql, range, |_| Ok(()))?.is_empty() {
            return Ok(true);
        }
        let sql = format!("DELETE FROM members WHERE chunk IN (SELECT n FROM dead_chunks WHERE {BETWEEN})");
        self.run(&sql, range)?;
        self.run(&format!("DELETE FROM dead_chunks WHERE {BETWEEN}"), range).map(|_| false)
    }

    /// What the record of a known layer says of it.
    pub(crate) fn describe_layer(&self, layer: &LayerInfo) -> Result<()> {
        let sql = "UPDATE layers SET tar_size = ?2, entries = ?3 WHERE diff_id = ?1";
        let values = params![layer.diff_id.as_bytes(), layer.tar_size as i64, layer.entries as i64];
        self.run(sql, values).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::pack::{Codec, Location, Member};

    #[test]
    fn a_moved_chunk_keeps_its_members_and_a_forgotten_one_loses_them() {
        let dir = tempfile::tempdir().unwrap();
        let mut index = Index::open(&dir.path().join("db"), true).unwrap();
        let (id, file) = (ContentId::of(b"one"), ContentId::of(b"one"));
        let at = |block| TableChunk {
            id,
            location: Location { block, stored_len: 3, raw_len: 3, codec: Codec::Raw },
            sum: None,
            members: vec![Member { id: file, len: 3 }],
        };
        index.write(|c| c.add_chunks(vec![at(5)])).unwrap();
        index.write(|c| c.move_chunks(&[at(9)]).and_then(|()| c.add_chunks(vec![at(9)]))).unwrap();
        assert_eq!(index.chunk(&id).unwrap().unwrap().block, 9);
        assert_eq!(index.members_of(&[id]).unwrap()[&id], [(0, file)]);
        assert!(!index.write(|c| c.is_used(&(5..9))).unwrap());
        assert!(index.write(|c| c.is_used(&(9..10))).unwrap());
        assert_eq!(index.chunks_in(&(9..10)).unwrap().len(), 1);
        index.write(|c| c.forget_chunk(&id)).unwrap();
        assert_eq!((index.chunk(&id).unwrap(), index.member(&file).unwrap()), (None, None));
    }
}
