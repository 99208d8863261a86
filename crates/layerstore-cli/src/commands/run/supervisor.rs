//! The process between the host and the command: it makes the namespaces, mounts the image where nobody else can see it,
//! and waits. When it or its parent dies, so does the command.

use super::plan::Plan;
use super::{INSIDE, NOT_RUN, exit_code};
use crate::errors::Failure;
use layerstore::{Error, ErrorKind, Result};
use rustix::fd::OwnedFd;
use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change, mount_remount, move_mount,
    open_tree,
};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use rustix::thread::UnshareFlags;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;

/// What is in the hidden directory: this program, which cannot be written to there; the image; and the plan.
const PROGRAM: &str = "layerstore";
pub(super) const ROOT: &str = "root";
pub(super) const PLAN: &str = "plan";

pub(super) fn supervise(shared: &Path) -> std::result::Result<ExitCode, (Failure, u8)> {
    run(shared).map(ExitCode::from).map_err(|e| {
        let kind = e.kind();
        let failure = Failure::from(e);
        (if kind == ErrorKind::Unsupported { failure.hint("`run` needs root") } else { failure }, NOT_RUN)
    })
}

fn failed(what: &str) -> impl Fn(rustix::io::Errno) -> Error {
    move |e| match e {
        rustix::io::Errno::PERM => Error::new(ErrorKind::Unsupported, what).source(std::io::Error::from(e)),
        e => Error::io(what, e),
    }
}

fn run(shared: &Path) -> Result<u8> {
    let mut plan = Plan::read(shared)?;
    // All that the caller of `layerstore` had open, the plan included.
    close_fds::set_fds_cloexec(3, &[]);
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed("cannot ask for the parent's end"))?;
    if getppid().is_none_or(|parent| parent.as_raw_pid().cast_unsigned() != plan.parent) {
        return Err(Error::new(ErrorKind::Cancelled, "the parent has ended"));
    }
    // A terminal sends these to the command, too, whose end is waited for. As handlers they do not pass on to it.
    let heard = Arc::default();
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        let listening = signal_hook::flag::register(signal, Arc::clone(&heard));
        listening.map_err(|e| Error::io("cannot listen to signals", e))?;
    }
    // What this program is mounted by belongs to the namespace that is about to be left.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let program = open_tree(CWD, "/proc/self/exe", flags).map_err(failed("cannot mount this program"))?;
    separate(UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | UnshareFlags::NEWCGROUP)?;
    let all = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", all).map_err(failed("cannot make the mounts private"))?;
    hide(&plan, &program)?;
    plan.parent = std::process::id();
    let file = plan.place.join(PLAN);
    let json =
        serde_json::to_vec(&plan).map_err(|e| Error::io("cannot hand the command over", std::io::Error::from(e)))?;
    fs::write(&file, json).map_err(|e| Error::io("cannot hand the command over", e))?;
    // Only children are in it, and no thread can be started from here on.
    separate(UnshareFlags::NEWPID)?;
    let mut command = Command::new(plan.place.join(PROGRAM));
    command.arg0("layerstore").arg(INSIDE).arg(&file).env_clear();
    let status = command.status().map_err(|e| Error::io("cannot run this program in the namespaces", e))?;
    Ok(exit_code(status))
}

#[expect(deprecated, reason = "it is unsafe with `FILES` alone, which is not asked for; this crate denies unsafe code")]
fn separate(namespaces: UnshareFlags) -> Result<()> {
    rustix::thread::unshare(namespaces).map_err(failed("cannot make namespaces"))
}

/// Mounts the image and this program on a directory that only this namespace sees, and only root may enter.
fn hide(plan: &Plan, itself: &OwnedFd) -> Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("layerstore-run", &plan.place, "tmpfs", flags, Some(c"mode=0700"))
        .map_err(failed("cannot mount a directory to hide the image in"))?;
    let io = |e| Error::io("cannot make a directory to mount on", e);
    // A command that has itself replaced by this program (`#!/proc/self/exe`) must not be able to write to its file
    // (CVE-2019-5736).
    let program = plan.place.join(PROGRAM);
    File::create_new(&program).map_err(io)?;
    move_mount(itself, "", CWD, &program, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(failed("cannot mount this program"))?;
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    mount_remount(&program, flags, "").map_err(failed("cannot make this program read-only"))?;
    let root = plan.place.join(ROOT);
    DirBuilder::new().mode(0o700).create(&root).map_err(io)?;
    layerstore::mount_all(&plan.mounts(), &root)?;
    if !plan.privileged {
        let flags = MountFlags::BIND | MountFlags::NODEV;
        mount_remount(&root, flags, "").map_err(failed("cannot make the image's devices void"))?;
    }
    Ok(())
}
