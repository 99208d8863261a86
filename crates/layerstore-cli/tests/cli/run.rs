//! What a command in an image has of the host, and what others have of it: nothing.

use crate::snapshots::{script, with_image_of};
use crate::support::Place;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A command as somebody else of the machine would run it.
fn nobody(program: &str) -> Command {
    let mut command = Command::new(program);
    command.uid(65_534).gid(65_534).current_dir("/").stdin(Stdio::null());
    command
}

/// Waits until a condition holds, for as long as a busy machine may take.
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Processes whose arguments hold this text.
fn processes(text: &str) -> Vec<String> {
    let all = std::fs::read_dir("/proc").expect("procfs").flatten();
    let pids = all.filter_map(|found| found.file_name().into_string().ok()).filter(|name| name.parse::<u32>().is_ok());
    let has = |pid: &String| {
        let args = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&args).contains(text)
    };
    pids.filter(has).collect()
}

/// Ends what a test that fails would leave running.
struct Ended(String);

impl Drop for Ended {
    fn drop(&mut self) {
        for pid in processes(&self.0) {
            let pid = pid.parse().ok().and_then(rustix::process::Pid::from_raw);
            pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL));
        }
    }
}

/// An image is set-user-ID files, too, which run as root for whoever reaches them.
#[test]
fn nobody_else_reaches_the_image_and_a_kill_leaves_nothing() {
    let name = "nobody_else_reaches_the_image_and_a_kill_leaves_nothing";
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: {name}: needs root");
    }
    let Some(place) = with_image_of(name, None, |_| String::new()) else { return };
    let (mark, open) = (format!("{}-mark", place.dir.path().display()), std::fs::Permissions::from_mode(0o755));
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(place.dir.path(), open).expect("set");
    let in_it = || {
        processes(&mark).into_iter().find(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() != "layerstore")
        })
    };
    let command = ["run", "shell:1", "--", "sh", "-c", "while true; do /bin/busybox sleep 1; done", &mark];
    let _ended = Ended(mark.clone());
    let mut run = place.command(&command).spawn().expect("the binary runs");
    eventually("the command runs", || in_it().is_some());
    let inside = in_it().expect("a process");
    let image = format!("/proc/{inside}/root/bin/set-user-id");
    assert!(std::fs::metadata(&image).is_ok(), "root looks at it");
    let seen = std::fs::read_to_string("/proc/self/mountinfo").expect("procfs");
    assert!(!seen.contains(place.path("store/snapshots").to_str().expect("text")), "mounted on the host: {seen}");
    // Through the command's root, and through every directory of the store.
    let store = place.path("store");
    let below = ["tmp", "mounts", "trees", "snapshots"].map(|dir| store.join(dir).display().to_string());
    let targets = [vec![image, store.display().to_string()], below.to_vec()].concat();
    for target in targets {
        let output = nobody("/bin/busybox").args(["ls", &target]).output().expect("busybox runs");
        assert!(!output.status.success(), "{target}: {}", String::from_utf8_lossy(&output.stdout));
    }
    run.kill().expect("killed");
    run.wait().expect("waited for");
    eventually("the command dies with layerstore", || processes(&mark).is_empty());
    // The next run removes what that one could not.
    assert_eq!(place.json(&["snapshot", "ls", "--filter", "kind==active"]).len(), 1);
    place.ok(&["run", "shell:1", "--", "sh", "-c", "true"]);
    assert!(place.json(&["snapshot", "ls", "--filter", "kind==active"]).is_empty());
}

fn with_shell(name: &str) -> Option<Place> {
    with_image_of(name, None, |_| r#""User":"app","WorkingDir":"/srv/new""#.into())
}

#[test]
fn a_command_has_three_descriptors_and_few_capabilities() {
    let name = "a_command_has_three_descriptors_and_few_capabilities";
    let Some(place) = with_shell(name) else { return };
    script(
        &place,
        name,
        r#"
        echo secret > secret; exec 7<secret 8<"$PWD" 9>>secret
        test "$($L run shell:1 --user 0 -- sh -c 'cd /proc/$$/fd; for n in *; do test ! -e $n || echo $n; done' | tr '\n' ' ')" = "0 1 2 "
        test "$($L run shell:1 --user 0 -- /bin/busybox readlink /proc/1/cwd)" = /srv/new
        caps() { $L run shell:1 "$@" -- /bin/busybox grep Cap /proc/self/status | tr '\t\n' '  '; }
        test "$(caps -u 0)" = "CapInh: 0000000000000000 CapPrm: 00000000a80425fb CapEff: 00000000a80425fb CapBnd: 00000000a80425fb CapAmb: 0000000000000000 "
        test "$(caps)" = "CapInh: 0000000000000000 CapPrm: 0000000000000000 CapEff: 0000000000000000 CapBnd: 00000000a80425fb CapAmb: 0000000000000000 "
        case "$(caps -u 0 --cap-add net_admin,CAP_SYS_PTRACE)" in *"CapEff: 00000000a80c35fb "*) ;; *) exit 1;; esac
        test "$(caps -u 0 --privileged)" = "$(caps -u 0 --cap-add ALL)"
        test "$(caps -u 0 --privileged)" != "$(caps -u 0)"
        if $L run shell:1 --cap-add nonsense -- sh; then exit 1; else test $? = 2; fi
        $L run shell:1 -- /bin/busybox grep -q 'NoNewPrivs:.0' /proc/self/status
        $L run shell:1 --no-new-privileges -- /bin/busybox grep -q 'NoNewPrivs:.1' /proc/self/status
        "#,
    );
}

