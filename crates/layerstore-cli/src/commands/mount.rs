//! `layerstore mount` and `layerstore umount`.

use super::snapshot;
use crate::args::{MountArgs, Umount};
use crate::context::Context;
use crate::errors::{Failure, Hint};
use crate::names::escape;
use layerstore::{Error, ErrorKind, Labels, Mount, Snapshotter};
use serde_json::json;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Label of snapshots that `mount` made: where they are mounted.
const MOUNTED_ON: &str = "layerstore.mounted-on";

pub(crate) fn run(context: &Context, args: &MountArgs) -> Result<(), Failure> {
    let snapshots = snapshot::open(context, &args.common)?;
    let dir = absolute(&args.dir)?;
    let progress = context.progress(None);
    let (key, made, mounts) = match snapshots.mounts(&args.what, &progress) {
        Ok(mounts) if !args.rw => (args.what.clone(), false, mounts),
        Ok(_) => {
            return Err(Failure::new(ErrorKind::InvalidInput, "--rw is for images: a snapshot is mounted as it is"));
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let (key, mounts) = prepare(&snapshots, args, &dir, &progress)?;
            (key, true, mounts)
        }
        Err(e) => return Err(e.into()),
    };
    progress.clear();
    if let Err(e) = layerstore::mount_all(&mounts, &dir) {
        if made {
            snapshots.remove(&key).and_then(|()| snapshots.cleanup().map(drop))?;
        }
        return Err(e).hint("mounting needs root and an existing directory; `layerstore extract` needs neither");
    }
    if context.json() {
        let (dir, driver) = (dir.display().to_string(), snapshots.driver().as_str());
        return context.out().json(&json!({ "snapshot": key, "mounted_on": dir, "driver": driver, "rw": args.rw }));
    }
    if context.quiet() {
        return Ok(());
    }
    let (what, dir) = (escape(args.what.as_bytes()), escape(dir.as_os_str().as_bytes()));
    context.out().line(format!("mounted {what} on {dir} ({}); `layerstore umount {dir}` ends it", snapshots.driver()))
}

/// A snapshot of an image for a mount at `dir`, called like that.
fn prepare(
    snapshots: &Snapshotter,
    args: &MountArgs,
    dir: &Path,
    observer: &dyn layerstore::Observer,
) -> Result<(String, Vec<Mount>), Failure> {
    let image =
        snapshots.store().image(&args.what).hint("`layerstore images` and `layerstore snapshot ls` list both")?;
    let parent = snapshots.commit_image(&image, observer)?;
    let key = dir.to_string_lossy().into_owned();
    let labels = Labels::from([(MOUNTED_ON.to_owned(), key.clone())]);
    let mounts = match args.rw {
        true => snapshots.prepare(&key, parent.as_deref(), &labels, observer),
        false => snapshots.view(&key, parent.as_deref(), &labels, observer),
    };
    let mounts = mounts.map_err(|e| match e.kind() {
        ErrorKind::AlreadyExists => {
            Failure::from(e).hint("the snapshot of an earlier mount is still there: umount, commit or remove it")
        }
        _ => e.into(),
    })?;
    Ok((key, mounts))
}

pub(crate) fn umount(context: &Context, args: &Umount) -> Result<(), Failure> {
    let snapshots = snapshot::open(context, &args.common)?;
    let dir = absolute(&args.dir)?;
    layerstore::unmount(&dir).hint("is it still in use? `fuser -vm DIR` tells by whom")?;
    let key = dir.to_string_lossy().into_owned();
    let kept = match snapshots.stat(&key) {
        Ok(info) if info.kind == layerstore::SnapshotKind::View && info.labels.contains_key(MOUNTED_ON) => {
            snapshots.remove(&key)?;
            snapshots.cleanup()?;
            false
        }
        Ok(_) => true,
        Err(e) if e.kind() == ErrorKind::NotFound => false,
        Err(e) => return Err(e.into()),
    };
    if context.json() {
        return context.out().json(&json!({ "unmounted": key, "snapshot": kept.then_some(&key) }));
    }
    if kept && !context.quiet() {
        let key = escape(key.as_bytes());
        context
            .out()
            .line(format!("changes are kept in snapshot {key}: commit it, or `layerstore snapshot rm {key}`"))?;
    }
    Ok(())
}

fn absolute(dir: &Path) -> Result<PathBuf, Failure> {
    let found = dir.canonicalize().map_err(|e| Error::io("cannot find the directory", e).subject(dir.display()));
    found.hint("the directory to mount on must exist")
}
