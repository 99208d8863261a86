//! Power cuts by the letter: after every sync nothing but what was synced is left, or that and some of the rest. And the
//! controls: without any one of the syncs, something must be lost. They show that the test can see, and that no sync is
//! for nothing.

use crate::long;
use crate::ops::{Answer, Expected};
use crate::shadow::Durable;
use crate::support::noise;
use crate::task::Task;
use crate::trap::{Call, Verdict, supervise};
use crate::verify::check;
use crate::volume::memory_dir;
use crate::work::Worker;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;

/// What a crash may leave at some moment.
struct State {
    /// The call that was about to be made.
    before: String,
    durable: Durable,
    expected: Expected,
}

/// Every moment of a worker's work: one before each sync, when most is at stake, one at the end, and with a
/// seed, one at every call at which some of what was not synced is there too. `skip` says which syncs do not happen.
fn moments(task: &Task, seed: Option<u64>, mut skip: impl FnMut(&Call) -> bool + Send) -> Vec<State> {
    let dir = memory_dir();
    let top = dir.path().to_owned();
    let expected = Mutex::new(task.begin(&top.join("store")));
    let mut durable = Durable::new(&top);
    durable.sync_some(&top, &mut || true);
    let mut worker = Worker::trapped(&top.join("store"));
    let watched = worker.watch();
    let mut dice = Dice::new(seed.unwrap_or_default());
    let mut states = Vec::new();
    let mut decide = |_: usize, call: &Call| {
        let state =
            |durable| State { before: call.label(), durable, expected: expected.lock().expect("no panic").clone() };
        if seed.is_some() {
            let mut more = durable.clone();
            more.sync_some(&top, &mut || dice.throw());
            states.push(state(more));
        }
        if !call.is_sync() {
            return Verdict::Allow;
        }
        states.push(state(durable.clone()));
        if skip(call) {
            return Verdict::Skip;
        }
        durable.sync(&top, call);
        Verdict::Allow
    };
    std::thread::scope(|scope| {
        let trap = scope.spawn(|| supervise(&watched, &top, &mut decide));
        for op in task.script {
            expected.lock().expect("no panic").begun(*op);
            worker.send(*op);
            assert_eq!(worker.answer(), Some(Answer::Done(*op)), "without a fault");
            expected.lock().expect("no panic").acknowledged(*op);
        }
        worker.kill();
        trap.join().expect("the trap");
    });
    states.push(State { before: "the end".into(), durable, expected: expected.into_inner().expect("no panic") });
    states
}

/// Bits that are the same for the same seed.
struct Dice {
    seed: u64,
    bits: Vec<u8>,
    next: usize,
}

impl Dice {
    fn new(seed: u64) -> Self {
        Self { seed, bits: vec![], next: 0 }
    }

    fn throw(&mut self) -> bool {
        if self.next == self.bits.len() {
            (self.seed, self.next) = (self.seed.wrapping_add(0x1_0000), 0);
            self.bits = noise(self.seed, 1024);
        }
        self.next += 1;
        self.bits[self.next - 1] & 1 == 0
    }
}

impl State {
    fn verify(&self) -> Result<(), String> {
        let dir = memory_dir();
        let top = dir.path().join("top");
        self.durable.restore(&top);
        check(&top.join("store"), &self.expected).map_err(|e| format!("cut before '{}': {e}", self.before))
    }
}

#[test]
fn power_cuts_by_the_letter() {
    let (begin, tasks, mut count) = (Instant::now(), Task::all(), 0);
    let wanted = if long() { 5000 } else { 300 };
    for run in 0.. {
        if count >= wanted {
            break;
        }
        let task = &tasks[run % tasks.len()];
        let seed = (run >= tasks.len()).then_some(run as u64);
        for state in moments(task, seed, |_| false).into_iter().take(wanted - count) {
            state.verify().unwrap_or_else(|e| panic!("{}, run {run}: {e}", task.name));
            count += 1;
        }
    }
    println!("{count} power cuts by the letter in {:.0} s", begin.elapsed().as_secs_f64());
}

/// Which syncs there are, and how many of each.
fn syncs(task: &Task) -> BTreeMap<String, usize> {
    let mut syncs = BTreeMap::new();
    let count = Mutex::new(&mut syncs);
    moments(task, None, |call| {
        *count.lock().expect("no panic").entry(call.label()).or_insert(0) += 1;
        false
    });
    syncs
}

/// Whether something must be lost without these syncs.
pub(crate) fn is_needed(label: &str) -> bool {
    // SQLite's rollback journal is there for the making of the database alone, which begins anew if it is lost.
    // The database that a rebuild fills is nobody's before it is complete and closed: of what SQLite syncs meanwhile only
    // the file itself counts, which gets its name then.
    let draft = label.contains("/REBUILD") && !label.ends_with("/index.db");
    // A repair puts the blobs that were kept into a store of its own, which nobody needs after it.
    let scratch = label.contains("/SESSION/donor") || label.ends_with("/tmp/SESSION");
    !label.ends_with("index.db-journal") && !draft && !scratch
}

fn without_any_sync_something_is_lost(task: &Task) {
    let begin = Instant::now();
    let (mut unseen, mut controls) = (Vec::new(), 0);
    for (label, count) in syncs(task) {
        // Looking for a loss where there is none takes longest.
        if !long() && !is_needed(&label) {
            continue;
        }
        // The last moments are the likeliest.
        let states = moments(task, None, |call| call.label() == label);
        let loss = states.iter().rev().find_map(|state| state.verify().err());
        println!("without {count} {label}: {}", loss.as_deref().unwrap_or("nothing is lost"));
        controls += 1;
        unseen.extend((loss.is_none() && is_needed(&label)).then_some(label));
    }
    println!("{}: {controls} controls in {:.0} s", task.name, begin.elapsed().as_secs_f64());
    assert!(unseen.is_empty(), "without these nothing is lost: {unseen:#?}");
}

#[test]
fn without_any_sync_of_work_something_is_lost() {
    without_any_sync_something_is_lost(&Task::small());
}

#[test]
fn without_any_sync_of_a_repair_something_is_lost() {
    without_any_sync_something_is_lost(&Task::mend());
}
