//! `layerstore extract`.

use crate::args::Extract;
use crate::context::Context;
use crate::errors::{Failure, Hint};
use crate::names::escape;
use crate::output::{seconds, size};
use layerstore::{ExtractOptions, Loss, Lost};
use serde_json::json;
use std::os::unix::ffi::OsStrExt;
use std::time::Instant;

/// Losses shown one by one; the rest are counted.
const SHOWN: usize = 10;

pub(crate) fn run(context: &Context, args: &Extract) -> Result<(), Failure> {
    let store = context.store()?;
    let image = store.image(&args.what).hint("`layerstore images` lists the images there are")?;
    let (begin, progress) = (Instant::now(), context.progress(None));
    let report = store.extract(&image.layers, &args.dir, &ExtractOptions::default(), &progress);
    progress.clear();
    let report = report.hint("extract to a directory that is not there yet, or empty")?;
    if context.json() {
        let losses: Vec<_> = report.losses.iter().map(to_json).collect();
        return context.out().json(&json!({
            "image": image.name, "dir": args.dir, "directories": report.directories, "files": report.files,
            "others": report.others, "links": report.links, "bytes": report.bytes,
            "lost": report.lost, "losses": losses,
        }));
    }
    if context.quiet() {
        return Ok(());
    }
    let names = report.directories + report.files + report.others + report.links;
    let (dir, time) = (escape(args.dir.as_os_str().as_bytes()), seconds(begin.elapsed()));
    context.out().line(format!("{names} names, {} of content, to {dir} in {time}", size(report.bytes)))?;
    if report.lost > 0 {
        context.out().line(format!("{} attributes or files could not be made without privileges:", report.lost))?;
    }
    for loss in report.losses.iter().take(SHOWN) {
        context.out().line(format!("  {}: {}", escape(&loss.path), what(loss)))?;
    }
    if report.lost > SHOWN as u64 {
        context.out().line(format!("  and {} more; --json lists them", report.lost - SHOWN as u64))?;
    }
    Ok(())
}

fn what(loss: &Loss) -> String {
    match &loss.what {
        Lost::Owner { uid, gid } => format!("owner {uid}:{gid}"),
        Lost::Mode { mode } => format!("mode {mode:04o}"),
        Lost::Device { .. } => "device".to_owned(),
        other => format!("{other:?}"),
    }
}

fn to_json(loss: &Loss) -> serde_json::Value {
    json!({ "path": String::from_utf8_lossy(&loss.path), "what": what(loss) })
}
