//! `layerstore mount` and `layerstore umount`.

use super::snapshot;
use crate::args::{MountArgs, Umount};
use crate::context::Context;
use crate::errors::{Failure, Hint, mounting};
use crate::mounted;
use crate::names::{self, escape, shell};
use layerstore::{Advice, Error, ErrorKind, Labels, Mount, MountPoint, SnapshotInfo, SnapshotKind, Snapshotter};
use serde_json::json;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

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
    // What is looked for in the mount table is what is unmounted, whatever gets its name meanwhile.
    let point = absolute(&args.dir)?;
    let dir = point.path().to_owned();
    if !mounted::from_store(snapshots.store().path()).iter().any(|found| found.dir == dir) {
        let e = Error::not_found("nothing of this store is mounted here").subject(dir.display());
        return Err(e).hint("--store DIR names another store; umount(8) ends mounts that layerstore did not make");
    }
    let key = dir.to_string_lossy().into_owned();
    let own = match snapshots.stat(&key) {
        Ok(info) => Some(info),
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        Err(e) => return Err(e.into()),
    };
    point.unmount().hint_on(ErrorKind::Busy, "`fuser -vm DIR` tells who uses it")?;
    let goes = |info: &SnapshotInfo| info.kind == SnapshotKind::View && info.labels.contains_key(MOUNTED_ON);
    if own.as_ref().is_some_and(goes) {
        snapshots.remove(&key)?;
        snapshots.cleanup()?;
    }
    let kept = own.is_some_and(|info| !goes(&info));
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
