//! Two trees made comparable: what the same names hold with equal content gets equal sources, so that
//! [`diff`](crate::tree::diff) sees only real changes.
//!
//! Attributes decide first. Where they and the size are equal the content must be read: a size and a time prove
//! nothing, since both can be set. Content on disk is compared by the ids its chunks would have, so that what is in the
//! store is neither read nor decoded.

use super::root::Content;
use super::source::{Source, SourceReader};
use crate::chunk::cutter::Cutter;
use crate::error::Result;
use crate::format::entry::{DataRange, Time, Xattr};
use crate::format::item::Extent;
use crate::id::ContentId;
use crate::observe::{Observer, check};
use crate::store::Store;
use crate::tree::{NodeId, NodeKind, Tree, pairs};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// Attributes that belong to the machine and not to the file: labels of a host's policy, sums over its inode numbers.
/// What a layer says of them stays; what a directory has of them is not looked at.
pub(crate) const OF_THE_HOST: [&[u8]; 2] = [b"security.selinux", b"security.evm"];

/// Bytes compared at a time.
const STEP: usize = 256 << 10;

/// A tree whose files may be in the store or on disk.
pub(crate) type SourceTree = Tree<Source>;

/// How to make trees comparable.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Comparing {
    /// No time of what is new or changed is later than this.
    pub(crate) epoch: Option<i64>,
    pub(crate) threads: usize,
}

/// Changes `upper` to what a layer over `lower` can and should say of it.
pub(crate) fn make_comparable(
    store: &Store,
    lower: &SourceTree,
    upper: &mut SourceTree,
    how: Comparing,
    observer: &dyn Observer,
) -> Result<()> {
    // By upper inode, those that are below at its names.
    let mut below: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
    for (looked, pair) in pairs(Some(lower), upper).enumerate() {
        if looked % 4096 == 0 {
            check(observer)?;
        }
        let ids = below.entry(pair.upper).or_default();
        ids.extend(pair.lower);
    }
    let mut doubtful = Vec::new();
    for (id, lowers) in below {
        settle_attributes(lower, upper, id, &lowers, how.epoch);
        let node = upper.node(id);
        let NodeKind::File { size, content, sparse } = &node.kind else { continue };
        let alike = |&other: &NodeId| {
            let before = lower.node(other);
            matches!(&before.kind, NodeKind::File { size: s, .. } if s == size) && before.attributes == node.attributes
        };
        let candidates: Vec<NodeId> = lowers.into_iter().filter(alike).collect();
        let same = |&other: &NodeId| matches!(&lower.node(other).kind, NodeKind::File { content: c, sparse: s, .. } if c == content && s == sparse);
        if !candidates.is_empty() && !candidates.iter().any(same) {
            doubtful.push((id, candidates));
        }
    }
    for (id, equal) in settle_contents(store, lower, upper, &doubtful, how.threads, observer)? {
        if let NodeKind::File { sparse, content, .. } = &lower.node(equal).kind {
            upper.set_content(id, sparse.clone(), content.clone());
        }
    }
    Ok(())
}

/// Clamps the time unless a layer below has given it, and takes host attributes from below.
fn settle_attributes(lower: &SourceTree, upper: &mut SourceTree, id: NodeId, lowers: &[NodeId], epoch: Option<i64>) {
    let before = |id: &NodeId| &lower.node(*id).attributes;
    let now = &upper.node(id).attributes;
    let latest = epoch.map(|secs| Time { secs, nanos: 0 });
    if let Some(latest) = latest.filter(|latest| now.mtime > *latest)
        && !lowers.iter().any(|id| before(id).mtime == now.mtime)
    {
        upper.attributes_mut(id).mtime = latest;
    }
    let host = |x: &&Xattr| OF_THE_HOST.contains(&&x.name[..]);
    let node = upper.node(id);
    let (kind, now) = (std::mem::discriminant(&node.kind), &node.attributes);
    let given = lowers.iter().find(|id| std::mem::discriminant(&lower.node(**id).kind) == kind).map(before);
    let given: Vec<&Xattr> = given.iter().flat_map(|a| a.xattrs.iter().filter(host)).collect();
    if now.xattrs.iter().filter(host).ne(given.iter().copied()) {
        let others = now.xattrs.iter().filter(|x| !host(x));
        let mut all: Vec<Xattr> = others.chain(given).cloned().collect();
        all.sort_unstable();
        upper.attributes_mut(id).xattrs = all.into();
    }
}

