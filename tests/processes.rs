//! Several processes and one store: they share work, die at any moment, are stopped, and give up, for real.
//!
//! The test binary runs itself as the other process: `a_child` does what [`ROLE`] asks for and else nothing.

#[path = "hostile/build.rs"]
#[allow(dead_code, reason = "a part of the builders is wanted")]
mod build;
mod support;

use build::tar;
use layerstore::{Detected, Digest, ErrorKind, Event, ImportOptions, Limits, Observer, Selector, Store, detect};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use support::{assert_empty, content_files, export, names, noise, rows, words, write_image};

/// What a child is to do: a word, then its arguments, tab-separated.
const ROLE: &str = "LAYERSTORE_TEST_PROCESSES_ROLE";
const DONE: &str = "result: ";

/// A layer with large and small files, 6 MB of them.
fn layer(seed: u64) -> Vec<u8> {
    let large = (0..15).map(|n| build::file(format!("{seed}/large{n}"), noise(seed * 100 + n, 400_000)));
    let small = (0..200).map(|n| build::file(format!("{seed}/small{n}"), words(seed * 1000 + n, 2000)));
    tar(&large.chain(small).collect::<Vec<_>>())
}

fn spawn(role: &[&str]) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command.args(["a_child", "--exact", "--nocapture"]).env(ROLE, role.join("\t"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("this test runs")
}

/// What the child says it did.
fn result(child: Child) -> String {
    let out = child.wait_with_output().expect("a child");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    let text = String::from_utf8(out.stdout).expect("text");
    text.lines().find_map(|l| l.strip_prefix(DONE)).expect("a result").to_owned()
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("a living child");
}

#[test]
fn a_child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let role: Vec<&str> = role.split('\t').collect();
    let text = match role[..] {
        ["image", root, layout] => import_image(root, layout),
        ["layer", root, diff_id] => import_stdin(root, diff_id, &()),
        ["cancel", root, after] => import_stdin(root, "", &After::new(after.parse().expect("a number"))),
        _ => panic!("no such role: {role:?}"),
    };
    println!("\n{DONE}{text}");
}

/// Waits for a line, then imports: so that several begin together.
fn import_image(root: &str, layout: &str) -> String {
    let store = Store::open(root).expect("a store");
    let spool = Path::new(layout).parent().expect("a parent");
    let Ok(Detected::Image(source)) = detect(layout.as_ref(), spool, &Limits::default()) else { panic!("no image") };
    println!("\nready");
    std::io::stdin().read_line(&mut String::new()).expect("a line");
    let options = ImportOptions::default().threads(support::THREADS);
    let done = store.import_image(&source, &Selector::default(), Some(layout), &options, &()).expect("a good image");
    let read = done.layers.iter().filter(|l| !l.known).count();
    format!("{read} {}", done.stats.new_chunks)
}

fn import_stdin(root: &str, diff_id: &str, observer: &dyn Observer) -> String {
    let store = Store::open(root).expect("a store");
    let mut options = ImportOptions::default().keep_blobs(true).threads(support::THREADS);
    if !diff_id.is_empty() {
        options = options.expected_diff_id(diff_id.parse().expect("a digest"));
    }
    match store.import_layer(std::io::stdin(), &options, observer) {
        Ok((done, _)) => done.diff_id.to_string(),
        Err(e) => e.kind().to_string(),
    }
}

/// Stops an import after so many bytes.
struct After {
    limit: u64,
    seen: AtomicU64,
}

impl After {
    fn new(limit: u64) -> Self {
        Self { limit, seen: AtomicU64::new(0) }
    }
}

impl Observer for After {
    fn event(&self, event: Event) {
        if let Event::LayerProgress { bytes, .. } = event {
            self.seen.fetch_add(bytes, Relaxed);
        }
    }

    fn cancelled(&self) -> bool {
        self.seen.load(Relaxed) >= self.limit
    }
}

/// Starts the children, lets all of them begin at once, and gives what they say.
fn together(children: Vec<Child>) -> Vec<String> {
    let ready = |mut child: Child| {
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        while line.trim() != "ready" {
            line.clear();
            assert!(lines.read_line(&mut line).expect("a line") > 0, "the child ended early");
        }
        (child, lines)
    };
    let mut ready: Vec<_> = children.into_iter().map(ready).collect();
    ready.iter_mut().for_each(|(child, _)| child.stdin.take().expect("a pipe").write_all(b"go\n").expect("a line"));
    let finish = |(mut child, mut lines): (Child, BufReader<_>)| {
        let mut text = String::new();
        lines.read_to_string(&mut text).expect("text");
        assert!(child.wait().expect("a child").success(), "{text}");
        text.lines().find_map(|l| l.strip_prefix(DONE)).expect("a result").to_owned()
    };
    ready.into_iter().map(finish).collect()
}

