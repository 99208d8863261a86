//! Arguments of the commands that compose, mount and commit.

use crate::commands::run::capabilities;
use clap::builder::BoolishValueParser;
use clap::{Args, Subcommand, ValueHint};
use layerstore::{DirectIo, DriverKind};
use std::path::PathBuf;

/// Whose snapshots they are where nobody says.
pub(crate) const DEFAULT_NAMESPACE: &str = "default";

/// What all of them have.
#[derive(Args)]
pub(crate) struct Snapshots {
    /// How layers become directories: auto, erofs, overlay or copy
    #[arg(long, value_name = "DRIVER", default_value = "auto", env = "LAYERSTORE_DRIVER")]
    pub(crate) driver: DriverKind,
    /// Whether erofs mounts read packs past the page cache: auto (where the kernel is known to be safe), on or off
    #[arg(long, value_name = "WHEN", default_value = "auto", env = "LAYERSTORE_DIRECT_IO")]
    pub(crate) direct_io: DirectIo,
    /// Keep no compressed blocks of erofs mounts in memory: less memory, more reads; only where content is stored with zstd
    #[arg(long, env = "LAYERSTORE_DROP_COMPRESSED", value_parser = BoolishValueParser::new())]
    pub(crate) drop_compressed: bool,
    /// Whose snapshots: keys of different namespaces do not see each other
    #[arg(long, value_name = "NAME", default_value = DEFAULT_NAMESPACE)]
    pub(crate) namespace: String,
}

/// Prepare, view, commit, list and remove snapshots
#[derive(Args)]
#[command(after_help = "EXAMPLES:\n  layerstore snapshot prepare work --image app:1
  layerstore snapshot mounts work
  layerstore snapshot commit done work\n  layerstore snapshot ls")]
pub(crate) struct Snapshot {
    #[command(flatten)]
    pub(crate) common: Snapshots,
    #[command(subcommand)]
    pub(crate) command: SnapshotCommand,
}

#[derive(Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Make a writable snapshot of an image or of a committed snapshot, or an empty one; prints what to mount
    #[command(after_help = "EXAMPLES:\n  layerstore snapshot prepare work --image app:1")]
    Prepare(Make),
    /// Make a read-only snapshot; prints what to mount
    #[command(after_help = "EXAMPLES:\n  layerstore snapshot view look --image app:1")]
    View(Make),
    /// Make a layer of what was changed in an active snapshot
    #[command(after_help = "EXAMPLES:\n  layerstore snapshot commit done work")]
    Commit {
        /// Name of the committed snapshot
        name: String,
        /// Key of the active one
        key: String,
        /// Latest modification time in the layer, seconds since 1970
        #[arg(long, value_name = "SECONDS", env = "SOURCE_DATE_EPOCH")]
        epoch: Option<i64>,
        /// Commit even if it is mounted; what is written to that mount from then on may be lost
        #[arg(long)]
        force: bool,
    },
    /// Remove snapshots; either all that are named or, on an error, none
    #[command(after_help = "EXAMPLES:\n  layerstore snapshot rm work done")]
    Rm {
        /// Their keys
        #[arg(required = true)]
        keys: Vec<String>,
        /// Remove them even if they are mounted; what was written to them is lost when they are unmounted
        #[arg(long)]
        force: bool,
    },
    /// List snapshots
    #[command(after_help = "EXAMPLES:\n  layerstore snapshot ls --filter kind==active")]
    Ls {
        /// Only those that fit, in containerd's filter language (`kind==active`, `labels."a.b"`)
        #[arg(long = "filter", value_name = "FILTER")]
        filters: Vec<String>,
    },
    /// Print what to mount for a snapshot
    #[command(after_help = "EXAMPLES:\n  layerstore snapshot mounts work")]
    Mounts {
        /// Its key
        key: String,
    },
    /// Show what a snapshot adds to what is below it
    #[command(after_help = "EXAMPLES:\n  layerstore snapshot usage work")]
    Usage {
        /// Its key
        key: String,
    },
    /// Free the disk space of removed snapshots
    #[command(after_help = "EXAMPLES:\n  layerstore snapshot cleanup")]
    Cleanup,
}

#[derive(Args)]
pub(crate) struct Make {
    /// Its key
    pub(crate) key: String,
    /// The committed snapshot it stands on
    #[arg(long, value_name = "NAME", conflicts_with = "image")]
    pub(crate) parent: Option<String>,
    /// The image it stands on
    #[arg(long, value_name = "NAME")]
    pub(crate) image: Option<String>,
    /// Labels
    #[arg(long = "label", value_name = "NAME=VALUE")]
    pub(crate) labels: Vec<String>,
}

/// Mount an image or a snapshot
///
/// An image is mounted read-only, or with --rw on a new active snapshot called like DIR; a snapshot as it is.
#[derive(Args)]
#[command(after_help = "EXAMPLES:\n  layerstore mount app:1 /mnt\n  layerstore mount app:1 /mnt --rw
  layerstore mount app:1 /mnt --driver overlay\n  layerstore umount /mnt")]
