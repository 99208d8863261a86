//! `layerstore doctor`: which drivers work on this machine and store.

use crate::context::Context;
use crate::errors::Failure;
use crate::output::Table;
use layerstore::{DirectIo, DirectIoDecision, DriverKind, Error, ErrorKind, Snapshotter, SnapshotterOptions, Store};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

pub(crate) fn run(context: &Context, direct_io: DirectIo) -> Result<(), Failure> {
    let dir = context.store_dir()?;
    let (store, beside) = match context.store() {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            // What works depends on the file system too. The store to be tried there goes again.
            let near = dir.ancestors().skip(1).find(|near| near.is_dir()).unwrap_or(Path::new("."));
            let beside = TempDir::with_prefix_in(".layerstore-doctor-", near)
                .map_err(|e| Error::io("make a directory", e).subject(near.display()))?;
            (Store::open(beside.path().join("store"))?, Some(beside))
        }
        found => (found?, None),
    };
    let store = Arc::new(store);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let root = rustix::process::geteuid().is_root();
    let mut table = Table::new(&["DRIVER", "WORKS", "WHY NOT"]);
    let automatic = Snapshotter::open(store.clone(), &SnapshotterOptions::default())?;
    let chosen = automatic.driver();
    for driver in [DriverKind::Erofs, DriverKind::Overlay, DriverKind::Copy] {
        let options = SnapshotterOptions::default().driver(driver).direct_io(direct_io);
        let opened = Snapshotter::open(store.clone(), &options);
        // One that works may be passed over, and there is a reason for that, too.
        let passed_over = automatic.refused().iter().find(|(kind, _)| *kind == driver).map(|(_, why)| why);
        let why = opened.as_ref().err().or(passed_over).map(ToString::to_string);
        if context.json() {
            let (name, auto) = (driver.as_str(), chosen == driver);
            let kernel = kernel.trim();
            let mut line = json!({ "driver": name, "works": opened.is_ok(), "auto": auto, "reason": why, "kernel": kernel, "root": root });
            if driver == DriverKind::Erofs {
                let DirectIoDecision { used, reason, .. } = direct_io.decide();
                line["direct_io"] = json!({ "used": used, "reason": reason });
            }
            context.out().json(&line)?;
            continue;
        }
        let works = match (opened.is_ok(), chosen == driver, &why) {
            (true, true, _) => "yes, chosen by auto",
            (true, false, None) => "yes",
            (true, false, Some(_)) => "for some images",
            (false, ..) => "no",
        };
        table.row([driver.to_string(), works.to_owned(), why.unwrap_or_default()]);
    }
    if context.json() {
        return Ok(());
    }
    let user = if root { "root" } else { "not root" };
    let made = if beside.is_some() { " (not there yet)" } else { "" };
    context.out().line(format!("kernel {}, {user}, store {}{made}", kernel.trim(), dir.display()))?;
    table.print(context.out(), "")?;
    let decision = direct_io.decide();
    let used = if decision.used { "" } else { "not " };
    context.out().line(format!("erofs mounts do {used}read packs past the page cache: {}", decision.reason))
}
