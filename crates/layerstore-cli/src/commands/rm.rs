//! `layerstore rm`: everything is looked up before anything is removed.

use super::layers::users;
use crate::args::Rm;
use crate::context::Context;
use crate::errors::{Failure, Hint};
use crate::names::{Named, escape, find_name};
use layerstore::{Digest, Error, ErrorKind, Store};
use serde_json::json;

#[derive(PartialEq)]
enum Removal {
    Image(String),
    Layer(Digest),
}

pub(crate) fn run(context: &Context, args: &Rm) -> Result<(), Failure> {
    let store = context.store()?;
    let mut removals = Vec::new();
    for name in &args.what {
        let removal = plan(&store, name)?;
        if !removals.contains(&removal) {
            removals.push(removal);
        }
    }
    for removal in removals {
        let (what, kind) = match &removal {
            Removal::Image(name) => (name.clone(), "image"),
            Removal::Layer(diff_id) => (diff_id.to_string(), "layer"),
        };
        match &removal {
            Removal::Image(name) => store.remove_image(name)?,
            Removal::Layer(diff_id) => store.release_layer(diff_id)?,
        }
        if context.json() {
            context.out().json(&json!({ "removed": what, "kind": kind }))?;
        } else if !context.quiet() {
            context.out().line(format!("removed {kind} {}", escape(what.as_bytes())))?;
        }
    }
    Ok(())
}

fn plan(store: &Store, name: &str) -> Result<Removal, Failure> {
    match find_name(store, name)? {
        Named::Image(image) => Ok(Removal::Image(image.name)),
        Named::Layer(layer) if layer.held => Ok(Removal::Layer(layer.diff_id)),
        Named::Layer(layer) => {
            let images = store.images()?;
            let users = users(&images, &layer.diff_id).join(", ");
            let message =
                if users.is_empty() { "the layer was removed before" } else { "the layer belongs to an image" };
            let e = Error::new(ErrorKind::FailedPrecondition, message).subject(layer.diff_id);
            match users.is_empty() {
                true => Err(e).hint("its content stays until garbage collection"),
                false => Err(e.actual(users)).hint("remove the image"),
            }
        }
    }
}
