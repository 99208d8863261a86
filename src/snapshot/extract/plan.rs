//! Which contents go into which files, ordered so that each chunk is read and decoded once.
//!
//! Work is cut into jobs of about a mebibyte in the order of the chunks' addresses: a bundle's files are written by one
//! job, and neighbouring jobs read neighbouring parts of a pack. Files with equal content are written together.

use super::Target;
use crate::error::{Error, Result};
use crate::format::entry::DataRange;
use crate::format::item::Extent;
use crate::format::pack::Location;
use crate::id::ContentId;
use crate::layer::Content;
use crate::observe::{Observer, check};
use crate::store::{ChunkReader, Store};
use crate::tree::NodeKind;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Mutex;

/// Bytes of content, and files, after which a job ends with the next chunk.
const JOB_BYTES: u64 = 1 << 20;
const JOB_FILES: usize = 128;
/// Jobs of more bytes than this begin first, so that none is left for the end.
const BIG: u64 = 8 << 20;

/// A leaf of one of the targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct LeafAt {
    pub(super) target: u32,
    pub(super) leaf: u32,
}

/// A chunk that is needed.
pub(super) struct PlannedChunk {
    pub(super) id: ContentId,
    pub(super) location: Location,
    /// How many times it is asked for.
    pub(super) uses: u32,
}

/// A file that is one piece of a chunk.
pub(super) struct Single {
    pub(super) chunk: u32,
    pub(super) offset: u32,
    pub(super) len: u32,
    pub(super) at: LeafAt,
}

/// One step of the work.
pub(super) enum Job {
    /// Leaves without content.
    Plain(Range<usize>),
    /// Files of one piece.
    Singles(Range<usize>),
    /// Files of the same many pieces.
    Group(usize),
}

/// All the work.
pub(super) struct Plan {
    /// By address.
    pub(super) chunks: Vec<PlannedChunk>,
    numbers: HashMap<ContentId, u32>,
    pub(super) plain: Vec<LeafAt>,
    /// By address.
    pub(super) singles: Vec<Single>,
    pub(super) groups: Vec<Vec<LeafAt>>,
    pub(super) queue: Queue,
}

impl Plan {
    pub(super) fn new(store: &Store, targets: &[Target], threads: usize, observer: &dyn Observer) -> Result<Self> {
        let mut plan = Self {
            chunks: vec![],
            numbers: HashMap::new(),
            plain: vec![],
            singles: vec![],
            groups: vec![],
            queue: Queue::default(),
        };
        // What is equal in all that decides which bytes go where.
        type Key<'a> = (&'a Content, Option<&'a [DataRange]>, u64);
        let mut groups: HashMap<Key<'_>, Vec<LeafAt>> = HashMap::new();
        let mut alone: Vec<(LeafAt, Extent)> = Vec::new();
        for (target, leaf, kind) in leaves(targets) {
            let at = LeafAt { target, leaf };
            match kind {
                NodeKind::File { content, .. } if content.is_empty() => plan.plain.push(at),
                NodeKind::File { content, sparse: None, .. } if content.len() == 1 => alone.push((at, content[0])),
                NodeKind::File { content, sparse, size } => {
                    groups.entry((content, sparse.as_deref(), *size)).or_default().push(at);
                }
                _ => plan.plain.push(at),
            }
        }
        let extents = alone.iter().map(|(_, e)| e).chain(groups.keys().flat_map(|key| key.0.iter()));
        plan.locate(store, extents, observer)?;
        let single = |(at, Extent { chunk, offset, len }): (LeafAt, Extent)| {
            Ok(Single { chunk: plan.number(&chunk)?, offset, len, at })
        };
        plan.singles = alone.into_iter().map(single).collect::<Result<_>>()?;
        plan.singles.sort_unstable_by_key(|s| (s.chunk, s.offset, s.at));
        plan.groups = groups.into_values().collect();
        plan.groups.iter_mut().for_each(|group| group.sort_unstable());
        plan.cut(targets, threads)?;
        Ok(plan)
    }

