//! `layerstore export`.

use crate::args::Export;
use crate::context::Context;
use crate::errors::{Failure, Hint};
use crate::names::{Named, escape, find};
use crate::output::{seconds, size, to_json};
use layerstore::{
    BlobWriter, Compression, Digest, Error, ErrorKind, ExportOptions, ExportTarget, ImageInfo, Observer, Store,
};
use serde_json::json;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

pub(crate) fn run(context: &Context, args: &Export) -> Result<(), Failure> {
    let store = context.store()?;
    match find(&store, &args.what)? {
        Named::Image(image) => export_image(context, args, &store, &image),
        Named::Layer(layer) => export_layer(context, args, &store, &layer.diff_id),
    }
}

fn threads(args: &Export) -> NonZeroUsize {
    args.threads.or_else(|| std::thread::available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN)
}

/// Splits `oci:DIR[:REF]`; a path with a colon in it can be given as a plain path.
fn target(dest: &str) -> Result<(ExportTarget, Option<&str>), Failure> {
    let prefixed = [("oci-archive:", true), ("oci:", false)];
    let found = prefixed.iter().find_map(|(prefix, archive)| Some((dest.strip_prefix(prefix)?, *archive)));
    let (path, reference, archive) = match found {
        Some((rest, archive)) => {
            let (path, reference) = rest.split_once(':').map_or((rest, None), |(path, r)| (path, Some(r)));
            (path.into(), reference.filter(|r| !r.is_empty()), archive)
        }
        None => (PathBuf::from(dest), None, Path::new(dest).extension().is_some_and(|e| e == "tar")),
    };
    if path.as_os_str().is_empty() || path.as_os_str() == "-" {
        let failure = Failure::new(ErrorKind::InvalidInput, "an image is exported to a directory or a file");
        return Err(failure.hint("for example oci:DIR, oci-archive:FILE or FILE.tar"));
    }
    Ok((if archive { ExportTarget::Archive(path) } else { ExportTarget::Layout(path) }, reference))
}

fn export_image(context: &Context, args: &Export, store: &Store, image: &ImageInfo) -> Result<(), Failure> {
    let (target, reference) = target(&args.dest)?;
    let mut options = ExportOptions::default().threads(threads(args));
    if let Some(reference) = reference {
        options = options.reference(reference);
    }
    if let Some(compression) = args.compress {
        options = options.compression(compression.into());
    }
    let sizes = image.layers.iter().map(|diff_id| store.layer(diff_id).map(|l| l.tar_size()));
    let total = sizes.sum::<layerstore::Result<u64>>()?;
    let (begin, progress) = (Instant::now(), context.progress(Some(total)));
    let export = store
        .export_image(image, &target, &options, &progress)
        .hint_on(ErrorKind::AlreadyExists, "choose another destination, or remove what is there")?;
    let took = begin.elapsed();
    drop(progress);
    if context.json() {
        return context.out().json(&json!({
            "kind": "image", "name": image.name, "manifest": export.manifest, "original": export.original,
            "config": export.config, "identical": export.identical, "seconds": took.as_secs_f64(),
        }));
    }
    if context.quiet() {
        return Ok(());
    }
    let out = context.out();
    out.line(format!("image     {}", escape(image.name.as_bytes())))?;
    out.line(format!("manifest  {}", export.manifest))?;
    if export.identical {
        out.line("          the original, and so are all blobs")?;
    } else {
        out.line(format!("original  {}", export.original))?;
        out.line("          another manifest: blobs were compressed anew; configuration and layers are the same")?;
    }
    out.line(format!("tar bytes {} in {}", size(total), seconds(took)))
}

