//! `layerstore demo`: makes two versions of an image, imports them, and takes everything out again.

mod image;
mod sample;
mod snapshot;

use crate::args::Demo;
use crate::context::Context;
use crate::errors::{Failure, Hint};
use crate::names::escape;
use crate::output::{Table, seconds, size};
use crate::workdir::WorkDir;
use image::{Hashed, NAMES, Versions, Written};
use layerstore::{
    Detected, Digest, Error, ExportOptions, ExportTarget, ImageImport, ImportOptions, Limits, Selector, Store, detect,
};
use sample::Sample;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The directory's name starts so; it is made and removed by the demonstration.
const PREFIX: &str = "layerstore-demo-";

pub(crate) fn run(context: &Context, args: &Demo) -> Result<(), Failure> {
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let made = fs::create_dir_all(&parent);
    let dir = made
        .map_err(|e| Error::io("cannot make a directory", e).subject(parent.display()))
        .and_then(|()| WorkDir::new(PREFIX, &parent))
        .hint("choose a place to write to with --dir DIR")?;
    let told = tell(context, args, dir.path());
    let told = told.map_err(|e| if e.is_disk_full() { e.hint("choose a larger disk with --dir DIR") } else { e });
    if !args.keep {
        return told;
    }
    let dir = dir.keep();
    told?;
    if context.json() {
        return context.out().json(&json!({ "kept": dir.to_string_lossy() }));
    }
    context.out().line(format!("\nKept in {}. Try:", dir.display()))?;
    context.out().line(format!("  layerstore --store {}/store ls {} --depth 2 -l", dir.display(), NAMES[1]))
}

/// The steps in order; each prints what it did.
fn tell(context: &Context, args: &Demo, dir: &Path) -> Result<(), Failure> {
    let story = Story { context, begin: Instant::now() };
    let layout = dir.join("layout");
    let versions = story.make(args.from.as_deref(), &layout)?;
    let store = Arc::new(Store::open(dir.join("store"))?);
    let imports = story.import(&store, &layout, &versions)?;
    story.count(&store, &versions, &imports)?;
    story.layer_back(&store, &versions[1][0])?;
    story.image_back(&store, &dir.join("exported"))?;
    story.one_file(&store, &versions[1])?;
    story.snapshot(&store, dir)?;
    story.end()
}

struct Story<'a> {
    context: &'a Context,
    begin: Instant,
}

/// An import, with how long it took and what the store takes on disk after it.
struct Imported {
    import: ImageImport,
    took: Duration,
    disk: u64,
}

