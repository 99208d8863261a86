//! Which parts of a file are holes in a layer made here.
//!
//! Where a file system keeps holes depends on how the file was written and copied. For a layer that must not matter:
//! the same bytes always give the same entry. So holes are found in the content: runs of zeros of whole 4 KiB blocks,
//! at least [`HOLE`] bytes long. Less is not worth a sparse entry: zeros make equal chunks, which are stored once.

use super::source::SourceReader;
use crate::error::Result;
use crate::format::entry::DataRange;

/// Bytes of the shortest hole.
pub(super) const HOLE: u64 = 256 << 10;
const BLOCK: u64 = 4096;

/// The data of a file of `size` bytes between its holes; `None` if it has none. Any hole covers a block at a multiple
/// of its least length, so only those are read, and what is around the ones that are zero.
pub(super) fn data_ranges(reader: &SourceReader<'_>, size: u64, ranges_max: usize) -> Result<Option<Vec<DataRange>>> {
    let mut hole = HOLE;
    loop {
        let ranges = ranges_between(reader, size, hole)?;
        match ranges {
            Some(ranges) if ranges.len() > ranges_max => hole *= 2,
            ranges => return Ok(ranges),
        }
    }
}

fn ranges_between(reader: &SourceReader<'_>, size: u64, least: u64) -> Result<Option<Vec<DataRange>>> {
    if size < least {
        return Ok(None);
    }
    let mut buffer = vec![0; HOLE as usize];
    let (mut ranges, mut data, mut probe) = (Vec::new(), 0, 0);
    let mut found = false;
    while probe < size {
        if !is_zero(reader, &mut buffer, probe, BLOCK.min(size - probe))? {
            probe += least;
            continue;
        }
        let start = first_zero(reader, &mut buffer, data, probe)?;
        let end = first_data(reader, &mut buffer, probe, size)?;
        if end - start >= least {
            found = true;
            if start > data {
                ranges.push(DataRange { offset: data, len: start - data });
            }
            data = end;
        }
        probe = (end + 1).next_multiple_of(least).max(probe + least);
    }
    if data < size {
        ranges.push(DataRange { offset: data, len: size - data });
    }
    Ok(found.then_some(ranges))
}

fn is_zero(reader: &SourceReader<'_>, buffer: &mut [u8], offset: u64, len: u64) -> Result<bool> {
    let buffer = &mut buffer[..len as usize];
    reader.read(buffer, offset)?;
    Ok(zeros(buffer))
}

fn zeros(bytes: &[u8]) -> bool {
    bytes.iter().all(|&b| b == 0)
}

/// Where the zeros before `probe`, a block of zeros, begin; `data` at the earliest, which follows a hole or begins
/// the file.
fn first_zero(reader: &SourceReader<'_>, buffer: &mut [u8], data: u64, probe: u64) -> Result<u64> {
    let mut at = probe;
    while at > data {
        let len = (at - data).min(buffer.len() as u64);
        let part = &mut buffer[..len as usize];
        reader.read(part, at - len)?;
        let zero = part.rchunks(BLOCK as usize).take_while(|block| zeros(block)).count() as u64 * BLOCK;
        if zero < len {
            return Ok(at - zero);
        }
        at -= len;
    }
    Ok(data)
}

/// Where the zeros from `probe` on end.
fn first_data(reader: &SourceReader<'_>, buffer: &mut [u8], probe: u64, size: u64) -> Result<u64> {
    let mut at = probe;
    while at < size {
        at = reader.data_from(at, size) / BLOCK * BLOCK;
        let len = (size - at).min(buffer.len() as u64);
        let part = &mut buffer[..len as usize];
        reader.read(part, at)?;
        let blocks = part.chunks(BLOCK as usize).take_while(|block| zeros(block));
        let zero: u64 = blocks.map(|block| block.len() as u64).sum();
        at += zero;
        if zero < len {
            return Ok(at);
        }
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: usize = 65_536;

    fn ranges(bytes: &[u8], limit: usize) -> Option<Vec<(u64, u64)>> {
        let ranges = data_ranges(&SourceReader::Memory(bytes), bytes.len() as u64, limit).unwrap();
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

    #[test]
    fn few_ranges_are_enough() {
        let mut bytes = vec![];
        for n in 1..6u64 {
            bytes.resize(bytes.len() + (HOLE * n) as usize, 0);
            bytes.push(1);
            bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
        }
        assert_eq!(ranges(&bytes, LIMIT).unwrap().len(), 5);
        assert_eq!(ranges(&bytes, 3).unwrap().len(), 3);
        assert_eq!(ranges(&bytes, 2), None);
        assert_eq!(ranges(&vec![0; HOLE as usize], LIMIT), Some(vec![]));
        assert_eq!(ranges(&vec![0; HOLE as usize - 1], LIMIT), None);
    }
}
