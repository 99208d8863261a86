//! What the benches of `benches/` and the fuzz targets of `fuzz/` need of the inside. No part of the API.

use crate::chunk::cutter::Cutter;
use crate::codec::chunk::{Compress, Decoder, Encoder};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::format::entry::{Entry, EntryKind};
use crate::format::erofs::{self, read::Image};
use crate::format::item::{Extent, Item, ItemEncoder, Items, RefExtent};
use crate::format::pack::{self, ADDRESS_LIMIT, BLOCK, Codec, FOOTER_LEN, Footer, Location, TableChunk};
use crate::format::params::Chunking;
use crate::format::record::{
    self, BLOCK_HEADER_LEN, Block, BlockBuilder, BlockHeader, HEADER_LEN, TRAILER_LEN, Trailer,
};
use crate::id::ContentId;
use crate::limits::Limits;
use crate::snapshot::{ExtractOptions, ExtractReport, build_image, extract};
use crate::store::{Change, Store};
use crate::tar::{Parser, Sink};
use crate::upkeep;
use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Cuts `content` as one file; the lengths of its chunks.
pub fn cut(content: &[u8], chunking: &Chunking) -> Vec<usize> {
    let (mut cutter, mut lengths) = (Cutter::new(chunking), Vec::new());
    let mut emit = |chunk: &[u8]| {
        lengths.push(chunk.len());
        Ok(())
    };
    let cut = cutter.push(content, &mut emit).and_then(|()| cutter.finish(&mut emit));
    cut.expect("emit does not fail");
    lengths
}

/// A chunk as a pack stores it.
pub struct StoredChunk {
    codec: Codec,
    bytes: Vec<u8>,
    raw_len: u32,
}

impl StoredChunk {
    /// Bytes stored.
    pub fn stored_len(&self) -> usize {
        self.bytes.len()
    }
}

/// A chunk encoder and decoder, as an import's worker and a reader have them.
pub struct ChunkCodec {
    encoder: Encoder,
    decoder: Decoder,
}

impl ChunkCodec {
    /// Sets both up.
    pub fn new(compress: Compress) -> Result<Self> {
        Ok(Self { encoder: Encoder::new(compress.validate()?)?, decoder: Decoder::new()? })
    }

    /// Bytes that `raw` takes.
    pub fn encoded_len(&mut self, raw: &[u8]) -> Result<usize> {
        self.encoder.encode(raw, true).map(|(_, stored)| stored.len())
    }

    /// What is stored for `raw`.
    pub fn encode(&mut self, raw: &[u8]) -> Result<StoredChunk> {
        let (codec, stored) = self.encoder.encode(raw, true)?;
        Ok(StoredChunk { codec, bytes: stored.to_vec(), raw_len: raw.len() as u32 })
    }

    /// The raw bytes again.
    pub fn decode(&mut self, chunk: &StoredChunk) -> Result<Vec<u8>> {
        self.decoder.decode(chunk.codec, chunk.bytes.clone(), chunk.raw_len)
    }
}

/// Extracts all layers of a chain as overlay's lower directories, numbered below `dest`.
pub fn layer_directories(
    store: &Store,
    layers: &[Digest],
    dest: &Path,
    options: &ExtractOptions,
) -> Result<ExtractReport> {
    let wanted: Vec<_> = (0..layers.len()).map(|at| (at, dest.join(at.to_string()))).collect();
    extract::layer_directories(store, layers, &wanted, options, &())
}

/// Counts what a tar's parser says.
#[derive(Default)]
struct Counter {
    entries: u64,
}

