//! Eight processes on one store for a while: two import, two commit, one collects garbage, one mounts, one reads and one
//! checks. No byte comes out wrong, nothing that anybody keeps is lost, and fsck never finds anything.

use crate::ops::{self, Expected, diff_id, import_options, layer, written};
use crate::support::inside;
use crate::verify::check;
use crate::volume::{Kind, Mounted, may_mount, memory_dir};
use crate::{long, support};
use layerstore::{
    CommitOptions, DriverKind, ErrorKind, FsckOptions, GcOptions, Labels, Result, Snapshotter, SnapshotterOptions,
    Store,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a process does, for how many seconds, and where its store is; set only for those processes.
const ROLE: &str = "LAYERSTORE_BATTERY_ROLE";
const ROLES: [&str; 8] = ["import", "import", "commit", "commit", "collect", "mount", "read", "check"];
/// Layers that are held all the time, and those that come and go.
const STAY: std::ops::Range<u64> = 1..4;
const COME: std::ops::Range<u64> = 4..12;

/// A process at work until the time is up.
struct Process {
    root: String,
    store: Arc<Store>,
    until: Instant,
    /// Its own for what it names, and where its choices begin.
    number: u64,
    random: u64,
    turns: u64,
}

#[test]
fn a_companion() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let words: Vec<&str> = role.split('\t').collect();
    let [role, number, seconds, root] = words[..] else { panic!("four words: {words:?}") };
    let parse = |text: &str| text.parse::<u64>().expect("a number");
    let store = Arc::new(Store::open(root).expect("a store"));
    let until = Instant::now() + Duration::from_secs(parse(seconds));
    let number = parse(number);
    let mut process = Process { root: root.into(), store, until, number, random: number + 1, turns: 0 };
    let count = match role {
        "import" => process.work(Process::import),
        "commit" => process.work(Process::commit),
        "collect" => process.work(Process::collect),
        "mount" => process.work(Process::mount),
        "read" => process.work(Process::read),
        _ => process.work(Process::check),
    };
    println!("\nresult: {role}: {} turns, {count}", process.turns);
}

impl Process {
    /// Does its work over and over; what all of it counted in sum.
    fn work(&mut self, turn: fn(&mut Self) -> Result<u64>) -> u64 {
        let mut count = 0;
        while Instant::now() < self.until {
            count += turn(self).unwrap_or_else(|e| panic!("turn {}: {e:?}", self.turns));
            self.turns += 1;
            if self.turns.is_multiple_of(20) {
                // Another one opens the store.
                self.store = Arc::new(Store::open(&self.root).expect("a store"));
            }
        }
        count
    }

    fn choose(&mut self, from: std::ops::Range<u64>) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        from.start + (self.random >> 33) % (from.end - from.start)
    }

    fn snapshots(&mut self) -> Result<Snapshotter> {
        let drivers = [DriverKind::Auto, DriverKind::Overlay, DriverKind::Copy];
        let driver = drivers[self.turns as usize % drivers.len()];
        let open = |driver| Snapshotter::open(self.store.clone(), &SnapshotterOptions::default().driver(driver));
        match open(driver) {
            Err(e) if e.kind() == ErrorKind::Unsupported => open(DriverKind::Copy),
            other => other,
        }
    }

    /// Imports a layer that others import too, and lets go of it while a lease keeps it. Counts those that were new.
    fn import(&mut self) -> Result<u64> {
        let seed = self.choose(COME);
        let (done, _) =
            self.store.import_layer(&layer(seed)[..], &import_options().keep_blobs(seed.is_multiple_of(2)), &())?;
        let lease = self.store.lease(None)?;
        match lease.layer(&done.diff_id).and_then(|()| self.store.release_layer(&done.diff_id)) {
            // Another process let go of it, and gc came by.
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(0),
            other => other?,
        }
        self.compare(seed)?;
        Ok(u64::from(!done.known))
    }

    fn compare(&self, seed: u64) -> Result<()> {
        let mut tar = Vec::new();
        self.store.layer(&diff_id(seed))?.export(&mut tar, support::THREADS, &())?;
        assert!(tar == layer(seed), "layer {seed} came out with other bytes");
        Ok(())
    }

    /// Writes to a snapshot on a layer and commits it, looks at what that gives, and removes it. Counts files.
    fn commit(&mut self) -> Result<u64> {
        let (base, seed) = (self.choose(STAY), self.choose(COME));
        let snapshots = self.snapshots()?;
        let key = format!("work-{}-{}", self.number, self.turns);
        let (work, made) = (key.clone(), format!("made-{key}"));
        let mounts = snapshots.prepare(&work, Some(&name(base)), &Labels::new(), &())?;
        let write = |root: &Path| {
            written(seed).iter().for_each(|(name, content)| std::fs::write(root.join(name), content).expect("room"));
        };
        self.seen(&snapshots, &mounts, write);
        let options = CommitOptions::default().deferred(self.turns % 4 == 3);
        snapshots.commit(&made, &work, &options, &())?;
        let layers = snapshots.layers(&made, &())?;
        let root = self.store.root(&layers)?;
        let expected = written(seed);
        for (name, content) in &expected {
            let mut back = vec![];
            root.open(name.as_bytes())?.copy_to(&mut back)?;
            assert!(back == *content, "{name} of commit {key} came out with other bytes");
        }
        snapshots.remove(&made)?;
        Ok(expected.len() as u64)
    }

    /// Runs `look` where the mounts are.
    fn seen(&self, snapshots: &Snapshotter, mounts: &[layerstore::Mount], look: impl FnOnce(&Path)) {
        match snapshots.driver() {
            DriverKind::Copy => look(Path::new(&mounts[0].source)),
            _ => inside(Path::new(&self.root).parent().expect("a directory"), mounts, look),
        }
    }

    /// Mounts a layer and reads all of it. Counts files.
    fn mount(&mut self) -> Result<u64> {
        let base = self.choose(STAY);
        let expected = files(&layer(base));
        let snapshots = self.snapshots()?;
        let key = format!("view-{}-{}", self.number, self.turns);
        let mounts = snapshots.view(&key, Some(&name(base)), &Labels::new(), &())?;
        self.seen(&snapshots, &mounts, |root| {
            for (path, content) in &expected {
                let back = std::fs::read(root.join(path)).expect("a file of the layer");
                assert!(back == *content, "{path} of layer {base} reads otherwise in a mount");
            }
        });
        snapshots.remove(&key)?;
        Ok(expected.len() as u64)
    }

    /// Exports a layer that stays.
    fn read(&mut self) -> Result<u64> {
        let seed = self.choose(STAY);
        self.compare(seed).map(|()| 1)
    }

    /// Counts chunks that died.
    fn collect(&mut self) -> Result<u64> {
        let snapshots = self.snapshots()?;
        if self.turns.is_multiple_of(3) {
            assert!(snapshots.absorb(&())?.failed.is_empty(), "a directory did not become a layer");
        }
        snapshots.cleanup()?;
        let options = GcOptions::default();
        let report = self.store.gc(&self.store.gc_plan(&options, &())?, &options, &())?;
        assert!(report.damaged.is_empty(), "{report:?}");
        Ok(report.chunks)
    }

    /// Counts chunks that were read.
    fn check(&mut self) -> Result<u64> {
        let options = FsckOptions::default().full(self.turns.is_multiple_of(2)).threads(support::THREADS);
        let report = self.store.fsck(&options, &())?;
        assert!(report.is_clean(), "fsck: {:#?}", report.findings);
        Ok(report.counts.read)
    }
}

