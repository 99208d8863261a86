//! `layerstore import`.

use crate::args::Import;
use crate::context::Context;
use crate::errors::{Failure, Hint};
use crate::names::escape;
use crate::output::{Table, seconds, size};
use layerstore::{
    Advice, Detected, Digest, Error, ErrorKind, ImageSource, ImportOptions, ImportStats, LayerImport, Limits, ReadOnce,
    Selector, Store, detect,
};
use serde_json::{Value, json};
use std::fmt::Display;
use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::time::{Duration, Instant};

pub(crate) fn run(context: &Context, args: &Import) -> Result<(), Failure> {
    let mut options = ImportOptions::default().keep_blobs(args.keep_blobs);
    if let Some(compress) = args.compress {
        options = options.compress(compress);
    }
    if let Some(threads) = args.threads {
        options = options.threads(threads);
    }
    if args.source.as_os_str() == "-" {
        let stdin = std::io::stdin();
        if stdin.is_terminal() {
            let failure = Failure::new(ErrorKind::InvalidInput, "standard input is a terminal");
            return Err(failure.hint("pipe a layer's tar into this command"));
        }
        let mut stdin = BufReader::new(stdin);
        if stdin.fill_buf().map_err(|e| Error::io("cannot read standard input", e))?.is_empty() {
            return Err(empty("standard input"));
        }
        only_a_layer(args, "a layer is read from standard input; to import an image, give its file or directory")?;
        return import_layer(context, args, &context.store_or_new()?, options, stdin, None);
    }
    // Looked at before the store is made: a mistyped path should leave no store behind.
    let spool = std::env::temp_dir();
    match detect(&args.source, &spool, &Limits::default()).map_err(opening)? {
        Detected::Image(source) => import_image(context, args, &context.store_or_new()?, options, &source),
        _ => {
            let failed = |e| Error::io("cannot open", e).subject(args.source.display());
            let file = File::open(&args.source).map_err(failed)?;
            let found = file.metadata().map_err(failed)?;
            if found.is_file() && found.len() == 0 {
                return Err(empty(args.source.display()));
            }
            only_a_layer(
                args,
                "images are OCI layouts and archives of `docker save`; a layer is named by its diff_id",
            )?;
            import_layer(context, args, &context.store_or_new()?, options, ReadOnce::new(file), Some(found.len()))
        }
    }
}

/// A failure to open the source; errors of what is in it bring their own advice.
fn opening(error: Error) -> Failure {
    let missing = error.io_error().is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound);
    let failure = Failure::from(error);
    if missing { failure.hint("check the path, or give - for standard input") } else { failure }
}

/// What a refused import leaves, where nothing better is known.
fn refused(failure: Failure) -> Failure {
    match (failure.kind(), failure.advice()) {
        (ErrorKind::InvalidInput, None) => {
            failure.hint("nothing was stored; get the input again, or correct what made it")
        }
        (ErrorKind::Cancelled, None) => failure.hint("nothing was changed; run the command again when you like"),
        (_, Some(Advice::OtherName)) => failure.hint("--name NAME gives the image another name"),
        _ => failure,
    }
}

/// A command that fails, before a pipe or into a file, gives nothing; and nothing is no layer.
fn empty(source: impl Display) -> Failure {
    let e = Error::invalid("nothing to import: no bytes").subject(source).expected("a layer's tar");
    Failure::from(e).hint("look at what was to write it")
}

/// Before a store is made for it.
fn only_a_layer(args: &Import, hint: &str) -> Result<(), Failure> {
    if args.name.is_none() && args.reference.is_none() && args.platform.is_none() {
        return Ok(());
    }
    let e = Error::invalid("--name, --ref and --platform are for images, and this is none");
    Err(e.subject(args.source.display())).hint(hint)
}

fn import_image(
    context: &Context,
    args: &Import,
    store: &Store,
    options: ImportOptions,
    source: &ImageSource,
) -> Result<(), Failure> {
    let mut selector = Selector::default();
    if let Some(reference) = &args.reference {
        selector = selector.reference(reference);
    }
    if let Some(platform) = &args.platform {
        selector = selector.platform(platform.clone());
    }
    if let Some(expected) = args.expect {
        let plan = source.select(&selector).map_err(|e| refused(e.into()))?;
        let config = expected.same_of(&plan.config);
        let actual = plan.manifest.as_ref().map_or(config, |manifest| expected.same_of(&manifest.json));
        if ![actual, config].contains(&expected) {
            return Err(Error::invalid("image digest does not match").expected(expected).actual(actual).into());
        }
    }
    let (begin, progress) = (Instant::now(), context.progress(None));
    let import = store.import_image(source, &selector, args.name.as_deref(), &options, &progress);
    let import = import.map_err(|e| refused(e.into()))?;
    let elapsed = begin.elapsed();
    drop(progress);
    if context.json() {
        return context.out().json(&json!({
            "kind": "image", "name": import.name, "manifest": import.manifest, "config": import.config,
            "layers": import.layers.iter().map(layer_json).collect::<Vec<_>>(),
            "stats": stats_json(&import.stats), "seconds": elapsed.as_secs_f64(), "passed_over": import.passed_over,
        }));
    }
    if context.quiet() {
        return Ok(());
    }
    let out = context.out();
    out.line(format!("image     {}", escape(import.name.as_bytes())))?;
    out.line(format!("manifest  {}", import.manifest))?;
    for other in &import.passed_over {
        out.line(format!("not       {other}: the same layers, in a compression that is read more slowly"))?;
    }
    report(context, &import.layers, &import.stats, elapsed)
}

