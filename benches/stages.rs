//! What each stage of an import and an export does per second, on one thread unless it says otherwise.
//!
//! `cargo bench --features internals`. The layer is made here; `LAYERSTORE_BENCH_LAYER=path` takes a real blob (a tar,
//! plain or compressed) instead. The store is made below `LAYERSTORE_BENCH_DIR`, or else the temporary directory: its
//! file system is part of what `import` and `export` measure.

use criterion::{
    BatchSize, BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use layerstore::internals::{ChunkCodec, StoredChunk, cut, erofs_image, look_up_all, mark, parse_tar};
use layerstore::{
    BlobReader, BlobWriter, Chunking, Compress, Compression, ContentId, Digest, ExtractOptions, FsckOptions,
    ImportOptions, Limits, Store,
};
use std::hint::black_box;
use std::io::{Read, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Sizes of a small image's files: many small, a few large.
const SMALL: usize = 4000;
const LARGE: usize = 12;

/// Words, numbers and some noise, which compress about as program files do: to a half or a third.
fn content(seed: usize, len: usize) -> Vec<u8> {
    let mut noise = vec![0; len / 4 + 64];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut noise);
    let mut out = Vec::with_capacity(len + 64);
    let mut at = 0;
    while out.len() < len {
        let n = usize::from(noise[at % noise.len()]);
        match n % 4 {
            0 => out.extend_from_slice(&noise[at % (noise.len() - 32)..][..n % 32]),
            1 => out.extend_from_slice(&(seed * n).to_le_bytes()),
            _ => drop(write!(out, "fn item_{}(value: u32) -> Option<{n}> {{ ", n * seed % 977)),
        }
        at += 1 + n % 7;
    }
    out.truncate(len);
    out
}

fn synthetic() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut append = |name: String, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes).expect("writing to memory");
    };
    (0..SMALL).for_each(|n| append(format!("usr/share/d{}/f{n}", n / 40), &content(n, 200 + n * 37 % 12_000)));
    (0..LARGE).for_each(|n| append(format!("usr/lib/lib{n}.so"), &content(n, 2_000_000 + n * 300_000)));
    tar.into_inner().expect("writing to memory")
}

/// The blob to import and the tar in it.
fn layer() -> (Vec<u8>, Vec<u8>) {
    match std::env::var_os("LAYERSTORE_BENCH_LAYER") {
        Some(path) => {
            let blob = std::fs::read(path).expect("LAYERSTORE_BENCH_LAYER is a file");
            let tar = unpack(&blob);
            (blob, tar)
        }
        None => {
            let tar = synthetic();
            (pack(&tar, Compression::Gzip), tar)
        }
    }
}

fn pack(tar: &[u8], compression: Compression) -> Vec<u8> {
    let mut writer = BlobWriter::new(Vec::new(), compression).expect("default level");
    writer.write_all(tar).expect("writing to memory");
    writer.finish().expect("writing to memory").2
}

fn unpack(blob: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    let mut reader = BlobReader::new(blob, &Limits::default()).expect("a layer's blob");
    reader.read_to_end(&mut tar).expect("a layer's blob");
    tar
}

fn pieces(tar: &[u8]) -> Vec<&[u8]> {
    let mut rest = tar;
    let lengths = cut(tar, &Chunking::default());
    let piece = |len: usize| {
        let (piece, after) = rest.split_at(len);
        rest = after;
        piece
    };
    lengths.into_iter().map(piece).collect()
}

fn directory() -> tempfile::TempDir {
    let at = std::env::var_os("LAYERSTORE_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::tempdir_in(at).expect("a directory for stores")
}

fn bytes(tar: &[u8]) {
    let mut criterion = criterion();
    let mut group = group(&mut criterion, "bytes", tar.len());
    group.bench_function("sha256", |b| b.iter(|| Digest::of(black_box(tar))));
    group.bench_function("blake3", |b| b.iter(|| ContentId::of(black_box(tar))));
    group.bench_function("cut", |b| b.iter(|| cut(black_box(tar), &Chunking::default())));
    group.bench_function("tar", |b| b.iter(|| parse_tar(black_box(tar)).expect("a tar")));
    group.finish();
}

fn chunks(tar: &[u8]) {
    let mut criterion = criterion();
    let mut group = group(&mut criterion, "chunk", tar.len());
    let pieces = pieces(tar);
    for (name, compress) in [
        ("lz4", Compress::Lz4),
        ("zstd-1", Compress::Zstd(1)),
        ("zstd-2", Compress::Zstd(2)),
        ("zstd-3", Compress::Zstd(3)),
    ] {
        let mut codec = ChunkCodec::new(compress).expect("a codec");
        let stored: Vec<StoredChunk> = pieces.iter().map(|p| codec.encode(p).expect("a chunk")).collect();
        let size: usize = stored.iter().map(StoredChunk::stored_len).sum();
        println!("{name}: {size} of {} bytes, {:.3}", tar.len(), size as f64 / tar.len() as f64);
        group.bench_function(format!("encode/{name}"), |b| {
            b.iter(|| pieces.iter().map(|p| codec.encoded_len(p).expect("a chunk")).sum::<usize>());
        });
        group.bench_function(format!("decode/{name}"), |b| {
            b.iter(|| stored.iter().map(|c| codec.decode(c).expect("a chunk").len()).sum::<usize>());
        });
    }
    group.finish();
}

fn blobs(tar: &[u8]) {
    let mut criterion = criterion();
    let mut group = group(&mut criterion, "blob", tar.len());
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let blob = pack(tar, compression);
        group.bench_function(format!("read/{compression}"), |b| {
            let mut buffer = vec![0; 1 << 20];
            b.iter(|| {
                let mut reader = BlobReader::new(&blob[..], &Limits::default()).expect("a blob");
                while reader.read(&mut buffer).expect("a blob") > 0 {}
                reader.finish().expect("a blob")
            });
        });
    }
    group.finish();
}

