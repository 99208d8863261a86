//! What a test needs of the machine. Where that is missing, the test prints `skipped: TEST: needs X` and returns.
//!
//! This file uses nothing else of the tests' support: the tests of other packages include it too.

#![allow(dead_code, reason = "every test uses a part")]

use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{CapabilitySet, UnshareFlags, capabilities, unshare_unsafe};
use std::fmt::Display;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// A line of a test run again that begins so names what the machine lacks; see [`leave_off`].
const LACKS: &str = "lacks: ";

/// Says that a test was skipped and why; always false.
pub(crate) fn skip(test: &str, need: impl Display) -> bool {
    println!("skipped: {test}: needs {need}");
    false
}

/// Whether this is root with all that tests do as root: mounts, devices, other owners, attributes of all kinds. Root of
/// a container often lacks some of it.
pub(crate) fn root(test: &str) -> bool {
    root_lacks().is_none_or(|lack| skip(test, lack))
}

fn root_lacks() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("root".into());
    }
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    if !map.split_ascii_whitespace().eq(["0", "0", "4294967295"]) {
        return Some("root of the machine, not of a user namespace, and /proc".into());
    }
    let wanted = [
        (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN"),
        (CapabilitySet::MKNOD, "CAP_MKNOD"),
        (CapabilitySet::CHOWN, "CAP_CHOWN"),
        (CapabilitySet::FOWNER, "CAP_FOWNER"),
        (CapabilitySet::FSETID, "CAP_FSETID"),
        (CapabilitySet::DAC_OVERRIDE, "CAP_DAC_OVERRIDE"),
        (CapabilitySet::SETFCAP, "CAP_SETFCAP"),
        (CapabilitySet::SETUID, "CAP_SETUID"),
    ];
    let own = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    let lacking: Vec<_> = wanted.iter().filter(|(one, _)| !own.contains(*one)).map(|(_, name)| *name).collect();
    (!lacking.is_empty()).then(|| format!("root with {}", lacking.join(", ")))
}

/// Whether all these programs are installed.
pub(crate) fn programs(test: &str, names: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<_> = std::env::split_paths(&path).collect();
    let missing = names.iter().find(|name| !dirs.iter().any(|dir| dir.join(name).is_file()));
    missing.is_none_or(|name| skip(test, format!("the program {name}")))
}

/// The command will run with mounts of its own, which end with it.
#[expect(unsafe_code, reason = "namespaces are entered between fork and exec; each block says why it is sound")]
pub(crate) fn own_mounts(command: &mut Command) -> &mut Command {
    let enter = || {
        // SAFETY: only `UnshareFlags::FILES` can break what other threads rely on, and the child has no other.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        Ok(())
    };
    // SAFETY: `enter` makes two system calls. It allocates nothing and takes no lock.
    unsafe { command.pre_exec(enter) }
}

/// The command will run in a user namespace of its own, in which no user is mapped yet.
#[expect(unsafe_code, reason = "namespaces are entered between fork and exec; each block says why it is sound")]
pub(crate) fn own_users(command: &mut Command) -> &mut Command {
    let enter = || {
        // SAFETY: only `UnshareFlags::FILES` can break what other threads rely on, and the child has no other.
        unsafe { unshare_unsafe(UnshareFlags::NEWUSER) }?;
        Ok(())
    };
    // SAFETY: `enter` makes a system call. It allocates nothing and takes no lock.
    unsafe { command.pre_exec(enter) }
}

/// The command will run as root of a user namespace of its own, in which nobody else is mapped.
#[expect(unsafe_code, reason = "namespaces are entered between fork and exec; each block says why it is sound")]
pub(crate) fn as_root_of_own_users(command: &mut Command) -> &mut Command {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let maps = [format!("0 {uid} 1"), format!("0 {gid} 1")];
    let map = move || {
        // Whoever may not set groups may map one (user_namespaces(7)).
        for (file, text) in [("setgroups", "deny"), ("uid_map", &maps[0]), ("gid_map", &maps[1])] {
            let path = ["/proc/self/", file];
            write_file(path, text.as_bytes())?;
        }
        Ok(())
    };
    // SAFETY: `map` makes system calls. It allocates nothing and takes no lock.
    unsafe { own_users(command).pre_exec(map) }
}

fn write_file(path: [&str; 2], bytes: &[u8]) -> io::Result<()> {
    use rustix::fs::{Mode, OFlags, open, openat};
    let dir = open(path[0], OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let file = openat(dir, path[1], OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(file, bytes)?;
    Ok(())
}

/// Whether the kernel refused what [`own_mounts`] or [`own_users`] ask for, as it does in a chroot or a container.
pub(crate) fn refused(error: &io::Error) -> bool {
    const CODES: [Errno; 6] = [Errno::ACCESS, Errno::INVAL, Errno::NOSPC, Errno::NOSYS, Errno::PERM, Errno::USERS];
    Errno::from_io_error(error).is_some_and(|code| CODES.contains(&code))
}

/// Runs the test `name` of this binary once more, as a process that `change` prepares. Says that the test was skipped
/// where the kernel refuses what `change` asks for, which is `what`, and where the test inside left off.
pub(crate) fn run_again(name: &str, what: &str, change: impl FnOnce(&mut Command)) {
    let mut command = Command::new(std::env::current_exe().expect("a test binary"));
    command.args(["--exact", name, "--nocapture"]);
    change(&mut command);
    let output = match command.output() {
        Err(e) if refused(&e) => {
            skip(name, format!("{what}, which the kernel refuses here: {e}"));
            return;
        }
        output => output.expect("this test runs"),
    };
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    if let Some(lack) = text.lines().find_map(|line| line.strip_prefix(LACKS)) {
        skip(name, lack);
        return;
    }
    assert!(output.status.success() && text.contains("1 passed"), "{:?}\n{text}", output.status);
    // What it says of itself, without the harness's own lines.
    let told = |line: &&str| line.contains(": ") && !line.starts_with("test ");
    text.lines().filter(told).for_each(|line| println!("{line}"));
}

/// Ends a test that [`run_again`] runs, as the machine lacks something; the test that ran it says so.
pub(crate) fn leave_off(lack: impl Display) -> ! {
    panic!("\n{LACKS}{lack}")
}
