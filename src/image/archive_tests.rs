//! Tars of every kind the scanner reads, and of those it must not trust.

use super::*;
use crate::image::fixture::{member, seal, tar};
use std::io::Write;

fn scan_bytes(bytes: &[u8]) -> Result<Table> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    scan(&file, &Limits::default())
}

fn record(key: &str, value: &str) -> Vec<u8> {
    let rest = format!(" {key}={value}\n");
    let mut len = rest.len() + 1;
    while len != rest.len() + len.to_string().len() {
        len += 1;
    }
    format!("{len}{rest}").into_bytes()
}

#[test]
fn finds_names_in_all_their_forms() {
    let long = "n".repeat(300);
    let mut prefixed = member(b'0', "tail", "", b"4");
    prefixed[345..350].copy_from_slice(b"a/pre");
    seal(&mut prefixed);
    let bytes = tar(&[
        member(b'5', "./", "", b""),
        member(b'0', "./plain", "", b"1"),
        member(b'L', "././@LongLink", "", format!("{long}\0").as_bytes()),
        member(b'0', "short", "", b"2"),
        member(b'x', "pax", "", &record("path", "from/pax")),
        member(b'0', "ignored", "", b"3"),
        prefixed,
        member(b'g', "global", "", &record("path", "not/this")),
        member(0, "old", "", b"5"),
        member(b'2', "dir/sym", "../plain", b""),
        member(b'1', "hard", "./plain", b""),
    ]);
    let table = scan_bytes(&bytes).unwrap();
    let content = |name: &str| match table.get(name) {
        Some(Member::File { offset, len }) => &bytes[*offset as usize..(*offset + *len) as usize],
        other => panic!("{name}: {other:?}"),
    };
    let files = [("plain", b"1"), (&long, b"2"), ("from/pax", b"3"), ("a/pre/tail", b"4"), ("old", b"5")];
    for (name, expected) in files {
        assert_eq!(content(name), expected);
    }
    assert_eq!(table["dir/sym"], Member::Link("plain".into()));
    assert_eq!(table["hard"], Member::Link("plain".into()));
    assert_eq!(table.len(), files.len() + 2);
}

#[test]
fn the_pax_size_counts() {
    let mut big = member(b'0', "big", "", &[7; 700]);
    big[124..135].copy_from_slice(b"00000000000");
    seal(&mut big);
    let bytes = tar(&[member(b'x', "pax", "", &record("size", "700")), big, member(b'0', "next", "", b"n")]);
    let table = scan_bytes(&bytes).unwrap();
    assert_eq!(table["big"], Member::File { offset: 1536, len: 700 });
    assert!(table.contains_key("next"));
}

#[test]
fn names_that_leave_the_archive_are_not_there() {
    let bytes = tar(&[
        member(b'0', "/absolute", "", b"1"),
        member(b'0', "a/../b", "", b"2"),
        member(b'0', "../c", "", b"3"),
        member(b'2', "up", "../../x", b""),
        member(b'2', "root", "/etc/passwd", b""),
    ]);
    let table = scan_bytes(&bytes).unwrap();
    assert!(table.values().all(|m| matches!(m, Member::Unclear(_))), "{table:?}");
    assert_eq!(table.len(), 2, "{table:?}");
}

#[test]
fn a_name_given_twice_means_nothing() {
    let bytes = tar(&[member(b'0', "a", "", b"1"), member(b'0', "./a", "", b"2")]);
    assert!(matches!(scan_bytes(&bytes).unwrap()["a"], Member::Unclear(_)));
}

#[test]
fn damage_is_refused() {
    let good = tar(&[member(b'0', "a", "", &[1; 600]), member(b'0', "b", "", b"2")]);
    let mut flipped = good.clone();
    flipped[3] ^= 1;
    assert!(scan_bytes(&flipped).unwrap_err().message().contains("checksum"));
    for len in [100, 512, 1000, 1111, 1700] {
        assert!(scan_bytes(&good[..len]).is_err(), "cut to {len}");
    }
    assert!(scan_bytes(&good[..good.len() - 1024]).is_ok(), "end marks may be missing");
    let lone = [member(b'0', "a", "", b""), vec![0; 512], member(b'0', "b", "", b"")].concat();
    assert!(scan_bytes(&lone).unwrap_err().message().contains("zero block"));
    for bad in ["", "5 a=\n", "99 path=x\n", "x path=y\n", "0 path=x\n", "-9 path=\n", "7 pathx\n"] {
        let bytes = tar(&[member(b'x', "pax", "", bad.as_bytes()), member(b'0', "a", "", b"")]);
        assert_eq!(scan_bytes(&bytes).is_ok(), bad.is_empty() || bad == "5 a=\n", "{bad:?}");
    }
}

#[test]
fn sizes_are_bounded() {
    let mut huge = member(b'0', "a", "", b"");
    huge[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0x7f, 255, 255, 255, 255, 255, 255, 255]);
    seal(&mut huge);
    assert!(scan_bytes(&tar(&[huge.clone()])).is_err());
    huge[124] = 0xff;
    seal(&mut huge);
    assert!(scan_bytes(&tar(&[huge])).unwrap_err().message().contains("size"));
    let mut long = member(b'x', "pax", "", b"");
    long[124..135].copy_from_slice(b"00010000000");
    seal(&mut long);
    assert_eq!(scan_bytes(&tar(&[long])).unwrap_err().kind(), ErrorKind::LimitExceeded);
    let chain = vec![member(b'g', "g", "", b""); 100];
    assert_eq!(scan_bytes(&tar(&chain)).unwrap_err().kind(), ErrorKind::LimitExceeded);
}

#[test]
fn names_are_bounded() {
    let with = |kind, key: &str, len| {
        let bytes = tar(&[member(b'x', "pax", "", &record(key, &"n".repeat(len))), member(kind, "a", "b", b"")]);
        scan_bytes(&bytes).map_err(|e| e.kind())
    };
    let limit = Limits::default().path;
    for (kind, key) in [(b'0', "path"), (b'5', "path"), (b'1', "linkpath"), (b'2', "linkpath")] {
        assert!(with(kind, key, limit).is_ok(), "{key}");
        assert_eq!(with(kind, key, limit + 1).err(), Some(ErrorKind::LimitExceeded), "{key}");
    }
}

#[test]
fn names_are_bounded_together() {
    let limit = Limits::default().path;
    let with = |count: usize| {
        let named = |i| [member(b'x', "pax", "", &record("path", &format!("{i:0limit$}"))), member(b'0', "a", "", b"")];
        scan_bytes(&tar(&(0..count).flat_map(named).collect::<Vec<_>>())).map_err(|e| e.kind())
    };
    assert_eq!(with(MAX_NAME_BYTES / limit).unwrap().len(), MAX_NAME_BYTES / limit);
    assert_eq!(with(MAX_NAME_BYTES / limit + 1).err(), Some(ErrorKind::LimitExceeded));
}
