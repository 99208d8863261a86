//! Tests of the parser as a whole: the byte account under any split, the hostile suite, and entries of real dialects.

use super::parser::Summary;
use super::{Parser, Sink, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::format::entry::{DataRange, Entry, EntryKind, Time};
use crate::limits::Limits;
use hostile::build::{Head, extended, file, hardlink, head, long, number, padded, pax, record, symlink, tar, typed};
use hostile::{Verdict, cases};
use proptest::prelude::*;

mod dialects;

#[path = "../../../tests/hostile/mod.rs"]
#[allow(dead_code, reason = "parsing needs no lower layer")]
pub(super) mod hostile;

/// One call of a sink; consecutive segments, and consecutive contents, are one.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Call {
    Segment(Vec<u8>),
    Entry(Entry),
    Content(Vec<u8>),
}

#[derive(Default)]
pub(super) struct Recorder(pub(super) Vec<Call>);

impl Sink for Recorder {
    fn segment(&mut self, bytes: &[u8]) -> Result<()> {
        match self.0.last_mut() {
            Some(Call::Segment(last)) => last.extend_from_slice(bytes),
            _ => self.0.push(Call::Segment(bytes.to_vec())),
        }
        Ok(())
    }

    fn entry(&mut self, entry: Entry) -> Result<()> {
        self.0.push(Call::Entry(entry));
        Ok(())
    }

    fn content(&mut self, bytes: &[u8]) -> Result<()> {
        match self.0.last_mut() {
            Some(Call::Content(last)) => last.extend_from_slice(bytes),
            _ => self.0.push(Call::Content(bytes.to_vec())),
        }
        Ok(())
    }
}

/// Parses `tar` pushed in pieces whose lengths `steps` gives in turn, over and over.
fn parse(tar: &[u8], steps: &[usize]) -> Result<(Vec<Call>, Summary)> {
    let (mut parser, mut sink) = (Parser::new(&Limits::default()), Recorder::default());
    let (mut rest, mut steps) = (tar, steps.iter().cycle());
    while !rest.is_empty() {
        let step = steps.next().map_or(rest.len(), |&step| step.clamp(1, rest.len()));
        let (piece, after) = rest.split_at(step);
        parser.push(piece, &mut sink)?;
        rest = after;
    }
    let summary = parser.finish()?;
    Ok((sink.0, summary))
}

pub(super) fn entries(tar: &[u8]) -> Result<Vec<Entry>> {
    let keep = |call| if let Call::Entry(entry) = call { Some(entry) } else { None };
    Ok(parse(tar, &[])?.0.into_iter().filter_map(keep).collect())
}

fn only(tar: &[u8]) -> Entry {
    let mut entries = entries(tar).unwrap();
    assert_eq!(entries.len(), 1);
    entries.remove(0)
}

fn error(tar: &[u8]) -> Error {
    entries(tar).unwrap_err()
}

/// Checks the byte account and that every entry gets the content it stores.
fn assert_conserved(tar: &[u8], calls: &[Call]) {
    let (mut bytes, mut owed) = (Vec::new(), 0);
    for call in calls {
        match call {
            Call::Segment(segment) => bytes.extend_from_slice(segment),
            Call::Content(content) => {
                owed -= content.len() as u64;
                bytes.extend_from_slice(content);
            }
            Call::Entry(entry) => {
                assert_eq!(owed, 0);
                owed = entry.kind.stored_len();
            }
        }
    }
    assert_eq!(owed, 0);
    assert!(bytes == tar, "the calls do not add up to the input");
}

