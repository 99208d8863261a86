//! Arguments of the commands that look after a store.

use clap::{Args, ValueHint};
use layerstore::{Compress, Error};
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Remove what nothing needs, and give its disk space back
///
/// What images, held layers, snapshots and leases have stays, and so does what anything is mounted from. Imports, mounts
/// and reads may go on meanwhile, in this process or in others.
#[derive(Args)]
#[command(after_help = "EXAMPLES:\n  layerstore gc --dry-run\n  layerstore rm app:1 && layerstore gc")]
pub(crate) struct Gc {
    /// Only show what would be removed, and why
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Let go at once of what mounts of images stood on; else it waits five minutes for the next mount
    #[arg(long)]
    pub(crate) now: bool,
}

/// Look for damage, and say which layers and images it hurts
///
/// Changes nothing, unless --rebuild is given. Exits with 8 if anything is damaged. Imports and gc may go on meanwhile.
#[derive(Args)]
#[command(after_help = "EXAMPLES:\n  layerstore fsck\n  layerstore fsck --full --json | jq 'select(.kind)'
  layerstore fsck --rebuild        when the database is lost or damaged")]
pub(crate) struct Fsck {
    /// Read and verify every byte, not only what says where things are
    #[arg(long)]
    pub(crate) full: bool,
    /// Put every layer's tar together, too, and hold it against its diff_id
    #[arg(long)]
    pub(crate) tars: bool,
    /// First make the database anew from packs, layer records and blobs
    ///
    /// For a database that is missing or damaged, or was put back from an older backup. The old one is kept beside it,
    /// and names and snapshots are read from it as far as it can be read. Nobody may have the store open meanwhile.
    #[arg(long)]
    pub(crate) rebuild: bool,
}

/// Mend what is damaged with bytes from elsewhere
///
/// SOURCE is another store, an OCI layout, an image archive, or a layer's blob (a tar, plain, gzip or zstd). What it is,
/// is told by its bytes. Only what is damaged is taken from it, and every byte is proven before it is written. Without
/// SOURCE, blobs that were kept are the source, and sound chunks leave damaged packs. Checks every byte of the store
/// before and after; exits with 8 if anything is damaged still.
#[derive(Args)]
#[command(after_help = "EXAMPLES:\n  layerstore repair /backup/layerstore\n  layerstore repair layer.tar.gz
  skopeo copy docker://alpine oci:alpine && layerstore repair alpine\n  layerstore repair --json | jq .remaining")]
pub(crate) struct Repair {
    /// Where the bytes come from [default: what the store itself has]
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) source: Option<PathBuf>,
}

/// Compress again, more strongly, what imports compressed in haste
///
/// Every chunk that takes less space that way is stored once more, and `gc` gives back where it was. What is mounted
/// stays mounted and keeps its copies until it is unmounted; other processes may use the store meanwhile.
#[derive(Args)]
#[command(after_help = "EXAMPLES:\n  layerstore recompress\n  layerstore recompress --compress zstd:19 --threads 1
  layerstore recompress --json | jq .saved")]
pub(crate) struct Recompress {
    /// How to compress: lz4, zstd:LEVEL (1 to 19)
    #[arg(long, value_name = "CODEC", default_value = "zstd:9", value_parser = strong)]
    pub(crate) compress: Compress,
    /// Threads at work [default: the CPUs there are]
    #[arg(long)]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Leave the old copies to a later `gc`
    #[arg(long)]
    pub(crate) no_gc: bool,
}

/// A codec that makes anything smaller.
fn strong(text: &str) -> Result<Compress, Error> {
    match text.parse()? {
        Compress::Auto | Compress::Raw => {
            Err(Error::invalid("this makes nothing smaller").expected("lz4, zstd or zstd:LEVEL"))
        }
        compress => Ok(compress),
    }
}

/// Say what keeps something from gc
///
/// What nothing keeps is garbage: `gc` removes it.
#[derive(Args)]
#[command(after_help = "EXAMPLES:\n  layerstore why app:1\n  layerstore why 01980715c5b3 --json | jq .kept_by")]
pub(crate) struct Why {
    /// A layer, by the first digits of its diff_id; an image; or the whole digest of a blob or chain
    pub(crate) what: String,
}

/// Show what the store holds and what it takes on disk
#[derive(Args)]
#[command(after_help = "EXAMPLES:
  layerstore usage
  layerstore usage --images
  layerstore usage --json | jq .disk.total")]
pub(crate) struct Usage {
    /// Show what each image takes alone, and what it shares; and what gc would give back
    #[arg(long)]
    pub(crate) images: bool,
}
