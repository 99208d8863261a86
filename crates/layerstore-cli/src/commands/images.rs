//! `layerstore images`.

use crate::context::Context;
use crate::errors::Failure;
use crate::names::escape;
use crate::output::{Table, size};
use layerstore::Digest;
use serde_json::json;
use std::collections::HashMap;

pub(crate) fn run(context: &Context) -> Result<(), Failure> {
    let store = context.store()?;
    let images = store.images()?;
    let sizes: HashMap<Digest, u64> = store.layers()?.into_iter().map(|l| (l.diff_id, l.tar_size)).collect();
    let mut table = Table::new(&["NAME", "CONFIG", "MANIFEST", ">LAYERS", ">TAR SIZE"]);
    for image in &images {
        let tar: u64 = image.layers.iter().filter_map(|layer| sizes.get(layer)).sum();
        if context.json() {
            context.out().json(&json!({
                "name": image.name, "config": image.config, "manifest": image.manifest,
                "layers": image.layers, "tar_size": tar,
            }))?;
        } else {
            let (config, manifest) = (context.digest(&image.config), context.digest(&image.manifest));
            table.row([escape(image.name.as_bytes()), config, manifest, image.layers.len().to_string(), size(tar)]);
        }
    }
    if context.json() { Ok(()) } else { table.print(context.out(), "") }
}
