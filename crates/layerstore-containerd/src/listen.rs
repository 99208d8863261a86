//! The sockets: systemd's, or our own; and telling systemd that we are ready.

use layerstore::{Error, ErrorKind, Result};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A unix socket to accept from. The file of one we made goes with it.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) listener: UnixListener,
    made: Option<(PathBuf, u64)>,
}

impl Socket {
    /// The socket systemd hands over (sd_listen_fds(3)), or a new one at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let activated = listenfd::ListenFd::from_env().take_unix_listener(0);
        match activated.map_err(|e| Error::io("take over systemd's socket", e))? {
            Some(listener) => Ok(Self { listener, made: None }),
            None => Self::make(path),
        }
    }

    /// Makes a socket that nobody but its owner may ever connect to.
    pub(crate) fn make(path: &Path) -> Result<Self> {
        let failed = |what: &'static str| move |e| Error::io(what, e).subject(path.display());
        let name = path.file_name().ok_or_else(|| Error::invalid("not a socket's path").subject(path.display()))?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(dir).map_err(failed("create the socket's directory"))?;
        if UnixStream::connect(path).is_ok() {
            let e = Error::new(ErrorKind::FailedPrecondition, "somebody listens on this socket already");
            return Err(e.subject(path.display()));
        }
        // Bound under another name: under its own it has its mode from the beginning.
        let mut draft = std::ffi::OsString::from(".");
        draft.push(name);
        draft.push(format!(".{}", std::process::id()));
        let draft = dir.join(draft);
        let _ = fs::remove_file(&draft);
        let listener = UnixListener::bind(&draft).map_err(failed("bind"))?;
        let publish = || {
            fs::set_permissions(&draft, fs::Permissions::from_mode(0o600))?;
            let ino = fs::metadata(&draft)?.ino();
            fs::rename(&draft, path).map(|()| ino)
        };
        let ino = publish().inspect_err(|_| drop(fs::remove_file(&draft))).map_err(failed("make the socket"))?;
        Ok(Self { listener, made: Some((path.to_owned(), ino)) })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some((path, ino)) = &self.made
            && fs::metadata(path).is_ok_and(|meta| meta.ino() == *ino)
        {
            let _ = fs::remove_file(path);
        }
    }
}

/// Says `READY=1` or `STOPPING=1` to whoever started us, if they want to know (sd_notify(3)).
pub(crate) fn notify(state: &str) {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = address.as_encoded_bytes();
    let address = match address.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(Path::new(&*String::from_utf8_lossy(address))),
    };
    let sent = UnixDatagram::unbound().and_then(|s| s.send_to_addr(state.as_bytes(), &address?));
    if let Err(error) = sent {
        tracing::warn!(%error, "cannot notify systemd");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_private_replaces_a_dead_one_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/s.sock");
        let first = Socket::make(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(Socket::make(&path).unwrap_err().kind(), ErrorKind::FailedPrecondition);
        // As after a crash: the file stays, nobody listens.
        let (stale, kept) =
            (path.with_extension("old"), Socket { listener: first.listener.try_clone().unwrap(), made: None });
        fs::rename(&path, &stale).unwrap();
        drop((first, kept));
        fs::rename(&stale, &path).unwrap();
        let second = Socket::make(&path).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
        drop(second);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }
}
