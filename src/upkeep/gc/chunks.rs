//! Taking dead chunks out of the index, and forgetting them.

use super::find::images;
use super::marks::{Marker, Marks};
use crate::error::Result;
use crate::observe::{Observer, check};
use crate::store::{Change, ChunkRow, Store};
use std::ops::Range;

/// Chunks moved in one transaction, which others wait for.
const BATCH: usize = 16 << 10;
/// Rows read from the database at a time.
const ROWS: u32 = 4 << 10;

/// Moves chunks that no layer needs to the dead, no more than `most`. Returns how many.
pub(super) fn kill(store: &Store, most: usize, observer: &dyn Observer) -> Result<u64> {
    let layers = store.with_index(|index| index.layers())?.into_iter().map(|l| l.diff_id).collect();
    let mut marker = Marker::new(store, layers, observer)?;
    let mut killed = 0;
    while let Some(mut marks) = marker.next()? {
        let mut last = 0;
        while killed < most as u64 {
            let Some((end, dead)) = dead_after(store, &marks, last, most, observer)? else { break };
            last = end;
            killed += store
                .with_index(|index| index.write(|change| kill_batch((store, observer), change, &mut marks, &dead)))?;
        }
    }
    Ok(killed)
}

/// The next chunks of a pass that no layer needs, a batch of them at most, and how far that was. `None` after the last.
fn dead_after(
    store: &Store,
    marks: &Marks,
    mut last: u64,
    most: usize,
    observer: &dyn Observer,
) -> Result<Option<(u64, Vec<ChunkRow>)>> {
    let mut dead = Vec::new();
    while dead.len() < BATCH.min(most) {
        check(observer)?;
        let rows = store.with_index(|index| index.chunks_after(last, ROWS))?;
        let Some(end) = rows.last() else { return Ok((!dead.is_empty()).then_some((last, dead))) };
        last = end.n;
        dead.extend(rows.iter().filter(|row| marks.alive(&row.id) == Some(false)));
    }
    dead.truncate(most);
    Ok(Some((last, dead)))
}

fn kill_batch(
    (store, observer): (&Store, &dyn Observer),
    change: &Change<'_>,
    marks: &mut Marks,
    batch: &[ChunkRow],
) -> Result<u64> {
    // Layers may have come since the marks were made; none can come while this transaction lasts.
    for layer in change.layer_ids()? {
        marks.add(store, &layer, observer)?;
    }
    // An import that began before this moment looked at chunks that die now: the generation tells it.
    let generation = change.next_generation()?;
    let mut killed = 0;
    for chunk in batch {
        if marks.alive(&chunk.id) == Some(false) && change.kill_chunk(chunk.n, generation)? {
            killed += 1;
        }
    }
    Ok(killed)
}

/// Forgets the dead that no import can revive and no image shows. Returns how many must wait.
pub(super) fn bury(store: &Store, observer: &dyn Observer) -> Result<u64> {
    if store.with_index(|index| index.dead_after(0, 1))?.is_empty() {
        return Ok(0);
    }
    // A session that begins after this was asked begins in the present generation, and finds none of the dead.
    let generation = store.with_index(|index| index.generation())?;
    let last = store.oldest_session()?.unwrap_or(generation).min(generation);
    // Only then the images: one that a session made before the dead died is there now, or the session still is.
    let protected = store.image_ranges(&images(store)?)?;
    let (mut ready, mut waiting, mut at) = (Vec::new(), 0, 0);
    loop {
        check(observer)?;
        let rows = store.with_index(|index| index.dead_after(at, BATCH as u32))?;
        let Some(end) = rows.last() else { break };
        at = end.chunk.n;
        for row in rows {
            match row.generation <= last && !overlaps(&protected, &row.chunk.location.range()) {
                true => ready.push(row.chunk.n),
                false => waiting += 1,
            }
        }
    }
    if ready.is_empty() {
        return Ok(waiting);
    }
    // Small files first: their rows name bundles by numbers that are free to be given out again after this.
    for part in 0..16 {
        check(observer)?;
        let first = [part * 16, part * 16 + 15];
        store.with_index(|index| index.write(|change| change.forget_members(first, last)))?;
    }
    for batch in ready.chunks(BATCH) {
        check(observer)?;
        let forget = |change: &Change<'_>| batch.iter().try_for_each(|n| change.bury_chunk(*n));
        store.with_index(|index| index.write(forget))?;
    }
    Ok(waiting)
}

/// Whether a range meets one of `sorted`, which are disjoint and ascending.
pub(super) fn overlaps(sorted: &[Range<u64>], range: &Range<u64>) -> bool {
    let after = sorted.partition_point(|r| r.end <= range.start);
    sorted.get(after).is_some_and(|r| r.start < range.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_is_found_at_every_edge() {
        let sorted = [2..4, 8..10];
        for (range, expected) in
            [(0..2, false), (1..3, true), (3..8, true), (4..8, false), (9..12, true), (10..12, false)]
        {
            assert_eq!(overlaps(&sorted, &range), expected, "{range:?}");
        }
    }
}
