//! The writer against the reader, on trees of all shapes.

use super::read::{Content, Entry, Image};
use super::write::{Body, Data, Inode, Piece, build, fits};
use crate::format::entry::{Time, Xattr};
use crate::format::pack::{BLOCK, Codec, Location};
use proptest::prelude::*;

fn location(block: u32, stored_len: u32, raw_len: u32) -> Location {
    let codec = if stored_len == raw_len { Codec::Raw } else { Codec::Zstd };
    Location { block, stored_len, raw_len, codec }
}

fn inode(body: Body<'_>) -> Inode<'_> {
    let mtime = Time { secs: 1_700_000_000, nanos: 5 };
    Inode { mode: 0o644, uid: 70_000, gid: 3, mtime, links: 1, xattrs: &[], body }
}

fn entries(bytes: &[u8]) -> Vec<Entry<'_>> {
    let mut list = Vec::new();
    Image::new(bytes)
        .expect("an image")
        .walk(|e| {
            list.push(e);
            Ok(())
        })
        .expect("a tree");
    list.sort_by(|a, b| a.path.cmp(&b.path));
    list
}

#[test]
fn every_kind_comes_back() {
    let long = vec![b'l'; 4090];
    let bundle = location(1, 5000, 100_000);
    let chunk = location(40, 70_000, 131_072);
    let raw = location(80, 65_537, 65_537);
    let pieces = vec![
        Piece::Chunk { location: chunk, len: 131_072 },
        Piece::Chunk { location: raw, len: 65_537 },
        Piece::Zeros(3 << 20),
    ];
    let size = 131_072 + 65_537 + (3 << 20);
    let shared = [Xattr { name: b"user.note".to_vec(), value: b"same".to_vec() }];
    let own = [
        Xattr { name: b"security.capability".to_vec(), value: vec![1; 20] },
        Xattr { name: b"user.note".to_vec(), value: b"same".to_vec() },
    ];
    let children: Vec<(&[u8], usize)> =
        vec![(b"-before-dots", 1), (b"dev", 2), (b"frag", 3), (b"hard", 3), (b"link", 4), (b"long", 5), (b"pieces", 6)];
    let list = vec![
        Inode { xattrs: &shared, ..inode(Body::Directory { children, parent: 0 }) },
        inode(Body::Fifo),
        inode(Body::CharDevice(4000, 70_000)),
        Inode { links: 2, ..inode(Body::File { size: 999, data: Data::Fragment { bundle: 0, offset: 17 } }) },
        Inode { xattrs: &own, ..inode(Body::Symlink(b"target")) },
        inode(Body::Symlink(&long)),
        inode(Body::File { size, data: Data::Pieces(pieces) }),
    ];
    let packs = [50 * BLOCK, 200 * BLOCK];
    let bytes = build(&list, &[bundle], &packs).expect("an image");
    assert_eq!(bytes, build(&list, &[bundle], &packs).expect("an image"), "the same bytes each time");
    let found = entries(&bytes);
    let paths: Vec<_> = found.iter().map(|e| String::from_utf8_lossy(&e.path).into_owned()).collect();
    assert_eq!(paths, ["", "-before-dots", "dev", "frag", "hard", "link", "long", "pieces"]);
    assert_eq!((found[0].mode, found[0].links, &found[0].xattrs[..]), (0o040_644, 2, &shared[..]));
    assert_eq!(found[2].content, Content::Device(4000, 70_000));
    assert_eq!((found[3].nid, found[3].size, &found[3].content), (found[4].nid, 999, &Content::Fragment(17)));
    assert_eq!((&found[5].xattrs[..], &found[5].content), (&own[..], &Content::Inside(b"", b"target")));
    assert_eq!((found[6].uid, found[6].mtime.nanos, found[6].size), (70_000, 5, 4090));
    assert!(matches!(found[6].content, Content::Inside(whole, tail) if [whole, tail].concat() == long));
    let Content::Extents(heads) = &found[7].content else { panic!("no extents") };
    assert_eq!(heads.iter().map(|h| h.start).collect::<Vec<_>>()[..3], [0, 131_072, 196_609]);
    let image = Image::new(&bytes).expect("an image");
    assert_eq!(image.ranges().expect("ranges"), [(1, 2), (40, 18), (80, 17)]);
    assert_eq!(image.packs().collect::<Vec<_>>(), packs);
    image.verify().expect("sound");
    for at in (0..bytes.len()).step_by(97) {
        let mut bad = bytes.clone();
        bad[at] ^= 1;
        assert!(Image::new(&bad).and_then(|image| image.verify()).is_err(), "byte {at}");
    }
}

#[test]
fn pieces_that_begin_in_one_block_do_not_fit() {
    let small = |len| Piece::Chunk { location: location(1, len, len), len };
    assert!(fits(&[small(100)]) && fits(&[small(8192), small(5)]) && fits(&[small(70_000), small(70_000), small(1)]));
    assert!(!fits(&[small(100), small(5)]) && !fits(&[small(4000), small(90), small(9000)]));
    assert!(!fits(&[small(5000), small(9000)]), "two blocks, and no second cluster to count them in");
    assert!(fits(&[Piece::Zeros(4096), small(70_000)]) && !fits(&[Piece::Zeros(100), small(70_000)]));
}

proptest! {
    #[test]
    fn any_bundles_have_places(lens in proptest::collection::vec(1u32..300_000, 1..40)) {
        let mut block = 1;
        let bundles: Vec<_> = lens.iter().map(|&raw| {
            let l = location(block, (raw / 2).max(1), raw);
            block += l.blocks() as u32;
            l
        }).collect();
        let names: Vec<Vec<u8>> = (0..lens.len()).map(|i| format!("{i:04}").into_bytes()).collect();
        let children = names.iter().enumerate().map(|(i, n)| (&n[..], i + 1)).collect();
        let mut list = vec![inode(Body::Directory { children, parent: 0 })];
        list.extend((0..lens.len()).map(|bundle| inode(Body::File { size: 1, data: Data::Fragment { bundle, offset: 0 } })));
        let bytes = build(&list, &bundles, &[u64::from(block) * BLOCK]).expect("an image");
        let image = Image::new(&bytes).expect("an image");
        let heads = image.packed().expect("heads");
        for (entry, bundle) in entries(&bytes)[1..].iter().zip(&bundles) {
            let Content::Fragment(at) = entry.content else { panic!("no fragment") };
            let head = heads.iter().find(|h| h.start == at).expect("an extent begins there");
            prop_assert_eq!(image.store_block(head.block), Some(bundle.block));
            prop_assert_eq!(u64::from(head.blocks), bundle.blocks());
        }
    }

    #[test]
    fn flipped_bytes_never_panic(at in 1024usize..8192, bit in 0u8..8) {
        let names: Vec<Vec<u8>> = (0..200).map(|i| format!("name-{i:05}").into_bytes()).collect();
        let children = names.iter().enumerate().map(|(i, n)| (&n[..], i + 1)).collect();
        let mut list = vec![inode(Body::Directory { children, parent: 0 })];
        list.extend((0..200).map(|_| inode(Body::Symlink(b"to"))));
        let mut bytes = build(&list, &[], &[BLOCK]).expect("an image");
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        if let Ok(image) = Image::new(&bytes) {
            let _ = image.walk(|_| Ok(()));
            let _ = image.ranges();
        }
    }
}
