//! The database: small mutable state, in SQLite (`docs/FORMAT.md`, section "Database").
//!
//! WAL mode with `synchronous=FULL`: a committed transaction is on disk. Everything here can be rebuilt from packs,
//! records and blobs but names, which exist nowhere else.

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::format::pack::{ADDRESS_LIMIT, BLOCK, Codec, Location, TableChunk};
use crate::id::ContentId;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Params, Row, TransactionBehavior, params};
use std::path::Path;
use std::time::Duration;

/// `application_id` of the database: "LSdb".
const APPLICATION_ID: i64 = 0x4c53_6462;
const SCHEMA_VERSION: i64 = 1;
/// How long a writer waits for another process's transaction; those take milliseconds.
const BUSY: Duration = Duration::from_secs(60);
/// The WAL is cut back to this size after a checkpoint, so that it does not count as lasting disk use.
const WAL_LIMIT: i64 = 1 << 20;

const SCHEMA: &str = include_str!("schema.sql");

/// One connection. Not shared between threads; [`super::Store`] keeps a pool.
pub(crate) struct Index {
    db: Connection,
}

/// A small file's place in a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemberPlace {
    pub(crate) chunk: ContentId,
    pub(crate) offset: u32,
}

/// What the store remembers of a layer besides its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerInfo {
    /// SHA-256 of the uncompressed tar.
    pub diff_id: Digest,
    /// Bytes of the uncompressed tar.
    pub tar_size: u64,
    /// Entries in the tar.
    pub entries: u64,
    /// The layer was imported by itself or adopted, and stays without an image that uses it.
    pub held: bool,
}

/// A blob as an image carried it: which layer it holds, and whether its bytes were kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlobInfo {
    pub(crate) digest: Digest,
    pub(crate) diff_id: Digest,
    pub(crate) size: u64,
    pub(crate) kept: bool,
}

/// An image's name and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// The name it was imported under.
    pub name: String,
    /// Digest of the configuration, the image's id.
    pub config: Digest,
    /// Digest of the manifest as imported; made here for sources that have none.
    pub manifest: Digest,
    /// The layers, bottom first.
    pub layers: Vec<Digest>,
}

fn db_error(operation: &str) -> impl FnOnce(rusqlite::Error) -> Error + '_ {
    move |e| {
        use rusqlite::ErrorCode::{DatabaseBusy, DatabaseCorrupt, DatabaseLocked, NotADatabase};
        let kind = match e.sqlite_error_code() {
            Some(DatabaseBusy | DatabaseLocked) => ErrorKind::Busy,
            Some(DatabaseCorrupt | NotADatabase) => ErrorKind::Corrupt,
            _ => ErrorKind::Io,
        };
        Error::new(kind, format!("database: {operation}: {e}")).source(e)
    }
}

fn digest(row: &Row<'_>, column: usize) -> rusqlite::Result<Digest> {
    row.get(column).map(Digest::from_bytes)
}

impl Index {
    /// Opens the database at `path`; with `create` a missing one is made.
    pub(crate) fn open(path: &Path, create: bool) -> Result<Self> {
        let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        if create {
            flags |= OpenFlags::SQLITE_OPEN_CREATE;
        }
        let mut db = Connection::open_with_flags(path, flags).map_err(db_error("open"))?;
        Self::configure(&mut db).map_err(db_error("open"))?;
        let number = |name| db.pragma_query_value(None, name, |r| r.get::<_, i64>(0)).map_err(db_error("read version"));
        match (number("application_id")?, number("user_version")?) {
            (0, 0) if create => Self::create(&mut db).map_err(db_error("create"))?,
            (APPLICATION_ID, SCHEMA_VERSION) => {}
            (APPLICATION_ID, version) => {
                let e = Error::new(ErrorKind::Unsupported, "the store's database is of another version");
                return Err(e.expected(SCHEMA_VERSION).actual(version));
            }
            _ => return Err(Error::corrupt("the database is not a layerstore database")),
        }
        Ok(Self { db })
    }

    fn configure(db: &mut Connection) -> rusqlite::Result<()> {
        db.busy_timeout(BUSY)?;
        // Without this, SQLite plans a statement anew whenever another id is bound to it.
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        db.pragma_update(None, "journal_size_limit", WAL_LIMIT)?;
        // 16 MiB of pages a connection: enough for a million chunks' inner nodes, and bounded.
        db.pragma_update(None, "cache_size", -16_384)?;
        db.set_prepared_statement_cache_capacity(64);
        Ok(())
    }

