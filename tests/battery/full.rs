//! Disks that are full for real, of bytes or of inodes: what fails says so and leaves nothing, what there is can be read,
//! and gc makes room on the full disk itself.

use crate::long;
use crate::ops::{self, Expected, Op};
use crate::support::{noise, walk};
use crate::verify::{check, check_contents, check_sound};
use crate::volume::{Kind, Mounted, may_mount, memory_dir};
use layerstore::{ErrorKind, Store};
use rustix::fs::{FallocateFlags, StatVfs, fallocate, statvfs};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What a disk runs out of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scarce {
    Bytes,
    Inodes,
}

/// A small disk with a store, and the files that fill it up.
struct Small {
    mounted: Mounted,
    _dir: TempDir,
}

impl Small {
    fn new(kind: Kind, scarce: Scarce) -> Self {
        let dir = memory_dir();
        let few = scarce == Scarce::Inodes;
        // No blocks are kept for root, who runs this.
        let (size, options) = match kind {
            Kind::Ext4 => (48 << 20, vec!["-b", "4096", "-m", "0", "-N", if few { "192" } else { "4096" }]),
            _ => (300 << 20, vec!["-i", if few { "maxpct=1" } else { "maxpct=25" }]),
        };
        kind.format_sized(&dir.path().join("disk"), size, &options);
        let mounted = Mounted::mount(kind, &dir.path().join("disk"), &dir.path().join("mounted"));
        let small = Self { mounted: mounted.expect("a new file system"), _dir: dir };
        fs::create_dir(small.ballast()).expect("room for a directory");
        small
    }

    fn ballast(&self) -> PathBuf {
        self.mounted.dir.join("ballast")
    }

    fn stat(&self) -> StatVfs {
        statvfs(&self.mounted.dir).expect("a mounted file system")
    }

    /// Free bytes or inodes.
    fn free(&self, scarce: Scarce) -> u64 {
        match scarce {
            Scarce::Bytes => self.stat().f_bavail * self.stat().f_frsize,
            Scarce::Inodes => self.stat().f_ffree,
        }
    }

    /// Free ones, and those the store keeps back for such days. Of inodes only how that changes counts: XFS may have more
    /// than it says, and gives them back a little later.
    fn to_be_had(&self, scarce: Scarce) -> u64 {
        let (mut files, mut kept) = (0, 0);
        walk(
            &self.mounted.store(),
            &mut |path, meta| match path.parent().is_some_and(|dir| dir.ends_with("reserve")) {
                true => kept += meta.blocks() * 512,
                false => files += 1,
            },
        );
        match scarce {
            Scarce::Bytes => self.free(scarce) + kept,
            Scarce::Inodes => (1 << 20) - files,
        }
    }

    /// Leaves about `room` bytes or inodes; with none, not a single one.
    fn fill(&self, scarce: Scarce, room: u64) {
        match scarce {
            Scarce::Bytes => self.fill_bytes(room),
            Scarce::Inodes => self.fill_inodes(room),
        }
    }

    fn fill_bytes(&self, room: u64) {
        let path = self.ballast().join("bytes");
        let file = File::options().create(true).truncate(false).write(true).open(path).expect("room for a file");
        let mut step = self.free(Scarce::Bytes).saturating_sub(room).next_multiple_of(4096);
        let begin = file.metadata().expect("a file").len();
        let mut end = begin;
        while step >= 4096 && (room == 0 || end == begin) {
            match fallocate(&file, FallocateFlags::empty(), end, step) {
                Ok(()) => end += step,
                Err(_) => step = step / 2 / 4096 * 4096,
            }
        }
    }

    fn fill_inodes(&self, room: u64) {
        let path = |n: u64| self.ballast().join(format!("inode-{n}"));
        let have = fs::read_dir(self.ballast()).expect("the ballast").count() as u64;
        let made = (have..).take_while(|n| File::create_new(path(*n)).is_ok()).count() as u64;
        (have + made - room.min(have + made)..have + made).for_each(|n| fs::remove_file(path(n)).expect("a file"));
    }

    fn empty(&self) {
        fs::remove_dir_all(self.ballast()).and_then(|()| fs::create_dir(self.ballast())).expect("the ballast");
    }
}

