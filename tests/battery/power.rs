//! Power cuts. The writes and flushes of a disk are recorded while a worker works; then the disk is made as it could
//! have been at any moment, mounted, and the store on it checked.
//!
//! A disk may lose, at a cut, any of the writes since the last flush, in any order, and parts of them. What was
//! acknowledged before the cut must be there.

use crate::disk::{Disk, Event, Image};
use crate::ops::{Answer, Expected, Op};
use crate::task::Task;
use crate::trap::{Call, Verdict, supervise};
use crate::verify::check;
use crate::volume::{Kind, Mounted, may_mount, memory_dir};
use crate::work::Worker;
use crate::{long, support::noise, sys};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What a disk was asked while a worker did its work on it.
pub(crate) struct Recording {
    kind: Kind,
    base: Image,
    log: Vec<Event>,
    /// What must be there before the first operation, and the log's length then.
    before: (Expected, usize),
    /// For each operation, the log's length when it began and when it was acknowledged.
    ops: Vec<(Op, usize, usize)>,
    dir: TempDir,
}

/// A state of the disk after a cut.
struct Cut {
    /// The log's length when the power failed.
    at: usize,
    /// Seed of what became of writes that were not flushed; without one, all of them are lost.
    seed: Option<u64>,
}

/// Decides what becomes of a worker's system call, by its number.
type Decide<'d> = dyn FnMut(usize, &Call) -> Verdict + Send + 'd;

/// Lets a worker do its task on a new file system of `kind`, deciding about its calls if there is someone to.
pub(crate) fn record(kind: Kind, task: &Task, decide: Option<&mut Decide<'_>>) -> Recording {
    let dir = memory_dir();
    let path = |name: &str| dir.path().join(name);
    kind.format(&path("base"), &[]);
    let base = Image::load(&path("base"));
    std::fs::remove_file(path("base")).expect("the image");
    let disk = Disk::serve(base.clone(), &path("disk"));
    let mounted = Mounted::mount(kind, &path("disk"), &path("mounted")).expect("a new file system");
    let root = mounted.store();
    let expected = task.begin(&root);
    rustix::fs::syncfs(File::open(&mounted.dir).expect("a mounted file system")).expect("a sound disk");
    let (before, script) = ((expected, disk.position()), task.script);
    let ops = match decide {
        None => follow(&mut Worker::start(&root), script, &disk),
        Some(decide) => {
            let mut worker = Worker::trapped(&root);
            let watched = worker.watch();
            std::thread::scope(|scope| {
                let trap = scope.spawn(|| supervise(&watched, &root, decide));
                let ops = follow(&mut worker, script, &disk);
                trap.join().expect("the trap");
                ops
            })
        }
    };
    // What is written after this was not asked for by the worker.
    let end = disk.position();
    drop(mounted);
    let mut log = disk.into_log();
    log.truncate(end);
    Recording { kind, base, log, before, ops, dir }
}

/// Gives the worker one operation after the other; stops at one that fails, which a skipped sync may cause.
fn follow(worker: &mut Worker, script: &[Op], disk: &Disk) -> Vec<(Op, usize, usize)> {
    let mut ops = Vec::new();
    for op in script {
        let begun = disk.position();
        worker.send(*op);
        let answer = worker.answer();
        assert_eq!(answer, Some(Answer::Done(*op)), "without a fault");
        ops.push((*op, begun, disk.position()));
    }
    // It is killed, as an orderly end would write more than the operations did.
    worker.kill();
    ops
}

impl Recording {
    fn expected(&self, at: usize) -> Expected {
        let mut expected = self.before.0.clone();
        for (op, begun, done) in &self.ops {
            if *begun <= at {
                expected.begun(*op);
            }
            if *done <= at {
                expected.acknowledged(*op);
            }
        }
        expected
    }

    /// One cut before every flush, when most may be lost, and one at the end.
    fn at_flushes(&self) -> Vec<Cut> {
        let flushes = (self.before.1..self.log.len()).filter(|at| matches!(self.log[*at], Event::Flush));
        flushes.chain([self.log.len()]).map(|at| Cut { at, seed: None }).collect()
    }

    fn at_random(&self, count: u64) -> Vec<Cut> {
        let cut = |seed| {
            let random = u64::from_le_bytes(noise(seed, 8).try_into().expect("eight bytes"));
            let first = self.before.1;
            Cut { at: first + random as usize % (self.log.len() + 1 - first), seed: Some(seed) }
        };
        (0..count).map(cut).collect()
    }

    /// The disk after a cut.
    fn disk_after(&self, cut: &Cut) -> Image {
        let flushed = self.log[..cut.at].iter().rposition(|e| matches!(e, Event::Flush)).unwrap_or(0);
        let mut disk = self.base.clone();
        self.log[..flushed].iter().for_each(|event| disk.apply(event));
        let Some(seed) = cut.seed else { return disk };
        let unflushed = &self.log[flushed..cut.at];
        let random = noise(seed ^ 0x5eed, 1 + 4 * unflushed.len());
        // How much is lost differs from cut to cut: none, all, and shares between.
        let share = random[0];
        for (event, dice) in unflushed.iter().zip(random[1..].chunks(4)) {
            if dice[0] < share {
                continue;
            }
            match event {
                Event::Write { at, bytes } if dice[1] < 64 => disk.apply(&self.torn(*at, bytes, dice)),
                event => disk.apply(event),
            }
        }
        disk
    }

