//! `layerstore repair`.

use super::fsck::{exit, tell, to_json};
use crate::args::Repair;
use crate::context::Context;
use crate::errors::Failure;
use layerstore::{Limits, RepairOptions, RepairReport, RepairSource};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub(crate) fn run(context: &Context, args: &Repair) -> Result<ExitCode, Failure> {
    let store = context.store()?;
    let detect = |path: &Path| RepairSource::detect(path, &std::env::temp_dir(), &Limits::default());
    let source = args.source.as_deref().map(detect).transpose()?;
    let progress = context.progress(None);
    let report = store.repair(source.as_ref(), &RepairOptions::default(), &progress)?;
    progress.clear();
    if context.json() {
        context.out().json(&report_json(&report))?;
    } else {
        show(context, &report)?;
    }
    Ok(exit(report.is_clean()))
}

fn names(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| path.to_string_lossy().into_owned()).collect()
}

fn report_json(report: &RepairReport) -> Value {
    let part =
        |part: &layerstore::PartOfChunk| json!({ "chunk": part.chunk.to_string(), "found": part.found, "of": part.of });
    json!({
        "findings": report.findings, "chunks": report.chunks.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "moved": report.moved, "records": report.records, "blobs": report.blobs, "packs": names(&report.packs),
        "images": names(&report.images), "mounted": names(&report.mounted),
        "parts": report.parts.iter().map(part).collect::<Vec<_>>(), "refused": report.refused,
        "remaining": report.remaining.findings.iter().map(to_json).collect::<Vec<_>>(),
    })
}

fn show(context: &Context, report: &RepairReport) -> Result<(), Failure> {
    let out = context.out();
    report.refused.iter().try_for_each(|what| out.line(format!("not used: {what}")))?;
    for part in &report.parts {
        let of = part.of.map_or_else(String::new, |of| format!(" of {of}"));
        out.line(format!("the source has only {}{of} bytes of chunk {}", part.found, part.chunk))?;
    }
    for path in &report.mounted {
        out.line(format!("still mounted, and shows what was damaged until it is mounted again: {}", path.display()))?;
    }
    tell(context, &report.remaining.findings)?;
    if context.quiet() {
        return Ok(());
    }
    out.line(format!(
        "{} findings; mended {} chunks, {} records, {} blobs; moved {} chunks, removed {} packs and {} metadata images; \
         {} findings remain",
        report.findings,
        report.chunks.len(),
        report.records.len(),
        report.blobs.len(),
        report.moved,
        report.packs.len(),
        report.images.len(),
        report.remaining.findings.len()
    ))
}
