//! What is done for an agreed batch besides computing it: it is charged for, and its answers leave.

use std::sync::Arc;
use std::time::Instant;

use concilium_privacy::{NanoRho, PeerHead, Reservation, Settlement};
use concilium_rpc::v1::EvaluationStatistics;
use tracing::Span;

use crate::answer::{Answer, RunId};
use crate::barrier::{Charged, Meeting, Transcript, charge};
use crate::context::Context;
use crate::evaluation::{Evaluated, Outcome, Tested};
use crate::link::{Failure, Link};
use crate::metrics;
use crate::models::Entry;
use crate::progress::{LaneProgress, Step};
use crate::receipt::split;
use crate::self_test::settle;
use crate::task::Task;
use crate::waiting::Waiting;

/// A request that runs.
pub(crate) struct Active {
    pub(crate) waiting: Waiting,
    pub(crate) reservation: Reservation,
}

/// An agreed batch.
pub(crate) struct Batch {
    pub(crate) session: u64,
    pub(crate) run_id: RunId,
    pub(crate) task: Arc<Task>,
    pub(crate) models: Vec<Entry>,
    pub(crate) active: Vec<Active>,
    /// What is logged of the batch belongs into it.
    pub(crate) span: Span,
    /// When the servers began to agree on it.
    pub(crate) planned: Instant,
    /// When its computation began.
    pub(crate) began: Instant,
}

/// What one request is charged when its rows are answered.
pub(crate) struct Price {
    /// What the settlement charges.
    due: NanoRho,
    /// That with what was charged before.
    pub(crate) total: NanoRho,
    /// Rows that reached the threshold, if there is one.
    pub(crate) consenting_rows: Option<u32>,
}

/// A batch with a threshold test that is not opened yet.
pub(crate) struct TestedBatch {
    pub(crate) batch: Box<Batch>,
    pub(crate) tested: Box<Tested>,
}

/// What may be opened when all three servers have charged for it.
pub(crate) enum Opening {
    /// A threshold test, after which the computation goes on.
    Test(TestedBatch),
    /// The answers.
    Answers {
        /// Without its requests.
        batch: Box<Batch>,
        answers: Vec<(Waiting, Answer)>,
        statistics: EvaluationStatistics,
    },
}

impl Opening {
    /// The batch that it belongs to.
    pub(crate) fn batch(&self) -> &Batch {
        match self {
            Opening::Test(TestedBatch { batch, .. }) | Opening::Answers { batch, .. } => batch,
        }
    }

    /// Releases the answers, or gives back the test that may be opened. `peers` are the ends of the other
    /// servers' ledgers.
    pub(crate) fn open(
        self,
        link: &mut Link<'_>,
        context: &Context,
        progress: &LaneProgress,
        peers: [PeerHead; 2],
    ) -> Option<TestedBatch> {
        match self {
            Opening::Test(tested) => Some(tested),
            Opening::Answers { batch, answers, statistics } => {
                let span = batch.span.clone();
                span.in_scope(|| release(link, context, progress, &batch, answers, statistics, peers));
                None
            }
        }
    }
}

/// Charges for what was computed of a batch, durably. What may be opened must wait until the other servers have
/// done the same.
pub(crate) fn charge_computed(
    link: &mut Link<'_>,
    context: &Context,
    progress: &LaneProgress,
    batch: Box<Batch>,
    outcome: Outcome,
) -> Result<(Meeting, Charged, Opening), Failure> {
    match outcome {
        Outcome::Tested(tested) => {
            let (meeting, charged) = charge_threshold(link, context, progress, &batch)?;
            Ok((meeting, charged, Opening::Test(TestedBatch { batch, tested })))
        }
        Outcome::Evaluated(evaluated) => charge_answers(link, context, progress, batch, *evaluated),
    }
}

/// Charges all rows of a batch for the threshold test. The rest of each reservation stays set aside.
fn charge_threshold(
    link: &mut Link<'_>,
    context: &Context,
    progress: &LaneProgress,
    batch: &Batch,
) -> Result<(Meeting, Charged), Failure> {
    let Batch { session, run_id, task, models, active, .. } = batch;
    let parts: Vec<_> = active
        .iter()
        .map(|active| {
            let charge = active.reservation.charge();
            // What was reserved holds this price as a part.
            let part = charge.prices().threshold.checked_mul(u64::from(charge.rows()));
            (&active.reservation, part.unwrap_or(NanoRho::new(u64::MAX)))
        })
        .collect();
    let charged = charge(link, context, progress, task, |ledger| ledger.charge_part(&parts))?;
    let waiting = active.iter().map(|active| &active.waiting);
    let transcript = Transcript::new("threshold test", task, *session, run_id, models, waiting).digest();
    // What is opened next is compared when it is opened.
    Ok((Meeting { session: *session, transcript, components: [[0; 32]; 2] }, charged))
}

