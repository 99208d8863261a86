//! Death at any moment: at every mutating system call of a small workload, and at random times with several processes.

use crate::long;
use crate::power::fresh;
use crate::support::noise;
use crate::trap::{Verdict, supervise};
use crate::verify::check;
use crate::volume::{Kind, may_mount, memory_dir};
use crate::work::{Expected, Op, Worker};
use std::path::Path;
use std::time::{Duration, Instant};

/// A small workload in which every step of making a store, importing and rebuilding occurs.
pub(crate) const SMALL: &[Op] = &[Op::Open, Op::Import(2), Op::Keep(3), Op::Release(2), Op::Import(4), Op::Rebuild];

/// Kills at the `n`th mutating call, counted from 0; whether it came to that many.
fn kill_at(root: &Path, n: usize) -> bool {
    let mut worker = Worker::trapped(root);
    worker.send_all(SMALL);
    let calls = supervise(&worker.watch(), root, |at, _| if at == n { Verdict::Kill } else { Verdict::Allow });
    let mut expected = Expected::default();
    expected.after(SMALL, &worker.answers());
    drop(worker);
    let call = calls.last().map(|c| c.label()).unwrap_or_default();
    check(root, &expected).unwrap_or_else(|e| panic!("killed at call {n}, after '{call}': {e}"));
    calls.len() == n
}

#[test]
fn killed_at_every_mutating_call() {
    if !may_mount() {
        return;
    }
    let kinds = if long() { &Kind::ALL[..] } else { &Kind::ALL[..1] };
    for kind in kinds.iter().filter(|kind| kind.is_there()) {
        let (dir, begin) = (memory_dir(), Instant::now());
        let mounted = fresh(*kind, dir.path());
        let root = mounted.store();
        let mut count = 0;
        while kill_at(&root, count) {
            std::fs::remove_dir_all(&root).unwrap();
            count += 1;
        }
        assert!(count > 100, "{count} calls are less than such a workload makes");
        let (name, seconds) = (kind.name(), begin.elapsed().as_secs_f64());
        println!("{name}: killed at each of {count} mutating calls in {seconds:.0} s");
    }
}

/// Four processes on one store, all killed at a random moment; the store lives on to the next round.
#[test]
fn killed_at_random_moments() {
    const PROCESSES: u64 = 4;
    let rounds = if long() { 1000 } else { 100 };
    let (dir, begin) = (memory_dir(), Instant::now());
    let root = dir.path().join("store");
    let mut expected = Expected::default();
    let mut acknowledged = 0;
    for round in 0..rounds {
        let random = noise(round, 2);
        let script = |process: u64| {
            let own = 100 + (round * PROCESSES + process) * 4;
            // One layer that all want, some of their own, and one to let go of.
            [Op::Open, Op::Import(round % 7), Op::Import(own), Op::Keep(own + 1), Op::Release(own), Op::Import(own + 2)]
        };
        let mut workers: Vec<_> = (0..PROCESSES).map(|_| Worker::start(&root)).collect();
        (0..).zip(&mut workers).for_each(|(process, worker)| worker.send_all(&script(process)));
        std::thread::sleep(Duration::from_micros(u64::from(u16::from_le_bytes([random[0], random[1]])) * 5));
        workers.iter().for_each(Worker::kill);
        for (process, mut worker) in (0..).zip(workers) {
            let answers = worker.answers();
            acknowledged += answers.len();
            expected.after(&script(process), &answers);
        }
        check(&root, &expected).unwrap_or_else(|e| panic!("round {round}: {e}"));
        // Verifying all that ever was would be quadratic: begin anew now and then.
        if round % 10 == 9 {
            std::fs::remove_dir_all(&root).unwrap();
            expected = Expected::default();
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "killed {PROCESSES} processes at {rounds} random moments, {acknowledged} acknowledgements, in {seconds:.0} s"
    );
}
