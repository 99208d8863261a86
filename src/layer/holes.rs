//! Which parts of a file are holes in a layer made here.
//!
//! Where a file system keeps holes depends on how the file was written and copied. For a layer that must not matter:
//! the same bytes always give the same entry. So holes are found in the content: runs of zeros of whole 4 KiB blocks,
//! at least [`HOLE`] bytes long. Less is not worth a sparse entry: zeros make equal chunks, which are stored once.
//!
//! Holes that the file system or the store tells of are not read. The file is gone through once, whatever it holds. If
//! it has more holes than an entry may have ranges, the longest stay; memory is bounded all the while.

use super::source::SourceReader;
use crate::error::Result;
use crate::format::entry::DataRange;
use crate::observe::{Observer, check};
use std::cmp::Reverse;

/// Bytes of the shortest hole.
pub(super) const HOLE: u64 = 256 << 10;
const BLOCK: u64 = 4096;

/// The data of a file of `size` bytes between its holes, at most `most` ranges of it; `None` if it has no holes.
///
/// # Errors
/// Those of reading; `Cancelled`.
pub(super) fn data_ranges(
    reader: &SourceReader<'_>,
    size: u64,
    most: usize,
    observer: &dyn Observer,
) -> Result<Option<Vec<DataRange>>> {
    if size < HOLE {
        return Ok(None);
    }
    let holes = Holes { size, most: most.max(1) - 1, inner: vec![], first: 0, last: size };
    let mut search = Search { reader, observer, size, buffer: vec![0; HOLE as usize], holes };
    search.run()?;
    Ok(search.holes.data())
}

/// A file being gone through, first byte to last.
struct Search<'a, 'r> {
    reader: &'a SourceReader<'r>,
    observer: &'a dyn Observer,
    size: u64,
    buffer: Vec<u8>,
    holes: Holes,
}

impl Search<'_, '_> {
    fn run(&mut self) -> Result<()> {
        // All before `at` is searched; the zeros that end there begin at `zeros`.
        let (mut at, mut zeros) = (0, 0);
        while at < self.size {
            check(self.observer)?;
            let data = self.reader.data_from(at, self.size);
            if data >= self.size {
                break;
            }
            let start = data / BLOCK * BLOCK;
            let end = self.reader.hole_from(data, self.size).max(data + 1).next_multiple_of(BLOCK).min(self.size);
            zeros = self.search(start, end, zeros)?;
            at = end;
        }
        self.holes.add(zeros, self.size);
        Ok(())
    }

    /// Searches what may have data, from the first byte of a block to the last byte of one or of the file. Returns where
    /// the zeros begin that it ends with; those that it begins after began at `zeros`.
    fn search(&mut self, start: u64, end: u64, zeros: u64) -> Result<u64> {
        let mut data = self.first_data(start, end)?;
        if data == end {
            return Ok(zeros);
        }
        self.holes.add(zeros, data);
        // Any hole covers a block at a multiple of its least length: only those are read, and what is around the ones
        // that are zero.
        let mut probe = (data + 1).next_multiple_of(HOLE);
        while probe < end {
            check(self.observer)?;
            if !self.is_zero(probe, BLOCK.min(end - probe))? {
                probe += HOLE;
                continue;
            }
            let first = self.first_zero(data, probe)?;
            data = self.first_data(probe, end)?;
            if data == end {
                return Ok(first);
            }
            self.holes.add(first, data);
            probe = (data + 1).next_multiple_of(HOLE);
        }
        // At the end of the file they would be too short, or were found.
        if end == self.size { Ok(end) } else { self.first_zero(data, end) }
    }

    fn is_zero(&mut self, offset: u64, len: u64) -> Result<bool> {
        let part = &mut self.buffer[..len as usize];
        self.reader.read(part, offset)?;
        Ok(zeros(part))
    }

    /// Where the zeros before `probe`, a block's begin, begin; `data` at the earliest.
    fn first_zero(&mut self, data: u64, probe: u64) -> Result<u64> {
        let (mut at, mut step) = (probe, BLOCK);
        while at > data {
            check(self.observer)?;
            let len = (at - data).min(step);
            let part = &mut self.buffer[..len as usize];
            self.reader.read(part, at - len)?;
            let zero = part.rchunks(BLOCK as usize).take_while(|block| zeros(block)).count() as u64 * BLOCK;
            at -= zero;
            if zero < len {
                return Ok(at);
            }
            step = (2 * step).min(HOLE);
        }
        Ok(data)
    }

