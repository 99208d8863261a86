//! Reading what is left of a damaged database, table by table, for what is nowhere else.
//!
//! It is read in a copy, since SQLite writes to what it opens. A table is read from its first row until one cannot be
//! read, and then from its last row backwards: what lies between is lost. Every row is looked at by who uses it, as a
//! damaged database may say anything.

use super::snapshots::SNAPSHOT;
use super::{ImageInfo, LayerInfo, SnapshotRow, catalog, snapshots};
use crate::digest::Digest;
use crate::format::pack::{Codec, Location, Member, TableChunk};
use crate::id::ContentId;
use rusqlite::{Connection, Params, Row};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

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
    pub(crate) fn read(path: &Path, dir: &Path) -> Self {
        let Some(db) = copy(path, dir) else { return Self::default() };
        let sql = "SELECT diff_id, tar_size, entries, held FROM layers ORDER BY diff_id";
        let layers = part(&db, sql, catalog::layer_row);
        let sql = "SELECT config, position, diff_id FROM image_layers ORDER BY config, position";
        let chains = part(&db, sql, |r| Ok(((super::digest(r, 0)?, r.get::<_, i64>(1)?), super::digest(r, 2)?)));
        let chains: BTreeMap<(Digest, i64), Digest> = chains.rows.into_iter().collect();
        let images = part(&db, "SELECT name, config, manifest FROM images ORDER BY name", |r| {
            let config = super::digest(r, 1)?;
            let layers = (0..).map_while(|position| chains.get(&(config, position)).copied()).collect();
            Ok(ImageInfo { name: r.get(0)?, config, manifest: super::digest(r, 2)?, layers })
        });
        let mut snapshots = part(&db, &format!("{SNAPSHOT} ORDER BY n"), snapshots::row);
        let sql = "SELECT snapshot, name, value FROM snapshot_labels ORDER BY snapshot, name";
        let labels = part(&db, sql, |r| Ok((r.get::<_, i64>(0)? as u64, (r.get(1)?, r.get(2)?))));
        snapshots.whole &= labels.whole;
        for (n, (name, value)) in labels.rows {
            snapshots.rows.iter_mut().filter(|row| row.n == n).for_each(|row| {
                row.labels.insert(String::clone(&name), String::clone(&value));
            });
        }
        let top = "SELECT max(coalesce((SELECT max(base + len) FROM packs), 0), \
                   coalesce((SELECT value FROM counters WHERE name = 'top'), 0))";
        let top = db.query_row(top, [], |r| r.get::<_, i64>(0)).unwrap_or_default();
        Self { db: Some(db), layers, images, snapshots, top: u64::try_from(top).unwrap_or_default() }
    }

    /// The chunks it has in a range of blocks, in order, as a pack's table would have them; bundles whose members are not
    /// all known without any. Nothing of it is proven.
    pub(crate) fn chunks(&self, first: u64, end: u64) -> Vec<TableChunk> {
        let Some(db) = &self.db else { return vec![] };
        let sql = "SELECT n, id, block, stored, raw FROM chunks WHERE block >= ?1 AND block < ?2 ORDER BY n";
        let row = |r: &Row<'_>| Ok((r.get::<_, i64>(0)?, (r.get(1)?, r.get(2)?, r.get::<_, u32>(3)?, r.get(4)?)));
        let mut found: Vec<TableChunk> = Vec::new();
        for (n, (id, block, stored, raw_len)) in part_with(db, sql, [first as i64, end as i64], row).rows {
            let Ok(codec) = Codec::from_u8((stored >> 24) as u8) else { continue };
            let location = Location { block, stored_len: stored & 0xff_ffff, raw_len, codec };
            let Ok(location) = location.validate() else { continue };
            let members = members(db, n, raw_len);
            found.push(TableChunk { id: ContentId::from_bytes(id), location, members });
        }
        found.sort_by_key(|chunk| chunk.location.block);
        found
    }
}

/// The members of a bundle, if their places leave no doubt.
fn members(db: &Connection, n: i64, raw_len: u32) -> Vec<Member> {
    let sql = "SELECT id, start FROM members WHERE chunk = ?1 ORDER BY id";
    let mut places = part_with(db, sql, [n], |r| Ok((r.get::<_, u32>(1)?, ContentId::from_bytes(r.get(0)?)))).rows;
    places.sort_unstable();
    let ends = places.iter().skip(1).map(|(start, _)| *start).chain([raw_len]).collect::<Vec<_>>();
    let from_zero = places.first().is_some_and(|(start, _)| *start == 0);
    let lens =
        places.iter().zip(ends).map(|((start, id), end)| Some(Member { id: *id, len: end.checked_sub(*start)? }));
    if from_zero { lens.collect::<Option<_>>().unwrap_or_default() } else { vec![] }
}

fn copy(path: &Path, dir: &Path) -> Option<Connection> {
    let target = dir.join("database");
    fs::copy(path, &target).ok()?;
    let log = |path: &Path| {
        let mut name = path.as_os_str().to_owned();
        name.push("-wal");
        name
    };
    // Without a log, or with one that cannot be read, what is in the file counts.
    let _ = fs::copy(log(path), log(&target));
    let db = Connection::open(target).ok()?;
    let ours = db.pragma_query_value(None, "application_id", |r| r.get::<_, i64>(0)).ok()?;
    (ours == super::APPLICATION_ID).then_some(db)
}

fn part<T>(db: &Connection, sql: &str, row: impl Fn(&Row<'_>) -> rusqlite::Result<T>) -> Part<T> {
    part_with(db, sql, [], row)
}

/// `sql` ends in the columns to order by.
fn part_with<T>(
    db: &Connection,
    sql: &str,
    params: impl Params + Clone,
    row: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
) -> Part<T> {
    let mut part = Part::default();
    part.whole = read(db, sql, params.clone(), &row, &mut part.rows).is_ok();
    if !part.whole
        && let Some((select, columns)) = sql.rsplit_once(" ORDER BY ")
    {
        let columns: Vec<_> = columns.split(", ").map(|column| format!("{column} DESC")).collect();
        // It fails where the other one did, or at another gap.
        let _ = read(db, &format!("{select} ORDER BY {}", columns.join(", ")), params, &row, &mut part.rows);
    }
    part
}

fn read<T>(
    db: &Connection,
    sql: &str,
    params: impl Params,
    row: &impl Fn(&Row<'_>) -> rusqlite::Result<T>,
    rows: &mut Vec<T>,
) -> rusqlite::Result<()> {
    let mut statement = db.prepare(sql)?;
    let mut found = statement.query(params)?;
    while let Some(next) = found.next()? {
        rows.push(row(next)?);
    }
    Ok(())
}
