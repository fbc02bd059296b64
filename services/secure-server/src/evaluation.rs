//! The multi-party computation of a batch: from input shares to what is released.

use concilium_inference::release::{ThresholdTest, noised_labels, noised_sums};
use concilium_inference::{Ensemble, Question, RingElement, probabilities};
use concilium_mpc::party::Paused;
use concilium_mpc::release::ReleasedComponents;
use concilium_mpc::{MpcError, Party, Shares, Traffic};
use concilium_network::Ring;
use concilium_privacy::{NoisePool, Release};
use concilium_ring::{Z32, Z64};
use concilium_rpc::lane::LaneChannel;
use ndarray::Array2;
use zeroize::Zeroizing;

use crate::context::Context;
use crate::link::{Failure, Link};
use crate::models::{Entry, ensemble};
use crate::progress::{ObservedChannel, Step};
use crate::run::{Active, Batch, charge_threshold};
use crate::task::Task;

/// What a batch's computation gave.
pub(crate) struct Evaluated {
    /// This server's components of all rows.
    pub(crate) released: ReleasedComponents,
    /// For each row whether it reached the threshold; `None` for a release without one.
    pub(crate) consensus: Option<Vec<bool>>,
    /// What it took.
    pub(crate) traffic: Traffic,
}

/// Evaluates the rows of all requests up to their released components. A release with a threshold
/// charges for the test on the way.
pub(crate) fn evaluate(
    link: &mut Link<'_>,
    context: &Context,
    batch: &Batch<'_>,
) -> Result<Evaluated, Failure> {
    let Batch { session, task, models, ref active, .. } = *batch;
    let failed = |error: MpcError| failed(context, &error);
    let question: Question = match task.precision.ring {
        Ring::Bits64 => in_ring::<Z64>(task, models, active)?.into(),
        Ring::Bits32 => in_ring::<Z32>(task, models, active)?.into(),
    };
    let rows = question.rows();
    let keys = link.lane.pairwise_keys().map_err(|error| link.fail(&error, "share a key"))?;
    // With a threshold, noise for the answers is taken when it is known how many there are.
    let pool = task.threshold_noise.as_ref().unwrap_or(&task.noise);
    let noise = take_noise(link, context, pool, rows)?;
    let mut party = Party::new(context.here, session, &keys, channel(link, context, task, session));
    let votes = match (task.policy.release, question.wide()) {
        (Release::MeanProbability, Some((models, rows))) => probabilities(&mut party, models, rows),
        _ => question.histogram(&mut party),
    }
    .map_err(failed)?;
    if let (Release::ConfidentLabel, Some(threshold)) = (task.policy.release, task.policy.threshold) {
        let test = ThresholdTest::compute(&mut party, votes, &noise, threshold.votes).map_err(failed)?;
        let (paused, channel) = party.pause();
        drop(channel);
        return confident_labels(link, context, batch, paused, test);
    }
    let released = match task.policy.release {
        Release::Label | Release::ConfidentLabel => noised_labels(&mut party, votes, &noise),
        _ => noised_sums(&mut party, votes, &noise),
    }
    .map_err(failed)?;
    Ok(Evaluated { released, consensus: None, traffic: party.traffic().clone() })
}

/// Models and rows of a batch in the ring of its task.
fn in_ring<E: RingElement>(
    task: &Task,
    models: &[Entry],
    active: &[Active],
) -> Result<(Ensemble<E>, Shares<E>), Failure> {
    let fault = |error: &dyn std::fmt::Display| Failure::fault(error.to_string());
    let models = ensemble(task, models).map_err(|error| fault(&error))?;
    Ok((models, stack_inputs(task, active).map_err(|error| fault(&error))?))
}

/// Charges for the test, opens it among the servers, and answers the rows that passed with fresh noise.
fn confident_labels(
    link: &mut Link<'_>,
    context: &Context,
    batch: &Batch<'_>,
    paused: Paused,
    test: ThresholdTest,
) -> Result<Evaluated, Failure> {
    let failed = |error: MpcError| failed(context, &error);
    let task = batch.task;
    // There is no way back from the opening: all three servers have charged for it when this returns.
    charge_threshold(link, context, batch)?;
    let mut party = paused.resume(channel(link, context, task, batch.session));
    let passed = test.open(&mut party).map_err(failed)?;
    let consensus = passed.consensus().to_vec();
    let (paused, lane) = party.pause();
    drop(lane);
    let noise = take_noise(link, context, &task.noise, passed.rows())?;
    let mut party = paused.resume(channel(link, context, task, batch.session));
    let released = passed.answer(&mut party, &noise).map_err(failed)?;
    Ok(Evaluated { released, consensus: Some(consensus), traffic: party.traffic().clone() })
}

/// The protocols' channel over the link, observed.
pub(crate) fn channel<'l>(
    link: &'l mut Link<'_>,
    context: &'l Context,
    task: &Task,
    session: u64,
) -> ObservedChannel<'l, LaneChannel<'l>> {
    let patience = link.patience();
    let lane = LaneChannel::new(link.lane, session, patience);
    ObservedChannel::new(lane, context.here, task.name(), &context.lane.progress, &mut link.steps)
}

/// This server's noise for `rows` rows.
fn take_noise(
    link: &mut Link<'_>,
    context: &Context,
    pool: &NoisePool,
    rows: usize,
) -> Result<Zeroizing<Vec<i64>>, Failure> {
    link.steps.enter(Step::NoisePool);
    let _drawing = context.lane.progress.wait(Step::NoisePool, None, None);
    let mut noise = Zeroizing::new(Vec::new());
    for _ in 0..rows {
        let share = pool.take().map_err(|error| failed(context, &error))?;
        if noise.is_empty() {
            // All at once, so that no part is left behind in memory that was outgrown.
            noise.reserve_exact(rows * share.values().len());
        }
        noise.extend_from_slice(share.values());
    }
    Ok(noise)
}

/// What ended a batch, noted for operators and for its clients.
fn failed(context: &Context, error: &dyn std::fmt::Display) -> Failure {
    let reason = error.to_string();
    context.lane.note_error(reason.clone());
    Failure::fault(reason)
}

/// The rows of all requests below each other.
fn stack_inputs<E: RingElement>(
    task: &Task,
    active: &[Active],
) -> Result<Shares<E>, concilium_mpc::input::InputError> {
    let features = task.domain.features();
    let parts = active
        .iter()
        .map(|Active { waiting, .. }| {
            let rows = waiting.rows as usize;
            let matrix = |component: &concilium_mpc::input::Component| {
                let elements = component.expand::<E>(rows * features)?;
                Ok(Array2::from_shape_vec((rows, features), elements)
                    .expect("expanding gives as many elements as were asked for"))
            };
            Ok(Shares::new(matrix(&waiting.own)?, matrix(&waiting.next)?))
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Shares::stack(&parts))
}
