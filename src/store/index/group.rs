//! Writes of one process, in turn, and as many as wait in one transaction (`docs/ORDERING.md`, "Writes that wait").
//!
//! A transaction costs one sync of the log, which takes longer than most writes. So all writes of a process go through
//! one connection, first come, first served. Who has it begins a transaction, does its work in a savepoint, and hands the
//! connection on with the transaction open if another waits that may join it; the last commits for all. Each returns
//! when that is on disk, and not before. Work that fails takes back its own savepoint only.
//!
//! Work that removes or replaces files by what the rows say must not see rows that may still be taken back. It runs in a
//! transaction of its own ([`super::Index::write`]); rows alone, and new files under new names, may share one
//! ([`super::Index::write_together`]).

use super::{Change, Index, Late, db_error};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::lock::Turns;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

/// Writes in one transaction, at most.
const MOST: usize = 128;
/// How long a transaction takes others in. Other processes wait meanwhile.
const OPEN: Duration = Duration::from_millis(100);

/// The writes of one store in this process.
pub(crate) struct Group {
    database: PathBuf,
    /// Between processes.
    turns: Turns,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Arc<Place>>,
    /// Who has the connection.
    owner: Option<ThreadId>,
    /// The connection, while nobody has it. Opened when it is needed.
    idle: Option<Index>,
}

/// A place in the queue.
struct Place {
    together: bool,
    owner: ThreadId,
    handed: Mutex<Option<Handed>>,
    ready: Condvar,
}

/// What goes from one to the next.
#[derive(Default)]
struct Handed {
    index: Option<Index>,
    open: Option<Open>,
}

/// A transaction that is not committed yet.
struct Open {
    since: Instant,
    works: usize,
    late: Late,
    outcome: Arc<Outcome>,
    /// The connection is to be opened anew afterwards.
    suspect: bool,
}

/// What becomes of a transaction, for all who took part.
#[derive(Default)]
struct Outcome {
    known: Mutex<Option<Result<(), Failure>>>,
    changed: Condvar,
}

#[derive(Clone)]
struct Failure(ErrorKind, String, Option<i32>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Outcome {
    fn tell(&self, result: &Result<()>) {
        let failure = |e: &Error| Failure(e.kind(), e.to_string(), e.io_error().and_then(std::io::Error::raw_os_error));
        *lock(&self.known) = Some(result.as_ref().copied().map_err(failure));
        self.changed.notify_all();
    }

    fn wait(&self) -> Result<()> {
        let mut known = lock(&self.known);
        loop {
            match &*known {
                Some(Ok(())) => return Ok(()),
                Some(Err(Failure(kind, text, errno))) => {
                    let error = Error::new(*kind, text.clone());
                    return Err(match errno {
                        Some(errno) => error.source(std::io::Error::from_raw_os_error(*errno)),
                        None => error,
                    });
                }
                None => known = self.changed.wait(known).unwrap_or_else(|e| e.into_inner()),
            }
        }
    }
}

impl Group {
    pub(crate) fn new(root: &Path, database: &Path) -> Self {
        Self { database: database.to_owned(), turns: Turns::new(root), state: Mutex::default() }
    }

    /// Runs `work` in a transaction, with others that wait if `together`; it is on disk when this returns `Ok`.
    pub(super) fn write<T>(&self, together: bool, work: impl FnOnce(&Change<'_>) -> Result<T>) -> Result<T> {
        let mut turn = self.take(together)?;
        let outcome = turn.begin()?;
        let done = turn.run(work);
        drop(turn);
        let done = done?;
        outcome.wait().map(|()| done)
    }

    /// Waits for the connection.
    fn take(&self, together: bool) -> Result<Turn<'_>> {
        let me = thread::current().id();
        let mut state = lock(&self.state);
        let handed = match state.owner {
            None => {
                state.owner = Some(me);
                Handed { index: state.idle.take(), open: None }
            }
            // It would wait for itself.
            Some(owner) if owner == me => {
                return Err(Error::new(ErrorKind::FailedPrecondition, "a transaction within a transaction"));
            }
            Some(_) => {
                let place = Place { together, owner: me, handed: Mutex::default(), ready: Condvar::new() };
                let place = Arc::new(place);
                state.queue.push_back(place.clone());
                drop(state);
                let handed = lock(&place.handed);
                let wait = place.ready.wait_while(handed, |handed| handed.is_none());
                wait.unwrap_or_else(|e| e.into_inner()).take().unwrap_or_default()
            }
        };
        Ok(Turn { group: self, handed, together, working: false })
    }

    /// Whether the next in the queue may do its work in the transaction that is open.
    fn goes_on(&self, turn: &Turn<'_>) -> bool {
        let Some(open) = turn.handed.open.as_ref().filter(|_| turn.together) else { return false };
        let fits = open.works < MOST && open.since.elapsed() < OPEN && !turn.is_lost();
        fits && lock(&self.state).queue.front().is_some_and(|next| next.together)
    }

    /// Hands everything to the next in the queue.
    fn pass(&self, handed: Handed) {
        let mut state = lock(&self.state);
        match state.queue.pop_front() {
            None => (state.owner, state.idle) = (None, handed.index),
            Some(next) => {
                state.owner = Some(next.owner);
                *lock(&next.handed) = Some(handed);
                next.ready.notify_one();
            }
        }
    }
}

/// The connection, in the hands of one thread. Dropped, it goes to the next; also when the work panics.
struct Turn<'g> {
    group: &'g Group,
    handed: Handed,
    together: bool,
    working: bool,
}

