//! Noise drawn ahead of time.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use zeroize::{Zeroize as _, Zeroizing};

use super::{NoiseError, NoiseShare, NoiseSource, check_bins};

/// How long the worker rests after a failed draw that nobody was told of, before it tries again.
const REST_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// A thread that keeps noise shares of one mechanism and row width ready.
///
/// The time that a draw takes tells something about its value, so a request that waited for its own
/// draw would show it to whoever measures latency. A request that takes a share from the pool waits
/// only when the pool is empty, and then for the next share in line; size the pool for the largest
/// batch that the server takes.
///
/// Dropping the pool ends the thread after the draw it is in and wipes the shares left.
pub struct NoisePool {
    shared: Arc<Shared>,
    bins: usize,
    worker: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    ready: Ready,
    /// The latest draw, if it failed and no one has been told of it yet.
    failure: Option<NoiseError>,
    /// Set by the pool to end the worker.
    stop: bool,
    /// Set by the worker when it has ended, also by a panic.
    ended: bool,
}

/// Rows of noise in the order in which they were drawn.
///
/// Copied to places that were there before: a row that stayed where its draw put it would lie near or far
/// according to what the draw had allocated and freed, which depends on its value, and the time to fetch it
/// from memory would show something of that.
struct Ready {
    places: Zeroizing<Vec<i64>>,
    bins: usize,
    /// The place of the oldest row, in rows.
    oldest: usize,
    rows: usize,
}

impl Ready {
    fn new(bins: usize, capacity: usize) -> Self {
        Ready { places: Zeroizing::new(vec![0; bins * capacity]), bins, oldest: 0, rows: 0 }
    }

    fn place(&mut self, row: usize) -> &mut [i64] {
        let start = (self.oldest + row) * self.bins % self.places.len();
        &mut self.places[start..start + self.bins]
    }

    /// Keeps a copy of the row. There must be a place left.
    fn push(&mut self, share: &NoiseShare) {
        let row = self.rows;
        self.place(row).copy_from_slice(share.values());
        self.rows += 1;
    }

    /// Takes the oldest row out and wipes its place.
    fn pop(&mut self) -> Option<NoiseShare> {
        self.rows = self.rows.checked_sub(1)?;
        let place = self.place(0);
        let share = NoiseShare::new(place.to_vec());
        place.zeroize();
        self.oldest = (self.oldest + 1) % (self.places.len() / self.bins);
        Some(share)
    }
}

impl NoisePool {
    /// Starts to draw rows of `bins` bins from `source` and keeps `capacity` of them ready.
    ///
    /// # Errors
    /// [`NoiseError::Mechanism`] for an unsupported number of bins, [`NoiseError::Thread`] when the
    /// system has no thread left.
    pub fn new(
        source: impl NoiseSource + 'static,
        bins: usize,
        capacity: NonZeroUsize,
    ) -> Result<Self, NoiseError> {
        check_bins(bins)?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                ready: Ready::new(bins, capacity.get()),
                failure: None,
                stop: false,
                ended: false,
            }),
            changed: Condvar::new(),
        });
        let worker = thread::Builder::new()
            .name("noise-pool".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || fill(&shared, source, bins, capacity.get())
            })
            .map_err(|error| NoiseError::Thread { detail: error.to_string() })?;
        Ok(Self { shared, bins, worker: Some(worker) })
    }

    /// Bins of the rows in this pool.
    pub fn bins(&self) -> usize {
        self.bins
    }

    /// Rows that are ready now.
    pub fn ready(&self) -> usize {
        self.shared.lock().ready.rows
    }

    /// Takes the oldest share; blocks the thread while there is none.
    ///
    /// # Errors
    /// The error of a draw that failed: the caller must then release nothing. Each failure is
    /// reported once and the draw is tried again for the next caller. While nobody asks, it is tried again
    /// every second, so that a failure is not told long after its cause is gone.
    pub fn take(&self) -> Result<NoiseShare, NoiseError> {
        let mut state = self.shared.lock();
        loop {
            if let Some(share) = state.ready.pop() {
                self.shared.changed.notify_all();
                return Ok(share);
            }
            if let Some(failure) = state.failure.take() {
                self.shared.changed.notify_all();
                return Err(failure);
            }
            if state.ended {
                return Err(NoiseError::PoolStopped);
            }
            state = self.shared.wait(state);
        }
    }
}

impl Drop for NoisePool {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        if let Some(worker) = self.worker.take() {
            // A panic of the worker was already reported to those who asked for shares.
            drop(worker.join());
        }
    }
}

impl Shared {
    /// No code panics while it holds the lock, so a poisoned lock still guards a sound state.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'guard>(&self, guard: MutexGuard<'guard, State>) -> MutexGuard<'guard, State> {
        self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there may be something to draw.
    fn rest<'guard>(
        &'guard self,
        mut state: MutexGuard<'guard, State>,
        capacity: usize,
    ) -> MutexGuard<'guard, State> {
        while !state.stop && (state.ready.rows >= capacity || state.failure.is_some()) {
            if state.failure.is_none() {
                state = self.wait(state);
                continue;
            }
            // A source that stays broken is not spun on: it is asked again when somebody was told, or later.
            let rested = self.changed.wait_timeout(state, REST_AFTER_FAILURE);
            let (rested, waited) = rested.unwrap_or_else(PoisonError::into_inner);
            state = rested;
            if waited.timed_out() {
                break;
            }
        }
        state
    }
}

