//! What entries of the tar dialects become, and which combinations are refused as ambiguous.

use super::*;
use crate::format::entry::Xattr;

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
    let x = || pax(&[("path", "p"), ("linkpath", "t")]);
    let g = || extended(b'g', &record(b"comment", b"c"));
    let (l, f) = (|| long("n"), || file("a", "x"));
    let k = || extended(b'K', b"t\0");
    for parts in
        [[x(), l()], [l(), x()], [x(), k()], [k(), x()], [x(), x()], [l(), l()], [k(), k()], [x(), g()], [l(), g()]]
    {
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
fn pax_and_long_names_mix_where_they_say_different_things() {
    let (name, target) = ("n/".repeat(60) + "f", "t/".repeat(60) + "f");
    let (l, k) = (|| long(&name), || extended(b'K', (target.clone() + "\0").as_bytes()));
    let x = || pax(&[("SCHILY.xattr.user.a", "1"), ("mtime", "5"), ("uid", "7"), ("ACME.id", "x")]);
    for parts in [[x(), l(), k()], [l(), x(), k()], [l(), k(), x()], [k(), l(), x()]] {
        let entry = only(&tar(&[parts.concat(), symlink("s", "short")]));
        let xattrs = vec![Xattr { name: b"user.a".to_vec(), value: b"1".to_vec() }];
        assert_eq!((&entry.path[..], entry.mtime.secs, entry.uid, entry.xattrs), (name.as_bytes(), 5, 7, xattrs));
        assert_eq!(entry.kind, EntryKind::Symlink { target: target.clone().into() });
    }
    let (path, link) = (|| pax(&[("path", "p")]), || pax(&[("linkpath", "t")]));
    for parts in [[path(), k()], [k(), path()], [link(), l()], [l(), link()]] {
        assert_eq!(entries(&tar(&[parts.concat(), symlink("s", "x")])).unwrap().len(), 1);
    }
    for key in ["path", "size", "GNU.sparse.name", "GNU.sparse.major"] {
        for parts in [[pax(&[(key, "1")]), l()], [l(), pax(&[(key, "1")])]] {
            assert!(message(&[parts.concat(), file("a", "x")]).contains("readers combine differently"), "{key}");
        }
    }
    for key in ["path", "size"] {
        let deleted = message(&[pax(&[(key, "")]), l(), file("a", "x")]);
        assert!(deleted.contains("readers combine differently"), "{deleted}");
    }
    let spread = pax(&[("GNU.sparse.offset", "0"), ("GNU.sparse.numbytes", "1")]);
    assert!(message(&[spread, l(), file("a", "x")]).contains("readers combine differently"));
}

#[test]
fn global_headers_may_hold_keys_of_vendors() {
    let g = |name: &str, records: &[(&str, &str)]| {
        let body: Vec<u8> = records.iter().flat_map(|(k, v)| record(k.as_bytes(), v.as_bytes())).collect();
        Head { kind: b'g', ..head(name) }.with(body)
    };
    let vendor = [("ACME.build", "7"), ("comment", "c"), ("GNU.volume.label", "l")];
    for name in ["pax_global_header", "/tmp/GlobalHead.12.1", "././@PaxHeader", "PaxHeaders/g"] {
        assert_eq!(entries(&tar(&[file("a", "x"), g(name, &vendor), file("b", "x")])).unwrap().len(), 2, "{name}");
    }
    for (key, value) in [("path", "b"), ("GNU.sparse.major", "1"), ("SCHILY.xattr.user.a", "b"), ("uid", "0")] {
        let records = [vendor[0], (key, value)];
        assert!(message(&[g("PaxHeaders/g", &records), file("a", "x")]).contains("readers disagree on"), "{key}");
    }
    // containerd removes what such a header is named like.
    assert_eq!(entries(&tar(&[g("etc/passwd", &vendor), file("b", "x")])).unwrap().len(), 1);
    assert!(message(&[file("etc/passwd", "x"), g("etc/passwd", &vendor)]).contains("would remove"));
    for name in [".wh.a", "d/.wh.a", "d/.wh..wh..opq", "PaxHeaders/.wh.x/.//"] {
        assert!(message(&[g(name, &vendor), file("b", "x")]).contains("would remove"), "{name}");
    }
}

#[test]
fn names_ending_in_a_slash_are_directories() {
    let of = |kind, name: &str| only(&tar(&[typed(name, kind)])).kind;
    assert_eq!((of(0, "d/"), of(0, "d")), (EntryKind::Directory, EntryKind::File { size: 0, sparse: None }));
    for kind in [b'0', b'7'] {
        for name in ["d/", "./d/", "d//", "d/e/"] {
            assert!(message(&[typed(name, kind)]).contains("only some readers"), "{name}");
            assert!(message(&[pax(&[("path", name)]), typed("f", kind)]).contains("only some readers"), "{name}");
            assert!(message(&[long(name), typed("f", kind)]).contains("only some readers"), "{name}");
        }
        assert_eq!(of(kind, "./"), EntryKind::Directory);
    }
    assert_eq!(only(&tar(&[pax(&[("path", "d/")]), typed("f", 0)])).kind, EntryKind::Directory);
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
    let head = |size| Head { kind: b'1', size, link: b"k".to_vec(), ..head("l") };
    let link = |_: &str, _: &str| head(600).block();
    assert_eq!(entries(&tar(&[link("l", "k"), vec![b'B'; 1024], file("b", "x")])).unwrap().len(), 2);
    for hidden in [file("evil", "x"), vec![0; 512]] {
        for before in [0, 1, 3] {
            let size = (before * 512 + hidden.len()) as i64;
            let body = [vec![b'B'; before * 512], hidden.clone()].concat();
            assert!(message(&[head(size).block(), body, file("c", "x")]).contains("claims content"), "{before}");
        }
    }
    for magic in [b"ustar  \0", b"\0\0\0\0\0\0\0\0"] {
        let other = Head { magic, ..head(3) }.block();
        assert!(message(&[other, padded(b"bad"), file("c", "x")]).contains("claims content"));
    }
    for extension in [pax(&[("mtime", "1.0")]), pax(&[("size", "3")]), long("l")] {
        assert!(message(&[extension, head(3).block(), padded(b"bad"), file("c", "x")]).contains("claims content"));
    }
    let unsized_by_pax = [pax(&[("size", "0")]), head(3).block(), file("c", "x")];
    assert_eq!(entries(&tar(&unsized_by_pax)).unwrap().len(), 2);
    assert!(message(&[link("l", "k"), file("b", "x")]).contains("claims content"));
    assert!(message(&[link("l", "k")]).contains("claims content"));
    assert!(error(&link("l", "k")).to_string().contains("the tar ends"));
    assert!(error(&[link("l", "k"), vec![b'B'; 512]].concat()).to_string().contains("the tar ends"));
}

#[test]
fn link_targets_are_names_below_the_root() {
    let target = |name: &str, to: &str| entries(&tar(&[hardlink(name, to)])).map(|mut e| e.remove(0).kind);
    let a_b = || EntryKind::Hardlink { target: b"a/b".to_vec() };
    for name in ["l", "./l", "/l", "//l", "/./l", "d//l", "l/"] {
        for to in ["a/b", "./a/b", "/a/b", "//a/b", "/./a//b", "a/b/", "/a/b//"] {
            assert_eq!(target(name, to).unwrap(), a_b(), "{name} -> {to}");
            let long = tar(&[pax(&[("path", name), ("linkpath", to)]), hardlink("x", "y")]);
            assert_eq!(only(&long).kind, a_b(), "{name} -> {to}");
        }
        for to in ["", "/", "./", "//.", "/../a", "../a", "a/../b", "/a/..", "l", "/l", "./l/"] {
            let itself = to.contains('l') && name.starts_with('d');
            assert_eq!(target(name, to).is_err(), !itself, "{name} -> {to}");
        }
    }
}

#[test]
fn what_an_absolute_link_made_is_not_written_again() {
    let twice = |name, to, again| entries(&tar(&[file("a", "x"), hardlink(name, to), file(again, "y")]));
    let e = twice("l", "/a", "l").unwrap_err().to_string();
    assert!(e.contains("replaces a hard link"), "{e}");
    assert!(twice("./l", "/a", "/l").is_err());
    assert_eq!(twice("l", "a", "l").unwrap().len(), 3);
    assert_eq!(twice("/l", "/a", "l").unwrap().len(), 3, "both absolute: the same root");
    assert_eq!(twice("l", "/a", "a").unwrap().len(), 3);
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
    for named in ["s/", "./", "s//"] {
        let slash = Head { name: named.into(), ..old.clone() };
        assert!(message(&[slash.block(), padded(&body)]).contains("named like a directory"));
        let name = ("GNU.sparse.name", named);
        assert!(message(&[pax(&[name, size, blocks, map]), file("x", &body)]).contains("named like a directory"));
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
    let nothing = [("GNU.sparse.name", "evil"), ("GNU.sparse.realsize", "4096"), ("GNU.sparse.numblocks", "0")];
    let bare = |records: &[(&str, &str)]| message(&[pax(records), file("good", "")]);
    assert!(bare(&nothing).contains("without its map"));
    assert!(bare(&[&nothing[..], &[("GNU.sparse.map", "")]].concat()).contains("without a value"));
    for version in [[("GNU.sparse.major", "0"), ("GNU.sparse.minor", "0")], [one[0], ("GNU.sparse.minor", "1")]] {
        assert!(!bare(&[&nothing[..], &version].concat()).is_empty());
    }
    for named in ["./", "x/", "/", "d/x//"] {
        let record = ("GNU.sparse.name", named);
        for kind in [0, b'0', b'7'] {
            let header = Head { kind, ..head("etc/passwd") };
            for records in [vec![record], vec![one[0], record], vec![one[0], one[1], record]] {
                let both = message(&[pax(&records), header.clone().with("root")]);
                assert!(both.contains("named like a directory"), "{both}");
                assert!(message(&[pax(&records), header.block()]).contains("named like a directory"));
            }
        }
    }
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