impl Sink for Counter {
    fn segment(&mut self, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn entry(&mut self, _: Entry) -> Result<()> {
        self.entries += 1;
        Ok(())
    }

    fn content(&mut self, _: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// Parses a tar pushed in pieces of 1 MiB, as an import does; the number of its entries.
pub fn parse_tar(tar: &[u8]) -> Result<u64> {
    let (mut parser, mut sink) = (Parser::new(&Limits::default()), Counter::default());
    tar.chunks(1 << 20).try_for_each(|piece| parser.push(piece, &mut sink))?;
    parser.finish()?;
    Ok(sink.entries)
}

/// Enters chunks that are nowhere into the index, in packs of a GiB that are nowhere either.
pub fn fill_index(store: &Store, chunks: u64) -> Result<()> {
    const BATCH: u64 = 500_000;
    // A chunk of 100 kB of content takes some 12 blocks; above the addresses of what is imported later.
    const BLOCKS: u64 = 12;
    const BASE: u64 = 1 << 40;
    let made_up = |n: u64| {
        let block = (BASE / BLOCK + n * BLOCKS) as u32;
        let location = Location { block, stored_len: 45_000, raw_len: 100_000, codec: Codec::Zstd };
        TableChunk { id: ContentId::of(&n.to_le_bytes()), location, sum: None, members: vec![] }
    };
    for first in (0..chunks).step_by(BATCH as usize) {
        let batch = (first..chunks.min(first + BATCH)).map(made_up).collect();
        store.with_index(|index| index.write(|change| change.add_chunks(batch)))?;
    }
    let len = (chunks * BLOCKS * BLOCK).next_multiple_of(1 << 30);
    let packs = |change: &Change<'_>| (0..len >> 30).try_for_each(|n| change.add_pack(BASE + (n << 30), 1 << 30));
    store.with_index(|index| index.write(packs))
}

/// gc's marking alone: how many chunks layers need, and how many there are.
pub fn mark(store: &Store) -> Result<(u64, u64)> {
    upkeep::mark(store)
}

/// The metadata image of layers.
pub fn erofs_image(store: &Store, layers: &[Digest]) -> Result<Vec<u8>> {
    build_image(store, &store.tree(layers, &())?, &())
}

/// Looks up every chunk by its id, one by one; how many there are.
pub fn look_up_all(store: &Store) -> Result<u64> {
    let ids: Vec<ContentId> =
        store.with_index(|index| index.chunks_after(0, u32::MAX))?.into_iter().map(|row| row.id).collect();
    store.with_index(|index| ids.iter().try_for_each(|id| index.chunk(id).map(drop)))?;
    Ok(ids.len() as u64)
}

/// Reads, decodes and hashes every chunk on threads, and compares nothing; bytes of content.
pub fn read_chunks(store: &Store, threads: NonZeroUsize) -> Result<u64> {
    let mut raw_len = 0;
    for (base, len) in store.with_index(|index| index.packs())? {
        let file = File::open(store.pack_path(base)).map_err(|e| Error::io("open", e))?;
        let rows = store.with_index(|index| index.chunks_in(&(base / BLOCK..(base + len) / BLOCK)))?;
        let next = AtomicUsize::new(0);
        let work = || {
            let (mut decoder, mut stored, mut raw) = (Decoder::new()?, vec![], vec![]);
            while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                stored.resize(row.location.stored_len as usize, 0);
                file.read_exact_at(&mut stored, row.location.address()).map_err(|e| Error::io("read", e))?;
                decoder.decode_into(row.location.codec, &mut stored, row.location.raw_len, &mut raw)?;
                std::hint::black_box(ContentId::of(&raw));
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads.get()).map(|_| scope.spawn(work)).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("decoding does not panic"))
        })?;
        raw_len += rows.iter().map(|row| u64::from(row.location.raw_len)).sum::<u64>();
    }
    Ok(raw_len)
}

