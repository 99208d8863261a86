//! The items of a layer record's block: entries with their extents, and runs of verbatim tar bytes.
//!
//! `docs/FORMAT.md`, section "Items", is the authority. Each item is a tag byte and varints; paths share a prefix with
//! the path before, times and chunk numbers are differences, and what can be computed is left out. State runs
//! through one block and starts anew with the next.

use super::bytes::{Cursor, delta, put_signed, put_string, put_varint};
use super::entry::{DataRange, Entry, EntryKind, Time, Xattr};
use super::pack::CHUNK_RAW_MAX;
use crate::error::{Error, Result};
use crate::id::ContentId;

/// A piece of a chunk that holds a piece of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// The chunk.
    pub chunk: ContentId,
    /// Offset in the raw chunk, bytes.
    pub offset: u32,
    /// Length, bytes; never 0.
    pub len: u32,
}

/// An [`Extent`] whose chunk is told by its number in the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RefExtent {
    pub(crate) chunk: u32,
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

/// One item of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// `segment` verbatim bytes, then the entry, whose content is in `extents`; `more` says that they go on.
    Entry { segment: u64, entry: Entry, extents: Vec<Extent>, more: bool },
    /// Further extents of the entry before.
    More { extents: Vec<Extent>, more: bool },
    /// Verbatim bytes that no entry follows in this block.
    Bytes(u64),
}

impl Item {
    /// How many verbatim bytes go with it.
    pub(crate) fn segment(&self) -> u64 {
        match self {
            Self::Entry { segment: len, .. } | Self::Bytes(len) => *len,
            Self::More { .. } => 0,
        }
    }
}

const TAG_MASK: u8 = 0x0f;
/// The entry's extents go on in the next item.
const MORE: u8 = 0x40;
const XATTRS: u8 = 0x80;
const TAG_MORE: u8 = 8;
const TAG_BYTES: u8 = 9;
const MODE_MAX: u64 = 0o7777;

fn tag(kind: &EntryKind) -> u8 {
    match kind {
        EntryKind::Directory => 0,
        EntryKind::File { sparse: None, .. } => 1,
        EntryKind::File { sparse: Some(_), .. } => 2,
        EntryKind::Symlink { .. } => 3,
        EntryKind::Hardlink { .. } => 4,
        EntryKind::CharDevice { .. } => 5,
        EntryKind::BlockDevice { .. } => 6,
        EntryKind::Fifo => 7,
    }
}

/// Where the next extent is expected, so that the usual case costs two zero bytes.
#[derive(Default)]
struct ExtentState {
    chunk: u64,
    end: u64,
}

/// Encodes items into a block's entries section.
#[derive(Default)]
pub(crate) struct ItemEncoder {
    out: Vec<u8>,
    path: Vec<u8>,
    secs: u64,
    extents: ExtentState,
}

impl ItemEncoder {
    pub(crate) fn len(&self) -> usize {
        self.out.len()
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.out
    }

    pub(crate) fn bytes(&mut self, len: u64) {
        self.out.push(TAG_BYTES);
        put_varint(&mut self.out, len);
    }

    pub(crate) fn more(&mut self, extents: &[RefExtent], more: bool) {
        self.out.push(TAG_MORE | if more { MORE } else { 0 });
        self.put_extents(extents);
    }

    pub(crate) fn entry(&mut self, entry: &Entry, segment: u64, extents: &[RefExtent], more: bool) {
        let flags = if more { MORE } else { 0 } | if entry.xattrs.is_empty() { 0 } else { XATTRS };
        self.out.push(tag(&entry.kind) | flags);
        put_varint(&mut self.out, segment);
        let shared = self.path.iter().zip(&entry.path).take_while(|(a, b)| a == b).count();
        put_varint(&mut self.out, shared as u64);
        put_string(&mut self.out, &entry.path[shared..]);
        self.path.clone_from(&entry.path);
        put_varint(&mut self.out, entry.mode.into());
        put_varint(&mut self.out, entry.uid.into());
        put_varint(&mut self.out, entry.gid.into());
        put_signed(&mut self.out, delta(self.secs, entry.mtime.secs as u64));
        self.secs = entry.mtime.secs as u64;
        put_varint(&mut self.out, entry.mtime.nanos.into());
        if !entry.xattrs.is_empty() {
            put_varint(&mut self.out, entry.xattrs.len() as u64);
            for x in &entry.xattrs {
                put_string(&mut self.out, &x.name);
                put_string(&mut self.out, &x.value);
            }
        }
        self.put_kind(&entry.kind);
        if matches!(entry.kind, EntryKind::File { .. }) {
            self.put_extents(extents);
        }
    }

