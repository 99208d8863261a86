//! What the battery's workers do: operations on a store, given as lines and answered as lines.
//!
//! A worker is this test binary run again as a process of its own, so that it can be killed, stopped, starved and
//! watched without harm to the test. An operation counts as acknowledged when the test has read the worker's answer.

use crate::build;
use crate::support::{self, noise, words};
use crate::sys;
use layerstore::{Digest, ImportOptions, OpenOptions, RebuildOptions, Result, Store};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeSet;
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

/// Where the worker's store is; set only for workers.
const ROOT: &str = "LAYERSTORE_BATTERY_ROOT";
/// Whether the worker's system calls are to be intercepted.
const TRAPPED: &str = "LAYERSTORE_BATTERY_TRAPPED";

/// Something a worker does. Layers are named by the seed of [`layer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// Opens the store, making it if it is not there.
    Open,
    /// Imports a layer.
    Import(u64),
    /// Imports a layer and keeps its blob.
    Keep(u64),
    /// Lets go of a layer, so that it may be collected.
    Release(u64),
    /// Makes the database anew.
    Rebuild,
    /// The operation before this one once more if it failed, else nothing.
    Again,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open => write!(f, "open"),
            Self::Import(seed) => write!(f, "import {seed}"),
            Self::Keep(seed) => write!(f, "keep {seed}"),
            Self::Release(seed) => write!(f, "release {seed}"),
            Self::Rebuild => write!(f, "rebuild"),
            Self::Again => write!(f, "again"),
        }
    }
}

impl Op {
    fn parse(line: &str) -> Self {
        let (word, seed) = line.trim().split_once(' ').unwrap_or((line.trim(), "0"));
        let seed = seed.parse().expect("a number");
        match word {
            "open" => Self::Open,
            "import" => Self::Import(seed),
            "keep" => Self::Keep(seed),
            "release" => Self::Release(seed),
            "rebuild" => Self::Rebuild,
            "again" => Self::Again,
            _ => panic!("no such operation: {line}"),
        }
    }

    fn run(self, root: &Path, store: &mut Option<Store>) -> Result<()> {
        if self == Self::Rebuild {
            *store = None;
            let options = RebuildOptions::default().threads(support::THREADS);
            let report = Store::rebuild(root, &options, &())?;
            assert!(report.is_clean() && report.unsalvaged.is_empty(), "{report:?}");
            return Ok(());
        }
        if store.is_none() || self == Self::Open {
            *store = None;
            *store = Some(Store::open_with(root, &OpenOptions::default())?);
        }
        let Some(store) = store else { return Ok(()) };
        let options = ImportOptions::default().threads(support::THREADS).patience(Duration::from_secs(30));
        match self {
            Self::Open | Self::Again | Self::Rebuild => Ok(()),
            Self::Import(seed) => store.import_layer(&layer(seed)[..], &options, &()).map(drop),
            Self::Keep(seed) => store.import_layer(&layer(seed)[..], &options.keep_blobs(true), &()).map(drop),
            Self::Release(seed) => store.release_layer(&diff_id(seed)),
        }
    }
}

/// A small layer: files of its own, files it shares with its neighbour, and for every fourth seed enough that a pack
/// is written in several pieces.
pub(crate) fn layer(seed: u64) -> Vec<u8> {
    let own = (0..4).map(|n| build::file(format!("{seed}/small{n}"), words(seed * 10 + n, 1500)));
    let shared = (0..3).map(|n| build::file(format!("shared{n}"), words(seed / 2 * 10 + n, 900)));
    let large = [
        build::file(format!("{seed}/large"), noise(seed, if seed % 4 == 3 { 1_400_000 } else { 70_000 })),
        build::file("shared-large", noise(1000 + seed / 2, 90_000)),
    ];
    let parts: Vec<_> = [build::dir(&format!("{seed}/"))].into_iter().chain(own).chain(shared).chain(large).collect();
    [parts.concat(), vec![0; 1024]].concat()
}

pub(crate) fn diff_id(seed: u64) -> Digest {
    Digest::of(&layer(seed))
}

/// What must be in a store.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expected {
    /// It was acknowledged that there is a store.
    pub(crate) made: bool,
    /// Layers that were acknowledged, and that nobody has begun to let go of.
    pub(crate) layers: BTreeSet<u64>,
}

impl Expected {
    /// The operation is about to begin.
    pub(crate) fn begun(&mut self, op: Op) {
        if let Op::Release(seed) = op {
            self.layers.remove(&seed);
        }
    }

    pub(crate) fn acknowledged(&mut self, op: Op) {
        self.made = true;
        if let Op::Import(seed) | Op::Keep(seed) = op {
            self.layers.insert(seed);
        }
    }

    /// After a worker was given `script` and gave `answers`.
    pub(crate) fn after(&mut self, script: &[Op], answers: &[Answer]) {
        for (n, op) in script.iter().enumerate() {
            self.begun(*op);
            match answers.get(n) {
                Some(Answer::Done(op)) => self.acknowledged(*op),
                Some(Answer::Failed { .. }) => {}
                None => break,
            }
        }
        // What is let go of later in the script may have been when the worker died.
        script.iter().skip(answers.len()).take(1).for_each(|op| self.begun(*op));
    }
}