fn import_layer(
    context: &Context,
    args: &Import,
    store: &Store,
    mut options: ImportOptions,
    blob: impl Read + Send,
    size: Option<u64>,
) -> Result<(), Failure> {
    if let Some(digest) = args.expect {
        options = options.expected_blob(digest);
    }
    let (begin, progress) = (Instant::now(), context.progress(size));
    let (layer, stats) = store.import_layer(blob, &options, &progress).map_err(|e| refused(e.into()))?;
    let elapsed = begin.elapsed();
    drop(progress);
    let note = as_archive(store, &layer.diff_id)?.map(|form| note_of(form, size.is_some()));
    if context.json() {
        return context.out().json(&json!({
            "kind": "layer", "layer": layer_json(&layer), "stats": stats_json(&stats), "seconds": elapsed.as_secs_f64(),
            "note": note,
        }));
    }
    if let Some(note) = note.filter(|_| !context.quiet()) {
        eprintln!("note: {note}");
    }
    if context.quiet() {
        return Ok(());
    }
    report(context, &[layer], &stats, elapsed)
}

/// What an image archive has that was taken for a layer.
#[derive(Clone, Copy)]
enum Form {
    /// Files that an image is read from, if it is given in another way.
    Image,
    /// An image layout in a directory.
    Inner,
    /// Only the list that Docker wrote before 1.10.
    Old,
}

/// Names of a layer among which those of an image's layers are looked for: an archive has not many.
const NAMES: usize = 4096;

/// An image archive is a tar as well: from a pipe, or if its list stands behind compressed layers, it is taken for one.
fn as_archive(store: &Store, diff_id: &Digest) -> Result<Option<Form>, Failure> {
    let is_layer =
        |name: &[u8]| name.ends_with(b".tar") || name.ends_with(b".tar.gz") || name.starts_with(b"blobs/sha");
    let is_inner = |path: &[u8]| path.strip_suffix(b"/oci-layout").is_some_and(|dir| !dir.contains(&b'/'));
    let (mut layout, mut list, mut old, mut layers, mut inner) = (false, false, false, false, false);
    for (n, entry) in store.layer(diff_id)?.entries()?.enumerate() {
        let path = entry?.entry.path;
        layout |= path == b"oci-layout";
        list |= path == b"manifest.json";
        old |= path == b"repositories";
        if n < NAMES {
            layers |= is_layer(&path);
            inner |= is_inner(&path);
        }
    }
    Ok(match layers {
        _ if layout => Some(Form::Image),
        true if list => Some(Form::Image),
        true if old => Some(Form::Old),
        _ => inner.then_some(Form::Inner),
    })
}

fn note_of(form: Form, is_file: bool) -> &'static str {
    match (form, is_file) {
        (Form::Image, false) => {
            "this layer looks like an image archive; to import the image, give its file instead of a pipe"
        }
        (Form::Image, true) => {
            "this layer looks like an image archive that is not complete, or whose list stands too far behind; \
             to import the image, unpack the archive and give the directory"
        }
        (Form::Inner, _) => {
            "this layer looks like an archive of a directory that holds an image; to import the image, give the directory"
        }
        (Form::Old, _) => {
            "this layer looks like an image archive of Docker before 1.10, which is not read: it has 'repositories' and \
             no manifest.json; load it with Docker and save it again"
        }
    }
}

fn layer_json(layer: &LayerImport) -> Value {
    json!({
        "diff_id": layer.diff_id, "blob": layer.blob, "tar_size": layer.tar_size, "entries": layer.entries,
        "known": layer.known,
    })
}

fn stats_json(stats: &ImportStats) -> Value {
    json!({
        "content": stats.content, "new_raw": stats.new_raw, "new_stored": stats.new_stored,
        "new_chunks": stats.new_chunks,
    })
}

fn report(context: &Context, layers: &[LayerImport], stats: &ImportStats, took: Duration) -> Result<(), Failure> {
    let mut table = Table::new(&["LAYER", ">TAR SIZE", ">ENTRIES", ""]);
    for layer in layers {
        let state = if layer.known { "known" } else { "new" };
        table.row([context.digest(&layer.diff_id), size(layer.tar_size), layer.entries.to_string(), state.into()]);
    }
    table.print(context.out(), "")?;
    let (content, new, stored) = (size(stats.content), size(stats.new_raw), size(stats.new_stored));
    let took = seconds(took);
    context.out().line(format!("content read {content}, of it new {new}, stored as {stored}, in {took}"))
}
