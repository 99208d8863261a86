//! Failing system calls: each gives a typed error, nothing is half done, and the same again succeeds.

use crate::long;
use crate::ops::{Answer, Op};
use crate::power::fresh;
use crate::strict::is_needed;
use crate::task::Task;
use crate::trap::{Call, Verdict, supervise};
use crate::verify::check;
use crate::volume::{Kind, may_mount, memory_dir};
use crate::work::Worker;
use std::collections::HashSet;
use std::path::Path;
use std::time::Instant;

const FAULTS: [(&str, Verdict); 4] = [
    ("EIO", Verdict::Fail(libc::EIO)),
    ("ENOSPC", Verdict::Fail(libc::ENOSPC)),
    ("EINTR", Verdict::Fail(libc::EINTR)),
    ("a short write", Verdict::Short),
];

/// Every operation is tried again if it fails, by the same process with the store still open.
fn script(task: &Task) -> Vec<Op> {
    task.script.iter().flat_map(|op| [*op, Op::Again]).collect()
}

/// The call that failed, and whether it was a sync of a file that nothing had been written to since its last one.
struct Hit {
    call: Call,
    idle: bool,
}

/// Runs the script with one fault at the `n`th call; that call, if there were so many, and what was answered.
fn run(script: &[Op], root: &Path, n: usize, fault: Verdict) -> (Option<Hit>, Vec<Answer>) {
    let mut worker = Worker::trapped(root);
    worker.send_all(script);
    let (mut hit, mut written) = (None, HashSet::new());
    supervise(&worker.watch(), root, |at, call| {
        let idle = call.is_sync() && !written.remove(&call.path);
        // Opening it, or setting its owner, writes nothing to it.
        if matches!(call.name, "write" | "pwrite64" | "ftruncate") {
            written.insert(call.path.clone());
        }
        if at != n {
            return Verdict::Allow;
        }
        hit = Some(Hit { call: call.clone(), idle });
        fault
    });
    (hit, worker.answers())
}

fn check_answers(answers: &[Answer], script: &[Op], hit: &Hit, fault: Verdict) -> Result<(), String> {
    let call = &hit.call;
    if answers.len() != script.len() {
        return Err("the worker died".into());
    }
    for two in answers.chunks(2) {
        if let Answer::Failed { kind, message, .. } = &two[0]
            && kind != "io"
        {
            return Err(format!("an error of kind {kind}: {message}"));
        }
        if let Answer::Failed { message, .. } = &two[1] {
            return Err(format!("tried again it failed again: {message}"));
        }
    }
    // A sync that failed must never count as done, if anything depends on it. Those of the database file itself belong to
    // checkpoints, which are tried again when the log is needed next, and begin with one of the log, whose commits have all
    // been synced; interrupted ones are repeated. SQLite takes a failed sync of the store's directory for a good one, which
    // is why the store does that again: only one of the two fails here.
    let failed = answers.iter().any(|a| matches!(a, Answer::Failed { .. }));
    let checkpoint = call.path.ends_with("index.db") || hit.idle && call.path.ends_with("index.db-wal");
    let again = checkpoint || matches!(call.path.to_str(), Some("" | "." | "./"));
    let matters = call.is_sync() && is_needed(&call.label()) && !again && fault == Verdict::Fail(libc::EIO);
    if matters && !failed { Err("a failed sync went unnoticed".into()) } else { Ok(()) }
}

/// As many faults as this, or all in the long form, evenly spread. Returns how many, and how many of them were reported.
fn inject(task: &Task, root: &Path, wanted: usize) -> (usize, usize) {
    let script = script(task);
    let (mut count, mut noticed) = (0, 0);
    task.begin(root);
    let mut worker = Worker::trapped(root);
    worker.send_all(&script);
    let calls = supervise(&worker.watch(), root, |_, _| Verdict::Allow).len();
    drop(worker);
    std::fs::remove_dir_all(root).expect("nothing is mounted there");
    let step = if long() { 1 } else { (calls * FAULTS.len()).div_ceil(wanted) };
    for (turn, (name, fault)) in FAULTS.into_iter().enumerate() {
        // A retry makes calls that the run without a fault had not; they are reached by their number all the same.
        for n in (turn * step / FAULTS.len()..).step_by(step) {
            let mut expected = task.begin(root);
            let (hit, answers) = run(&script, root, n, fault);
            let Some(hit) = hit else { break };
            expected.after(&script, &answers);
            let result = check_answers(&answers, &script, &hit, fault).and_then(|()| check(root, &expected));
            result.unwrap_or_else(|e| panic!("{name} at call {n}, {}: {e}\n{answers:#?}", hit.call.label()));
            std::fs::remove_dir_all(root).expect("nothing is mounted there");
            count += 1;
            noticed += usize::from(answers.iter().any(|a| matches!(a, Answer::Failed { .. })));
        }
        std::fs::remove_dir_all(root).expect("nothing is mounted there");
    }
    (count, noticed)
}

fn every_call_can_fail(task: &Task, wanted: usize) {
    if !may_mount() || !Kind::Ext4.is_there() {
        return;
    }
    let (begin, dir) = (Instant::now(), memory_dir());
    let mounted = fresh(Kind::Ext4, dir.path());
    let (count, noticed) = inject(task, &mounted.store(), wanted);
    let seconds = begin.elapsed().as_secs_f64();
    println!("{}: {count} faults, {noticed} of them reported, in {seconds:.0} s", task.name);
    assert!(count >= wanted / 2 && noticed > count / 4);
}

#[test]
fn every_call_of_work_can_fail() {
    every_call_can_fail(&Task::small(), 80);
}

#[test]
fn every_call_of_a_repair_can_fail() {
    every_call_can_fail(&Task::mend(), 30);
}
