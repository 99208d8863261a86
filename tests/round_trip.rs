//! Whatever a layer holds, it comes out as it went in, however it is compressed, and is stored once.

#[path = "hostile/build.rs"]
#[allow(dead_code, reason = "a part of the builders is wanted")]
mod build;
mod support;

use build::{Head, head, padded, pax};
use layerstore::{Compress, Compression, Digest, EntryKind, ImportOptions, Store};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use support::{compress, export, noise, rows, store, words};

/// Around every size at which something changes: tar blocks, small files, bundles, and chunk sizes.
const SIZES: [usize; 20] = [
    0,
    1,
    511,
    512,
    513,
    4095,
    4096,
    (32 << 10) - 1,
    32 << 10,
    (32 << 10) + 1,
    (64 << 10) - 1,
    64 << 10,
    (64 << 10) + 1,
    (128 << 10) - 1,
    128 << 10,
    (128 << 10) + 1,
    (256 << 10) - 1,
    256 << 10,
    (256 << 10) + 1,
    1 << 20,
];

#[derive(Clone, Debug)]
enum Kind {
    File(Content),
    /// Another file's content again.
    Copy(Index),
    /// Pieces of content with holes of these many blocks before each.
    Sparse(Vec<(usize, Content)>),
    Dir,
    Symlink(String),
    Hardlink(Index),
    Fifo,
}

#[derive(Clone, Debug)]
struct Content {
    seed: u64,
    len: usize,
    dense: bool,
}

impl Content {
    fn bytes(&self) -> Vec<u8> {
        if self.dense { noise(self.seed, self.len) } else { words(self.seed, self.len) }
    }
}

#[derive(Clone, Debug)]
struct Node {
    kind: Kind,
    long_name: bool,
    xattrs: Vec<(String, Vec<u8>)>,
    mode: i64,
}

fn content() -> impl Strategy<Value = Content> {
    let len = prop_oneof![4 => select(&SIZES[..]), 4 => 0usize..3000, 1 => 0usize..400_000];
    // Few seeds, so that contents repeat.
    (0u64..8, len, any::<bool>()).prop_map(|(seed, len, dense)| Content { seed, len, dense })
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        8 => content().prop_map(Kind::File),
        2 => any::<Index>().prop_map(Kind::Copy),
        1 => prop::collection::vec((1usize..200, content()), 1..4).prop_map(Kind::Sparse),
        2 => Just(Kind::Dir),
        1 => "[a-z/.]{1,140}".prop_map(Kind::Symlink),
        1 => any::<Index>().prop_map(Kind::Hardlink),
        1 => Just(Kind::Fifo),
    ]
}

fn node() -> impl Strategy<Value = Node> {
    let xattr = ("user\\.[a-z]{1,9}", prop::collection::vec(any::<u8>(), 0..50));
    let xattrs = prop_oneof![3 => Just(vec![]), 1 => prop::collection::vec(xattr, 1..4)];
    (kind(), prop::bool::weighted(0.15), xattrs, select(&[0o644i64, 0o755, 0o4755, 0][..]))
        .prop_map(|(kind, long_name, xattrs, mode)| Node { kind, long_name, xattrs, mode })
}

fn nodes() -> impl Strategy<Value = Vec<Node>> {
    prop::collection::vec(node(), 0..25)
}

/// A layer as bytes, and what its files hold.
struct Layer {
    tar: Vec<u8>,
    files: BTreeMap<Vec<u8>, Vec<u8>>,
}

fn name_of(prefix: &str, n: usize, node: &Node) -> String {
    let long = if node.long_name { "a-long-directory-name/".repeat(8) } else { String::new() };
    format!("{prefix}/{long}{n}")
}

/// Header of one node, with PAX records for what ustar cannot say.
fn header(out: &mut Vec<u8>, name: &str, node: &Node, mut head: Head, extra: &[(&[u8], &[u8])]) {
    let mut records: Vec<(Vec<u8>, Vec<u8>)> = extra.iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
    if name.len() > 100 {
        records.push((b"path".to_vec(), name.into()));
        head.name.truncate(100);
    }
    if head.link.len() > 100 {
        records.push((b"linkpath".to_vec(), head.link.clone()));
    }
    let xattrs: BTreeMap<_, _> = node.xattrs.iter().cloned().collect();
    records.extend(xattrs.into_iter().map(|(k, v)| (format!("SCHILY.xattr.{k}").into_bytes(), v)));
    if !records.is_empty() {
        out.extend(pax(&records));
    }
    out.extend(head.block());
}