/// Any bytes as a pack's table and footer, with sums put right if the first byte is odd: what is accepted lies inside
/// the pack, nothing overlaps, and it encodes to the same bytes.
pub fn pack_table(input: &[u8]) {
    let Some((flags, input)) = input.split_first() else { return };
    let Some(at) = input.len().checked_sub(FOOTER_LEN) else { return };
    let (table, tail) = input.split_at(at);
    let mut tail = tail.to_vec();
    if flags & 1 == 1 {
        // Magic, version, reserved bytes and counts that fit, so that the table is what is tried.
        let version = 1 + (flags >> 1 & 1);
        tail[..12].copy_from_slice(&[&b"LSpackFT"[..], &[version, 0, 0, 0]].concat());
        tail[20..24].fill(0);
        let members = u32::from_le_bytes([tail[16], tail[17], 0, 0]);
        let row = if version == 1 { 48 } else { 52 };
        let chunks = (table.len() as u64).saturating_sub(u64::from(members) * 36) / row;
        tail[12..16].copy_from_slice(&(chunks as u32).to_le_bytes());
        tail[16..20].copy_from_slice(&members.to_le_bytes());
        tail[40..72].copy_from_slice(blake3::hash(table).as_bytes());
        let sum = blake3::hash(&tail[..72]);
        tail[72..].copy_from_slice(sum.as_bytes());
    }
    let Ok(footer) = Footer::decode(&tail, ADDRESS_LIMIT) else { return };
    assert_eq!(footer.encode()[..], tail[..]);
    assert!(footer.base + BLOCK <= footer.table_address && footer.table_address < ADDRESS_LIMIT);
    let Ok(chunks) = pack::decode_table(table, &footer) else { return };
    let mut free = footer.base + BLOCK;
    for chunk in &chunks {
        let (start, end) = (u64::from(chunk.location.block) * BLOCK, chunk.location.end());
        assert!(free <= start && start < end && end <= footer.table_address);
        assert!((start..end).contains(&chunk.location.address()));
        let members: u64 = chunk.members.iter().map(|m| u64::from(m.len)).sum();
        assert!(chunk.members.is_empty() || members == u64::from(chunk.location.raw_len));
        free = end;
    }
    let (again, same) = pack::encode_table(footer.base, footer.table_address, &chunks);
    // An empty table of version 1 is written as one of version 2.
    assert!(again == table && (same == footer || chunks.is_empty()));
}

/// Any bytes as a layer record, whole and, if the first byte is odd, as the entries of a block whose sums are right:
/// what is accepted encodes and decodes to the same items.
pub fn layer_record(input: &[u8]) {
    let Some((flags, input)) = input.split_first() else { return };
    if flags & 1 == 0 {
        return whole_record(input);
    }
    let ids: Vec<_> = (0..flags >> 1).map(|n| ContentId::of(&[n])).collect();
    let Ok(items) = Items::new(input, &ids).collect::<Result<Vec<_>>>() else { return };
    let mut builder = BlockBuilder::<()> { items: encode(&items, &ids), refs: vec![(); ids.len()], segments: vec![] };
    let mut lens = items.iter().map(Item::segment);
    // More than a block may have is no record.
    let segments = lens.try_fold(0u64, |n, len| n.checked_add(len).filter(|&n| n <= 1 << 20));
    let Some(segments) = segments else { return };
    builder.segments.resize(segments as usize, 7);
    let segments = builder.segments.clone();
    let sealed = builder.seal(&ids).expect("sealing in memory");
    // A header states no more ids than entries have bytes, so few items with many ids are no record.
    let Ok(header) = BlockHeader::decode(&sealed.bytes[..BLOCK_HEADER_LEN]) else { return };
    let block = Block::decode(&header, &sealed.bytes[BLOCK_HEADER_LEN..]).expect("what was sealed can be read");
    assert_eq!((&block.ids, block.segments().expect("sealed")), (&ids, segments));
    assert_eq!(block.items().expect("what was sealed can be read"), items);
}

fn whole_record(input: &[u8]) {
    let Some(end) = input.len().checked_sub(TRAILER_LEN).filter(|&end| end >= HEADER_LEN) else { return };
    if let Ok(trailer) = Trailer::decode(&input[end..]) {
        assert_eq!(trailer.encode()[..], input[end..]);
    }
    let _ = record::check_header(&input[..HEADER_LEN]);
    let mut rest = &input[HEADER_LEN..end];
    while rest.len() >= BLOCK_HEADER_LEN {
        let Ok(header) = BlockHeader::decode(&rest[..BLOCK_HEADER_LEN]) else { return };
        rest = &rest[BLOCK_HEADER_LEN..];
        let Some((payload, after)) = rest.split_at_checked(header.payload_len()) else { return };
        let Ok(block) = Block::decode(&header, payload) else { return };
        let _ = (block.items(), block.segments());
        rest = after;
    }
}

/// Any bytes as a metadata image, with sums put right if the first byte is odd: what is accepted refers to blocks of its
/// packs only, and all of it can be walked.
pub fn erofs_read(input: &[u8]) {
    let Some((flags, input)) = input.split_first() else { return };
    let mut bytes = input.to_vec();
    if flags & 1 == 1 {
        erofs::reseal(&mut bytes);
    }
    let Ok(image) = Image::new(&bytes) else { return };
    assert!(flags & 1 == 0 || image.verify().is_ok());
    let _ = image.check();
    let Ok(ranges) = image.ranges() else { return };
    assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
    let packed = |block: u32| image.packs().iter().any(|p| (p.base..p.end).contains(&(u64::from(block) * BLOCK)));
    assert!(ranges.iter().all(|range| range.start < range.end && packed(range.start) && packed(range.end - 1)));
}

