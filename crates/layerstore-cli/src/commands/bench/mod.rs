//! `layerstore bench`: stages of an import one by one, and whole operations, with the user's own image.

mod whole;

use crate::args::Bench;
use crate::context::Context;
use crate::errors::{Failure, Hint};
use crate::names::{Named, find};
use crate::output::{Table, size};
use crate::workdir::WorkDir;
use layerstore::{
    Advice, Compression, Detected, Error, ExportOptions, ExportTarget, ImagePlan, ImageSource, ImportOptions, Limits,
    Observer, Selector, Stage, StageTime, StageTimes, detect, time_stages,
};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;
use whole::Whole;

/// CPUs to predict an import for, if there are fewer here.
const MORE_CPUS: [usize; 4] = [4, 8, 16, 32];

/// What is measured with.
enum Source {
    Image { image: Box<ImageSource>, selector: Selector, plan: Box<ImagePlan> },
    Layer(PathBuf),
}

pub(crate) fn run(context: &Context, args: &Bench) -> Result<(), Failure> {
    let base = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let work = WorkDir::new("layerstore-bench-", &base)?;
    let chunking = args.chunks.chunking()?;
    let mut options = ImportOptions::default().compress(args.compress);
    if let Some(threads) = args.threads {
        options = options.threads(threads);
    }
    let progress = context.progress(None);
    let source = source(context, args, work.path(), &progress)?;
    let mut layers = Vec::new();
    for number in 0..source.layers() {
        layers.push(time_stages(|| source.open(number), &chunking, &options, &progress)?);
    }
    let whole = whole::measure(&source, work.path(), &chunking, &options, args.threads, &progress)?;
    progress.clear();
    if context.json() { to_json(context, &layers, &whole) } else { show(context, &layers, &whole) }
}

fn source(context: &Context, args: &Bench, work: &Path, observer: &dyn Observer) -> Result<Source, Failure> {
    let path = match args.source.to_str() {
        Some(name) if !args.source.exists() => stored(context, name, work, observer)?,
        _ => args.source.clone(),
    };
    Ok(match detect(&path, work, &Limits::default())? {
        Detected::Image(image) => {
            let mut selector = Selector::default();
            if let Some(reference) = &args.reference {
                selector = selector.reference(reference);
            }
            let choose = "--ref NAME or --ref DIGEST chooses one";
            let plan = image.select(&selector).hint_for(Advice::ChooseByPlatform, choose);
            let plan = Box::new(plan.hint_for(Advice::ChooseAnother, choose)?);
            Source::Image { image: Box::new(image), selector, plan }
        }
        _ => Source::Layer(path),
    })
}

/// An image of the store as a layout with gzip blobs, as it would come from a registry; or a layer's tar.
fn stored(context: &Context, name: &str, work: &Path, observer: &dyn Observer) -> Result<PathBuf, Failure> {
    let store = context.store()?;
    Ok(match find(&store, name)? {
        Named::Image(image) => {
            let layout = work.join("layout");
            let options = ExportOptions::default().compression(Compression::Gzip);
            store.export_image(&image, &ExportTarget::Layout(layout.clone()), &options, observer)?;
            layout
        }
        Named::Layer(layer) => {
            let path = work.join("layer.tar");
            let mut file = File::create(&path).map_err(|e| Error::io("create", e).subject(path.display()))?;
            store.layer(&layer.diff_id)?.export(&mut file, std::num::NonZeroUsize::MIN, observer)?;
            path
        }
    })
}

impl Source {
    fn layers(&self) -> usize {
        match self {
            Self::Image { plan, .. } => plan.layers.len(),
            Self::Layer(_) => 1,
        }
    }

    fn open(&self, number: usize) -> layerstore::Result<Box<dyn Read + Send>> {
        match self {
            Self::Image { image, plan, .. } => image.open_layer(&plan.layers[number]),
            Self::Layer(path) => match File::open(path) {
                Ok(file) => Ok(Box::new(file)),
                Err(e) => Err(Error::io("open", e).subject(path.display())),
            },
        }
    }
}

fn name(stage: Stage) -> &'static str {
    match stage {
        Stage::Read => "read the blobs",
        Stage::BlobDigest => "their SHA-256",
        Stage::Inflate => "decompress",
        Stage::TarDigest => "SHA-256 of the tars",
        Stage::Parse => "take the tars apart",
        Stage::Cut => "cut larger files",
        Stage::Identify => "BLAKE3",
        Stage::Compress => "compress",
        _ => "another stage",
    }
}

