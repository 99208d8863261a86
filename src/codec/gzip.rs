//! Reading gzip (RFC 1952): strictly, straight into the caller's buffer.
//!
//! Every member's header, CRC-32 and length are checked. After the last member only zeros may follow, up to the end:
//! bsdtar writes them to pipes, and GNU gzip, pigz and igzip, which containerd reads layers with where they are
//! installed, pass over them. Go's `compress/gzip` refuses them. The header is parsed here and not in zlib so that the
//! errors are ours and the deflate stream stays raw.

use crate::codec::input::Input;
use crate::error::{Error, Result};
use flate2::{Crc, Decompress, FlushDecompress, Status};
use std::io::Read;

const FHCRC: u8 = 1 << 1;
const FEXTRA: u8 = 1 << 2;
const FNAME: u8 = 1 << 3;
const FCOMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0xE0;

/// The state of reading a series of members.
pub(crate) struct Gunzip {
    inflate: Decompress,
    crc: Crc,
    in_member: bool,
    members: u64,
}

impl Gunzip {
    pub(crate) fn new() -> Self {
        Self { inflate: Decompress::new(false), crc: Crc::new(), in_member: false, members: 0 }
    }

    /// Fills `out` as far as the stream goes; 0 only at the end of the input after a whole member.
    pub(crate) fn read<R: Read>(&mut self, input: &mut Input<R>, out: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < out.len() {
            if !self.in_member && !self.start_member(input)? {
                break;
            }
            filled += self.inflate_some(input, &mut out[filled..])?;
        }
        Ok(filled)
    }

    /// Inflates until the member ends, `out` is full or the block is used up.
    fn inflate_some<R: Read>(&mut self, input: &mut Input<R>, out: &mut [u8]) -> Result<usize> {
        let (total_in, total_out) = (self.inflate.total_in(), self.inflate.total_out());
        let status = self
            .inflate
            .decompress(input.bytes(), out, FlushDecompress::None)
            .map_err(|e| Error::invalid(format!("the deflate stream is damaged: {e}")))?;
        let consumed = (self.inflate.total_in() - total_in) as usize;
        let produced = (self.inflate.total_out() - total_out) as usize;
        input.consume(consumed);
        self.crc.update(&out[..produced]);
        if status == Status::StreamEnd {
            self.end_member(input)?;
        } else if consumed == 0 && produced == 0 {
            // No progress on bytes that are there would loop for ever; with none there, more are wanted.
            if !input.bytes().is_empty() {
                return Err(Error::invalid("the deflate stream does not go on"));
            }
            if !input.fill()? {
                return Err(truncated());
            }
        }
        Ok(produced)
    }

    /// Reads a member's header; false if the input is at its end, which only the first member may not find.
    fn start_member<R: Read>(&mut self, input: &mut Input<R>) -> Result<bool> {
        let follow = |members: u64| format!("bytes follow the end of gzip member {members}");
        if self.members > 0 && input.fill()? && input.bytes().first() == Some(&0) {
            input.zeros_to_end(|| follow(self.members))?;
            return Ok(false);
        }
        let mut header = Header { input, crc: Crc::new() };
        let Some(first) = header.input.byte()? else {
            return if self.members == 0 { Err(truncated()) } else { Ok(false) };
        };
        header.crc.update(&[first]);
        let second = if first == 0x1f { header.byte()? } else { 0 };
        if (first, second) != (0x1f, 0x8b) {
            return Err(Error::invalid(follow(self.members)).expected("the end, another member, or zeros alone"));
        }
        header.rest()?;
        self.inflate.reset(false);
        self.crc.reset();
        self.in_member = true;
        self.members += 1;
        Ok(true)
    }

    fn end_member<R: Read>(&mut self, input: &mut Input<R>) -> Result<()> {
        let mut trailer = [0; 8];
        for byte in &mut trailer {
            *byte = input.byte()?.ok_or_else(truncated)?;
        }
        let [c0, c1, c2, c3, l0, l1, l2, l3] = trailer;
        let (crc, len) = (u32::from_le_bytes([c0, c1, c2, c3]), u32::from_le_bytes([l0, l1, l2, l3]));
        if crc != self.crc.sum() {
            let e = Error::invalid(format!("the CRC-32 of gzip member {} does not match", self.members));
            return Err(e.expected(format!("{crc:08x}")).actual(format!("{:08x}", self.crc.sum())));
        }
        // ISIZE is the length modulo 2^32.
        let actual = self.inflate.total_out() as u32;
        if len != actual {
            let e = Error::invalid(format!("the length of gzip member {} does not match", self.members));
            return Err(e.expected(len).actual(actual));
        }
        self.in_member = false;
        Ok(())
    }
}

/// Reads a member header with the running CRC that FHCRC wants.
struct Header<'a, R> {
    input: &'a mut Input<R>,
    crc: Crc,
}

impl<R: Read> Header<'_, R> {
    fn byte(&mut self) -> Result<u8> {
        let byte = self.input.byte()?.ok_or_else(truncated)?;
        self.crc.update(&[byte]);
        Ok(byte)
    }

    /// Everything after the magic. Names and comments are passed over, never kept, so their length costs nothing.
    fn rest(mut self) -> Result<()> {
        let method = self.byte()?;
        if method != 8 {
            return Err(Error::invalid("unknown gzip compression method").expected(8).actual(method));
        }
        let flags = self.byte()?;
        if flags & RESERVED != 0 {
            return Err(Error::invalid("reserved gzip header flags are set").actual(format!("{flags:#04x}")));
        }
        for _ in 0..6 {
            self.byte()?; // mtime, extra flags, operating system
        }
        if flags & FEXTRA != 0 {
            let len = u16::from_le_bytes([self.byte()?, self.byte()?]);
            for _ in 0..len {
                self.byte()?;
            }
        }
        for flag in [FNAME, FCOMMENT] {
            if flags & flag != 0 {
                while self.byte()? != 0 {}
            }
        }
        if flags & FHCRC != 0 {
            let actual = self.crc.sum() as u16;
            let expected = u16::from_le_bytes([self.byte()?, self.byte()?]);
            if expected != actual {
                let e = Error::invalid("the CRC of the gzip header does not match");
                return Err(e.expected(format!("{expected:04x}")).actual(format!("{actual:04x}")));
            }
        }
        Ok(())
    }
}

fn truncated() -> Error {
    Error::invalid("the gzip stream is cut short")
}
