//! A bounded cursor over bytes from disk, and the few encodings every format file uses.
//!
//! All integers are little endian. A varint is LEB128: seven bits a byte, low bits first, at most ten bytes and
//! in shortest form, so that one value has one encoding.

use crate::error::{Error, Result};

/// Reads forward through `bytes`; running out is [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt).
#[derive(Clone)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        match self.bytes.split_at_checked(len) {
            Some((head, tail)) => {
                self.bytes = tail;
                Ok(head)
            }
            None => {
                Err(Error::corrupt("ends too early").expected(format!("{len} more bytes")).actual(self.bytes.len()))
            }
        }
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(crate) fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    break;
                }
                return Ok(value);
            }
        }
        Err(Error::corrupt("not a varint in shortest form"))
    }

    pub(crate) fn signed(&mut self) -> Result<i64> {
        self.varint().map(|v| (v >> 1) as i64 ^ -((v & 1) as i64))
    }

    /// A varint that must fit `usize` and be at most `most`.
    pub(crate) fn count(&mut self, most: usize) -> Result<usize> {
        let value = self.varint()?;
        match usize::try_from(value) {
            Ok(v) if v <= most => Ok(v),
            _ => Err(Error::corrupt("count out of bounds").expected(format!("at most {most}")).actual(value)),
        }
    }

    /// A byte string with its length before it.
    pub(crate) fn string(&mut self) -> Result<&'a [u8]> {
        let len = self.count(self.remaining())?;
        self.take(len)
    }
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Zigzag, so that small negative numbers stay short.
pub(crate) fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_varint(out, (value << 1 ^ value >> 63) as u64);
}

pub(crate) fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// The difference of two values that wraps, so that any pair of u64 can be told by a signed delta.
pub(crate) fn delta(from: u64, to: u64) -> i64 {
    to.wrapping_sub(from) as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_round_trip(v: u64, s: i64) {
            let mut out = vec![];
            put_varint(&mut out, v);
            put_signed(&mut out, s);
            let mut c = Cursor::new(&out);
            prop_assert_eq!((c.varint().unwrap(), c.signed().unwrap(), c.is_empty()), (v, s, true));
        }
    }

    #[test]
    fn refuses_long_forms_and_short_input() {
        for bad in [&[0x80, 0x00][..], &[0x80], &[0xff; 10], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]]
        {
            assert!(Cursor::new(bad).varint().is_err(), "{bad:?}");
        }
        assert!(Cursor::new(&[5, 1, 2]).string().is_err());
    }
}