/// Tells those who wait that no more shares come, however the worker ends.
struct EndNotice<'a>(&'a Shared);

impl Drop for EndNotice<'_> {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_all();
    }
}

fn fill(shared: &Shared, mut source: impl NoiseSource, bins: usize, capacity: usize) {
    let _notice = EndNotice(shared);
    loop {
        if shared.rest(shared.lock(), capacity).stop {
            return;
        }
        // Drawn outside the lock: takers are not held up.
        let drawn = source.draw(bins);
        let mut state = shared.lock();
        match drawn {
            Ok(share) => {
                state.failure = None;
                state.ready.push(&share);
            }
            Err(error) => state.failure = Some(error),
        }
        drop(state);
        shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Draws what the test tells it to; ends by a panic when the test hangs up.
    struct Scripted(mpsc::Receiver<Result<i64, NoiseError>>);

    impl NoiseSource for Scripted {
        fn draw(&mut self, bins: usize) -> Result<NoiseShare, NoiseError> {
            let value = self.0.recv().expect("the test still scripts draws")?;
            Ok(NoiseShare::new(vec![value; bins]))
        }
    }

    fn scripted(capacity: usize) -> (mpsc::Sender<Result<i64, NoiseError>>, NoisePool) {
        let (script, draws) = mpsc::channel();
        let capacity = NonZeroUsize::new(capacity).expect("not zero");
        let pool = NoisePool::new(Scripted(draws), 3, capacity).expect("a pool starts");
        (script, pool)
    }

    fn broken() -> NoiseError {
        NoiseError::Randomness { detail: "injected".to_owned() }
    }

    #[test]
    fn shares_come_in_order_and_each_once() {
        let (script, pool) = scripted(4);
        for value in 0..100 {
            script.send(Ok(value)).expect("the worker listens");
        }
        for value in 0..100 {
            let share = pool.take().expect("a share");
            assert_eq!(share.values(), [value; 3]);
        }
        // The worker waits for the script: end it before the pool joins it.
        drop(script);
        assert_eq!(pool.take().err(), Some(NoiseError::PoolStopped));
    }

    #[test]
    fn a_failed_draw_reaches_one_taker_and_then_the_pool_recovers() {
        let (script, pool) = scripted(4);
        for draw in [Ok(1), Err(broken()), Err(broken()), Ok(2)] {
            // One at a time: a failure that waits too long for a taker is forgotten.
            script.send(draw.clone()).expect("the worker listens");
            assert_eq!(pool.take().map(|share| share.values()[0]), draw);
        }
        drop(script);
    }

    #[test]
    fn a_failure_that_nobody_was_told_of_is_forgotten_when_draws_succeed_again() {
        let (script, pool) = scripted(2);
        for draw in [Err(broken()), Err(broken()), Ok(1), Ok(2)] {
            script.send(draw).expect("the worker listens");
        }
        while pool.ready() < 2 {
            thread::sleep(Duration::from_millis(10));
        }
        assert!(pool.shared.lock().failure.is_none());
        // Whoever comes now gets what was drawn, and only then waits for the source.
        assert_eq!(pool.take().map(|share| share.values()[0]), Ok(1));
        assert_eq!(pool.take().map(|share| share.values()[0]), Ok(2));
        drop(script);
    }

    #[test]
    fn no_more_than_the_capacity_is_drawn_ahead() {
        struct Counting(mpsc::Sender<()>);
        impl NoiseSource for Counting {
            fn draw(&mut self, bins: usize) -> Result<NoiseShare, NoiseError> {
                self.0.send(()).expect("the test listens");
                Ok(NoiseShare::new(vec![0; bins]))
            }
        }
        let (count, draws) = mpsc::channel();
        let capacity = NonZeroUsize::new(5).expect("not zero");
        let pool = NoisePool::new(Counting(count), 1, capacity).expect("a pool starts");
        for _ in 0..20 {
            assert!(pool.take().is_ok());
        }
        drop(pool);
        // The worker has ended, so every draw has been counted.
        assert!(draws.iter().count() <= 25);
    }

    #[test]
    fn takers_on_many_threads_never_share_a_share() {
        let (script, pool) = scripted(2);
        for value in 0..400 {
            script.send(Ok(value)).expect("the worker listens");
        }
        let mut taken: Vec<i64> = thread::scope(|scope| {
            let takers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        (0..100).map(|_| pool.take().expect("a share").values()[0]).collect::<Vec<_>>()
                    })
                })
                .collect();
            takers.into_iter().flat_map(|taker| taker.join().expect("the taker ends")).collect()
        });
        taken.sort_unstable();
        assert_eq!(taken, (0..400).collect::<Vec<_>>());
        drop(script);
    }

    #[test]
    fn unsupported_widths_are_refused() {
        for bins in [0, usize::MAX] {
            let (_script, draws) = mpsc::channel();
            let pool = NoisePool::new(Scripted(draws), bins, NonZeroUsize::MIN);
            assert!(matches!(pool.err(), Some(NoiseError::Mechanism(_))));
        }
    }
}
