//! Memory while importing does not depend on the layer: at most 256 MiB, whatever it holds.
//!
//! Each layer is imported and exported by a process of its own, whose peak (`VmHWM`) counts. Streams are made as they
//! are read, so no layer is ever whole in memory or on disk.
//!
//! The largest are not run by default. All, with their figures, one after the other, some 15 GB of disk below `$TMPDIR`:
//! `cargo test --release --test memory -- --include-ignored --nocapture --test-threads 1`.

#[path = "hostile/build.rs"]
#[allow(dead_code, reason = "of all builders only the header's is wanted")]
mod build;
mod support;

use layerstore::{ImportOptions, Store};
use std::io::{self, Read};
use std::process::Command;
use std::time::Instant;

const MIB: u64 = 1 << 20;
/// What `docs/LIMITS.md` promises.
const LIMIT: u64 = 256 * MIB;
const CHILD: &str = "LAYERSTORE_TEST_MEMORY_CHILD";

/// A tar of `count` files of `size` bytes each, none like another, made as it is read.
struct Files {
    count: u64,
    size: u64,
    next: u64,
    /// Bytes of the last file's content that are still to come.
    left: u64,
    buffer: Vec<u8>,
    used: usize,
    state: u64,
}

impl Files {
    fn new(count: u64, size: u64) -> Self {
        Self { count, size, next: 0, left: 0, buffer: vec![], used: 0, state: 0x9e37_79b9_7f4a_7c15 }
    }

    /// Eight bytes of noise: splitmix64, which costs little beside what is measured.
    fn noise(&mut self) -> [u8; 8] {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    }

    fn refill(&mut self) {
        self.buffer.clear();
        self.used = 0;
        while self.buffer.len() < 1 << 16 {
            if self.left > 0 {
                let len = self.left.min(8) as usize;
                let noise = self.noise();
                self.buffer.extend_from_slice(&noise[..len]);
                self.left -= len as u64;
                if self.left == 0 {
                    let padding = self.size.next_multiple_of(512) - self.size;
                    self.buffer.resize(self.buffer.len() + padding as usize, 0);
                }
            } else if self.next < self.count {
                let name = format!("d{}/f{}", self.next / 1000, self.next);
                let head = build::Head { size: self.size as i64, ..build::head(name) };
                self.buffer.extend_from_slice(&head.block());
                (self.next, self.left) = (self.next + 1, self.size);
            } else {
                if self.next == self.count {
                    self.buffer.resize(self.buffer.len() + 1024, 0);
                    self.next += 1;
                }
                return;
            }
        }
    }
}

impl Read for Files {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.used == self.buffer.len() {
            self.refill();
        }
        let len = out.len().min(self.buffer.len() - self.used);
        out[..len].copy_from_slice(&self.buffer[self.used..self.used + len]);
        self.used += len;
        Ok(len)
    }
}

/// Does the work if this process is a child; it never returns then.
fn be_the_child() {
    let Ok(work) = std::env::var(CHILD) else { return };
    let (count, rest) = work.split_once(' ').expect("count, size and directory");
    let (size, root) = rest.split_once(' ').expect("count, size and directory");
    let files = Files::new(count.parse().expect("a count"), size.parse().expect("a size"));
    let store = Store::open(root).expect("a store");
    let threads = support::THREADS;
    let done = store.import_layer(files, &ImportOptions::default().threads(threads), &()).expect("a good layer").0;
    let imported = peak();
    store.layer(&done.diff_id).and_then(|l| l.export(&mut io::sink(), threads, &())).expect("a sound layer");
    println!("{imported} {} {}", peak(), done.entries);
    std::process::exit(0);
}

/// `VmHWM` of this process in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).expect("VmHWM");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// Imports and exports such a layer in a child and checks its peak.
fn measure(test: &str, what: &str, count: u64, size: u64, limit: u64) {
    be_the_child();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let work = format!("{count} {size} {}", dir.path().join("store").display());
    let begin = Instant::now();
    let mut child = Command::new(std::env::current_exe().expect("this test"));
    child.args([test, "--exact", "--nocapture", "--include-ignored"]);
    let out = child_output(child.env(CHILD, work));
    let line = out.lines().find(|l| l.split(' ').all(|w| w.parse::<u64>().is_ok())).expect("the child's figures");
    let figures: Vec<u64> = line.split(' ').map(|w| w.parse().expect("a figure")).collect();
    let mib = |bytes: u64| bytes as f64 / MIB as f64;
    println!(
        "{what}: peak {:.0} MiB importing, {:.0} MiB with export, {:.1} s in all",
        mib(figures[0]),
        mib(figures[1]),
        begin.elapsed().as_secs_f64()
    );
    assert_eq!(figures[2], count);
    assert!(figures[1] <= limit, "{what} took {:.0} MiB", mib(figures[1]));
}

