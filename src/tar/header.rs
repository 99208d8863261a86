//! The 512-byte tar header block: which bytes mean what in the dialects v7, ustar, star and GNU.
//!
//! Reads as Go's `archive/tar` does (`reader.go` `readHeader`, `strconv.go`): octal fields may be padded with spaces and
//! NULs on both sides, numbers may be base-256, and a checksum may be summed over signed or unsigned bytes. It decides
//! nothing about entries; that is `member.rs`.
//!
//! | offset | length | field |
//! | --- | --- | --- |
//! | 0 | 100 | name |
//! | 100, 108, 116 | 8 each | mode, uid, gid |
//! | 124, 136 | 12 each | size, mtime |
//! | 148 | 8 | checksum |
//! | 156 | 1 | type |
//! | 157 | 100 | link name |
//! | 257 | 8 | magic and version |
//! | 329, 337 | 8 each | device major, minor |
//! | 345 | 155 | prefix (ustar); 131 bytes of it in star |
//! | 345, 357 | 12 each | atime, ctime (GNU) |
//! | 386 | 4 x 24 | sparse map (GNU) |
//! | 482, 483 | 1, 12 | more map blocks follow, logical size (GNU) |

use crate::error::{Error, Result};

/// Everything in a tar is a multiple of this.
pub(crate) const BLOCK: usize = 512;

/// One block of a tar.
pub(crate) type Block = [u8; BLOCK];

/// What separates a header from the end of the archive.
pub(crate) const ZERO: Block = [0; BLOCK];

/// Entries of the sparse map inside a GNU header, and inside each of its extension blocks.
const MAP_IN_HEADER: usize = 4;
const MAP_IN_EXTENSION: usize = 21;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// A header block whose checksum is right.
#[derive(Clone, Copy)]
pub(crate) struct Header<'a> {
    block: &'a Block,
    dialect: Dialect,
}

impl<'a> Header<'a> {
    /// Checks the checksum and finds the dialect.
    pub(crate) fn parse(block: &'a Block) -> Result<Self> {
        let claimed = octal(&block[148..156]).ok_or_else(|| Error::invalid("the header checksum is not a number"))?;
        let (unsigned, signed) = checksums(block);
        if claimed != unsigned && claimed != signed {
            return Err(Error::invalid("wrong header checksum").expected(unsigned).actual(claimed));
        }
        let dialect = match &block[257..265] {
            b"ustar  \0" => Dialect::Gnu,
            magic if magic.starts_with(b"ustar\0") && &block[508..512] == b"tar\0" => Dialect::Star,
            magic if magic.starts_with(b"ustar\0") => Dialect::Ustar,
            _ => Dialect::V7,
        };
        Ok(Self { block, dialect })
    }

    pub(crate) fn kind(&self) -> u8 {
        self.block[156]
    }

    /// Whether this is POSIX ustar, without the additions of star or GNU.
    pub(crate) fn is_ustar(&self) -> bool {
        self.dialect == Dialect::Ustar
    }

    /// Replaces `out` by the full name: the prefix, where the dialect has one, and the name.
    pub(crate) fn name_into(&self, out: &mut Vec<u8>) {
        out.clear();
        let prefix = match self.dialect {
            Dialect::V7 => &b""[..],
            Dialect::Ustar => text(&self.block[345..500]),
            Dialect::Star => text(&self.block[345..476]),
            Dialect::Gnu => self.gnu_prefix(),
        };
        if !prefix.is_empty() {
            out.extend_from_slice(prefix);
            out.push(b'/');
        }
        out.extend_from_slice(text(&self.block[..100]));
    }

    /// Go before 1.8, and so the Docker of that time, wrote a ustar prefix over the atime of GNU headers; Go still
    /// reads it, knowing it by an atime or ctime that is not a number.
    fn gnu_prefix(&self) -> &'a [u8] {
        let time = |field: &[u8]| field[0] == 0 || number(field).is_some();
        if time(&self.block[345..357]) && time(&self.block[357..369]) {
            return b"";
        }
        let prefix = text(&self.block[345..500]);
        if prefix.is_ascii() { prefix } else { b"" }
    }

    pub(crate) fn link_name(&self) -> &'a [u8] {
        text(&self.block[157..257])
    }

    pub(crate) fn mode(&self) -> Result<i64> {
        self.field("mode", 100, 8)
    }

    pub(crate) fn uid(&self) -> Result<i64> {
        self.field("uid", 108, 8)
    }

    pub(crate) fn gid(&self) -> Result<i64> {
        self.field("gid", 116, 8)
    }

    pub(crate) fn size(&self) -> Result<i64> {
        self.field("size", 124, 12)
    }

    pub(crate) fn mtime(&self) -> Result<i64> {
        self.field("mtime", 136, 12)
    }

    /// Device major and minor; 0 in v7, which has none.
    pub(crate) fn device(&self) -> Result<(i64, i64)> {
        match self.dialect {
            Dialect::V7 => Ok((0, 0)),
            _ => Ok((self.field("device major", 329, 8)?, self.field("device minor", 337, 8)?)),
        }
    }

    /// The old GNU sparse map of this header, or `None` in another dialect (star uses type `S` with another layout).
    pub(crate) fn gnu_sparse(&self) -> Option<SparseBlock<'a>> {
        let map = &self.block[386..386 + MAP_IN_HEADER * 24];
        (self.dialect == Dialect::Gnu).then(|| SparseBlock { map, extended: self.block[482] != 0 })
    }

    /// The logical size of an old GNU sparse file.
    pub(crate) fn gnu_real_size(&self) -> Result<i64> {
        self.field("sparse size", 483, 12)
    }

    fn field(&self, name: &str, at: usize, len: usize) -> Result<i64> {
        number(&self.block[at..at + len]).ok_or_else(|| Error::invalid(format!("the {name} field is not a number")))
    }
}

