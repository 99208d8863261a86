//! A test run again in a cgroup of its own, where the kernel bounds its memory, page cache included.

#![allow(dead_code, reason = "every test uses a part")]

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const INSIDE: &str = "LAYERSTORE_TEST_CGROUP";

/// Runs the calling test, called `name`, again in a cgroup of `limit` bytes of memory, and is true there. Outside it is
/// false once that went well: the test is to return. Where no cgroup can be made it says that the test was skipped.
/// `set` goes on to the test inside.
pub(crate) fn bounded(name: &str, limit: u64, set: &[(&str, &Path)]) -> bool {
    if std::env::var_os(INSIDE).is_some_and(|inside| inside == name) {
        return true;
    }
    let Some(group) = Group::new(limit) else {
        return super::needs::skip(name, "a memory cgroup, which cannot be made here");
    };
    super::needs::run_again(name, "a memory cgroup", |command| {
        group.hold(command);
        command.env(INSIDE, name).envs(set.iter().copied());
    });
    if let Some(peak) = group.peak() {
        println!("{name}: the cgroup's peak was {} MiB of {} MiB", peak >> 20, limit >> 20);
        assert!(peak <= limit);
    }
    false
}

/// A cgroup that goes when it is dropped.
pub(crate) struct Group {
    dir: PathBuf,
}

impl Group {
    /// Below this process's own cgroup, or where that may have none at the hierarchy's root.
    pub(crate) fn new(limit: u64) -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        for mount in fs::read_to_string("/proc/self/mounts").ok()?.lines() {
            let fields: Vec<&str> = mount.split(' ').collect();
            let (root, kind, options) = (Path::new(fields[1]), fields[2], fields[3]);
            let (prefix, file) = match kind {
                "cgroup2" => ("0::", "memory.max"),
                "cgroup" if options.split(',').any(|o| o == "memory") => (":memory:", "memory.limit_in_bytes"),
                _ => continue,
            };
            let path = own.lines().find_map(|line| line.split_once(prefix).map(|(_, path)| path)).unwrap_or("/");
            for below in [root.join(path.trim_start_matches('/')), root.to_owned()] {
                let dir = below.join(format!("layerstore-test-{}", std::process::id()));
                if fs::create_dir(&dir).is_err() {
                    continue;
                }
                let group = Self { dir };
                if group.dir.join(file).exists() && fs::write(group.dir.join(file), limit.to_string()).is_ok() {
                    return Some(group);
                }
            }
        }
        None
    }

    /// The command will run in it.
    #[expect(unsafe_code, reason = "a cgroup is entered between fork and exec; the block says why it is sound")]
    pub(crate) fn hold(&self, command: &mut Command) {
        let procs = fs::File::options().write(true).open(self.dir.join("cgroup.procs")).expect("a cgroup");
        // 0 is whoever writes it (cgroups(7)).
        let enter = move || rustix::io::write(&procs, b"0").map(drop).map_err(Into::into);
        // SAFETY: `enter` makes a system call on a descriptor that is open. It allocates nothing and takes no lock.
        unsafe { command.pre_exec(enter) };
    }

    /// Bytes of page cache that are charged to it.
    pub(crate) fn cache(&self) -> Option<u64> {
        let stat = fs::read_to_string(self.dir.join("memory.stat")).ok()?;
        let field = |name: &str| stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        field("total_cache ").or_else(|| field("file "))
    }

    fn peak(&self) -> Option<u64> {
        let read = |name| fs::read_to_string(self.dir.join(name)).ok();
        read("memory.peak").or_else(|| read("memory.max_usage_in_bytes"))?.trim().parse().ok()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The last process may not be gone yet; an empty cgroup hurts nobody.
        let _ = fs::remove_dir(&self.dir);
    }
}
