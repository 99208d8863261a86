//! Names of images, and texts that ask for an image.
//!
//! A name is what the author of an image, or a user, gave it. A digest is computed from the image. So that no author
//! can pass off one image for another, a name never has the form of a digest, and a text of that form is never
//! compared with names. An image without a name is entered under its configuration's digest.

use crate::digest::{Digest, OciDigest};
use crate::error::{Advice, Error, Result};
use crate::image::plan::MAX_REFERENCE;

/// Algorithms that the specification registers (SHA-384 is what Go's library knows besides): no name begins with one.
const ALGORITHMS: [&str; 4] = ["sha256", "sha384", "sha512", "blake3"];

/// The lengths of their hex digits.
const LENGTHS: [usize; 3] = [64, 96, 128];

/// Fewer digits of a digest are taken for a typing error.
const FEWEST: usize = 4;

/// From this many digits on a text is a digest even if an image has it as its name. Programs show as many.
const CERTAIN: usize = 12;

/// A digest, or the first digits of one, as a user writes it: `sha256:<digits>`, or the digits alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DigestPrefix {
    algorithm: Option<&'static str>,
    hex: String,
}

impl DigestPrefix {
    /// Reads a text; `None` if it is not of this form, and can only be a name.
    pub fn parse(text: &str) -> Option<Self> {
        let (algorithm, hex) = match text.split_once(':') {
            Some(("sha256", hex)) => (Some("sha256"), hex),
            Some(("sha512", hex)) => (Some("sha512"), hex),
            Some(_) => return None,
            None => (None, text),
        };
        let longest = if algorithm == Some("sha256") { 64 } else { 128 };
        let digits = hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let fits = digits && (FEWEST..=longest).contains(&hex.len());
        fits.then(|| Self { algorithm, hex: hex.to_owned() })
    }

    /// The digest, if all its digits are there.
    pub fn full(&self) -> Option<OciDigest> {
        OciDigest::from_hex(&self.hex).filter(|digest| self.algorithm.is_none_or(|a| a == digest.algorithm()))
    }

    /// Whether the text means a digest even if an image has it as its name: it has an algorithm, or 12 digits and more.
    pub fn is_certain(&self) -> bool {
        self.algorithm.is_some() || self.hex.len() >= CERTAIN
    }

    /// Whether `digest` begins like this.
    pub fn fits(&self, digest: &OciDigest) -> bool {
        self.algorithm.is_none_or(|a| a == digest.algorithm()) && digest.hex().starts_with(&self.hex)
    }

    /// The same for a digest of the store.
    pub fn fits_sha256(&self, digest: &Digest) -> bool {
        self.fits(&OciDigest::Sha256(*digest))
    }

    /// Whether it can only be the beginning of a SHA-512.
    pub(crate) fn needs_sha512(&self) -> bool {
        self.algorithm == Some("sha512") || self.hex.len() > 64
    }
}

/// Whether a name has the form of a digest: an algorithm and hex digits, or as many hex digits as a digest has. White
/// space around it does not show, and does not count.
pub(crate) fn looks_like_digest(name: &str) -> bool {
    let name = name.trim();
    let hex = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
    match name.split_once(':') {
        Some((algorithm, digits)) => ALGORITHMS.iter().any(|a| algorithm.eq_ignore_ascii_case(a)) && hex(digits),
        None => LENGTHS.contains(&name.len()) && hex(name),
    }
}

/// Refuses a name that no image may have: an empty one, one of more than 4,096 bytes, or one in the form of a digest.
///
/// # Errors
/// `InvalidInput`; `LimitExceeded`.
pub fn check(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(Error::invalid("the name is empty").advise(Advice::OtherName));
    }
    if name.len() > MAX_REFERENCE {
        let e = Error::limit("the name is too long", MAX_REFERENCE, name.len());
        return Err(e.advise(Advice::OtherName));
    }
    if looks_like_digest(name) {
        let e = Error::invalid("the name has the form of a digest, which no name may have").subject(name);
        return Err(e.advise(Advice::OtherName));
    }
    Ok(())
}

/// Refuses a name that no image may have, or that names a digest (`app@sha256:...`) which this image has not: `own` are
/// those it has.
pub(crate) fn check_for(name: &str, own: &[OciDigest]) -> Result<()> {
    check(name)?;
    let Some((_, pinned)) = name.rsplit_once('@').filter(|(_, digest)| looks_like_digest(digest)) else {
        return Ok(());
    };
    if pinned.parse().is_ok_and(|digest: OciDigest| own.contains(&digest)) {
        return Ok(());
    }
    let e = Error::invalid("the name has a digest that the image has not").subject(name).advise(Advice::OtherName);
    let own: Vec<_> = own.iter().map(OciDigest::to_string).collect();
    Err(e.expected(own.join(" or ")).actual(pinned))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn names_never_have_the_form_of_a_digest() {
        let hex = Digest::of(b"x").hex();
        let refused = [
            String::new(),
            hex.clone(),
            hex.to_uppercase(),
            format!("{hex}{hex}"),
            format!("sha256:{hex}"),
            format!("SHA256:{hex}"),
            format!("sha512:{hex}{hex}"),
            format!("blake3:{hex}"),
            format!("sha256:{}", &hex[..12]),
            format!(" sha256:{hex}"),
            format!("{hex}\n"),
            "x".repeat(MAX_REFERENCE + 1),
        ];
        for name in &refused {
            let e = check(name).expect_err(name);
            assert_eq!(e.advice(), Some(Advice::OtherName), "{e}");
        }
        for name in ["app", "app:1", "1", "20240101", "cafe", &hex[..40], &format!("app:{hex}"), "sha256:latest"] {
            assert!(check(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_name_with_a_digest_is_for_the_image_with_that_digest() {
        let (own, other) = (OciDigest::from(Digest::of(b"own")), OciDigest::from(Digest::of(b"other")));
        let named = |digest: &OciDigest| check_for(&format!("example.com/app:1@{digest}"), &[own]);
        assert!(named(&own).is_ok() && check_for("me@home", &[]).is_ok());
        assert_eq!(named(&other).unwrap_err().kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn texts_of_digits_are_digests() {
        let digest = Digest::of(b"x");
        let hex = digest.hex();
        let parse = |text: &str| DigestPrefix::parse(text);
        for full in [hex.clone(), format!("sha256:{hex}")] {
            let prefix = parse(&full).unwrap();
            assert!(prefix.full() == Some(digest.into()) && prefix.is_certain() && prefix.fits_sha256(&digest));
        }
        let short = parse(&hex[..FEWEST]).unwrap();
        assert!(short.fits_sha256(&digest) && !short.is_certain() && short.full().is_none());
        assert!(parse(&hex[..CERTAIN]).unwrap().is_certain());
        assert!(!parse(&format!("sha512:{hex}")).unwrap().fits_sha256(&digest));
        for name in ["app", "app:1", "abc", &hex.to_uppercase(), &format!("sha256:{hex}0"), &format!("app:{hex}"), ""] {
            assert_eq!(parse(name), None, "{name}");
        }
    }
}
