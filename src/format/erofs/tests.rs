//! The writer against the reader, on trees of all shapes.

use super::read::{Content, Image};
use super::write::{Body, Data, Inode, Source, build, chunks_fit};
use super::{BLOCK_LEN, Pack};
use crate::error::ErrorKind;
use crate::format::entry::{Time, Xattr};
use crate::format::pack::{BLOCK, Codec, Location};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap};

/// A tree as tests make it: plain values, directories by name.
#[derive(Clone, Debug)]
struct Model {
    mode: u16,
    uid: u32,
    mtime: Time,
    xattrs: Vec<Xattr>,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Directory(BTreeMap<Vec<u8>, Model>),
    Empty,
    /// Raw lengths and codecs of its chunks.
    Chunks(Vec<(u32, u8)>),
    /// The bundle, offset and length, each taken modulo what there is.
    Fragment(u32, u32, u32),
    Inside(u8, Vec<Option<u8>>, u16),
    Symlink(Vec<u8>),
    Device(bool, u32, u32),
    Fifo,
    /// Another name of an inode made before.
    Link,
}

fn time() -> impl Strategy<Value = Time> {
    (any::<i64>(), 0u32..1_000_000_000).prop_map(|(secs, nanos)| Time { secs, nanos })
}

const NAMES: [&str; 5] = ["user.a", "user.b", "security.capability", "system.posix_acl_default", "trusted.t"];

fn xattr() -> impl Strategy<Value = Xattr> {
    let values = prop_oneof![Just(vec![]), Just(vec![1; 40]), proptest::collection::vec(any::<u8>(), 0..600)];
    (proptest::sample::select(&NAMES[..]), values).prop_map(|(n, value)| Xattr { name: n.into(), value })
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        Just(Kind::Empty),
        Just(Kind::Fifo),
        Just(Kind::Link),
        (proptest::collection::vec((8192u32..300_000, 0u8..3), 0..4), 1u32..9000, 0u8..3).prop_map(
            |(mut c, n, codec)| {
                c.push((n, codec));
                Kind::Chunks(c)
            }
        ),
        (any::<u32>(), any::<u32>(), 1u32..9000).prop_map(|(b, o, l)| Kind::Fragment(b, o, l)),
        (0u8..3, proptest::collection::vec(any::<Option<u8>>(), 1..6), 1u16..4096)
            .prop_map(|(bits, pieces, last)| Kind::Inside(bits, pieces, last)),
        prop_oneof![1usize..100, 3900usize..4096].prop_map(|n| Kind::Symlink(vec![b't'; n])),
        (any::<bool>(), 0u32..4096, 0u32..1 << 20).prop_map(|(c, major, minor)| Kind::Device(c, major, minor)),
    ]
}

/// A list of nodes, each with a name and a number that says which of the directories before it is its parent.
fn model() -> impl Strategy<Value = Model> {
    let attributes = || (0u16..0o10000, any::<u32>(), time(), proptest::collection::vec(xattr(), 0..3));
    let with = |((mode, uid, mtime, xattrs), kind)| {
        // Names are unique: of two attributes of a name the later stays.
        let by_name: BTreeMap<_, _> = Vec::from_iter(xattrs).into_iter().map(|x: Xattr| (x.name.clone(), x)).collect();
        Model { mode, uid, mtime, xattrs: by_name.into_values().collect(), kind }
    };
    let name = prop_oneof!["[!-.a-z]{1,20}", "[a-z]{200,255}"].prop_filter("dots", |n| n != "." && n != "..");
    let kind = prop_oneof![1 => Just(Kind::Directory(BTreeMap::new())), 4 => kind()];
    let node = (any::<prop::sample::Index>(), name, (attributes(), kind).prop_map(with));
    let root = attributes().prop_map(move |a| with((a, Kind::Directory(BTreeMap::new()))));
    (root, proptest::collection::vec(node, 0..80)).prop_map(|(root, nodes)| {
        let mut below: Vec<BTreeMap<Vec<u8>, Model>> = vec![BTreeMap::new()];
        let mut places = vec![];
        for (parent, name, node) in nodes {
            let parent = parent.index(below.len());
            if let Kind::Directory(_) = node.kind {
                below.push(BTreeMap::new());
                places.push((parent, name, node));
            } else {
                below[parent].insert(name.into_bytes(), node);
            }
        }
        for (parent, name, node) in places.into_iter().rev() {
            let kind = Kind::Directory(below.pop().unwrap_or_default());
            below[parent].insert(name.into_bytes(), Model { kind, ..node });
        }
        Model { kind: Kind::Directory(below.remove(0)), ..root }
    })
}

