//! Death at any moment: at every mutating system call of a small workload, and at random times with several processes.

use crate::long;
use crate::ops::{Expected, Op};
use crate::power::fresh;
use crate::support::noise;
use crate::task::Task;
use crate::trap::{Call, Verdict, supervise};
use crate::verify::check;
use crate::volume::{Kind, may_mount, memory_dir};
use crate::work::Worker;
use std::path::Path;
use std::time::{Duration, Instant};

/// Kills at the `n`th mutating call, counted from 0.
fn kill_at(task: &Task, root: &Path, n: usize) {
    let mut expected = task.begin(root);
    let mut worker = Worker::trapped(root);
    worker.send_all(task.script);
    let calls = supervise(&worker.watch(), root, |at, _| if at == n { Verdict::Kill } else { Verdict::Allow });
    expected.after(task.script, &worker.answers());
    drop(worker);
    let call = calls.last().map(|c| c.label()).unwrap_or_default();
    check(root, &expected).unwrap_or_else(|e| panic!("{}: killed at call {n}, after '{call}': {e}", task.name));
    std::fs::remove_dir_all(root).expect("nothing is mounted there");
}

/// Most calls that the short form kills at.
const SHORT: usize = 80;

/// The numbers of the calls to be killed at: all, but in the short form some [`SHORT`] of them, evenly spread, and none
/// on a store that a repair makes for itself.
fn moments(task: &Task, root: &Path) -> Vec<usize> {
    task.begin(root);
    let mut worker = Worker::trapped(root);
    worker.send_all(task.script);
    let calls = supervise(&worker.watch(), root, |_, _| Verdict::Allow);
    drop(worker);
    std::fs::remove_dir_all(root).expect("nothing is mounted there");
    let counts = |call: &Call| long() || !call.label().contains("/SESSION/donor");
    let all: Vec<usize> = calls.iter().enumerate().filter(|(_, call)| counts(call)).map(|(n, _)| n).collect();
    let step = if long() { 1 } else { all.len().div_ceil(SHORT) };
    all.into_iter().step_by(step.max(1)).collect()
}

fn killed_at_every_mutating_call(task: &Task, least: usize) {
    if !may_mount() {
        return;
    }
    let kinds = if long() { &Kind::ALL[..] } else { &Kind::ALL[..1] };
    for kind in kinds.iter().filter(|kind| kind.is_there()) {
        let (dir, begin) = (memory_dir(), Instant::now());
        let mounted = fresh(*kind, dir.path());
        let root = mounted.store();
        let moments = moments(task, &root);
        let count = moments.len();
        moments.into_iter().for_each(|n| kill_at(task, &root, n));
        assert!(count > least, "{count} calls are less than such a workload makes");
        let (kind, name, seconds) = (kind.name(), task.name, begin.elapsed().as_secs_f64());
        println!("{kind}: killed at {count} mutating calls of {name}, in {seconds:.0} s");
    }
}

#[test]
fn killed_at_every_mutating_call_of_work() {
    killed_at_every_mutating_call(&Task::small(), if long() { 200 } else { 50 });
}

#[test]
fn killed_at_every_mutating_call_of_a_repair() {
    killed_at_every_mutating_call(&Task::mend(), if long() { 50 } else { 30 });
}

/// What one of several processes does in a round: `own` is the first of four seeds that only it has.
fn script(round: u64, process: u64, own: u64) -> Vec<Op> {
    // One layer that all want, some of their own, and one to let go of.
    let mut script = vec![
        Op::Open,
        Op::Import(round % 7),
        Op::Commit(own),
        Op::Keep(own + 1),
        Op::Release(own + 1),
        Op::Import(own + 2),
    ];
    match process {
        // Those who collect garbage begin with what the rounds before left, and meet the others at different places.
        0 => script.insert(1, Op::Gc),
        1 => script.splice(2..2, [Op::Gc, Op::Adopt(own + 3), Op::Gc]).for_each(drop),
        _ => script.insert(5, Op::Adopt(own + 3)),
    }
    script
}

/// Four processes on one store, all killed at a random moment; the store lives on to the next round.
#[test]
fn killed_at_random_moments() {
    const PROCESSES: u64 = 4;
    let rounds = if long() { 1000 } else { 25 };
    let (dir, begin) = (memory_dir(), Instant::now());
    let root = dir.path().join("store");
    let mut expected = Expected::default();
    let (mut acknowledged, mut collected) = (0, 0);
    for round in 0..rounds {
        let random = noise(round, 2);
        let script = |process: u64| script(round, process, 100 + (round * PROCESSES + process) * 4);
        let mut workers: Vec<_> = (0..PROCESSES).map(|_| Worker::start(&root)).collect();
        (0..).zip(&mut workers).for_each(|(process, worker)| worker.send_all(&script(process)));
        std::thread::sleep(Duration::from_micros(u64::from(u16::from_le_bytes([random[0], random[1]])) * 5));
        workers.iter().for_each(Worker::kill);
        for (process, mut worker) in (0..).zip(workers) {
            let (script, answers) = (script(process), worker.answers());
            acknowledged += answers.len();
            collected += script.iter().zip(&answers).filter(|(op, _)| **op == Op::Gc).count();
            expected.after(&script, &answers);
        }
        check(&root, &expected).unwrap_or_else(|e| panic!("round {round}: {e}"));
        // Verifying all that ever was would be quadratic: begin anew now and then.
        if round % 10 == 9 {
            std::fs::remove_dir_all(&root).expect("nothing is mounted there");
            expected = Expected::default();
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "killed {PROCESSES} processes at {rounds} random moments, {acknowledged} acknowledgements, {collected} of them of \
         gc, in {seconds:.0} s"
    );
    assert!(collected > 0, "no process came to collecting garbage");
}
