//! The demonstration's last step: an image mounted or copied, changed, and made the next version.

use super::{NAMES, Story};
use crate::errors::Failure;
use crate::output::{seconds, size};
use layerstore::{
    AppendOptions, CommitOptions, DriverKind, Error, Labels, Mount, Snapshotter, SnapshotterOptions, Store,
};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Name of the image that is made.
const NEXT: &str = "demo:3";
/// What is written to it.
const ADDED: (&str, &str) = ("written-in-the-demonstration", "hello\n");

impl Story<'_> {
    pub(super) fn snapshot(&self, store: &Arc<Store>, dir: &Path) -> Result<(), Failure> {
        let image = store.image(NAMES[1])?;
        let target = dir.join("mounted");
        fs::create_dir(&target).map_err(|e| Error::io("cannot make a directory to mount on", e))?;
        let begin = Instant::now();
        let (snapshots, mounted) = self.open(store, &target)?;
        let took = begin.elapsed();
        let root = mounted.as_deref().unwrap_or(&target);
        let (driver, begin) = (snapshots.driver(), Instant::now());
        let names = count(root);
        let looked = begin.elapsed();
        fs::write(root.join(ADDED.0), ADDED.1).map_err(|e| Error::io("cannot write to the snapshot", e))?;
        if mounted.is_none() {
            layerstore::unmount(&target)?;
        }
        let begin = Instant::now();
        let layer = snapshots.commit("done", "work", &CommitOptions::default(), &())?;
        let layer = layer.ok_or_else(|| Error::corrupt("the commit gave no layer"))?;
        let options = AppendOptions::default().created_by("layerstore demo");
        let made = store.append_layer(&image, NEXT, &layer, &options)?;
        let committed = begin.elapsed();
        let mut content = Vec::new();
        store.root(&made.layers)?.open(ADDED.0.as_bytes())?.copy_to(&mut content)?;
        if content != ADDED.1.as_bytes() {
            return Err(Error::corrupt("the new image lacks what was written").into());
        }
        let layer_size = store.layer(&layer)?.tar_size();
        snapshots.remove("done")?;
        snapshots.cleanup()?;
        snapshots.close()?;
        let how = match driver {
            DriverKind::Erofs => "mounted straight from the packs, nothing extracted",
            DriverKind::Overlay => "layers extracted once, then mounted",
            _ => "copied, which needs no mount and no root",
        };
        self.say(format!("\n6. A writable snapshot of {} in {} ({driver}: {how}).", NAMES[1], seconds(took)))?;
        self.say(format!("   {names} names were found in it in {}; one more file was written.", seconds(looked)))?;
        self.say(format!("   Committed as {NEXT}, with a layer of {}, in {}.", size(layer_size), seconds(committed)))?;
        self.json(json!({
            "step": "snapshot", "driver": driver.as_str(), "prepare_seconds": took.as_secs_f64(), "names": names,
            "walk_seconds": looked.as_secs_f64(), "commit_seconds": committed.as_secs_f64(), "layer": layer,
        }))
    }

    /// A snapshot `work` by the best driver that works here, mounted on `target`; or where nothing can be mounted, the
    /// directory that has its copy.
    fn open(&self, store: &Arc<Store>, target: &Path) -> Result<(Snapshotter, Option<PathBuf>), Failure> {
        let image = store.image(NAMES[1])?;
        let prepare = |driver| -> Result<(Snapshotter, Vec<Mount>), Failure> {
            let snapshots = Snapshotter::open(store.clone(), &SnapshotterOptions::default().driver(driver))?;
            let parent = snapshots.commit_image(&image, &())?;
            let mounts = snapshots.prepare("work", parent.as_deref(), &Labels::new(), &())?;
            Ok((snapshots, mounts))
        };
        let (snapshots, mounts) = prepare(DriverKind::Auto)?;
        if layerstore::mount_all(&mounts, target).is_ok() {
            return Ok((snapshots, None));
        }
        if snapshots.driver() == DriverKind::Copy {
            return Ok((snapshots, mounts.first().map(|mount| PathBuf::from(&mount.source))));
        }
        snapshots.remove("work")?;
        let (snapshots, mounts) = prepare(DriverKind::Copy)?;
        Ok((snapshots, mounts.first().map(|mount| PathBuf::from(&mount.source))))
    }
}

/// Names below a directory; what cannot be read is not counted.
fn count(root: &Path) -> u64 {
    let (mut names, mut pending) = (0, vec![root.to_owned()]);
    while let Some(dir) = pending.pop() {
        for found in fs::read_dir(&dir).into_iter().flatten().flatten() {
            names += 1;
            if found.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(found.path());
            }
        }
    }
    names
}
