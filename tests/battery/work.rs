//! What the battery's workers do: operations on a store, given as lines and answered as lines.
//!
//! A worker is this test binary run again as a process of its own, so that it can be killed, stopped, starved and
//! watched without harm to the test. An operation counts as acknowledged when the test has read the worker's answer.

use crate::ops::{Answer, Op};
use crate::sys;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Where the worker's store is; set only for workers.
const ROOT: &str = "LAYERSTORE_BATTERY_ROOT";
/// Whether the worker's system calls are to be intercepted.
const TRAPPED: &str = "LAYERSTORE_BATTERY_TRAPPED";

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
