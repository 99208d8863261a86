//! Looking after a store: what it takes.

mod usage;

pub use usage::Usage;
