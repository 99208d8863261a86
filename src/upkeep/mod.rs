//! Looking after a store: what it takes, what of it is garbage, whether it is sound.

mod chains;
mod fsck;
mod gc;
mod usage;

pub use fsck::{DamageKind, Finding, FsckCounts, FsckOptions, FsckReport};
pub use gc::{Garbage, GarbageKind, GcOptions, GcPlan, GcReport};
pub use usage::Usage;
