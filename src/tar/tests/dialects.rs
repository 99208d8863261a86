//! What entries of the tar dialects become, and which combinations are refused as ambiguous.

use super::*;
use crate::format::entry::Xattr;

fn tar(parts: &[Vec<u8>]) -> Vec<u8> {
    [parts.concat(), vec![0; 1024]].concat()
}

fn message(parts: &[Vec<u8>]) -> String {
    error(&tar(parts)).to_string()
}

fn sparse(size: u64, ranges: &[(u64, u64)]) -> EntryKind {
    let ranges = ranges.iter().map(|&(offset, len)| DataRange { offset, len }).collect();
    EntryKind::File { size, sparse: Some(ranges) }
}

#[test]
fn every_field_arrives() {
    let header = Head { mode: 0o104_755, uid: 1000, gid: 1 << 22, mtime: -1, ..head("/a//./b") };
    let entry =
        only(&tar(&[pax(&[("SCHILY.xattr.user.b", ""), ("SCHILY.xattr.com.apple.x", "y")]), header.with("xy")]));
    let want = Entry {
        path: b"a/b".to_vec(),
        kind: EntryKind::File { size: 2, sparse: None },
        mode: 0o4755,
        uid: 1000,
        gid: 1 << 22,
        mtime: Time { secs: -1, nanos: 0 },
        xattrs: vec![Xattr { name: b"user.b".to_vec(), value: vec![] }],
    };
    assert_eq!(entry, want);
}

#[test]
fn pax_wins_over_the_header() {
    let records = [("path", "p/q"), ("uid", "7"), ("gid", "8"), ("mtime", "9.25"), ("size", "1"), ("uname", "root")];
    let entry = only(&tar(&[pax(&records), Head { size: 0, uid: 1, ..head("h") }.block(), padded(b"x")]));
    assert_eq!((&entry.path[..], entry.uid, entry.gid), (&b"p/q"[..], 7, 8));
    assert_eq!(
        (entry.mtime, entry.kind),
        (Time { secs: 9, nanos: 250_000_000 }, EntryKind::File { size: 1, sparse: None })
    );
    let link = only(&tar(&[pax(&[("linkpath", "t".repeat(200))]), symlink("l", "short")]));
    assert_eq!(link.kind, EntryKind::Symlink { target: vec![b't'; 200] });
}

#[test]
fn prefixes_and_long_names_make_the_path() {
    let prefix = vec![(345, b"dir/sub".to_vec())];
    let with = |magic, raw| only(&tar(&[Head { magic, raw, ..head("name") }.block()])).path;
    assert_eq!(with(b"ustar\x0000", prefix.clone()), b"dir/sub/name");
    assert_eq!(with(b"v7-magic", prefix.clone()), b"name", "v7 has no prefix");
    assert_eq!(with(b"ustar  \0", vec![(345, b"00000000000\0".to_vec())]), b"name", "GNU has an atime there");
    assert_eq!(with(b"ustar  \0", prefix.clone()), b"dir/sub/name", "written by Go before 1.8");
    let star = [prefix, vec![(476, b"00000000001\0".to_vec()), (508, b"tar\0".to_vec())]].concat();
    assert_eq!(with(b"ustar\x0000", star), b"dir/sub/name", "star has an atime behind its prefix");
    let target = Head { kind: b'K', ..head("././@LongLink") }.with("t".repeat(150) + "\0");
    let link = only(&tar(&[long(&"n".repeat(120)), target, symlink("n", "t")]));
    assert_eq!((link.path, link.kind), (vec![b'n'; 120], EntryKind::Symlink { target: vec![b't'; 150] }));
}

#[test]
fn extended_headers_do_not_mix() {
    let x = || pax(&[("mtime", "1")]);
    let g = || extended(b'g', &record(b"comment", b"c"));
    let (l, f) = (|| long("n"), || file("a", "x"));
    for parts in [[x(), l()], [l(), x()], [x(), x()], [l(), l()], [x(), g()], [l(), g()]] {
        assert!(message(&[parts.concat(), f()]).contains("readers combine differently"));
    }
    assert_eq!(entries(&tar(&[g(), x(), f(), g(), l(), f()])).unwrap().len(), 2);
    assert!(entries(&tar(&[g().repeat(15), x(), f(), g(), f()])).is_ok(), "each entry has its own chain");
    assert_eq!(error(&tar(&[g().repeat(17), f()])).kind(), ErrorKind::LimitExceeded);
    assert!(entries(&tar(&[extended(b'x', b""), f()])).is_ok());
    assert!(message(&[extended(b'L', b""), f()]).contains("long name"));
    assert!(message(&[extended(b'L', b"a\0b"), f()]).contains("long name"));
    let mut parser = Parser::new(&Limits::default());
    parser.push(&x(), &mut Recorder::default()).unwrap();
    assert!(parser.finish().is_err(), "an extended header at the end");
}

