//! `layerstore run`: a command in an image, in namespaces of its own.
//!
//! | file | what |
//! | --- | --- |
//! | `mod.rs` | on the host: the snapshot, and what its end leaves |
//! | `supervisor.rs` | the second process: makes the namespaces, mounts the image in them, waits |
//! | `inside.rs` | the third process, which becomes the command: root, /proc, /dev, user, capabilities |
//! | `user.rs`, `capabilities.rs` | whom it runs as, and what it may do |
//! | `plan.rs` | what the processes tell each other |
//! | `leftover.rs` | snapshots of runs that were killed |
//!
//! What the image says, its environment above all, is for the command alone: on the host it decides nothing. The image is
//! mounted in the command's own mount namespace, which nobody else can enter, and which goes when the command ends.

pub(crate) mod capabilities;
mod inside;
mod leftover;
mod plan;
mod supervisor;
mod user;

use super::{mount, snapshot};
use crate::args::Run;
use crate::context::Context;
use crate::errors::Failure;
use crate::names;
use layerstore::{Error, ErrorKind, Labels, Snapshotter};
use plan::Plan;
use serde_json::Value;
use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus};

/// Where commands are looked for in an image that does not say.
const IMAGE_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// First arguments of the other two processes; no commands for users.
const SUPERVISOR: &str = "run-supervisor";
const INSIDE: &str = "run-inside";
/// As chroot(1) and Docker tell that the command was not even tried.
const NOT_RUN: u8 = 125;

/// Whether this process is the second or the third one of a run; its exit code then.
pub(crate) fn stage(mut args: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let (first, path) = (args.next()?, args.next()?);
    let stage = match first.to_str()? {
        SUPERVISOR => supervisor::supervise,
        INSIDE => inside::become_command,
        _ => return None,
    };
    Some(stage(Path::new(&path)).unwrap_or_else(|failure: (Failure, u8)| {
        let _ = failure.0.report(false);
        ExitCode::from(failure.1)
    }))
}

/// The exit code is the command's.
pub(crate) fn run(context: &Context, args: &Run) -> Result<ExitCode, Failure> {
    mount::can_mount()?;
    let snapshots = snapshot::open(context, &args.common)?;
    let image = names::image(snapshots.store(), &args.what)?;
    let config: Value = serde_json::from_slice(&snapshots.store().image_config(&image)?).unwrap_or_default();
    let command = match args.command.is_empty() {
        true => own_command(&config)?,
        false => args.command.clone(),
    };
    leftover::remove(&snapshots)?;
    let progress = context.progress(None);
    let parent = snapshots.commit_image(&image, &progress)?;
    let (key, labels) = match &args.keep {
        Some(key) => (key.clone(), Labels::new()),
        None => leftover::name(),
    };
    let mounts = snapshots.prepare(&key, parent.as_deref(), &labels, &progress);
    let mounts = mounts.map_err(|e| mount::incomplete(e.into()))?;
    progress.clear();
    let ran = start(&Plan {
        parent: std::process::id(),
        place: snapshots.store().path().join("tmp"),
        mounts: mounts.into_iter().map(Into::into).collect(),
        command,
        env: environment(&config),
        user: args.user.clone().unwrap_or_else(|| config["config"]["User"].as_str().unwrap_or_default().to_owned()),
        directory: config["config"]["WorkingDir"].as_str().unwrap_or_default().to_owned(),
        capabilities: match args.privileged {
            true => capabilities::ALL,
            false => args.cap_add.iter().fold(capabilities::DEFAULT.bits(), |all, more| all | more),
        },
        no_new_privileges: args.no_new_privileges,
        privileged: args.privileged,
    });
    if args.keep.is_none() || ran.is_err() {
        forget(&snapshots, &key)?;
    }
    Ok(ExitCode::from(ran?))
}

fn forget(snapshots: &Snapshotter, key: &str) -> Result<(), Failure> {
    snapshots.remove(key)?;
    snapshots.cleanup()?;
    Ok(())
}

/// Runs the second process, with nothing of this one's environment and nothing of the image in it.
fn start(plan: &Plan) -> Result<u8, Failure> {
    let shared = plan.share()?;
    // This very program, also when another has been installed in its place since.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("layerstore").arg(SUPERVISOR).arg(Plan::path(&shared)).env_clear().current_dir("/");
    let status = command.status().map_err(|e| Error::io("cannot run this program once more", e))?;
    Ok(exit_code(status))
}

/// As a shell tells of a signal.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

/// The command's environment: the image's, and the kind of terminal.
fn environment(config: &Value) -> Vec<String> {
    let terminal = std::env::var("TERM").map(|term| format!("TERM={term}"));
    let own = strings(&config["config"]["Env"]).into_iter().map(str::to_owned);
    terminal.into_iter().chain([IMAGE_PATH.to_owned()]).chain(own).collect()
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
