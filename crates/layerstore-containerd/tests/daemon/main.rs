//! The daemon as containerd sees it: the real binary, spoken to over its socket.

mod background;
mod limits;
mod support;
