//! Gathers small files, in the order they arrive, into chunks of up to the bundle size.

use crate::format::pack::Member;
use crate::id::ContentId;

/// Most files of a bundle, so that a bundle of the tiniest files costs no more memory than others.
const MEMBERS: usize = 16 << 10;

/// A bundle being filled.
#[derive(Default)]
pub(crate) struct Bundle {
    pub(crate) bytes: Vec<u8>,
    pub(crate) members: Vec<Member>,
}

impl Bundle {
    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Whether one more file of `len` bytes stays within `limit`. An empty bundle takes any file.
    pub(crate) fn has_room(&self, len: usize, limit: u32) -> bool {
        self.is_empty() || self.bytes.len() + len <= limit as usize && self.members.len() < MEMBERS
    }

    /// Adds a file's whole content; returns its offset.
    pub(crate) fn add(&mut self, id: ContentId, content: &[u8]) -> u32 {
        let offset = self.bytes.len() as u32;
        self.bytes.extend_from_slice(content);
        self.members.push(Member { id, len: content.len() as u32 });
        offset
    }
}
