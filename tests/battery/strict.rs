//! Power cuts by the letter: after every sync nothing but what was synced is left, or that and some of the rest. And the
//! controls: without any one of the syncs, something must be lost. They show that the test can see, and that no sync is
//! for nothing.

use crate::kill::SMALL;
use crate::long;
use crate::shadow::Durable;
use crate::support::noise;
use crate::trap::{Call, Verdict, supervise};
use crate::verify::check;
use crate::volume::memory_dir;
use crate::work::{Answer, Expected, Op, Worker};
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

/// Every moment of a worker's work on `script`: one before each sync, when most is at stake, one at the end, and with a
/// seed, one at every call at which some of what was not synced is there too. `skip` says which syncs do not happen.
fn moments(script: &[Op], seed: Option<u64>, mut skip: impl FnMut(&Call) -> bool + Send) -> Vec<State> {
    let dir = memory_dir();
    let top = dir.path().to_owned();
    let mut worker = Worker::trapped(&top.join("store"));
    let (watched, expected) = (worker.watch(), Mutex::new(Expected::default()));
    let mut durable = Durable::new(&top);
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
        for op in script {
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
    let (begin, mut count, mut run) = (Instant::now(), 0, 0);
    let wanted = if long() { 5000 } else { 300 };
    while count < wanted {
        for state in moments(SMALL, (run > 0).then_some(run), |_| false).into_iter().take(wanted - count) {
            state.verify().unwrap_or_else(|e| panic!("run {run}: {e}"));
            count += 1;
        }
        run += 1;
    }
    println!("{count} power cuts by the letter in {run} runs, in {:.0} s", begin.elapsed().as_secs_f64());
}

/// Which syncs there are, and how many of each.
fn syncs() -> BTreeMap<String, usize> {
    let mut syncs = BTreeMap::new();
    let count = Mutex::new(&mut syncs);
    moments(SMALL, None, |call| {
        *count.lock().expect("no panic").entry(call.label()).or_insert(0) += 1;
        false
    });
    syncs
}

#[test]
fn without_any_sync_something_is_lost() {
    let begin = Instant::now();
    let mut unseen = Vec::new();
    for (label, count) in syncs() {
        // The last moments are the likeliest.
        let states = moments(SMALL, None, |call| call.label() == label);
        let loss = states.iter().rev().find_map(|state| state.verify().err());
        println!("without {count} {label}: {}", loss.as_deref().unwrap_or("nothing is lost"));
        // SQLite's rollback journal is there for the making of the database alone, which begins anew if it is lost.
        // The database that a rebuild fills is nobody's before it is complete and closed: of what SQLite syncs meanwhile
        // only the file itself counts, which gets its name then.
        let draft = label.contains("/REBUILD") && !label.ends_with("/index.db");
        let needed = !label.ends_with("index.db-journal") && !draft;
        unseen.extend((loss.is_none() && needed).then_some(label));
    }
    println!("controls took {:.0} s", begin.elapsed().as_secs_f64());
    assert!(unseen.is_empty(), "without these nothing is lost: {unseen:#?}");
}
