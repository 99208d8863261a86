//! `layerstore init`.

use crate::args::Init;
use crate::context::Context;
use crate::errors::Failure;
use layerstore::{ErrorKind, OpenOptions, Store};
use serde_json::json;

pub(crate) fn run(context: &Context, args: &Init) -> Result<(), Failure> {
    let (dir, chunking) = (context.store_dir()?, args.chunks.chunking()?);
    if dir.join("STORE").exists() {
        let failure = Failure::new(ErrorKind::AlreadyExists, format!("store {}: it is there already", dir.display()));
        return Err(failure.hint("chunk sizes are fixed when a store is made; --store DIR names another"));
    }
    let store = Store::open_with(&dir, &OpenOptions::default().chunking(chunking))?;
    if context.json() {
        return context.out().json(&json!({ "store": store.path().display().to_string() }));
    }
    if context.quiet() { Ok(()) } else { context.out().line(format!("made {}", store.path().display())) }
}
