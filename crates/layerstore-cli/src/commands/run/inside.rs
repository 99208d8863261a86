//! The process that becomes the command, the first of its pid namespace.

use super::NOT_RUN;
use super::capabilities as caps;
use super::plan::Plan;
use super::supervisor::ROOT;
use super::user::{self, User};
use crate::errors::Failure;
use layerstore::{Error, ErrorKind, Result};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_bind, mount_remount, move_mount, open_tree, unmount,
};
use rustix::process::{Signal, fchdir, pivot_root, set_parent_process_death_signal, umask};
use rustix::thread::{
    CapabilitySet, Gid, Uid, capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind as IoKind;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

/// Devices of the host that every command gets.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// What Docker hides and makes read-only below /proc (moby `daemon/pkg/oci/defaults.go`).
const MASKED: [&str; 10] = [
    "acpi",
    "asound",
    "interrupts",
    "kcore",
    "keys",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
    "timer_stats",
];
const READ_ONLY: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];

/// Of file systems whose files give nothing and run nothing.
const INERT: MountAttrFlags =
    MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NODEV).union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// The exit codes of what fails are those of chroot(1).
pub(super) fn become_command(plan: &Path) -> std::result::Result<ExitCode, (Failure, u8)> {
    let plan = prepare(plan).map_err(|e| (e.into(), NOT_RUN))?;
    let (program, rest) = plan.command.split_first().ok_or_else(|| (no_command(), NOT_RUN))?;
    let pairs = plan.env.iter().filter_map(|pair| pair.split_once('=')).filter(|(name, _)| !name.is_empty());
    // Looked for in the PATH that is set here, and so in the image.
    let e = Command::new(program).args(rest).env_clear().envs(pairs).exec();
    let code = if e.kind() == IoKind::NotFound { 127 } else { 126 };
    Err((Error::io(format!("cannot run {}", program.display()), e).into(), code))
}

fn no_command() -> Failure {
    Failure::new(ErrorKind::InvalidInput, "there is no command")
}

fn failed(what: &str) -> impl Fn(Errno) -> Error {
    move |e| Error::io(what, e)
}

/// Everything but the command itself. When this returns, nothing of the host is left to this process.
fn prepare(path: &Path) -> Result<Plan> {
    let mut plan = Plan::read(path)?;
    die_with_parent()?;
    // The table of processes is the host's still, and tells the parent by the host's number.
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).map(str::trim);
    if parent != Some(&plan.parent.to_string()) {
        return Err(Error::new(ErrorKind::Cancelled, "the parent has ended"));
    }
    close_fds::set_fds_cloexec(3, &[]);
    umask(Mode::WGRP | Mode::WOTH);
    // In a user namespace the kernel wants to see another /proc while it makes one.
    let proc = file_system("proc", &[], INERT)?;
    let root = change_root(&plan)?;
    let user = user::find(&root, &plan.user)?;
    mount_proc(&root, &proc, plan.privileged)?;
    drop(proc);
    drop(root);
    if !plan.env.iter().any(|pair| pair.starts_with("HOME=")) {
        plan.env.push(format!("HOME={}", user.home));
    }
    // No directory is open here that a path through /proc could lead to (CVE-2024-21626).
    let directory = Path::new("/").join(&plan.directory);
    fs::create_dir_all(&directory).map_err(|e| Error::io("cannot make the image's working directory", e))?;
    // Not more than there are: a command that gained some when it is executed would outlive its parent (`PDEATHSIG`).
    let own = capabilities(None).map_err(failed("cannot read the capabilities"))?.permitted;
    let kept = CapabilitySet::from_bits_retain(plan.capabilities) & own;
    become_user(&user, kept)?;
    if plan.no_new_privileges {
        set_no_new_privs(true).map_err(failed("cannot forbid new privileges"))?;
    }
    // Changing the user has made the kernel forget it.
    die_with_parent()?;
    let change = std::env::set_current_dir(&directory).and_then(|()| std::env::current_dir());
    change.map_err(|e| Error::io("cannot change to the image's working directory", e).subject(&plan.directory))?;
    Ok(plan)
}

fn die_with_parent() -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed("cannot ask for the parent's end"))
}

