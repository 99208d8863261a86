//! `layerstore run`: a chroot in private namespaces, by util-linux's `unshare` and this program once more.
//!
//! What the image says, its environment above all, is for the command alone: on the host it decides nothing.

use super::snapshot;
use crate::args::{Inside, Run};
use crate::context::Context;
use crate::errors::{Failure, Hint};
use crate::names;
use layerstore::{Error, ErrorKind, Labels, Snapshotter};
use rustix::mount::{MountFlags, mount};
use serde_json::Value;
use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind as IoKind};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitCode};

/// Where the host's `unshare` is looked for.
const HOST_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// Where commands are looked for in an image that does not say.
const IMAGE_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The exit code is the command's.
pub(crate) fn run(context: &Context, args: &Run) -> Result<ExitCode, Failure> {
    let snapshots = snapshot::open(context, &args.common)?;
    let image = names::image(snapshots.store(), &args.what)?;
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
        .hint_on(ErrorKind::Unsupported, "mounting needs root; `layerstore extract` does not")
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

/// Runs [`enter`] in new namespaces, with nothing of the image in its environment.
fn inside(root: &Path, command: &[OsString], config: &Value) -> Result<ExitCode, Failure> {
    let program = std::env::current_exe().map_err(|e| Error::io("cannot find this program", e))?;
    let mut unshare = Command::new("unshare");
    unshare.env_clear().env("PATH", HOST_PATH);
    unshare.args(["--mount", "--pid", "--fork", "--kill-child", "--"]).arg(program).arg(Inside::NAME).arg(root);
    let terminal = std::env::var("TERM").map(|term| format!("TERM={term}"));
    let own = strings(&config["config"]["Env"]).into_iter().map(str::to_owned);
    for variable in terminal.into_iter().chain([IMAGE_PATH.to_owned()]).chain(own) {
        unshare.arg(format!("--env={variable}"));
    }
    let status = unshare.arg("--").args(command).status().map_err(|e| Error::io("cannot run unshare", e));
    let status = status.hint("`unshare` is part of util-linux")?;
    // As a shell tells of a signal.
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Becomes the command, in namespaces that are its own already. The exit codes of what fails are those of chroot(1).
pub(crate) fn enter(args: &Inside) -> ExitCode {
    let (what, e, code) = match change_root(&args.root) {
        Err((what, e)) => (what.to_owned(), e, 125),
        Ok(()) => {
            let (program, rest) = args.command.split_first().expect("clap wants one");
            let pairs = args.env.iter().filter_map(|pair| pair.split_once('=')).filter(|(name, _)| !name.is_empty());
            // Looked for in the PATH that is set here, and so in the image.
            let e = Command::new(program).args(rest).env_clear().envs(pairs).exec();
            let code = if e.kind() == IoKind::NotFound { 127 } else { 126 };
            (format!("cannot run {}", program.display()), e, code)
        }
    };
    let _ = Failure::from(Error::io(what, e)).report(false);
    ExitCode::from(code)
}

/// First the root: what leads elsewhere in the image leads nowhere outside of it then.
fn change_root(root: &Path) -> Result<(), (&'static str, io::Error)> {
    std::os::unix::fs::chroot(root).map_err(|e| ("cannot change the root", e))?;
    std::env::set_current_dir("/").map_err(|e| ("cannot change to the root", e))?;
    match fs::create_dir("/proc") {
        Err(e) if e.kind() != IoKind::AlreadyExists => return Err(("cannot make /proc in the image", e)),
        _ => {}
    }
    if !fs::symlink_metadata("/proc").is_ok_and(|found| found.is_dir()) {
        return Err(("cannot mount /proc: in the image it is no directory", IoKind::NotADirectory.into()));
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", flags, None).map_err(|e| ("cannot mount /proc", e.into()))
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
