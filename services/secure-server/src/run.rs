//! Takes an agreed batch to its end: evaluation, ledger, barrier, release, in this order.

use std::time::Instant;

use concilium_privacy::{NanoRho, Reservation, Settlement};
use concilium_rpc::v1::lane_frame::Frame;
use concilium_rpc::v1::{self, EvaluationStatistics};

use crate::answer::RunId;
use crate::barrier::{Meeting, Transcript, charge, meet};
use crate::context::Context;
use crate::evaluation::{Evaluated, evaluate};
use crate::link::{Failure, Link};
use crate::metrics;
use crate::models::Entry;
use crate::progress::Step;
use crate::receipt::split;
use crate::task::Task;
use crate::waiting::Waiting;

/// A request that runs.
pub(crate) struct Active {
    pub(crate) waiting: Waiting,
    pub(crate) reservation: Reservation,
}

/// An agreed batch.
pub(crate) struct Batch<'a> {
    pub(crate) session: u64,
    pub(crate) run_id: RunId,
    pub(crate) task: &'a Task,
    pub(crate) models: &'a [Entry],
    pub(crate) active: Vec<Active>,
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

/// Runs a batch to its end. On a failure before this server's barrier message nothing that was opened
/// is unpaid and nobody can have released anything; on a later one the charge stays.
pub(crate) fn run(link: &mut Link<'_>, context: &Context, batch: Batch<'_>) -> Result<(), Failure> {
    let begin = Instant::now();
    let session = batch.session;
    let evaluated = match evaluate(link, context, &batch) {
        Ok(evaluated) => evaluated,
        Err(failure) => {
            abort(link, session, &failure);
            return Err(failure);
        }
    };
    let Evaluated { released, consensus, traffic } = evaluated;
    let Batch { run_id, task, models, active, .. } = batch;
    let statistics = EvaluationStatistics {
        server_microseconds: u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX),
        rounds: u64::from(traffic.rounds),
        bytes_sent: traffic.bytes_sent,
        batch_rows: active.iter().map(|active| active.waiting.rows).sum(),
    };
    let waiting = active.iter().map(|active| &active.waiting);
    let mut transcript = Transcript::new("answers", task, session, &run_id, models, waiting);
    transcript.note(consensus.as_deref().unwrap_or_default());
    let meeting = Meeting { session, transcript: transcript.digest(), components: released.digests(session) };
    let prices = prices(task, &active, consensus.as_deref());
    let answers = split(task, models, run_id, &active, &prices, released, &statistics);
    // Before any receipt names the set.
    let now_ms = i64::try_from(context.clock.now_ms()).unwrap_or(i64::MAX);
    if let Err(error) = context.model_sets.note(task, models, now_ms) {
        let failure = Failure::fault(format!("the set of models cannot be noted: {error}"));
        abort(link, session, &failure);
        return Err(failure);
    }
    let (mut settlements, mut finished) = (Vec::new(), Vec::new());
    for ((active, answer), price) in active.into_iter().zip(answers).zip(prices) {
        let Active { waiting, reservation } = active;
        settlements.push(Settlement { reservation, charge: price.due, result: answer.to_stored() });
        finished.push((waiting, answer));
    }
    // Durable before this server says so to the others, who release only when all three have said so.
    let charged = match charge(link, context, task, |ledger| ledger.commit(settlements)) {
        Ok(charged) => charged,
        Err(failure) => {
            abort(link, session, &failure);
            return Err(failure);
        }
    };
    let peers = meet(link, context, task, &meeting, &charged)?;
    let keys: Vec<_> = finished.iter().map(|(waiting, _)| waiting.key.clone()).collect();
    link.steps.enter(Step::Release);
    finished.into_iter().for_each(|(waiting, answer)| waiting.finish(Ok(answer)));
    context.release_notes.add(keys, peers);
    context.lane.count_batch();
    context.lane.progress.end_batch(context.here, task.name(), traffic.rounds);
    let (rows, rounds) = (u64::from(statistics.batch_rows), statistics.rounds);
    let duration = link.batch_began.elapsed();
    metrics::count_released_batch(task.name(), rows, rounds, duration);
    tracing::debug!(rows, rounds, bytes_sent = statistics.bytes_sent, ?duration, "released");
    Ok(())
}

/// Charges all rows of a batch for the threshold test, durably, and returns when all three servers have
/// done so: the test's bits may be opened then. The rest of each reservation stays set aside.
pub(crate) fn charge_threshold(
    link: &mut Link<'_>,
    context: &Context,
    batch: &Batch<'_>,
) -> Result<(), Failure> {
    let Batch { session, run_id, task, models, active } = batch;
    let parts: Vec<_> = active
        .iter()
        .map(|active| {
            let charge = active.reservation.charge();
            // What was reserved holds this price as a part.
            let part = charge.prices().threshold.checked_mul(u64::from(charge.rows()));
            (&active.reservation, part.unwrap_or(NanoRho::new(u64::MAX)))
        })
        .collect();
    let charged = charge(link, context, task, |ledger| ledger.charge_part(&parts))?;
    let waiting = active.iter().map(|active| &active.waiting);
    let transcript = Transcript::new("threshold test", task, *session, run_id, models, waiting).digest();
    // What is opened next is compared when it is opened.
    let meeting = Meeting { session: *session, transcript, components: [[0; 32]; 2] };
    meet(link, context, task, &meeting, &charged).map(|_| ())
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

/// Tells the peers, as far as they can be reached.
fn abort(link: &mut Link<'_>, session: u64, failure: &Failure) {
    let reason = failure.reason.clone();
    if link.send_both(Frame::Abort(v1::Abort { batch: session, reason })).is_ok() {
        let _ = link.flush();
    }
}
