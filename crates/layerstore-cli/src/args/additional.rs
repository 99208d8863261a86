//! Arguments of `layerstore additional`.

use clap::{Args, Subcommand, ValueHint};
use std::path::PathBuf;

/// Lend extracted layers to podman, buildah and CRI-O, which then pull nothing of them
///
/// DIR becomes an "additional layer store" of containers/storage: in storage.conf, below [storage.options],
/// additionallayerstores = ["DIR:ref"]. What is listed in it is not collected as garbage. Needs root.
#[derive(Args)]
#[command(
    after_help = "EXAMPLES:\n  layerstore additional add /var/lib/layerstore-additional app:1 --as registry.example/app:1
  layerstore additional ls /var/lib/layerstore-additional
  layerstore additional rm /var/lib/layerstore-additional registry.example/app:1"
)]
pub(crate) struct Additional {
    #[command(subcommand)]
    pub(crate) command: AdditionalCommand,
}

#[derive(Subcommand)]
pub(crate) enum AdditionalCommand {
    /// Extract an image's layers and list them; an image that was listed under the same reference goes
    #[command(
        after_help = "EXAMPLES:\n  layerstore additional add /var/lib/layerstore-additional app:1 --as registry.example/app:1"
    )]
    Add {
        /// The directory, made if it is not there
        #[arg(value_hint = ValueHint::DirPath)]
        dir: PathBuf,
        /// An image's name or digest
        #[arg(value_name = "IMAGE")]
        what: String,
        /// The reference it is pulled by, in full [default: IMAGE]
        #[arg(long = "as", value_name = "REF")]
        reference: Option<String>,
        /// Write the compressed blobs too, so that podman can push and save the image
        #[arg(long)]
        blobs: bool,
    },
    /// List the references in the directory
    #[command(after_help = "EXAMPLES:\n  layerstore additional ls /var/lib/layerstore-additional")]
    Ls {
        /// The directory
        #[arg(value_hint = ValueHint::DirPath)]
        dir: PathBuf,
    },
    /// List images no longer; remove podman's own images of them first
    #[command(
        after_help = "EXAMPLES:\n  layerstore additional rm /var/lib/layerstore-additional registry.example/app:1"
    )]
    Rm {
        /// The directory
        #[arg(value_hint = ValueHint::DirPath)]
        dir: PathBuf,
        /// The references, as `ls` shows them
        #[arg(value_name = "REF", required = true)]
        references: Vec<String>,
    },
}
