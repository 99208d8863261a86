//! Cuts a file's content where its bytes say so, so that an insertion moves few cut points.
//!
//! FastCDC with normalisation level 1 (Xia et al., "The Design of Fast Content-Defined Chunking for Data
//! Deduplication Based Storage Systems", IEEE TPDS 2020). Cut points depend on the content and the parameters alone,
//! not on how the content arrives.

use crate::error::Result;
use crate::format::params::Chunking;
use fastcdc::v2020::{Normalization, cut, select_masks};

/// A push-style cutter: bytes in, whole chunks out.
pub(crate) struct Cutter {
    min: usize,
    avg: usize,
    max: usize,
    masks: (u64, u64),
    /// Bytes not yet cut: fewer than `max` between pushes.
    held: Vec<u8>,
}

impl Cutter {
    pub(crate) fn new(chunking: &Chunking) -> Self {
        let (min, avg, max) = (chunking.min as usize, chunking.avg as usize, chunking.max as usize);
        Self { min, avg, max, masks: select_masks(avg, Normalization::Level1), held: Vec::new() }
    }

    fn next_len(&self, bytes: &[u8]) -> usize {
        let (strict, loose) = self.masks;
        cut(bytes, self.min, self.avg, self.max, strict, loose, strict << 1, loose << 1).1
    }

    /// Takes more of the file; `emit` gets each chunk that is complete.
    pub(crate) fn push(&mut self, mut bytes: &[u8], emit: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        // A cut is final only with `max` bytes in sight, so held bytes are topped up to exactly that.
        while !self.held.is_empty() {
            let topped = bytes.len().min(self.max - self.held.len());
            self.held.extend_from_slice(&bytes[..topped]);
            if self.held.len() < self.max {
                return Ok(());
            }
            let len = self.next_len(&self.held);
            emit(&self.held[..len])?;
            let left = self.max - len;
            if left <= topped {
                // What is left came with this push: go on there without copying.
                bytes = &bytes[topped - left..];
                self.held.clear();
            } else {
                bytes = &bytes[topped..];
                self.held.drain(..len);
            }
        }
        while bytes.len() >= self.max {
            let (chunk, rest) = bytes.split_at(self.next_len(bytes));
            emit(chunk)?;
            bytes = rest;
        }
        self.held.extend_from_slice(bytes);
        Ok(())
    }

    /// The file has ended: cuts what is held and is ready for the next file.
    pub(crate) fn finish(&mut self, emit: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let held = std::mem::take(&mut self.held);
        let mut bytes = &held[..];
        while !bytes.is_empty() {
            let (chunk, rest) = bytes.split_at(self.next_len(bytes));
            emit(chunk)?;
            bytes = rest;
        }
        self.held = held;
        self.held.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut out);
        out
    }

    fn lengths(bytes: &[u8], splits: &[usize]) -> Vec<usize> {
        let mut cutter = Cutter::new(&Chunking::default());
        let (mut out, mut joined) = (vec![], vec![]);
        let mut emit = |c: &[u8]| {
            out.push(c.len());
            joined.extend_from_slice(c);
            Ok(())
        };
        let mut rest = bytes;
        for &s in splits {
            let (now, later) = rest.split_at(s.min(rest.len()));
            cutter.push(now, &mut emit).unwrap();
            rest = later;
        }
        cutter.push(rest, &mut emit).unwrap();
        cutter.finish(&mut emit).unwrap();
        assert_eq!(joined, bytes);
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn cuts_do_not_depend_on_how_content_arrives(
            len in 0usize..1_500_000, splits in proptest::collection::vec(1usize..300_000, 0..40),
        ) {
            let bytes = noise(len);
            let whole = lengths(&bytes, &[]);
            prop_assert_eq!(&lengths(&bytes, &splits), &whole);
            prop_assert!(whole.iter().rev().skip(1).all(|&n| (32 << 10..=256 << 10).contains(&n)));
        }
    }

    #[test]
    fn an_insertion_leaves_later_cuts_alone() {
        let bytes = noise(2_000_000);
        let mut changed = bytes.clone();
        changed.insert(100_000, 7);
        // Where chunks begin, counted from the end.
        let ends = |b: &[u8]| -> Vec<usize> {
            let sum = |at: &mut usize, n: usize| {
                *at += n;
                Some(*at)
            };
            lengths(b, &[]).into_iter().rev().scan(0, sum).collect()
        };
        let (a, b) = (ends(&bytes), ends(&changed));
        let same = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
        assert!(same >= a.len() - 4, "{same} of {} cuts kept", a.len());
    }
}
