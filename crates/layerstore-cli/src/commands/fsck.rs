//! `layerstore fsck`.

use crate::args::Fsck;
use crate::context::Context;
use crate::errors::{Failure, exit_code};
use crate::output::size;
use layerstore::{ErrorKind, Finding, FsckOptions};
use serde_json::{Value, json};
use std::process::ExitCode;

pub(crate) fn run(context: &Context, args: &Fsck) -> Result<ExitCode, Failure> {
    let store = context.store()?;
    let progress = context.progress(None);
    let report = store.fsck(&FsckOptions::default().full(args.full), &progress)?;
    progress.clear();
    for finding in &report.findings {
        if context.json() {
            context.out().json(&to_json(finding))?;
        } else {
            show(context, finding)?;
        }
    }
    let counts = &report.counts;
    if context.json() {
        context.out().json(&json!({
            "findings": report.findings.len(), "full": args.full, "packs": counts.packs, "chunks": counts.chunks,
            "read": counts.read, "bytes": counts.bytes, "layers": counts.layers, "blobs": counts.blobs,
            "images": counts.images, "trees": counts.trees, "snapshots": counts.snapshots,
        }))?;
    } else if !context.quiet() {
        let (found, read) = (report.findings.len(), size(counts.bytes));
        context.out().line(format!(
            "{found} findings: {} layers, {} packs, {} chunks, {} blobs, {} metadata images, {} extracted trees; {read} of chunks \
             read",
            counts.layers, counts.packs, counts.chunks, counts.blobs, counts.images, counts.trees
        ))?;
    }
    let corrupt = ExitCode::from(exit_code(ErrorKind::Corrupt));
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { corrupt })
}

fn to_json(finding: &Finding) -> Value {
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
