//! Base64 with padding (RFC 4648, section 4): the bytes that a descriptor holds in `data`, and names of directories.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

pub(crate) fn encode(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for part in bytes.chunks(3) {
        let byte = |i: usize| u32::from(part.get(i).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * i) & 63) as usize];
            out.push(if i <= part.len() { digit.into() } else { '=' });
        }
    }
    out
}

/// `None` for text that [`encode`] does not write.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    for part in text.as_bytes().chunks(4) {
        let padding = part.iter().rev().take_while(|&&b| b == b'=').count();
        let digits = part.get(..4 - padding.min(2))?;
        let mut bits = 0;
        for digit in digits.iter().filter(|&&b| b != b'=') {
            bits = bits << 6 | ALPHABET.iter().position(|a| a == digit)? as u32;
        }
        let bytes = (bits << (6 * padding)).to_be_bytes();
        out.extend_from_slice(bytes.get(1..4usize.checked_sub(padding)?)?);
    }
    (encode(&out) == text).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4648, section 10, and what podman 4.3 looked for.
    #[test]
    fn is_the_standard_one() {
        let pairs = ["", "", "f", "Zg==", "fo", "Zm8=", "foo", "Zm9v", "foob", "Zm9vYg==", "fooba", "Zm9vYmE="];
        for pair in pairs.chunks(2) {
            assert_eq!(encode(pair[0].as_bytes()), pair[1]);
            assert_eq!(decode(pair[1]).as_deref(), Some(pair[0].as_bytes()));
        }
        assert_eq!(encode(b"docker.io/library/app:1"), "ZG9ja2VyLmlvL2xpYnJhcnkvYXBwOjE=");
        for bad in ["Zg", "Zg=", "Zh==", "Z===", "====", "Zg==Zg==", "Zm9v\n", "Zm 9"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }
}