fn child_output(command: &mut Command) -> String {
    let out = command.output().expect("this test runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("text")
}

/// A directory 3,900 characters deep, a symlink that leads there, and `count` empty files named through it.
fn deep_layer(count: u64) -> Vec<u8> {
    let names = vec!["n".repeat(250); 15];
    let mut layer = support::layers::Layer::new();
    for depth in 1..=names.len() {
        layer.dir(&names[..depth].join("/"), 0o755);
    }
    layer.symlink("s", &names.join("/"));
    for n in 0..count {
        layer.file(&format!("s/{n}"), b"");
    }
    layer.tar()
}

/// 50,000 entries with short names and paths of 3,900 characters each, 195 MB if they were held: paths are made one at
/// a time.
#[test]
fn lists_below_long_paths() {
    const COUNT: u64 = 50_000;
    if let Ok(root) = std::env::var(CHILD) {
        let store = Store::open(root).expect("a store");
        let options = ImportOptions::default().threads(support::THREADS);
        let layer = store.import_layer(&deep_layer(COUNT)[..], &options, &()).expect("a good layer").0.diff_id;
        let root = store.root(&[layer]).expect("composes");
        let longest = root.list().map(|entry| entry.entry.path.len()).max();
        let listed = root.list().count();
        drop(root);
        let all = store.diff(&[], &[layer], &Default::default(), &()).expect("compares").entries().count();
        let none = store.diff(&[layer], &[layer], &Default::default(), &()).expect("compares").len();
        println!("{} {} {listed} {all} {none}", peak(), longest.unwrap_or_default());
        std::process::exit(0);
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut child = Command::new(std::env::current_exe().expect("this test"));
    child.args(["lists_below_long_paths", "--exact", "--nocapture"]).env(CHILD, dir.path().join("store"));
    let out = child_output(&mut child);
    let line = out.lines().find(|l| l.split(' ').all(|w| w.parse::<u64>().is_ok())).expect("the child's figures");
    let figures: Vec<u64> = line.split(' ').map(|w| w.parse().expect("a figure")).collect();
    println!("lists below long paths: peak {} MiB", figures[0] / MIB);
    assert!(figures[1] > 3700 && figures[2..] == [COUNT + 16, COUNT + 16, 0], "{line}");
    assert!(figures[0] < 150 * MIB, "{line}");
}

#[test]
fn one_large_file() {
    measure("one_large_file", "one file of 1 GiB", 1, 1024 * MIB, LIMIT);
}

#[test]
fn files_of_a_megabyte() {
    measure("files_of_a_megabyte", "1,024 files of 1 MiB", 1024, MIB, LIMIT);
}

/// Ten times as many must stay within the limit too, so these must stay well below it: what grows shows early.
#[test]
fn tiny_files() {
    measure("tiny_files", "1,000,000 files of 40 bytes", 1_000_000, 40, 192 * MIB);
}

#[test]
#[ignore = "takes a minute and 2 GiB of disk; run by hand"]
fn a_file_of_two_gibibytes() {
    measure("a_file_of_two_gibibytes", "one file of 2 GiB", 1, 2048 * MIB, LIMIT);
}

#[test]
#[ignore = "takes minutes and 4 GiB of disk; run by hand"]
fn a_layer_of_four_gibibytes() {
    measure("a_layer_of_four_gibibytes", "4,096 files of 1 MiB", 4096, MIB, LIMIT);
}

/// The most entries a layer may have by default.
#[test]
#[ignore = "takes minutes; run by hand"]
fn ten_million_tiny_files() {
    measure("ten_million_tiny_files", "10,000,000 files of 40 bytes", 10_000_000, 40, LIMIT);
}
