//! The `STORE` file: format version and the parameters every chunk of a store was cut by.
//!
//! Text, one `key value` a line in a fixed order, then the BLAKE3 of all lines before. See `docs/FORMAT.md`.

use crate::error::{Advice, Error, ErrorKind, Result};
use crate::format::pack::BLOCK;

/// The version this library writes and the only one it reads.
pub(crate) const VERSION: u32 = 1;
const TITLE: &str = "layerstore store\n";

/// How content is cut. Two stores dedup alike only if these are equal, so they are fixed when a store is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunking {
    /// Files below this many bytes are stored whole, in bundles.
    pub small_file: u32,
    /// A bundle holds at most this many bytes.
    pub bundle: u32,
    /// Least bytes in a content-defined chunk (but for a file's last).
    pub min: u32,
    /// Bytes aimed at; a power of two.
    pub avg: u32,
    /// Most bytes in a chunk.
    pub max: u32,
}

impl Default for Chunking {
    fn default() -> Self {
        Self { small_file: 64 << 10, bundle: 256 << 10, min: 64 << 10, avg: 128 << 10, max: 256 << 10 }
    }
}

impl Chunking {
    const KEYS: [&'static str; 5] = ["small-file", "bundle", "chunk-min", "chunk-avg", "chunk-max"];

    fn values(&self) -> [u32; 5] {
        [self.small_file, self.bundle, self.min, self.avg, self.max]
    }

    /// Checks that a store can be made with these.
    ///
    /// # Errors
    /// `InvalidInput` unless 4096 <= min <= avg <= max <= 1 MiB, avg is a power of two,
    /// and `small_file` <= `bundle` <= 1 MiB.
    pub fn validate(&self) -> Result<()> {
        let cut = u64::from(self.min) >= BLOCK && self.min <= self.avg && self.avg <= self.max && self.max <= 1 << 20;
        if cut && self.avg.is_power_of_two() && self.small_file <= self.bundle && self.bundle <= 1 << 20 {
            Ok(())
        } else {
            let rule = "4096 <= min <= avg <= max <= 1 MiB, avg a power of two, small file <= bundle <= 1 MiB";
            Err(Error::invalid("chunking parameters cannot be used").expected(rule).actual(format!("{self:?}")))
        }
    }
}

/// The text of a `STORE` file.
pub(crate) fn encode(chunking: &Chunking) -> String {
    let mut text = format!("{TITLE}format {VERSION}\nblock {BLOCK}\n");
    for (key, value) in Chunking::KEYS.iter().zip(chunking.values()) {
        text += &format!("{key} {value}\n");
    }
    let sum = blake3::hash(text.as_bytes()).to_hex();
    text + &format!("blake3 {sum}\n")
}

/// Reads a `STORE` file back; only the exact text that [`encode`] gives is accepted.
pub(crate) fn decode(text: &str) -> Result<Chunking> {
    let version = text.strip_prefix(TITLE).and_then(|t| t.strip_prefix("format ")).and_then(|t| t.lines().next());
    let Some(version) = version.and_then(|v| v.parse::<u32>().ok()) else {
        return Err(Error::corrupt("STORE does not begin like a layerstore store"));
    };
    if version != VERSION {
        let e = Error::new(ErrorKind::Unsupported, "the store's format is of another version");
        let e = e.advise(Advice::OtherVersion);
        return Err(e.expected(VERSION).actual(version));
    }
    let value = |key: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' '));
        line.and_then(|v| v.parse().ok()).ok_or_else(|| Error::corrupt(format!("STORE lacks '{key}'")))
    };
    let [small_file, bundle, min, avg, max] = Chunking::KEYS.map(value);
    let chunking = Chunking { small_file: small_file?, bundle: bundle?, min: min?, avg: avg?, max: max? };
    if encode(&chunking) != text || chunking.validate().is_err() {
        return Err(Error::corrupt("STORE does not match its checksum"));
    }
    Ok(chunking)
}

/// Bytes of the line with the sum.
const SUM_LINE: usize = "blake3 \n".len() + 64;

/// What a `STORE` file said before one of its bytes was damaged, where the others leave no doubt.
pub(crate) fn mend(bytes: &[u8]) -> Option<Chunking> {
    let (body, sum_line) = bytes.split_at_checked(bytes.len().checked_sub(SUM_LINE)?)?;
    let hex = |body: &[u8]| blake3::hash(body).to_hex();
    // The line with the sum is damaged: then the sum of what comes before it is that of another byte.
    let line = format!("blake3 {}\n", hex(body));
    if sum_line.iter().zip(line.as_bytes()).filter(|(a, b)| a != b).count() == 1 {
        return decode(&(std::str::from_utf8(body).ok()?.to_owned() + &line)).ok();
    }
    // Or a byte before it: then there is one that gives the sum.
    let mut body = body.to_vec();
    for at in 0..body.len() {
        let was = body[at];
        for byte in (0..128).filter(|byte| *byte != was) {
            body[at] = byte;
            if hex(&body).as_bytes() == &sum_line["blake3 ".len()..SUM_LINE - 1] {
                let text = [&body[..], sum_line].concat();
                return decode(std::str::from_utf8(&text).ok()?).ok();
            }
        }
        body[at] = was;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_damaged_byte_is_mended_and_two_are_not() {
        for chunking in [Chunking::default(), Chunking { min: 4096, avg: 65_536, max: 99_999, ..Chunking::default() }] {
            let good = encode(&chunking).into_bytes();
            for at in 0..good.len() {
                let mut bad = good.clone();
                bad[at] ^= 1 << (at % 8);
                assert_eq!(mend(&bad), Some(chunking), "byte {at}");
            }
            for (a, b) in [(0, 20), (60, 61), (60, good.len() - 20)] {
                let mut bad = good.clone();
                bad[a] ^= 1;
                bad[b] ^= 1;
                assert_eq!(mend(&bad), None, "bytes {a} and {b}");
            }
            assert!((0..good.len()).all(|len| mend(&good[..len]).is_none()));
        }
    }

    /// A version that is not known yet is no damage.
    #[test]
    fn a_sound_file_of_another_version_is_not_mended() {
        let body = encode(&Chunking::default()).replace("format 1", "format 2");
        let body = &body[..body.len() - SUM_LINE];
        let text = format!("{body}blake3 {}\n", blake3::hash(body.as_bytes()).to_hex());
        assert_eq!(mend(text.as_bytes()), None);
    }

    #[test]
    fn round_trips_and_detects_every_flipped_byte() {
        let text = encode(&Chunking::default());
        assert_eq!(decode(&text).unwrap(), Chunking::default());
        for i in 0..text.len() {
            let mut bad = text.clone().into_bytes();
            bad[i] ^= 1;
            assert!(decode(&String::from_utf8_lossy(&bad)).is_err(), "byte {i}");
        }
        assert!(decode(&text[..text.len() - 1]).is_err());
    }

    #[test]
    fn a_newer_format_is_unsupported_not_corrupt() {
        let text = encode(&Chunking::default()).replace("format 1", "format 2");
        assert_eq!(decode(&text).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}