impl Turn<'_> {
    /// Begins a transaction if none was handed over. Returns where to learn what becomes of it.
    fn begin(&mut self) -> Result<Arc<Outcome>> {
        if let Some(open) = &self.handed.open {
            return Ok(open.outcome.clone());
        }
        let mut index = match self.handed.index.take() {
            Some(index) => index,
            None => Index::open(&self.group.database, false)?,
        };
        index.sync_names()?;
        self.group.turns.take()?;
        if let Err(e) = index.db.execute_batch("BEGIN IMMEDIATE").map_err(db_error("begin")) {
            self.group.turns.give();
            // What SQLite could not open for writing it opened for reading, and stays with that.
            self.handed.index = (e.kind() != ErrorKind::Io).then_some(index);
            return Err(e);
        }
        let outcome = Arc::<Outcome>::default();
        let (since, late) = (Instant::now(), Late::default());
        self.handed.open = Some(Open { since, works: 0, late, outcome: outcome.clone(), suspect: false });
        self.handed.index = Some(index);
        Ok(outcome)
    }

    /// Does `work` in a savepoint, which is taken back when it fails.
    fn run<T>(&mut self, work: impl FnOnce(&Change<'_>) -> Result<T>) -> Result<T> {
        let Handed { index: Some(index), open: Some(open) } = &mut self.handed else {
            return Err(Error::new(ErrorKind::FailedPrecondition, "no transaction is open"));
        };
        index.db.execute_batch("SAVEPOINT work").map_err(db_error("begin"))?;
        self.working = true;
        let change = Change { tx: &index.db, late: Default::default() };
        let done = work(&change);
        let late = change.late.into_inner();
        self.working = false;
        match &done {
            Ok(_) => {
                index.db.execute_batch("RELEASE work").map_err(db_error("write"))?;
                open.late.add(late);
                open.works += 1;
            }
            Err(e) => {
                open.suspect |= e.kind() == ErrorKind::Io;
                self.take_back();
            }
        }
        done
    }

    fn take_back(&mut self) {
        self.working = false;
        if let Some(index) = self.handed.index.as_ref().filter(|index| !index.db.is_autocommit())
            && index.db.execute_batch("ROLLBACK TO work; RELEASE work").is_err()
        {
            // Then nothing of it stays.
            let _ = index.db.execute_batch("ROLLBACK");
        }
    }

    /// Whether SQLite has taken the whole transaction back, as it does when the disk is full.
    fn is_lost(&self) -> bool {
        self.handed.index.as_ref().is_none_or(|index| index.db.is_autocommit())
    }

    /// Commits, and tells all who took part.
    fn end(&mut self) {
        let Some(open) = self.handed.open.take() else { return };
        let lost = self.is_lost();
        let Some(index) = &self.handed.index else { return };
        let done = match open.works {
            _ if lost => Err(Error::new(ErrorKind::Io, "database: the transaction was taken back")),
            0 => index.db.execute_batch("ROLLBACK").map_err(db_error("roll back")),
            _ => open.late.sync().and_then(|()| index.db.execute_batch("COMMIT").map_err(db_error("commit"))),
        };
        if !index.db.is_autocommit() {
            let _ = index.db.execute_batch("ROLLBACK");
        }
        self.group.turns.give();
        if open.suspect || done.is_err() {
            self.handed.index = None;
        }
        open.outcome.tell(&done);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.working {
            // The work panicked. What others did before it counts.
            self.take_back();
            self.end();
        } else if !self.group.goes_on(self) {
            self.end();
        }
        self.group.pass(std::mem::take(&mut self.handed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::index::LayerInfo;
    use crate::{Digest, Store};
    use std::sync::mpsc;
    use std::thread::{Scope, ScopedJoinHandle};

    struct Place {
        dir: tempfile::TempDir,
        group: Arc<Group>,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            for name in ["locks", "tmp"] {
                std::fs::create_dir(dir.path().join(name)).unwrap();
            }
            let database = dir.path().join("db");
            drop(Index::open(&database, true).unwrap());
            Self { group: Arc::new(Group::new(dir.path(), &database)), dir }
        }

        fn index(&self) -> Index {
            Index::open(&self.dir.path().join("db"), false).unwrap().in_group(Some(self.group.clone()))
        }

        fn layers(&self) -> usize {
            self.index().layers().unwrap().len()
        }

        /// Transactions in the log: each ends with a frame that says how large the database is.
        fn commits(&self) -> usize {
            let log = std::fs::read(self.dir.path().join("db-wal")).unwrap();
            let frames = log[32..].chunks_exact(24 + 4096);
            frames.filter(|frame| frame[4..8] != [0; 4]).count()
        }

        /// Waits until so many wait for the connection.
        fn wait_for_queue(&self, len: usize) {
            while lock(&self.group.state).queue.len() < len {
                thread::yield_now();
            }
        }
    }

    fn layer(name: &str) -> LayerInfo {
        LayerInfo { diff_id: Digest::of(name.as_bytes()), tar_size: 1, entries: 1, held: true }
    }

    /// Work that begins and does not end before it is told to.
    fn held<'s>(scope: &'s Scope<'s, '_>, place: &'s Place) -> (mpsc::Sender<()>, ScopedJoinHandle<'s, Result<()>>) {
        let (begun, begins) = mpsc::channel();
        let (end, ends) = mpsc::channel::<()>();
        let work = move || {
            place.index().write_together(|change| {
                begun.send(()).unwrap();
                ends.recv().unwrap();
                change.add_layer(&layer("held"))
            })
        };
        let thread = scope.spawn(work);
        begins.recv().unwrap();
        (end, thread)
    }

    #[test]
    fn what_waits_is_committed_once_and_acknowledged_after_it() {
        let place = Place::new();
        let keeps_log = place.index();
        thread::scope(|scope| {
            let (end, first) = held(scope, &place);
            let rest: Vec<_> = (0..20)
                .map(|n| {
                    let place = &place;
                    scope.spawn(move || {
                        place.index().write_together(|change| change.add_layer(&layer(&n.to_string())))?;
                        // Whoever looks sees it at once.
                        assert!(place.layers() > n.min(1));
                        Ok::<_, Error>(())
                    })
                })
                .collect();
            place.wait_for_queue(20);
            assert_eq!(place.layers(), 0);
            assert!(!first.is_finished());
            end.send(()).unwrap();
            first.join().unwrap().unwrap();
            rest.into_iter().for_each(|thread| thread.join().unwrap().unwrap());
        });
        assert_eq!((place.layers(), place.commits()), (21, 1));
        drop(keeps_log);
    }

    #[test]
    fn what_fails_or_panics_takes_back_its_own_only() {
        let place = Place::new();
        thread::scope(|scope| {
            let place = &place;
            let (end, first) = held(scope, place);
            let fails = scope.spawn(|| {
                let work = |c: &Change<'_>| c.add_layer(&layer("fails")).and(Err::<(), _>(Error::invalid("stop")));
                place.index().write_together(work)
            });
            place.wait_for_queue(1);
            let panics = scope.spawn(|| {
                let work = |c: &Change<'_>| {
                    c.add_layer(&layer("panics")).unwrap();
                    panic!("on purpose")
                };
                place.index().write_together::<()>(work)
            });
            place.wait_for_queue(2);
            let last = scope.spawn(|| place.index().write_together(|c| c.add_layer(&layer("last"))));
            place.wait_for_queue(3);
            end.send(()).unwrap();
            first.join().unwrap().unwrap();
            assert_eq!(fails.join().unwrap().unwrap_err().kind(), ErrorKind::InvalidInput);
            assert!(panics.join().is_err());
            last.join().unwrap().unwrap();
        });
        let mut there: Vec<_> = place.index().layers().unwrap().into_iter().map(|l| l.diff_id).collect();
        let mut expected = ["held", "last"].map(|name| Digest::of(name.as_bytes()));
        there.sort();
        expected.sort();
        assert_eq!(there, expected);
    }

    /// Work on files sees nothing that may still be taken back, and nobody joins its transaction.
    #[test]
    fn work_alone_sees_what_is_on_disk() {
        let place = Place::new();
        let keeps_log = place.index();
        thread::scope(|scope| {
            let place = &place;
            let (end, first) = held(scope, place);
            let alone = scope.spawn(|| {
                place.index().write(|change| {
                    let held = change.has_layer(&layer("held").diff_id)?;
                    assert!(held && place.layers() == 1, "another connection sees it, too");
                    change.add_layer(&layer("alone"))
                })
            });
            place.wait_for_queue(1);
            let last = scope.spawn(|| place.index().write_together(|c| c.add_layer(&layer("last"))));
            place.wait_for_queue(2);
            end.send(()).unwrap();
            first.join().unwrap().unwrap();
            alone.join().unwrap().unwrap();
            last.join().unwrap().unwrap();
        });
        assert_eq!((place.layers(), place.commits()), (3, 3));
        drop(keeps_log);
    }

    #[test]
    fn a_transaction_within_a_transaction_is_refused() {
        let place = Place::new();
        let mut inner = place.index();
        let nested = place.index().write_together(|_| inner.write(|_| Ok(())));
        assert_eq!(nested.unwrap_err().kind(), ErrorKind::FailedPrecondition);
        place.index().write_together(|c| c.add_layer(&layer("after"))).unwrap();
        assert_eq!(place.layers(), 1);
    }

    /// A transaction that cannot be committed fails for all who took part, and what comes after it succeeds.
    #[test]
    fn a_failed_commit_fails_for_all() {
        let place = Place::new();
        thread::scope(|scope| {
            let place = &place;
            let (end, first) = held(scope, place);
            let missing = place.dir.path().join("missing");
            let second = scope.spawn(move || {
                place.index().write_together(|change| {
                    change.sync_at_end(None, &missing);
                    change.add_layer(&layer("second"))
                })
            });
            place.wait_for_queue(1);
            end.send(()).unwrap();
            for thread in [first, second] {
                let error = thread.join().unwrap().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::NotFound);
                assert!(error.to_string().contains("missing"), "{error}");
            }
        });
        assert_eq!(place.layers(), 0);
        place.index().write_together(|c| c.add_layer(&layer("after"))).unwrap();
        assert_eq!(place.layers(), 1);
    }

    /// Two processes (two open stores are as two): one that writes all the time lets the other in after each transaction.
    #[test]
    fn processes_take_turns() {
        use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
        let dir = tempfile::tempdir().unwrap();
        let stores = [(); 2].map(|()| Store::open(dir.path().join("s")).unwrap());
        let (stop, count) = (AtomicBool::new(false), AtomicUsize::new(0));
        let write = |store: &Store| store.with_index(|index| index.write(|change| change.next_generation())).unwrap();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !stop.load(Relaxed) {
                        write(&stores[0]);
                        count.fetch_add(1, Relaxed);
                    }
                });
            }
            while count.load(Relaxed) < 10 {
                thread::yield_now();
            }
            let before = count.load(Relaxed);
            (0..20).for_each(|_| assert!(write(&stores[1]) > 0));
            let between = count.load(Relaxed) - before;
            stop.store(true, Relaxed);
            // Between two of its own, this thread may be put off by the scheduler.
            assert!(between < 20 * 10, "{between} transactions went before 20 of the other's");
        });
    }
}