#[test]
fn a_command_runs_as_the_images_user_where_the_image_says() {
    let name = "a_command_runs_as_the_images_user_where_the_image_says";
    let Some(place) = with_shell(name) else { return };
    script(
        &place,
        name,
        r#"
        id() { $L run shell:1 "$@" -- sh -c 'echo $(/bin/busybox id -u) $(/bin/busybox id -g) $(/bin/busybox id -G) $HOME $PWD'; }
        test "$(id)" = "1000 1001 1001 33 /srv/app /srv/new"
        test "$(id --user app:web)" = "1000 33 33 /srv/app /srv/new"
        test "$(id -u 4711)" = "4711 0 0 / /srv/new"
        test "$(id -u 0:0)" = "0 0 0 /root /srv/new"
        if id -u nosuch 2> e; then exit 1; else test $? = 125; fi
        grep -q "the image has no such user" e
        "#,
    );
}

#[test]
fn a_command_sees_nothing_of_the_host() {
    let name = "a_command_sees_nothing_of_the_host";
    let Some(place) = with_shell(name) else { return };
    script(
        &place,
        name,
        r#"
        root() { $L run shell:1 -u 0 "$@"; }
        test "$(root -- sh -c 'echo $$ $(/bin/busybox ls /proc | /bin/busybox grep -c "^[0-9]")' | cut -d' ' -f1)" = 1
        # The mounts are those that were made for it; the image's is the root of all.
        root -- /bin/busybox cut -d' ' -f5 /proc/self/mountinfo > mounts
        test "$(head -1 mounts)" = /
        ! grep -vE '^/$|^/dev(/(null|zero|full|random|urandom|tty|pts|shm))?$|^/proc(/|$)' mounts
        # Masked, read-only, small.
        root -- sh -c 'test -z "$(/bin/busybox cat /proc/keys /proc/timer_list 2>/dev/null)"'
        if root -- sh -c 'echo 1 > /proc/sys/kernel/hostname'; then exit 1; fi
        before=$(stat -c %a:%u /dev/null); root -- sh -c '! /bin/busybox chmod 600 /dev/null; ! /bin/busybox chown 7 /dev/null'
        root -- sh -c '! /bin/busybox chmod 600 /proc/keys'; test "$before" = "$(stat -c %a:%u /dev/null)"
        root -- sh -c 'test ! -e /sys/kernel; echo x > /dev/null; echo y > /dev/shm/y; test -c /dev/tty; test -e /dev/ptmx'
        root --privileged -- sh -c 'echo own > /proc/sys/kernel/hostname'
        # Devices that it makes are not obeyed, anywhere.
        for at in /d /dev/d /dev/shm/d; do
            root -- sh -c "/bin/busybox mknod $at c 1 5 && ! /bin/busybox head -c1 $at" 2> e || { cat e; exit 1; }
        done
        # Its names, messages and processes are its own.
        root --privileged -- /bin/busybox hostname changed; test "$(hostname)" != changed
        for space in mnt pid ipc uts cgroup; do
            test "$(root -- /bin/busybox readlink /proc/1/ns/$space)" != "$(readlink /proc/self/ns/$space)"
        done
        "#,
    );
}