/// Makes the image the root, with a /dev of its own, and lets go of the host's files. Returns the root.
fn change_root(plan: &Plan) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let path = plan.place.join(ROOT);
    let root = rustix::fs::open(&path, flags, Mode::empty()).map_err(failed("cannot open the image's root"))?;
    // The last look at the host.
    let clone = |name: &&'static str| {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        Some((*name, open_tree(CWD, Path::new("/dev").join(name), flags).ok()?))
    };
    let devices: Vec<(&str, OwnedFd)> = DEVICES.iter().filter_map(clone).collect();
    fchdir(&root).map_err(failed("cannot change to the image's root"))?;
    // The old root comes to lie on the new one, and goes from there.
    pivot_root(".", ".").map_err(failed("cannot change the root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(failed("cannot let go of the host's files"))?;
    std::env::set_current_dir("/").map_err(|e| Error::io("cannot change to the root", e))?;
    mount_dev(&root, devices)?;
    Ok(root)
}

/// Opens a directory at the root of the image, and makes it if it is missing. Follows no symlink.
fn directory(root: &OwnedFd, name: &str) -> Result<OwnedFd> {
    match mkdirat(root, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(Error::io(format!("cannot make /{name} in the image"), e)),
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    openat2(root, name, flags, Mode::empty(), resolve)
        .map_err(|e| Error::io(format!("cannot mount /{name}: in the image it is no directory"), e))
}

/// A new file system that is attached nowhere yet.
fn file_system(kind: &str, options: &[(&str, &str)], attributes: MountAttrFlags) -> Result<OwnedFd> {
    let make = || {
        let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        options.iter().try_for_each(|(key, value)| fsconfig_set_string(&context, *key, *value))?;
        fsconfig_create(&context)?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    make().map_err(|e| Error::io(format!("cannot mount a file system of type {kind}"), e))
}

fn attach(mount: impl AsFd, place: impl AsFd) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", place, "", flags)
}

/// What is mounted here is the host's own inode: its owner and mode are not the command's to change. Devices can be written
/// to all the same.
fn keep_attributes(path: &Path) -> rustix::io::Result<()> {
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NOEXEC;
    mount_remount(path, flags, "")
}

/// A small /dev. The devices are mounts of the host's: those that a command makes are not obeyed.
fn mount_dev(root: &OwnedFd, devices: Vec<(&str, OwnedFd)>) -> Result<()> {
    let quiet = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let dev = file_system("tmpfs", &[("mode", "0755"), ("size", "65536k")], INERT)?;
    attach(&dev, directory(root, "dev")?).map_err(failed("cannot mount /dev"))?;
    let io = |e| Error::io("cannot make /dev", e);
    let dev = Path::new("/dev");
    for (name, device) in devices {
        let path = dev.join(name);
        let place = File::create_new(&path).map_err(io)?;
        attach(device, place).and_then(|()| keep_attributes(&path)).map_err(failed("cannot mount a device"))?;
    }
    for (name, target) in [("fd", "/proc/self/fd"), ("ptmx", "pts/ptmx")] {
        symlink(target, dev.join(name)).map_err(io)?;
    }
    for (number, name) in ["stdin", "stdout", "stderr"].into_iter().enumerate() {
        symlink(format!("/proc/self/fd/{number}"), dev.join(name)).map_err(io)?;
    }
    // devpts has terminals alone, so that its devices can be obeyed. A user namespace may have no group 5 (tty).
    let terminals = [("mode", "0620"), ("ptmxmode", "0666"), ("gid", "5")];
    let terminals =
        file_system("devpts", &terminals, quiet).or_else(|_| file_system("devpts", &terminals[..2], quiet))?;
    let shared = file_system("tmpfs", &[("mode", "1777"), ("size", "65536k")], INERT)?;
    for (name, mount) in [("pts", terminals), ("shm", shared)] {
        let path = dev.join(name);
        DirBuilder::new().mode(0o755).create(&path).map_err(io)?;
        let place = File::open(&path).map_err(io)?;
        attach(mount, place).map_err(failed("cannot mount below /dev"))?;
    }
    Ok(())
}

fn mount_proc(root: &OwnedFd, proc: &OwnedFd, privileged: bool) -> Result<()> {
    attach(proc, directory(root, "proc")?).map_err(failed("cannot mount /proc"))?;
    if privileged {
        return Ok(());
    }
    for name in MASKED {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let place = match openat2(proc, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Ok(place) => place,
            Err(Errno::NOENT) => continue,
            Err(e) => return Err(Error::io(format!("cannot mask /proc/{name}"), e)),
        };
        let stat = fstat(&place).map_err(failed("cannot mask a file of /proc"))?;
        let mask = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                file_system("tmpfs", &[("mode", "0555")], INERT | MountAttrFlags::MOUNT_ATTR_RDONLY)?
            }
            _ => {
                let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
                open_tree(CWD, "/dev/null", flags).map_err(failed("cannot mask a file of /proc"))?
            }
        };
        let path = Path::new("/proc").join(name);
        attach(mask, place).and_then(|()| keep_attributes(&path)).map_err(failed("cannot mask a file of /proc"))?;
    }
    for name in READ_ONLY {
        let path = Path::new("/proc").join(name);
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        match mount_bind(&path, &path) {
            Err(Errno::NOENT) => continue,
            bound => bound.and_then(|()| mount_remount(&path, flags, "")),
        }
        .map_err(failed("cannot make a part of /proc read-only"))?;
    }
    Ok(())
}

fn groups_are_fixed() -> bool {
    fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() == "deny")
}

fn become_user(user: &User, kept: CapabilitySet) -> Result<()> {
    caps::bound(kept).map_err(failed("cannot give up capabilities"))?;
    let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let set = match set_thread_groups(&groups) {
        // In a user namespace of one user nobody may, and nobody has any groups but that user's own.
        Err(Errno::PERM) if groups.is_empty() && groups_are_fixed() => Ok(()),
        set => set,
    };
    set.and_then(|()| set_thread_res_gid(gid, gid, gid))
        .and_then(|()| set_thread_res_uid(uid, uid, uid))
        .map_err(failed("cannot become the image's user"))?;
    caps::keep(kept, user.uid == 0).map_err(failed("cannot give up capabilities"))
}
