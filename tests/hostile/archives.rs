//! Cases about the archive itself: sizes, extended headers, sparse maps, its end, and compression around it.

use super::build::{Head, ZERO, extended, file, head, long, number, padded, pax, record, tar, typed};
use super::{Case, reject, safe};
use flate2::Compression;
use std::io::Write;

const GNU: &[u8; 8] = b"ustar  \0";

/// A file after an extended header with this body.
fn body(kind: u8, body: &[u8]) -> Vec<u8> {
    tar(&[extended(kind, body), file("z", "x")])
}

/// A file of sparse format 1.0.
fn sparse_1_0(size: &str, content: &[u8]) -> Vec<u8> {
    let version = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0")];
    let records = [&version[..], &[("GNU.sparse.name", "s"), ("GNU.sparse.realsize", size)]].concat();
    tar(&[pax(&records), file("s", content)])
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("writing to memory")
}

/// A tar with one file, compressed and cut `cut` bytes short.
fn small_gzip(cut: usize) -> Vec<u8> {
    let mut bytes = gzip(&tar(&[file("a", "1")]));
    bytes.truncate(bytes.len() - cut);
    bytes
}

pub(crate) const CASES: &[Case] = &[
    safe("pax-size-smuggle.tar", "CVE-2025-62518: one entry, not two", || {
        let inner = file("smuggled", "inner");
        tar(&[pax(&[("size", "1536")]), head("outer").block(), inner, ZERO.to_vec()])
    }),
    safe("pax-size-nonzero-ustar.tar", "CVE-2026-33055: PAX wins", || {
        let a = Head { size: 8, ..head("a") }.block();
        tar(&[pax(&[("size", "1024")]), a, vec![0; 1024], file("b", "x")])
    }),
    reject("pax-size-over-L.tar", "GHSA-fp55-jw48-c537", || {
        let files = [file("file_a", [b'A'; 16]), file("file_b", [b'B'; 16])].concat();
        tar(&[pax(&[("size", "2048")]), long("longname.txt"), files])
    }),
    reject("pax-neg-size.tar", "negative", || tar(&[pax(&[("size", "-512")]), file("a", "x")])),
    reject("pax-size-overflow.tar", "2^64", || tar(&[pax(&[("size", "18446744073709551616")]), file("a", "x")])),
    reject("neg-base256-size.tar", "CVE-2026-59874 CVE-2025-8194", || tar(&[Head { size: -512, ..head("a") }.block()])),
    reject("size-2^63-1.tar", "rounding up overflows", || tar(&[Head { size: i64::MAX, ..head("a") }.block()])),
    reject("size-8EiB-trunc.tar", "no content", || tar(&[Head { size: 1 << 62, ..head("a") }.block()])),
    reject("pax-nul-path.tar", "CVE-2026-59875", || tar(&[pax(&[("path", "a\0/../../b")]), file("z", "x")])),
    reject("pax-nul-key.tar", "NUL in a key", || tar(&[pax(&[("pa\0th", "a")]), file("z", "x")])),
    reject("pax-len0.tar", "CVE-2019-20907", || body(b'x', b"0 path=a\n")),
    reject("pax-unterminated.tar", "RUSTSEC-2026-0066", || body(b'x', b"30 path=abc")),
    reject("pax-no-eq.tar", "no '='", || body(b'x', b"6 abc\n")),
    reject("pax-dangling.tar", "no entry follows", || tar(&[file("a", "x"), pax(&[("path", "b")])])),
    safe("pax-dup-path.tar", "the last wins", || tar(&[pax(&[("path", "a"), ("path", "b")]), file("z", "x")])),
    reject("pax+L.tar", "two kinds of name", || tar(&[pax(&[("path", "p")]), long("g"), file("z", "x")])),
    reject("pax-g-path.tar", "global path", || {
        tar(&[extended(b'g', &record(b"path", b"all")), file("a", "x"), file("b", "x")])
    }),
    reject("pax-hdr-64M.tar", "CVE-2022-2879 CVE-2017-14992", || {
        tar(&[Head { kind: b'x', ..head("x") }.with(vec![0; 64 << 20]), file("a", "x")])
    }),
    reject("L-64M.tar", "cpython#151498", || {
        tar(&[Head { kind: b'L', magic: GNU, ..head("L") }.with(vec![b'a'; 64 << 20]), file("a", "x")])
    }),
    reject("L-loop.tar", "a chain of extended headers", || {
        let chain = (0..10_000).map(|i| long(&format!("n{i}"))).collect::<Vec<_>>().concat();
        tar(&[chain, file("z", "x")])
    }),
    reject("x-claims-8EiB.tar", "nothing allocated for it", || {
        tar(&[Head { kind: b'x', size: 1 << 60, ..head("x") }.block()])
    }),
    reject("sparse-old-chain.tar", "CVE-2026-32288", || {
        let empty = [number(0, 12), number(0, 12)].concat();
        let raw = vec![(386, empty.clone()), (482, vec![1]), (483, number(1 << 40, 12))];
        let more = [empty.repeat(21), vec![1], vec![0; 7]].concat();
        tar(&[Head { kind: b'S', magic: GNU, raw, ..head("s") }.block(), more.repeat(20_000)])
    }),
    reject("sparse-1.0-many.tar", "CVE-2025-58183", || {
        sparse_1_0("0", &[b"4000000\n".to_vec(), b"0\n0\n".repeat(2_000_000)].concat())
    }),
    reject("sparse-8EiB-real.tar", "a bound on logical sizes", || {
        let map = padded(b"1\n9223372036854775806\n1\n");
        sparse_1_0("9223372036854775807", &[map, b"x".to_vec()].concat())
    }),
    reject("sparse-overlap.tar", "overlapping ranges", || {
        let version = [("GNU.sparse.major", "0"), ("GNU.sparse.minor", "1")];
        let map = [("GNU.sparse.map", "0,10,5,10"), ("GNU.sparse.size", "20"), ("GNU.sparse.name", "s")];
        tar(&[pax(&[&version[..], &map].concat()), file("s", [b'x'; 20])])
    }),
    reject("bad-cksum.tar", "wrong checksum", || tar(&[head("a").unsummed()])),
    safe("signed-cksum-hi.tar", "bytes above 127", || tar(&[file(b"\xff\xfe", "x")])),
    safe("no-eof.tar", "Go accepts it", || file("a", "x")),
    reject("one-zero-block.tar", "readers differ", || [file("a", "x"), ZERO.to_vec(), file("b", "x")].concat()),
    reject("data-after-eof.tar", "some readers go on", || [tar(&[file("a", "x")]), file("hidden", "x")].concat()),
    reject("trunc-header.tar", "cut", || [file("a", "x"), head("b").block()[..300].to_vec()].concat()),
    reject("trunc-body.tar", "cut", || [Head { size: 4096, ..head("a") }.block(), vec![b'x'; 1000]].concat()),
    safe("1M-empty-files.tar", "many entries", || {
        tar(&(0..200_000).map(|i| typed(&format!("d/{i}"), b'0')).collect::<Vec<_>>())
    }),
    safe("gzip-1000x.tar.gz", "bounded memory; files of zeros are real", || gzip(&vec![0; 256 << 20])),
    safe("gzip-multimember.tar.gz", "members are one stream", || {
        let tar = tar(&[file("a", "1")]);
        [gzip(&tar[..700]), gzip(&tar[700..])].concat()
    }),
    reject("gzip-trailing.tar.gz", "the digest covers it, no reader does", || {
        [small_gzip(0), b"GARBAGE".to_vec()].concat()
    }),
    reject("gzip-badcrc.tar.gz", "wrong CRC", || [small_gzip(8), vec![0; 8]].concat()),
    reject("gzip-trunc.tar.gz", "cut", || small_gzip(9)),
    reject("zstd-window-2G.tar.zst", "a window of 2 GiB", || vec![0x28, 0xb5, 0x2f, 0xfd, 0, (31 - 10) << 3, 1, 0, 0]),
];
