//! Arguments of `layerstore bench` and `layerstore init`.

use clap::{Args, ValueHint};
use layerstore::{Chunking, Compress};
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// How content is cut; fixed when a store is made.
#[derive(Args, Default)]
pub(crate) struct Chunks {
    /// Least, average and most kB (of 1024 bytes) of a chunk of a larger file; the average a power of two [default: 64:128:256]
    #[arg(long, value_name = "MIN:AVG:MAX", value_parser = sizes)]
    pub(crate) chunks: Option<[u32; 3]>,
    /// Most kB of small files that are compressed together [default: 256]
    #[arg(long, value_name = "KB")]
    pub(crate) bundle: Option<u32>,
    /// kB from which on a file is cut instead of bundled [default: 64]
    #[arg(long, value_name = "KB")]
    pub(crate) small_file: Option<u32>,
}

impl Chunks {
    pub(crate) fn chunking(&self) -> layerstore::Result<Chunking> {
        let mut chunking = Chunking::default();
        let bytes = |kb: u32| kb.saturating_mul(1024);
        if let Some([min, avg, max]) = self.chunks {
            (chunking.min, chunking.avg, chunking.max) = (bytes(min), bytes(avg), bytes(max));
        }
        chunking.bundle = self.bundle.map_or(chunking.bundle, bytes);
        chunking.small_file = self.small_file.map_or(chunking.small_file, bytes);
        chunking.validate().map(|()| chunking)
    }
}

/// Reads `MIN:AVG:MAX`.
fn sizes(text: &str) -> Result<[u32; 3], String> {
    let sizes: Result<Vec<u32>, _> = text.split(':').map(str::parse).collect();
    let sizes = sizes.ok().and_then(|sizes| sizes.try_into().ok());
    sizes.ok_or_else(|| "wanted three numbers, MIN:AVG:MAX".into())
}

/// Make an empty store, with chunk sizes of your choice
///
/// Any command that imports makes a store with the usual sizes where there is none. Two stores find the same content only
/// if they cut alike.
#[derive(Args)]
#[command(after_help = "EXAMPLES:\n  layerstore init\n  layerstore --store /srv/images init --chunks 16:64:256")]
pub(crate) struct Init {
    #[command(flatten)]
    pub(crate) chunks: Chunks,
}

/// Measure the stages of an import, and what else is done with an image, on this machine
///
/// SOURCE is what `import` takes, or else the name of an image or layer of the store. All is done in a store of its own
/// that is removed at the end. First every stage alone on one thread, without writing; then whole operations.
#[derive(Args)]
#[command(after_help = "EXAMPLES:\n  layerstore bench layout\n  layerstore bench layer.tar.gz --dir /mnt/disk
  layerstore bench layout --compress lz4 --chunks 16:64:256 --bundle 512\n  layerstore bench app:1 --json | jq .stages")]
pub(crate) struct Bench {
    /// What to measure with
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) source: PathBuf,
    /// Which image of SOURCE: its reference, tag or manifest digest
    #[arg(long = "ref", value_name = "REF")]
    pub(crate) reference: Option<String>,
    /// Make the store below this directory, whose file system is part of what is measured [default: the directory for
    /// temporary files]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) dir: Option<PathBuf>,
    /// How chunks are compressed: auto, raw, lz4, zstd[:LEVEL]
    #[arg(long, value_name = "CODEC", default_value = "auto")]
    pub(crate) compress: Compress,
    /// Threads of an import and an export [default: the CPUs there are]
    #[arg(long)]
    pub(crate) threads: Option<NonZeroUsize>,
    #[command(flatten)]
    pub(crate) chunks: Chunks,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_three() {
        assert_eq!(sizes("16:64:256"), Ok([16, 64, 256]));
        for bad in ["", "16", "16:64", "16:64:256:1", "a:b:c", "-1:2:3"] {
            assert!(sizes(bad).is_err(), "{bad}");
        }
        let chunks = Chunks { chunks: Some([16, 64, 256]), bundle: Some(512), small_file: None };
        let wanted = Chunking { min: 16 << 10, avg: 64 << 10, bundle: 512 << 10, ..Chunking::default() };
        assert_eq!(chunks.chunking().ok(), Some(wanted));
        assert!(Chunks { small_file: Some(u32::MAX), ..Chunks::default() }.chunking().is_err());
    }
}
