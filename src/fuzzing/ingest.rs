//! Any bytes as a tar: what must hold of the parser and the writer.

use crate::error::{ErrorKind, Result};
use crate::format::entry::{Entry, EntryKind};
use crate::limits::Limits;
use crate::tar::{Parser, Sink, Writer};

/// Collects what a parser says.
#[derive(Default)]
struct Account {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    /// Content the last entry is still to get.
    owed: u64,
}

impl Sink for Account {
    fn segment(&mut self, bytes: &[u8]) -> Result<()> {
        assert_eq!(self.owed, 0, "a segment inside content");
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn entry(&mut self, entry: Entry) -> Result<()> {
        assert_eq!(self.owed, 0, "an entry inside content");
        self.owed = entry.kind.stored_len();
        self.entries.push(entry);
        Ok(())
    }

    fn content(&mut self, bytes: &[u8]) -> Result<()> {
        self.owed = self.owed.checked_sub(bytes.len() as u64).expect("more content than the entry has");
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

/// Parses `tar` pushed in pieces of lengths made from `seed`, or whole.
fn parse(tar: &[u8], seed: Option<u8>) -> Result<Account> {
    let (mut parser, mut sink) = (Parser::new(&Limits::default()), Account::default());
    let (mut rest, mut state) = (tar, u32::from(seed.unwrap_or(0)));
    while !rest.is_empty() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let step = seed.map_or(rest.len(), |_| 1 + (state >> 22) as usize);
        let (piece, after) = rest.split_at(step.min(rest.len()));
        parser.push(piece, &mut sink)?;
        rest = after;
    }
    let summary = parser.finish()?;
    assert_eq!((summary.entries, summary.bytes), (sink.entries.len() as u64, tar.len() as u64));
    Ok(sink)
}

/// The first byte seeds the split, the rest is a tar. Whatever it is: pieces and the whole give the same result, the
/// calls add up to the input, every entry is within limits, and what the writer makes of an entry reads back as it.
pub fn tar_ingest(input: &[u8]) {
    let Some((seed, tar)) = input.split_first() else { return };
    let repaired = repair_checksums(tar);
    let tar = if seed & 1 == 0 { tar } else { &repaired };
    let whole = parse(tar, None);
    let pieces = parse(tar, Some(*seed));
    let (whole, pieces) = match (whole, pieces) {
        (Ok(whole), Ok(pieces)) => (whole, pieces),
        (Err(a), Err(b)) => return assert_eq!(a.to_string(), b.to_string()),
        (a, b) => panic!("{:?} whole, {:?} in pieces", a.err(), b.err()),
    };
    assert_eq!(whole.entries, pieces.entries);
    assert!(whole.bytes == tar && pieces.bytes == tar && whole.owed == 0, "the calls do not add up to the input");
    whole.entries.iter().for_each(check_entry);
}

fn check_entry(entry: &Entry) {
    let limits = Limits::default();
    assert!(entry.path.len() <= limits.path && !entry.path.contains(&0));
    let normal = |name: &[u8]| !matches!(name, b"" | b"." | b"..") && name.len() <= limits.name;
    assert!(entry.path.is_empty() || entry.path.split(|&b| b == b'/').all(normal));
    assert!(entry.mode <= 0o7777 && entry.uid != u32::MAX && entry.gid != u32::MAX);
    assert!(!matches!(entry.kind, EntryKind::CharDevice { major: 0, minor: 0 }));
    let mut writer = Writer::new(Vec::new(), &limits);
    match writer.entry(entry) {
        Err(e) if e.kind() == ErrorKind::LimitExceeded => return,
        result => result.expect("an entry that was read can be written"),
    }
    let content = vec![0; usize::try_from(entry.kind.stored_len()).expect("content that was in memory")];
    writer.content(&content).expect("as much content as the entry has");
    let tar = writer.finish().expect("a whole entry");
    let read = parse(&tar, None).expect("what was written can be read");
    assert_eq!(read.entries, std::slice::from_ref(entry));
}

/// Sets the checksum of every block that has the magic of a header, so that mutations get past it.
pub(super) fn repair_checksums(tar: &[u8]) -> Vec<u8> {
    let mut tar = tar.to_vec();
    for block in tar.chunks_exact_mut(512).filter(|block| block[257..].starts_with(b"ustar")) {
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    tar
}
