//! `layerstore fsck`.

use crate::args::Fsck;
use crate::context::Context;
use crate::errors::{Failure, exit_code};
use crate::output::size;
use layerstore::{ErrorKind, Finding, FsckOptions, RebuildOptions, Store};
use serde_json::{Value, json};
use std::process::ExitCode;

pub(crate) fn run(context: &Context, args: &Fsck) -> Result<ExitCode, Failure> {
    let told = if args.rebuild { rebuild(context)? } else { vec![] };
    let store = context.store()?;
    let progress = context.progress(None);
    let report = store.fsck(&FsckOptions::default().full(args.full).tars(args.tars), &progress)?;
    progress.clear();
    tell(context, &report.findings)?;
    // What nothing in the new database refers to, fsck does not find again.
    let told: Vec<_> = told.into_iter().filter(|finding| !report.findings.contains(finding)).collect();
    tell(context, &told)?;
    let counts = &report.counts;
    if context.json() {
        context.out().json(&json!({
            "findings": report.findings.len(), "full": args.full, "tars": args.tars, "packs": counts.packs,
            "chunks": counts.chunks, "read": counts.read, "bytes": counts.bytes, "layers": counts.layers,
            "blobs": counts.blobs, "images": counts.images, "trees": counts.trees, "snapshots": counts.snapshots,
        }))?;
    } else if !context.quiet() {
        let (found, read) = (report.findings.len(), size(counts.bytes));
        context.out().line(format!(
            "{found} findings: {} layers, {} packs, {} chunks, {} blobs, {} metadata images, {} extracted trees; {read} of chunks \
             read",
            counts.layers, counts.packs, counts.chunks, counts.blobs, counts.images, counts.trees
        ))?;
    }
    Ok(exit(report.is_clean() && told.is_empty()))
}

/// Whether something is damaged, for scripts.
pub(super) fn exit(clean: bool) -> ExitCode {
    if clean { ExitCode::SUCCESS } else { ExitCode::from(exit_code(ErrorKind::Corrupt)) }
}

/// Prints damage, one JSON object each where that is wanted.
pub(super) fn tell(context: &Context, findings: &[Finding]) -> Result<(), Failure> {
    findings.iter().try_for_each(|finding| match context.json() {
        true => context.out().json(&to_json(finding)),
        false => show(context, finding),
    })
}

/// Returns what was found to be damaged.
fn rebuild(context: &Context) -> Result<Vec<Finding>, Failure> {
    let progress = context.progress(None);
    let report = Store::rebuild(context.store_dir()?, &RebuildOptions::default(), &progress)?;
    progress.clear();
    if context.json() {
        let lost: Vec<_> = report.lost.iter().map(|path| path.to_string_lossy()).collect();
        context.out().json(&json!({ "rebuilt": {
            "set_aside": report.set_aside.as_ref().map(|path| path.to_string_lossy()), "unsalvaged": report.unsalvaged,
            "packs": report.packs, "chunks": report.chunks, "bytes": report.bytes, "gone": report.gone,
            "damaged": report.damaged, "layers": report.layers, "images": report.images, "unnamed": report.unnamed,
            "blobs": report.blobs, "snapshots": report.snapshots, "lost_snapshots": lost,
            "store_made_anew": report.parameters.is_some(),
        } }))?;
        return Ok(report.findings);
    }
    let (out, images) = (context.out(), report.images.len() + report.unnamed.len());
    if !context.quiet() {
        out.line(format!(
            "rebuilt the database: {} layers, {images} images, {} snapshots, {} chunks in {} packs; {} read",
            report.layers,
            report.snapshots,
            report.chunks,
            report.packs,
            size(report.bytes)
        ))?;
        if let Some(path) = &report.set_aside {
            out.line(format!("the old database is {}", path.display()))?;
        }
    }
    if report.parameters.is_some() {
        out.line("STORE was lost or damaged and has been made anew")?;
    }
    if !report.unsalvaged.is_empty() {
        out.line(format!("not, or not all, to be had from the old database: {}", report.unsalvaged.join(", ")))?;
    }
    for name in &report.unnamed {
        out.line(format!("an image whose name is lost is now called {name}"))?;
    }
    for path in &report.lost {
        out.line(format!("a snapshot of which nothing else is known: {} (namespace lost+found)", path.display()))?;
    }
    if report.damaged > 0 {
        out.line(format!("{} chunks are damaged and were left out", report.damaged))?;
    }
    Ok(report.findings)
}

pub(super) fn to_json(finding: &Finding) -> Value {
    json!({
        "kind": finding.kind.as_str(), "file": finding.file.to_string_lossy(), "offset": finding.offset,
        "what": finding.what, "chunk": finding.chunk.map(|id| id.to_string()),
        "layers": finding.layers, "images": finding.images,
    })
}

fn show(context: &Context, finding: &Finding) -> Result<(), Failure> {
    let at = finding.offset.map_or_else(String::new, |at| format!(" at {at}"));
    let chunk = finding.chunk.map_or_else(String::new, |id| format!(" (chunk {id})"));
    context.out().line(format!("{}{at}: {}{chunk}", finding.file.display(), finding.what))?;
    let layers: Vec<_> = finding.layers.iter().map(|layer| context.digest(layer)).collect();
    if !layers.is_empty() {
        context.out().line(format!("  layers: {}", layers.join(" ")))?;
    }
    if !finding.images.is_empty() {
        context.out().line(format!("  images: {}", finding.images.join(" ")))?;
    }
    Ok(())
}