/// Writes `nodes` below `prefix` by hand: PAX for what ustar cannot say, sparse files in format 1.0.
fn raw_tar(prefix: &str, nodes: &[Node]) -> Layer {
    let mut layer = Layer { tar: vec![], files: BTreeMap::new() };
    for (n, node) in nodes.iter().enumerate() {
        let name = name_of(prefix, n, node);
        let plain = Head { mode: node.mode, mtime: n as i64, ..head(&name) };
        let names: Vec<_> = layer.files.keys().cloned().collect();
        let file = match &node.kind {
            Kind::File(content) => Some(content.bytes()),
            Kind::Copy(of) if !names.is_empty() => Some(layer.files[of.get(&names)].clone()),
            Kind::Hardlink(to) if !names.is_empty() => {
                let link = Head { kind: b'1', link: to.get(&names).clone(), ..plain.clone() };
                header(&mut layer.tar, &name, node, link, &[]);
                None
            }
            Kind::Symlink(target) => {
                let link = Head { kind: b'2', link: target.clone().into(), ..plain.clone() };
                header(&mut layer.tar, &name, node, link, &[]);
                None
            }
            Kind::Sparse(pieces) => {
                let (map, stored, whole) = sparse(pieces);
                let body = [padded(&map), stored].concat();
                let size = whole.len().to_string();
                let records: [(&[u8], &[u8]); 4] = [
                    (b"GNU.sparse.major", b"1"),
                    (b"GNU.sparse.minor", b"0"),
                    (b"GNU.sparse.name", name.as_bytes()),
                    (b"GNU.sparse.realsize", size.as_bytes()),
                ];
                let sparse = Head { size: body.len() as i64, name: b"GNUSparseFile.0/x".to_vec(), ..plain.clone() };
                // The name stands in a record of its own, however long it is.
                header(&mut layer.tar, "", node, sparse, &records);
                layer.tar.extend(padded(&body));
                layer.files.insert(name.clone().into(), whole);
                None
            }
            Kind::Fifo => {
                header(&mut layer.tar, &name, node, Head { kind: b'6', ..plain.clone() }, &[]);
                None
            }
            _ => {
                header(&mut layer.tar, &name, node, Head { kind: b'5', ..plain.clone() }, &[]);
                None
            }
        };
        if let Some(bytes) = file {
            header(&mut layer.tar, &name, node, Head { size: bytes.len() as i64, ..plain }, &[]);
            layer.tar.extend(padded(&bytes));
            layer.files.insert(name.into(), bytes);
        }
    }
    layer.tar.extend([0; 1024]);
    layer
}

/// Map, stored bytes and logical content of a sparse file.
fn sparse(pieces: &[(usize, Content)]) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let (mut stored, mut whole, mut map) = (vec![], vec![], format!("{}\n", pieces.len()));
    for (hole, content) in pieces {
        whole.resize(whole.len() + hole * 512, 0);
        let bytes = content.bytes();
        map += &format!("{}\n{}\n", whole.len(), bytes.len());
        stored.extend_from_slice(&bytes);
        whole.extend_from_slice(&bytes);
    }
    (map.into_bytes(), stored, whole)
}

/// The same by the `tar` crate, which writes GNU long names; only what it can write.
fn crate_tar(prefix: &str, nodes: &[Node]) -> Layer {
    let mut files = BTreeMap::new();
    let mut tar = tar::Builder::new(Vec::new());
    for (n, node) in nodes.iter().enumerate() {
        let name = name_of(prefix, n, node);
        let mut header = tar::Header::new_gnu();
        header.set_mode(node.mode as u32);
        header.set_mtime(1_700_000_000);
        match &node.kind {
            Kind::File(content) => {
                let bytes = content.bytes();
                header.set_size(bytes.len() as u64);
                tar.append_data(&mut header, &name, &bytes[..]).expect("writing to memory");
                files.insert(name.into_bytes(), bytes);
            }
            Kind::Symlink(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                tar.append_link(&mut header, &name, target).expect("writing to memory");
            }
            _ => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_size(0);
                tar.append_data(&mut header, &name, &[][..]).expect("writing to memory");
            }
        }
    }
    Layer { tar: tar.into_inner().expect("writing to memory"), files }
}

fn compression() -> impl Strategy<Value = Compression> {
    select(&[Compression::None, Compression::Gzip, Compression::Zstd][..])
}

fn codec() -> impl Strategy<Value = Compress> {
    select(&[Compress::Raw, Compress::Lz4, Compress::Zstd(1), Compress::Zstd(3)][..])
}

