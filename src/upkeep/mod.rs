//! Looking after a store: what it takes, what of it is garbage, whether it is sound, and mending it.

mod chains;
mod fsck;
mod gc;
mod rebuild;
mod recompress;
mod repair;
mod shares;
mod usage;
mod verify;
mod why;

pub use fsck::{DamageKind, Finding, FsckCounts, FsckOptions, FsckReport};
#[cfg(any(test, feature = "internals"))]
pub(crate) use gc::mark;
pub use gc::{Garbage, GarbageKind, GcOptions, GcPlan, GcReport, Kept};
pub use rebuild::{RebuildOptions, RebuildReport};
pub use recompress::{RecompressOptions, RecompressReport};
pub use repair::{PartOfChunk, RepairOptions, RepairReport, RepairSource};
pub use shares::{ImageUsage, UsageByImage};
pub use usage::Usage;
pub use why::Keeper;