#[test]
fn one_image_by_several_processes_is_one_work() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (layout, root, alone) = (path("layout"), path("store"), path("alone"));
    let tars = [layer(1), layer(2), layer(3)];
    write_image(layout.as_ref(), &tars);
    let alone_result = together(vec![spawn(&["image", &alone, &layout])]).remove(0);
    assert!(alone_result.starts_with("3 "), "{alone_result}");

    let results = together((0..3).map(|_| spawn(&["image", &root, &layout])).collect());
    let (worked, waited): (Vec<_>, Vec<_>) = results.iter().partition(|r| **r != "0 0");
    assert_eq!((worked, waited.len()), (vec![&alone_result], 2), "of three, one works");
    let (store, alone) = (Store::open(&root).unwrap(), Store::open(&alone).unwrap());
    assert_eq!(store.usage().unwrap().packs, alone.usage().unwrap().packs);
    assert_eq!(names(store.path(), "packs"), names(alone.path(), "packs"));
    assert!(tars.iter().all(|tar| export(&store, &Digest::of(tar)) == *tar));
}

#[test]
fn images_that_share_layers_do_not_wait_for_each_other_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let root = path("store");
    let tars = [layer(1), layer(2), layer(3)];
    let layouts: Vec<_> = (0..3).map(|n| path(&format!("layout{n}"))).collect();
    for (n, layout) in layouts.iter().enumerate() {
        let mut turned = tars.to_vec();
        turned.rotate_left(n);
        write_image(layout.as_ref(), &turned);
    }
    let results = together(layouts.iter().map(|layout| spawn(&["image", &root, layout])).collect());
    let read: u32 = results.iter().map(|r| r.split(' ').next().unwrap().parse::<u32>().unwrap()).sum();
    assert_eq!(read, 3, "each layer is read once: {results:?}");
    let store = Store::open(&root).unwrap();
    assert_eq!(store.images().unwrap().len(), 3);
    assert!(tars.iter().all(|tar| export(&store, &Digest::of(tar)) == *tar));
}

/// A child that does not outlive its test, even one that fails, even if it was stopped.
struct Mortal(Option<Child>);

impl Mortal {
    fn child(&mut self) -> &mut Child {
        self.0.as_mut().expect("not released yet")
    }

    fn release(mut self) -> Child {
        self.0.take().expect("not released yet")
    }

    fn kill(mut self) {
        self.child().kill().expect("a living child");
        self.child().wait().expect("a child");
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill().and_then(|()| child.wait());
        }
    }
}

/// A child that has been given `bytes` of a layer and waits for more.
struct Stuck {
    child: Mortal,
    pipe: ChildStdin,
}

fn stuck(root: &Path, diff_id: &str, bytes: &[u8]) -> Stuck {
    let mut child = spawn(&["layer", root.to_str().expect("text"), diff_id]);
    let mut pipe = child.stdin.take().expect("a pipe");
    pipe.write_all(bytes).expect("a child that reads");
    pipe.flush().expect("a child that reads");
    // Its session is there once it has begun; what it was given has then been read but for the pipe's buffer.
    let begin = Instant::now();
    while names(root, "tmp").is_empty() {
        assert!(begin.elapsed() < Duration::from_secs(30), "the child did not begin");
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(150));
    Stuck { child: Mortal(Some(child)), pipe }
}

impl Stuck {
    fn kill(self) {
        self.child.kill();
        drop(self.pipe);
    }
}

/// A store with one layer that was acknowledged, and what it then looks like.
struct Before {
    _dir: tempfile::TempDir,
    root: PathBuf,
    tar: Vec<u8>,
    files: BTreeSet<PathBuf>,
}

impl Before {
    fn new() -> Self {
        let (dir, store) = support::store();
        let tar = layer(7);
        support::import(&store, &tar);
        let files = content_files(store.path()).into_keys().collect();
        Self { _dir: dir, root: store.path().to_owned(), tar, files }
    }

    /// The store is as it was; `swept` says whether a dead process's traces were to be removed by this opening.
    fn assert_unchanged(&self, what: &str) -> Store {
        let store = Store::open(&self.root).expect(what);
        let files: BTreeSet<_> = content_files(&self.root).into_keys().collect();
        assert_eq!(files, self.files, "{what}");
        assert_eq!(rows(&self.root, "packs"), 1, "{what}: addresses are still reserved");
        assert_eq!(names(&self.root, "tmp"), [""; 0], "{what}");
        assert!(export(&store, &Digest::of(&self.tar)) == self.tar, "{what}: an acknowledged layer was lost");
        store
    }
}

#[test]
fn a_killed_import_leaves_nothing() {
    let before = Before::new();
    let tar = layer(8);
    for bytes in [0, 700, 100_000, 1_500_000, 4_000_000, tar.len() - 1] {
        let what = format!("killed after {bytes} bytes");
        stuck(&before.root, "", &tar[..bytes]).kill();
        assert!(!names(&before.root, "tmp").is_empty(), "{what}: there is nothing to sweep, so this shows nothing");
        if bytes > 3_000_000 {
            assert!(rows(&before.root, "packs") > 1, "{what}: no addresses were reserved");
        }
        before.assert_unchanged(&what);
    }
    let store = before.assert_unchanged("at last");
    let done = support::import(&store, &tar);
    assert!(export(&store, &done.diff_id) == tar);
}

