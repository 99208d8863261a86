//! Little memory, small stacks, few descriptors; and being told to stop.

use crate::cgroup::Group;
use crate::support::{Place, file, header, noise};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::Write;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// What a machine for one small service gives: descriptors, kibibytes of stack, bytes of memory.
const DESCRIPTORS: u32 = 256;
const STACK: u32 = 512;
const MEMORY: u64 = 128 << 20;

/// The command within all limits that can be set here.
struct Tight {
    place: Place,
    group: Option<Group>,
}

impl Tight {
    fn command(&self, args: &[&str]) -> Command {
        let inner = self.place.command(args);
        let mut command = Command::new("sh");
        let limits = format!("ulimit -n {DESCRIPTORS} && ulimit -s {STACK} && exec \"$0\" \"$@\"");
        command.args(["-c", &limits]).arg(inner.get_program()).args(inner.get_args());
        if let Some(group) = &self.group {
            group.hold(&mut command);
        }
        command.current_dir(self.place.dir.path()).stdin(Stdio::null());
        command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("a shell")
    }

    fn ok(&self, args: &[&str]) -> Vec<u8> {
        let output = self.run(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {:?} {stderr}", output.status);
        output.stdout
    }
}

/// A layer with more of everything than the limits: bytes, directories, names in one directory, depth.
fn large() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for n in 0..30 {
        file(&mut tar, format!("big/{n}"), &noise(5 << 20)[n..]);
    }
    for n in 0..2000 {
        file(&mut tar, format!("wide/{n}/file"), n.to_string().as_bytes());
        file(&mut tar, format!("flat/{n}"), n.to_string().as_bytes());
    }
    let deep = vec!["d"; 600].join("/");
    tar.append_data(&mut header(tar::EntryType::Directory, 0o755), &deep, &[][..]).expect("appended");
    file(&mut tar, format!("{deep}/file"), b"deep");
    tar.into_inner().expect("a tar")
}

#[test]
fn ordinary_work_needs_little() {
    let group = Group::new(MEMORY);
    if group.is_none() {
        println!("skipped: the limit of memory in ordinary_work_needs_little: no memory cgroup can be made here");
    }
    let tight = Tight { place: Place::new(), group };
    fs::write(tight.place.path("layer.tar"), large()).expect("written");
    tight.ok(&["import", "layer.tar", "--quiet"]);
    fs::remove_file(tight.place.path("layer.tar")).expect("removed");
    let layers = tight.place.json(&["layers"]);
    let id = layers[0]["diff_id"].as_str().expect("a digest").trim_start_matches("sha256:");
    assert!(tight.ok(&["ls", id]).len() > 50_000);
    tight.ok(&["export", id, "out.tar", "--quiet"]);
    let drive = ["snapshot", "--driver", "copy"];
    let on = |args: &[&str]| [&drive[..], args].concat().into_iter().map(str::to_owned).collect::<Vec<_>>();
    let run = |args: &[&str]| tight.ok(&on(args).iter().map(String::as_str).collect::<Vec<_>>());
    run(&["prepare", "work", "--quiet"]);
    let found = fs::read_dir(tight.place.path("store/snapshots")).expect("listed").flatten().next();
    let fs_dir = found.expect("a snapshot").path().join("fs");
    for n in 0..500 {
        fs::create_dir(fs_dir.join(n.to_string())).expect("made");
        fs::write(fs_dir.join(n.to_string()).join("f"), noise(10_000 + n)).expect("written");
    }
    run(&["commit", "done", "work", "--quiet"]);
    tight.ok(&["commit", "--help"]);
    tight.ok(&["fsck", "--full", "--quiet"]);
    tight.ok(&["usage"]);
    run(&["rm", "done", "--quiet"]);
    tight.ok(&["rm", id, "--quiet"]);
    tight.ok(&["gc", "--quiet"]);
    tight.ok(&["fsck", "--quiet"]);
    assert!(tight.place.json(&["layers"]).is_empty());
}

fn signal(child: &Child) {
    let pid = Pid::from_raw(child.id() as i32).expect("a process");
    kill_process(pid, Signal::TERM).expect("sent");
}

/// Waits until a process has a handler of its own for SIGTERM.
fn listening(child: &Child) {
    let bit = 1u64 << (Signal::TERM.as_raw() - 1);
    let caught = || {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?.trim().to_owned();
        u64::from_str_radix(&mask, 16).ok()
    };
    while caught().is_none_or(|mask| mask & bit == 0) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The command waits for bytes that never come.
#[test]
fn a_second_signal_ends_at_once() {
    let place = Place::new();
    place.with_layer();
    let mut command = place.command(&["import", "-"]);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().expect("started");
    let mut pipe = child.stdin.take().expect("a pipe");
    pipe.write_all(&noise(100_000)[..600]).expect("written");
    listening(&child);
    signal(&child);
    std::thread::sleep(Duration::from_millis(50));
    signal(&child);
    let code = child.wait().expect("ended").code();
    // The first may have been enough where its bytes were refused meanwhile.
    assert!(matches!(code, Some(143 | 11 | 4 | 5)), "{code:?}");
    drop(pipe);
}

/// 70,000 blocks, a hole of 4 MiB between each two: what is dense there would take minutes.
#[test]
fn a_commit_of_many_holes_is_stopped_by_a_signal() {
    let place = Place::new();
    place.with_layer();
    let drive = ["snapshot", "--driver", "copy"];
    place.ok(&[&drive[..], &["prepare", "work", "--quiet"]].concat());
    let found = fs::read_dir(place.path("store/snapshots")).expect("listed").flatten().next();
    let holes = fs::File::create(found.expect("a snapshot").path().join("fs/holes")).expect("made");
    for n in 0..70_000u64 {
        if std::os::unix::fs::FileExt::write_all_at(&holes, b"x", n << 22).is_err() {
            println!("skipped: a_commit_of_many_holes_is_stopped_by_a_signal: the file system holds no such file");
            return;
        }
    }
    let mut command = place.command(&[&drive[..], &["commit", "done", "work", "--quiet"]].concat());
    let mut child = command.stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("started");
    listening(&child);
    signal(&child);
    assert_eq!(child.wait().expect("ended").code(), Some(11));
    assert_eq!(place.json(&["layers"]).len(), 1);
}
