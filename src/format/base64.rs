//! Base64 (RFC 4648, section 4): the bytes that a descriptor holds in `data`, names of directories, and values of
//! extended attributes in tars.

use std::iter::repeat_n;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Encodes with padding.
pub(crate) fn encode(bytes: &[u8]) -> String {
    let mut text = encode_unpadded(bytes);
    text.extend(repeat_n('=', text.len().next_multiple_of(4) - text.len()));
    text
}

/// Encodes without padding, as libarchive does.
pub(crate) fn encode_unpadded(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut word = [0; 4];
        word[1..=group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes(word);
        text.extend((0..=group.len()).map(|i| char::from(ALPHABET[(bits >> (18 - 6 * i) & 63) as usize])));
    }
    text
}

/// Decodes what [`encode`] writes; `None` for any other text.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    decode_loose(text.as_bytes()).filter(|bytes| encode(bytes) == text)
}

/// Decodes text with or without padding. The bits after the last byte may be anything.
pub(crate) fn decode_loose(text: &[u8]) -> Option<Vec<u8>> {
    let end = text.iter().rposition(|&b| b != b'=').map_or(0, |i| i + 1);
    let (digits, padding) = text.split_at(end);
    if padding.len() > 2 || (!padding.is_empty() && !text.len().is_multiple_of(4)) || digits.len() % 4 == 1 {
        return None;
    }
    let mut out = Vec::with_capacity(digits.len() * 3 / 4);
    for group in digits.chunks(4) {
        let mut bits = 0u32;
        for &byte in group {
            bits = bits << 6 | u32::try_from(ALPHABET.iter().position(|&b| b == byte)?).ok()?;
        }
        let [_, bytes @ ..] = (bits << (6 * (4 - group.len()))).to_be_bytes();
        out.extend_from_slice(&bytes[..group.len() - 1]);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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

    #[test]
    fn loose_text_may_lack_its_padding() {
        for (text, bytes) in [("Zg", "f"), ("Zh==", "f"), ("Zm8", "fo"), ("", "")] {
            assert_eq!(decode_loose(text.as_bytes()).as_deref(), Some(bytes.as_bytes()), "{text}");
        }
        for bad in ["Zg=", "Z", "Z===", "====", "Zg==Zg==", "Zm9v\n", "Zm 9"] {
            assert_eq!(decode_loose(bad.as_bytes()), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_come_back(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let text = encode_unpadded(&bytes);
            prop_assert_eq!(decode_loose(text.as_bytes()), Some(bytes.clone()));
            prop_assert_eq!(decode(&encode(&bytes)), Some(bytes));
        }
    }
}