fn sum(layers: &[StageTimes]) -> StageTimes {
    let mut sum = StageTimes::default();
    layers.iter().for_each(|layer| sum.add(layer));
    sum
}

/// An import's time on many CPUs, at best: what every CPU has to do if they share it evenly, or what one layer needs in
/// turn on one of its threads.
fn predicted(layers: &[StageTimes], cpus: usize) -> Duration {
    let chain = |layer: &StageTimes| {
        let time = |stages: &[Stage]| stages.iter().map(|stage| layer.of(*stage).time).sum::<Duration>();
        time(&[Stage::Read, Stage::Inflate]).max(time(&[Stage::TarDigest, Stage::Parse, Stage::Cut]))
    };
    let chain = layers.iter().map(chain).max().unwrap_or_default();
    chain.max(sum(layers).total() / cpus as u32)
}

fn more_cpus() -> impl Iterator<Item = usize> {
    let here = whole::cpus().len();
    MORE_CPUS.into_iter().filter(move |&cpus| cpus > here)
}

fn rate(bytes: u64, time: Duration) -> String {
    if time.is_zero() || bytes == 0 { String::new() } else { format!("{:.0}", bytes as f64 / 1e6 / time.as_secs_f64()) }
}

fn show(context: &Context, layers: &[StageTimes], whole: &Whole) -> Result<(), Failure> {
    let cells = |name: &str, bytes: u64, time: Duration| {
        let moved = if bytes == 0 { String::new() } else { size(bytes) };
        [name.to_owned(), moved, format!("{:.3}", time.as_secs_f64()), rate(bytes, time)]
    };
    let mut stages = Table::new(&["STAGE, ALONE ON ONE THREAD", ">BYTES", ">SECONDS", ">MB/S"]);
    let all = sum(layers);
    for stage in Stage::ALL {
        let StageTime { bytes, time, .. } = all.of(stage);
        stages.row(cells(name(stage), bytes, time));
    }
    stages.row(cells("all of them, in tar bytes", all.of(Stage::Parse).bytes, all.total()));
    stages.print(context.out(), "")?;
    context.out().line("")?;
    let mut table = Table::new(&["WHOLE", ">BYTES", ">SECONDS", ">MB/S"]);
    for done in &whole.done {
        table.row(cells(&done.what, done.bytes, done.time));
    }
    for cpus in more_cpus() {
        let what = format!("import on {cpus} CPUs, at best, predicted");
        table.row(cells(&what, all.of(Stage::Parse).bytes, predicted(layers, cpus)));
    }
    table.print(context.out(), "")?;
    context.out().line("")?;
    let (tar, disk) = (all.of(Stage::Parse).bytes, whole.disk);
    context.out().line(format!("{} of tars take {} on disk", size(tar), size(disk)))?;
    whole.left_out.iter().try_for_each(|why| context.out().line(format!("not measured: {why}")))
}

fn to_json(context: &Context, layers: &[StageTimes], whole: &Whole) -> Result<(), Failure> {
    let one =
        |what: &str, bytes: u64, time: Duration| json!({ "what": what, "bytes": bytes, "seconds": time.as_secs_f64() });
    let all = sum(layers);
    let stages: Vec<Value> = Stage::ALL.iter().map(|s| one(name(*s), all.of(*s).bytes, all.of(*s).time)).collect();
    let done: Vec<Value> = whole.done.iter().map(|d| one(&d.what, d.bytes, d.time)).collect();
    let predicted: Vec<Value> =
        more_cpus().map(|cpus| json!({ "cpus": cpus, "seconds": predicted(layers, cpus).as_secs_f64() })).collect();
    context.out().json(&json!({
        "stages": stages, "whole": done, "predicted": predicted, "disk": whole.disk, "left_out": whole.left_out,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use layerstore::Chunking;

    #[test]
    fn many_cpus_wait_for_the_longest_layer() {
        let tar = vec![0u8; 1024];
        let time = |_| time_stages(|| Ok(&tar[..]), &Chunking::default(), &ImportOptions::default(), &());
        let layers: Vec<StageTimes> = (0..3).map(time).collect::<Result<_, _>>().ok().unwrap_or_default();
        let total = sum(&layers).total();
        assert_eq!((layers.len(), predicted(&layers, 1)), (3, total));
        let (many, more) = (predicted(&layers, 1000), predicted(&layers, 100_000));
        assert!(many <= total / 2 && more > Duration::ZERO, "{many:?} {more:?} {total:?}");
    }
}