    /// A part of a write, from its beginning or to its end.
    fn torn(&self, at: u64, bytes: &[u8], dice: &[u8]) -> Event {
        let sector = self.kind.sector();
        let sectors = bytes.len() / sector;
        let cut = usize::from(dice[2]) * sectors / 256 * sector;
        match dice[3] & 1 {
            0 => Event::Write { at, bytes: bytes[..cut].to_vec() },
            _ => Event::Write { at: at + cut as u64, bytes: bytes[cut..].to_vec() },
        }
    }

    fn verify(&self, cut: &Cut) -> Result<(), String> {
        let path = self.dir.path().join("after");
        self.disk_after(cut).save(&path);
        let mounted = Mounted::mount(self.kind, &path, &self.dir.path().join("mounted"))?;
        check(&mounted.store(), &self.expected(cut.at))
    }
}

fn cut_power(kind: Kind, cuts: usize) {
    if !may_mount() || !kind.is_there() {
        return;
    }
    let (begin, tasks) = (Instant::now(), Task::all());
    let (mut done, mut flushes) = (0, 0);
    for run in 0.. {
        if done >= cuts {
            break;
        }
        // Of a repair, which is shorter, a quarter.
        let (task, share) = if run % 2 == 0 { (&tasks[0], cuts * 3 / 4) } else { (&tasks[1], cuts.div_ceil(4)) };
        let recording = record(kind, task, None);
        let share = share.min(1000).min(cuts - done);
        let mut every = recording.at_flushes();
        // All of them if they are no more than half.
        let step = (every.len() / (share / 2).max(1)).max(1);
        every = every.into_iter().step_by(step).take(share).collect();
        flushes += every.len();
        let random = recording.at_random((share - every.len()) as u64);
        for cut in every.iter().chain(&random) {
            recording.verify(cut).unwrap_or_else(|e| {
                let (at, of, seed, task) = (cut.at, recording.log.len(), cut.seed, task.name);
                panic!("{}: {task}: cut at {at} of {of} writes and flushes, seed {seed:?}: {e}", kind.name())
            });
            done += 1;
        }
    }
    let (name, seconds) = (kind.name(), begin.elapsed().as_secs_f64());
    println!("{name}: {done} power cuts, {flushes} of them at flushes, in {seconds:.0} s");
}

#[test]
fn power_cuts_on_ext4() {
    cut_power(Kind::Ext4, if long() { 2500 } else { 60 });
}

#[test]
fn power_cuts_on_xfs() {
    cut_power(Kind::Xfs, if long() { 1500 } else { 20 });
}

#[test]
fn power_cuts_on_btrfs() {
    cut_power(Kind::Btrfs, if long() { 1000 } else { 20 });
}

/// The file system itself stops writing, its journal flushed or not, at a random time.
fn shut_down(kind: Kind, times: u64) {
    if !may_mount() || !kind.is_there() {
        return;
    }
    let begin = Instant::now();
    let (mut acknowledged, tasks) = (0, Task::all());
    for n in 0..times {
        // A third of them during a repair.
        let task = &tasks[usize::from(n % 3 == 2)];
        let dir = memory_dir();
        let path = |name: &str| -> PathBuf { dir.path().join(name) };
        kind.format(&path("disk"), &[]);
        let mounted = Mounted::mount(kind, &path("disk"), &path("mounted")).expect("a new file system");
        let mut expected = task.begin(&mounted.store());
        rustix::fs::syncfs(File::open(&mounted.dir).expect("a mounted file system")).expect("a sound disk");
        let mut worker = Worker::start(&mounted.store());
        worker.send_all(task.script);
        let answers = Mutex::new(vec![]);
        let before = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                while let Some(answer) = worker.answer() {
                    answers.lock().expect("no panic").push(answer);
                }
            });
            std::thread::sleep(Duration::from_micros(u64::from(noise(n, 1)[0]) * 1000));
            let handle = File::open(&mounted.dir).expect("a mounted file system");
            // What is answered later may come from a file system that is being shut down.
            let before = answers.lock().expect("no panic").len();
            sys::shut_down(&handle, n % 2 == 0).expect("a file system that can be shut down");
            drop(handle);
            reader.join().expect("a pipe");
            before
        });
        let answers = answers.into_inner().expect("no panic");
        drop((worker, mounted));
        // What was answered before is a beginning of the script; of the rest some may have happened.
        let done = answers.iter().take_while(|a| matches!(a, Answer::Done(_))).count();
        acknowledged += before.min(done);
        expected.after(&task.script[..before.min(done)], &answers[..before.min(done)]);
        task.script.iter().take(done + 1).skip(before).for_each(|op| expected.begun(*op));
        let result = Mounted::mount(kind, &path("disk"), &path("mounted"));
        let result = result.and_then(|mounted| check(&mounted.store(), &expected));
        result.unwrap_or_else(|e| panic!("{}: {}: shut down {n}: {e}\n{answers:#?}", kind.name(), task.name));
    }
    let (name, seconds) = (kind.name(), begin.elapsed().as_secs_f64());
    println!("{name}: shut down {times} times, {acknowledged} acknowledgements before, in {seconds:.0} s");
}

#[test]
fn shut_down_ext4() {
    shut_down(Kind::Ext4, if long() { 200 } else { 6 });
}

#[test]
fn shut_down_xfs() {
    shut_down(Kind::Xfs, if long() { 200 } else { 6 });
}

/// A file in `dir` on a new file system of `kind`, for tests that need one.
pub(crate) fn fresh(kind: Kind, dir: &Path) -> Mounted {
    kind.format(&dir.join("disk"), &[]);
    Mounted::mount(kind, &dir.join("disk"), &dir.join("mounted")).expect("a new file system")
}
