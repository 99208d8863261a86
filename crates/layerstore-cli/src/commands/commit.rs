//! `layerstore commit`.

use super::snapshot;
use crate::args::Commit;
use crate::context::Context;
use crate::errors::{Failure, Hint};
use crate::names::{self, escape, shell};
use layerstore::{AppendOptions, CommitOptions, Digest, Error, ErrorKind, SnapshotKind, Snapshotter};
use serde_json::json;
use std::os::unix::ffi::OsStrExt;

pub(crate) fn run(context: &Context, args: &Commit) -> Result<(), Failure> {
    let snapshots = snapshot::open(context, &args.common)?;
    let store = snapshots.store();
    // Before anything is changed.
    layerstore::check_image_name(&args.name).hint("name the new image, as app:2")?;
    let image = names::image(store, &args.image)?;
    let base = Digest::chain_of(&image.layers).map(|id| id.to_string());
    // Under a name of its own first: the chain_id is known only when the layer is.
    let name = format!("commit/{}", args.key);
    let found = match snapshots.stat(&args.key) {
        // What an earlier commit made no image of.
        Err(e) if e.kind() == ErrorKind::NotFound => snapshots.stat(&name).map_err(|_| e),
        found => found,
    };
    let found = found.hint_on(ErrorKind::NotFound, "`layerstore snapshot ls` lists the snapshots there are")?;
    if found.parent != base {
        let failure = Failure::new(ErrorKind::FailedPrecondition, "the snapshot was not prepared on this image");
        return Err(failure.hint("name the image of its `snapshot prepare --image` or `mount --rw`"));
    }
    if found.key != name && found.kind != SnapshotKind::Active {
        let failure = Failure::new(ErrorKind::FailedPrecondition, "the snapshot is not active");
        return Err(failure.hint("a snapshot that `prepare` or `mount --rw` made becomes an image"));
    }
    let progress = context.progress(None);
    let layer = if found.key == name {
        snapshots.layers(&name, &progress)?.pop()
    } else {
        if !args.force {
            refuse_mounted(context, args, &snapshots)?;
        }
        let options = CommitOptions::default().epoch(args.epoch).mounted(args.force);
        snapshots.commit(&name, &args.key, &options, &progress)?
    };
    progress.clear();
    let layer = layer.ok_or_else(|| Failure::new(ErrorKind::FailedPrecondition, "the commit gave no layer"))?;
    let options = AppendOptions::default().created(args.epoch).created_by(&args.message);
    let made = store.append_layer(&image, &args.name, &layer, &options).map_err(|e| {
        let again = snapshot::again(context, &args.common);
        let (from, to) = (shell(args.image.as_bytes()), shell(name.as_bytes()));
        Failure::from(e).hint(format!(
            "the changes are in the committed snapshot {to}: mend the cause and run this command again, or get them with \
             `layerstore diff{again} {from} {to} -o FILE`"
        ))
    })?;
    // The image keeps the layer now.
    snapshots.remove(&name)?;
    snapshots.cleanup()?;
    if context.json() {
        return context.out().json(&json!({
            "name": made.name, "config": made.config, "manifest": made.manifest, "layer": layer,
        }));
    }
    if context.quiet() {
        return Ok(());
    }
    let layer = context.digest(&layer);
    context.out().line(format!("committed {}: {} layers, new {layer}", escape(made.name.as_bytes()), made.layers.len()))
}

/// What is written to a mount after the commit would be lost.
fn refuse_mounted(context: &Context, args: &Commit, snapshots: &Snapshotter) -> Result<(), Failure> {
    let Some(dirs) = snapshots.mount_points(&args.key)? else { return Ok(()) };
    let e = Error::new(ErrorKind::FailedPrecondition, "the snapshot is mounted").subject(&args.key);
    let hint = match dirs.first() {
        Some(dir) => {
            let (dir, again) = (shell(dir.as_os_str().as_bytes()), snapshot::again(context, &args.common));
            format!("`layerstore umount {dir}{again}` first")
        }
        None => snapshot::unmount_hint(context, &dirs, "or commit it with --force"),
    };
    Err(Failure::from(e.actual(snapshot::places(&dirs))).hint(hint))
}
