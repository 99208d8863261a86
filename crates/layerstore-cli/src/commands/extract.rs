//! `layerstore extract`.

use crate::args::Extract;
use crate::context::Context;
use crate::errors::{Failure, Hint};
use crate::names::{self, escape};
use crate::output::{seconds, size};
use layerstore::{ErrorKind, ExtractOptions, Loss, Lost};
use serde_json::{Value, json};
use std::os::unix::ffi::OsStrExt;
use std::time::Instant;

/// Losses shown one by one; the rest are counted.
const SHOWN: usize = 10;

pub(crate) fn run(context: &Context, args: &Extract) -> Result<(), Failure> {
    let store = context.store()?;
    let image = names::image(&store, &args.what)?;
    let (begin, progress) = (Instant::now(), context.progress(None));
    let report = store.extract(&image.layers, &args.dir, &ExtractOptions::default(), &progress);
    progress.clear();
    let report = report.hint_on(ErrorKind::AlreadyExists, "extract to a directory that is not there yet, or empty")?;
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
        let without = if rustix::process::geteuid().is_root() { "here" } else { "without privileges" };
        context.out().line(format!("{} attributes or files could not be made {without}:", report.lost))?;
    }
    for loss in report.losses.iter().take(SHOWN) {
        context.out().line(format!("  {}: {}", escape(&loss.path), loss.what))?;
    }
    if report.lost > SHOWN as u64 {
        context.out().line(format!("  and {} more; --json lists them", report.lost - SHOWN as u64))?;
    }
    Ok(())
}

/// `what` is for people, the others for programs.
fn to_json(loss: &Loss) -> Value {
    let (kind, more) = match &loss.what {
        Lost::Owner { uid, gid } => ("owner", json!({ "uid": uid, "gid": gid })),
        Lost::Mode { mode } => ("mode", json!({ "mode": format!("{mode:04o}") })),
        Lost::Device { major, minor } => ("device", json!({ "device": [major, minor] })),
        Lost::Xattr { name } => ("xattr", json!({ "name": String::from_utf8_lossy(name) })),
        Lost::Time => ("time", json!({})),
        _ => ("other", json!({})),
    };
    let mut json = json!({
        "path": String::from_utf8_lossy(&loss.path), "kind": kind, "what": loss.what.to_string(),
    });
    if let (Some(json), Value::Object(more)) = (json.as_object_mut(), more) {
        json.extend(more);
    }
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_told_to_people_and_to_programs() {
        let json = |what| to_json(&Loss { path: b"a".to_vec(), what });
        let xattr = json(Lost::Xattr { name: b"user.x".to_vec() });
        assert_eq!(xattr, json!({ "path": "a", "kind": "xattr", "name": "user.x", "what": "attribute user.x" }));
        let device = json(Lost::Device { major: 1, minor: 3 });
        assert_eq!((&device["what"], &device["device"]), (&json!("device 1:3"), &json!([1, 3])));
    }
}
