//! Operations of threads that wait at the same time share one write to the disk.
//!
//! The first thread that comes while nobody writes, writes for everybody who waits; who comes while
//! it does waits for the next one. Nobody waits for company: a thread alone writes at once.

use std::{
    collections::HashMap,
    mem,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

/// A queue of operations of type `O` with outcomes of type `R`.
pub(super) struct GroupCommit<O, R> {
    state: Mutex<State<O, R>>,
    changed: Condvar,
}

struct State<O, R> {
    next: u64,
    waiting: Vec<(u64, O)>,
    outcomes: HashMap<u64, Option<R>>,
    writing: bool,
}

impl<O, R> Default for GroupCommit<O, R> {
    fn default() -> Self {
        let state = State { next: 0, waiting: Vec::new(), outcomes: HashMap::new(), writing: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }
}

impl<O, R> GroupCommit<O, R> {
    /// Runs `operation`, maybe with those of other threads: `write` runs a list of operations, in
    /// order, and returns one outcome for each. Calls of `write` never overlap.
    ///
    /// # Panics
    /// When the `write` that ran the operation panicked, in whatever thread.
    pub(super) fn run(&self, operation: O, write: impl FnOnce(Vec<O>) -> Vec<R>) -> R {
        let mut state = self.lock();
        let ticket = state.next;
        state.next += 1;
        state.waiting.push((ticket, operation));
        while state.writing {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            if let Some(outcome) = state.outcomes.remove(&ticket) {
                return outcome.expect("the thread that wrote this operation panicked");
            }
        }
        state.writing = true;
        let (tickets, operations) = mem::take(&mut state.waiting).into_iter().unzip();
        drop(state);
        let turn = Turn { group: self, tickets, outcomes: Vec::new() };
        turn.write(operations, write);
        let outcome = self.lock().outcomes.remove(&ticket).flatten();
        outcome.expect("every operation has an outcome")
    }

    fn lock(&self) -> MutexGuard<'_, State<O, R>> {
        // Nothing panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A write for the holders of `tickets`. Ending it, also by a panic, hands out the outcomes.
struct Turn<'a, O, R> {
    group: &'a GroupCommit<O, R>,
    tickets: Vec<u64>,
    outcomes: Vec<R>,
}

impl<O, R> Turn<'_, O, R> {
    fn write(mut self, operations: Vec<O>, write: impl FnOnce(Vec<O>) -> Vec<R>) {
        self.outcomes = write(operations);
    }
}

impl<O, R> Drop for Turn<'_, O, R> {
    fn drop(&mut self) {
        let mut state = self.group.lock();
        let mut outcomes = mem::take(&mut self.outcomes).into_iter();
        for ticket in mem::take(&mut self.tickets) {
            state.outcomes.insert(ticket, outcomes.next());
        }
        state.writing = false;
        drop(state);
        self.group.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        sync::{
            atomic::{AtomicUsize, Ordering},
            mpsc,
        },
        thread,
    };

    use super::*;

    #[test]
    fn operations_that_wait_together_are_written_together() {
        let group = GroupCommit::default();
        let writes = AtomicUsize::new(0);
        let (started, first_runs) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let double = |operations: Vec<u32>| {
            writes.fetch_add(1, Ordering::SeqCst);
            operations.into_iter().map(|value| 2 * value).collect::<Vec<_>>()
        };
        thread::scope(|scope| {
            let (group, double) = (&group, &double);
            let first = scope.spawn(move || {
                group.run(0, |operations| {
                    started.send(()).expect("the test listens");
                    released.recv().expect("the test sends");
                    double(operations)
                })
            });
            first_runs.recv().expect("the first write begins");
            let others: Vec<_> =
                (1..6).map(|value| scope.spawn(move || (value, group.run(value, double)))).collect();
            while group.lock().waiting.len() < 5 {
                thread::yield_now();
            }
            release.send(()).expect("the first write waits");
            assert_eq!(first.join().expect("no panic"), 0);
            for other in others {
                let (value, outcome) = other.join().expect("no panic");
                assert_eq!(outcome, 2 * value);
            }
        });
        assert_eq!(writes.into_inner(), 2, "one write for the first, and one for the five that waited");
        assert!(group.lock().outcomes.is_empty());
    }

    #[test]
    fn a_write_that_panics_panics_in_every_thread_it_wrote_for_and_ends() {
        let group = GroupCommit::<u32, u32>::default();
        let failed = catch_unwind(AssertUnwindSafe(|| group.run(1, |_| panic!("a defect"))));
        assert!(failed.is_err());
        assert_eq!(group.run(2, |operations| operations), 2);
    }
}
