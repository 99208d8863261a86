//! Where chunks and small files lie, and which addresses belong to which pack.

use super::{Change, Index, MemberPlace, db_error};
use crate::error::{Error, ErrorKind, Result};
use crate::format::pack::{ADDRESS_LIMIT, BLOCK, Codec, Location, TableChunk};
use crate::id::ContentId;
use rusqlite::{Row, params};

fn place(r: &Row<'_>) -> rusqlite::Result<MemberPlace> {
    Ok(MemberPlace { chunk: ContentId::from_bytes(r.get(0)?), offset: r.get(1)? })
}

impl Index {
    pub(crate) fn chunk(&self, id: &ContentId) -> Result<Option<Location>> {
        let sql = "SELECT block, stored, raw FROM chunks WHERE id = ?1";
        let row = self.one(sql, [id.as_bytes()], |r| Ok((r.get(0)?, r.get::<_, u32>(1)?, r.get(2)?)))?;
        let Some((block, stored, raw_len)) = row else { return Ok(None) };
        let codec = Codec::from_u8((stored >> 24) as u8)?;
        Location { block, stored_len: stored & 0xff_ffff, raw_len, codec }.validate().map(Some)
    }

    /// Whether no chunk is known.
    pub(crate) fn is_empty(&self) -> Result<bool> {
        Ok(self.one("SELECT 1 FROM chunks LIMIT 1", [], |_| Ok(()))?.is_none())
    }

    pub(crate) fn has_chunk(&self, id: &ContentId) -> Result<bool> {
        Ok(self.one("SELECT 1 FROM chunks WHERE id = ?1", [id.as_bytes()], |_| Ok(()))?.is_some())
    }

    pub(crate) fn member(&self, id: &ContentId) -> Result<Option<MemberPlace>> {
        let sql = "SELECT c.id, m.start FROM members m JOIN chunks c ON c.n = m.chunk WHERE m.id = ?1";
        self.one(sql, [id.as_bytes()], place)
    }

    /// As [`member`](Self::member), where the second copies of both rows say the same: content is taken for what is there
    /// on their word. A row that they do not bear out is none.
    pub(crate) fn proven_member(&self, id: &ContentId) -> Result<Option<MemberPlace>> {
        // Signs keep SQLite from looking into the tables again instead of their indexes.
        let sql = "SELECT c.id, m.start FROM members m JOIN chunks c ON c.n = m.chunk WHERE m.id = ?1 \
                   AND EXISTS (SELECT 1 FROM members t WHERE t.chunk = m.chunk AND t.start = m.start AND +t.id = ?1) \
                   AND EXISTS (SELECT 1 FROM chunks t WHERE t.id = c.id AND +t.n = m.chunk)";
        self.one(sql, [id.as_bytes()], place)
    }

    /// Base and length of every pack, ascending; only sealed ones.
    pub(crate) fn packs(&self) -> Result<Vec<(u64, u64)>> {
        let sql = "SELECT base, len FROM packs WHERE session IS NULL ORDER BY base";
        let packs = self.all(sql, [], |r| Ok((r.get::<_, i64>(0)? as u64, r.get::<_, i64>(1)? as u64)))?;
        let sane = |&(base, len): &(u64, u64)| {
            let end = base.checked_add(len).is_some_and(|end| end <= ADDRESS_LIMIT);
            end && base.is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK)
        };
        match packs.iter().find(|pack| !sane(pack)) {
            Some((base, len)) => {
                Err(Error::corrupt("impossible pack in the database").actual(format!("{base:#x}, {len:#x} bytes")))
            }
            None => Ok(packs),
        }
    }

    /// Sessions with addresses reserved, alive or not.
    pub(crate) fn sessions(&self) -> Result<Vec<String>> {
        self.all("SELECT DISTINCT session FROM packs WHERE session IS NOT NULL", [], |r| r.get(0))
    }

    /// Bases of the packs a session has reserved and not sealed.
    pub(crate) fn reservations(&self, session: &str) -> Result<Vec<u64>> {
        self.all("SELECT base FROM packs WHERE session = ?1", [session], |r| r.get::<_, i64>(0).map(|b| b as u64))
    }

    /// Number of chunks, their stored and raw bytes, and the blocks they take.
    pub(crate) fn totals(&self) -> Result<(u64, u64, u64)> {
        let sql = "SELECT count(*), coalesce(sum(stored & 0xffffff), 0), coalesce(sum(raw), 0) FROM chunks";
        let get = |r: &Row<'_>, n| r.get::<_, i64>(n).map(|v| v as u64);
        let row = self.one(sql, [], |r| Ok((get(r, 0)?, get(r, 1)?, get(r, 2)?)))?;
        Ok(row.unwrap_or_default())
    }
}

