//! Chunks that several jobs need, kept decoded between them as far as memory allows.

use super::plan::Plan;
use crate::error::Result;
use crate::store::{ChunkReader, RawChunk, Store};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Most bytes kept for later jobs. What does not fit is decoded again.
const KEPT: usize = 32 << 20;

/// What all threads share.
#[derive(Default)]
pub(super) struct Shared {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    bytes: usize,
    /// With the number of uses to come.
    chunks: HashMap<u32, (RawChunk, u32)>,
}

/// One thread's way to chunks.
pub(super) struct Chunks<'a> {
    plan: &'a Plan,
    shared: &'a Shared,
    reader: ChunkReader<'a>,
    /// The chunk asked for last; its memory is used again if nobody else keeps it.
    last: (u32, RawChunk),
}

impl<'a> Chunks<'a> {
    pub(super) fn new(store: &'a Store, plan: &'a Plan, shared: &'a Shared) -> Result<Self> {
        Ok(Self { plan, shared, reader: ChunkReader::new(store)?, last: (u32::MAX, RawChunk::default()) })
    }

    /// The raw bytes of a chunk of the plan, verified.
    pub(super) fn get(&mut self, number: u32) -> Result<&[u8]> {
        if self.last.0 != number {
            let several = self.plan.chunks[number as usize].uses > 1;
            match several.then(|| self.shared.take(number)).flatten() {
                Some(kept) => self.last = (number, kept),
                None => self.decode(number, several)?,
            }
        }
        Ok(&self.last.1)
    }

    fn decode(&mut self, number: u32, several: bool) -> Result<()> {
        let chunk = &self.plan.chunks[number as usize];
        // If reading fails, what is in the buffer is no chunk.
        self.last.0 = u32::MAX;
        if Arc::get_mut(&mut self.last.1).is_none() {
            self.last.1 = RawChunk::default();
        }
        if let Some(raw) = Arc::get_mut(&mut self.last.1) {
            self.reader.read_into(&chunk.id, &chunk.location, raw)?;
        }
        self.last.0 = number;
        if several {
            self.shared.keep(number, &self.last.1, chunk.uses - 1);
        }
        Ok(())
    }
}

impl Shared {
    fn take(&self, number: u32) -> Option<RawChunk> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (chunk, uses) = kept.chunks.get_mut(&number)?;
        *uses -= 1;
        let (chunk, done) = (chunk.clone(), *uses == 0);
        if done {
            kept.chunks.remove(&number);
            kept.bytes -= chunk.len();
        }
        Some(chunk)
    }

    fn keep(&self, number: u32, chunk: &RawChunk, uses: u32) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.bytes + chunk.len() <= KEPT && !kept.chunks.contains_key(&number) {
            kept.bytes += chunk.len();
            kept.chunks.insert(number, (chunk.clone(), uses));
        }
    }
}