/// Charges for the answers, and keeps them in the ledger.
fn charge_answers(
    link: &mut Link<'_>,
    context: &Context,
    progress: &LaneProgress,
    mut batch: Box<Batch>,
    evaluated: Evaluated,
) -> Result<(Meeting, Charged, Opening), Failure> {
    let Evaluated { released, consensus, traffic } = evaluated;
    let active = std::mem::take(&mut batch.active);
    let Batch { session, run_id, task, models, began, .. } = &*batch;
    let statistics = EvaluationStatistics {
        server_microseconds: u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
        rounds: u64::from(traffic.rounds),
        bytes_sent: traffic.bytes_sent,
        batch_rows: active.iter().map(|active| active.waiting.rows).sum(),
    };
    let waiting = active.iter().map(|active| &active.waiting);
    let mut transcript = Transcript::new("answers", task, *session, run_id, models, waiting);
    transcript.note(consensus.as_deref().unwrap_or_default());
    let components = released.digests(*session);
    let meeting = Meeting { session: *session, transcript: transcript.digest(), components };
    let prices = prices(task, &active, consensus.as_deref());
    let parts = split(task, models, *run_id, &active, &prices, released, &statistics);
    // Before any receipt names the set.
    let now_ms = i64::try_from(context.clock.now_ms()).unwrap_or(i64::MAX);
    let noted = context.model_sets.note(task, models, now_ms);
    noted.map_err(|error| Failure::fault(format!("the set of models cannot be noted: {error}")))?;
    let (mut settlements, mut answers) = (Vec::new(), Vec::new());
    for ((active, answer), price) in active.into_iter().zip(parts).zip(prices) {
        let Active { waiting, reservation } = active;
        settlements.push(Settlement { reservation, charge: price.due, result: answer.to_stored() });
        answers.push((waiting, answer));
    }
    // Durable before this server says so to the others, who release only when all three have said so.
    let charged = charge(link, context, progress, task, |ledger| ledger.commit(settlements))?;
    Ok((meeting, charged, Opening::Answers { batch, answers, statistics }))
}

fn release(
    link: &mut Link<'_>,
    context: &Context,
    progress: &LaneProgress,
    batch: &Batch,
    answers: Vec<(Waiting, Answer)>,
    statistics: EvaluationStatistics,
    peers: [PeerHead; 2],
) {
    let Batch { task, models, planned, .. } = batch;
    let keys: Vec<_> = answers.iter().map(|(waiting, _)| waiting.key.clone()).collect();
    link.steps.enter(Step::Release);
    // Counted before a client can know, and ask what was counted.
    context.release_notes.add(keys, peers);
    context.lane.count_batch();
    let EvaluationStatistics { rounds, bytes_sent, batch_rows, .. } = statistics;
    progress.end_batch(context.here, task.name(), rounds as u32);
    let (rows, duration) = (u64::from(batch_rows), planned.elapsed());
    metrics::count_released_batch(task.name(), rows, rounds, duration);
    answers.into_iter().for_each(|(waiting, answer)| waiting.finish(Ok(answer)));
    tracing::debug!(rows, rounds, bytes_sent, ?duration, "released");
    link.steps.end();
    // All three servers have taken the plan, so they have these versions ready.
    settle(context, models);
}

/// What each request is charged, now that it is known which rows are answered.
fn prices(task: &Task, active: &[Active], consensus: Option<&[bool]>) -> Vec<Price> {
    let mut rest = consensus.unwrap_or_default();
    active
        .iter()
        .map(|active| {
            let charge = active.reservation.charge();
            if task.policy.threshold.is_none() {
                return Price { due: charge.cost(), total: charge.cost(), consenting_rows: None };
            }
            let (own, others) = rest.split_at(charge.rows() as usize);
            rest = others;
            let answered = own.iter().filter(|&&passed| passed).count();
            let times = |price: NanoRho, rows: u64| price.checked_mul(rows).unwrap_or(charge.cost());
            let due = times(charge.prices().answer, answered as u64);
            let tested = times(charge.prices().threshold, u64::from(charge.rows()));
            let total = tested.checked_add(due).unwrap_or(charge.cost());
            Price { due, total, consenting_rows: Some(answered as u32) }
        })
        .collect()
}