impl Story<'_> {
    fn say(&self, line: impl std::fmt::Display) -> Result<(), Failure> {
        if self.context.json() || self.context.quiet() {
            return Ok(());
        }
        self.context.out().line(line)?;
        // Each step is to be seen when it is done, also through a pipe.
        self.context.out().flush()
    }

    fn json(&self, value: Value) -> Result<(), Failure> {
        if self.context.json() { self.context.out().json(&value) } else { Ok(()) }
    }

    fn make(&self, from: Option<&Path>, layout: &Path) -> Result<Versions, Failure> {
        let begin = Instant::now();
        let versions = image::write(&Sample::take(from)?, layout)?;
        let (took, [one, two]) = (begin.elapsed(), &versions);
        let count = |n: fn(&Written) -> u64, layers: &[Written; 2]| n(&layers[0]) + n(&layers[1]);
        let files = count(|l| l.files, one);
        let (changed, added) = (count(|l| l.changed, two), count(|l| l.added, two));
        self.say(format!("1. Made an image of this machine's files, in two versions ({}).", seconds(took)))?;
        self.say(format!(
            "   {}: {files} files in two layers, base and app; the app layer removes a base file.",
            NAMES[0]
        ))?;
        self.say(format!("   {}: built anew, so all times differ; {changed} files changed, {added} added.", NAMES[1]))?;
        self.say("   No layer of the second version has the digest of one of the first.")?;
        self.json(json!({
            "step": "make", "seconds": took.as_secs_f64(), "files": files, "changed": changed, "added": added,
        }))?;
        Ok(versions)
    }

    fn import(&self, store: &Store, layout: &Path, versions: &Versions) -> Result<Vec<Imported>, Failure> {
        self.say("\n2. Imported both; every layer was checked against its digest and is on disk for good.")?;
        let Detected::Image(source) = detect(layout, layout, &Limits::default())? else {
            return Err(Error::corrupt("the demonstration's layout is not an image").into());
        };
        let mut table = Table::new(&["IMAGE", ">TAR", ">GZIP BLOBS", ">NEW CONTENT", ">STORED AS", ">TIME"]);
        let mut imports = Vec::new();
        for (name, layers) in NAMES.into_iter().zip(versions) {
            let (begin, progress) = (Instant::now(), self.context.progress(None));
            let selector = Selector::default().reference(name);
            let import = store.import_image(&source, &selector, None, &ImportOptions::default(), &progress)?;
            let took = begin.elapsed();
            drop(progress);
            let (tar, blobs, stats) = (tar_size(layers), blob_size(layers), import.stats);
            let sizes = [size(tar), size(blobs), size(stats.new_raw), size(stats.new_stored)];
            let [tar_text, blob_text, new, stored] = sizes;
            table.row([name.into(), tar_text, blob_text, new, stored, seconds(took)]);
            self.json(json!({
                "step": "import", "name": name, "seconds": took.as_secs_f64(), "tar": tar, "blobs": blobs,
                "new_raw": stats.new_raw, "new_stored": stats.new_stored,
            }))?;
            imports.push(Imported { import, took, disk: store.usage()?.total() });
        }
        if !self.context.json() && !self.context.quiet() {
            table.print(self.context.out(), "   ")?;
        }
        Ok(imports)
    }

    fn count(&self, store: &Store, versions: &Versions, imports: &[Imported]) -> Result<(), Failure> {
        let usage = store.usage()?;
        let tar: u64 = versions.iter().map(tar_size).sum();
        let blobs: u64 = versions.iter().map(blob_size).sum();
        let rate = imports.iter().map(|i| i.took.as_secs_f64()).sum::<f64>();
        self.say(format!("   Both together, as layers unpacked side by side: {} and more", size(tar)))?;
        self.say(format!("                 as gzip blobs in a registry:      {}", size(blobs)))?;
        self.say(format!("                 in this store, all of its files:  {}", size(usage.total())))?;
        if let [one, two] = imports {
            let grown = size(two.disk.saturating_sub(one.disk));
            self.say(format!(
                "   The second version made the store {grown} larger; its blobs are {}.",
                size(blob_size(&versions[1]))
            ))?;
        }
        self.json(json!({
            "step": "count", "tar": tar, "blobs": blobs, "disk": usage.total(), "chunks": usage.chunks,
            "tar_per_second": tar as f64 / rate,
            "images": imports.iter().map(|i| &i.import.name).collect::<Vec<_>>(),
        }))
    }

    fn layer_back(&self, store: &Store, written: &Written) -> Result<(), Failure> {
        let begin = Instant::now();
        let mut out = Hashed::new(std::io::sink());
        let threads = std::thread::available_parallelism().unwrap_or(std::num::NonZeroUsize::MIN);
        store.layer(&written.diff_id)?.export(&mut out, threads, &self.context.progress(Some(written.tar_size)))?;
        let ((digest, len, _), took) = (out.finish(), begin.elapsed());
        same("the exported layer", written.diff_id, digest)?;
        let rate = size((len as f64 / took.as_secs_f64()) as u64);
        self.say(format!("\n3. Exported a layer: {} of tar in {} ({rate}/s).", size(len), seconds(took)))?;
        self.say(format!("   sha256 when it was made  {}", written.diff_id.hex()))?;
        self.say(format!("   sha256 as it comes back  {}  identical", digest.hex()))?;
        self.json(
            json!({ "step": "export-layer", "seconds": took.as_secs_f64(), "diff_id": digest, "identical": true }),
        )
    }

    fn image_back(&self, store: &Store, dir: &Path) -> Result<(), Failure> {
        let (begin, image) = (Instant::now(), store.image(NAMES[1])?);
        let (target, options) = (ExportTarget::Layout(dir.into()), ExportOptions::default());
        let export = store.export_image(&image, &target, &options, &self.context.progress(None))?;
        let took = begin.elapsed();
        self.say(format!("\n4. Exported {} as an OCI layout in {}, compressed anew.", NAMES[1], seconds(took)))?;
        self.say(format!("   manifest  {}", export.manifest))?;
        self.say(match export.identical {
            true => "   It is the original manifest: the same compressor gave the same blobs.",
            false => {
                "   Configuration and layers are the original's; blobs differ. `import --keep-blobs` would keep them."
            }
        })?;
        self.json(json!({
            "step": "export-image", "seconds": took.as_secs_f64(), "manifest": export.manifest,
            "identical": export.identical,
        }))
    }

    fn one_file(&self, store: &Store, layers: &[Written; 2]) -> Result<(), Failure> {
        let Some((path, expected)) = layers.iter().find_map(|layer| layer.witness.as_ref()) else { return Ok(()) };
        let (begin, image) = (Instant::now(), store.image(NAMES[1])?);
        let file = store.root(&image.layers)?.open(path.as_os_str().as_bytes())?;
        let mut out = Hashed::new(std::io::sink());
        file.copy_to(&mut out)?;
        let ((digest, len, _), took) = (out.finish(), begin.elapsed());
        same("the file", *expected, digest)?;
        let name = escape(path.as_os_str().as_bytes());
        self.say(format!("\n5. Read one file out of {} without unpacking the rest: /{name},", NAMES[1]))?;
        self.say(format!(
            "   {} in {}, a file that version 2 changed; its content is what was put in.",
            size(len),
            seconds(took)
        ))?;
        self.json(json!({ "step": "cat", "seconds": took.as_secs_f64(), "path": path.to_string_lossy(), "size": len }))
    }

    fn end(&self) -> Result<(), Failure> {
        let took = self.begin.elapsed();
        self.say(format!("\nAll of it took {}.", seconds(took)))?;
        self.json(json!({ "step": "end", "seconds": took.as_secs_f64() }))
    }
}

fn tar_size(layers: &[Written; 2]) -> u64 {
    layers.iter().map(|layer| layer.tar_size).sum()
}

fn blob_size(layers: &[Written; 2]) -> u64 {
    layers.iter().map(|layer| layer.blob_size).sum()
}

fn same(what: &str, expected: Digest, actual: Digest) -> Result<(), Failure> {
    if expected == actual {
        return Ok(());
    }
    Err(Error::corrupt("came back with other bytes").subject(what).expected(expected).actual(actual).into())
}
