//! What the lane does and waits for: for the status, the stall detector, measurements and spans.
//!
//! The lane is a thread that blocks, so it can't report its own wait. It writes what it is about to
//! wait for into [`LaneProgress`], and the main runtime looks at it ([`stall`]).

mod channel;
pub mod stall;
mod step;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use concilium_mpc::PartyIndex;
use concilium_rpc::v1::LaneWait;

pub(crate) use channel::ObservedChannel;
pub(crate) use step::{Step, Steps};

use crate::metrics;

/// How far the computation is that a wait belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Round {
    pub(crate) number: u32,
    /// Rounds of the last batch of this task, which has as many unless the models have changed.
    pub(crate) of: Option<u32>,
}

/// A wait of the lane.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wait {
    pub(crate) step: Step,
    pub(crate) round: Option<Round>,
    /// The server waited for; none for something of this server.
    pub(crate) peer: Option<PartyIndex>,
    pub(crate) since: Instant,
    /// Counts waits, so that two of one step are told apart.
    pub(crate) number: u64,
}

impl Wait {
    /// How long it lasts already.
    pub(crate) fn waited(&self) -> Duration {
        self.since.elapsed()
    }

    /// Whom or what is waited for.
    pub(crate) fn awaited(&self) -> String {
        self.peer.map_or_else(|| self.step.resource().to_owned(), |peer| peer.to_string())
    }

    /// The wait as it is told to operators.
    pub(crate) fn to_wire(self) -> LaneWait {
        LaneWait {
            step: self.to_string(),
            peer: self.peer.map(|peer| peer.number() as u32),
            waited_ms: u64::try_from(self.waited().as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// Says what is waited in: "comparison of layer 2, round 7 of 26".
impl fmt::Display for Wait {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.step.fmt(formatter)?;
        match self.round {
            Some(Round { number, of: Some(of) }) if of >= number => {
                write!(formatter, ", round {number} of {of}")
            }
            Some(Round { number, .. }) => write!(formatter, ", round {number}"),
            None => Ok(()),
        }
    }
}

/// What the lane does, shared between its thread and those who look.
#[derive(Default)]
pub struct LaneProgress {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    wait: Option<Wait>,
    waits: u64,
    /// The present or last batch.
    session: u64,
    /// Time that the present batch has waited for each server.
    waited: [Duration; 3],
    /// Rounds of the last batch of each task.
    rounds: HashMap<String, u32>,
}

/// Ends the wait when it is dropped.
pub(crate) struct Waiting<'a> {
    progress: &'a LaneProgress,
    wait: Wait,
    ended: bool,
}

impl Waiting<'_> {
    /// Ends the wait and tells how long this server waited for another one; zero for a wait of its own.
    pub(crate) fn end(mut self) -> Duration {
        self.finish()
    }

    fn finish(&mut self) -> Duration {
        if std::mem::replace(&mut self.ended, true) {
            return Duration::ZERO;
        }
        let mut inner = self.progress.lock();
        // A batch may wait at its barrier while the next one waits on the same lane.
        inner.wait.take_if(|wait| wait.number == self.wait.number);
        let Some(peer) = self.wait.peer else { return Duration::ZERO };
        let waited = self.wait.waited();
        inner.waited[peer.number()] += waited;
        waited
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.finish();
    }
}

impl LaneProgress {
    /// Nothing panics while it holds the lock, so a poisoned lock still guards a sound state.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what the lane waits for until the result is dropped.
    #[must_use]
    pub(crate) fn wait(&self, step: Step, round: Option<Round>, peer: Option<PartyIndex>) -> Waiting<'_> {
        let mut inner = self.lock();
        inner.waits += 1;
        let number = inner.waits;
        let wait = Wait { step, round, peer, since: Instant::now(), number };
        inner.wait = Some(wait);
        Waiting { progress: self, wait, ended: false }
    }

    /// What the lane waits for now.
    pub(crate) fn current_wait(&self) -> Option<Wait> {
        self.lock().wait
    }

    /// Rounds of the last batch of a task.
    pub(crate) fn rounds_of(&self, task: &str) -> Option<u32> {
        self.lock().rounds.get(task).copied()
    }

    /// The number of the present or last batch.
    pub(crate) fn session(&self) -> u64 {
        self.lock().session
    }

    /// Begins a batch that has waited for each server so long elsewhere, and forgets the waits of the one
    /// before.
    pub(crate) fn begin_batch(&self, session: u64, waited: [Duration; 3]) {
        let mut inner = self.lock();
        inner.session = session;
        inner.waited = waited;
    }

    /// How long the present batch has waited for each server.
    pub(crate) fn waited(&self) -> [Duration; 3] {
        self.lock().waited
    }

    /// Notes a batch that was released, and records its waits.
    pub(crate) fn end_batch(&self, here: PartyIndex, task: &str, rounds: u32) {
        let waited = {
            let mut inner = self.lock();
            match inner.rounds.get_mut(task) {
                Some(known) => *known = rounds,
                None => {
                    inner.rounds.insert(task.to_owned(), rounds);
                }
            }
            inner.waited
        };
        for peer in [here.next(), here.previous()] {
            metrics::record_peer_wait(peer, waited[peer.number()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use concilium_mpc::Stage;

    use super::*;

    #[test]
    fn waits_say_step_round_and_peer_while_they_last() {
        let progress = LaneProgress::default();
        assert!(progress.current_wait().is_none());
        let (here, peer) = (PartyIndex::ALL[0], PartyIndex::ALL[2]);
        let step = Step::Compute(Stage::Comparison(2));
        let round = |of| Some(Round { number: 7, of });
        let waiting = progress.wait(step, round(progress.rounds_of("digits")), Some(peer));
        let wait = progress.current_wait().expect("it waits");
        assert_eq!(
            (wait.to_string(), wait.awaited()),
            ("comparison of layer 2, round 7".into(), "server 2".into())
        );
        drop(waiting);
        assert!(progress.current_wait().is_none());
        progress.end_batch(here, "digits", 26);
        let _waiting = progress.wait(step, round(progress.rounds_of("digits")), Some(peer));
        let next = progress.current_wait().expect("it waits");
        assert_eq!(next.to_string(), "comparison of layer 2, round 7 of 26");
        assert_ne!(next.number, wait.number);
        assert_eq!(next.to_wire().peer, Some(2));
    }

    #[test]
    fn waits_for_this_server_itself_name_what_of_it() {
        let progress = LaneProgress::default();
        let _waiting = progress.wait(Step::Commit, None, None);
        let wait = progress.current_wait().expect("it waits");
        assert_eq!((wait.to_string(), wait.awaited()), ("ledger-commit".into(), "its own disk".into()));
        assert_eq!(wait.to_wire().peer, None);
    }
}
