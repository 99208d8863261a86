//! `layerstore why`.

use crate::args::Why;
use crate::context::Context;
use crate::errors::Failure;
use crate::names::{Named, escape, find};
use layerstore::{Advice, Digest, Error, GcOptions, ImageInfo, Keeper, Store};
use serde_json::json;

pub(crate) fn run(context: &Context, args: &Why) -> Result<(), Failure> {
    let store = context.store()?;
    let hex = args.what.strip_prefix("sha256:").unwrap_or(&args.what);
    if let Ok(digest) = Digest::from_hex(hex) {
        let keepers = store.keepers(&digest)?;
        if keepers.is_empty() && !is_there(context, &store, &digest)? {
            return Err(Error::not_found("the store has no such thing").subject(digest).advise(Advice::List).into());
        }
        return show(context, &digest.to_string(), &keepers);
    }
    match find(&store, &args.what)? {
        Named::Layer(layer) => show(context, &layer.diff_id.to_string(), &store.keepers(&layer.diff_id)?),
        Named::Image(image) => of_image(context, &store, &image),
    }
}

/// Whether the store has what nothing keeps.
fn is_there(context: &Context, store: &Store, digest: &Digest) -> Result<bool, Failure> {
    if store.layers()?.iter().any(|layer| layer.diff_id == *digest) {
        return Ok(true);
    }
    let plan = store.gc_plan(&GcOptions::default(), &context.progress(None))?;
    Ok(plan.garbage.iter().any(|garbage| garbage.name.contains(&digest.hex())))
}

/// A name keeps itself; of interest is what else keeps its layers.
fn of_image(context: &Context, store: &Store, image: &ImageInfo) -> Result<(), Failure> {
    if !context.json() {
        let name = escape(image.name.as_bytes());
        context.out().line(format!("image {name} stays until `layerstore rm {name}`; its layers:"))?;
    }
    for layer in &image.layers {
        show(context, &layer.to_string(), &store.keepers(layer)?)?;
    }
    Ok(())
}

fn show(context: &Context, what: &str, keepers: &[Keeper]) -> Result<(), Failure> {
    let kept_by: Vec<String> = keepers.iter().map(ToString::to_string).collect();
    if context.json() {
        return context.out().json(&json!({ "what": what, "kept_by": kept_by }));
    }
    context.out().line(what)?;
    if kept_by.is_empty() {
        return context.out().line("  nothing keeps it");
    }
    kept_by.iter().try_for_each(|keeper| context.out().line(format!("  {}", escape(keeper.as_bytes()))))
}