fn encode(items: &[Item], ids: &[ContentId]) -> ItemEncoder {
    let number = |e: &Extent| {
        let chunk = ids.iter().position(|id| *id == e.chunk).expect("a chunk of the block") as u32;
        RefExtent { chunk, offset: e.offset, len: e.len }
    };
    let numbers = |extents: &[Extent]| extents.iter().map(number).collect::<Vec<_>>();
    let mut encoder = ItemEncoder::default();
    for item in items {
        match item {
            Item::Entry { segment, entry, extents, more } => {
                assert!(extents.is_empty() || matches!(entry.kind, EntryKind::File { .. }));
                encoder.entry(entry, *segment, &numbers(extents), *more);
            }
            Item::More { extents, more } => encoder.more(&numbers(extents), *more),
            Item::Bytes(len) => encoder.bytes(*len),
        }
    }
    encoder
}

/// Inputs for the targets above that get far: `pack_table`, `layer_record` and `erofs_read`.
pub fn seeds() -> [(&'static str, Vec<u8>); 3] {
    use crate::format::entry::{Time, Xattr};
    use crate::format::pack::{Location, Member, TableChunk};
    let member = |bytes: &[u8]| Member { id: ContentId::of(bytes), len: bytes.len() as u32 };
    let location = |block, stored_len, raw_len, codec| Location { block, stored_len, raw_len, codec };
    let chunks = [
        TableChunk {
            id: ContentId::of(b"a"),
            location: location(2, 5000, 9000, Codec::Zstd),
            sum: Some(1),
            members: vec![],
        },
        TableChunk {
            id: ContentId::of(b"onetwo"),
            location: location(4, 6, 6, Codec::Raw),
            sum: Some(2),
            members: vec![member(b"one"), member(b"two")],
        },
    ];
    let (table, footer) = pack::encode_table(BLOCK, 5 * BLOCK, &chunks);
    let ids = [ContentId::of(&[0]), ContentId::of(&[1])];
    let xattrs = vec![Xattr { name: b"user.a".to_vec(), value: b"1".to_vec() }];
    let (kind, mtime) = (EntryKind::File { size: 9, sparse: None }, Time { secs: 1_700_000_000, nanos: 5 });
    let entry = Entry { path: b"etc/a".to_vec(), kind, mode: 0o644, uid: 0, gid: 1, mtime, xattrs };
    let link = Entry {
        path: b"etc/b".to_vec(),
        kind: EntryKind::Hardlink { target: b"etc/a".to_vec() },
        xattrs: vec![],
        ..entry.clone()
    };
    let extent = |n: usize, len| Extent { chunk: ids[n], offset: 0, len };
    let items = [
        Item::Entry { segment: 512, entry, extents: vec![extent(0, 4)], more: true },
        Item::More { extents: vec![extent(1, 5)], more: false },
        Item::Entry { segment: 512, entry: link, extents: vec![], more: false },
        Item::Bytes(1024),
    ];
    [
        ("pack_table", [&[3][..], &table, &footer.encode()].concat()),
        ("layer_record", [&[5][..], &encode(&items, &ids).finish()].concat()),
        ("erofs_read", [&[1][..], &erofs::sample::image()].concat()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seeds in `fuzz/seeds` are these, and get past every check.
    #[test]
    fn seeds_are_as_they_are_made() {
        for (target, seed) in seeds() {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target).join("sound");
            if std::env::var_os("LAYERSTORE_WRITE_SEEDS").is_some() {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(&path, &seed).unwrap();
            }
            assert_eq!(std::fs::read(&path).unwrap(), seed, "{target}");
        }
        let [(_, table), (_, record), (_, image)] = seeds();
        erofs_read(&image);
        assert!(Image::new(&image[1..]).and_then(|image| image.check()).is_ok());
        pack_table(&table);
        layer_record(&record);
        assert_eq!(Items::new(&record[1..], &[ContentId::of(&[0]), ContentId::of(&[1])]).count(), 4);
    }
}
