//! `layerstore recompress`.

use crate::args::Recompress;
use crate::context::Context;
use crate::errors::Failure;
use crate::output::size;
use layerstore::{GcOptions, GcReport, RecompressOptions, RecompressReport};
use serde_json::json;

pub(crate) fn run(context: &Context, args: &Recompress) -> Result<(), Failure> {
    let store = context.store()?;
    let mut options = RecompressOptions::default().compress(args.compress);
    if let Some(threads) = args.threads {
        options = options.threads(threads);
    }
    let progress = context.progress(None);
    let report = store.recompress(&options, &progress)?;
    progress.clear();
    let freed = if args.no_gc {
        None
    } else {
        let options = GcOptions::default();
        Some(store.gc(&store.gc_plan(&options, &progress)?, &options, &progress)?)
    };
    tell(context, &report, freed.as_ref())
}

fn tell(context: &Context, report: &RecompressReport, freed: Option<&GcReport>) -> Result<(), Failure> {
    let saved = report.before - report.after;
    if context.json() {
        return context.out().json(&json!({
            "chunks": report.chunks, "moved": report.moved, "before": report.before, "after": report.after,
            "saved": saved, "freed": freed.map(GcReport::bytes), "waiting": freed.map(|gc| gc.waiting),
        }));
    }
    if context.quiet() {
        return Ok(());
    }
    let (moved, chunks) = (report.moved, report.chunks);
    let (before, after) = (size(report.before), size(report.after));
    context.out().line(format!("{moved} of {chunks} chunks took {before} and take {after}: {} less", size(saved)))?;
    match freed {
        None => context.out().line("`layerstore gc` gives back where they were"),
        Some(gc) if gc.waiting > 0 => {
            let why = "a mount shows them, or an import that is running may";
            context.out().line(format!(
                "freed {}; {} old copies wait for a later gc: {why}",
                size(gc.bytes()),
                gc.waiting
            ))
        }
        Some(gc) => context.out().line(format!("freed {}", size(gc.bytes()))),
    }
}
