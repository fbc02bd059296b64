//! What an answer is worth: how often the released label is the one with the most votes, and how many
//! answers a budget pays for. For planning; nothing here is enforced.

use crate::{
    convert::{self, ConvertError, actual_standard_deviation, upper_tail},
    mechanism::{MAXIMUM_SCALE, MINIMUM_SIGMA, Mechanism, Release, Threshold},
    parameter::{Delta, NanoRho, NoiseScale},
    policy::{PolicyError, TaskPolicy},
};

/// The votes of a row before noise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Vote {
    /// Models that vote.
    pub models: u32,
    /// The part of them that votes for the most frequent label, above 0 and at most 1.
    pub share: f64,
}

/// A vote for which the question makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error(
    "{models} models of which {share} agree are no vote that a label among {labels} can win; give at \
     least 1 model, a share above 1 / {labels} and at most 1, and at least 2 labels"
)]
pub struct VoteError {
    models: u32,
    share: f64,
    labels: usize,
}

impl Vote {
    /// Counts of the most frequent label and of each other one, the rest spread evenly.
    fn counts(self, labels: usize) -> Result<(f64, f64), VoteError> {
        let Self { models, share } = self;
        // Whole models vote; the small addition keeps products such as 0.6 * 5 from falling short.
        let most = (f64::from(models) * share + 1e-9).floor();
        let rest = (f64::from(models) - most) / (labels.max(2) - 1) as f64;
        if labels < 2 || models == 0 || !(share > 0.0 && share <= 1.0) || most <= rest {
            return Err(VoteError { models, share, labels });
        }
        Ok((most, rest))
    }
}

/// Probability that the label with the most noisy votes is the most frequent one, among `labels`
/// labels, with the noise of all three servers on each count: what a client sees.
///
/// The noise is taken as a continuous Gaussian of its actual standard deviation. Its lattice and, for
/// discrete Laplace noise, its tails move the result by less than 0.01 from sigma or scale 2 on.
///
/// # Errors
/// [`VoteError`] when the vote has no most frequent label.
pub fn label_accuracy(vote: Vote, labels: usize, mechanism: Mechanism) -> Result<f64, VoteError> {
    let (most, rest) = vote.counts(labels)?;
    let gap = (most - rest) / actual_standard_deviation(mechanism);
    // P(win) is the integral of the density at z times P(another count stays below)^(labels - 1),
    // by the trapezoidal rule, which is exact to many digits for such smooth integrands.
    const REACH: f64 = 9.0;
    const STEPS: i32 = 3_600;
    let step = 2.0 * REACH / f64::from(STEPS);
    let others = (labels - 1) as f64;
    let sum: f64 = (0..=STEPS)
        .map(|index| -REACH + step * f64::from(index))
        .map(|z| {
            let density = (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
            density * (1.0 - upper_tail(z + gap)).powf(others)
        })
        .sum();
    Ok((sum * step).clamp(0.0, 1.0))
}

/// Probability that a confident label is answered at all: that the largest count and the noise of all
/// three servers reach the threshold.
///
/// # Errors
/// [`VoteError`] when the vote has no most frequent label.
pub fn answer_probability(vote: Vote, labels: usize, threshold: Threshold) -> Result<f64, VoteError> {
    let (most, _) = vote.counts(labels)?;
    // Half a vote, because counts and noise are whole: reaching T is exceeding T - 1/2.
    let missing = f64::from(threshold.votes) - 0.5 - most;
    Ok(upper_tail(missing / actual_standard_deviation(threshold.mechanism)))
}

/// The largest loss whose epsilon at `delta` is at most `epsilon`: what to give as `budget_rho`.
///
/// # Errors
/// [`ConvertError::Delta`] when `delta` is not strictly between zero and one.
pub fn budget(epsilon: f64, delta: Delta) -> Result<NanoRho, ConvertError> {
    convert::epsilon(NanoRho::ZERO, delta)?;
    // epsilon >= rho for every delta below one, so a budget beyond it is never needed.
    let (mut low, mut high) = (0_u64, (epsilon.clamp(0.0, 1e9) * 1e9) as u64 + 1);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if convert::epsilon(NanoRho::new(middle), delta)? <= epsilon {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(NanoRho::new(low))
}

/// Rows that `budget` pays for under the policy's noise, if every row costs the most that it can.
///
/// # Errors
/// [`PolicyError`] when the mechanism is not allowed.
pub fn rows(policy: &TaskPolicy, budget: NanoRho) -> Result<u64, PolicyError> {
    Ok(budget.units() / policy.row_cost()?.units().max(1))
}

/// The smallest sigma of discrete Gaussian noise, exact to a thousandth, at which `budget` pays for
/// `rows` rows of the policy; `None` if none that is allowed does. The noise of a threshold stays as it
/// is.
///
/// # Errors
/// [`PolicyError`] for a policy that is unsound for another reason than its noise.
pub fn sigma_for(policy: &TaskPolicy, budget: NanoRho, rows: u64) -> Result<Option<NoiseScale>, PolicyError> {
    const STEP: u64 = 1_000;
    let affordable = |thousandths: u64| {
        let sigma = NoiseScale::from_millionths(thousandths * STEP);
        let policy = TaskPolicy { mechanism: Mechanism::DiscreteGaussian { sigma }, ..policy.clone() };
        let price = policy.row_cost()?.checked_mul(rows);
        Ok::<bool, PolicyError>(price.is_some_and(|price| price <= budget))
    };
    let (mut low, mut high) = (MINIMUM_SIGMA.millionths() / STEP, MAXIMUM_SCALE.millionths() / STEP);
    if affordable(low)? {
        return Ok(Some(MINIMUM_SIGMA));
    }
    if !affordable(high)? {
        return Ok(None);
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if affordable(middle)? {
            high = middle;
        } else {
            low = middle;
        }
    }
    Ok(Some(NoiseScale::from_millionths(high * STEP)))
}

/// Answers that are right less often than this, although most models agree, help nobody.
pub const LEAST_USEFUL_ACCURACY: f64 = 0.9;

/// The share of models at which the question whether noise is useful is asked: a vote as clear as
/// models of real data give.
pub const CLEAR_SHARE: f64 = 0.9;

/// What a number of models makes of a policy's noise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usefulness {
    /// Probability that the released label is the most frequent one. Of a confident label, if there is
    /// an answer.
    pub accuracy: f64,
    /// Probability of an answer at all; 1 but for a confident label.
    pub answered: f64,
}

impl Usefulness {
    /// Judges the policy's noise for a vote.
    ///
    /// For `mean_probability` the label is the one with the largest noisy mean, of models that put all
    /// their probability on one label; softer models do worse.
    ///
    /// # Errors
    /// [`VoteError`] when the vote has no most frequent label.
    pub fn of(policy: &TaskPolicy, vote: Vote) -> Result<Self, VoteError> {
        let accuracy = label_accuracy(vote, policy.bins, policy.mechanism)?;
        let answered = match (policy.release, policy.threshold) {
            (Release::ConfidentLabel, Some(threshold)) => answer_probability(vote, policy.bins, threshold)?,
            _ => 1.0,
        };
        Ok(Self { accuracy, answered })
    }

    /// Whether both the answer and its label can be relied on at [`LEAST_USEFUL_ACCURACY`].
    pub fn is_useful(self) -> bool {
        self.accuracy >= LEAST_USEFUL_ACCURACY && self.answered >= LEAST_USEFUL_ACCURACY
    }
}
