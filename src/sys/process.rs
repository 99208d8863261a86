//! Who a process is, so that another can tell whether it still lives.

use std::fs;

/// This process: `<boot id> <pid namespace> <pid> <start time>`. A number that another process gets later does not make
/// it the same one, nor does a reboot. Empty fields where `/proc` does not say.
pub(crate) fn this() -> String {
    let pid = std::process::id();
    format!("{} {} {pid} {}", boot_id(), namespace(), start_time(pid).unwrap_or_default())
}

/// Whether the process that [`this`] described has certainly ended. Of a process in another pid namespace nothing is
/// known.
pub(crate) fn has_ended(owner: &str) -> bool {
    let fields: Vec<&str> = owner.split(' ').collect();
    let [boot, space, pid, start] = fields[..] else { return false };
    let (boot_now, here) = (boot_id(), namespace());
    if boot.is_empty() || boot_now.is_empty() {
        return false;
    }
    if boot != boot_now {
        return true;
    }
    let Ok(pid) = pid.parse::<u32>() else { return false };
    if space != here || here.is_empty() || start.is_empty() || start_time(std::process::id()).is_none() {
        return false;
    }
    start_time(pid).is_none_or(|now| now != start)
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn namespace() -> String {
    let link = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    link.to_string_lossy().into_owned()
}

/// Clock ticks from boot to the process's start: field 22 of `/proc/<pid>/stat` (proc_pid_stat(5)). A zombie has ended.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    // The name, field 2, is in parentheses and may hold anything, those included.
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?;
    let start = fields.nth(18)?.to_owned();
    (!matches!(state, "Z" | "X")).then_some(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAITS: &str = "LAYERSTORE_TEST_WAITS";

    /// What the test below starts: it ends when its input does. As a test it does nothing.
    #[test]
    fn a_process_that_waits() {
        if std::env::var_os(WAITS).is_some() {
            std::io::stdin().lines().for_each(drop);
        }
    }

    #[test]
    fn the_living_live_and_the_dead_do_not() {
        let me = this();
        assert!(!has_ended(&me), "{me}");
        let fields: Vec<_> = me.split(' ').collect();
        let with = |at: usize, value: &str| {
            let mut changed = fields.clone();
            changed[at] = value;
            changed.join(" ")
        };
        assert!(has_ended(&with(0, "another-boot")));
        assert!(!has_ended(&with(1, "pid:[1]")), "nothing is known of other namespaces");
        assert!(has_ended(&with(3, "1")), "the number is another process's now");
        assert!(!has_ended("nonsense") && !has_ended(""));

        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "sys::process::tests::a_process_that_waits", "--nocapture"]).env(WAITS, "yes");
        child.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
        let mut child = child.spawn().unwrap();
        let start = start_time(child.id()).unwrap();
        let owner = [fields[0], fields[1], &child.id().to_string(), &start].join(" ");
        assert!(!has_ended(&owner));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(has_ended(&owner));
    }
}