#[test]
fn names_ending_in_a_slash_are_directories() {
    let of = |kind, name: &str| only(&tar(&[typed(name, kind)])).kind;
    assert_eq!(
        (of(0, "d/"), of(b'0', "d/"), of(0, "d")),
        (EntryKind::Directory, EntryKind::Directory, EntryKind::File { size: 0, sparse: None })
    );
    assert!(message(&[file("d/", "x")]).contains("with content"));
    assert!(message(&[Head { kind: 0, ..head("./") }.with("x")]).contains("with content"));
    assert!(message(&[typed("", b'5')]).contains("without a name"));
    assert_eq!(only(&tar(&[typed("/", b'5')])).path, b"");
    assert!(message(&[typed(".", b'0')]).contains("the root"));
}

#[test]
fn types_without_content_ignore_their_size() {
    for kind in *b"2346" {
        let link = b"t".to_vec();
        let header = Head { kind, size: 4096, link, device: (1, 3), ..head("a") }.block();
        assert_eq!(entries(&tar(&[header, file("b", "x")])).unwrap().len(), 2, "{}", kind as char);
    }
}

#[test]
fn hard_links_with_a_size_need_content_that_is_no_header() {
    let link = |name: &str, target: &str| Head { kind: b'1', size: 600, link: target.into(), ..head(name) }.block();
    assert_eq!(entries(&tar(&[link("l", "k"), vec![b'B'; 1024], file("b", "x")])).unwrap().len(), 2);
    assert!(message(&[link("l", "k"), file("b", "x")]).contains("claims content"));
    assert!(message(&[link("l", "k")]).contains("claims content"));
    assert!(error(&link("l", "k")).to_string().contains("the tar ends"));
    assert!(error(&[link("l", "k"), vec![b'B'; 512]].concat()).to_string().contains("the tar ends"));
}

#[test]
fn absolute_link_targets_need_absolute_names() {
    let target = |name, to| entries(&tar(&[hardlink(name, to)])).map(|mut e| e.remove(0).kind);
    let a_b = || EntryKind::Hardlink { target: b"a/b".to_vec() };
    assert_eq!(target("/l", "/a/b").unwrap(), a_b());
    assert_eq!(target("/l", "a/b").unwrap(), a_b());
    assert_eq!(target("./l", "./a/b").unwrap(), a_b());
    for (name, to) in [("l", "/a/b"), ("l", ""), ("l", "./"), ("/l", "/"), ("l", "./l"), ("l", "a/../b")] {
        assert!(target(name, to).is_err(), "{name} -> {to}");
    }
}

#[test]
fn symlinks_keep_their_target_and_devices_their_bounds() {
    assert_eq!(only(&tar(&[symlink("s", "/../a//b/")])).kind, EntryKind::Symlink { target: b"/../a//b/".to_vec() });
    assert!(message(&[symlink("s", "")]).contains("empty target"));
    let of = |len| entries(&tar(&[pax(&[("linkpath", "t".repeat(len))]), symlink("s", "x")])).map_err(|e| e.kind());
    assert!(of(4095).is_ok());
    assert_eq!(of(4096), Err(ErrorKind::LimitExceeded));
    let device =
        |device| entries(&tar(&[Head { kind: b'4', device, ..head("d") }.block()])).map(|mut e| e.remove(0).kind);
    assert_eq!(device((4095, 1_048_575)).unwrap(), EntryKind::BlockDevice { major: 4095, minor: 1_048_575 });
    assert!(device((4096, 0)).is_err() && device((0, 1 << 20)).is_err() && device((-1, 0)).is_err());
}

#[test]
fn ids_and_times_have_bounds() {
    let of = |key, value| entries(&tar(&[pax(&[(key, value)]), file("a", "")])).map(|mut e| e.remove(0));
    assert_eq!(of("uid", "4294967294").unwrap().uid, u32::MAX - 1);
    assert_eq!(of("mtime", "253402300799.9").unwrap().mtime.secs, 253_402_300_799);
    assert_eq!(of("mtime", "-62135596800").unwrap().mtime.secs, -62_135_596_800);
    for (key, value) in [
        ("uid", "4294967295"),
        ("gid", "4294967295"),
        ("gid", "-1"),
        ("mtime", "253402300800"),
        ("mtime", "-62135596800.1"),
        ("size", "9223372036854775808"),
    ] {
        assert_eq!(of(key, value).unwrap_err().kind(), ErrorKind::InvalidInput, "{key}={value}");
    }
}

