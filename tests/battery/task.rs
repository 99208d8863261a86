//! Work to be disturbed: a script, and the store it begins with.

use crate::ops::{Answer, Expected, Op};
use crate::volume::memory_dir;
use crate::work::Worker;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use tempfile::TempDir;

/// A small workload in which every step of making a store, importing, committing, collecting garbage and rebuilding
/// occurs.
const SMALL: &[Op] = &[
    Op::Open,
    Op::Import(2),
    Op::Keep(3),
    Op::Adopt(4),
    Op::Release(2),
    Op::Commit(5),
    Op::Gc,
    Op::Import(4),
    Op::Rebuild,
];
/// Makes a damaged store, which [`MEND`] mends.
const HURT: &[Op] = &[Op::Open, Op::Keep(3), Op::Import(2), Op::Damage];
const MEND: &[Op] = &[Op::Open, Op::Repair];

pub(crate) struct Task {
    pub(crate) name: &'static str,
    pub(crate) script: &'static [Op],
    /// The store there is before, and what must be in it.
    from: Option<(TempDir, Expected)>,
}

impl Task {
    /// Making a store, importing, committing, collecting garbage, rebuilding.
    pub(crate) fn small() -> Self {
        Self { name: "import, commit, gc, rebuild", script: SMALL, from: None }
    }

    /// Repairing a store.
    pub(crate) fn mend() -> Self {
        let dir = memory_dir();
        let mut worker = Worker::start(&dir.path().join("store"));
        worker.send_all(HURT);
        let answers = worker.answers();
        assert!(answers.iter().all(|a| matches!(a, Answer::Done(_))), "without a fault: {answers:?}");
        let mut expected = Expected::default();
        expected.after(HURT, &answers);
        Self { name: "repair", script: MEND, from: Some((dir, expected)) }
    }

    pub(crate) fn all() -> [Self; 2] {
        [Self::small(), Self::mend()]
    }

    /// Lays out the store there is before at `root`; what must be in it.
    pub(crate) fn begin(&self, root: &Path) -> Expected {
        let Some((dir, expected)) = &self.from else { return Expected::default() };
        copy(&dir.path().join("store"), root);
        expected.clone()
    }
}

/// Copies directories and files; a store has nothing else while nothing is mounted.
fn copy(from: &Path, to: &Path) {
    DirBuilder::new().mode(0o700).create(to).expect("a directory");
    for found in fs::read_dir(from).expect("a directory") {
        let path = found.expect("a file").path();
        let to = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(&path, &to).expect("room");
        }
    }
}