    /// Where the zeros from `probe` on, a block's begin, end; `end` at the latest.
    fn first_data(&mut self, probe: u64, end: u64) -> Result<u64> {
        let (mut at, mut step) = (probe, BLOCK);
        while at < end {
            check(self.observer)?;
            let len = (end - at).min(step);
            let part = &mut self.buffer[..len as usize];
            self.reader.read(part, at)?;
            let blocks = part.chunks(BLOCK as usize).take_while(|block| zeros(block));
            let zero: u64 = blocks.map(|block| block.len() as u64).sum();
            at += zero;
            if zero < len {
                return Ok(at);
            }
            step = (2 * step).min(HOLE);
        }
        Ok(end)
    }
}

fn zeros(bytes: &[u8]) -> bool {
    bytes.iter().all(|&b| b == 0)
}

/// The holes found so far: of those with data on both sides the longest, of equal ones the first. So which ones stay
/// depends on the content alone, not on when the others were dropped.
struct Holes {
    size: u64,
    /// Most holes between data.
    most: usize,
    inner: Vec<DataRange>,
    /// Where the hole that the file begins with ends.
    first: u64,
    /// Where the hole that it ends with begins.
    last: u64,
}

impl Holes {
    fn add(&mut self, start: u64, end: u64) {
        if end - start < HOLE {
            return;
        }
        // A file of zeros only is a hole that it ends with.
        match (start, end) {
            (_, end) if end == self.size => self.last = start,
            (0, _) => self.first = end,
            _ => self.inner.push(DataRange { offset: start, len: end - start }),
        }
        if self.inner.len() >= 2 * self.most + 1024 {
            self.drop_shortest();
        }
    }

    fn drop_shortest(&mut self) {
        if self.inner.len() > self.most {
            self.inner.select_nth_unstable_by_key(self.most, |hole| (Reverse(hole.len), hole.offset));
            self.inner.truncate(self.most);
            self.inner.sort_unstable_by_key(|hole| hole.offset);
        }
    }

