//! `layerstore cat`.

use crate::args::Cat;
use crate::context::Context;
use crate::errors::{Failure, Hint};
use crate::names::{Named, escape, find, normal};
use crate::output::Shown;
use layerstore::{EntryKind, Error, ErrorKind, FileReader, Layer, Observer, Store};
use std::fs::File;
use std::io::Seek;
use std::os::fd::AsFd;

pub(crate) fn run(context: &Context, args: &Cat) -> Result<(), Failure> {
    let store = context.store()?;
    let path = normal(&args.path)?;
    let file = open(context, &store, find(&store, &args.what)?, &path)?;
    let progress = context.progress(None);
    if let Some(out) = empty_file() {
        file.copy_to_file(&out, &progress)?;
        return Ok(());
    }
    // A pipe or a file gets the bytes without a change.
    let mut out = context.out().lock();
    let mut out = Shown::new(&mut *out, context.out().is_terminal());
    file.copy_to_watched(&mut out, &progress)?;
    Ok(out.finish()?)
}

/// Standard output if it is a regular file that ends where the next byte goes: holes can be left in it.
fn empty_file() -> Option<File> {
    let out = std::io::stdout();
    let flags = rustix::fs::fcntl_getfl(&out).ok()?;
    let mut file = File::from(out.as_fd().try_clone_to_owned().ok()?);
    let meta = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    let ends = file.stream_position().is_ok_and(|at| at == meta.len());
    (ends && !flags.contains(rustix::fs::OFlags::APPEND)).then_some(file)
}

pub(super) fn open<'s>(
    context: &Context,
    store: &'s Store,
    named: Named,
    path: &[u8],
) -> Result<FileReader<'s>, Failure> {
    match named {
        Named::Image(image) => {
            let list = "`layerstore ls` lists the files of an image";
            let opened = store.root_watched(&image.layers, &context.progress(None))?.open(path);
            opened.hint_on(ErrorKind::NotFound, list).hint_on(ErrorKind::InvalidInput, list)
        }
        Named::Layer(info) => in_layer(&store.layer(&info.diff_id)?, path, &context.progress(None)),
    }
}

fn in_layer<'s>(layer: &Layer<'s>, path: &[u8], observer: &dyn Observer) -> Result<FileReader<'s>, Failure> {
    let list = "`layerstore ls` lists the entries of a layer";
    let mut entry = layer.find_watched(path, observer).hint_on(ErrorKind::NotFound, list)?;
    // Every step leads to an entry that was there before the link; a circle can only be made by hand.
    for _ in 0..40 {
        match &entry.entry.kind {
            EntryKind::Hardlink { target } => {
                entry = layer
                    .find_watched(target, observer)
                    .hint_on(ErrorKind::NotFound, "the hard link leads to a lower layer; read it from the image")?;
            }
            EntryKind::Symlink { target } => {
                let failure = Failure::from(Error::invalid("a symlink").subject(escape(path)));
                return Err(failure.hint(format!("it leads to '{}'", escape(target))));
            }
            _ => return layer.open(&entry).map_err(|e| e.subject(escape(path))).hint_on(ErrorKind::InvalidInput, list),
        }
    }
    Err(Error::invalid("hard links lead to each other").subject(escape(path)).into())
}
