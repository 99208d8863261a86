//! `layerstore commit`.

use super::snapshot;
use crate::args::Commit;
use crate::context::Context;
use crate::errors::{Failure, Hint};
use crate::names::escape;
use layerstore::{AppendOptions, CommitOptions, Digest, ErrorKind};
use serde_json::json;

pub(crate) fn run(context: &Context, args: &Commit) -> Result<(), Failure> {
    let snapshots = snapshot::open(context, &args.common)?;
    let store = snapshots.store();
    let image = store.image(&args.image).hint("`layerstore images` lists the images there are")?;
    let base = Digest::chain_of(&image.layers).map(|id| id.to_string());
    let active = snapshots.stat(&args.key).hint("`layerstore snapshot ls` lists the snapshots there are")?;
    if active.parent != base {
        let failure = Failure::new(ErrorKind::FailedPrecondition, "the snapshot was not prepared on this image");
        return Err(failure.hint("name the image of its `snapshot prepare --image` or `mount --rw`"));
    }
    let progress = context.progress(None);
    // Under a name of its own first: the chain_id is known only when the layer is.
    let name = format!("commit/{}", args.key);
    let layer = snapshots.commit(&name, &args.key, &CommitOptions::default().epoch(args.epoch), &progress)?;
    progress.clear();
    let layer = layer.ok_or_else(|| Failure::new(ErrorKind::FailedPrecondition, "the commit gave no layer"))?;
    let options = AppendOptions::default().created(args.epoch).created_by(&args.message);
    let made = store.append_layer(&image, &args.name, &layer, &options)?;
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
