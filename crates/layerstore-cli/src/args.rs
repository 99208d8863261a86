//! What can be typed. Every command's help ends in examples; the table of exit codes is in `errors.rs` too.

mod additional;
mod bench;
mod snapshots;
mod upkeep;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use layerstore::{Compress, Compression, OciDigest, Platform};
use std::num::NonZeroUsize;
use std::path::PathBuf;

pub(crate) use additional::{Additional, AdditionalCommand};
pub(crate) use bench::{Bench, Init};
pub(crate) use snapshots::{
    Commit, DEFAULT_NAMESPACE, Diff, Extract, Make, MountArgs, Run, Snapshot, SnapshotCommand, Snapshots, Umount,
};
pub(crate) use upkeep::{Fsck, Gc, Recompress, Repair, Usage, Why};

const ABOUT: &str = "Content-addressable store for container image layers";

const EXIT_CODES: &str = "\
EXIT CODES:
  0  success                 6  failed-precondition
  1  io, or anything else    7  unsupported
  2  usage                   8  corrupt
  3  not-found               9  busy
  4  already-exists         10  limit-exceeded
  5  invalid-input          11  cancelled
  141  the reader of standard output left (as in `layerstore ls x | head`)

EXAMPLES:
  layerstore demo                             see what it does, with files of this machine
  layerstore import image.tar --name app:1    from `docker save`, `skopeo copy`, buildkit...
  layerstore ls app:1 /etc -l
  layerstore export app:1 oci:layout:app:1";

#[derive(Parser)]
#[command(name = "layerstore", version, about = ABOUT, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Args)]
pub(crate) struct Global {
    /// Directory of the store [default: /var/lib/layerstore for root, else $XDG_DATA_HOME/layerstore]
    #[arg(long, global = true, value_name = "DIR", env = "LAYERSTORE_STORE", value_hint = ValueHint::DirPath)]
    pub(crate) store: Option<PathBuf>,
    /// Print JSON, one object per line; errors too
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print no progress and no reports, only what was asked for
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Print digests in full
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    Demo(Demo),
    Init(Init),
    Import(Import),
    Export(Export),
    /// List the images of the store
    #[command(after_help = "EXAMPLES:\n  layerstore images\n  layerstore images --json | jq -r .name")]
    Images,
    /// List the layers of the store
    #[command(after_help = "EXAMPLES:\n  layerstore layers\n  layerstore layers --json | jq -r .diff_id")]
    Layers,
    Ls(Ls),
    Cat(Cat),
    Inspect(Inspect),
    Rm(Rm),
    Gc(Gc),
    Fsck(Fsck),
    Repair(Repair),
    Recompress(Recompress),
    Snapshot(Snapshot),
    Mount(MountArgs),
    Umount(Umount),
    Extract(Extract),
    Diff(Diff),
    Run(Run),
    Commit(Commit),
    Additional(Additional),
    /// Show which drivers work here, what the others lack, and how packs are read
    #[command(after_help = "EXAMPLES:\n  layerstore doctor\n  layerstore doctor --json")]
    Doctor {
        /// Whether erofs mounts read packs past the page cache: auto, on or off
        #[arg(long, value_name = "WHEN", default_value = "auto", env = "LAYERSTORE_DIRECT_IO")]
        direct_io: layerstore::DirectIo,
    },
    Why(Why),
    Bench(Bench),
    Usage(Usage),
    /// Print a completion script for a shell
    #[command(
        after_help = "EXAMPLES:\n  layerstore completions bash > ~/.local/share/bash-completion/completions/layerstore
  layerstore completions zsh > \"${fpath[1]}/_layerstore\"
  layerstore completions fish > ~/.config/fish/completions/layerstore.fish"
    )]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Show the store at work on files of this machine: no image, no network and no root needed
///
/// Makes two versions of a small image from readable files, imports both into a store of its own, and shows what was
/// stored once, what comes back bit for bit, and how long it took. Everything is removed at the end.
#[derive(Args)]
#[command(after_help = "EXAMPLES:\n  layerstore demo\n  layerstore demo --dir /mnt/disk --keep")]
pub(crate) struct Demo {
    /// Work below this directory; it needs about 500 MB [default: the directory for temporary files]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) dir: Option<PathBuf>,
    /// Keep the store and the images
    #[arg(long)]
    pub(crate) keep: bool,
    /// Take the files from here
    #[arg(long, value_name = "DIR", hide = true)]
    pub(crate) from: Option<PathBuf>,
}

/// Import an image, or a single layer
///
/// SOURCE is an OCI layout directory, an OCI or docker archive, a layer's tar (plain, gzip or zstd), or `-` for a
/// layer's tar on standard input. What it is, is told by its bytes. Nothing is kept of an import that fails.
#[derive(Args)]
#[command(after_help = "EXAMPLES:\n  docker save app:1 -o app.tar && layerstore import app.tar
  skopeo copy docker://alpine oci:alpine && layerstore import alpine --name alpine
  layerstore import layout --ref v2 --platform linux/arm64
  curl -s https://example.org/rootfs.tar.gz | layerstore import -")]
pub(crate) struct Import {
    /// What to import
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) source: PathBuf,
    /// Name of the image in the store [default: its reference in SOURCE, else its config digest]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Which image of SOURCE: its reference or tag, or the digest of its manifest, configuration or index
    #[arg(long = "ref", value_name = "REF")]
    pub(crate) reference: Option<String>,
    /// Which platform's image of SOURCE
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub(crate) platform: Option<Platform>,
    /// Keep compressed blobs as they came, so that an export gives the original manifest
    #[arg(long)]
    pub(crate) keep_blobs: bool,
    /// Refuse anything but this: the digest of a layer's blob, or of an image's manifest or configuration
    #[arg(long, value_name = "DIGEST")]
    pub(crate) expect: Option<OciDigest>,
    /// How new chunks are compressed: auto (as time allows), raw, lz4 or zstd[:LEVEL] [default: auto]
    #[arg(long, value_name = "CODEC")]
    pub(crate) compress: Option<Compress>,
    /// Threads at work [default: the CPUs there are]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
}