    fn put_kind(&mut self, kind: &EntryKind) {
        let out = &mut self.out;
        match kind {
            EntryKind::Directory | EntryKind::Fifo => {}
            EntryKind::File { size, sparse } => {
                put_varint(out, *size);
                let Some(ranges) = sparse else { return };
                put_varint(out, ranges.len() as u64);
                let mut end = 0;
                for r in ranges {
                    put_varint(out, r.offset.wrapping_sub(end));
                    put_varint(out, r.len);
                    end = r.offset.wrapping_add(r.len);
                }
            }
            EntryKind::Symlink { target } | EntryKind::Hardlink { target } => put_string(out, target),
            EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } => {
                put_varint(out, (*major).into());
                put_varint(out, (*minor).into());
            }
        }
    }

    fn put_extents(&mut self, extents: &[RefExtent]) {
        let out = &mut self.out;
        put_varint(out, extents.len() as u64);
        for e in extents {
            let state = &mut self.extents;
            put_signed(out, delta(state.chunk, e.chunk.into()));
            if state.chunk != u64::from(e.chunk) {
                state.end = 0;
            }
            put_signed(out, delta(state.end, e.offset.into()));
            put_varint(out, e.len.into());
            *state = ExtentState { chunk: e.chunk.into(), end: u64::from(e.offset) + u64::from(e.len) };
        }
    }
}

/// Decodes a block's entries section. After an error it yields nothing more.
pub(crate) struct Items<'a> {
    cursor: Cursor<'a>,
    ids: &'a [ContentId],
    path: Vec<u8>,
    secs: u64,
    extents: ExtentState,
    failed: bool,
}

impl<'a> Items<'a> {
    pub(crate) fn new(bytes: &'a [u8], ids: &'a [ContentId]) -> Self {
        let extents = ExtentState::default();
        Self { cursor: Cursor::new(bytes), ids, path: vec![], secs: 0, extents, failed: false }
    }

    fn item(&mut self) -> Result<Item> {
        let tag = self.cursor.u8()?;
        let more = tag & MORE != 0;
        match tag & TAG_MASK {
            TAG_BYTES if tag == TAG_BYTES => Ok(Item::Bytes(self.cursor.varint()?)),
            TAG_MORE if tag & !MORE == TAG_MORE => Ok(Item::More { extents: self.take_extents()?, more }),
            0..=7 if tag & 0x30 == 0 => self.entry(tag, more),
            _ => Err(Error::corrupt("unknown item in a layer record").actual(tag)),
        }
    }

    fn entry(&mut self, tag: u8, more: bool) -> Result<Item> {
        let c = &mut self.cursor;
        let segment = c.varint()?;
        let shared = c.count(self.path.len())?;
        self.path.truncate(shared);
        self.path.extend_from_slice(c.string()?);
        let mode = c.count(MODE_MAX as usize)? as u16;
        let (uid, gid) = (id(c)?, id(c)?);
        self.secs = self.secs.wrapping_add(c.signed()? as u64);
        let nanos = c.count(999_999_999)? as u32;
        let xattrs = if tag & XATTRS == 0 { vec![] } else { take_xattrs(c)? };
        let kind = take_kind(c, tag & TAG_MASK)?;
        let is_file = matches!(kind, EntryKind::File { .. });
        let extents = if is_file { self.take_extents()? } else { vec![] };
        if more && !is_file {
            return Err(Error::corrupt("extents of what is not a file"));
        }
        let mtime = Time { secs: self.secs as i64, nanos };
        let entry = Entry { path: self.path.clone(), kind, mode, uid, gid, mtime, xattrs };
        Ok(Item::Entry { segment, entry, extents, more })
    }

    fn take_extents(&mut self) -> Result<Vec<Extent>> {
        let c = &mut self.cursor;
        // Three bytes is the least an extent takes, so a claimed count cannot make us reserve more than we were given.
        let count = c.count(c.remaining() / 3)?;
        let mut out = Vec::with_capacity(count);
        for _ in 0..count {
            let state = &mut self.extents;
            let number = state.chunk.wrapping_add(c.signed()? as u64);
            if number != state.chunk {
                state.end = 0;
            }
            let offset = state.end.wrapping_add(c.signed()? as u64);
            let len = c.varint()?;
            let chunk = usize::try_from(number).ok().and_then(|n| self.ids.get(n)).copied();
            let (Some(chunk), Ok(offset32), Ok(len32)) = (chunk, u32::try_from(offset), u32::try_from(len)) else {
                return Err(Error::corrupt("extent points outside any chunk"));
            };
            if len == 0 || offset + len > CHUNK_RAW_MAX.into() {
                return Err(Error::corrupt("extent is empty or longer than any chunk"));
            }
            *state = ExtentState { chunk: number, end: offset + len };
            out.push(Extent { chunk, offset: offset32, len: len32 });
        }
        Ok(out)
    }
}

impl Iterator for Items<'_> {
    type Item = Result<Item>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.cursor.is_empty() {
            return None;
        }
        let item = self.item();
        self.failed = item.is_err();
        Some(item)
    }
}

fn id(c: &mut Cursor<'_>) -> Result<u32> {
    Ok(c.count(u32::MAX as usize - 1)? as u32)
}

fn device(c: &mut Cursor<'_>) -> Result<u32> {
    Ok(c.count(u32::MAX as usize)? as u32)
}

fn take_xattrs(c: &mut Cursor<'_>) -> Result<Vec<Xattr>> {
    let count = c.count(c.remaining() / 2)?;
    (0..count).map(|_| Ok(Xattr { name: c.string()?.to_vec(), value: c.string()?.to_vec() })).collect()
}

