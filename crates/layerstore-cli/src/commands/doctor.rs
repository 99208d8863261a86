//! `layerstore doctor`: which drivers work on this machine and store.

use crate::context::Context;
use crate::errors::Failure;
use crate::output::Table;
use layerstore::{DriverKind, Snapshotter, SnapshotterOptions};
use serde_json::json;
use std::sync::Arc;

pub(crate) fn run(context: &Context) -> Result<(), Failure> {
    let store = Arc::new(context.store_or_new()?);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let root = rustix::process::geteuid().is_root();
    let mut table = Table::new(&["DRIVER", "WORKS", "WHY NOT"]);
    let mut chosen = None;
    for driver in [DriverKind::Erofs, DriverKind::Overlay, DriverKind::Copy] {
        let opened = Snapshotter::open(store.clone(), &SnapshotterOptions::default().driver(driver));
        let why = opened.as_ref().err().map(ToString::to_string);
        if opened.is_ok() {
            chosen.get_or_insert(driver);
        }
        if context.json() {
            let (name, auto) = (driver.as_str(), chosen == Some(driver));
            let kernel = kernel.trim();
            let line = json!({ "driver": name, "works": why.is_none(), "auto": auto, "reason": why, "kernel": kernel, "root": root });
            context.out().json(&line)?;
            continue;
        }
        let works = match (&why, chosen == Some(driver)) {
            (None, true) => "yes, chosen by auto",
            (None, false) => "yes",
            (Some(_), _) => "no",
        };
        table.row([driver.to_string(), works.to_owned(), why.unwrap_or_default()]);
    }
    if context.json() {
        return Ok(());
    }
    let user = if root { "root" } else { "not root" };
    context.out().line(format!("kernel {}, {user}, store {}", kernel.trim(), store.path().display()))?;
    table.print(context.out(), "")
}
