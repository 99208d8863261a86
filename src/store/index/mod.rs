//! The database: small mutable state, in SQLite (`docs/FORMAT.md`, section "Database").
//!
//! WAL mode with `synchronous=FULL`: a committed transaction is on disk. Everything here can be rebuilt from packs,
//! records and blobs but names and snapshots, which exist nowhere else.
//!
//! | file | tables |
//! | --- | --- |
//! | `chunks.rs` | packs, chunks, members |
//! | `catalog.rs` | layers, blobs, images |
//! | `snapshots.rs` | snapshots, labels |
//! | `leases.rs` | leases and what they keep |
//! | `garbage.rs` | dead chunks, counters |
//! | `check.rs` | what fsck asks |
//! | `mend.rs` | what repair asks and changes |
//! | `restore.rs`, `salvage.rs` | what a rebuild writes, and reads of a damaged database |
//! | `roots.rs` | all that keeps something, read at once |
//! | `group.rs` | writes of one process, in turn and together |

mod catalog;
mod check;
mod chunks;
mod garbage;
mod group;
mod leases;
mod mend;
mod restore;
mod roots;
mod salvage;
mod snapshots;

pub(crate) use garbage::ChunkRow;
pub(crate) use group::Group;
pub(crate) use leases::{LeaseRef, LeaseRow};
pub(crate) use roots::Roots;
pub(crate) use salvage::Salvage;
pub(crate) use snapshots::SnapshotRow;

use crate::digest::Digest;
use crate::error::{Advice, Error, ErrorKind, Result};
use crate::id::ContentId;
use crate::sys::publish::sync_dir;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Params, Row, TransactionBehavior};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// `application_id` of the database: "LSdb".
const APPLICATION_ID: i64 = 0x4c53_6462;
const SCHEMA_VERSION: i64 = 4;
/// How long a writer waits for another process's transaction; those take milliseconds.
const BUSY: Duration = Duration::from_secs(60);
/// The WAL is cut back to this size after a checkpoint, so that it does not count as lasting disk use.
const WAL_LIMIT: i64 = 1 << 20;
/// Pages in the WAL (of 4 KiB) from which on a commit carries them over into the database, whoever waits for it. An
/// image's import into a large store changes some thousand.
const CHECKPOINT: i64 = 8192;

/// Directories that are synced at once, at most.
const SYNCS: usize = 16;

/// What each version added to the one before.
const SCHEMA: [&str; 4] = [
    include_str!("../schema-1.sql"),
    include_str!("../schema-2.sql"),
    include_str!("../schema-3.sql"),
    include_str!("../schema-4.sql"),
];

