//! The multi-party computation of a batch: from input shares to what is released.

use std::time::Duration;

use concilium_inference::release::{ThresholdTest, noised_labels, noised_sums};
use concilium_inference::{Ensemble, Question, RingElement, probabilities};
use concilium_mpc::party::Paused;
use concilium_mpc::release::ReleasedComponents;
use concilium_mpc::{Party, Shares, Traffic};
use concilium_network::Ring;
use concilium_privacy::{NoisePool, Release};
use concilium_ring::{Z32, Z64};
use concilium_rpc::lane::{Lane, LaneChannel};
use ndarray::Array2;
use zeroize::Zeroizing;

use crate::context::Context;
use crate::link::Failure;
use crate::models::{Entry, ensemble};
use crate::progress::{LaneProgress, ObservedChannel, Step, Steps};
use crate::run::{Active, Batch};
use crate::task::Task;

/// What a computation runs on.
pub(crate) struct Computation<'a> {
    pub(crate) lane: &'a mut Lane,
    /// Times its steps.
    pub(crate) steps: &'a mut Steps,
    /// Says what it waits for.
    pub(crate) progress: &'a LaneProgress,
    /// How long it waits for a message.
    pub(crate) patience: Duration,
}

/// What a batch's computation gave.
pub(crate) enum Outcome {
    /// What can be released.
    Evaluated(Box<Evaluated>),
    /// A threshold test, which may be opened when all three servers have charged for it.
    Tested(Box<Tested>),
}

/// What can be released, when all three servers have charged for it.
pub(crate) struct Evaluated {
    /// This server's components of all rows.
    pub(crate) released: ReleasedComponents,
    /// For each row whether it reached the threshold; `None` for a release without one.
    pub(crate) consensus: Option<Vec<bool>>,
    /// What it took.
    pub(crate) traffic: Traffic,
}

/// A computation that was interrupted before the opening of its threshold test.
pub(crate) struct Tested {
    paused: Paused,
    test: ThresholdTest,
}

/// Evaluates the rows of all requests up to their released components, or up to a threshold test.
pub(crate) fn evaluate(
    computation: &mut Computation<'_>,
    context: &Context,
    batch: &Batch,
) -> Result<Outcome, Failure> {
    let Batch { session, task, models, active, .. } = batch;
    let question: Question = match task.precision.ring {
        Ring::Bits64 => in_ring::<Z64>(task, models, active)?.into(),
        Ring::Bits32 => in_ring::<Z32>(task, models, active)?.into(),
    };
    let rows = question.rows();
    let keys = computation.lane.pairwise_keys().map_err(fault)?;
    // With a threshold, noise for the answers is taken when it is known how many there are.
    let pool = task.threshold_noise.as_ref().unwrap_or(&task.noise);
    let noise = take_noise(computation, pool, rows)?;
    let mut party =
        Party::new(context.here, *session, &keys, computation.channel(context, task.name(), *session));
    let votes = match (task.policy.release, question.wide()) {
        (Release::MeanProbability, Some((models, rows))) => probabilities(&mut party, models, rows),
        _ => question.histogram(&mut party),
    }
    .map_err(fault)?;
    if let (Release::ConfidentLabel, Some(threshold)) = (task.policy.release, task.policy.threshold) {
        let test = ThresholdTest::compute(&mut party, votes, &noise, threshold.votes).map_err(fault)?;
        let (paused, _) = party.pause();
        return Ok(Outcome::Tested(Box::new(Tested { paused, test })));
    }
    let released = match task.policy.release {
        Release::Label | Release::ConfidentLabel => noised_labels(&mut party, votes, &noise),
        _ => noised_sums(&mut party, votes, &noise),
    }
    .map_err(fault)?;
    let traffic = party.traffic().clone();
    Ok(Outcome::Evaluated(Box::new(Evaluated { released, consensus: None, traffic })))
}

/// Opens a threshold test among the servers, all of which must have charged for it, and answers the rows that
/// passed with fresh noise.
pub(crate) fn answer_tested(
    computation: &mut Computation<'_>,
    context: &Context,
    batch: &Batch,
    tested: Tested,
) -> Result<Outcome, Failure> {
    let Batch { session, task, .. } = batch;
    let mut party = tested.paused.resume(computation.channel(context, task.name(), *session));
    let passed = tested.test.open(&mut party).map_err(fault)?;
    let consensus = passed.consensus().to_vec();
    let (paused, _) = party.pause();
    let noise = take_noise(computation, &task.noise, passed.rows())?;
    let mut party = paused.resume(computation.channel(context, task.name(), *session));
    let released = passed.answer(&mut party, &noise).map_err(fault)?;
    let traffic = party.traffic().clone();
    Ok(Outcome::Evaluated(Box::new(Evaluated { released, consensus: Some(consensus), traffic })))
}

impl Computation<'_> {
    /// The protocols' channel, observed.
    pub(crate) fn channel<'l>(
        &'l mut self,
        context: &Context,
        task: &str,
        session: u64,
    ) -> ObservedChannel<'l, LaneChannel<'l>> {
        let lane = LaneChannel::new(self.lane, session, self.patience);
        ObservedChannel::new(lane, context.here, task, self.progress, self.steps)
    }
}

fn fault(error: impl std::fmt::Display) -> Failure {
    Failure::fault(error.to_string())
}

/// Models and rows of a batch in the ring of its task.
fn in_ring<E: RingElement>(
    task: &Task,
    models: &[Entry],
    active: &[Active],
) -> Result<(Ensemble<E>, Shares<E>), Failure> {
    let models = ensemble(task, models).map_err(fault)?;
    Ok((models, stack_inputs(task, active).map_err(fault)?))
}

/// This server's noise for `rows` rows.
fn take_noise(
    computation: &mut Computation<'_>,
    pool: &NoisePool,
    rows: usize,
) -> Result<Zeroizing<Vec<i64>>, Failure> {
    computation.steps.enter(Step::NoisePool);
    let _drawing = computation.progress.wait(Step::NoisePool, None, None);
    let mut noise = Zeroizing::new(Vec::new());
    for _ in 0..rows {
        let share = pool.take().map_err(fault)?;
        if noise.is_empty() {
            // All at once, so that no part is left behind in memory that was outgrown.
            noise.reserve_exact(rows * share.values().len());
        }
        noise.extend_from_slice(share.values());
    }
    Ok(noise)
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
