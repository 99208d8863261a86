//! Reading what is left of a damaged database, table by table, for what is nowhere else.
//!
//! It is read in a copy, since SQLite writes to what it opens. A table is read from its first row until one cannot be
//! read, and then from its last row backwards: what lies between is lost. Every row is looked at by who uses it, as a
//! damaged database may say anything.

use super::snapshots::SNAPSHOT;
use super::{ImageInfo, LayerInfo, SnapshotRow, catalog, snapshots};
use crate::digest::Digest;
use crate::error::Result;
use crate::format::pack::{Codec, Location, Member, TableChunk};
use crate::id::ContentId;
use crate::sys::publish::io_error;
use rusqlite::{Connection, Params, Row};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Rows of one table.
#[derive(Debug)]
pub(crate) struct Part<T> {
    pub(crate) rows: Vec<T>,
    /// Whether these are all.
    pub(crate) whole: bool,
}

impl<T> Default for Part<T> {
    fn default() -> Self {
        Self { rows: vec![], whole: false }
    }
}

/// What could be read of a database.
#[derive(Default)]
pub(crate) struct Salvage {
    db: Option<Connection>,
    pub(crate) layers: Part<LayerInfo>,
    /// Their layers as far as those are known here; a configuration knows better.
    pub(crate) images: Part<ImageInfo>,
    pub(crate) snapshots: Part<SnapshotRow>,
    /// Addresses below were once given out.
    pub(crate) top: u64,
}

impl Salvage {
    /// Reads what can be read of the database at `path`, by way of a copy in `dir`, an empty directory.
    ///
    /// # Errors
    /// `Io` if the copy cannot be written or read: that says nothing of the database.
    pub(crate) fn read(path: &Path, dir: &Path) -> Result<Self> {
        let Some(db) = copy(path, dir)? else { return Ok(Self::default()) };
        let sql = "SELECT diff_id, tar_size, entries, held FROM layers ORDER BY diff_id";
        let layers = part(&db, sql, [], catalog::layer_row)?;
        let sql = "SELECT config, position, diff_id FROM image_layers ORDER BY config, position";
        let chains = part(&db, sql, [], |r| Ok(((super::digest(r, 0)?, r.get::<_, i64>(1)?), super::digest(r, 2)?)))?;
        let chains: BTreeMap<(Digest, i64), Digest> = chains.rows.into_iter().collect();
        let images = part(&db, "SELECT name, config, manifest FROM images ORDER BY name", [], |r| {
            let config = super::digest(r, 1)?;
            let layers = (0..).map_while(|position| chains.get(&(config, position)).copied()).collect();
            Ok(ImageInfo { name: r.get(0)?, config, manifest: super::digest(r, 2)?, layers })
        })?;
        let snapshots = read_snapshots(&db)?;
        let top = "SELECT max(coalesce((SELECT max(base + len) FROM packs), 0), \
                   coalesce((SELECT value FROM counters WHERE name = 'top'), 0))";
        let top = part(&db, top, [], |r| r.get::<_, i64>(0))?.rows.first().copied().unwrap_or_default();
        Ok(Self { db: Some(db), layers, images, snapshots, top: u64::try_from(top).unwrap_or_default() })
    }

    /// The chunks it has in a range of blocks, in order, as a pack's table would have them; bundles whose members are not
    /// all known without any. Nothing of it is proven.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(crate) fn chunks(&self, first: u64, end: u64) -> Result<Vec<TableChunk>> {
        let Some(db) = &self.db else { return Ok(vec![]) };
        let sql = "SELECT n, id, block, stored, raw FROM chunks WHERE block >= ?1 AND block < ?2 ORDER BY n";
        let row = |r: &Row<'_>| Ok((r.get::<_, i64>(0)?, (r.get(1)?, r.get(2)?, r.get::<_, u32>(3)?, r.get(4)?)));
        let mut found: Vec<TableChunk> = Vec::new();
        for (n, (id, block, stored, raw_len)) in part(db, sql, [first as i64, end as i64], row)?.rows {
            let Ok(codec) = Codec::from_u8((stored >> 24) as u8) else { continue };
            let location = Location { block, stored_len: stored & 0xff_ffff, raw_len, codec };
            let Ok(location) = location.validate() else { continue };
            let members = members(db, n, raw_len)?;
            found.push(TableChunk { id: ContentId::from_bytes(id), location, sum: None, members });
        }
        found.sort_by_key(|chunk| chunk.location.block);
        Ok(found)
    }
}