/// One connection. Not shared between threads; [`crate::Store`] keeps a pool.
pub(crate) struct Index {
    db: Connection,
    /// The database's directory, until its names are known to be on disk.
    unsynced: Option<PathBuf>,
    /// Through which it writes, in turn with the others of its store.
    group: Option<Arc<Group>>,
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
            (0, 0) if create => Self::upgrade(&mut db).map_err(db_error("create"))?,
            (APPLICATION_ID, SCHEMA_VERSION) => {}
            (APPLICATION_ID, 1) => Self::upgrade(&mut db).map_err(db_error("upgrade"))?,
            (APPLICATION_ID, 2 | 3) => match Self::upgrade(&mut db).map_err(db_error("upgrade")) {
                // Versions 3 and 4 only find more damage: a disk that is full must not keep anyone from reading.
                Err(e) if e.kind() != ErrorKind::Io => return Err(e),
                _ => {}
            },
            (APPLICATION_ID, version) => {
                let e = Error::new(ErrorKind::Unsupported, "the store's database is of another version");
                let e = e.advise(Advice::OtherVersion);
                return Err(e.expected(SCHEMA_VERSION).actual(version));
            }
            _ => return Err(Error::corrupt("the database is not a layerstore database")),
        }
        Ok(Self { db, unsynced: path.parent().map(Path::to_owned), group: None })
    }

    /// Ends the use of a database that nobody else has open, and leaves all of it in its one file.
    pub(crate) fn close(self) -> Result<()> {
        let cut = |r: &Row<'_>| r.get::<_, i64>(0);
        let busy = self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], cut).map_err(db_error("checkpoint"))?;
        if busy != 0 {
            return Err(Error::new(ErrorKind::Busy, "database: somebody reads it").advise(Advice::TryAgain));
        }
        self.db.close().map_err(|(_, e)| db_error("close")(e))
    }

    fn configure(db: &mut Connection) -> rusqlite::Result<()> {
        db.busy_timeout(BUSY)?;
        // Without this, SQLite plans a statement anew whenever another id is bound to it.
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        db.pragma_update(None, "journal_size_limit", WAL_LIMIT)?;
        db.pragma_update(None, "wal_autocheckpoint", CHECKPOINT)?;
        // 16 MiB of pages a connection: enough for a million chunks' inner nodes, and bounded.
        db.pragma_update(None, "cache_size", -16_384)?;
        db.set_prepared_statement_cache_capacity(64);
        Ok(())
    }

    /// Brings a new database, or one of an earlier version, to this one, in one transaction. What was there keeps its
    /// meaning.
    fn upgrade(db: &mut Connection) -> rusqlite::Result<()> {
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Another process may have done it while we waited.
        let version: u32 = tx.pragma_query_value(None, "user_version", |r| r.get(0))?;
        SCHEMA.iter().skip(version as usize).try_for_each(|additions| tx.execute_batch(additions))?;
        tx.pragma_update(None, "application_id", APPLICATION_ID)?;
        tx.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        tx.commit()
    }

    fn one<T>(&self, sql: &str, p: impl Params, f: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>) -> Result<Option<T>> {
        one(&self.db, sql, p, f)
    }

    fn all<T>(&self, sql: &str, p: impl Params, f: impl FnMut(&Row<'_>) -> rusqlite::Result<T>) -> Result<Vec<T>> {
        all(&self.db, sql, p, f)
    }

    /// Has this connection write through `group`.
    pub(crate) fn in_group(mut self, group: Option<Arc<Group>>) -> Self {
        self.group = group;
        self
    }

    /// Runs `work` in one write transaction; it is on disk when this returns `Ok`. All that `work` sees in the database
    /// is on disk when it begins.
    pub(crate) fn write<T>(&mut self, work: impl FnOnce(&Change<'_>) -> Result<T>) -> Result<T> {
        match self.group.clone() {
            Some(group) => group.write(false, self, work),
            None => self.write_alone(work),
        }
    }

    /// As [`write`](Self::write), but what `work` sees may be written in the same transaction, by others who wait for it,
    /// and be taken back with it. So `work` changes rows only, and makes new files under names that nothing had: it
    /// removes and replaces none.
    pub(crate) fn write_together<T>(&mut self, work: impl FnOnce(&Change<'_>) -> Result<T>) -> Result<T> {
        match self.group.clone() {
            Some(group) => group.write(true, self, work),
            None => self.write_alone(work),
        }
    }

    /// Runs `work` in a transaction on this connection.
    fn write_alone<T>(&mut self, work: impl FnOnce(&Change<'_>) -> Result<T>) -> Result<T> {
        self.sync_names()?;
        let tx = self.db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(db_error("begin"))?;
        let change = Change { tx: &tx, late: RefCell::default() };
        let out = work(&change)?;
        change.late.into_inner().sync()?;
        tx.commit().map_err(db_error("commit"))?;
        Ok(out)
    }

    /// Gives `other` this one's connection and takes its, unless either is in use.
    fn swap_connection(&mut self, other: &mut Self) {
        if self.db.is_autocommit() && other.db.is_autocommit() {
            std::mem::swap(&mut self.db, &mut other.db);
            std::mem::swap(&mut self.unsynced, &mut other.unsynced);
        }
    }

    fn sync_names(&mut self) -> Result<()> {
        if let Some(dir) = &self.unsynced {
            // The log is made anew when nobody had the database open. SQLite syncs its name too, but takes a failure of
            // that for success.
            sync_dir(dir)?;
            self.unsynced = None;
        }
        Ok(())
    }

    /// Holds one view of the database for many look-ups, which spares each of them two lock calls.
    pub(crate) fn begin_reading(&self) -> Result<()> {
        self.db.execute_batch("BEGIN DEFERRED").map_err(db_error("begin reading"))
    }

    /// Ends what [`begin_reading`](Self::begin_reading) began.
    pub(crate) fn end_reading(&self) -> Result<()> {
        self.db.execute_batch("COMMIT").map_err(db_error("end reading"))
    }

    /// What `read` finds in one view of the database.
    pub(crate) fn view<T>(&self, read: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        self.begin_reading()?;
        let found = read(self);
        self.end_reading()?;
        found
    }
}

fn one<T>(
    db: &Connection,
    sql: &str,
    p: impl Params,
    f: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Option<T>> {
    let query = || db.prepare_cached(sql)?.query_row(p, f).optional();
    query().map_err(db_error("read"))
}

fn all<T>(
    db: &Connection,
    sql: &str,
    p: impl Params,
    f: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>> {
    let query = || db.prepare_cached(sql)?.query_map(p, f)?.collect::<rusqlite::Result<_>>();
    query().map_err(db_error("read"))
}

/// The changes one transaction can make.
pub(crate) struct Change<'a> {
    tx: &'a Connection,
    late: RefCell<Late>,
}

/// Directories that are brought to disk before a transaction ends.
#[derive(Default)]
struct Late {
    contents: Vec<PathBuf>,
    names: BTreeSet<PathBuf>,
}

impl Late {
    fn add(&mut self, other: Self) {
        self.contents.extend(other.contents);
        self.names.extend(other.names);
    }

    /// What is in new directories comes before their names.
    fn sync(&self) -> Result<()> {
        sync_at_once(&self.contents)?;
        self.names.iter().try_for_each(|dir| sync_dir(dir))
    }
}

/// Syncs directories, several at once if there are many: a journal brings those to disk together.
fn sync_at_once(dirs: &[PathBuf]) -> Result<()> {
    let sync = |dirs: &[PathBuf]| dirs.iter().try_for_each(|dir| sync_dir(dir));
    if dirs.len() < 2 {
        return sync(dirs);
    }
    thread::scope(|scope| {
        let begin = |part| match thread::Builder::new().spawn_scoped(scope, move || sync(part)) {
            Ok(thread) => Ok(thread),
            // Threads are limited, too.
            Err(_) => Err(sync(part)),
        };
        let begun: Vec<_> = dirs.chunks(dirs.len().div_ceil(SYNCS)).map(begin).collect();
        let panicked = |_| Err(Error::new(ErrorKind::Io, "fsync of directories: a thread panicked"));
        begun.into_iter().try_for_each(|part| match part {
            Ok(thread) => thread.join().unwrap_or_else(panicked),
            Err(done) => done,
        })
    })
}

impl Change<'_> {
    /// Syncs the directory `names`, to which a name was added, before this transaction ends, and before that `content`,
    /// the directory that got the name. Once for all who share the transaction.
    pub(crate) fn sync_at_end(&self, content: Option<&Path>, names: &Path) {
        let mut late = self.late.borrow_mut();
        late.contents.extend(content.map(Path::to_owned));
        late.names.insert(names.to_owned());
    }

    fn run(&self, sql: &str, p: impl Params) -> Result<usize> {
        let run = || self.tx.prepare_cached(sql)?.execute(p);
        run().map_err(db_error("write"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::pack::{ADDRESS_LIMIT, BLOCK, Codec, Location, Member, TableChunk};

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
        let chunk = TableChunk { id, location, sum: None, members: vec![member(b"one"), member(b"three")] };
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
    fn a_directory_that_cannot_be_synced_is_told_of_whichever_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let dirs: Vec<_> = (0..50).map(|n| dir.path().join(n.to_string())).collect();
        dirs.iter().for_each(|dir| std::fs::create_dir(dir).unwrap());
        sync_at_once(&dirs).unwrap();
        for missing in [0, 1, 30, 49] {
            std::fs::remove_dir(&dirs[missing]).unwrap();
            assert_eq!(sync_at_once(&dirs).unwrap_err().kind(), ErrorKind::NotFound, "{missing}");
            std::fs::create_dir(&dirs[missing]).unwrap();
        }
        sync_at_once(&dirs[..1]).and_then(|()| sync_at_once(&[])).unwrap();
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
        index.db.pragma_update(None, "user_version", SCHEMA_VERSION + 1).unwrap();
        let path = dir.path().join("db");
        assert_eq!(Index::open(&path, true).err().unwrap().kind(), ErrorKind::Unsupported);
        index.db.pragma_update(None, "application_id", 1).unwrap();
        assert_eq!(Index::open(&path, true).err().unwrap().kind(), ErrorKind::Corrupt);
    }
}