    /// Finds the chunks and numbers them by address.
    fn locate<'a>(
        &mut self,
        store: &Store,
        extents: impl Iterator<Item = &'a Extent>,
        observer: &dyn Observer,
    ) -> Result<()> {
        let reader = ChunkReader::new(store)?;
        for extent in extents {
            check(observer)?;
            if self.numbers.insert(extent.chunk, 0).is_none() {
                let location = reader.locate(&extent.chunk)?;
                self.chunks.push(PlannedChunk { id: extent.chunk, location, uses: 0 });
            }
        }
        self.chunks.sort_unstable_by_key(|chunk| chunk.location.block);
        for (number, chunk) in self.chunks.iter().enumerate() {
            self.numbers.insert(chunk.id, number as u32);
        }
        Ok(())
    }

    /// The number of a chunk in [`chunks`](Self::chunks).
    pub(super) fn number(&self, id: &ContentId) -> Result<u32> {
        let number = self.numbers.get(id).copied();
        number.ok_or_else(|| Error::corrupt("a chunk is missing in the plan").subject(format!("chunk {id}")))
    }

    /// Makes the jobs and counts how often each chunk is asked for.
    fn cut(&mut self, targets: &[Target], threads: usize) -> Result<()> {
        // First chunk, bytes, job.
        let mut jobs: Vec<(u32, u64, Job)> = Vec::new();
        let (mut from, mut bytes) = (0, 0);
        for (i, single) in self.singles.iter().enumerate() {
            let begins = i == 0 || self.singles[i - 1].chunk != single.chunk;
            if begins {
                self.chunks[single.chunk as usize].uses += 1;
                if bytes >= JOB_BYTES || i - from >= JOB_FILES {
                    jobs.push((self.singles[from].chunk, bytes, Job::Singles(from..i)));
                    (from, bytes) = (i, 0);
                }
            }
            bytes += u64::from(single.len);
        }
        if let Some(first) = self.singles.get(from) {
            jobs.push((first.chunk, bytes, Job::Singles(from..self.singles.len())));
        }
        for (number, group) in self.groups.iter().enumerate() {
            let content = content(targets, group[0]);
            let (mut last, mut bytes) = (None, 0);
            for extent in content {
                let chunk = self.numbers.get(&extent.chunk).copied().unwrap_or_default();
                if last.replace(chunk) != Some(chunk) {
                    self.chunks[chunk as usize].uses += 1;
                }
                bytes += u64::from(extent.len);
            }
            let first = self.number(&content[0].chunk)?;
            jobs.push((first, bytes * group.len() as u64, Job::Group(number)));
        }
        jobs.sort_unstable_by_key(|job| job.0);
        let (mut big, rest): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| job.1 > BIG);
        big.sort_unstable_by_key(|job| std::cmp::Reverse(job.1));
        let plain = (0..self.plain.len()).step_by(JOB_FILES);
        let plain = plain.map(|from| Job::Plain(from..self.plain.len().min(from + JOB_FILES)));
        let rest = plain.chain(rest.into_iter().map(|job| job.2)).collect();
        self.queue = Queue::new(big.into_iter().map(|job| job.2).collect(), rest, threads);
        Ok(())
    }
}

fn leaves(targets: &[Target]) -> impl Iterator<Item = (u32, u32, &NodeKind<Content>)> {
    let of = |(target, t): (usize, &'_ Target)| (target as u32, t.outline.leaves.len() as u32);
    let all = targets.iter().enumerate().map(of).collect::<Vec<_>>().into_iter();
    all.flat_map(|(target, count)| (0..count).map(move |leaf| (target, leaf)))
        .map(|(target, leaf)| (target, leaf, &targets[target as usize].outline.leaves[leaf as usize].kind))
}

/// The extents of a file.
pub(super) fn content(targets: &[Target], at: LeafAt) -> &[Extent] {
    match &targets[at.target as usize].outline.leaves[at.leaf as usize].kind {
        NodeKind::File { content, .. } => content,
        _ => &[],
    }
}

/// Jobs for several threads: first the big ones, then each thread goes through a part of the rest, and helps with
/// another's when it is done. So threads mostly read different parts of packs and write different directories.
#[derive(Default)]
pub(super) struct Queue {
    big: Vec<Job>,
    rest: Vec<Job>,
    left: Mutex<(usize, Vec<Range<usize>>)>,
}

impl Queue {
    fn new(big: Vec<Job>, rest: Vec<Job>, threads: usize) -> Self {
        let part = rest.len().div_ceil(threads).max(1);
        let ranges = (0..threads).map(|i| (i * part).min(rest.len())..((i + 1) * part).min(rest.len())).collect();
        Self { big, rest, left: Mutex::new((0, ranges)) }
    }

    /// The next job for thread `own`.
    pub(super) fn take(&self, own: usize) -> Option<&Job> {
        let mut left = self.left.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(job) = self.big.get(left.0) {
            left.0 += 1;
            return Some(job);
        }
        let ranges = &mut left.1;
        if ranges[own].is_empty() {
            let other = ranges.iter_mut().max_by_key(|range| range.len())?;
            let middle = other.start + other.len() / 2;
            let half = middle..other.end;
            other.end = middle;
            ranges[own] = half;
        }
        ranges[own].next().map(|at| &self.rest[at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_job_is_taken_once() {
        for (threads, jobs) in [(1, 5), (3, 0), (3, 2), (4, 101)] {
            let rest = (0..jobs).map(Job::Group).collect();
            let queue = Queue::new(vec![Job::Group(1000)], rest, threads);
            let mut taken = Vec::new();
            for turn in 0.. {
                // One thread does nearly all.
                let own = if turn % 7 == 0 { turn % threads } else { 0 };
                match queue.take(own) {
                    Some(Job::Group(n)) => taken.push(*n),
                    _ => break,
                }
            }
            assert_eq!(taken.remove(0), 1000);
            taken.sort_unstable();
            assert_eq!(taken, (0..jobs).collect::<Vec<_>>());
        }
    }
}