/// An opening beside a living import leaves that alone.
#[test]
fn sweeping_spares_the_living() {
    let before = Before::new();
    let tar = layer(8);
    let mut living = stuck(&before.root, "", &tar[..4_000_000]);
    stuck(&before.root, "", &tar[..100_000]).kill();
    drop(Store::open(&before.root).unwrap());
    assert_eq!(names(&before.root, "tmp").len(), 1, "the dead one's session, and only that, is swept");
    living.pipe.write_all(&tar[4_000_000..]).unwrap();
    drop(living.pipe);
    assert_eq!(result(living.child.release()), Digest::of(&tar).to_string());
    assert!(export(&Store::open(&before.root).unwrap(), &Digest::of(&tar)) == tar);
}

/// Gives the last byte of a layer to an import that waits for it.
fn finish(mut stuck: Stuck, last: &[u8]) -> Mortal {
    stuck.pipe.write_all(last).expect("a child that reads");
    stuck.child
}

/// Killed around the commit, an import has happened or has not.
#[test]
fn killed_while_committing_it_is_all_or_nothing() {
    const ROUNDS: u32 = 16;
    let before = Before::new();
    let begun = |tar: &[u8]| stuck(&before.root, "", &tar[..tar.len() - 1]);
    let end = |tar: &[u8]| tar[tar.len() - 1..].to_vec();
    let measured = layer(99);
    let child = begun(&measured);
    let begin = Instant::now();
    result(finish(child, &end(&measured)).release());
    let whole = begin.elapsed();

    let mut committed = 0;
    for round in 0..ROUNDS {
        // Another layer each time, as one that is there would be found.
        let tar = layer(100 + u64::from(round));
        let diff_id = Digest::of(&tar);
        let child = finish(begun(&tar), &end(&tar));
        std::thread::sleep(whole * round * 5 / 4 / ROUNDS);
        child.kill();

        let store = Store::open(&before.root).unwrap();
        assert_eq!(names(&before.root, "tmp"), [""; 0], "round {round}");
        let there = store.layers().unwrap().iter().any(|l| l.diff_id == diff_id);
        committed += u64::from(there);
        if there {
            assert!(export(&store, &diff_id) == tar, "round {round}");
        }
        let packs = names(&before.root, "packs").len() as u64;
        assert_eq!((packs, rows(&before.root, "packs")), (2 + committed, 2 + committed), "round {round}");
        assert!(export(&store, &Digest::of(&before.tar)) == before.tar, "round {round}");
    }
    println!("{committed} of {ROUNDS} had been committed when they were killed, {whole:?} for a whole commit");
    let store = Store::open(&before.root).unwrap();
    for round in 0..ROUNDS {
        let tar = layer(100 + u64::from(round));
        let done = support::import(&store, &tar);
        assert!(export(&store, &done.diff_id) == tar, "round {round}");
    }
}

#[test]
fn a_cancelled_import_leaves_nothing() {
    let (_dir, store) = support::store();
    let tar = layer(1);
    for after in [0, 100_000, 3_000_000, tar.len()] {
        let mut child = spawn(&["cancel", store.path().to_str().unwrap(), &after.to_string()]);
        // It stops listening at some time.
        let _ = child.stdin.take().unwrap().write_all(&tar);
        assert_eq!(result(child), ErrorKind::Cancelled.to_string());
        assert_empty(&store, &format!("cancelled after {after} bytes"));
    }
}

#[test]
fn a_stopped_holder_of_a_layer_makes_others_busy_not_stuck() {
    let before = Before::new();
    let tar = layer(8);
    let diff_id = Digest::of(&tar);
    let mut holder = stuck(&before.root, &diff_id.to_string(), &tar[..4_000_000]);
    signal(holder.child.child(), Signal::STOP);
    let store = Store::open(&before.root).unwrap();
    let options = ImportOptions::default().expected_diff_id(diff_id).patience(Duration::from_millis(300));
    let begin = Instant::now();
    let e = store.import_layer(&tar[..], &options, &()).unwrap_err();
    let waited = begin.elapsed();
    assert_eq!(e.kind(), ErrorKind::Busy, "{e}");
    assert!((300..5000).contains(&waited.as_millis()), "{waited:?}");
    // Whoever does not need that layer is not disturbed.
    let other = layer(9);
    support::import(&store, &other);
    // A waiter finds the layer free as soon as the holder dies.
    let patient = options.patience(Duration::from_secs(60));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| store.import_layer(&tar[..], &patient, &()));
        std::thread::sleep(Duration::from_millis(100));
        holder.kill();
        let done = waiter.join().unwrap().unwrap().0;
        assert!(!done.known);
    });
    assert!(export(&store, &diff_id) == tar && export(&store, &Digest::of(&other)) == other);
}