#[test]
fn sparse_formats_agree() {
    let (body, want) = (vec![1u8; 20], sparse(100, &[(10, 5), (50, 15)]));
    let name = ("GNU.sparse.name", "s");
    let size = ("GNU.sparse.size", "100");
    let blocks = ("GNU.sparse.numblocks", "3");
    let spread: Vec<_> = [
        ("offset", "10"),
        ("numbytes", "5"),
        ("offset", "50"),
        ("numbytes", "15"),
        ("offset", "100"),
        ("numbytes", "0"),
    ]
    .map(|(key, value)| (format!("GNU.sparse.{key}"), value.to_owned()))
    .into_iter()
    .chain([name, size, blocks].map(|(key, value)| (key.to_owned(), value.to_owned())))
    .collect();
    let map = ("GNU.sparse.map", "10,5,50,15,100,0");
    let range = |at: i64, len: i64| [number(at, 12), number(len, 12)].concat();
    let raw = vec![(386, range(10, 5)), (410, range(50, 15)), (483, number(100, 12))];
    let old = Head { kind: b'S', size: 20, magic: b"ustar  \0", raw, ..head("s") };
    for parts in [
        [pax(&spread), file("x", &body)],
        [pax(&[name, size, blocks, map]), file("x", &body)],
        [old.block(), padded(&body)],
    ] {
        assert_eq!(only(&tar(&parts)).kind, want);
    }
    let star = Head { magic: b"ustar\x0000", ..old.clone() };
    assert_eq!(error(&tar(&[star.block(), padded(&body)])).kind(), ErrorKind::Unsupported);
    assert!(message(&[pax(&[("size", "20")]), old.block(), padded(&body)]).contains("two sizes"));
}

#[test]
fn half_described_sparse_files_are_refused() {
    let of = |records: &[(&str, &str)]| message(&[pax(records), file("a", "x")]);
    let one = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0")];
    assert!(of(&one).contains("without its logical size"));
    assert!(of(&[("GNU.sparse.major", "2"), ("GNU.sparse.minor", "0")]).contains("unknown version"));
    assert!(of(&[("GNU.sparse.name", "b")]).contains("without its logical size"));
    assert!(of(&[("GNU.sparse.map", "0,1"), ("GNU.sparse.size", "1")]).contains("numblocks"));
    let two = [("GNU.sparse.size", "1"), ("GNU.sparse.realsize", "2")];
    assert!(of(&[&one[..], &two].concat()).contains("two different sizes"));
    assert!(of(&[&one[..], &two[..1], &[("GNU.sparse.map", "0,1")]].concat()).contains("two maps"));
    assert!(message(&[pax(&[("GNU.sparse.name", "b")]), typed("d", b'5')]).contains("not a plain file"));
    assert!(of(&[("SCHILY.realsize", "9")]).contains("star"));
    let empty = message(&[pax(&[&one[..], &two[..1]].concat()), file("a", "")]);
    assert!(empty.contains("without its map"), "{empty}");
    let endless = message(&[pax(&[&one[..], &two[..1]].concat()), file("a", "1\n0\n")]);
    assert!(endless.contains("does not end"), "{endless}");
}

#[test]
fn the_end_may_be_missing_but_not_cut() {
    let whole = file("a", "x");
    for end in [0, 512, 1024, 1025, 5000] {
        assert!(entries(&[&whole[..], &vec![0; end]].concat()).is_ok(), "{end} zeros");
    }
    for end in [1, 511, 513, 1023] {
        assert!(entries(&[&whole[..], &vec![0; end]].concat()).is_err(), "{end} zeros");
    }
    assert!(entries(&whole[..513]).is_ok(), "no padding, as in Go");
    assert!(entries(&whole[..512]).is_err());
    assert_eq!(entries(b"").unwrap(), []);
}

#[test]
fn limits_hold() {
    let run = |limits: &Limits, tar: &[u8]| {
        let mut parser = Parser::new(limits);
        parser.push(tar, &mut Recorder::default()).map_err(|e| e.kind())
    };
    let two = tar(&[file("a", "x"), file("b", "x")]);
    let size = two.len() as u64;
    assert_eq!(run(&Limits::default().entries(2).layer_size(size), &two), Ok(()));
    assert_eq!(run(&Limits::default().entries(1), &two), Err(ErrorKind::LimitExceeded));
    assert_eq!(run(&Limits::default().layer_size(size - 1), &two), Err(ErrorKind::LimitExceeded));
    let large = Head { size: 5000, ..head("a") }.block();
    assert_eq!(run(&Limits::default().layer_size(5511), &large), Err(ErrorKind::LimitExceeded), "at its header");
    let extension = tar(&[pax(&[("comment", "c".repeat(100))]), file("a", "")]);
    assert_eq!(run(&Limits::default().extension(100), &extension), Err(ErrorKind::LimitExceeded));
    // 2 * (1 + 9 + 640 + 64) bytes, less the 512 that are free.
    let described = |name| [pax(&[("SCHILY.xattr.user.name", "v".repeat(640))]), file(name, "")].concat();
    let described = tar(&[described("a"), described("b")]);
    assert_eq!(run(&Limits::default().attributes(916), &described), Ok(()));
    assert_eq!(run(&Limits::default().attributes(915), &described), Err(ErrorKind::LimitExceeded));
}
