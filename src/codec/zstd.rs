//! Reading zstd (RFC 8878): frames in sequence, skippable ones passed over, memory bounded before it is spent. After the
//! last frame only zeros may follow, up to the end, as after gzip.
//!
//! Frame headers are parsed here first. libzstd checks its window limit too, but not for a frame that fits the buffers
//! at hand whole, so what it accepts would depend on how the blob happened to be read.

use crate::codec::input::Input;
use crate::codec::media::{is_skippable, is_zstd_frame};
use crate::error::{Error, ErrorKind, Result};
use std::io::Read;
use zstd::stream::raw::{DParameter, Decoder, Operation};

/// Magic, descriptor, window descriptor, dictionary id and content size at their longest.
const HEADER_MAX: usize = 4 + 1 + 1 + 4 + 8;

/// The state of reading a series of frames.
pub(crate) struct Unzstd {
    decoder: Decoder<'static>,
    window_log: u32,
    in_frame: bool,
    /// A frame, or a skippable one, was read whole.
    any_frame: bool,
    /// The frame's header, which the decoder has to see again, and how much of it it has seen.
    header: Vec<u8>,
    header_used: usize,
}

impl Unzstd {
    /// Refuses frames whose window is larger than `1 << window_log` bytes.
    pub(crate) fn new(window_log: u32) -> Result<Self> {
        let failed = |e| Error::io("cannot set up zstd", e);
        let mut decoder = Decoder::new().map_err(failed)?;
        decoder.set_parameter(DParameter::WindowLogMax(window_log)).map_err(failed)?;
        let header = Vec::with_capacity(HEADER_MAX);
        Ok(Self { decoder, window_log, in_frame: false, any_frame: false, header, header_used: 0 })
    }

    /// Fills `out` as far as the stream goes; 0 only at the end of the input after a whole frame.
    pub(crate) fn read<R: Read>(&mut self, input: &mut Input<R>, out: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < out.len() {
            if !self.in_frame && !self.start_frame(input)? {
                break;
            }
            filled += self.decode_some(input, &mut out[filled..])?;
        }
        Ok(filled)
    }

    /// Decodes until the frame ends, `out` is full or the bytes at hand are used up.
    fn decode_some<R: Read>(&mut self, input: &mut Input<R>, out: &mut [u8]) -> Result<usize> {
        let from_header = self.header_used < self.header.len();
        let bytes = if from_header { &self.header[self.header_used..] } else { input.bytes() };
        let had_bytes = !bytes.is_empty();
        let status = self
            .decoder
            .run_on_buffers(bytes, out)
            .map_err(|e| Error::invalid(format!("the zstd frame is damaged: {e}")))?;
        if from_header {
            self.header_used += status.bytes_read;
        } else {
            input.consume(status.bytes_read);
        }
        if status.remaining == 0 {
            self.in_frame = false;
            self.any_frame = true;
        } else if status.bytes_read == 0 && status.bytes_written == 0 {
            if had_bytes {
                return Err(Error::invalid("the zstd frame does not go on"));
            }
            if !input.fill()? {
                return Err(truncated());
            }
        }
        Ok(status.bytes_written)
    }

    /// Reads up to the next frame that holds data; false if the input is at its end.
    fn start_frame<R: Read>(&mut self, input: &mut Input<R>) -> Result<bool> {
        loop {
            self.header.clear();
            self.header_used = 0;
            if !input.fill()? {
                return Ok(false);
            }
            if self.any_frame && input.bytes().first() == Some(&0) {
                input.zeros_to_end(|| "bytes follow the end of the last zstd frame".into())?;
                return Ok(false);
            }
            let magic = u32::from_le_bytes(self.take(input)?);
            if is_zstd_frame(magic) {
                break;
            }
            if !is_skippable(magic) {
                return Err(Error::invalid("bytes that are no zstd frame").actual(format!("magic {magic:08x}")));
            }
            let len = u32::from_le_bytes(self.take(input)?);
            if !input.skip(u64::from(len))? {
                return Err(truncated());
            }
            self.any_frame = true;
        }
        let window = self.frame_window(input)?;
        let limit = 1 << self.window_log;
        if window > limit {
            return Err(Error::limit("a zstd frame wants too much memory", limit, window));
        }
        self.in_frame = true;
        Ok(true)
    }

    /// Reads the rest of a frame header; the bytes of window that decoding the frame needs.
    fn frame_window<R: Read>(&mut self, input: &mut Input<R>) -> Result<u64> {
        let [descriptor] = self.take(input)?;
        let single_segment = descriptor & 0x20 != 0;
        if descriptor & 0x08 != 0 {
            return Err(Error::invalid("the reserved bit of a zstd frame header is set"));
        }
        let mut window = 0;
        if !single_segment {
            let [byte] = self.take(input)?;
            let base = 1u64 << (10 + (byte >> 3));
            window = base + base / 8 * u64::from(byte & 7);
        }
        let dictionary = match descriptor & 3 {
            0 => 0,
            1 => u32::from(self.take::<R, 1>(input)?[0]),
            2 => u32::from(u16::from_le_bytes(self.take(input)?)),
            _ => u32::from_le_bytes(self.take(input)?),
        };
        if dictionary != 0 {
            return Err(Error::new(ErrorKind::Unsupported, format!("a zstd frame needs dictionary {dictionary}")));
        }
        let content = match descriptor >> 6 {
            0 if !single_segment => 0,
            0 => u64::from(self.take::<R, 1>(input)?[0]),
            1 => u64::from(u16::from_le_bytes(self.take(input)?)) + 256,
            2 => u64::from(u32::from_le_bytes(self.take(input)?)),
            _ => u64::from_le_bytes(self.take(input)?),
        };
        Ok(if single_segment { content } else { window })
    }

    /// The next `N` bytes, kept for the decoder.
    fn take<R: Read, const N: usize>(&mut self, input: &mut Input<R>) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        for byte in &mut bytes {
            *byte = input.byte()?.ok_or_else(truncated)?;
        }
        self.header.extend_from_slice(&bytes);
        Ok(bytes)
    }
}

fn truncated() -> Error {
    Error::invalid("the zstd stream is cut short")
}