/// The members of a bundle, if their places leave no doubt.
fn members(db: &Connection, n: i64, raw_len: u32) -> Result<Vec<Member>> {
    let sql = "SELECT id, start FROM members WHERE chunk = ?1 ORDER BY id";
    let mut places = part(db, sql, [n], |r| Ok((r.get::<_, u32>(1)?, ContentId::from_bytes(r.get(0)?))))?.rows;
    places.sort_unstable();
    let ends = places.iter().skip(1).map(|(start, _)| *start).chain([raw_len]).collect::<Vec<_>>();
    let from_zero = places.first().is_some_and(|(start, _)| *start == 0);
    let lens =
        places.iter().zip(ends).map(|((start, id), end)| Some(Member { id: *id, len: end.checked_sub(*start)? }));
    Ok(if from_zero { lens.collect::<Option<_>>().unwrap_or_default() } else { vec![] })
}

fn read_snapshots(db: &Connection) -> Result<Part<SnapshotRow>> {
    // A database of version 1 has no snapshots.
    let version = part(db, "SELECT user_version FROM pragma_user_version", [], |r| r.get::<_, i64>(0))?;
    if version.rows == [1] {
        return Ok(Part { rows: vec![], whole: true });
    }
    let mut snapshots = part(db, &format!("{SNAPSHOT} ORDER BY n"), [], snapshots::row)?;
    let sql = "SELECT snapshot, name, value FROM snapshot_labels ORDER BY snapshot, name";
    let labels = part(db, sql, [], |r| Ok((r.get::<_, i64>(0)? as u64, r.get(1)?, r.get(2)?)))?;
    snapshots.whole &= labels.whole;
    let mut by_snapshot: HashMap<u64, BTreeMap<String, String>> = HashMap::new();
    for (n, name, value) in labels.rows {
        by_snapshot.entry(n).or_default().insert(name, value);
    }
    for row in &mut snapshots.rows {
        row.labels = by_snapshot.remove(&row.n).unwrap_or_default();
    }
    Ok(snapshots)
}

/// `None` if there is no database, or nothing of it tells that it is one of ours.
fn copy(path: &Path, dir: &Path) -> Result<Option<Connection>> {
    let target = dir.join("database");
    if !copy_file(path, &target)? {
        return Ok(None);
    }
    let log = |path: &Path| {
        let mut name = path.as_os_str().to_owned();
        name.push("-wal");
        PathBuf::from(name)
    };
    copy_file(&log(path), &log(&target))?;
    let db = Connection::open(target).map_err(super::db_error("open a copy"))?;
    let ours = part(&db, "SELECT application_id FROM pragma_application_id", [], |r| r.get::<_, i64>(0))?;
    Ok((ours.rows == [super::APPLICATION_ID]).then_some(db))
}

/// Copies what can be read of a file. False if nothing can.
fn copy_file(from: &Path, to: &Path) -> Result<bool> {
    let Ok(mut from) = File::open(from) else { return Ok(false) };
    let mut copy = File::create_new(to).map_err(|e| io_error("create", to, e))?;
    let mut piece = vec![0; 256 << 10];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(true),
            Ok(n) => copy.write_all(&piece[..n]).map_err(|e| io_error("write", to, e))?,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            // A bad place of the disk: what comes before it counts.
            Err(_) => return Ok(true),
        }
    }
}

/// `sql` may end in the columns to order by.
fn part<T>(
    db: &Connection,
    sql: &str,
    params: impl Params + Clone,
    row: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Part<T>> {
    let mut part = Part::default();
    part.whole = read(db, sql, params.clone(), &row, &mut part.rows)?;
    if !part.whole
        && let Some((select, columns)) = sql.rsplit_once(" ORDER BY ")
    {
        let columns: Vec<_> = columns.split(", ").map(|column| format!("{column} DESC")).collect();
        // It ends where the other one did, or at another gap.
        read(db, &format!("{select} ORDER BY {}", columns.join(", ")), params, &row, &mut part.rows)?;
    }
    Ok(part)
}

/// False if the database is damaged before the last row.
fn read<T>(
    db: &Connection,
    sql: &str,
    params: impl Params,
    row: &impl Fn(&Row<'_>) -> rusqlite::Result<T>,
    rows: &mut Vec<T>,
) -> Result<bool> {
    use rusqlite::ErrorCode::{CannotOpen, DatabaseBusy, DiskFull, OutOfMemory, SystemIoFailure};
    let read = || {
        let mut statement = db.prepare(sql)?;
        let mut found = statement.query(params)?;
        while let Some(next) = found.next()? {
            rows.push(row(next)?);
        }
        Ok::<(), rusqlite::Error>(())
    };
    match read() {
        Ok(()) => Ok(true),
        // A file that was cut short gives an I/O error as well.
        Err(e) if e.sqlite_error().is_some_and(|e| e.extended_code == rusqlite::ffi::SQLITE_IOERR_SHORT_READ) => {
            Ok(false)
        }
        Err(e) => match e.sqlite_error_code() {
            Some(CannotOpen | DatabaseBusy | DiskFull | OutOfMemory | SystemIoFailure) => {
                Err(super::db_error("read a copy")(e))
            }
            _ => Ok(false),
        },
    }
}