/// Every file of the layer, read whole and at random places, is what it was.
fn check_files(store: &Store, diff_id: &Digest, layer: &Layer, places: &[(Index, Index)]) {
    let stored = store.layer(diff_id).expect("the layer");
    for entry in stored.entries().expect("the record") {
        let entry = entry.expect("the record");
        let EntryKind::File { size, .. } = entry.entry.kind else { continue };
        let expected = &layer.files[&entry.entry.path];
        let name = String::from_utf8_lossy(&entry.entry.path).into_owned();
        let file = stored.open(&entry).expect(&name);
        assert_eq!((file.size(), size), (expected.len() as u64, expected.len() as u64), "{name}");
        let mut whole = Vec::new();
        file.reader().read_to_end(&mut whole).expect(&name);
        assert!(whole == *expected, "{name} reads otherwise");
        for (from, len) in places {
            let from = from.index(expected.len() + 10);
            let mut buffer = vec![0xaa; len.index(expected.len() / 2 + 20)];
            let got = file.read_at(&mut buffer, from as u64).expect(&name);
            let end = (from + buffer.len()).min(expected.len());
            assert_eq!(&buffer[..got], expected.get(from..end).unwrap_or_default(), "{name} at {from}");
        }
    }
}

fn import(store: &Store, layer: &Layer, compression: Compression, codec: Compress) -> (Digest, u64) {
    let blob = compress(&layer.tar, compression);
    let options = ImportOptions::default().compress(codec).threads(support::THREADS);
    let (done, stats) = store.import_layer(&blob[..], &options, &()).expect("a good layer");
    assert_eq!((done.diff_id, done.blob), (Digest::of(&layer.tar), Some(Digest::of(&blob))));
    (done.diff_id, stats.new_chunks)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn any_layer_comes_back(
        nodes in nodes(),
        by_crate: bool,
        compression in compression(),
        codec in codec(),
        places in prop::collection::vec(any::<(Index, Index)>(), 6),
    ) {
        let layer = if by_crate { crate_tar("t", &nodes) } else { raw_tar("t", &nodes) };
        let (_dir, store) = store();
        let (diff_id, _) = import(&store, &layer, compression, codec);
        prop_assert!(export(&store, &diff_id) == layer.tar);
        check_files(&store, &diff_id, &layer, &places);
    }

    /// Once more, and in other clothes, a layer adds no content.
    #[test]
    fn importing_again_adds_nothing(nodes in nodes(), first in compression(), again in compression()) {
        let (_dir, store) = store();
        let layer = raw_tar("t", &nodes);
        let (diff_id, _) = import(&store, &layer, first, Compress::default());
        let before = (store.usage().unwrap(), support::names(store.path(), "packs"));
        let (_, new) = import(&store, &layer, again, Compress::Lz4);
        let moved = raw_tar("elsewhere", &nodes);
        let (moved_id, _) = import(&store, &moved, again, Compress::default());
        let after = store.usage().unwrap();
        prop_assert_eq!(new, 0);
        let content = |u: &layerstore::Usage| (u.chunks, u.raw, u.stored, u.packs);
        prop_assert_eq!(content(&after), content(&before.0));
        prop_assert_eq!(support::names(store.path(), "packs"), before.1);
        prop_assert!(export(&store, &diff_id) == layer.tar && export(&store, &moved_id) == moved.tar);
    }

    /// Layers in any order leave the same content behind, once.
    #[test]
    fn order_does_not_matter(layers in prop::collection::vec(dense_nodes(), 2..5), turn in any::<Index>()) {
        let layers: Vec<_> = layers.iter().enumerate().map(|(n, nodes)| raw_tar(&format!("l{n}"), nodes)).collect();
        let mut turned: Vec<_> = layers.iter().collect();
        turned.rotate_left(turn.index(layers.len()));
        turned.reverse();
        let mut stored = vec![];
        for order in [layers.iter().collect(), turned] {
            let (_dir, store) = store();
            for layer in order {
                import(&store, layer, Compression::None, Compress::Lz4);
            }
            let raw = store.usage().unwrap().raw;
            // A small file that happens to be a chunk of a large one may be stored as that.
            let distinct = distinct_content(&store, &layers);
            prop_assert!(raw <= distinct, "{} bytes stored of {}", raw, distinct);
            stored.push((raw, rows(store.path(), "members")));
        }
        prop_assert_eq!(stored[0], stored[1]);
    }
}

/// Without sparse files, whose stored content is not what a reader sees.
fn dense_nodes() -> impl Strategy<Value = Vec<Node>> {
    nodes().prop_map(|mut nodes| {
        nodes.retain(|node| !matches!(node.kind, Kind::Sparse(_)));
        nodes
    })
}