    fn create(db: &mut Connection) -> rusqlite::Result<()> {
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Another process may have made it while we waited.
        if tx.pragma_query_value(None, "user_version", |r| r.get::<_, i64>(0))? == 0 {
            tx.execute_batch(SCHEMA)?;
            tx.pragma_update(None, "application_id", APPLICATION_ID)?;
            tx.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        }
        tx.commit()
    }

    fn one<T>(&self, sql: &str, p: impl Params, f: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>) -> Result<Option<T>> {
        let query = || self.db.prepare_cached(sql)?.query_row(p, f).optional();
        query().map_err(db_error("read"))
    }

    fn all<T>(&self, sql: &str, p: impl Params, f: impl FnMut(&Row<'_>) -> rusqlite::Result<T>) -> Result<Vec<T>> {
        let query = || self.db.prepare_cached(sql)?.query_map(p, f)?.collect::<rusqlite::Result<_>>();
        query().map_err(db_error("read"))
    }

    /// Runs `work` in one write transaction; it is on disk when this returns `Ok`.
    pub(crate) fn write<T>(&mut self, work: impl FnOnce(&Change<'_>) -> Result<T>) -> Result<T> {
        let tx = self.db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(db_error("begin"))?;
        let change = Change { tx };
        let out = work(&change)?;
        change.tx.commit().map_err(db_error("commit"))?;
        Ok(out)
    }

    /// Holds one view of the database for many look-ups, which spares each of them two lock calls.
    pub(crate) fn begin_reading(&self) -> Result<()> {
        self.db.execute_batch("BEGIN DEFERRED").map_err(db_error("begin reading"))
    }

    /// Ends what [`begin_reading`](Self::begin_reading) began.
    pub(crate) fn end_reading(&self) -> Result<()> {
        self.db.execute_batch("COMMIT").map_err(db_error("end reading"))
    }

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
        self.one(sql, [id.as_bytes()], |r| {
            Ok(MemberPlace { chunk: ContentId::from_bytes(r.get(0)?), offset: r.get(1)? })
        })
    }

    /// Base and length of every pack, ascending; only sealed ones.
    pub(crate) fn packs(&self) -> Result<Vec<(u64, u64)>> {
        let sql = "SELECT base, len FROM packs WHERE session IS NULL ORDER BY base";
        self.all(sql, [], |r| Ok((r.get::<_, i64>(0)? as u64, r.get::<_, i64>(1)? as u64)))
    }

    /// Bases of the packs a session has reserved and not sealed.
    pub(crate) fn reservations(&self, session: &str) -> Result<Vec<u64>> {
        self.all("SELECT base FROM packs WHERE session = ?1", [session], |r| r.get::<_, i64>(0).map(|b| b as u64))
    }

    pub(crate) fn layer(&self, diff_id: &Digest) -> Result<Option<LayerInfo>> {
        self.one(&format!("{LAYER} WHERE diff_id = ?1"), [diff_id.as_bytes()], layer_row)
    }

    pub(crate) fn layers(&self) -> Result<Vec<LayerInfo>> {
        self.all(&format!("{LAYER} ORDER BY diff_id"), [], layer_row)
    }

    pub(crate) fn blob(&self, digest: &Digest) -> Result<Option<BlobInfo>> {
        self.one(&format!("{BLOB} WHERE digest = ?1"), [digest.as_bytes()], blob_row)
    }

    pub(crate) fn images(&self) -> Result<Vec<ImageInfo>> {
        let sql = "SELECT name, config, manifest FROM images ORDER BY name";
        let rows = self.all(sql, [], |r| Ok((r.get(0)?, digest(r, 1)?, digest(r, 2)?)))?;
        rows.into_iter().map(|row| self.with_layers(row)).collect()
    }

    pub(crate) fn image(&self, name: &str) -> Result<Option<ImageInfo>> {
        let sql = "SELECT name, config, manifest FROM images WHERE name = ?1";
        let row = self.one(sql, [name], |r| Ok((r.get(0)?, digest(r, 1)?, digest(r, 2)?)))?;
        row.map(|row| self.with_layers(row)).transpose()
    }

    fn with_layers(&self, (name, config, manifest): (String, Digest, Digest)) -> Result<ImageInfo> {
        let sql = "SELECT diff_id FROM image_layers WHERE config = ?1 ORDER BY position";
        let layers = self.all(sql, [config.as_bytes()], |r| digest(r, 0))?;
        Ok(ImageInfo { name, config, manifest, layers })
    }

    /// Number of chunks, their stored and raw bytes, and the blocks they take.
    pub(crate) fn totals(&self) -> Result<(u64, u64, u64)> {
        let sql = "SELECT count(*), coalesce(sum(stored & 0xffffff), 0), coalesce(sum(raw), 0) FROM chunks";
        let get = |r: &Row<'_>, n| r.get::<_, i64>(n).map(|v| v as u64);
        let row = self.one(sql, [], |r| Ok((get(r, 0)?, get(r, 1)?, get(r, 2)?)))?;
        Ok(row.unwrap_or_default())
    }
}

const LAYER: &str = "SELECT diff_id, tar_size, entries, held FROM layers";
const BLOB: &str = "SELECT digest, diff_id, size, kept FROM blobs";

fn layer_row(r: &Row<'_>) -> rusqlite::Result<LayerInfo> {
    let (tar_size, entries) = (r.get::<_, i64>(1)? as u64, r.get::<_, i64>(2)? as u64);
    Ok(LayerInfo { diff_id: digest(r, 0)?, tar_size, entries, held: r.get(3)? })
}

fn blob_row(r: &Row<'_>) -> rusqlite::Result<BlobInfo> {
    let size = r.get::<_, i64>(2)? as u64;
    Ok(BlobInfo { digest: digest(r, 0)?, diff_id: digest(r, 1)?, size, kept: r.get(3)? })
}

/// The changes one transaction can make.
pub(crate) struct Change<'a> {
    tx: rusqlite::Transaction<'a>,
}

