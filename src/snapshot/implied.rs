//! Snapshots that were made for an image's layers, which go by themselves.
//!
//! [`Snapshotter::commit_image`](super::Snapshotter::commit_image) makes them for mounts to stand
//! on. They stay for some minutes after their last use, so that the next mount finds what it needs.

use super::model::now;
use crate::error::Result;
use crate::store::{Change, SnapshotRow, Store};
use std::collections::HashMap;

/// The label that they have.
pub(crate) const IMPLIED: &str = "layerstore.implied";

/// How long one waits for a snapshot that stands on it.
const WAIT: i64 = 300_000_000_000;
/// How often its time begins anew while it is used.
pub(super) const RENEW: i64 = 30_000_000_000;

/// Snapshots of images' layers that no other snapshot stands on.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Implied {
    /// Numbers of those whose time is over, children before parents.
    pub(crate) over: Vec<u64>,
    /// Numbers of those that wait, and until when: nanoseconds since 1970.
    pub(crate) waiting: Vec<(u64, i64)>,
}

impl Implied {
    /// Looks at all snapshots, and at the numbers of those with the label and when they were used
    /// last. With `all` nobody waits.
    pub(crate) fn of(rows: &[SnapshotRow], labelled: &[(u64, i64)], all: bool) -> Self {
        let parents: HashMap<u64, u64> = rows.iter().filter_map(|row| Some((row.n, row.parent?))).collect();
        let mut children: HashMap<u64, u64> = HashMap::new();
        parents.values().for_each(|parent| *children.entry(*parent).or_default() += 1);
        let mut found = Self::default();
        let (now, mut labelled) = (now(), labelled.to_vec());
        // Children have higher numbers, but for rebased ones, which are not of this kind.
        labelled.sort_unstable();
        for (n, used) in labelled.into_iter().rev() {
            if children.get(&n).is_some_and(|children| *children > 0) {
                continue;
            }
            let until = used.saturating_add(WAIT);
            // A clock that was set back must not keep them for long.
            if !all && until > now && used <= now.saturating_add(WAIT) {
                found.waiting.push((n, until));
                continue;
            }
            found.over.push(n);
            if let Some(count) = parents.get(&n).and_then(|parent| children.get_mut(parent)) {
                *count -= 1;
            }
        }
        found
    }
}

/// Removes those of `numbers`, children first, that still have the label and no children.
pub(crate) fn drop_implied(change: &Change<'_>, numbers: &[u64]) -> Result<()> {
    for &n in numbers {
        let there = change.snapshot_numbered(n)?.is_some_and(|row| row.labels.contains_key(IMPLIED));
        if there && !change.snapshot_has_children(n)? {
            change.remove_snapshot(n)?;
        }
    }
    Ok(())
}

/// Removes those whose time is over. They are made again when they are wanted.
pub(super) fn forget_implied(store: &Store) -> Result<()> {
    let labelled = store.with_index(|index| index.snapshots_labelled(IMPLIED))?;
    if labelled.is_empty() {
        return Ok(());
    }
    let rows = store.with_index(|index| index.snapshots(None))?;
    let over = Implied::of(&rows, &labelled, false).over;
    match over.is_empty() {
        true => Ok(()),
        false => store.with_index(|index| index.write(|change| drop_implied(change, &over))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(n: u64, parent: Option<u64>) -> SnapshotRow {
        SnapshotRow { n, parent, ..crate::snapshot::lost_snapshot(n) }
    }

    #[test]
    fn those_go_that_nothing_stands_on_and_whose_time_is_over() {
        let rows = [row(1, None), row(2, Some(1)), row(3, Some(2)), row(4, None), row(5, Some(4)), row(6, Some(1))];
        let (old, new) = (now() - WAIT - 1, now());
        let labelled = [(1, old), (2, old), (3, old), (4, old), (6, new)];
        let found = Implied::of(&rows, &labelled, false);
        assert_eq!(found, Implied { over: vec![3, 2], waiting: vec![(6, new + WAIT)] });
        let found = Implied::of(&rows, &labelled, true);
        assert_eq!(found, Implied { over: vec![6, 3, 2, 1], waiting: vec![] }, "but for 4, which 5 stands on");
        let ahead = now() + 3 * WAIT;
        assert_eq!(Implied::of(&rows[..1], &[(1, ahead)], false).over, [1], "the clock was set back");
    }
}