/// The committed snapshot of a layer that stays.
fn name(seed: u64) -> String {
    format!("stays-{seed}")
}

/// Regular files of a tar and their contents.
fn files(tar: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let (mut files, mut at) = (BTreeMap::new(), 0);
    while tar[at] != 0 {
        let text = |range: std::ops::Range<usize>| {
            let bytes = &tar[at + range.start..at + range.end];
            String::from_utf8_lossy(bytes.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
        };
        let size = usize::from_str_radix(text(124..136).trim(), 8).expect("a size");
        let start = at + 512;
        if tar[at + 156] == b'0' {
            files.insert(text(0..100), tar[start..start + size].to_vec());
        }
        at = start + size.next_multiple_of(512);
    }
    files
}

fn spawn(role: &str, number: usize, seconds: u64, root: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command.args(["together::a_companion", "--exact", "--nocapture"]);
    command.env(ROLE, format!("{role}\t{number}\t{seconds}\t{}", root.display()));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("this test runs")
}

#[test]
fn eight_processes_lose_nothing() {
    if !may_mount() || !Kind::Ext4.is_there() {
        return;
    }
    let (dir, seconds) = (memory_dir(), if long() { 3600 } else { 12 });
    let path = |name: &str| dir.path().join(name);
    Kind::Ext4.format_sized(&path("disk"), 1 << 30, &[]);
    let mounted = Mounted::mount(Kind::Ext4, &path("disk"), &path("mounted")).expect("a new file system");
    let root = mounted.store();
    let store = Arc::new(Store::open(&root).expect("a store"));
    let snapshots = ops::snapshotter(&store, 1).expect("copies");
    for seed in STAY {
        store.import_layer(&layer(seed)[..], &import_options(), &()).expect("a good layer");
        snapshots.commit_layer(&name(seed), None, &diff_id(seed), &Labels::new()).expect("commits");
    }
    let children: Vec<Child> = (0..).zip(ROLES).map(|(n, role)| spawn(role, n, seconds, &root)).collect();
    let mut died = 0;
    for child in children {
        let out = child.wait_with_output().expect("a child");
        let text = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{text}");
        let line = text.lines().find_map(|line| line.strip_prefix("result: ")).expect("a result");
        println!("{line}");
        if let Some(count) = line.strip_prefix("collect").and_then(|line| line.rsplit(' ').next()) {
            died += count.parse::<u64>().expect("a count");
        }
        assert!(!line.ends_with(" 0"), "{line}: nothing was shown");
    }
    println!("8 processes together for {seconds} s, {died} chunks died");
    drop(snapshots);
    drop(store);
    let expected = Expected { made: true, layers: STAY.collect(), ..Expected::default() };
    // Snapshots that nobody has mounted any more go, and all that was made for them.
    let store = Arc::new(Store::open(&root).expect("a store"));
    let snapshots = ops::snapshotter(&store, 1).expect("copies");
    STAY.for_each(|seed| snapshots.remove(&name(seed)).expect("removes"));
    drop((snapshots, store));
    check(&root, &expected).expect("a sound store");
}