/// Bytes of distinct small files, and of distinct chunks of the others.
fn distinct_content(store: &Store, layers: &[Layer]) -> u64 {
    let small_file = store.chunking().small_file as usize;
    let files = layers.iter().flat_map(|layer| layer.files.values());
    let small: BTreeSet<_> = files.filter(|content| content.len() < small_file).collect();
    let mut chunks = BTreeMap::new();
    for info in store.layers().expect("a database") {
        for entry in store.layer(&info.diff_id).and_then(|layer| layer.entries()).expect("the record") {
            let entry = entry.expect("the record");
            if entry.entry.kind.stored_len() >= small_file as u64 {
                chunks.extend(entry.extents.iter().map(|e| (e.chunk, u64::from(e.len))));
            }
        }
    }
    small.iter().map(|content| content.len() as u64).sum::<u64>() + chunks.values().sum::<u64>()
}

/// All sizes at once, with every codec; and what one store keeps as zstd another may keep raw.
#[test]
fn every_size_with_every_codec() {
    let content = |n: usize| Content { seed: n as u64, len: SIZES[n % SIZES.len()], dense: n.is_multiple_of(2) };
    let node = |n| Node { kind: Kind::File(content(n)), long_name: false, xattrs: vec![], mode: 0o644 };
    let layer = raw_tar("sizes", &(0..2 * SIZES.len() + 1).map(node).collect::<Vec<_>>());
    let raw: Vec<u64> = [Compress::Raw, Compress::Lz4, Compress::Zstd(1), Compress::Zstd(19)]
        .into_iter()
        .map(|codec| {
            let (_dir, store) = store();
            let (diff_id, _) = import(&store, &layer, Compression::Gzip, codec);
            assert!(export(&store, &diff_id) == layer.tar, "{codec:?}");
            check_files(&store, &diff_id, &layer, &[]);
            store.usage().unwrap().raw
        })
        .collect();
    assert!(raw.iter().all(|&r| r == raw[0]), "how chunks are cut depends on their codec: {raw:?}");
}

/// containerd takes a manifest's layer of no bytes at all for an empty one; a file of no bytes was mostly never written.
#[test]
fn an_empty_file_is_a_layer_only_where_its_digest_is_given() {
    let (_dir, store) = support::store();
    for blob in [vec![], compress(&[], Compression::Gzip)] {
        let error = store.import_layer(&blob[..], &ImportOptions::default(), &()).expect_err("refused");
        assert_eq!(error.kind(), layerstore::ErrorKind::InvalidInput);
        support::assert_empty(&store, "an empty file");
    }
    let options = ImportOptions::default().expected_blob(Digest::of(b""));
    let (layer, _) = store.import_layer(&[][..], &options, &()).expect("as containerd");
    assert_eq!((layer.diff_id, layer.tar_size, layer.entries), (Digest::of(b""), 0, 0));
    assert_eq!(support::import(&store, &[0; 1024]).entries, 0);
}

/// Counts the questions whether to stop.
#[derive(Default)]
struct Asked(std::sync::atomic::AtomicU64);

impl Asked {
    fn since(&self) -> u64 {
        self.0.swap(0, std::sync::atomic::Ordering::Relaxed)
    }
}

impl layerstore::Observer for Asked {
    fn event(&self, _: layerstore::Event) {}

    fn cancelled(&self) -> bool {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        false
    }
}

/// Whatever long work goes through, it asks at least once for each mebibyte, so that a signal ends it soon.
#[test]
fn long_work_asks_whether_to_stop() {
    let (dir, store) = store();
    let asked = Asked::default();
    // Few bytes that become many.
    let bomb = compress(&vec![0; 128 << 20], Compression::Gzip);
    store.import_layer(&bomb[..], &ImportOptions::default(), &asked).expect("an empty layer");
    assert!(asked.since() > 128, "importing zeros");
    let files = [build::file("large", noise(1, 16 << 20)), build::file("other", noise(2, 16 << 20)), vec![0; 1024]];
    let tar = files.concat();
    let layer = store.import_layer(&tar[..], &ImportOptions::default(), &asked).expect("a good layer").0.diff_id;
    assert!(asked.since() > 32, "importing");
    store.extract(&[layer], &dir.path().join("out"), &Default::default(), &asked).expect("extracts");
    assert!(asked.since() > 64, "extracting");
    store.layer(&layer).and_then(|l| l.export(&mut std::io::sink(), support::THREADS, &asked)).expect("exports");
    assert!(asked.since() > 32, "exporting");
    let changes = store.diff(&[], &[layer], &Default::default(), &asked).expect("compares");
    asked.since();
    store.write_layer(&changes, &mut std::io::sink(), &Default::default(), &asked).expect("written");
    assert!(asked.since() > 32, "writing a layer of what the store has");
    let file = store.root(&[layer]).and_then(|root| root.open(b"large")).expect("a file");
    file.copy_to_watched(&mut std::io::sink(), &asked).expect("reads");
    assert!(asked.since() > 16, "reading");
    store.fsck(&layerstore::FsckOptions::default().full(true), &asked).expect("goes through");
    assert!(asked.since() > 32, "checking");
}
