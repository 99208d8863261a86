//! Which chunks layers need.
//!
//! Marking reads the chunk ids of records, and remembers eight bytes of each: an id that begins like a living one is
//! taken for it, which keeps garbage at worst. Where even that is more than memory should hold, it is done in several
//! passes, each over the ids that begin alike.

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::id::ContentId;
use crate::observe::{Observer, check};
use crate::store::{ChunkRow, Store, chunk_refs};
use crate::sys::publish::io_error;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::hash::{BuildHasherDefault, Hasher};

/// Marks held at a time; some 75 MB.
const MARKS_MAX: u64 = 4 << 20;
/// Rows read from the database at a time.
const ROWS: u32 = 16 << 10;

/// Ids are uniform, so their own bits are hash enough.
#[derive(Default)]
pub(in crate::upkeep) struct Itself(u64);

/// By the first bytes of ids.
pub(in crate::upkeep) type PrefixMap<V> = HashMap<u64, V, BuildHasherDefault<Itself>>;

impl Hasher for Itself {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, b| hash << 8 | u64::from(*b));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The marks of one pass.
pub(super) struct Marks {
    /// Ids that begin with these, both included.
    range: (u64, u64),
    set: HashSet<u64, BuildHasherDefault<Itself>>,
    /// Layers whose records were read.
    layers: HashSet<Digest>,
}

/// Makes the marks of `layers`, pass by pass.
pub(super) struct Marker<'a> {
    store: &'a Store,
    layers: Vec<Digest>,
    observer: &'a dyn Observer,
    passes: Passes,
}

/// What ids begin with, first and last, pass by pass: as many as keep the ids of each within [`MARKS_MAX`].
pub(in crate::upkeep) fn passes(store: &Store) -> Result<Passes> {
    let (chunks, _, _) = store.with_index(|index| index.totals())?;
    Ok(ranges(chunks.div_ceil(MARKS_MAX).max(1)))
}

type Passes = std::vec::IntoIter<(u64, u64)>;

fn ranges(passes: u64) -> Passes {
    let width = u64::MAX / passes;
    let last = |pass| if pass + 1 == passes { u64::MAX } else { (pass + 1) * width - 1 };
    (0..passes).map(|pass| (pass * width, last(pass))).collect::<Vec<_>>().into_iter()
}

/// Calls `visit` with every chunk that a layer refers to; with some several times.
pub(in crate::upkeep) fn for_each_ref(
    store: &Store,
    layer: &Digest,
    observer: &dyn Observer,
    mut visit: impl FnMut(ContentId) -> Result<()>,
) -> Result<()> {
    let path = store.record_path(layer);
    let file = File::open(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::corrupt("layer record is missing").subject(path.display()),
        _ => io_error("open", &path, e),
    })?;
    let visit = |id| check(observer).and_then(|()| visit(id));
    chunk_refs(&file, layer, visit).map_err(|e| e.subject(path.display()))
}

/// Calls `visit` with every chunk of the index, some thousand of them in a view.
pub(in crate::upkeep) fn for_each_row(
    store: &Store,
    observer: &dyn Observer,
    mut visit: impl FnMut(&ChunkRow) -> Result<()>,
) -> Result<()> {
    let mut last = 0;
    loop {
        check(observer)?;
        let rows = store.with_index(|index| index.chunks_after(last, ROWS))?;
        let Some(end) = rows.last() else { return Ok(()) };
        last = end.n;
        rows.iter().try_for_each(&mut visit)?;
    }
}

impl<'a> Marker<'a> {
    pub(super) fn new(store: &'a Store, layers: Vec<Digest>, observer: &'a dyn Observer) -> Result<Self> {
        Ok(Self { store, layers, observer, passes: passes(store)? })
    }

    /// The marks of the next pass; `None` after the last.
    pub(super) fn next(&mut self) -> Result<Option<Marks>> {
        let Some(range) = self.passes.next() else { return Ok(None) };
        let mut marks = Marks { range, set: HashSet::default(), layers: HashSet::new() };
        for layer in &self.layers {
            check(self.observer)?;
            marks.add(self.store, layer, self.observer)?;
        }
        Ok(Some(marks))
    }
}

impl Marks {
    /// Marks what a layer needs, unless that was done.
    pub(super) fn add(&mut self, store: &Store, layer: &Digest, observer: &dyn Observer) -> Result<()> {
        if !self.layers.insert(*layer) {
            return Ok(());
        }
        let (first, last) = self.range;
        let mark = |id: ContentId| {
            let prefix = id.prefix();
            if (first..=last).contains(&prefix) {
                self.set.insert(prefix);
            }
            Ok(())
        };
        for_each_ref(store, layer, observer, mark)
    }

    /// Whether a layer needs a chunk; `None` if that is another pass's to say.
    pub(super) fn alive(&self, id: &ContentId) -> Option<bool> {
        let prefix = id.prefix();
        (self.range.0..=self.range.1).contains(&prefix).then(|| self.set.contains(&prefix))
    }

    /// Goes through this pass's chunks, and says whether each is needed.
    pub(super) fn for_each_chunk(
        &self,
        store: &Store,
        observer: &dyn Observer,
        mut visit: impl FnMut(&ChunkRow, bool) -> Result<()>,
    ) -> Result<()> {
        for_each_row(store, observer, |row| self.alive(&row.id).map_or(Ok(()), |alive| visit(row, alive)))
    }
}

/// Marks what all layers need; how many chunks that is, and how many there are.
#[cfg(any(test, feature = "internals"))]
pub(crate) fn mark(store: &Store) -> Result<(u64, u64)> {
    let layers = store.layers()?.into_iter().map(|layer| layer.diff_id).collect();
    let (mut marker, mut alive, mut all) = (Marker::new(store, layers, &())?, 0, 0);
    while let Some(marks) = marker.next()? {
        marks.for_each_chunk(store, &(), |_, needed| {
            alive += u64::from(needed);
            all += 1;
            Ok(())
        })?;
    }
    Ok((alive, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_cover_every_id_once() {
        for passes in [1, 2, 3, 7] {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(dir.path().join("s")).unwrap();
            let mut marker = Marker { store: &store, layers: vec![], observer: &(), passes: ranges(passes) };
            let mut all = Vec::new();
            while let Some(marks) = marker.next().unwrap() {
                all.push(marks);
            }
            assert_eq!(all.len() as u64, passes);
            for id in [[0; 32], [0xff; 32], [0x55; 32], [0x80; 32]].map(ContentId::from_bytes) {
                assert_eq!(all.iter().filter(|m| m.alive(&id) == Some(false)).count(), 1);
            }
        }
    }
}
