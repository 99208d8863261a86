//! Writes that wait for each other, in one process.

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
        let group = Group::new(dir.path(), &database);
        // As if a write had waited for another before.
        lock(&group.state).spare = Some(Index::open(&database, false).unwrap());
        Self { group: Arc::new(group), dir }
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

/// Nobody else's connection writes, so nothing that the caller's has in memory is read again.
#[test]
fn a_lone_write_keeps_the_caller_s_connection() {
    let place = Place::new();
    let mut index = place.index();
    // It counts what other connections commit.
    let version = |index: &Index| index.db.pragma_query_value(None, "data_version", |r| r.get::<_, i64>(0)).unwrap();
    index.write(|c| c.add_layer(&layer("first"))).unwrap();
    let before = version(&index);
    index.write_together(|c| c.add_layer(&layer("together"))).unwrap();
    index.write(|c| c.add_layer(&layer("alone"))).unwrap();
    assert_eq!((version(&index), index.layers().unwrap().len()), (before, 3));
    place.index().write(|c| c.add_layer(&layer("another"))).unwrap();
    assert_ne!(version(&index), before);
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

/// What could not be released was released by the work itself: neither it nor what shared its transaction may stay
/// unless that was acknowledged.
#[test]
fn what_cannot_be_released_is_not_committed() {
    let place = Place::new();
    let acknowledged = thread::scope(|scope| {
        let place = &place;
        let (end, first) = held(scope, place);
        let releases = scope.spawn(|| {
            let work = |c: &Change<'_>| {
                c.add_layer(&layer("releases"))?;
                c.tx.execute_batch("RELEASE work").map_err(db_error("release"))
            };
            place.index().write_together(work)
        });
        place.wait_for_queue(1);
        let last = scope.spawn(|| place.index().write_together(|c| c.add_layer(&layer("last"))));
        place.wait_for_queue(2);
        end.send(()).unwrap();
        assert!(releases.join().unwrap().is_err());
        let told = [("held", first.join().unwrap().is_ok()), ("last", last.join().unwrap().is_ok())];
        told.into_iter().filter(|(_, is_ok)| *is_ok).map(|(name, _)| Digest::of(name.as_bytes())).collect::<Vec<_>>()
    });
    let mut there: Vec<_> = place.index().layers().unwrap().into_iter().map(|l| l.diff_id).collect();
    let mut acknowledged = acknowledged;
    there.sort();
    acknowledged.sort();
    assert_eq!(there, acknowledged);
}

/// Without anybody who waits, there is no second connection; whoever waits gets one.
#[test]
fn the_first_writes_use_the_callers_connection_alone() {
    let place = Place::new();
    lock(&place.group.state).spare = None;
    place.index().write_together(|c| c.add_layer(&layer("together"))).unwrap();
    place.index().write(|c| c.add_layer(&layer("alone"))).unwrap();
    assert!(lock(&place.group.state).spare.is_none());
    let nested = place.index().write(|_| place.index().write(|_| Ok(())));
    assert_eq!(nested.unwrap_err().kind(), ErrorKind::FailedPrecondition);
    let panics = || place.index().write::<()>(|_| panic!("on purpose"));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
    thread::scope(|scope| {
        let place = &place;
        let (end, first) = held(scope, place);
        let second = scope.spawn(|| place.index().write_together(|c| c.add_layer(&layer("second"))));
        place.wait_for_queue(1);
        end.send(()).unwrap();
        first.join().unwrap().unwrap();
        second.join().unwrap().unwrap();
    });
    assert!(lock(&place.group.state).spare.is_some());
    assert_eq!(place.layers(), 4);
}