fn export_layer(context: &Context, args: &Export, store: &Store, diff_id: &Digest) -> Result<(), Failure> {
    if args.dest.starts_with("oci:") || args.dest.starts_with("oci-archive:") {
        let failure = Failure::new(ErrorKind::InvalidInput, "a layer is exported to a file or '-', not to a layout");
        return Err(failure.hint("name an image, or a file"));
    }
    let layer = store.layer(diff_id)?;
    let compression = args.compress.map_or(Compression::None, Compression::from);
    let (begin, progress) = (Instant::now(), context.progress(Some(layer.tar_size())));
    let write = |out: &mut dyn Write| -> layerstore::Result<Digest> {
        let mut blob = BlobWriter::new(out, compression)?;
        layer.export(&mut blob, threads(args), &progress as &dyn Observer)?;
        Ok(blob.finish()?.0)
    };
    let stdout = args.dest == "-";
    let digest = if stdout {
        let mut out = context.out().lock();
        write(&mut *out)?
    } else {
        to_file(Path::new(&args.dest), write)?
    };
    let took = begin.elapsed();
    progress.clear();
    if context.quiet() {
        return Ok(());
    }
    let same = digest == *diff_id;
    let text = if context.json() {
        to_json(&json!({
            "kind": "layer", "diff_id": diff_id, "tar_size": layer.tar_size(), "digest": digest,
            "compression": compression.as_str(), "seconds": took.as_secs_f64(),
        }))
    } else {
        let proof = if same { "sha256 is the diff_id".into() } else { format!("as {compression} {digest}") };
        format!("layer {}: {} of tar in {}, {proof}", context.digest(diff_id), size(layer.tar_size()), seconds(took))
    };
    if !stdout {
        return context.out().line(text);
    }
    // Standard output is the tar's.
    if context.json() || std::io::IsTerminal::is_terminal(&std::io::stderr()) {
        eprintln!("{text}");
    }
    Ok(())
}

/// A file is there whole or not at all, and none is replaced. Pipes and devices are written to as they are.
pub(super) fn to_file<T>(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> layerstore::Result<T>,
) -> Result<T, Failure> {
    let failed = |what: &str, e: std::io::Error| Error::io(what, e).subject(path.display());
    let exists = || Error::new(ErrorKind::AlreadyExists, "there is such a file").subject(path.display());
    match fs::metadata(path) {
        Ok(found) if !found.is_file() && !found.is_dir() => {
            let mut file = File::options().write(true).open(path).map_err(|e| failed("cannot open", e))?;
            // Somebody may have put a file there meanwhile, which is not written to.
            if file.metadata().map_err(|e| failed("cannot look at", e))?.is_file() {
                return Err(exists().into());
            }
            return Ok(write(&mut file)?);
        }
        Ok(_) => return Err(exists().into()),
        Err(_) => {}
    }
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Looked up once: the name is given in the very directory that the file was made in.
    let parent = File::open(parent).map_err(|e| failed("cannot open the directory of", e))?;
    let at = PathBuf::from(format!("/proc/self/fd/{}/.", parent.as_raw_fd()));
    // Made with all permissions that the umask leaves, as `>` in a shell would.
    let made =
        tempfile::Builder::new().prefix(".layerstore-").permissions(Permissions::from_mode(0o666)).tempfile_in(&at);
    let mut file = made.map_err(|e| failed("cannot make a file beside", e))?;
    let written = write(file.as_file_mut())?;
    file.as_file().sync_all().map_err(|e| failed("cannot sync", e))?;
    match file.persist_noclobber(at.join(path.file_name().unwrap_or_default())) {
        Ok(_) => Ok(written),
        Err(e) if e.error.kind() == std::io::ErrorKind::AlreadyExists => {
            Err(Error::new(ErrorKind::AlreadyExists, "there is such a file").subject(path.display()))
                .hint("choose another")
        }
        Err(e) => Err(failed("cannot name", e.error).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_destinations() {
        let layout = |path: &str| ExportTarget::Layout(path.into());
        let archive = |path: &str| ExportTarget::Archive(path.into());
        let cases = [
            ("oci:dir", layout("dir"), None),
            ("oci:dir:reg:5000/app:1", layout("dir"), Some("reg:5000/app:1")),
            ("oci-archive:a/b.x:v1", archive("a/b.x"), Some("v1")),
            ("oci-archive:a:", archive("a"), None),
            ("out.tar", archive("out.tar"), None),
            ("out:1", layout("out:1"), None),
        ];
        for (text, wanted, reference) in cases {
            assert_eq!(target(text).expect(text), (wanted, reference), "{text}");
        }
        for bad in ["oci:", "oci-archive::x", "-", ""] {
            assert_eq!(target(bad).expect_err(bad).kind(), ErrorKind::InvalidInput);
        }
    }
}
