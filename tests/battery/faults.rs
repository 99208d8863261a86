//! Failing system calls: each gives a typed error, nothing is half done, and the same again succeeds.

use crate::long;
use crate::power::fresh;
use crate::trap::{Call, Verdict, supervise};
use crate::verify::check;
use crate::volume::{Kind, may_mount, memory_dir};
use crate::work::{Answer, Expected, Op, Worker};
use std::path::Path;
use std::time::Instant;

/// Every operation is tried again if it fails, by the same process with the store still open.
const SCRIPT: &[Op] = &[
    Op::Open,
    Op::Again,
    Op::Import(2),
    Op::Again,
    Op::Keep(3),
    Op::Again,
    Op::Release(2),
    Op::Again,
    Op::Import(4),
    Op::Again,
    Op::Rebuild,
    Op::Again,
];

const FAULTS: [(&str, Verdict); 4] = [
    ("EIO", Verdict::Fail(libc::EIO)),
    ("ENOSPC", Verdict::Fail(libc::ENOSPC)),
    ("EINTR", Verdict::Fail(libc::EINTR)),
    ("a short write", Verdict::Short),
];

/// Runs the script with one fault at the `n`th call; that call, if there were so many, and what was answered.
fn run(root: &Path, n: usize, fault: Verdict) -> (Option<Call>, Vec<Answer>) {
    let mut worker = Worker::trapped(root);
    worker.send_all(SCRIPT);
    let mut hit = None;
    supervise(&worker.watch(), root, |at, call| {
        if at != n {
            return Verdict::Allow;
        }
        hit = Some(call.clone());
        fault
    });
    (hit, worker.answers())
}

fn check_answers(answers: &[Answer], call: &Call, fault: Verdict) -> Result<(), String> {
    if answers.len() != SCRIPT.len() {
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
    // A sync that failed must never count as done. Those of the database file itself belong to checkpoints, which are
    // tried again when the log is needed next; interrupted ones are repeated. SQLite takes a failed sync of the store's
    // directory for a good one, which is why the store does that again: only one of the two fails here.
    let failed = answers.iter().any(|a| matches!(a, Answer::Failed { .. }));
    let again = call.path.ends_with("index.db") || matches!(call.path.to_str(), Some("" | "." | "./"));
    let matters = call.is_sync() && !again && fault == Verdict::Fail(libc::EIO);
    if matters && !failed { Err("a failed sync went unnoticed".into()) } else { Ok(()) }
}

#[test]
fn every_call_can_fail() {
    if !may_mount() {
        return;
    }
    let begin = Instant::now();
    let dir = memory_dir();
    let mounted = fresh(Kind::Ext4, dir.path());
    let root = mounted.store();
    // All of them in the long form, else about 200.
    let step = if long() { 1 } else { 7 };
    let (mut count, mut noticed) = (0, 0);
    for (turn, (name, fault)) in FAULTS.into_iter().enumerate() {
        let mut n = turn;
        loop {
            let (call, answers) = run(&root, n, fault);
            let Some(call) = call else { break };
            let mut expected = Expected::default();
            expected.after(SCRIPT, &answers);
            let result = check_answers(&answers, &call, fault).and_then(|()| check(&root, &expected));
            result.unwrap_or_else(|e| panic!("{name} at call {n}, {}: {e}\n{answers:#?}", call.label()));
            std::fs::remove_dir_all(&root).unwrap();
            count += 1;
            noticed += usize::from(answers.iter().any(|a| matches!(a, Answer::Failed { .. })));
            n += step;
        }
        std::fs::remove_dir_all(&root).unwrap();
    }
    println!("{count} faults, {noticed} of them reported, in {:.0} s", begin.elapsed().as_secs_f64());
    assert!(count >= 100);
}
