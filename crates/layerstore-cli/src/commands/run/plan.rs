//! What the processes of a `run` tell each other.

use layerstore::{Error, Mount, Result};
use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A command to run in an image.
#[derive(Serialize, Deserialize)]
pub(super) struct Plan {
    /// The process whose end ends the command.
    pub(super) parent: u32,
    /// A directory to hide things on, in the namespace that is about to be made.
    pub(super) place: PathBuf,
    pub(super) mounts: Vec<Volume>,
    pub(super) command: Vec<OsString>,
    /// `NAME=VALUE`
    pub(super) env: Vec<String>,
    /// `USER[:GROUP]`
    pub(super) user: String,
    pub(super) directory: String,
    /// Bits of the capabilities.
    pub(super) capabilities: u64,
    pub(super) no_new_privileges: bool,
    /// Nothing is masked, and devices are obeyed.
    pub(super) privileged: bool,
}

/// As [`Mount`].
#[derive(Serialize, Deserialize)]
pub(super) struct Volume {
    kind: String,
    source: String,
    target: String,
    options: Vec<String>,
}

impl From<Mount> for Volume {
    fn from(mount: Mount) -> Self {
        let Mount { kind, source, target, options } = mount;
        Self { kind, source, target, options }
    }
}

impl Plan {
    pub(super) fn mounts(&self) -> Vec<Mount> {
        let mount = |Volume { kind, source, target, options }: &Volume| Mount {
            kind: kind.clone(),
            source: source.clone(),
            target: target.clone(),
            options: options.clone(),
        };
        self.mounts.iter().map(mount).collect()
    }

    /// Puts it into memory that a child inherits. An argument or a variable would be seen by others, or be too long.
    pub(super) fn share(&self) -> Result<OwnedFd> {
        let failed = |e: std::io::Error| Error::io("cannot hand the command over", e);
        let memory = rustix::fs::memfd_create("layerstore-run", MemfdFlags::empty()).map_err(|e| failed(e.into()))?;
        let memory = File::from(memory);
        (&memory).write_all(&serde_json::to_vec(self).map_err(|e| failed(e.into()))?).map_err(failed)?;
        Ok(memory.into())
    }

    /// Where a child finds it.
    pub(super) fn path(shared: &OwnedFd) -> String {
        format!("/proc/self/fd/{}", shared.as_raw_fd())
    }

    pub(super) fn read(path: &Path) -> Result<Self> {
        let failed = |e: std::io::Error| Error::io("cannot read what to run", e);
        let mut bytes = Vec::new();
        File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)).map_err(failed)?;
        serde_json::from_slice(&bytes).map_err(|e| failed(e.into()))
    }
}
