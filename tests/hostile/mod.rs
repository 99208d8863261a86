//! Hostile layers: every attack on tar readers known from advisories, each with the only verdicts that are right.
//!
//! A layer is either refused ([`Verdict::Reject`]) or has one defined, confined result ([`Verdict::Safe`]). The bytes
//! are built on demand, since some are hundreds of megabytes.

mod archives;
pub(crate) mod build;
mod entries;

/// What must happen to a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A typed error at import, and nothing kept.
    Reject,
    /// Imported; what results is confined to the tree and the same everywhere.
    Safe,
}

/// One hostile layer.
pub(crate) struct Case {
    /// File name; the suffix says how it is compressed.
    pub(crate) name: &'static str,
    pub(crate) verdict: Verdict,
    /// The advisory it comes from, or what must hold.
    pub(crate) reason: &'static str,
    pub(crate) build: fn() -> Vec<u8>,
}

impl Case {
    /// Whether it is a tar that is not compressed.
    pub(crate) fn is_plain(&self) -> bool {
        self.name.ends_with(".tar")
    }
}

const fn reject(name: &'static str, reason: &'static str, build: fn() -> Vec<u8>) -> Case {
    Case { name, verdict: Verdict::Reject, reason, build }
}

const fn safe(name: &'static str, reason: &'static str, build: fn() -> Vec<u8>) -> Case {
    Case { name, verdict: Verdict::Safe, reason, build }
}

/// Layers that are sound but cannot stand alone: each is refused when it is applied to nothing.
pub(crate) const NEED_A_LOWER_LAYER: [&str; 2] = ["hard-missing.tar", "hard-setuid-lower.tar"];

/// All cases.
pub(crate) fn cases() -> impl Iterator<Item = &'static Case> {
    entries::CASES.iter().chain(archives::CASES)
}