pub(crate) struct MountArgs {
    /// An image's name or digest, or an active snapshot's or a view's key
    #[arg(value_name = "IMAGE|SNAPSHOT")]
    pub(crate) what: String,
    /// Where to
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,
    /// Writable; the changes stay in a snapshot whose key is DIR
    #[arg(long)]
    pub(crate) rw: bool,
    #[command(flatten)]
    pub(crate) common: Snapshots,
}

/// Unmount what `layerstore mount` mounted
///
/// The snapshot of a writable mount stays, to be committed or removed; that of a read-only mount goes. With --all nothing
/// of the store stays mounted, so that its directory can be moved or removed.
#[derive(Args)]
#[command(after_help = "EXAMPLES:\n  layerstore umount /mnt\n  layerstore umount --all")]
pub(crate) struct Umount {
    /// Where it is mounted
    #[arg(value_hint = ValueHint::DirPath, required_unless_present = "all")]
    pub(crate) dir: Option<PathBuf>,
    /// Unmount all that is mounted from the store, what snapshots share in the store's own directory included
    #[arg(long, conflicts_with = "dir")]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) common: Snapshots,
}

/// Write an image's whole tree to a directory
///
/// Needs no privileges: what cannot be set without them (owners, devices, some attributes) is reported.
#[derive(Args)]
#[command(after_help = "EXAMPLES:\n  layerstore extract app:1 rootfs")]
pub(crate) struct Extract {
    /// An image's name or digest
    #[arg(value_name = "IMAGE")]
    pub(crate) what: String,
    /// A directory that is not there yet, or empty
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,
}

/// Write what makes one image another, as a layer
#[derive(Args)]
#[command(
    after_help = "EXAMPLES:\n  layerstore diff app:1 app:2 | tar -tv\n  layerstore diff app:1 app:2 -o changes.tar"
)]
pub(crate) struct Diff {
    /// An image's name or digest, or a committed snapshot
    pub(crate) from: String,
    /// Another
    pub(crate) to: String,
    /// Write to this file, which must not be there yet, instead of to standard output
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) common: Snapshots,
}

/// Try an image: run a command in it, in namespaces of its own
///
/// A convenience, no container runtime. The command has mount, pid, ipc, uts and cgroup namespaces of its own, and the
/// image as its root: nothing of the host's files can be reached. It runs as the image's user, with Docker's default
/// capabilities, with standard input, output and error and no other open file, with its own /proc, masked as Docker's, and
/// a small /dev; there is no /sys. It shares the host's network, and has neither a seccomp filter, an LSM profile nor
/// limits: a runtime such as containerd or podman has those. Needs root. Changes are dropped, or kept as the snapshot KEY
/// with --keep.
#[derive(Args)]
#[command(after_help = "EXAMPLES:\n  layerstore run app:1 -- ls -l /\n  layerstore run app:1 --keep work -- touch /new
  layerstore commit work app:2 --image app:1\n  layerstore run app:1 --user 1000:1000 --cap-add NET_ADMIN -- id")]
pub(crate) struct Run {
    /// An image's name or digest
    #[arg(value_name = "IMAGE")]
    pub(crate) what: String,
    /// Keep the changes as an active snapshot of this key
    #[arg(long, value_name = "KEY")]
    pub(crate) keep: Option<String>,
    /// Whom to run as, by names of the image or by numbers [default: the image's user]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// Give a capability that Docker does not give by default, as NET_ADMIN, or ALL
    #[arg(long, value_name = "CAP", value_delimiter = ',', value_parser = capabilities::parse)]
    pub(crate) cap_add: Vec<u64>,
    /// Keep set-user-ID files and the like from giving privileges
    #[arg(long)]
    pub(crate) no_new_privileges: bool,
    /// Give all capabilities, mask nothing in /proc, and obey device files of the image
    #[arg(long)]
    pub(crate) privileged: bool,
    /// The command; without one the image's own
    #[arg(last = true)]
    pub(crate) command: Vec<std::ffi::OsString>,
    #[command(flatten)]
    pub(crate) common: Snapshots,
}

/// Make an image of an active snapshot: the image it was prepared on and one more layer
#[derive(Args)]
#[command(after_help = "EXAMPLES:\n  layerstore commit work app:2 --image app:1
  SOURCE_DATE_EPOCH=1700000000 layerstore commit work app:2 --image app:1 --message 'add new'")]
pub(crate) struct Commit {
    /// Key of the active snapshot, which becomes the image's topmost layer
    pub(crate) key: String,
    /// Name of the new image
    pub(crate) name: String,
    /// The image the snapshot was prepared on
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: String,
    /// What made the layer, for the image's history
    #[arg(long, value_name = "TEXT", default_value = "layerstore commit")]
    pub(crate) message: String,
    /// Latest modification time in the layer, and the image's time of creation, seconds since 1970
    #[arg(long, value_name = "SECONDS", env = "SOURCE_DATE_EPOCH")]
    pub(crate) epoch: Option<i64>,
    /// Commit even if it is mounted; what is written to that mount from then on may be lost
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) common: Snapshots,
}
