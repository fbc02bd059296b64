//! The batches that are agreed and not released yet, in the order in which they were agreed.
//!
//! They are computed beside each other, each on a lane of its own, but charged for and released one after the
//! other: the ends and totals of ledgers that the servers compare at a barrier are the same only if all three
//! have charged for the same batches by then. Server 0 gives a lane to the next batch when it has released the
//! one before: all three have computed that one then, though a follower may not know yet that all have charged.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use concilium_mpc::Neighbour;
use concilium_rpc::lane::LaneError;
use concilium_rpc::v1::lane_frame::Frame;
use concilium_rpc::v1::{Abort, Barrier};
use tracing::Span;

use crate::barrier::{Charged, Meeting};
use crate::computing::{Computed, Computing};
use crate::context::Context;
use crate::link::{Failure, Link};
use crate::metrics;
use crate::progress::{LaneProgress, Step, Waiting};
use crate::run::{Batch, Opening, TestedBatch, charge_computed};
use crate::task::Task;

/// Most barriers of one server that may come before this one has charged as well.
const MAXIMUM_EARLY_BARRIERS: usize = 64;

/// The batches under way.
pub(crate) struct Underway<'a> {
    computing: &'a mut Computing,
    /// Lanes that all three servers have.
    lanes: usize,
    batches: VecDeque<Running<'a>>,
    /// Barriers of the next and the previous server that the batches here have not come to.
    barriers: [VecDeque<Barrier>; 2],
}

/// A batch and how far it is.
struct Running<'a> {
    session: u64,
    lane: usize,
    task: Arc<Task>,
    state: State<'a>,
}

enum State<'a> {
    /// On its lane.
    Computing,
    /// Computed; it waits for the batches before it.
    Computed(Computed),
    /// Charged for here; it waits until the others have charged.
    AtBarrier(Box<AtBarrier<'a>>),
}

/// A batch that waits for the other servers to charge.
struct AtBarrier<'a> {
    meeting: Meeting,
    charged: Charged,
    opening: Opening,
    since: Instant,
    /// Whom it waits for now, as far as it was looked.
    awaited: Option<(Neighbour, Waiting<'a>)>,
    /// How long it has waited for those who have charged.
    waited: Duration,
    /// The step, for those who look at spans: not entered, for other batches go on meanwhile.
    step: Span,
}

impl<'a> Underway<'a> {
    /// None yet, and `lanes` lanes to compute on.
    pub(crate) fn new(computing: &'a mut Computing, lanes: usize) -> Self {
        Underway { computing, lanes, batches: VecDeque::new(), barriers: Default::default() }
    }

    /// Whether there is no batch.
    pub(crate) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// On server 0: a lane whose last batch is released.
    pub(crate) fn free_lane(&self) -> Option<usize> {
        (1..=self.lanes).find(|&lane| self.batches.iter().all(|running| running.lane != lane))
    }

    /// Begins a batch on a lane.
    ///
    /// # Errors
    /// If the lane is none of those that the servers have, or not free.
    pub(crate) fn begin(&mut self, context: &Context, lane: usize, batch: Batch) -> Result<(), Failure> {
        let computes = |running: &Running<'_>| !matches!(running.state, State::AtBarrier(_));
        let is_taken = self.batches.iter().any(|running| running.lane == lane && computes(running));
        if !(1..=self.lanes).contains(&lane) || is_taken {
            return Err(Failure::fault(format!(
                "the leader starts a batch on lane {lane}, which is not free"
            )));
        }
        context.lane.progress[lane].begin_batch(batch.session, context.lane.control().waited());
        let beside = self.batches.iter().filter(|running| computes(running)).count();
        tracing::debug!(lane, beside, "computing");
        let running =
            Running { session: batch.session, lane, task: Arc::clone(&batch.task), state: State::Computing };
        self.batches.push_back(running);
        self.computing.compute(lane, Box::new(batch), None);
        Ok(())
    }

    /// The next lane that has finished a computation, and what came of it: for [`Self::note_computed`].
    /// Nothing is lost if this is dropped before it finishes.
    pub(crate) async fn next_computed(&mut self) -> (usize, Computed) {
        self.computing.next_computed().await
    }

    /// Notes what was computed on a lane.
    pub(crate) fn note_computed(&mut self, lane: usize, computed: Computed) {
        let computing = |running: &&mut Running<'_>| matches!(running.state, State::Computing);
        let on_lane = self.batches.iter_mut().filter(|running| running.lane == lane);
        if let Some(running) = on_lane.into_iter().find(computing) {
            running.state = State::Computed(computed);
        }
    }

    /// Notes that a neighbour has charged for a batch.
    ///
    /// # Errors
    /// If it is further ahead than it can be.
    pub(crate) fn note_barrier(&mut self, from: Neighbour, barrier: Barrier) -> Result<(), Failure> {
        let early = &mut self.barriers[place(from)];
        if early.len() >= MAXIMUM_EARLY_BARRIERS {
            return Err(Failure::fault("another server charges for batches that are not agreed".to_owned()));
        }
        early.push_back(barrier);
        Ok(())
    }

    /// A neighbour that has not charged for the first batch, which waits for it.
    pub(crate) fn awaited(&self) -> Option<Neighbour> {
        match self.batches.front()?.state {
            State::AtBarrier(_) => self.without_barrier(),
            _ => None,
        }
    }

    fn without_barrier(&self) -> Option<Neighbour> {
        [Neighbour::Next, Neighbour::Previous].into_iter().find(|&peer| self.barriers[place(peer)].is_empty())
    }