impl Change<'_> {
    /// Reserves `len` bytes of addresses for a pack that `session` writes; no other pack will ever share them.
    pub(crate) fn reserve_pack(&self, len: u64, session: &str) -> Result<u64> {
        // Addresses that a removed pack had are not given out again as long as there are others: a reader may still
        // have its file open.
        let sql = "SELECT max(?1, coalesce((SELECT max(base + len) FROM packs), 0), \
                   (SELECT value FROM counters WHERE name = 'top'))";
        let top = self.tx.query_row(sql, [BLOCK as i64], |r| r.get::<_, i64>(0)).map_err(db_error("reserve"))? as u64;
        let base = if top + len <= ADDRESS_LIMIT { Some(top) } else { self.first_gap(len)? };
        let base = base.ok_or_else(|| Error::limit("the store's address space is full", ADDRESS_LIMIT, top + len))?;
        let sql = "INSERT INTO packs (base, len, session) VALUES (?1, ?2, ?3)";
        self.run(sql, params![base as i64, len as i64, session])?;
        Ok(base)
    }

    /// Ranges that removed or trimmed packs gave back are used again only when the end is reached.
    fn first_gap(&self, len: u64) -> Result<Option<u64>> {
        let mut free = BLOCK;
        let sql = "SELECT base, len FROM packs ORDER BY base";
        let mut rows = self.tx.prepare_cached(sql).map_err(db_error("reserve"))?;
        let mut rows = rows.query([]).map_err(db_error("reserve"))?;
        while let Some(r) = rows.next().map_err(db_error("reserve"))? {
            let get = |n| r.get::<_, i64>(n).map(|v| v as u64).map_err(db_error("reserve"));
            if get(0)?.saturating_sub(free) >= len {
                return Ok(Some(free));
            }
            free = get(0)?.saturating_add(get(1)?);
        }
        Ok((ADDRESS_LIMIT.saturating_sub(free) >= len).then_some(free))
    }

    /// A pack is sealed and published with `len` bytes in all.
    pub(crate) fn seal_pack(&self, base: u64, len: u64) -> Result<()> {
        let sql = "UPDATE packs SET len = ?2, session = NULL WHERE base = ?1 AND session IS NOT NULL";
        match self.run(sql, params![base as i64, len as i64])? {
            1 => Ok(()),
            _ => Err(Error::new(ErrorKind::FailedPrecondition, "the addresses of a new pack are reserved no more")),
        }
    }

    /// Gives back the addresses a session reserved for packs it did not seal.
    pub(crate) fn drop_reservations(&self, session: &str) -> Result<()> {
        self.run("DELETE FROM packs WHERE session = ?1", [session]).map(drop)
    }

    /// Adds a pack's chunks and their members. What another import stored meanwhile stays as it is, and the
    /// new copy is dead space for gc to find.
    pub(crate) fn add_chunks(&self, mut chunks: Vec<TableChunk>) -> Result<()> {
        // Ascending ids fill the index's pages in order, which is faster and leaves them fuller.
        chunks.sort_unstable_by_key(|c| c.id);
        let mut members = Vec::new();
        let mut n = self.last_chunk()?;
        let sql = "INSERT INTO chunks (n, id, block, stored, raw) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING";
        let mut insert = self.tx.prepare_cached(sql).map_err(db_error("add chunks"))?;
        for c in &chunks {
            let stored = c.location.stored_len | u32::from(c.location.codec.to_u8()) << 24;
            let values = params![n + 1, c.id.as_bytes(), c.location.block, stored, c.location.raw_len];
            if insert.execute(values).map_err(db_error("add chunk"))? == 0 {
                continue;
            }
            n += 1;
            let mut start = 0u32;
            for m in &c.members {
                members.push((m.id, n, start));
                start += m.len;
            }
        }
        drop(insert);
        self.add_members(members)
    }

    /// Says in which bundles small files are: id of the file, number of the bundle, offset in it.
    pub(super) fn add_members(&self, mut members: Vec<(ContentId, i64, u32)>) -> Result<()> {
        members.sort_unstable();
        // A small file whose bundle is dead is in this one from now on.
        let sql = "INSERT INTO members (id, chunk, start) VALUES (?1, ?2, ?3) ON CONFLICT (id) DO UPDATE \
                   SET chunk = excluded.chunk, start = excluded.start \
                   WHERE NOT EXISTS (SELECT 1 FROM chunks WHERE n = members.chunk)";
        let mut insert = self.tx.prepare_cached(sql).map_err(db_error("add members"))?;
        for (id, n, start) in members {
            insert.execute(params![id.as_bytes(), n, start]).map_err(db_error("add member"))?;
        }
        Ok(())
    }
}
