//! The real binary over small fixtures, as a user would run it.

#[path = "../../../../tests/support/cgroup.rs"]
mod cgroup;
mod demo;
mod errors;
mod images;
mod layers;
mod limits;
#[path = "../../../../tests/support/needs.rs"]
mod needs;
mod run;
mod snapshots;
mod streams;
mod support;
mod tuning;
mod upkeep;
