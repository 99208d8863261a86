//! `layerstore layers`.

use crate::context::Context;
use crate::errors::Failure;
use crate::names::escape;
use crate::output::{Table, size};
use layerstore::{Digest, ImageInfo};
use serde_json::json;

pub(crate) fn run(context: &Context) -> Result<(), Failure> {
    let store = context.store()?;
    let images = store.images()?;
    let mut table = Table::new(&["DIFF_ID", ">TAR SIZE", ">ENTRIES", "USED BY"]);
    for layer in store.layers()? {
        let mut users = users(&images, &layer.diff_id);
        if context.json() {
            context.out().json(&json!({
                "diff_id": layer.diff_id, "tar_size": layer.tar_size, "entries": layer.entries,
                "held": layer.held, "images": users,
            }))?;
            continue;
        }
        if layer.held {
            users.push("(imported by itself)");
        }
        let users = if users.is_empty() { "-".into() } else { escape(users.join(", ").as_bytes()) };
        table.row([context.digest(&layer.diff_id), size(layer.tar_size), layer.entries.to_string(), users]);
    }
    if context.json() { Ok(()) } else { table.print(context.out(), "") }
}

/// Names of the images that have a layer.
pub(super) fn users<'a>(images: &'a [ImageInfo], layer: &Digest) -> Vec<&'a str> {
    images.iter().filter(|image| image.layers.contains(layer)).map(|image| image.name.as_str()).collect()
}