impl Change<'_> {
    fn run(&self, sql: &str, p: impl Params) -> Result<usize> {
        let run = || self.tx.prepare_cached(sql)?.execute(p);
        run().map_err(db_error("write"))
    }

    /// Reserves `len` bytes of addresses for a pack that `session` writes; no other pack will ever share them.
    pub(crate) fn reserve_pack(&self, len: u64, session: &str) -> Result<u64> {
        let sql = "SELECT coalesce(max(base + len), ?1) FROM packs";
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
            if get(0)? - free >= len {
                return Ok(Some(free));
            }
            free = get(0)? + get(1)?;
        }
        Ok((ADDRESS_LIMIT.saturating_sub(free) >= len).then_some(free))
    }

    /// A pack is sealed and published with `len` bytes in all.
    pub(crate) fn seal_pack(&self, base: u64, len: u64) -> Result<()> {
        self.run("UPDATE packs SET len = ?2, session = NULL WHERE base = ?1", params![base as i64, len as i64])?;
        Ok(())
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
        let sql = "INSERT INTO chunks (id, block, stored, raw) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING";
        let mut insert = self.tx.prepare_cached(sql).map_err(db_error("add chunks"))?;
        for c in &chunks {
            let stored = c.location.stored_len | u32::from(c.location.codec.to_u8()) << 24;
            let values = params![c.id.as_bytes(), c.location.block, stored, c.location.raw_len];
            if insert.execute(values).map_err(db_error("add chunk"))? == 0 {
                continue;
            }
            let (n, mut start) = (self.tx.last_insert_rowid(), 0u32);
            for m in &c.members {
                members.push((m.id, n, start));
                start += m.len;
            }
        }
        members.sort_unstable();
        let sql = "INSERT INTO members (id, chunk, start) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
        let mut insert = self.tx.prepare_cached(sql).map_err(db_error("add members"))?;
        for (id, n, start) in members {
            insert.execute(params![id.as_bytes(), n, start]).map_err(db_error("add member"))?;
        }
        Ok(())
    }

    pub(crate) fn add_layer(&self, layer: &LayerInfo) -> Result<()> {
        let sql = "INSERT INTO layers (diff_id, tar_size, entries, held) VALUES (?1, ?2, ?3, ?4) \
                   ON CONFLICT DO UPDATE SET held = held OR excluded.held";
        let (size, entries) = (layer.tar_size as i64, layer.entries as i64);
        self.run(sql, params![layer.diff_id.as_bytes(), size, entries, layer.held])?;
        Ok(())
    }

    /// Sets whether a layer stays without an image; false if there is no such layer.
    pub(crate) fn hold_layer(&self, diff_id: &Digest, held: bool) -> Result<bool> {
        let sql = "UPDATE layers SET held = ?2 WHERE diff_id = ?1";
        Ok(self.run(sql, params![diff_id.as_bytes(), held])? > 0)
    }

    pub(crate) fn add_blob(&self, blob: &BlobInfo) -> Result<()> {
        let sql = "INSERT INTO blobs (digest, diff_id, size, kept) VALUES (?1, ?2, ?3, ?4) \
                   ON CONFLICT DO UPDATE SET kept = kept OR excluded.kept";
        let (digest, diff_id) = (blob.digest.as_bytes(), blob.diff_id.as_bytes());
        self.run(sql, params![digest, diff_id, blob.size as i64, blob.kept])?;
        Ok(())
    }

    /// Names an image, taking the name from what had it.
    pub(crate) fn put_image(&self, image: &ImageInfo) -> Result<()> {
        let (config, manifest) = (image.config.as_bytes(), image.manifest.as_bytes());
        let sql = "INSERT OR REPLACE INTO images (name, config, manifest) VALUES (?1, ?2, ?3)";
        self.run(sql, params![image.name, config, manifest])?;
        for (position, layer) in image.layers.iter().enumerate() {
            let sql = "INSERT OR REPLACE INTO image_layers (config, position, diff_id) VALUES (?1, ?2, ?3)";
            self.run(sql, params![config, position as i64, layer.as_bytes()])?;
        }
        Ok(())
    }

    /// Removes an image's name; false if there is none.
    pub(crate) fn remove_image(&self, name: &str) -> Result<bool> {
        Ok(self.run("DELETE FROM images WHERE name = ?1", [name])? > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::pack::Member;

    fn open() -> (tempfile::TempDir, Index) {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(&dir.path().join("db"), true).unwrap();
        (dir, index)
    }

    #[test]
    fn finds_chunks_and_members_it_was_given() {
        let (_dir, mut index) = open();
        let location = Location { block: 9, stored_len: 100, raw_len: 300, codec: Codec::Zstd };
        let member = |b: &[u8]| Member { id: ContentId::of(b), len: b.len() as u32 };
        let id = ContentId::of(b"bundle");
        let chunk = TableChunk { id, location, members: vec![member(b"one"), member(b"three")] };
        index.write(|c| c.add_chunks(vec![chunk])).unwrap();
        assert_eq!(index.chunk(&id).unwrap(), Some(location));
        assert_eq!(index.member(&ContentId::of(b"three")).unwrap(), Some(MemberPlace { chunk: id, offset: 3 }));
        assert_eq!(index.member(&ContentId::of(b"two")).unwrap(), None);
        assert_eq!(index.totals().unwrap(), (1, 100, 300));
    }

    #[test]
    fn ranges_never_overlap_and_gaps_are_used_at_the_end() {
        let (_dir, mut index) = open();
        let a = index.write(|c| c.reserve_pack(10 * BLOCK, "s")).unwrap();
        let b = index.write(|c| c.reserve_pack(10 * BLOCK, "s")).unwrap();
        assert_eq!((a, b), (BLOCK, 11 * BLOCK));
        index.write(|c| c.seal_pack(a, 2 * BLOCK)).unwrap();
        let rest = ADDRESS_LIMIT - 21 * BLOCK;
        let c = index.write(|c| c.reserve_pack(rest, "t")).unwrap();
        assert_eq!(c, 21 * BLOCK);
        assert_eq!(index.write(|c| c.reserve_pack(8 * BLOCK, "s")).unwrap(), 3 * BLOCK);
        let full = index.write(|c| c.reserve_pack(BLOCK, "s")).unwrap_err();
        assert_eq!(full.kind(), ErrorKind::LimitExceeded);
        assert_eq!(index.reservations("t").unwrap(), [c]);
        index.write(|c| c.drop_reservations("t")).unwrap();
        assert!(index.reservations("t").unwrap().is_empty());
        assert_eq!(index.packs().unwrap(), [(a, 2 * BLOCK)]);
    }

    #[test]
    fn a_failed_change_leaves_nothing() {
        let (_dir, mut index) = open();
        let layer = LayerInfo { diff_id: Digest::of(b"l"), tar_size: 1, entries: 1, held: true };
        let failed: Result<()> = index.write(|c| c.add_layer(&layer).and(Err(Error::invalid("stop"))));
        assert!(failed.is_err());
        assert_eq!(index.layers().unwrap(), []);
    }

    #[test]
    fn refuses_a_newer_or_foreign_database() {
        let (dir, index) = open();
        index.db.pragma_update(None, "user_version", 2).unwrap();
        let path = dir.path().join("db");
        assert_eq!(Index::open(&path, true).err().unwrap().kind(), ErrorKind::Unsupported);
        index.db.pragma_update(None, "application_id", 1).unwrap();
        assert_eq!(Index::open(&path, true).err().unwrap().kind(), ErrorKind::Corrupt);
    }
}