    /// Counts the batches that end without a release.
    pub(crate) fn count_failed(&self) {
        self.batches.iter().for_each(|running| metrics::count_failed_batch(running.task.name()));
    }
}

fn place(neighbour: Neighbour) -> usize {
    usize::from(neighbour == Neighbour::Previous)
}

/// Takes the batches as far as they can go now. On a failure before this server's barrier message nothing that
/// was opened is unpaid and nobody can have released anything; on a later one the charge stays.
pub(crate) fn advance(link: &mut Link<'_>) -> Result<(), Failure> {
    let context = link.context;
    while let Some(Running { session, lane, state, .. }) = link.underway.batches.front_mut() {
        let (session, lane) = (*session, *lane);
        let progress = &context.lane.progress[lane];
        let next = match std::mem::replace(state, State::Computing) {
            State::Computing => return Ok(()),
            State::Computed(computed) => {
                let charged = charge(link, context, progress, computed);
                State::AtBarrier(charged.inspect_err(|failure| abort(link, session, failure))?)
            }
            State::AtBarrier(mut at_barrier) => {
                if !at_barrier.look(link, progress)? {
                    link.underway.batches[0].state = State::AtBarrier(at_barrier);
                    return Ok(());
                }
                let Some(TestedBatch { batch, tested }) = pass(link, context, progress, at_barrier)? else {
                    link.underway.batches.pop_front();
                    continue;
                };
                link.underway.computing.compute(lane, batch, Some(tested));
                State::Computing
            }
        };
        link.underway.batches[0].state = next;
    }
    Ok(())
}

/// Takes all batches to their end, which only the other servers' barriers keep from it.
pub(crate) fn finish(link: &mut Link<'_>) -> Result<(), Failure> {
    loop {
        advance(link)?;
        let Some(neighbour) = link.underway.awaited() else {
            return match link.underway.is_empty() {
                true => Ok(()),
                false => Err(Failure::fault("the leader goes on before a batch is computed here".to_owned())),
            };
        };
        let barrier = link.receive_barrier(neighbour)?;
        link.underway.note_barrier(neighbour, barrier)?;
    }
}

/// Charges for what was computed and tells the others.
fn charge<'a>(
    link: &mut Link<'a>,
    context: &'a Context,
    progress: &'a LaneProgress,
    computed: Computed,
) -> Result<Box<AtBarrier<'a>>, Failure> {
    let Computed { batch, outcome } = computed;
    let span = batch.span.clone();
    let _inside = span.enter();
    let outcome = outcome.map_err(|failure| link.explain(failure))?;
    let charged = charge_computed(link, context, progress, batch, outcome);
    link.steps.end();
    let (meeting, charged, opening) = charged?;
    let step = tracing::debug_span!("step", step = Step::Barrier.name());
    let since = Instant::now();
    meeting.announce(link, &charged)?;
    let (awaited, waited) = (None, Duration::ZERO);
    Ok(Box::new(AtBarrier { meeting, charged, opening, since, awaited, waited, step }))
}

impl<'a> AtBarrier<'a> {
    /// Whether both others have charged.
    ///
    /// # Errors
    /// If one of them takes too long.
    fn look(&mut self, link: &mut Link<'a>, progress: &'a LaneProgress) -> Result<bool, Failure> {
        let awaited = link.underway.without_barrier();
        if self.awaited.as_ref().map(|(neighbour, _)| *neighbour) != awaited {
            self.waited += self.awaited.take().map_or(Duration::ZERO, |(_, waiting)| waiting.end());
            self.awaited = awaited.map(|neighbour| {
                (neighbour, progress.wait(Step::Barrier, None, Some(link.server_at(neighbour))))
            });
        }
        let Some(neighbour) = awaited else { return Ok(true) };
        let (peer, patience) = (link.lane.index_of(neighbour), link.patience());
        if self.since.elapsed() > patience {
            let waited_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
            let late = LaneError::TimedOut { peer, step: "send the expected frame", waited_ms };
            return Err(link.fail(&late, Step::Barrier.due()));
        }
        Ok(false)
    }
}

/// Compares what the servers say at a barrier that all three have come to, and opens what lies behind it.
/// Returns a batch of which only a threshold test may be opened now.
fn pass<'a>(
    link: &mut Link<'a>,
    context: &'a Context,
    progress: &LaneProgress,
    at_barrier: Box<AtBarrier<'a>>,
) -> Result<Option<TestedBatch>, Failure> {
    let AtBarrier { meeting, charged, opening, since, waited, step, .. } = *at_barrier;
    let task = &opening.batch().task;
    let mut compare = |neighbour| {
        let peer = link.lane.index_of(neighbour);
        let theirs = link.underway.barriers[place(neighbour)].pop_front();
        let theirs = theirs.filter(|theirs| theirs.batch == meeting.session).ok_or_else(|| {
            Failure::fault(format!("server {peer} commits another batch than that which is due"))
        })?;
        meeting.compare(context, task, &charged, (neighbour, peer), &theirs)
    };
    let heads = [compare(Neighbour::Next)?, compare(Neighbour::Previous)?];
    metrics::record_step(Step::Barrier.name(), since.elapsed(), waited);
    drop(step);
    Ok(opening.open(link, context, progress, heads))
}

/// Tells the peers, as far as they can be reached.
fn abort(link: &mut Link<'_>, session: u64, failure: &Failure) {
    let reason = failure.reason.clone();
    if link.send_both(Frame::Abort(Abort { batch: session, reason })).is_ok() {
        let _ = link.flush();
    }
}