/// Part of an old GNU sparse map: in the header or in an extension block after it.
pub(crate) struct SparseBlock<'a> {
    map: &'a [u8],
    /// Another extension block follows.
    pub(crate) extended: bool,
}

impl<'a> SparseBlock<'a> {
    /// An extension block.
    pub(crate) fn extension(block: &'a Block) -> Self {
        Self { map: &block[..MAP_IN_EXTENSION * 24], extended: block[MAP_IN_EXTENSION * 24] != 0 }
    }

    /// Offset and length of each range; `None` for a field that is not a number. A NUL ends the block, as in GNU tar.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = Option<(i64, i64)>> + use<'a> {
        let used = self.map.chunks_exact(24).take_while(|range| range[0] != 0);
        used.map(|range| Some((number(&range[..12])?, number(&range[12..])?)))
    }
}

/// Whether `block` would be taken for a header, its fields aside.
pub(crate) fn looks_like_header(block: &Block) -> bool {
    Header::parse(block).is_ok()
}

/// Sums over unsigned and over signed bytes, the checksum field counted as spaces.
fn checksums(block: &Block) -> (i64, i64) {
    let field: &[u8] = &block[148..156];
    let sum = |bytes: &[u8]| bytes.iter().map(|&b| u32::from(b)).sum::<u32>();
    // A signed byte differs from the unsigned one by 256 exactly when its top bit is set.
    let high = |bytes: &[u8]| bytes.iter().map(|&b| u32::from(b >> 7)).sum::<u32>();
    let unsigned = i64::from(sum(block) - sum(field) + 8 * u32::from(b' '));
    (unsigned, unsigned - 256 * i64::from(high(block) - high(field)))
}

/// The bytes before the first NUL.
fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|&b| b == 0).unwrap_or(field.len())]
}

/// An octal or base-256 number.
fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 == 0 {
        return octal(field);
    }
    // Two's complement, big-endian, below the marker bit; as in Go, the sign is the next bit.
    let invert = if field[0] & 0x40 == 0 { 0 } else { 0xff };
    let mut value = 0u64;
    for (i, byte) in field.iter().enumerate() {
        let byte = (byte ^ invert) & if i == 0 { 0x7f } else { 0xff };
        if value >> 56 != 0 {
            return None;
        }
        value = value << 8 | u64::from(byte);
    }
    let value = i64::try_from(value).ok()?;
    Some(if invert == 0 { value } else { !value })
}

/// An octal number with spaces and NULs around it; nothing at all is 0.
fn octal(field: &[u8]) -> Option<i64> {
    let filler = |b: &u8| matches!(b, b' ' | 0);
    let Some(start) = field.iter().position(|b| !filler(b)) else { return Some(0) };
    let end = field.iter().rposition(|b| !filler(b)).map_or(start, |i| i + 1);
    text(&field[start..end]).iter().try_fold(0i64, |value, &digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_in_go() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"  644 \0\0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"12\x0099\0\0\0"), Some(0o12));
        assert_eq!(number(b"12 9\0\0\0\0"), None);
        assert_eq!(number(b"0000008\0"), None);
        assert_eq!(number(b"-1\0\0\0\0\0\0"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 0]), Some(256));
        assert_eq!(number(&[0xff; 8]), Some(-1));
        assert_eq!(number(&[0xbf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), None);
        assert_eq!(
            number(&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
            Some(i64::MAX),
            "2^63-1 is the largest"
        );
        assert_eq!(number(&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0]), None);
    }

    #[test]
    fn every_flipped_bit_outside_the_padding_of_the_checksum_is_noticed() {
        let mut block = ZERO;
        block[..4].copy_from_slice(b"name");
        block[156] = b'0';
        let sum = format!("{:06o}\0 ", checksums(&block).0);
        block[148..156].copy_from_slice(sum.as_bytes());
        assert!(looks_like_header(&block));
        for at in (0..BLOCK).filter(|at| !(148..156).contains(at)) {
            block[at] ^= 1;
            assert!(!looks_like_header(&block), "byte {at}");
            block[at] ^= 1;
        }
    }

    #[test]
    fn both_checksums_count() {
        let mut block = ZERO;
        block[0] = 0xff;
        for sum in [0xff + 256, -1 + 256] {
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            assert!(looks_like_header(&block), "{sum}");
        }
    }
}