fn location(block: u32, raw_len: u32, codec: Codec) -> Location {
    let stored_len = if codec == Codec::Raw { raw_len } else { raw_len.div_ceil(3) };
    Location { block, stored_len, raw_len, codec }
}

/// What a model becomes: the source, and the names that are to be found with their inodes.
struct Made<'m> {
    inodes: Vec<Inode<'m>>,
    names: Vec<(Vec<u8>, usize)>,
    next_block: u32,
    bundles: Vec<Location>,
}

impl<'m> Made<'m> {
    fn new(root: &'m Model, bundles: &[u32]) -> Self {
        let mut made = Self { inodes: vec![], names: vec![], next_block: 2, bundles: vec![] };
        for (i, &len) in bundles.iter().enumerate() {
            let bundle = made.chunk(len, i as u8 % 3);
            made.bundles.push(bundle);
        }
        made.add(root, vec![], 0);
        made
    }

    fn chunk(&mut self, len: u32, codec: u8) -> Location {
        let location = location(self.next_block, len, Codec::from_u8(codec).expect("a codec"));
        self.next_block += location.blocks() as u32;
        location
    }

    fn add(&mut self, model: &'m Model, path: Vec<u8>, parent: u32) -> u32 {
        let number = self.inodes.len() as u32;
        if let (Kind::Link, Some(before)) = (&model.kind, (1..self.inodes.len()).rev().find(|i| self.can_link(*i))) {
            self.inodes[before].links += 1;
            self.names.push((path, before));
            return before as u32;
        }
        let (mode, uid, mtime) = (model.mode, model.uid, model.mtime);
        let inode = |body| Inode { mode, uid, gid: !uid, mtime, links: 1, xattrs: &model.xattrs, body };
        // A directory counts as one from the start, so that no link in it goes to it.
        self.inodes.push(inode(Body::Directory { children: vec![], parent }));
        self.names.push((path.clone(), number as usize));
        let body = match &model.kind {
            Kind::Directory(below) => {
                let children = below.iter().map(|(name, child)| {
                    let slash = if path.is_empty() { &b""[..] } else { b"/" };
                    (&name[..], self.add(child, [&path[..], slash, name].concat(), number))
                });
                Body::Directory { children: children.collect(), parent }
            }
            other => self.leaf(other),
        };
        self.inodes[number as usize].body = body;
        number
    }

    fn can_link(&self, i: usize) -> bool {
        !matches!(self.inodes[i].body, Body::Directory { .. }) && i + 1 < self.inodes.len()
    }

