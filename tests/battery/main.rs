//! The battery: crashes, failing disks and power cuts, each of which must lose nothing that was acknowledged.
//!
//! The short form runs with all tests. The long form, which prints its counts:
//!
//! ```console
//! # bash .ci/long battery
//! ```
//!
//! Most of it needs root (mounts, loop devices, FUSE); without, it says `skipped`.

#[path = "../hostile/build.rs"]
#[allow(dead_code, reason = "a part of the builders is wanted")]
mod build;
mod disk;
mod faults;
mod full;
mod kill;
mod ops;
mod power;
mod shadow;
mod strict;
#[path = "../support/mod.rs"]
mod support;
mod sys;
mod task;
mod together;
mod trap;
mod verify;
mod volume;
mod work;

/// Whether this is the long form.
fn long() -> bool {
    std::env::var_os("LAYERSTORE_LONG").is_some_and(|v| v != "0" && !v.is_empty())
}

/// What the battery's workers run, see [`work`]; as a test it does nothing.
#[test]
fn a_worker() {
    work::serve();
}