/// One of everything that spans blocks.
fn zoo() -> Vec<u8> {
    let linked = Head { kind: b'1', size: 700, link: b"a".to_vec(), ..head("l") }.block();
    let (major, minor) = (("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"));
    let sparse = pax(&[major, minor, ("GNU.sparse.name", "sparse"), ("GNU.sparse.realsize", "999999")]);
    let lines: String = (0..100).map(|i| format!("{}\n1\n", i * 1000)).collect();
    let map = padded(format!("100\n{lines}").as_bytes());
    let old = {
        let range = |at: i64, len: i64| [number(at, 12), number(len, 12)].concat();
        let raw = vec![(386, range(0, 10)), (482, vec![1]), (483, number(5000, 12))];
        let header = Head { kind: b'S', size: 30, magic: b"ustar  \0", raw, ..head("old") }.block();
        let blocks = [range(1000, 10), range(4990, 10), vec![0; 19 * 24], vec![0; 8]].concat();
        [header, blocks, padded(&[7; 30])].concat()
    };
    [
        file("a", [1; 1000]),
        extended(b'g', &record(b"comment", b"abcdef")),
        linked,
        padded(&[b'B'; 700]),
        long(&("long/".repeat(30) + "x")),
        file("x", "x"),
        pax(&[("path", "caf\u{e9}".repeat(40)), ("mtime", "-1.5".into()), ("SCHILY.xattr.user.a", "\n=".into())]),
        file("y", [2; 512]),
        sparse,
        file("GNUSparseFile.0/s", [map, vec![3; 100]].concat()),
        old,
        file("./", ""),
        vec![0; 1536],
    ]
    .concat()
}

#[test]
fn every_split_gives_the_same_calls() {
    let tar = zoo();
    let (whole, summary) = parse(&tar, &[]).unwrap();
    assert_conserved(&tar, &whole);
    assert_eq!(summary, Summary { entries: 7, bytes: tar.len() as u64 });
    for step in [1, 7, 511, 512, 513, 1000] {
        assert_eq!(parse(&tar, &[step]).unwrap(), (parse(&tar, &[]).unwrap().0, summary), "steps of {step}");
    }
}

proptest! {
    #[test]
    fn random_splits_give_the_same_calls(steps in proptest::collection::vec(1usize..1500, 1..20)) {
        let tar = zoo();
        prop_assert_eq!(parse(&tar, &steps).unwrap(), parse(&tar, &[]).unwrap());
    }

    #[test]
    fn every_truncation_ends_well(cut in 0usize..10_000) {
        let tar = zoo();
        let cut = cut % tar.len();
        match parse(&tar[..cut], &[]) {
            Ok((calls, _)) => assert_conserved(&tar[..cut], &calls),
            Err(e) => prop_assert!(e.to_string().contains("the tar ends"), "{}", e),
        }
    }

    #[test]
    fn flipped_bytes_never_panic(at in 0usize..20_000, flip in 1u8..=255) {
        let mut tar = zoo();
        let at = at % tar.len();
        tar[at] ^= flip;
        let whole = parse(&tar, &[]).map_err(|e| e.to_string());
        if let Ok((calls, _)) = &whole {
            assert_conserved(&tar, calls);
        }
        prop_assert_eq!(parse(&tar, &[100]).map_err(|e| e.to_string()), whole);
    }
}

#[test]
fn every_dialect_survives_the_writer() {
    let (calls, _) = parse(&zoo(), &[]).unwrap();
    let mut writer = Writer::new(Vec::new(), &Limits::default());
    for call in &calls {
        match call {
            Call::Segment(_) => {}
            Call::Entry(entry) => writer.entry(entry).unwrap(),
            Call::Content(bytes) => writer.content(bytes).unwrap(),
        }
    }
    let (again, _) = parse(&writer.finish().unwrap(), &[]).unwrap();
    let kept = |call: &&Call| !matches!(call, Call::Segment(_));
    assert!(calls.iter().filter(kept).eq(again.iter().filter(kept)));
}

#[test]
fn hostile_tars_get_their_verdicts() {
    let mut count = 0;
    for case in cases().filter(|case| case.is_plain()) {
        let tar = (case.build)();
        match (entries(&tar), case.verdict) {
            (Ok(_), Verdict::Safe) => {}
            (Err(e), Verdict::Reject) => {
                assert!(!e.subjects().is_empty(), "{}: the error names nothing: {e}", case.name);
                let kinds = [ErrorKind::InvalidInput, ErrorKind::LimitExceeded, ErrorKind::Unsupported];
                assert!(kinds.contains(&e.kind()), "{}: {:?}", case.name, e.kind());
                println!("{}: {e}", case.name);
            }
            (got, want) => panic!("{} ({}): wanted {want:?}, got {:?}", case.name, case.reason, got.map(|e| e.len())),
        }
        count += 1;
    }
    assert_eq!((count, cases().count()), (103, 109));
}
