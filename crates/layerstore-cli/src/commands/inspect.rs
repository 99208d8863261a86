//! `layerstore inspect`.

use super::layers::users;
use crate::args::Inspect;
use crate::context::Context;
use crate::errors::{Failure, Hint};
use crate::interrupt;
use crate::names::{Named, escape, find};
use crate::output::{Shown, Table, size};
use layerstore::{EntryKind, Error, ImageInfo, LayerInfo, Store, Whiteout};
use serde_json::{Value, json};
use std::io::Write;

pub(crate) fn run(context: &Context, args: &Inspect) -> Result<(), Failure> {
    let store = context.store()?;
    match find(&store, &args.what)? {
        Named::Image(image) if args.config => raw(context, &store.image_config(&image)?),
        Named::Image(image) if args.manifest => raw(context, &store.image_manifest(&image)?),
        Named::Image(image) => show_image(context, &store, &image),
        Named::Layer(_) if args.config || args.manifest => {
            Err(Error::invalid("a layer has neither configuration nor manifest").subject(&args.what))
                .hint("name an image")
        }
        Named::Layer(layer) => show_layer(context, &store, &layer),
    }
}

fn raw(context: &Context, json: &[u8]) -> Result<(), Failure> {
    let mut out = context.out().lock();
    let mut out = Shown::new(&mut *out, context.out().is_terminal());
    out.write_all(json)?;
    Ok(out.finish()?)
}

fn show_image(context: &Context, store: &Store, image: &ImageInfo) -> Result<(), Failure> {
    let parse = |what: &str, json: Vec<u8>| {
        serde_json::from_slice(&json).map_err(|e| Error::corrupt(format!("unexpected JSON: {e}")).subject(what))
    };
    let config: Value = parse("configuration", store.image_config(image)?)?;
    let manifest: Value = parse("manifest", store.image_manifest(image)?)?;
    let mut layers = Vec::new();
    let mut table = Table::new(&[">#", "DIFF_ID", ">BLOB", ">TAR", ">CONTENT", ">ENTRIES"]);
    for (i, diff_id) in image.layers.iter().enumerate() {
        let layer = store.layer(diff_id)?;
        let blob = &manifest["layers"][i];
        layers.push(json!({
            "diff_id": diff_id, "blob": blob["digest"], "blob_size": blob["size"], "tar_size": layer.tar_size(),
            "content_size": layer.content_size(), "entries": layer.len(),
        }));
        let blob = blob["size"].as_u64().map_or_else(|| "-".into(), size);
        let (tar, content) = (size(layer.tar_size()), size(layer.content_size()));
        table.row([(i + 1).to_string(), context.digest(diff_id), blob, tar, content, layer.len().to_string()]);
    }
    if context.json() {
        return context.out().json(&json!({
            "name": image.name, "manifest": image.manifest, "config_digest": image.config,
            "config": config, "layers": layers,
        }));
    }
    let out = context.out();
    out.line(format!("name        {}", escape(image.name.as_bytes())))?;
    out.line(format!("manifest    {}", image.manifest))?;
    out.line(format!("config      {}", image.config))?;
    out.line(format!("platform    {}/{}", text(&config["os"]), text(&config["architecture"])))?;
    let run = &config["config"];
    let lines = [
        ("created", &config["created"]),
        ("user", &run["User"]),
        ("workdir", &run["WorkingDir"]),
        ("entrypoint", &run["Entrypoint"]),
        ("command", &run["Cmd"]),
        ("labels", &run["Labels"]),
    ];
    for (title, value) in lines.iter().filter(|(_, value)| !is_empty(value)) {
        out.line(format!("{title:<11} {}", text(value)))?;
    }
    for variable in run["Env"].as_array().into_iter().flatten() {
        out.line(format!("env         {}", text(variable)))?;
    }
    table.print(out, "")
}

/// A JSON value for a terminal; strings without quotes.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "unknown".into(),
        Value::String(text) => escape(text.as_bytes()),
        other => escape(other.to_string().as_bytes()),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

fn show_layer(context: &Context, store: &Store, info: &LayerInfo) -> Result<(), Failure> {
    let layer = store.layer(&info.diff_id)?;
    let (mut files, mut directories, mut links, mut whiteouts, mut others) = (0u64, 0u64, 0u64, 0u64, 0u64);
    for entry in layer.entries()? {
        interrupt::check()?;
        let entry = entry?.entry;
        let count = match (&entry.kind, entry.whiteout()) {
            (_, Some(Whiteout::Remove(_) | Whiteout::Opaque)) => &mut whiteouts,
            (EntryKind::File { .. }, _) => &mut files,
            (EntryKind::Directory, _) => &mut directories,
            (EntryKind::Symlink { .. } | EntryKind::Hardlink { .. }, _) => &mut links,
            _ => &mut others,
        };
        *count += 1;
    }
    let images = store.images()?;
    let users = users(&images, &info.diff_id);
    if context.json() {
        return context.out().json(&json!({
            "diff_id": info.diff_id, "tar_size": layer.tar_size(), "content_size": layer.content_size(),
            "entries": layer.len(), "files": files, "directories": directories, "links": links,
            "whiteouts": whiteouts, "others": others, "held": info.held, "images": users,
        }));
    }
    let out = context.out();
    out.line(format!("diff_id     {}", info.diff_id))?;
    out.line(format!("tar         {}", size(layer.tar_size())))?;
    out.line(format!("content     {}", size(layer.content_size())))?;
    let kinds =
        format!("{files} files, {directories} directories, {links} links, {whiteouts} whiteouts, {others} others");
    out.line(format!("entries     {}: {kinds}", layer.len()))?;
    if info.held {
        out.line("imported    by itself")?;
    }
    users.iter().try_for_each(|user| out.line(format!("image       {}", escape(user.as_bytes()))))
}
