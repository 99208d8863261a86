//! `layerstore diff`.

use super::export::to_file;
use super::snapshot;
use crate::args::Diff;
use crate::context::Context;
use crate::errors::{Failure, Hint};
use crate::names;
use crate::output::size;
use layerstore::{CreateOptions, Digest, Error, ErrorKind, Observer, Snapshotter};
use serde_json::json;
use std::io::{BufWriter, IsTerminal, Write};

pub(crate) fn run(context: &Context, args: &Diff) -> Result<(), Failure> {
    let snapshots = snapshot::open(context, &args.common)?;
    let progress = context.progress(None);
    let (from, to) = (layers(&snapshots, &args.from, &progress)?, layers(&snapshots, &args.to, &progress)?);
    let options = CreateOptions::default();
    let store = snapshots.store();
    let changes = store.diff(&from, &to, &options, &progress)?;
    progress.clear();
    let Some(path) = &args.output else {
        if std::io::stdout().is_terminal() {
            let failure = Failure::new(ErrorKind::InvalidInput, "a layer is no text to show on a terminal");
            return Err(failure.hint("pipe it to `tar -tv`, or give a file with -o"));
        }
        store.write_layer(&changes, &mut *context.out().lock(), &options, &progress)?;
        return Ok(());
    };
    let (diff_id, tar_size) = to_file(path, |file| {
        let mut file = BufWriter::new(file);
        let written = store.write_layer(&changes, &mut file, &options, &progress)?;
        file.flush().map_err(|e| Error::io("cannot write the file", e).subject(path.display()))?;
        Ok(written)
    })?;
    if context.json() {
        return context.out().json(&json!({ "diff_id": diff_id, "size": tar_size, "entries": changes.len() }));
    }
    if context.quiet() {
        return Ok(());
    }
    context.out().line(format!("{} entries, {}, diff_id {diff_id}", changes.len(), size(tar_size)))
}

/// The layers of an image or of a committed snapshot.
fn layers(snapshots: &Snapshotter, name: &str, observer: &dyn Observer) -> Result<Vec<Digest>, Failure> {
    match names::image(snapshots.store(), name) {
        Ok(image) => Ok(image.layers),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let list = "`layerstore images` and `layerstore snapshot ls` list what there is";
            snapshots.layers(name, observer).hint_on(ErrorKind::NotFound, list)
        }
        Err(e) => Err(e),
    }
}
