//! `layerstore run`: a chroot in private namespaces, by util-linux's `unshare` and coreutils' `chroot`.

use super::snapshot;
use crate::args::Run;
use crate::context::Context;
use crate::errors::{Failure, Hint};
use layerstore::{Error, ErrorKind, Labels, Snapshotter};
use serde_json::Value;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitCode};

/// Run in the new namespaces: `$0` is the root, the rest the command.
const INSIDE: &str = r#"root=$0
mkdir -p "$root/proc" && mount -t proc proc "$root/proc" || exit 125
exec chroot "$root" "$@""#;

/// The exit code is the command's.
pub(crate) fn run(context: &Context, args: &Run) -> Result<ExitCode, Failure> {
    let snapshots = snapshot::open(context, &args.common)?;
    let image = snapshots.store().image(&args.what).hint("`layerstore images` lists the images there are")?;
    let config: Value = serde_json::from_slice(&snapshots.store().image_config(&image)?).unwrap_or_default();
    let command = match args.command.is_empty() {
        true => own_command(&config)?,
        false => args.command.clone(),
    };
    let progress = context.progress(None);
    let parent = snapshots.commit_image(&image, &progress)?;
    let key = args.keep.clone().unwrap_or_else(|| format!("run-{}", std::process::id()));
    let mounts = snapshots.prepare(&key, parent.as_deref(), &Labels::new(), &progress)?;
    progress.clear();
    let place = tempfile::tempdir().map_err(|e| Error::io("make a directory to mount on", e))?;
    let ran = layerstore::mount_all(&mounts, place.path())
        .hint("mounting needs root, or the copy driver: --driver copy")
        .and_then(|()| {
            let ran = inside(place.path(), &command, &config);
            layerstore::unmount(place.path())?;
            ran
        });
    if args.keep.is_none() || ran.is_err() {
        forget(&snapshots, &key)?;
    }
    ran
}

fn forget(snapshots: &Snapshotter, key: &str) -> Result<(), Failure> {
    snapshots.remove(key)?;
    snapshots.cleanup()?;
    Ok(())
}

fn inside(root: &Path, command: &[OsString], config: &Value) -> Result<ExitCode, Failure> {
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--pid", "--fork", "--kill-child", "--", "/bin/sh", "-c", INSIDE]).arg(root).args(command);
    for pair in strings(&config["config"]["Env"]) {
        if let Some((name, value)) = pair.split_once('=') {
            unshare.env(name, value);
        }
    }
    let status = unshare.status().map_err(|e| Error::io("cannot run unshare", e));
    let status = status.hint("`unshare` is part of util-linux")?;
    // As a shell tells of a signal.
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Entrypoint and command of the image's configuration (image-spec `config.md`).
fn own_command(config: &Value) -> Result<Vec<OsString>, Failure> {
    let parts = [&config["config"]["Entrypoint"], &config["config"]["Cmd"]];
    let command: Vec<OsString> = parts.into_iter().flat_map(strings).map(OsString::from).collect();
    if command.is_empty() {
        let failure = Failure::new(ErrorKind::InvalidInput, "the image names no command");
        return Err(failure.hint("give one: layerstore run IMAGE -- CMD"));
    }
    Ok(command)
}

fn strings(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}
