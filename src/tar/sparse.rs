//! Maps of sparse files: ranges of stored bytes in a file of some logical size.
//!
//! Four encodings share [`Map`]: the binary map of old GNU headers (`header.rs`), `GNU.sparse.offset`/`numbytes`
//! records (format 0.0), one `GNU.sparse.map` record (0.1), and decimal lines before the content (1.0, [`MapReader`]).
//! A map must be ascending and disjoint, lie inside the file, and account for every stored byte.
//! Source: GNU tar manual, "Storing Sparse Files".

use super::pax::unsigned;
use crate::error::{Error, Result};
use crate::format::entry::DataRange;
use crate::limits::Limits;

/// A map under construction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Map {
    ranges: Vec<DataRange>,
    /// Ranges seen, empty ones included: they cost work too.
    count: usize,
    end: u64,
    stored: u64,
}

impl Map {
    /// Appends a range. Empty ones, which writers use to mark the end of the file, are checked and dropped.
    pub(crate) fn push(&mut self, offset: u64, len: u64, limits: &Limits) -> Result<()> {
        self.count += 1;
        // One more for the empty range that marks the end.
        if self.count > limits.sparse_ranges + 1 || self.ranges.len() >= limits.sparse_ranges && len > 0 {
            return Err(Error::limit("a sparse file has too many ranges", limits.sparse_ranges, self.count));
        }
        if offset < self.end {
            return Err(Error::invalid("the ranges of a sparse file overlap or do not ascend"));
        }
        let end = offset.saturating_add(len);
        if end > limits.file_size {
            return Err(Error::limit("a range of a sparse file ends too far", limits.file_size, end));
        }
        self.end = end;
        if len > 0 {
            self.ranges.push(DataRange { offset, len });
            // Disjoint ranges below `end` cannot overflow their sum.
            self.stored += len;
        }
        Ok(())
    }

    pub(crate) fn is_used(&self) -> bool {
        self.count > 0
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The map of a file of logical `size` for which the tar holds `stored` bytes.
    pub(crate) fn finish(self, size: u64, stored: u64) -> Result<Vec<DataRange>> {
        if self.end > size {
            return Err(Error::invalid("a range of a sparse file lies behind its end").expected(size).actual(self.end));
        }
        if self.stored != stored {
            let error = Error::invalid("a sparse file does not store what its map says");
            return Err(error.expected(self.stored).actual(stored));
        }
        Ok(self.ranges)
    }

    /// Reads the `GNU.sparse.map` record of format 0.1: offsets and lengths in turn, between commas.
    pub(crate) fn parse_list(list: &[u8], limits: &Limits) -> Result<Self> {
        let bad = || Error::invalid("GNU.sparse.map is not pairs of numbers");
        let mut map = Self::default();
        let mut numbers = list.split(|&b| b == b',').map(unsigned);
        while let Some(offset) = numbers.next() {
            let (offset, len) = (offset.ok_or_else(bad)?, numbers.next().flatten().ok_or_else(bad)?);
            map.push(offset, len, limits)?;
        }
        Ok(map)
    }
}

/// Reads the map of format 1.0 as it arrives: the number of ranges, then offset and length of each, one number a line;
/// the last block is filled up with bytes that mean nothing.
#[derive(Debug, Default)]
pub(crate) struct MapReader {
    map: Map,
    /// Ranges still to come, once the first line is read.
    left: Option<u64>,
    offset: Option<u64>,
    number: Option<u64>,
}

impl MapReader {
    /// Reads from `bytes` up to the end of the map; returns how many bytes that took.
    pub(crate) fn feed(&mut self, bytes: &[u8], limits: &Limits) -> Result<usize> {
        for (at, &byte) in bytes.iter().enumerate() {
            match byte {
                b'0'..=b'9' => {
                    let number = self.number.unwrap_or(0).checked_mul(10);
                    let number = number.and_then(|n| n.checked_add(u64::from(byte - b'0')));
                    self.number = Some(number.ok_or_else(|| Error::invalid("a sparse map with a number too large"))?);
                }
                b'\n' => {
                    self.line(limits)?;
                    if self.is_done() {
                        return Ok(at + 1);
                    }
                }
                _ => return Err(Error::invalid("a sparse map that is not lines of numbers")),
            }
        }
        Ok(bytes.len())
    }

    /// Takes the number of a finished line.
    fn line(&mut self, limits: &Limits) -> Result<()> {
        let number = self.number.take().ok_or_else(|| Error::invalid("a sparse map with an empty line"))?;
        match (self.left, self.offset) {
            (None, _) => {
                if number > limits.sparse_ranges as u64 + 1 {
                    return Err(Error::limit("a sparse file has too many ranges", limits.sparse_ranges, number));
                }
                self.left = Some(number);
            }
            (Some(_), None) => self.offset = Some(number),
            (Some(left), Some(offset)) => {
                self.map.push(offset, number, limits)?;
                self.offset = None;
                self.left = Some(left - 1);
            }
        }
        Ok(())
    }

    pub(crate) fn is_done(&self) -> bool {
        self.left == Some(0)
    }

    pub(crate) fn into_map(self) -> Map {
        self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn read(text: &str, step: usize) -> Result<(Map, usize)> {
        let (mut reader, mut used) = (MapReader::default(), 0);
        for piece in text.as_bytes().chunks(step) {
            used += reader.feed(piece, &Limits::default())?;
            if reader.is_done() {
                return Ok((reader.into_map(), used));
            }
        }
        Err(Error::invalid("cut"))
    }

    #[test]
    fn reads_lines_however_they_are_split() {
        for step in [1, 2, 3, 100] {
            let (map, used) = read("2\n0\n10\n4096\n0\nxxx", step).unwrap();
            assert_eq!((used, map.count()), (14, 2));
            assert_eq!(map.finish(4096, 10).unwrap(), [DataRange { offset: 0, len: 10 }]);
        }
        assert_eq!(read("0\n", 1).unwrap().0.finish(5, 0).unwrap(), []);
        for bad in ["\n", "1\n\n", "1\nx", "-1\n", "1\n99999999999999999999\n", "1\n0\n"] {
            assert!(read(bad, 100).is_err(), "{bad:?}");
        }
        assert_eq!(read("65538\n", 9).unwrap_err().kind(), ErrorKind::LimitExceeded);
    }

    #[test]
    fn maps_ascend_and_account_for_every_byte() {
        let of = |list: &str| Map::parse_list(list.as_bytes(), &Limits::default());
        let ranges = of("0,10,10,5,20,0").unwrap().finish(20, 15).unwrap();
        assert_eq!(ranges, [DataRange { offset: 0, len: 10 }, DataRange { offset: 10, len: 5 }]);
        assert!(of("0,10").unwrap().finish(9, 10).is_err(), "behind the end");
        assert!(of("0,10").unwrap().finish(20, 11).is_err(), "one byte too many");
        for bad in ["0,10,5,10", "5,1,0,1", "0", "0,1,", "0,,1", "a,b", "", "18446744073709551615,1"] {
            assert!(of(bad).is_err(), "{bad:?}");
        }
    }
}
