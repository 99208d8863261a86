//! `layerstore gc`.

use crate::args::Gc;
use crate::context::Context;
use crate::errors::Failure;
use crate::output::{Table, size, time};
use layerstore::{Garbage, GcOptions, GcPlan, GcReport, Kept};
use serde_json::{Value, json};
use std::path::PathBuf;

pub(crate) fn run(context: &Context, args: &Gc) -> Result<(), Failure> {
    let store = context.store()?;
    let options = GcOptions::default().now(args.now);
    let progress = context.progress(None);
    let plan = store.gc_plan(&options, &progress)?;
    if args.dry_run {
        return show(context, &plan);
    }
    let report = store.gc(&plan, &options, &progress)?;
    context.tell_leftovers(&store);
    tell(context, &report)
}

fn to_json(garbage: &[Garbage]) -> Vec<Value> {
    let one = |g: &Garbage| json!({ "kind": g.kind.as_str(), "name": g.name, "bytes": g.bytes, "why": g.why });
    garbage.iter().map(one).collect()
}

fn show(context: &Context, plan: &GcPlan) -> Result<(), Failure> {
    if context.json() {
        return context.out().json(&json!({
            "garbage": to_json(&plan.garbage), "chunks": plan.chunks, "punch": plan.punch, "bytes": plan.bytes(),
            "damaged": plan.damaged, "kept": kept_json(&plan.kept), "mounted": plan.mounted,
        }));
    }
    let mut table = Table::new(&["WHAT", "NAME", ">SIZE", "WHY"]);
    for g in &plan.garbage {
        table.row([g.kind.as_str().into(), context.digits(&g.name).to_owned(), size(g.bytes), g.why.into()]);
    }
    if plan.punch > 0 {
        let why = format!("no layer needs what was there; {} chunks die in all", plan.chunks);
        table.row(["space".into(), "in packs".into(), size(plan.punch), why]);
    }
    if !plan.is_empty() {
        table.print(context.out(), "")?;
    }
    tell_damaged(context, &plan.damaged)?;
    tell_kept(context, &plan.kept, &plan.mounted)?;
    context.out().line(format!("{} would be freed", size(plan.bytes())))
}

fn tell_damaged(context: &Context, packs: &[PathBuf]) -> Result<(), Failure> {
    for pack in packs {
        let what = "it is damaged and stays as it is; see 'layerstore fsck' and 'layerstore repair'";
        context.out().line(format!("{}: {what}", pack.display()))?;
    }
    Ok(())
}

fn tell(context: &Context, report: &GcReport) -> Result<(), Failure> {
    if context.json() {
        return context.out().json(&json!({
            "removed": to_json(&report.removed), "chunks": report.chunks, "punched": report.punched,
            "waiting": report.waiting, "unpunched": report.unpunched, "bytes": report.bytes(),
            "damaged": report.damaged, "kept": kept_json(&report.kept), "mounted": report.mounted,
        }));
    }
    if context.quiet() {
        return Ok(());
    }
    context.out().line(format!(
        "freed {}: {} files and directories, {} chunks",
        size(report.bytes()),
        report.removed.len(),
        report.chunks
    ))?;
    if report.waiting > 0 {
        let why = "an import that is running or a mount may need them";
        context.out().line(format!("{} chunks wait for a later gc: {why}", report.waiting))?;
    }
    if report.unpunched > 0 {
        let why = "this file system cannot punch holes";
        context.out().line(format!("{} stay in use: {why}", size(report.unpunched)))?;
    }
    tell_kept(context, &report.kept, &report.mounted)?;
    tell_damaged(context, &report.damaged)
}

fn kept_json(kept: &[Kept]) -> Vec<Value> {
    let one = |k: &Kept| {
        json!({
            "namespace": k.namespace, "snapshot": k.key, "until": k.until, "layers": k.layers, "tar_bytes": k.tar,
        })
    };
    kept.iter().map(one).collect()
}

/// What stays although no image has it, why, and until when.
fn tell_kept(context: &Context, kept: &[Kept], mounted: &[PathBuf]) -> Result<(), Failure> {
    for name in mounted {
        context.out().line(format!("kept until it is unmounted: {}", name.display()))?;
    }
    for k in kept {
        let key = context.digits(k.key.strip_prefix("sha256:").unwrap_or(&k.key));
        context.out().line(format!(
            "kept until {}: {} layers of {} as tars, which snapshot {key} stands on; it was made for a mount",
            time(k.until),
            k.layers,
            size(k.tar),
        ))?;
    }
    if !kept.is_empty() {
        context.out().line("`layerstore gc --now` lets go of what is kept for the next mount")?;
    }
    Ok(())
}