    fn leaf(&mut self, kind: &'m Kind) -> Body<'m> {
        match kind {
            Kind::Chunks(list) => {
                let chunks: Vec<_> = list.iter().map(|&(len, codec)| self.chunk(len, codec)).collect();
                assert!(chunks_fit(&chunks));
                Body::File { size: list.iter().map(|c| u64::from(c.0)).sum(), data: Data::Chunks(chunks) }
            }
            Kind::Fragment(bundle, offset, len) if !self.bundles.is_empty() => {
                let bundle = bundle % self.bundles.len() as u32;
                let raw = self.bundles[bundle as usize].raw_len;
                let offset = offset % raw;
                Body::File { size: (*len).min(raw - offset).into(), data: Data::Fragment { bundle, offset } }
            }
            Kind::Inside(bits, pieces, last) => {
                let each = BLOCK_LEN << bits;
                let len = |i| if i + 1 < pieces.len() { each } else { usize::from(*last) };
                let size = (0..pieces.len()).map(|i| len(i) as u64).sum();
                let pieces = pieces.iter().enumerate().map(|(i, fill)| fill.map(|fill| vec![fill; len(i)])).collect();
                Body::File { size, data: Data::Inside { bits: *bits, pieces } }
            }
            Kind::Symlink(target) => Body::Symlink(target),
            Kind::Device(true, major, minor) => Body::CharDevice { major: *major, minor: *minor },
            Kind::Device(false, major, minor) => Body::BlockDevice { major: *major, minor: *minor },
            Kind::Fifo | Kind::Directory(_) => Body::Fifo,
            Kind::Empty | Kind::Fragment(..) | Kind::Link => Body::File { size: 0, data: Data::Chunks(vec![]) },
        }
    }

    fn source(self) -> (Source<'m>, Vec<(Vec<u8>, usize)>) {
        let middle = u64::from(self.next_block);
        let packs = vec![Pack { base: BLOCK, end: (middle + 3) * BLOCK }];
        (Source { inodes: self.inodes, bundles: self.bundles, packs }, self.names)
    }
}

/// Every path of an image with its inode's number.
fn paths(image: &Image<'_>) -> Vec<(Vec<u8>, u64)> {
    let (mut found, mut pending) = (vec![], vec![(vec![], image.root())]);
    while let Some((path, nid)) = pending.pop() {
        let inode = image.inode(nid).expect("an inode");
        if image.content(&inode).expect("content") == Content::Directory {
            for (name, child) in image.names(&inode).expect("names") {
                let slash = if path.is_empty() { &b""[..] } else { b"/" };
                pending.push(([&path[..], slash, name].concat(), child));
            }
        }
        found.push((path, nid));
    }
    found.sort();
    found
}

/// Compares an inode read back with its source.
fn check(image: &Image<'_>, nid: u64, source: &Source<'_>, number: usize, starts: &HashMap<u32, u64>) {
    let (inode, wanted) = (image.inode(nid).expect("an inode"), &source.inodes[number]);
    assert_eq!(inode.mode & 0o7777, wanted.mode);
    assert_eq!((inode.uid, inode.gid, inode.mtime), (wanted.uid, wanted.gid, wanted.mtime));
    assert_eq!(image.xattrs(&inode).expect("xattrs"), wanted.xattrs);
    let found = image.content(&inode).expect("content");
    let expected = match &wanted.body {
        Body::Directory { children, .. } => {
            let below =
                children.iter().filter(|(_, c)| matches!(source.inodes[*c as usize].body, Body::Directory { .. }));
            assert_eq!(inode.links as usize, 2 + below.count());
            return assert_eq!(found, Content::Directory);
        }
        Body::Symlink(target) => Content::Symlink(target.to_vec()),
        Body::CharDevice { major, minor } => Content::CharDevice(*major, *minor),
        Body::BlockDevice { major, minor } => Content::BlockDevice(*major, *minor),
        Body::Fifo => Content::Fifo,
        Body::File { size, data } => {
            assert_eq!(inode.size, *size);
            match (data, found.clone()) {
                _ if *size == 0 => Content::Chunks(vec![]),
                (Data::Chunks(chunks), Content::Chunks(heads)) => {
                    let mut start = 0;
                    assert_eq!(chunks.len(), heads.len());
                    for (chunk, head) in chunks.iter().zip(heads) {
                        assert_eq!((head.start, image.store_block(head.block)), (start, Some(chunk.block)));
                        start += u64::from(chunk.raw_len);
                        let extra = u64::from(head.blocks) - chunk.blocks();
                        assert!(extra == 0 || extra == 1 && start == *size && chunk.codec == Codec::Raw);
                        assert_eq!(head.codec, chunk.codec);
                    }
                    found.clone()
                }
                (Data::Fragment { bundle, offset }, _) => {
                    let block = source.bundles[*bundle as usize].block;
                    Content::Fragment(starts[&block] + u64::from(*offset))
                }
                (Data::Inside { bits, pieces }, _) => {
                    Content::Inside(BLOCK << bits, pieces.iter().map(Option::as_deref).collect())
                }
                (_, other) => panic!("{other:?}"),
            }
        }
    };
    assert_eq!(inode.links, wanted.links);
    assert_eq!(found, expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn any_tree_comes_back(
        root in model(), bundles in proptest::collection::vec(prop_oneof![1u32..200, 1u32..9000, 1u32..300_000], 0..6),
    ) {
        let (source, mut names) = Made::new(&root, &bundles).source();
        let bytes = build(&source).expect("an image");
        prop_assert_eq!(&bytes, &build(&source).expect("an image"), "the same bytes each time");
        let image = Image::new(&bytes).expect("an image");
        image.verify().expect("intact");
        prop_assert_eq!(image.packs(), &source.packs[..]);

        names.sort();
        let found = paths(&image);
        prop_assert_eq!(found.len(), names.len());
        let packed = image.packed().expect("the packed inode");
        let start = |head: &super::index::Head| (image.store_block(head.block).expect("in a pack"), head.start);
        let starts = packed.iter().map(start).collect();
        let mut nids = HashMap::new();
        for ((path, nid), (wanted, number)) in found.iter().zip(&names) {
            prop_assert_eq!(path, wanted);
            prop_assert_eq!(nids.entry(*number).or_insert(*nid), nid, "one inode for all names of a file");
            check(&image, *nid, &source, *number, &starts);
        }
        let mut count = 0;
        image.inodes(|_, _| { count += 1; Ok(()) }).expect("inodes");
        prop_assert_eq!(count, source.inodes.len());
        all_blocks(&image, &source);
    }
}

/// gc depends on this: no chunk that the source refers to is left out.
fn all_blocks(image: &Image<'_>, source: &Source<'_>) {
    let ranges = image.ranges().expect("ranges");
    assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "ascending and disjoint");
    let covered = |l: &Location| {
        let end = l.block + l.blocks() as u32;
        ranges.iter().any(|range| range.start <= l.block && end <= range.end)
    };
    assert!(source.bundles.iter().all(covered));
    for inode in &source.inodes {
        if let Body::File { data: Data::Chunks(chunks), .. } = &inode.body {
            assert!(chunks.iter().all(covered));
        }
    }
}

fn inode(body: Body<'_>) -> Inode<'_> {
    let mtime = Time { secs: 1_700_000_000, nanos: 5 };
    Inode { mode: 0o644, uid: 70_000, gid: 3, mtime, links: 1, xattrs: &[], body }
}

/// A directory or symlink of whole blocks has no tail: the kernel would look for a block of it beside the inode.
#[test]
fn names_that_fill_blocks_stand_in_blocks() {
    // 25 + 255 x 15 names and their entries: two blocks to the byte, with the dots.
    for extra in 0..=60usize {
        let len = |i: usize| if i == 0 { 1 + extra } else { 100 };
        let names: Vec<Vec<u8>> =
            (0..36).map(|i| format!("{i:0>width$}", width = len(i).max(2)).into_bytes()).collect();
        let mut children: Vec<(&[u8], u32)> = names.iter().map(|n| (&n[..], 1)).collect();
        children.sort_unstable();
        let inodes = vec![inode(Body::Directory { children, parent: 0 }), inode(Body::Fifo)];
        let bytes = build(&Source { inodes, bundles: vec![], packs: vec![] }).expect("an image");
        let image = Image::new(&bytes).expect("an image");
        assert_eq!(image.names(&image.inode(image.root()).expect("the root")).expect("names").len(), 36, "{extra}");
    }
    let target = vec![b't'; BLOCK_LEN];
    let inodes = vec![inode(Body::Directory { children: vec![(b"l", 1)], parent: 0 }), inode(Body::Symlink(&target))];
    let bytes = build(&Source { inodes, bundles: vec![], packs: vec![] }).expect("an image");
    let image = Image::new(&bytes).expect("an image");
    let (_, nid) = paths(&image).pop().expect("the link");
    assert_eq!(image.content(&image.inode(nid).expect("inode")).expect("content"), Content::Symlink(target));
}

#[test]
fn a_source_that_contradicts_itself_is_refused() {
    let packs = vec![Pack { base: BLOCK, end: 90 * BLOCK }];
    let bundles = vec![location(2, 9000, Codec::Zstd)];
    let refused = |data: Data, size: u64| {
        let root = inode(Body::Directory { children: vec![(b"f", 1)], parent: 0 });
        let inodes = vec![root, inode(Body::File { size, data })];
        build(&Source { inodes, bundles: bundles.clone(), packs: packs.clone() }).map_err(|e| e.kind()).err()
    };
    let bad = Some(ErrorKind::InvalidInput);
    assert_eq!(refused(Data::Fragment { bundle: 1, offset: 0 }, 1), bad);
    assert_eq!(refused(Data::Fragment { bundle: 0, offset: 8990 }, 11), bad);
    assert_eq!(refused(Data::Fragment { bundle: 0, offset: 8990 }, 10), None);
    assert_eq!(refused(Data::Chunks(vec![location(9, 70, Codec::Raw)]), 71), bad);
    assert_eq!(refused(Data::Inside { bits: 0, pieces: vec![None] }, 4097), bad);
    assert_eq!(refused(Data::Inside { bits: 0, pieces: vec![None, Some(vec![1])] }, 4097), None);
    assert_eq!(refused(Data::Inside { bits: 40, pieces: vec![None] }, 1), bad);
}

#[test]
fn devices_have_as_many_bits_as_the_kernel() {
    let refused = |major, minor| {
        let root = inode(Body::Directory { children: vec![(b"d", 1)], parent: 0 });
        let inodes = vec![root, inode(Body::CharDevice { major, minor })];
        build(&Source { inodes, bundles: vec![], packs: vec![] }).map_err(|e| e.kind()).err()
    };
    assert_eq!(refused(0xfff, 0xf_ffff), None);
    assert_eq!([refused(0x1000, 0), refused(0, 0x10_0000)], [Some(ErrorKind::Unsupported); 2]);
}

/// Damage past the checksum is an error or another tree, never a panic.
#[test]
fn any_flipped_byte_is_taken() {
    let bytes = super::sample::image();
    for at in (0..bytes.len()).filter(|at| bytes[*at] != 0 || at % 16 == 0) {
        let mut bytes = bytes.clone();
        bytes[at] ^= [1, 0x80, 0xff][at % 3];
        let Ok(image) = Image::new(&bytes) else { continue };
        assert!(image.verify().is_err(), "{at}");
        let _ = image.check();
        let _ = image.ranges();
    }
}