/// What a worker says of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// For [`Op::Again`], the operation that was done again or needed not be.
    Done(Op),
    Failed {
        op: Op,
        kind: String,
        message: String,
    },
}

/// Serves operations if this process is a worker.
pub(crate) fn serve() {
    let Some(root) = std::env::var_os(ROOT) else { return };
    let mut lines = std::io::stdin().lines().map(|l| l.expect("a line"));
    if std::env::var_os(TRAPPED).is_some() {
        println!("\ntrap {}", sys::intercept().expect("seccomp with user notification"));
        lines.next();
    }
    let (mut store, mut last) = (None, (Op::Open, true));
    for line in lines {
        let (op, done) = match Op::parse(&line) {
            Op::Again => last,
            op => (op, false),
        };
        let result = if done { Ok(()) } else { op.run(root.as_ref(), &mut store) };
        last = (op, result.is_ok());
        match result {
            Ok(()) => println!("\ndone {op}"),
            Err(e) => println!("\nfailed {op}: {}: {}", e.kind(), e.to_string().replace('\n', " ")),
        }
    }
}

/// A worker process. Dropped, it is killed.
pub(crate) struct Worker {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    listener: Option<OwnedFd>,
}

impl Worker {
    /// A worker on the store at `root`.
    pub(crate) fn start(root: &Path) -> Self {
        Self::spawn(root, false)
    }

    /// A worker whose system calls somebody must [`supervise`](crate::trap::supervise).
    pub(crate) fn trapped(root: &Path) -> Self {
        let mut worker = Self::spawn(root, true);
        let fd = worker.line("trap ").expect("a worker that can be trapped").parse().expect("a descriptor");
        worker.listener = Some(sys::borrow_fd(worker.id(), fd).expect("the worker's descriptor"));
        worker.write("go");
        worker
    }

    fn spawn(root: &Path, trapped: bool) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this test"));
        command.args(["a_worker", "--exact", "--nocapture"]).env(ROOT, root);
        if trapped {
            command.env(TRAPPED, "1");
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("this test runs");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { input: child.stdin.take(), child, output, listener: None }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What [`supervise`](crate::trap::supervise) needs of a trapped worker, once.
    pub(crate) fn watch(&mut self) -> Watched {
        Watched { id: self.id(), listener: self.listener.take().expect("a trapped worker") }
    }

    fn write(&mut self, line: &str) {
        // A worker that was killed does not read; what it did not answer is not counted.
        let _ = writeln!(self.input.as_ref().expect("not closed"), "{line}");
    }

    /// Gives it an operation.
    pub(crate) fn send(&mut self, op: Op) {
        self.write(&op.to_string());
    }

    /// Gives it these operations and no more; it ends after the last.
    pub(crate) fn send_all(&mut self, script: &[Op]) {
        script.iter().for_each(|op| self.send(*op));
        self.close();
    }

    /// There are no more operations.
    pub(crate) fn close(&mut self) {
        self.input = None;
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    pub(crate) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// The rest of the next line that begins so; `None` at the end.
    fn line(&mut self, prefix: &str) -> Option<String> {
        let mut line = String::new();
        while self.output.read_line(&mut line).expect("a pipe") > 0 {
            if let Some(rest) = line.strip_suffix('\n').and_then(|l| l.strip_prefix(prefix)) {
                return Some(rest.to_owned());
            }
            line.clear();
        }
        None
    }

    /// Waits for the next answer; `None` if the worker has ended.
    pub(crate) fn answer(&mut self) -> Option<Answer> {
        let mut line = String::new();
        while self.output.read_line(&mut line).expect("a pipe") > 0 {
            // A line without an end was cut off by death, and acknowledges nothing.
            if let Some(whole) = line.strip_suffix('\n') {
                if let Some(op) = whole.strip_prefix("done ") {
                    return Some(Answer::Done(Op::parse(op)));
                }
                if let Some((op, why)) = whole.strip_prefix("failed ").and_then(|rest| rest.split_once(": ")) {
                    let (kind, message) = why.split_once(": ").unwrap_or((why, ""));
                    return Some(Answer::Failed { op: Op::parse(op), kind: kind.into(), message: message.into() });
                }
            }
            line.clear();
        }
        None
    }

    /// All answers there are still to come; then the worker has ended.
    pub(crate) fn answers(&mut self) -> Vec<Answer> {
        self.close();
        std::iter::from_fn(|| self.answer()).collect()
    }
}

/// A worker whose calls are asked about.
pub(crate) struct Watched {
    pub(crate) id: u32,
    pub(crate) listener: OwnedFd,
}

impl Watched {
    pub(crate) fn kill(&self) {
        let _ = kill_process(Pid::from_raw(self.id as i32).expect("not zero"), Signal::KILL);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.listener = None;
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}
