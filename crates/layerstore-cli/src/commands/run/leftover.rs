//! Snapshots of runs: named so that those of killed runs can be told, and removed by the next run.

use layerstore::{Labels, Result, SnapshotKind, Snapshotter};
use std::fs;
use std::process;

/// Label of a run's snapshot: which process it is for.
const RUN: &str = "layerstore.run";

/// A process, so that no other is taken for it: when the machine was started, the namespace its number is of, the number,
/// and when it began.
fn process(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold spaces; `starttime` is the twentieth field after it (proc_pid_stat(5)).
    let began = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.to_owned();
    Some(format!("{} {pid} {began}", machine()?))
}

fn machine() -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = fs::read_link("/proc/self/ns/pid").ok()?;
    Some(format!("{} {}", boot.trim(), namespace.display()))
}

/// The key and the labels of this process's snapshot.
pub(super) fn name() -> (String, Labels) {
    let itself = process(process::id()).unwrap_or_default();
    let began = itself.rsplit(' ').next().unwrap_or_default();
    (format!("run-{}-{began}", process::id()), Labels::from([(RUN.to_owned(), itself.clone())]))
}

/// Whether the process that a label names is gone. One in another namespace, which cannot be seen, is not.
fn is_gone(label: &str) -> bool {
    let fields: Vec<&str> = label.split(' ').collect();
    let [boot, namespace, pid, _] = fields[..] else { return false };
    let Some(here) = machine() else { return false };
    if here.split(' ').next() != Some(boot) {
        return true;
    }
    let pid = pid.parse().ok().filter(|_| here == format!("{boot} {namespace}"));
    pid.is_some_and(|pid| process(pid).as_deref() != Some(label))
}

/// Removes what runs left that were killed.
pub(super) fn remove(snapshots: &Snapshotter) -> Result<()> {
    let mut gone = Vec::new();
    snapshots.walk(|info| {
        let left = info.kind == SnapshotKind::Active && info.labels.get(RUN).is_some_and(|label| is_gone(label));
        if left {
            gone.push(info.key);
        }
        Ok(())
    })?;
    for key in &gone {
        match snapshots.remove(key) {
            // Another run is at it, too.
            Err(e) if e.kind() == layerstore::ErrorKind::NotFound => {}
            removed => removed?,
        }
    }
    if gone.is_empty() { Ok(()) } else { snapshots.cleanup().map(drop) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_runs_is_not_gone() {
        let label = name().1.remove(RUN).expect("a label");
        assert!(!is_gone(&label), "{label}");
        let fields: Vec<&str> = label.split(' ').collect();
        let with = |at: usize, field: &str| {
            let mut fields = fields.clone();
            fields[at] = field;
            is_gone(&fields.join(" "))
        };
        assert!(with(0, "another-boot") && with(2, "4194305") && with(3, "1"));
        assert!(!with(1, "pid:[1]"), "another namespace's processes are not seen");
        assert!(!is_gone("") && !is_gone("some text"));
    }
}
