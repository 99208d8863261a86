//! What every command is given: where the store is and how to talk.

use crate::args::Global;
use crate::errors::{Failure, Hint};
use crate::output::Out;
use crate::progress::{Progress, Reports};
use layerstore::{Digest, ErrorKind, OpenOptions, Store};
use std::env;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

pub(crate) struct Context {
    global: Global,
    out: Out,
}

impl Context {
    pub(crate) fn new(global: Global) -> Self {
        Self { global, out: Out::stdout() }
    }

    pub(crate) fn out(&self) -> &Out {
        &self.out
    }

    pub(crate) fn json(&self) -> bool {
        self.global.json
    }

    pub(crate) fn quiet(&self) -> bool {
        self.global.quiet
    }

    /// Opens the store; a missing one is an error.
    pub(crate) fn store(&self) -> Result<Store, Failure> {
        let store = Store::open_with(self.store_dir()?, &OpenOptions::default().create(false)).map_err(|e| {
            let (kind, denied) =
                (e.kind(), e.io_error().is_some_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied));
            let failure = Failure::from(e);
            match kind {
                ErrorKind::NotFound => failure.hint("`layerstore import` makes it; --store DIR names another"),
                ErrorKind::Corrupt => failure.hint("`layerstore fsck --rebuild` makes a lost or damaged database anew"),
                _ if denied => failure.hint("run as the store's owner, or choose another with --store DIR"),
                _ => failure,
            }
        })?;
        self.tell_leftovers(&store);
        Ok(store)
    }

    /// Tells, on standard error, what could not be removed below the store's `tmp/`.
    pub(crate) fn tell_leftovers(&self, store: &Store) {
        for why in store.leftovers() {
            self.reports().leftover(&why).iter().for_each(|line| eprintln!("{line}"));
        }
    }

    /// Opens the store, or makes it.
    pub(crate) fn store_or_new(&self) -> Result<Store, Failure> {
        let store = Store::open(self.store_dir()?)?;
        self.tell_leftovers(&store);
        Ok(store)
    }

    /// Progress on standard error, if somebody is there to see it.
    pub(crate) fn progress(&self, total: Option<u64>) -> Progress {
        let wanted = !self.quiet() && !self.json() && std::io::stderr().is_terminal();
        Progress::new(wanted, total, self.reports())
    }

    /// How to tell, on standard error, what nobody asked for.
    fn reports(&self) -> Reports {
        match (self.quiet(), self.json()) {
            (true, _) => Reports::None,
            (false, true) => Reports::Json,
            (false, false) => Reports::Text,
        }
    }

    /// As many digits as people compare, or all with --verbose.
    pub(crate) fn digest(&self, digest: &Digest) -> String {
        if self.global.verbose { digest.to_string() } else { digest.hex()[..12].to_owned() }
    }

    /// As [`digest`](Self::digest), of digits or any other name.
    pub(crate) fn digits<'a>(&self, name: &'a str) -> &'a str {
        if self.global.verbose { name } else { name.get(..12).unwrap_or(name) }
    }

    /// The store's directory, if the user named it.
    pub(crate) fn given_store(&self) -> Option<&Path> {
        self.global.store.as_deref()
    }

    /// The store's directory, which may be in any state.
    pub(crate) fn store_dir(&self) -> Result<PathBuf, Failure> {
        if let Some(dir) = &self.global.store {
            return Ok(dir.clone());
        }
        if rustix::process::geteuid().is_root() {
            return Ok("/var/lib/layerstore".into());
        }
        // The XDG base directory specification: a relative path is to be ignored.
        let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let data = absolute("XDG_DATA_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/share")));
        data.map(|data| data.join("layerstore"))
            .ok_or_else(|| layerstore::Error::invalid("neither XDG_DATA_HOME nor HOME is set"))
            .hint("name the store with --store DIR")
    }
}
