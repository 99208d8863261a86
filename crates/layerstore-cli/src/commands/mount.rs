//! `layerstore mount` and `layerstore umount`.

use super::snapshot;
use crate::args::{MountArgs, Umount};
use crate::context::Context;
use crate::errors::{Failure, Hint, mounting};
use crate::names::{self, escape, shell};
use layerstore::{Advice, Error, ErrorKind, Labels, Mount, MountPoint, RemoveOptions, SnapshotKind, Snapshotter};
use serde_json::json;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Label of snapshots that `mount` made: where they are mounted.
const MOUNTED_ON: &str = "layerstore.mounted-on";

pub(crate) fn run(context: &Context, args: &MountArgs) -> Result<(), Failure> {
    can_mount()?;
    let snapshots = snapshot::open(context, &args.common)?;
    // From here on this very directory is meant, whatever gets its name while the snapshot is made ready.
    let point = absolute(&args.dir)?;
    let dir = point.path().to_owned();
    let progress = context.progress(None);
    let (key, made, mounts) = match snapshots.mounts(&args.what, &progress) {
        Ok(mounts) if !args.rw => (args.what.clone(), false, mounts),
        Ok(_) => {
            return Err(Failure::new(ErrorKind::InvalidInput, "--rw is for images: a snapshot is mounted as it is"));
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let (key, mounts) = prepare(&snapshots, args, &dir, &progress).map_err(incomplete)?;
            (key, true, mounts)
        }
        Err(e) => return Err(e.into()),
    };
    progress.clear();
    if let Err(e) = point.mount_all(&mounts) {
        if made {
            snapshots.remove(&key).and_then(|()| snapshots.cleanup().map(drop))?;
        }
        return Err(mounting(e));
    }
    if context.json() {
        let (dir, driver) = (dir.display().to_string(), snapshots.driver().as_str());
        return context.out().json(&json!({ "snapshot": key, "mounted_on": dir, "driver": driver, "rw": args.rw }));
    }
    if context.quiet() {
        return Ok(());
    }
    let (what, shown) = (escape(args.what.as_bytes()), escape(dir.as_os_str().as_bytes()));
    let end = format!("umount {}{}", shell(dir.as_os_str().as_bytes()), snapshot::again(context, &args.common));
    context.out().line(format!("mounted {what} on {shown} ({}); `layerstore {end}` ends it", snapshots.driver()))
}

/// What a view for a read-only mount is called if a snapshot of another kind has the directory's name.
const VIEW: &str = "#read-only";

/// A snapshot of an image for a mount at `dir`, called like that.
fn prepare(
    snapshots: &Snapshotter,
    args: &MountArgs,
    dir: &Path,
    observer: &dyn layerstore::Observer,
) -> Result<(String, Vec<Mount>), Failure> {
    let image = names::image(snapshots.store(), &args.what).map_err(|e| match e.kind() {
        ErrorKind::NotFound => e.hint("`layerstore images` and `layerstore snapshot ls` list both"),
        _ => e,
    })?;
    let parent = snapshots.commit_image(&image, observer)?;
    let key = dir.to_string_lossy().into_owned();
    let labels = Labels::from([(MOUNTED_ON.to_owned(), key.clone())]);
    let key = if args.rw { key } else { view_key(snapshots, dir)? };
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

/// A name for the view of a read-only mount at `dir`. Changes that a writable mount left keep theirs; a view that
/// outlived its mount, as over a reboot, goes.
fn view_key(snapshots: &Snapshotter, dir: &Path) -> Result<String, Failure> {
    let mounted = snapshots.store().mounts()?.iter().any(|mounted| mounted.dir == dir);
    for view in views(snapshots, dir)?.iter().filter(|_| !mounted) {
        snapshots.remove_with(view, &RemoveOptions::default().mounted(true))?;
    }
    let key = dir.to_string_lossy().into_owned();
    match snapshots.stat(&key) {
        Ok(info) if info.kind != SnapshotKind::View => Ok(key + VIEW),
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e.into()),
        _ => Ok(key),
    }
}

