//! Looking after a store: what it takes, what of it is garbage, whether it is sound.

mod fsck;
mod gc;
mod shares;
mod usage;
mod why;

pub use fsck::{DamageKind, Finding, FsckCounts, FsckOptions, FsckReport};
pub use gc::{Garbage, GarbageKind, GcOptions, GcPlan, GcReport};
pub use shares::{ImageUsage, UsageByImage};
pub use usage::Usage;
pub use why::Keeper;
