//! `layerstore cat`.

use crate::args::Cat;
use crate::context::Context;
use crate::errors::{Failure, Hint};
use crate::names::{Named, escape, find, normal};
use crate::output::Shown;
use layerstore::{EntryKind, Error, ErrorKind, FileReader, Layer, Store};

pub(crate) fn run(context: &Context, args: &Cat) -> Result<(), Failure> {
    let store = context.store()?;
    let path = normal(&args.path)?;
    let file = open(&store, find(&store, &args.what)?, &path)?;
    // A pipe or a file gets the bytes as they are.
    let mut out = context.out().lock();
    let mut out = Shown::new(&mut *out, context.out().is_terminal());
    file.copy_to(&mut out)?;
    Ok(out.finish()?)
}

pub(super) fn open<'s>(store: &'s Store, named: Named, path: &[u8]) -> Result<FileReader<'s>, Failure> {
    match named {
        Named::Image(image) => {
            let list = "`layerstore ls` lists the files of an image";
            let opened = store.root(&image.layers)?.open(path);
            opened.hint_on(ErrorKind::NotFound, list).hint_on(ErrorKind::InvalidInput, list)
        }
        Named::Layer(info) => in_layer(&store.layer(&info.diff_id)?, path),
    }
}

fn in_layer<'s>(layer: &Layer<'s>, path: &[u8]) -> Result<FileReader<'s>, Failure> {
    let list = "`layerstore ls` lists the entries of a layer";
    let mut entry = layer.find(path).hint_on(ErrorKind::NotFound, list)?;
    // Every step leads to an entry that was there before the link; a circle can only be made by hand.
    for _ in 0..40 {
        match &entry.entry.kind {
            EntryKind::Hardlink { target } => {
                entry = layer
                    .find(target)
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