    /// What lies between the holes; `None` if there are none.
    fn data(mut self) -> Option<Vec<DataRange>> {
        self.drop_shortest();
        if self.inner.is_empty() && self.first == 0 && self.last == self.size {
            return None;
        }
        let mut ranges = Vec::with_capacity(self.inner.len() + 1);
        let mut data = self.first;
        let last = DataRange { offset: self.last, len: 0 };
        for hole in self.inner.iter().chain([&last]) {
            if hole.offset > data {
                ranges.push(DataRange { offset: data, len: hole.offset - data });
            }
            data = hole.offset + hole.len;
        }
        Some(ranges)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::DiskFile;
    use proptest::prelude::*;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    const LIMIT: usize = 65_536;

    fn ranges(bytes: &[u8], limit: usize) -> Option<Vec<(u64, u64)>> {
        let ranges = data_ranges(&SourceReader::Memory(bytes), bytes.len() as u64, limit, &()).unwrap();
        ranges.map(|ranges| ranges.iter().map(|r| (r.offset, r.len)).collect())
    }

    /// Every block looked at, one after the other.
    fn plainly(bytes: &[u8]) -> Option<Vec<(u64, u64)>> {
        let (mut out, mut data, mut at, mut found) = (vec![], 0, 0, false);
        while at < bytes.len() {
            let zero: usize = bytes[at..].chunks(BLOCK as usize).take_while(|b| zeros(b)).map(<[u8]>::len).sum();
            if zero as u64 >= HOLE {
                found = true;
                out.extend((at > data).then_some((data as u64, (at - data) as u64)));
                data = at + zero;
            }
            at += zero.max(BLOCK as usize);
        }
        out.extend((data < bytes.len()).then(|| (data as u64, (bytes.len() - data) as u64)));
        found.then_some(out)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn holes_are_found_by_content(
            runs in proptest::collection::vec((1u64..150, any::<bool>()), 0..12), tail in 0usize..5000, zero: bool,
        ) {
            let mut bytes = vec![];
            for (blocks, data) in runs {
                bytes.resize(bytes.len() + (blocks * BLOCK) as usize, u8::from(data));
            }
            bytes.resize(bytes.len() + tail, u8::from(!zero));
            prop_assert_eq!(ranges(&bytes, LIMIT), plainly(&bytes));
        }
    }

    /// The longest holes stay, of equal ones the first; those at the ends cost no range.
    #[test]
    fn of_too_many_holes_the_longest_stay() {
        let mut bytes = vec![];
        for n in [1, 2, 5, 3, 5] {
            bytes.resize(bytes.len() + (HOLE * n) as usize, 0);
            bytes.push(1);
            bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
        }
        let all = ranges(&bytes, LIMIT).unwrap();
        let starts = |limit| -> Vec<u64> { ranges(&bytes, limit).unwrap().iter().map(|range| range.0).collect() };
        let after = |kept: &[usize]| -> Vec<u64> { kept.iter().map(|&at| all[at].0).collect() };
        assert_eq!(starts(5), after(&[0, 1, 2, 3, 4]));
        assert_eq!(starts(4), after(&[0, 2, 3, 4]));
        assert_eq!(starts(3), after(&[0, 2, 4]));
        assert_eq!(starts(2), after(&[0, 2]));
        assert_eq!(starts(1), after(&[0]));
        let ends = |limit| ranges(&bytes, limit).unwrap().last().map(|range| range.0 + range.1);
        assert!((1..6).all(|limit| ends(limit) == ends(5)));
        assert_eq!(ranges(&vec![0; HOLE as usize], LIMIT), Some(vec![]));
        assert_eq!(ranges(&vec![0; HOLE as usize - 1], LIMIT), None);
    }

    /// Shortest holes are dropped many times on the way; what stays is what dropping them once would have left.
    #[test]
    fn memory_for_holes_is_bounded() {
        let mut holes = Holes { size: u64::MAX, most: 3, inner: vec![], first: 0, last: u64::MAX };
        let (mut at, mut most) = (HOLE, 0);
        for n in 0..100_000u64 {
            let len = HOLE + n * 7919 % 100_003;
            holes.add(at, at + len);
            at += len + BLOCK;
            most = most.max(holes.inner.len());
        }
        assert!(most < 1100, "{most}");
        holes.drop_shortest();
        let lens: std::collections::BTreeSet<u64> = holes.inner.iter().map(|hole| hole.len).collect();
        let mut wanted: Vec<u64> = (0..100_000u64).map(|n| HOLE + n * 7919 % 100_003).collect();
        wanted.sort_unstable();
        assert!(lens.iter().eq(&wanted[wanted.len() - 3..]));
    }

    /// A file that counts what is read of it.
    fn on_disk(write: impl FnOnce(&std::fs::File)) -> (tempfile::TempDir, crate::layer::Source, u64) {
        let dir = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(dir.path().join("f")).unwrap();
        write(&file);
        let size = file.metadata().unwrap().len();
        let scan = crate::sys::scan::scan(
            dir.path(),
            1,
            &crate::sys::scan::Bounds::tree(&crate::limits::Limits::default()),
            &(),
        )
        .unwrap();
        let disk = DiskFile { dir: scan.dir, place: Arc::default(), name: b"f"[..].into(), size, bytes: None };
        (dir, crate::layer::Source::Disk(Arc::new(disk)), size)
    }

    /// Asks to stop at the `n`th question.
    struct StopAt(u64, std::sync::atomic::AtomicU64);

    impl Observer for StopAt {
        fn event(&self, _: crate::observe::Event) {}
        fn cancelled(&self) -> bool {
            self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed) >= self.0
        }
    }

    /// An exbibyte would take years to read.
    #[test]
    fn holes_of_the_file_system_are_not_read() {
        let write = |file: &std::fs::File| {
            // What the file system at hand can hold.
            let size = [1u64 << 62, 1 << 43, 1 << 40].into_iter().find(|size| file.set_len(*size).is_ok()).unwrap();
            for at in [0, 5 << 30, size - 5000] {
                file.write_all_at(b"data", at).unwrap();
            }
        };
        let (_dir, source, size) = on_disk(write);
        let dir = tempfile::tempdir().unwrap();
        let store = crate::Store::open(dir.path().join("store")).unwrap();
        let reader = SourceReader::open(&store, &source, size, None).unwrap();
        let questions = StopAt(1000, Default::default());
        let found = data_ranges(&reader, size, LIMIT, &questions).unwrap().unwrap();
        assert_eq!(found.len(), 3, "{found:?}");
        assert_eq!((found[0].offset, found[1].offset), (0, 5 << 30));
        assert!(found[2].offset <= size - 5000 && found[2].offset + found[2].len == size);
        assert!(found.iter().all(|range| range.len <= 2 * BLOCK), "{found:?}");
    }

    /// Whatever the file is like, there is a question whether to stop for every few bytes read.
    #[test]
    fn the_search_can_be_stopped() {
        let dense = vec![1; 64 << 20];
        let zero = vec![0; 64 << 20];
        for bytes in [&dense, &zero] {
            let stop = StopAt(10, Default::default());
            let error = data_ranges(&SourceReader::Memory(bytes), bytes.len() as u64, LIMIT, &stop).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Cancelled);
        }
    }
}