fn take_kind(c: &mut Cursor<'_>, tag: u8) -> Result<EntryKind> {
    Ok(match tag {
        0 => EntryKind::Directory,
        1 => EntryKind::File { size: c.varint()?, sparse: None },
        2 => take_sparse(c)?,
        3 => EntryKind::Symlink { target: c.string()?.to_vec() },
        4 => EntryKind::Hardlink { target: c.string()?.to_vec() },
        5 => EntryKind::CharDevice { major: device(c)?, minor: device(c)? },
        6 => EntryKind::BlockDevice { major: device(c)?, minor: device(c)? },
        _ => EntryKind::Fifo,
    })
}

fn take_sparse(c: &mut Cursor<'_>) -> Result<EntryKind> {
    let size = c.varint()?;
    let count = c.count(c.remaining() / 2)?;
    let mut ranges = Vec::with_capacity(count);
    let mut end = 0u64;
    for _ in 0..count {
        let (gap, len) = (c.varint()?, c.varint()?);
        let offset = end.checked_add(gap);
        let Some((offset, stop)) = offset.and_then(|o| Some((o, o.checked_add(len)?))).filter(|&(_, s)| s <= size)
        else {
            return Err(Error::corrupt("sparse range outside its file"));
        };
        ranges.push(DataRange { offset, len });
        end = stop;
    }
    Ok(EntryKind::File { size, sparse: Some(ranges) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kinds() -> impl Strategy<Value = EntryKind> {
        let bytes = || proptest::collection::vec(any::<u8>(), 1..20);
        let sparse = proptest::collection::vec((0u64..1000, 0u64..1000), 0..5).prop_map(|gaps| {
            let mut end = 0;
            let range = |(gap, len)| {
                let offset = end + gap;
                end = offset + len;
                DataRange { offset, len }
            };
            let ranges: Vec<_> = gaps.into_iter().map(range).collect();
            EntryKind::File { size: ranges.last().map_or(0, |r| r.offset + r.len), sparse: Some(ranges) }
        });
        prop_oneof![
            Just(EntryKind::Directory),
            Just(EntryKind::Fifo),
            any::<u64>().prop_map(|size| EntryKind::File { size, sparse: None }),
            sparse,
            bytes().prop_map(|target| EntryKind::Symlink { target }),
            bytes().prop_map(|target| EntryKind::Hardlink { target }),
            (any::<u32>(), any::<u32>()).prop_map(|(major, minor)| EntryKind::CharDevice { major, minor }),
            (any::<u32>(), any::<u32>()).prop_map(|(major, minor)| EntryKind::BlockDevice { major, minor }),
        ]
    }

    prop_compose! {
        fn entries()(
            path in proptest::collection::vec(any::<u8>(), 0..30),
            kind in kinds(),
            mode in 0u16..=0o7777,
            uid in 0..u32::MAX,
            gid in 0..u32::MAX,
            secs: i64,
            nanos in 0u32..1_000_000_000,
            xattrs in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..9), any::<[u8; 3]>()), 0..3),
        ) -> Entry {
            let xattrs = xattrs.into_iter().map(|(name, value)| Xattr { name, value: value.to_vec() }).collect();
            Entry { path, kind, mode, uid, gid, mtime: Time { secs, nanos }, xattrs }
        }
    }

    proptest! {
        #[test]
        fn items_round_trip(list in proptest::collection::vec((entries(), any::<u64>(),
            proptest::collection::vec((0u32..4, 0u32..1 << 19, 1u32..1 << 19), 0..4), any::<bool>()), 0..20)) {
            let ids: Vec<_> = (0u8..4).map(|n| ContentId::of(&[n])).collect();
            let mut enc = ItemEncoder::default();
            let mut want = vec![];
            for (entry, segment, refs, more) in list {
                let is_file = matches!(entry.kind, EntryKind::File { .. });
                let refs: Vec<_> = refs.into_iter().filter(|_| is_file)
                    .map(|(chunk, offset, len)| RefExtent { chunk, offset, len }).collect();
                let extents: Vec<_> = refs.iter()
                    .map(|r| Extent { chunk: ids[r.chunk as usize], offset: r.offset, len: r.len }).collect();
                enc.entry(&entry, segment, &refs, more && is_file);
                want.push(Item::Entry { segment, entry, extents: extents.clone(), more: more && is_file });
                enc.more(&refs, more);
                want.push(Item::More { extents, more });
                enc.bytes(segment);
                want.push(Item::Bytes(segment));
            }
            let bytes = enc.finish();
            let got: Vec<_> = Items::new(&bytes, &ids).collect::<Result<_>>().unwrap();
            prop_assert_eq!(got, want);
            for cut in 0..bytes.len().min(64) {
                // A cut stream never panics; it ends or errors.
                let _ = Items::new(&bytes[..cut], &ids).count();
            }
        }

        #[test]
        fn any_bytes_are_an_error_or_items(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let ids = [ContentId::of(b"")];
            prop_assert!(Items::new(&bytes, &ids).count() <= bytes.len());
        }
    }
}
