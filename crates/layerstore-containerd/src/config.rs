//! The configuration file and the command line; what the latter says goes first.

use clap::Parser;
use layerstore::{Compress, DirectIo, DriverKind, Error, Result};
use serde::Deserialize;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// Serves containerd's snapshots and diff services from a layerstore.
#[derive(Debug, Parser)]
#[command(version, about, long_about = None)]
pub(crate) struct Args {
    /// Configuration file (TOML); none is needed.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The store's directory [default: /var/lib/layerstore].
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Socket to listen on, unless systemd hands one over [default: /run/layerstore/containerd.sock].
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// How snapshots are made: auto, erofs, overlay or copy [default: auto].
    #[arg(long, value_name = "DRIVER")]
    driver: Option<String>,
    /// Whether erofs mounts read packs past the page cache: auto, on or off [default: auto].
    #[arg(long, value_name = "WHEN")]
    direct_io: Option<String>,
    /// Where to serve metrics: a path for a unix socket, or ADDRESS:PORT.
    #[arg(long, value_name = "WHERE")]
    metrics: Option<String>,
    /// containerd's content directory, to read layers from without asking it.
    #[arg(long, value_name = "DIR")]
    content: Option<PathBuf>,
    /// containerd's own socket, to read and write content through [default: /run/containerd/containerd.sock].
    #[arg(long, value_name = "PATH")]
    containerd: Option<PathBuf>,
    /// Say what of this machine's containerd, Docker and podman uses the daemon, and what is missing; serve nothing.
    /// Exits with 1 if something is missing.
    #[arg(long)]
    pub(crate) check: bool,
    /// What to log, for example info or layerstore_containerd=debug [default: info].
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

/// All settings. The names are those of the configuration file.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// The store's directory.
    pub(crate) root: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) driver: String,
    /// Whether erofs mounts read packs past the page cache.
    pub(crate) direct_io: String,
    /// Whether erofs mounts keep no compressed blocks in memory.
    pub(crate) drop_compressed: bool,
    /// Whose snapshots these are in the store: one for each containerd that shares it.
    pub(crate) namespace: String,
    pub(crate) metrics: Option<String>,
    pub(crate) log: String,
    /// Threads that hash and compress a layer; all processors by default.
    pub(crate) threads: Option<NonZeroUsize>,
    /// How new content is compressed.
    pub(crate) compress: String,
    pub(crate) containerd: Containerd,
}

/// The containerd that is served.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Containerd {
    pub(crate) address: PathBuf,
    pub(crate) content: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: "/var/lib/layerstore".into(),
            socket: "/run/layerstore/containerd.sock".into(),
            driver: DriverKind::Auto.to_string(),
            direct_io: DirectIo::Auto.to_string(),
            drop_compressed: false,
            namespace: "containerd".into(),
            metrics: None,
            log: "info".into(),
            threads: None,
            // Images stay longer than they are waited for.
            compress: "zstd:1".into(),
            containerd: Containerd::default(),
        }
    }
}

impl Default for Containerd {
    fn default() -> Self {
        Self { address: "/run/containerd/containerd.sock".into(), content: None }
    }
}

impl Config {
    /// Reads the file, if one is named, and puts the command line over it.
    pub(crate) fn load(args: Args) -> Result<Self> {
        let mut config = args.config.as_deref().map(Self::read).transpose()?.unwrap_or_default();
        fn put<T>(target: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *target = value;
            }
        }
        put(&mut config.root, args.root);
        put(&mut config.socket, args.socket);
        put(&mut config.driver, args.driver);
        put(&mut config.direct_io, args.direct_io);
        put(&mut config.log, args.log);
        put(&mut config.containerd.address, args.containerd);
        config.metrics = args.metrics.or(config.metrics);
        config.containerd.content = args.content.or(config.containerd.content);
        config.driver()?;
        config.direct_io()?;
        config.compress()?;
        Ok(config)
    }

    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(format!("read {}", path.display()), e))?;
        Self::parse(&text).map_err(|e| e.subject(path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        toml::from_str(text).map_err(|e| Error::invalid(e.to_string().trim_end().to_owned()))
    }

    pub(crate) fn driver(&self) -> Result<DriverKind> {
        self.driver.parse()
    }

    pub(crate) fn direct_io(&self) -> Result<DirectIo> {
        self.direct_io.parse()
    }

    pub(crate) fn compress(&self) -> Result<Compress> {
        self.compress.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_goes_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(&file, "root = '/a'\nsocket = '/b'\n[containerd]\ncontent = '/c'\n").unwrap();
        let args = ["x", "--config", file.to_str().unwrap(), "--socket", "/d", "--driver", "overlay"];
        let config = Config::load(Args::try_parse_from(args).unwrap()).unwrap();
        let expected = Config {
            root: "/a".into(),
            socket: "/d".into(),
            driver: "overlay".into(),
            containerd: Containerd { content: Some("/c".into()), ..Containerd::default() },
            ..Config::default()
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        assert!(Config::parse("rooot = '/a'").unwrap_err().to_string().contains("rooot"));
        let args = Args::try_parse_from(["x", "--driver", "btrfs"]).unwrap();
        assert_eq!(Config::load(args).unwrap_err().kind(), layerstore::ErrorKind::InvalidInput);
        let config = Config { compress: "xz".into(), ..Config::default() };
        assert_eq!(config.compress().unwrap_err().kind(), layerstore::ErrorKind::InvalidInput);
    }

    /// The file that is shipped says what the defaults are.
    #[test]
    fn the_shipped_file_is_the_defaults() {
        let text = include_str!("../contrib/containerd.toml");
        assert_eq!(Config::parse(text).unwrap(), Config::default());
        let all: String = text.lines().map(|line| format!("{}\n", line.strip_prefix("#: ").unwrap_or(line))).collect();
        assert!(Config::parse(&all).unwrap().containerd.content.is_some());
    }
}