/// Export an image as OCI layout or archive, or a layer as the tar it was
///
/// A layer comes back bit for bit. An image's configuration and layers are the same too; its manifest is, where blobs
/// were kept at import (`--keep-blobs`) or compressing again gives the same bytes. The report says which.
#[derive(Args)]
#[command(after_help = "EXAMPLES:\n  layerstore export app:1 oci:layout:app:1
  layerstore export app:1 oci-archive:app.tar      (for `docker load`, too)
  layerstore export app:1 app.tar --compress zstd
  layerstore export 3f2a9c layer.tar
  layerstore export 3f2a9c - | tar -tv")]
pub(crate) struct Export {
    /// An image's name or digest, or a layer's diff_id; the first digits of a digest do
    #[arg(value_name = "NAME|DIFF_ID")]
    pub(crate) what: String,
    /// For an image oci:DIR[:REF], oci-archive:FILE[:REF] or a path (*.tar is an archive); for a layer a file or `-`
    #[arg(value_name = "DEST", value_hint = ValueHint::AnyPath)]
    pub(crate) dest: String,
    /// Compress the layers' blobs like this
    #[arg(long, value_enum)]
    pub(crate) compress: Option<BlobCompression>,
    /// Threads at work [default: the CPUs there are]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
}

/// How exported blobs are compressed.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum BlobCompression {
    None,
    Gzip,
    Zstd,
}

impl From<BlobCompression> for Compression {
    fn from(choice: BlobCompression) -> Self {
        match choice {
            BlobCompression::None => Self::None,
            BlobCompression::Gzip => Self::Gzip,
            BlobCompression::Zstd => Self::Zstd,
        }
    }
}

/// List the files of an image, or the entries of a layer
///
/// An image is listed as the tree its layers give, sorted; a layer as its tar had it, whiteouts included. Lists all
/// below PATH. On a terminal unprintable characters are escaped; elsewhere names are printed as they are.
#[derive(Args)]
#[command(after_help = "EXAMPLES:\n  layerstore ls app:1 --depth 1\n  layerstore ls app:1 /etc -l
  layerstore ls 3f2a9c | grep '\\.wh\\.'\n  layerstore ls app:1 --json | jq 'select(.size > 1e6) | .path'")]
pub(crate) struct Ls {
    /// An image's name or digest, or a layer's diff_id; the first digits of a digest do
    #[arg(value_name = "NAME|DIFF_ID")]
    pub(crate) what: String,
    /// Where to list [default: everything]
    pub(crate) path: Option<std::ffi::OsString>,
    /// With type, mode, owner, size in bytes, time (UTC) and link target
    #[arg(short, long)]
    pub(crate) long: bool,
    /// Not deeper than N below PATH
    #[arg(long, value_name = "N")]
    pub(crate) depth: Option<usize>,
}

/// Print a file of an image or of a layer
///
/// In an image, symlinks are followed inside its root; in a layer only hard links are.
#[derive(Args)]
#[command(after_help = "EXAMPLES:\n  layerstore cat app:1 /etc/os-release\n  layerstore cat 3f2a9c usr/bin/env > env")]
pub(crate) struct Cat {
    /// An image's name or digest, or a layer's diff_id; the first digits of a digest do
    #[arg(value_name = "NAME|DIFF_ID")]
    pub(crate) what: String,
    /// The file
    pub(crate) path: std::ffi::OsString,
}

/// Show an image's digests, configuration and layers, or what a layer holds
#[derive(Args)]
#[command(after_help = "EXAMPLES:\n  layerstore inspect app:1\n  layerstore inspect app:1 --config | jq .config.Env
  layerstore inspect 3f2a9c --json")]
pub(crate) struct Inspect {
    /// An image's name or digest, or a layer's diff_id; the first digits of a digest do
    #[arg(value_name = "NAME|DIFF_ID")]
    pub(crate) what: String,
    /// Print the image's configuration, byte for byte
    #[arg(long, conflicts_with = "manifest")]
    pub(crate) config: bool,
    /// Print the image's manifest, byte for byte
    #[arg(long)]
    pub(crate) manifest: bool,
}

/// Remove images, or layers that were imported by themselves
///
/// Names go at once, their content stays until garbage collection. Either all that is named goes or, on an error,
/// nothing.
#[derive(Args)]
#[command(after_help = "EXAMPLES:\n  layerstore rm app:1\n  layerstore rm app:1 app:2 3f2a9c")]
pub(crate) struct Rm {
    /// Images' names or digests, or layers' diff_ids; the first digits of a digest do
    #[arg(value_name = "NAME|DIFF_ID", required = true)]
    pub(crate) what: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent_and_every_command_has_examples() {
        let mut cli = Cli::command();
        cli.clone().debug_assert();
        have_examples(&mut cli);
    }

    fn have_examples(of: &mut clap::Command) {
        // clap's own `help` has none.
        for command in of.get_subcommands_mut().filter(|command| command.get_name() != "help") {
            let help = command.render_long_help().to_string();
            assert!(
                help.contains("EXAMPLES:\n  layerstore") || help.contains("| layerstore"),
                "{}",
                command.get_name()
            );
            have_examples(command);
        }
    }
}