/// A working directory may lead through what the program had open (CVE-2024-21626).
#[test]
fn a_working_directory_does_not_lead_out() {
    let name = "a_working_directory_does_not_lead_out";
    for fd in 3..12 {
        let directory = format!("/proc/self/fd/{fd}");
        let Some(place) = with_image_of(name, None, |_| format!(r#""WorkingDir":"{directory}""#)) else { return };
        let made = script(
            &place,
            name,
            r#"
            exec 3<. 4<. 5<. 6<. 7<. 8<. 9<.
            $L run shell:1 -- sh -c 'test ! -e secret && /bin/busybox pwd' > out 2>&1 && code=0 || code=$?
            test $code = 125 || test $code = 0; ! grep -q "$PWD" out
            "#,
        );
        if !made {
            return;
        }
    }
}

#[test]
fn what_an_image_says_is_escaped() {
    let name = "what_an_image_says_is_escaped";
    let hostile = r"/x\u001b]0;t\u0007\u009b1m\u202e";
    for run in [
        format!(r#""Cmd":["{hostile}"]"#),
        format!(r#""Cmd":["sh"],"User":"{hostile}""#),
        format!(r#""Cmd":["sh"],"WorkingDir":"/bin/sh{hostile}""#),
        format!(r#""Cmd":["sh"],"Labels":{{"{hostile}":"{hostile}"}},"Env":["A={hostile}"]"#),
    ] {
        let Some(place) = with_image_of(name, None, |_| run) else { return };
        let commands: [&[&str]; 4] =
            [&["run", "shell:1"], &["inspect", "shell:1"], &["inspect", "shell:1", "--json"], &["images", "--json"]];
        for command in commands {
            if command[0] == "run" && !rustix::process::geteuid().is_root() {
                continue;
            }
            let output = place.run(command);
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8(text).expect("text");
            let bad = |c: char| (c.is_control() && c != '\n') || matches!(c, '\u{202a}'..='\u{202e}');
            assert!(!text.chars().any(bad), "{command:?}: {text:?}");
        }
    }
}

/// Gives a tree to another user.
fn give_away(path: &std::path::Path, id: u32) {
    std::os::unix::fs::lchown(path, Some(id), Some(id)).expect("root");
    if path.symlink_metadata().expect("there").is_dir() {
        std::fs::read_dir(path).expect("there").flatten().for_each(|found| give_away(&found.path(), id));
    }
}

/// Who may not mount learns it before the image is copied, and at each try.
#[test]
fn without_the_privilege_to_mount_nothing_is_prepared() {
    let name = "without_the_privilege_to_mount_nothing_is_prepared";
    let (place, id) = (Place::new(), 65_534);
    let layer = place.import_layer(&crate::support::small());
    crate::snapshots::with_config(&place, "app:1", &crate::support::small(), &layer, r#","config":{"Cmd":["x"]}"#);
    std::fs::create_dir(place.path("m")).expect("made");
    let root = rustix::process::geteuid().is_root();
    if root {
        give_away(place.dir.path(), id);
    }
    let command = |args: &[&str]| {
        let mut command = place.command(&[args, &["--json"]].concat());
        if root {
            command.uid(id).gid(id);
        }
        command.output()
    };
    for args in [&["mount", "app:1", "m"][..], &["mount", "app:1", "m", "--rw", "--driver", "copy"], &["run", "app:1"]]
    {
        let output = match command(args) {
            Ok(output) => output,
            Err(e) => return println!("skipped: {name}: others cannot run the binary: {e}"),
        };
        let text = String::from_utf8(output.stderr).expect("text");
        let error: serde_json::Value = serde_json::from_str(&text).expect(&text);
        assert_eq!((output.status.code(), &error["kind"]), (Some(7), &"unsupported".into()), "{error}");
        assert!(error["hint"].as_str().is_some_and(|hint| hint.contains("layerstore extract")), "{error}");
        assert_eq!(std::fs::read_dir(place.path("store/snapshots")).expect("there").count(), 0);
    }
    let output = command(&["snapshot", "ls"]).expect("runs");
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
}

/// The command neither shows what another user's store holds nor says that the store is missing.
#[test]
fn a_store_of_another_user_is_not_taken_for_none() {
    let name = "a_store_of_another_user_is_not_taken_for_none";
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: {name}: needs root");
    }
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    place.with_layer();
    std::fs::set_permissions(place.dir.path(), std::fs::Permissions::from_mode(0o755)).expect("set");
    for args in [&["images"][..], &["gc"], &["import", "layer.tar"], &["init"], &["fsck", "--rebuild"]] {
        let mut command = place.command(&[args, &["--json"]].concat());
        let output = match command.uid(65_534).gid(65_534).output() {
            Ok(output) => output,
            Err(e) => return println!("skipped: {name}: others cannot run the binary: {e}"),
        };
        let text = String::from_utf8(output.stderr).expect("text");
        let error: serde_json::Value = serde_json::from_str(&text).expect(&text);
        assert_eq!((output.status.code(), &error["expected"]), (Some(6), &"uid 65534".into()), "{args:?}: {error}");
        assert_eq!(error["hint"], "choose another store with --store DIR", "{args:?}: {error}");
    }
}
