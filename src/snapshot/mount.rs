//! Mounts as values: what a runtime mounts itself, or has the library mount.

/// What to mount, as containerd's `mount.Mount`. All paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// `bind` or `overlay`.
    pub kind: String,
    /// The directory to bind; `overlay` for an overlay.
    pub source: String,
    /// Where below the root the caller mounts it; almost always empty, for the root itself.
    pub target: String,
    /// As mount(8) takes them: `ro`, `rw`, `rbind`, `lowerdir=...`.
    pub options: Vec<String>,
}

impl Mount {
    pub(super) fn bind(source: String, writable: bool) -> Self {
        let options = vec![if writable { "rw" } else { "ro" }.to_owned(), "rbind".to_owned()];
        Self { kind: "bind".to_owned(), source, target: String::new(), options }
    }

    pub(super) fn overlay(options: Vec<String>) -> Self {
        Self { kind: "overlay".to_owned(), source: "overlay".to_owned(), target: String::new(), options }
    }
}
