//! Running the binary in a directory of its own, and tars to feed it.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A directory with a store in it.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_layerstore"));
        command.current_dir(self.dir.path()).env("LAYERSTORE_STORE", self.path("store"));
        command.env("TMPDIR", self.dir.path()).args(args).stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the binary runs")
    }

    /// Runs what must succeed, without a word on standard error; its standard output.
    pub(crate) fn ok(&self, args: &[&str]) -> Vec<u8> {
        let output = self.run(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && stderr.is_empty(), "{args:?}: {:?} {stderr}", output.status);
        output.stdout
    }

    pub(crate) fn text(&self, args: &[&str]) -> String {
        String::from_utf8(self.ok(args)).expect("text")
    }

    /// Runs with `--json`; one value per line.
    pub(crate) fn json(&self, args: &[&str]) -> Vec<Value> {
        let text = self.text(&[args, &["--json"]].concat());
        text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    /// Runs what must fail, with `--json`; the exit code and the error.
    pub(crate) fn fails(&self, args: &[&str]) -> (i32, Value) {
        let output = self.run(&[args, &["--json"]].concat());
        let stderr = String::from_utf8(output.stderr).expect("text");
        let error: Value = serde_json::from_str(&stderr).expect(&stderr);
        let code = output.status.code().expect("an exit code");
        assert_eq!(error["exit_code"], code, "{error}");
        (code, error)
    }

    /// Imports the small layer; its diff_id without the algorithm.
    pub(crate) fn with_layer(&self) -> String {
        self.import_layer(&small())
    }

    /// Imports a layer, as `layer.tar`; the digits of its diff_id.
    pub(crate) fn import_layer(&self, tar: &[u8]) -> String {
        std::fs::write(self.path("layer.tar"), tar).expect("written");
        let import = self.json(&["import", "layer.tar"]);
        let id = import[0]["layer"]["diff_id"].as_str().expect("a digest");
        id.trim_start_matches("sha256:").to_owned()
    }
}

/// Bytes that do not compress and hold no repetition.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(next).collect()
}

pub(crate) fn header(kind: tar::EntryType, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(1_700_000_000);
    header.set_uid(7);
    header.set_gid(8);
    header.set_size(0);
    header
}

pub(crate) fn file(tar: &mut tar::Builder<Vec<u8>>, path: impl AsRef<Path>, content: &[u8]) {
    let mut header = header(tar::EntryType::Regular, 0o644);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, path, content).expect("appended");
}

/// A layer with an entry of every sort that `ls` shows.
pub(crate) fn small() -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_data(&mut header(tar::EntryType::Directory, 0o755), "etc", &[][..]).expect("appended");
    file(&mut tar, "etc/motd", b"hello\n");
    file(&mut tar, "etc/big", &noise(700_000));
    file(&mut tar, "etc/.wh.gone", b"");
    file(&mut tar, "opt/.wh..wh..opq", b"");
    file(&mut tar, std::ffi::OsStr::from_bytes(b"etc/caf\xe9"), b"latin\n");
    tar.append_link(&mut header(tar::EntryType::Symlink, 0o777), "etc/link", "motd").expect("appended");
    tar.append_link(&mut header(tar::EntryType::Link, 0o644), "etc/same", "etc/motd").expect("appended");
    tar.into_inner().expect("a tar")
}

/// A place with a layout of `demo:1` and `demo:2`, made of thirty files and those given, all in one directory.
pub(crate) fn with_layout(more: &[(&str, &str)]) -> (Place, String) {
    let place = Place::new();
    let from = place.path("files/sub");
    std::fs::create_dir_all(&from).expect("made");
    for i in 0..30 {
        let content = noise(5_000 * (i + 1)).split_off(i);
        std::fs::write(from.join(format!("{i:02}")), content).expect("written");
    }
    for (name, content) in more {
        std::fs::write(from.join(name), content).expect("written");
    }
    place.ok(&["demo", "--from", "files", "--dir", "made", "--keep", "--quiet"]);
    let kept = std::fs::read_dir(place.path("made")).expect("kept").flatten().next().expect("a directory").path();
    let layout = kept.join("layout").to_str().expect("text").to_owned();
    (place, layout)
}
