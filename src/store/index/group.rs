//! Writes of one process: one after the other, and those that wait together in one transaction (`docs/ORDERING.md`,
//! "Writes that wait").
//!
//! A transaction costs one sync of the log, which takes longer than most writes. So the writes of a process go one by
//! one, first come, first served. The first begins a transaction on its own connection and does its work in a savepoint.
//! If another waits that may join, it gets the connection with the transaction open; the last one commits for all. Each
//! write returns when the commit is on disk, and not before. Work that fails takes back its own savepoint only.
//!
//! Until a write of this process waits for another, each commits on its caller's connection, and there is no second one.
//! After that, a write that finds nobody before it and nobody after it wakes no thread, and reads again nothing that its
//! connection has in memory.
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
/// How long a transaction lets others join. Other processes wait meanwhile.
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
    /// The thread whose turn it is.
    owner: Option<ThreadId>,
    /// What a writer keeps while its own connection is in the hands of others. Opened when it is needed.
    spare: Option<Index>,
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
    /// Work failed with an I/O error: the connection is opened anew afterwards.
    suspect: bool,
}

/// How a transaction ended, for all who took part in it.
#[derive(Default)]
struct Outcome {
    known: Mutex<Known>,
    changed: Condvar,
}

#[derive(Default)]
struct Known {
    result: Option<Result<(), Failure>>,
    /// A thread waits for it.
    awaited: bool,
}

#[derive(Clone)]
struct Failure(ErrorKind, String, Option<i32>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Outcome {
    fn tell(&self, result: &Result<()>) {
        let failure = |e: &Error| Failure(e.kind(), e.to_string(), e.io_error().and_then(std::io::Error::raw_os_error));
        let mut known = lock(&self.known);
        known.result = Some(result.as_ref().copied().map_err(failure));
        if known.awaited {
            self.changed.notify_all();
        }
    }

    fn wait(&self) -> Result<()> {
        let mut known = lock(&self.known);
        loop {
            match &known.result {
                Some(Ok(())) => return Ok(()),
                Some(Err(Failure(kind, text, errno))) => {
                    let error = Error::new(*kind, text.clone());
                    return Err(match errno {
                        Some(errno) => error.source(std::io::Error::from_raw_os_error(*errno)),
                        None => error,
                    });
                }
                None => {
                    known.awaited = true;
                    known = self.changed.wait(known).unwrap_or_else(|e| e.into_inner());
                }
            }
        }
    }
}

impl Group {
    pub(crate) fn new(root: &Path, database: &Path) -> Self {
        Self { database: database.to_owned(), turns: Turns::new(root), state: Mutex::default() }
    }

    /// Runs `work` in a transaction, with others that wait if `together`; it is on disk when this returns `Ok`.
    /// `own` is the caller's connection.
    pub(super) fn write<T>(
        &self,
        together: bool,
        own: &mut Index,
        work: impl FnOnce(&Change<'_>) -> Result<T>,
    ) -> Result<T> {
        if self.is_first() {
            return self.write_alone(own, work);
        }
        let mut turn = self.take(together, own)?;
        let outcome = turn.begin()?;
        let done = turn.run(work);
        drop(turn);
        let done = done?;
        outcome.wait().map(|()| done)
    }

    /// Takes the turn if no write of this process has waited for another yet.
    fn is_first(&self) -> bool {
        let mut state = lock(&self.state);
        let is_first = state.owner.is_none() && state.spare.is_none();
        if is_first {
            state.owner = Some(thread::current().id());
        }
        is_first
    }

    /// Writes on the caller's connection: a process in which nobody waits needs no other. Who comes meanwhile waits for
    /// the end of this transaction.
    fn write_alone<T>(&self, own: &mut Index, work: impl FnOnce(&Change<'_>) -> Result<T>) -> Result<T> {
        let _turn = Alone(self);
        self.turns.take()?;
        own.write_alone(work)
    }

    /// Waits for the turn.
    fn take<'g>(&'g self, together: bool, own: &'g mut Index) -> Result<Turn<'g>> {
        let me = thread::current().id();
        let mut state = lock(&self.state);
        let handed = match state.owner {
            None => {
                state.owner = Some(me);
                let mut spare = state.spare.take();
                if let Some(spare) = &mut spare {
                    spare.swap_connection(own);
                }
                Handed { index: spare, open: None }
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
        Ok(Turn { group: self, own, handed, together, working: false })
    }

    /// Whether the next in the queue may do its work in the transaction that is open.
    fn goes_on(&self, turn: &Turn<'_>) -> bool {
        let Some(open) = turn.handed.open.as_ref().filter(|_| turn.together) else { return false };
        let fits = open.works < MOST && open.since.elapsed() < OPEN && !turn.is_lost();
        fits && lock(&self.state).queue.front().is_some_and(|next| next.together)
    }

    /// Hands everything to the next in the queue. If there is none, the caller keeps the connection that wrote last: what
    /// it has in memory is what is in the database.
    fn pass(&self, mut handed: Handed, own: &mut Index) {
        let mut state = lock(&self.state);
        if let Some(index) = handed.index.as_mut().filter(|_| state.queue.is_empty()) {
            index.swap_connection(own);
        }
        state.hand_on(handed);
    }
}

impl State {
    fn hand_on(&mut self, handed: Handed) {
        match self.queue.pop_front() {
            None => (self.owner, self.spare) = (None, handed.index),
            Some(next) => {
                self.owner = Some(next.owner);
                *lock(&next.handed) = Some(handed);
                next.ready.notify_one();
            }
        }
    }
}

/// The turn of a thread that writes on its own connection. Dropped, it goes to the next; also when the work panics.
struct Alone<'g>(&'g Group);

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.0.turns.give();
        lock(&self.0.state).hand_on(Handed::default());
    }
}

/// The turn of one thread. Dropped, it goes to the next; also when the work panics.
struct Turn<'g> {
    group: &'g Group,
    own: &'g mut Index,
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
        // What cannot be released must not stay open: the work after it would be inside of it.
        let done = done.and_then(|done| {
            index.db.execute_batch("RELEASE work").map_err(db_error("write"))?;
            Ok(done)
        });
        match &done {
            Ok(_) => {
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
        self.group.pass(std::mem::take(&mut self.handed), self.own);
    }
}

#[cfg(test)]
#[path = "group_tests.rs"]
mod tests;
