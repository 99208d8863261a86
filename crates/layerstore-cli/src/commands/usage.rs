//! `layerstore usage`.

use crate::args::Usage;
use crate::context::Context;
use crate::errors::Failure;
use crate::names::escape;
use crate::output::{Table, size};
use layerstore::Store;
use serde_json::{Value, json};

pub(crate) fn run(context: &Context, args: &Usage) -> Result<(), Failure> {
    let store = context.store()?;
    if args.images {
        return by_image(context, &store);
    }
    let usage = store.usage()?;
    if context.json() {
        return context.out().json(&json!({
            "store": store.path().to_string_lossy(),
            "layers": usage.layers, "tar": usage.tar,
            "chunks": usage.chunks, "raw": usage.raw, "stored": usage.stored,
            "disk": {
                "packs": usage.packs, "records": usage.records, "blobs": usage.blobs,
                "database": usage.database, "snapshots": usage.snapshots, "trees": usage.trees,
                "images": usage.images, "other": usage.other, "total": usage.total(),
            },
        }));
    }
    let mut table = Table::new(&["WHAT", ">SIZE", ""]);
    let mut row = |what: &str, bytes: u64, note: String| table.row([what.into(), size(bytes), note]);
    row("layers as tars", usage.tar, format!("{} layers", usage.layers));
    row("distinct content", usage.raw, format!("{} chunks", usage.chunks));
    row("  compressed", usage.stored, String::new());
    row("on disk", usage.total(), times(usage.tar, usage.total()));
    row("  packs", usage.packs, "content, padded to 4 KiB".into());
    row("  records", usage.records, "what the tars have besides content".into());
    row("  blobs", usage.blobs, "configurations, manifests, kept blobs".into());
    row("  database", usage.database, String::new());
    row("  snapshots", usage.snapshots, "what was written to them".into());
    row("  trees", usage.trees, "extracted layers, for overlay mounts".into());
    row("  images", usage.images, "metadata images, for EROFS mounts".into());
    row("  other", usage.other, "unfinished work, reserve, directories".into());
    table.print(context.out(), "")
}

/// How many times smaller the store is than the tars.
fn times(tar: u64, disk: u64) -> String {
    if tar == 0 || disk == 0 { String::new() } else { format!("{:.1} times smaller", tar as f64 / disk as f64) }
}

fn by_image(context: &Context, store: &Store) -> Result<(), Failure> {
    let usage = store.usage_by_image(&context.progress(None))?;
    if context.json() {
        let image =
            |i: &layerstore::ImageUsage| json!({ "name": i.name, "exclusive": i.exclusive, "shared": i.shared });
        let images: Vec<Value> = usage.images.iter().map(image).collect();
        return context.out().json(&json!({
            "images": images, "shared": usage.shared, "others": usage.others, "reclaimable": usage.reclaimable,
            "overhead": usage.overhead, "total": usage.total(),
        }));
    }
    let mut table = Table::new(&["IMAGE", ">ALONE", ">SHARED"]);
    for image in &usage.images {
        table.row([escape(image.name.as_bytes()), size(image.exclusive), size(image.shared)]);
    }
    let mut all = |what: &str, bytes: u64| table.row([what.into(), size(bytes), String::new()]);
    all("shared, counted once", usage.shared);
    all("held layers and snapshots", usage.others);
    all("garbage", usage.reclaimable);
    all("database, tables", usage.overhead);
    all("in all", usage.total());
    table.print(context.out(), "")
}
