//! One file per command. Each has a `run` that the table in `main.rs` calls.

pub(crate) mod additional;
pub(crate) mod bench;
pub(crate) mod cat;
pub(crate) mod commit;
pub(crate) mod completions;
pub(crate) mod demo;
pub(crate) mod diff;
pub(crate) mod doctor;
pub(crate) mod export;
pub(crate) mod extract;
pub(crate) mod fsck;
pub(crate) mod gc;
pub(crate) mod images;
pub(crate) mod import;
pub(crate) mod init;
pub(crate) mod inspect;
pub(crate) mod layers;
pub(crate) mod ls;
pub(crate) mod mount;
pub(crate) mod recompress;
pub(crate) mod repair;
pub(crate) mod rm;
pub(crate) mod run;
pub(crate) mod snapshot;
pub(crate) mod usage;
pub(crate) mod why;
