//! Pipes and signals: quiet where nobody looks, clean when somebody leaves.

use crate::support::{Place, noise, small};
use std::io::{Read, Write};
use std::process::Stdio;
use std::time::Duration;

#[test]
fn a_layer_comes_from_a_pipe_without_progress() {
    let place = Place::new();
    let mut child = place.command(&["import", "-"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
    child.stdin.take().expect("a pipe").write_all(&small()).expect("written");
    let output = child.wait_with_output().expect("ended");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("new"), "{output:?}");
    assert!(place.text(&["import", "--help"]).contains("EXAMPLES"));
}

#[test]
fn quiet_prints_only_what_was_asked_for() {
    let place = Place::new();
    let id = place.with_layer();
    std::fs::write(place.path("again.tar"), small()).expect("written");
    assert!(place.ok(&["import", "again.tar", "--quiet"]).is_empty());
    assert!(place.ok(&["export", &id, "out.tar", "--quiet"]).is_empty());
    assert!(!place.ok(&["ls", &id, "--quiet"]).is_empty());
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let place = Place::new();
    let id = place.with_layer();
    let mut tar = tar::Builder::new(Vec::new());
    (0..3000).for_each(|i| crate::support::file(&mut tar, format!("a-name-that-takes-its-place/{i}"), b""));
    std::fs::write(place.path("many.tar"), tar.into_inner().expect("a tar")).expect("written");
    let many = &place.json(&["import", "many.tar"])[0]["layer"]["diff_id"];
    let many = many.as_str().expect("a digest");
    // More than a pipe holds, so that none of them can be done before the reader is gone.
    for args in [&["export", &id, "-"][..], &["ls", many], &["cat", &id, "etc/big"]] {
        let mut child = place.command(args);
        let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("ended");
        assert_eq!(output.status.code(), Some(141), "{args:?}");
        assert!(output.stderr.is_empty(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn ctrl_c_stops_an_import_and_leaves_nothing() {
    let place = Place::new();
    place.with_layer();
    let mut child = place.command(&["import", "-"]);
    let mut child = child.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
    let mut pipe = child.stdin.take().expect("a pipe");
    let mut tar = tar::Builder::new(Vec::new());
    crate::support::file(&mut tar, "big", &noise(8 << 20));
    let tar = tar.into_inner().expect("a tar");
    pipe.write_all(&tar[..4 << 20]).expect("written");
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT)
        .expect("a living child");
    // The import is waiting for its input; more of it lets it see the signal. It may be gone before it reads all.
    std::thread::sleep(Duration::from_millis(200));
    let _ = pipe.write_all(&tar[4 << 20..]);
    drop(pipe);
    let status = child.wait().expect("ended");
    let mut stderr = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut stderr).expect("text");
    assert_eq!(status.code(), Some(11), "{stderr}");
    assert!(stderr.starts_with("error: ") && stderr.contains("hint: nothing was changed"), "{stderr}");
    assert_eq!(place.json(&["layers"]).len(), 1);
    assert_eq!(std::fs::read_dir(place.path("store/tmp")).expect("listed").count(), 0);
}

#[test]
fn completions_exist_for_every_shell() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(place.text(&["completions", shell]).contains("layerstore"), "{shell}");
    }
}
