//! `layerstore additional`.

use crate::args::{Additional, AdditionalCommand};
use crate::context::Context;
use crate::errors::{Failure, Hint};
use crate::names::{self, escape};
use layerstore::{AdditionalImage, AdditionalLayers, AdditionalOptions, Advice, ErrorKind, Store};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

pub(crate) fn run(context: &Context, args: &Additional) -> Result<(), Failure> {
    match &args.command {
        AdditionalCommand::Add { dir, what, reference, blobs } => {
            add(context, dir, what, reference.as_deref().unwrap_or(what), *blobs)
        }
        AdditionalCommand::Ls { dir } => list(context, dir),
        AdditionalCommand::Rm { dir, references } => remove(context, dir, references),
    }
}

fn open(store: Store, dir: &Path) -> Result<AdditionalLayers, Failure> {
    AdditionalLayers::open(Arc::new(store), dir)
        .hint_on(ErrorKind::Unsupported, "`layerstore doctor` tells what each driver lacks here")
}

fn add(context: &Context, dir: &Path, what: &str, reference: &str, blobs: bool) -> Result<(), Failure> {
    let store = context.store()?;
    let image = names::image(&store, what)?;
    let progress = context.progress(None);
    let options = AdditionalOptions::default().blobs(blobs);
    let added = open(store, dir)?.add(&image, reference, &options, &progress);
    progress.clear();
    let added =
        added.hint_for(Advice::OtherName, "--as REF says what podman pulls, as docker.io/library/app:1").hint_for(
            Advice::OtherDriver,
            "podman stacks layers by overlayfs, and so it cannot have this image from here",
        )?;
    if context.json() {
        return context.out().json(&to_json(reference, &added));
    }
    if context.quiet() {
        return Ok(());
    }
    let (listed, all) = (added.layers.len(), image.layers.len());
    context.out().line(format!("{}: {listed} of {all} layers listed", escape(reference.as_bytes())))?;
    if listed < all {
        context.out().line("the others are in the image more than once, and are pulled")?;
    }
    let without = added.layers.iter().filter(|layer| !layer.has_blob).count();
    if blobs && without > 0 {
        context.out().line(format!("{without} blobs cannot be made again; import with --keep-blobs keeps them"))?;
    }
    Ok(())
}

fn to_json(reference: &str, added: &AdditionalImage) -> serde_json::Value {
    let layer = |layer: &layerstore::AdditionalLayer| json!({ "blob": layer.blob, "diff_id": layer.diff_id, "has_blob": layer.has_blob });
    let layers: Vec<_> = added.layers.iter().map(layer).collect();
    json!({ "reference": reference, "dir": added.dir.display().to_string(), "layers": layers })
}

fn list(context: &Context, dir: &Path) -> Result<(), Failure> {
    for reference in open(context.store()?, dir)?.list()? {
        match context.json() {
            true => context.out().json(&json!({ "reference": reference }))?,
            false => context.out().line(escape(reference.as_bytes()))?,
        }
    }
    Ok(())
}

fn remove(context: &Context, dir: &Path, references: &[String]) -> Result<(), Failure> {
    let layers = open(context.store()?, dir)?;
    // All that is named goes or, on an error, nothing.
    let listed = layers.list()?;
    if let Some(missing) = references.iter().find(|reference| !listed.contains(reference)) {
        let e = layerstore::Error::not_found("no such reference is listed here").subject(missing);
        return Err(e).hint("`layerstore additional ls DIR` lists them");
    }
    references.iter().try_for_each(|reference| layers.remove(reference))?;
    Ok(())
}
