//! The daemon as containerd sees it: the real binary, spoken to over its socket.

mod background;
mod containerd;
mod diff;
mod limits;
mod restart;
mod support;