/// An operation on a disk that may be full: done, or refused for that reason.
fn attempt(op: Op, root: &Path, store: &mut Option<Arc<Store>>, expected: &mut Expected) -> Result<bool, String> {
    match op.run(root, store) {
        Ok(()) => {
            expected.acknowledged(op);
            Ok(true)
        }
        Err(e) => {
            // SQLite has words of its own for it.
            let text = format!("{e:?}").to_lowercase();
            let told = ["no space left", "is full", "unable to open database"].iter().any(|words| text.contains(words));
            if e.kind() != ErrorKind::Io || !told {
                return Err(format!("{op}: {e:?}"));
            }
            Ok(false)
        }
    }
}

/// One disk that gets full; how many operations failed.
fn round(small: &Small, scarce: Scarce, seed: u64) -> Result<usize, String> {
    let root = small.mounted.store();
    let random = u64::from_le_bytes(noise(seed, 8).try_into().expect("eight bytes"));
    let (mut store, mut expected) = (None, Expected::default());
    // What stays, and what may go: a layer, and the directories that were committed.
    for op in [Op::Open, Op::Import(2), Op::Commit(8), Op::Commit(9), Op::Keep(7), Op::Release(7)] {
        expected.begun(op);
        op.run(&root, &mut store).map_err(|e| format!("{op} on an empty disk: {e}"))?;
        expected.acknowledged(op);
    }
    expected.layers.remove(&7);
    small.fill(scarce, if scarce == Scarce::Bytes { random % (3 << 20) } else { random % 12 });
    let mut failed = vec![];
    for op in [Op::Import(10), Op::Commit(20 + seed % 2), Op::Keep(15), Op::Import(4)] {
        if !attempt(op, &root, &mut store, &mut expected)? {
            failed.push(op);
        }
        if seed.is_multiple_of(3) {
            // Whoever comes next has no store open.
            store = None;
        }
    }
    small.fill(scarce, 0);
    // Those who have the store open can go on reading, and others can begin to.
    for again in [false, true] {
        if again {
            store = None;
        }
        let what = |e| format!("{} on a full disk: {e}", if again { "opened anew" } else { "open" });
        attempt_open(&root, &mut store).map_err(what)?;
        let store = store.as_ref().expect("just opened");
        check_contents(store, &expected).and_then(|()| check_sound(store)).map_err(what)?;
    }
    let before = small.to_be_had(scarce);
    ops::make_room(store.as_ref().expect("open")).map_err(|e| format!("gc on a full disk: {e:?}"))?;
    let freed = small.to_be_had(scarce).saturating_sub(before);
    let least = if scarce == Scarce::Bytes { 1 << 20 } else { 1 };
    if freed < least {
        return Err(format!("gc freed {freed} of {scarce:?}"));
    }
    // What gc freed is room for a small layer.
    let again = failed.iter().find(|op| matches!(op, Op::Import(_))).copied().unwrap_or(Op::Import(6));
    // XFS gives inodes back a little later.
    let mut tries = (0..50).map(|_| std::thread::sleep(Duration::from_millis(20)));
    while !attempt(again, &root, &mut store, &mut expected)? {
        tries.next().ok_or_else(|| format!("{again} fails after gc, which freed {freed} of {scarce:?}"))?;
    }
    drop(store);
    small.empty();
    check(&root, &expected)?;
    fs::remove_dir_all(&root).map_err(|e| e.to_string())?;
    Ok(failed.len())
}

fn attempt_open(root: &Path, store: &mut Option<Arc<Store>>) -> Result<(), String> {
    if store.is_none() {
        *store = Some(Arc::new(Store::open(root).map_err(|e| format!("{e:?}"))?));
    }
    Ok(())
}

fn full(kind: Kind) {
    if !may_mount() || !kind.is_there() {
        return;
    }
    let rounds = if long() { 100 } else { 3 };
    for scarce in [Scarce::Bytes, Scarce::Inodes] {
        let (begin, mut failed) = (Instant::now(), 0);
        let small = Small::new(kind, scarce);
        for n in 0..rounds {
            let name = kind.name();
            failed += round(&small, scarce, n).unwrap_or_else(|e| panic!("{name}, {scarce:?}, round {n}: {e}"));
        }
        let (name, seconds) = (kind.name(), begin.elapsed().as_secs_f64());
        println!("{name}: {rounds} disks without {scarce:?}, {failed} operations failed, in {seconds:.0} s");
        assert!(failed as u64 >= rounds / 2, "hardly anything failed");
    }
}

#[test]
fn full_ext4() {
    full(Kind::Ext4);
}

#[test]
fn full_xfs() {
    full(Kind::Xfs);
}