/// Whole imports and exports, durable, on all processors.
fn layers(blob: &[u8], tar: &[u8]) {
    let mut criterion = criterion();
    let mut group = group(&mut criterion, "layer", tar.len());
    let dir = directory();
    let fresh = || {
        let dir = tempfile::tempdir_in(dir.path()).expect("a directory");
        let store = Store::open(dir.path().join("store")).expect("a store");
        (dir, store)
    };
    let import = |store: &Store, compress| {
        let options = ImportOptions::default().compress(compress);
        store.import_layer(blob, &options, &()).expect("a layer").0.diff_id
    };
    for (name, compress) in [("raw", Compress::Raw), ("lz4", Compress::Lz4), ("zstd-3", Compress::Zstd(3))] {
        group.bench_function(format!("import/{name}"), |b| {
            // The store goes with what the routine gives back, outside the measured time.
            let routine = |(dir, store): (tempfile::TempDir, Store)| {
                import(&store, compress);
                (dir, store)
            };
            b.iter_batched(fresh, routine, BatchSize::PerIteration);
        });
        let (_dir, store) = fresh();
        let diff_id = import(&store, compress);
        let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        group.bench_function(format!("export/{name}"), |b| {
            b.iter(|| {
                let layer = store.layer(&diff_id).expect("a layer");
                layer.export(&mut std::io::sink(), threads, &()).expect("a layer")
            });
        });
    }
    let (_dir, store) = fresh();
    import(&store, Compress::default());
    group.bench_function("import/again", |b| b.iter(|| import(&store, Compress::default())));
    group.finish();
}

/// What is done with a layer that is there; all in bytes of its tar a second.
fn stored(blob: &[u8], tar: &[u8]) {
    let mut criterion = criterion();
    let mut group = group(&mut criterion, "store", tar.len());
    let dir = directory();
    let store = Store::open(dir.path().join("store")).expect("a store");
    let (import, _) = store.import_layer(blob, &ImportOptions::default(), &()).expect("a layer");
    let layers = [import.diff_id];
    group.bench_function("apply", |b| b.iter(|| store.root(&layers).expect("a layer")));
    group.bench_function("erofs", |b| b.iter(|| erofs_image(&store, &layers).expect("a layer").len()));
    group.bench_function("lookup", |b| b.iter(|| look_up_all(&store).expect("chunks")));
    group.bench_function("gc mark", |b| b.iter(|| mark(&store).expect("a sound store")));
    for (name, full) in [("fsck", false), ("fsck full", true)] {
        let options = FsckOptions::default().full(full);
        group.bench_function(name, |b| b.iter(|| assert!(store.fsck(&options, &()).expect("fsck runs").is_clean())));
    }
    group.bench_function("extract", |b| {
        let fresh = || tempfile::tempdir_in(dir.path()).expect("a directory");
        let extract = |to: tempfile::TempDir| {
            store.extract(&layers, &to.path().join("tree"), &ExtractOptions::default(), &()).expect("a layer");
            to
        };
        b.iter_batched(fresh, extract, BatchSize::PerIteration);
    });
    group.finish();
}

fn criterion() -> Criterion {
    Criterion::default().configure_from_args().sample_size(10)
}

fn group<'a>(criterion: &'a mut Criterion, name: &str, len: usize) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Bytes(len as u64));
    group
}

fn stages(_: &mut Criterion) {
    let (blob, tar) = layer();
    println!("{} bytes of tar, {} of blob, {} entries", tar.len(), blob.len(), parse_tar(&tar).expect("a tar"));
    bytes(&tar);
    chunks(&tar);
    blobs(&tar);
    layers(&blob, &tar);
    stored(&blob, &tar);
}

criterion_group!(benches, stages);
criterion_main!(benches);