/// Of each inode's candidates, the first with equal content.
fn settle_contents(
    store: &Store,
    lower: &SourceTree,
    upper: &SourceTree,
    doubtful: &[(NodeId, Vec<NodeId>)],
    threads: usize,
    observer: &dyn Observer,
) -> Result<Vec<(NodeId, NodeId)>> {
    let (next, equal, failure) = (AtomicUsize::new(0), Mutex::new(Vec::new()), Mutex::new(None));
    let work = || {
        let mut cutter = Cutter::new(&store.chunking());
        while let Some((id, candidates)) = doubtful.get(next.fetch_add(1, Relaxed)) {
            let mut find = || -> Result<Option<NodeId>> {
                check(observer)?;
                for candidate in candidates {
                    if same_content(store, &mut cutter, (upper, *id), (lower, *candidate), observer)? {
                        return Ok(Some(*candidate));
                    }
                }
                Ok(None)
            };
            match find() {
                Ok(found) => {
                    let found = found.map(|found| (*id, found));
                    equal.lock().unwrap_or_else(PoisonError::into_inner).extend(found);
                }
                Err(e) => {
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
                    next.store(doubtful.len(), Relaxed);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        (1..threads.min(doubtful.len())).for_each(|_| drop(scope.spawn(work)));
        work();
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(e) => Err(e),
        None => Ok(equal.into_inner().unwrap_or_else(PoisonError::into_inner)),
    }
}

/// Whether two regular files of the same size have the same bytes.
fn same_content(
    store: &Store,
    cutter: &mut Cutter,
    (upper, id): (&SourceTree, NodeId),
    (lower, other): (&SourceTree, NodeId),
    observer: &dyn Observer,
) -> Result<bool> {
    let (a, b) = (&upper.node(id).kind, &lower.node(other).kind);
    let (NodeKind::File { size, sparse: sparse_a, content: a }, NodeKind::File { sparse: sparse_b, content: b, .. }) =
        (a, b)
    else {
        return Ok(false);
    };
    match (a, b) {
        (Source::Stored(a), Source::Stored(b)) if sparse_a == sparse_b && (cut(store, a) || cut(store, b)) => {
            // Cut alike and different: another content.
            Ok(a == b)
        }
        (Source::Disk(_), Source::Stored(_)) => disk_has(store, cutter, a, (*size, sparse_b.as_deref(), b), observer),
        _ => {
            let a = SourceReader::open(store, a, *size, sparse_a.as_deref())?;
            same_bytes(&a, &SourceReader::open(store, b, *size, sparse_b.as_deref())?, *size, observer)
        }
    }
}

/// Whether a regular file on disk has the bytes of one in the store: its size, its data ranges if it is sparse, and its
/// content. Both have the same size.
pub(crate) fn disk_has(
    store: &Store,
    cutter: &mut Cutter,
    disk: &Source,
    (size, sparse, stored): (u64, Option<&[DataRange]>, &Source),
    observer: &dyn Observer,
) -> Result<bool> {
    let reader = SourceReader::open(store, disk, size, None)?;
    if let Source::Stored(extents) = stored {
        let whole = [DataRange { offset: 0, len: size }];
        let ranges = sparse.unwrap_or(&whole);
        if let Some(same) = same_ids(store, cutter, &reader, (size, ranges, extents), observer)? {
            return Ok(same);
        }
    }
    same_bytes(&reader, &SourceReader::open(store, stored, size, sparse)?, size, observer)
}

/// Whether content was cut where its bytes say so, which every store does alike: not gathered into a bundle.
fn cut(store: &Store, extents: &Content) -> bool {
    extents.iter().map(|e| u64::from(e.len)).sum::<u64>() >= u64::from(store.chunking().small_file)
}

/// Whether a file would be stored as `extents`, with data in `ranges`; `None` if that can not be said by ids.
fn same_ids(
    store: &Store,
    cutter: &mut Cutter,
    reader: &SourceReader<'_>,
    (size, ranges, extents): (u64, &[DataRange], &Content),
    observer: &dyn Observer,
) -> Result<Option<bool>> {
    if !zeros_between(reader, size, ranges, observer)? {
        return Ok(Some(false));
    }
    if !cut(store, extents) {
        let len: u64 = ranges.iter().map(|r| r.len).sum();
        let (mut content, mut at) = (vec![0; len as usize], 0);
        for range in ranges {
            reader.read(&mut content[at..at + range.len as usize], range.offset)?;
            at += range.len as usize;
        }
        let place = store.with_index(|index| index.member(&ContentId::of(&content)))?;
        let same = place.is_some_and(
            |p| matches!(&extents[..], [Extent { chunk, offset, .. }] if (*chunk, *offset) == (p.chunk, p.offset)),
        );
        // Elsewhere it may be there a second time: two imports at once may have bundled it both.
        return Ok(same.then_some(true));
    }
    let (mut expected, same) = (extents.iter(), Cell::new(true));
    let mut emit = |chunk: &[u8]| {
        let next = expected.next();
        let equal = next.is_some_and(|e| e.len as usize == chunk.len() && e.chunk == ContentId::of(chunk));
        same.set(same.get() && equal);
        Ok(())
    };
    let mut buffer = vec![0; STEP];
    for range in ranges {
        let mut at = range.offset;
        while same.get() && at < range.offset + range.len {
            check(observer)?;
            let len = (range.offset + range.len - at).min(STEP as u64);
            reader.read(&mut buffer[..len as usize], at)?;
            cutter.push(&buffer[..len as usize], &mut emit)?;
            at += len;
        }
    }
    cutter.finish(&mut emit)?;
    Ok(Some(same.get() && expected.next().is_none()))
}

/// Whether all that is outside of `ranges` is zero.
fn zeros_between(reader: &SourceReader<'_>, size: u64, ranges: &[DataRange], observer: &dyn Observer) -> Result<bool> {
    let mut buffer = Vec::new();
    let mut at = 0;
    for range in ranges.iter().copied().chain([DataRange { offset: size, len: 0 }]) {
        while at < range.offset {
            check(observer)?;
            at = reader.data_from(at, size).min(range.offset);
            let len = (range.offset - at).min(STEP as u64);
            buffer.resize(len as usize, 0);
            reader.read(&mut buffer, at)?;
            if buffer.iter().any(|&b| b != 0) {
                return Ok(false);
            }
            at += len;
        }
        at = range.offset + range.len;
    }
    Ok(true)
}

fn same_bytes(a: &SourceReader<'_>, b: &SourceReader<'_>, size: u64, observer: &dyn Observer) -> Result<bool> {
    let (mut left, mut right) = (vec![0; STEP], vec![0; STEP]);
    let mut at = 0;
    loop {
        check(observer)?;
        // Where both have a hole they are equal.
        at = a.data_from(at, size).min(b.data_from(at, size));
        if at >= size {
            return Ok(true);
        }
        let len = (size - at).min(STEP as u64) as usize;
        a.read(&mut left[..len], at)?;
        b.read(&mut right[..len], at)?;
        if left[..len] != right[..len] {
            return Ok(false);
        }
        at += len as u64;
    }
}