/// Keys of the views that `mount` made for a directory.
fn views(snapshots: &Snapshotter, dir: &Path) -> Result<Vec<String>, Failure> {
    let name = dir.to_string_lossy();
    let mut found = Vec::new();
    for key in [name.to_string(), format!("{name}{VIEW}")] {
        match snapshots.stat(&key) {
            Ok(info) if info.kind == SnapshotKind::View && info.labels.contains_key(MOUNTED_ON) => found.push(key),
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
    }
    Ok(found)
}

pub(crate) fn umount(context: &Context, args: &Umount) -> Result<(), Failure> {
    let snapshots = snapshot::open(context, &args.common)?;
    let Some(dir) = &args.dir else { return umount_all(context, &snapshots) };
    // What is looked for in the mount table is what is unmounted, whatever gets its name meanwhile.
    let point = absolute(dir)?;
    let dir = point.path().to_owned();
    let store = snapshots.store();
    let here = |mounted: &layerstore::Mounted| mounted.dir == dir && !mounted.covered;
    if dir.starts_with(store.path()) || !store.mounts()?.iter().any(here) {
        let e = Error::not_found("nothing of this store is mounted here").subject(dir.display());
        return Err(e).hint("--store DIR names another store; umount(8) ends mounts that layerstore did not make");
    }
    let key = dir.to_string_lossy().into_owned();
    let kept = match snapshots.mount_points(&key) {
        Ok(dirs) => dirs.is_some_and(|dirs| dirs.contains(&dir)) && snapshots.stat(&key)?.kind == SnapshotKind::Active,
        Err(e) if e.kind() == ErrorKind::NotFound => false,
        Err(e) => return Err(e.into()),
    };
    point.unmount().hint_on(ErrorKind::Busy, "`fuser -vm DIR` tells who uses it")?;
    if !kept {
        remove_views(&snapshots, &dir)?;
    }
    if context.json() {
        return context.out().json(&json!({ "unmounted": key, "snapshot": kept.then_some(&key) }));
    }
    if kept && !context.quiet() {
        let (key, remove) = (escape(key.as_bytes()), shell(key.as_bytes()));
        let remove = format!("snapshot{} rm {remove}", snapshot::again(context, &args.common));
        context.out().line(format!("changes are kept in snapshot {key}: commit it, or `layerstore {remove}`"))?;
    }
    Ok(())
}

/// Removes the views of a directory that nothing is mounted on any more, and what only they needed.
fn remove_views(snapshots: &Snapshotter, dir: &Path) -> Result<(), Failure> {
    let views = views(snapshots, dir)?;
    for view in &views {
        snapshots.remove_with(view, &RemoveOptions::default().mounted(true))?;
    }
    if !views.is_empty() {
        snapshots.cleanup()?;
    }
    Ok(())
}

fn umount_all(context: &Context, snapshots: &Snapshotter) -> Result<(), Failure> {
    let store = snapshots.store();
    let report = store.unmount_all()?;
    for dir in report.unmounted.iter().filter(|dir| !dir.starts_with(store.path()) && !report.in_use.contains(dir)) {
        remove_views(snapshots, dir)?;
    }
    let text = |dirs: &[PathBuf]| -> Vec<String> { dirs.iter().map(|dir| dir.display().to_string()).collect() };
    let (unmounted, in_use) = (text(&report.unmounted), text(&report.in_use));
    if context.json() {
        context.out().json(&json!({ "unmounted": unmounted, "in_use": in_use }))?;
    } else if !context.quiet() {
        unmounted.iter().try_for_each(|dir| context.out().line(format!("unmounted {}", escape(dir.as_bytes()))))?;
    }
    if in_use.is_empty() {
        return Ok(());
    }
    let e = Error::new(ErrorKind::Busy, "mounts of the store are in use or covered by others");
    Err(e.subject(in_use.join(", "))).hint("`fuser -vm DIR` tells who uses one; end that and try again")
}

fn absolute(dir: &Path) -> Result<MountPoint, Failure> {
    MountPoint::open(dir).hint_on(ErrorKind::NotFound, "the directory to mount on must exist")
}

/// What to do when a layer's directory cannot be made in full, as in a user namespace, where nobody makes devices.
pub(super) fn incomplete(failure: Failure) -> Failure {
    match failure.kind() {
        ErrorKind::FailedPrecondition if failure.advice() == Some(Advice::OtherDriver) => failure.hint(
            "`--driver copy` mounts the image without what cannot be made here, and `layerstore extract` tells what that \
             is; the real root can make all of it",
        ),
        _ => failure,
    }
}

/// Asked before anything is made ready: a snapshot of the copy driver takes as long as an extraction.
pub(super) fn can_mount() -> Result<(), Failure> {
    layerstore::can_mount().hint(
        "mounting needs root, or a user namespace of its own (`unshare -rm`, `podman unshare`); \
         `layerstore extract` needs neither",
    )
}
