//! Two toy ensembles that differ in one privacy unit, on three servers in this process.
//!
//! The models are networks with two features that were quantised and shared as an owner's are, and the
//! protocols, the noise and the opening are those of servers and clients. Features are 1 or -1. The models
//! of the unit vote for class 0 at one value of the first feature and for class 1 at the other, in one
//! ensemble; in the other ensemble it is the other way round. The other models vote the same in both: some
//! always, and some for class 0 in rows whose vote is to be close.
//!
//! Nothing here is secret: whoever runs all three servers knows all of it.

use std::sync::{Arc, Mutex, PoisonError};

use concilium_inference::release::{ThresholdTest, noised_labels, noised_sums};
use concilium_inference::{Ensemble, SharedModel, flatten, histogram, probabilities};
use concilium_mpc::local::{LocalChannel, run, share};
use concilium_mpc::release::ReleasedComponents;
use concilium_mpc::{MpcError, Party, Shares};
use concilium_network::{FixedNetwork, InputDomain, Network, quantise};
use concilium_privacy::{MechanismError, NoiseError, NoiseSource, OpenDpNoise, TaskPolicy};
use concilium_ring::{Element as _, Z64};
use ndarray::{Array1, Array2, Axis};
use zeroize::Zeroizing;

use crate::AuditError;

/// Fractional bits of toy models.
const FRACTIONAL_BITS: u32 = 12;

/// Features of a row: which way the unit votes, and whether the vote is close.
const FEATURES: usize = 2;

/// How far the logit of a vote is above the others: the softmax of all others is then zero in 16 bits.
const LOGIT: f64 = 20.0;

/// One server's sources of noise.
pub struct ServerNoise {
    /// Noise of answers, in units of the release.
    pub answers: Box<dyn NoiseSource>,
    /// Noise of threshold tests, for a release that has one.
    pub threshold: Option<Box<dyn NoiseSource>>,
}

impl ServerNoise {
    /// What a server of this version draws for the policy.
    ///
    /// # Errors
    /// [`MechanismError`] when policy does not allow a mechanism.
    pub fn of_server(policy: &TaskPolicy) -> Result<Self, MechanismError> {
        let answers = OpenDpNoise::new(policy.mechanism.on_lattice(policy.release.fraction_bits()))?;
        let threshold =
            policy.threshold.map(|threshold| OpenDpNoise::new(threshold.mechanism)).transpose()?;
        Ok(Self {
            answers: Box::new(answers),
            threshold: threshold.map(|source| Box::new(source) as Box<dyn NoiseSource>),
        })
    }
}

/// The three servers' sources, each used by the thread of its server.
pub(crate) struct Servers([Mutex<ServerNoise>; 3]);

impl Servers {
    pub(crate) fn new(servers: [ServerNoise; 3]) -> Self {
        Self(servers.map(Mutex::new))
    }
}

/// What is evaluated and how it is released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Released {
    /// Noised counts.
    Counts,
    /// Noised sums of probabilities.
    Probabilities,
    /// Labels of the noised counts.
    Labels,
    /// Only which rows reach a threshold of so many votes.
    Test(u32),
    /// Labels of the rows that reach a threshold of so many votes.
    ConfidentLabels(u32),
}

/// Votes of the models that are the same in both ensembles, and of the unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Votes {
    /// Classes of every model.
    pub(crate) classes: usize,
    /// Models of the privacy unit.
    pub(crate) unit: u32,
    /// Other models that vote for class 0, and for class 1.
    pub(crate) others: [u32; 2],
    /// Other models that vote for class 0 in close rows and for class 1 otherwise.
    pub(crate) switching: u32,
}

impl Votes {
    /// All models.
    pub(crate) fn models(self) -> usize {
        (self.unit + self.others[0] + self.others[1] + self.switching) as usize
    }
}

/// Whether the vote of a row is close, so that the unit decides it where there is no noise. In most rows
/// it is not, because tails of noise tell most; were it so in all rows, no noise at all would show nothing.
pub(crate) fn is_close(row: usize) -> bool {
    // Events are chosen on every fourth sample, which has no factor in common with this.
    (row / 2).is_multiple_of(5)
}

/// One ensemble as the three servers hold it.
pub(crate) struct World {
    ensembles: [Ensemble; 3],
}

impl World {
    /// Shares the models. The unit votes for `unit[0]` in even rows and for `unit[1]` in odd rows.
    pub(crate) fn new(votes: Votes, unit: [usize; 2], seed: u64) -> Result<Self, AuditError> {
        let Votes { classes, unit: models, others, switching } = votes;
        let kinds =
            [(0, unit, models), (0, [0, 0], others[0]), (0, [1, 1], others[1]), (1, [0, 1], switching)];
        let mut parts = [Vec::new(), Vec::new(), Vec::new()];
        let mut position = 0;
        for (feature, choice, count) in kinds {
            let network = toy(classes, feature, choice)?;
            for _ in 0..count {
                position += 1;
                for (models, model) in parts.iter_mut().zip(shared(&network, seed.wrapping_add(position))?) {
                    models.push(Arc::new(model));
                }
            }
        }
        let [first, second, third] =
            parts.map(|models| Ensemble::new(models, FEATURES, classes, FRACTIONAL_BITS).map_err(failed));
        Ok(Self { ensembles: [first?, second?, third?] })
    }
}

/// A network that votes for `choice[0]` where a feature is 1 and for `choice[1]` where it is -1.
fn toy(classes: usize, feature: usize, choice: [usize; 2]) -> Result<FixedNetwork, AuditError> {
    let (mut weights, mut bias) = (Array2::zeros((FEATURES, classes)), Array1::zeros(classes));
    if choice[0] == choice[1] {
        bias[choice[0]] = LOGIT;
    } else {
        weights[(feature, choice[0])] = LOGIT;
        weights[(feature, choice[1])] = -LOGIT;
    }
    let network = Network::perceptron(vec![FEATURES], vec![(weights, bias)]).map_err(failed)?;
    let domain = InputDomain::new(vec![FEATURES], vec![-1.0], vec![1.0]).map_err(failed)?;
    quantise(&network, &domain, FRACTIONAL_BITS).map_err(failed)
}

fn shared(network: &FixedNetwork, seed: u64) -> Result<[SharedModel; 3], AuditError> {
    let elements = Array1::from_vec(flatten::<Z64>(network)).insert_axis(Axis(0));
    let [first, second, third] = share(seed, &elements).map(|part| {
        let component = |view: ndarray::ArrayView2<'_, Z64>| view.iter().copied().collect::<Vec<_>>();
        SharedModel::new(network.architecture(), &component(part.own()), &component(part.next()))
    });
    Ok([first.map_err(failed)?, second.map_err(failed)?, third.map_err(failed)?])
}

fn failed(error: impl std::fmt::Display) -> AuditError {
    AuditError::Evaluation(error.to_string())
}

/// What one server holds after a batch.
pub(crate) struct Held {
    /// What it sends to the client; empty for a test alone.
    pub(crate) components: Option<ReleasedComponents>,
    /// Its noise of answers, row-major. A row without an answer has noise here that was used for nothing.
    pub(crate) noise: Vec<i64>,
    /// Its noise of threshold tests.
    pub(crate) threshold_noise: Vec<i64>,
    /// The bits that the servers open.
    pub(crate) consensus: Vec<bool>,
}

/// Evaluates `rows` rows in a session of its own.
pub(crate) fn evaluate(
    world: &World,
    released: Released,
    rows: usize,
    session: u64,
    servers: &Servers,
) -> Result<[Held; 3], AuditError> {
    let one = 1_i64 << FRACTIONAL_BITS;
    let input = Array2::from_shape_fn((rows, FEATURES), |(row, feature)| {
        let positive = if feature == 0 { row % 2 == 0 } else { is_close(row) };
        Z64::from_signed(if positive { one } else { -one })
    });
    let inputs = share(session, &input);
    let results = run(session, |party| {
        let place = party.index().number();
        // A panic of another thread ends the run before anybody looks at the source again.
        let mut noise = servers.0[place].lock().unwrap_or_else(PoisonError::into_inner);
        release(party, &world.ensembles[place], &inputs[place], released, &mut noise)
    });
    // A server that fails on its own leaves the others without messages: its reason comes first.
    let mut held = Vec::new();
    let mut lost = None;
    for result in results {
        match result {
            Ok(parts) => held.push(parts),
            Err(StepError::Protocol(error)) => lost = Some(failed(error)),
            Err(StepError::Noise(error)) => return Err(error.into()),
        }
    }
    match (<[Held; 3]>::try_from(held), lost) {
        (Ok(held), None) => Ok(held),
        (_, lost) => Err(lost.unwrap_or_else(|| failed("a server gave nothing"))),
    }
}

enum StepError {
    Protocol(MpcError),
    Noise(NoiseError),
}

impl From<MpcError> for StepError {
    fn from(error: MpcError) -> Self {
        Self::Protocol(error)
    }
}

impl From<NoiseError> for StepError {
    fn from(error: NoiseError) -> Self {
        Self::Noise(error)
    }
}

/// One server's part, step by step as `concilium-server` does it.
fn release(
    party: &mut Party<LocalChannel>,
    ensemble: &Ensemble,
    input: &Shares<Z64>,
    released: Released,
    noise: &mut ServerNoise,
) -> Result<Held, StepError> {
    let (rows, classes) = (input.dim().0, ensemble.classes());
    let mut held =
        Held { components: None, noise: Vec::new(), threshold_noise: Vec::new(), consensus: Vec::new() };
    let sums = match released {
        Released::Probabilities => probabilities(party, ensemble, input)?,
        _ => histogram(party, ensemble, input)?,
    };
    match released {
        Released::Counts | Released::Probabilities => {
            let drawn = draw(&mut *noise.answers, rows, classes)?;
            held.components = Some(noised_sums(party, sums, &drawn)?);
            held.noise = drawn.to_vec();
        }
        Released::Labels => {
            let drawn = draw(&mut *noise.answers, rows, classes)?;
            held.components = Some(noised_labels(party, sums, &drawn)?);
            held.noise = drawn.to_vec();
        }
        Released::Test(threshold) | Released::ConfidentLabels(threshold) => {
            let source = noise.threshold.as_deref_mut().unwrap_or(&mut *noise.answers);
            let drawn = draw(source, rows, 1)?;
            let passed = ThresholdTest::compute(party, sums, &drawn, threshold)?.open(party)?;
            held.threshold_noise = drawn.to_vec();
            held.consensus = passed.consensus().to_vec();
            if matches!(released, Released::ConfidentLabels(_)) {
                let drawn = draw(&mut *noise.answers, passed.rows(), classes)?;
                held.components = Some(passed.answer(party, &drawn)?);
                held.noise = spread(&drawn, &held.consensus, classes, &mut *noise.answers)?;
            }
        }
    }
    Ok(held)
}

/// Noise for `rows` rows.
fn draw(source: &mut dyn NoiseSource, rows: usize, bins: usize) -> Result<Zeroizing<Vec<i64>>, NoiseError> {
    let mut noise = Zeroizing::new(Vec::with_capacity(rows * bins));
    for _ in 0..rows {
        noise.extend_from_slice(source.draw(bins)?.values());
    }
    Ok(noise)
}

/// The noise of the rows that passed in their places, and noise that was used for nothing in those of the
/// others: so what a row is chosen by does not depend on whether it passed.
fn spread(
    noise: &[i64],
    consensus: &[bool],
    bins: usize,
    source: &mut dyn NoiseSource,
) -> Result<Vec<i64>, NoiseError> {
    let mut answers = noise.chunks_exact(bins);
    let mut all = Vec::with_capacity(consensus.len() * bins);
    for &passed in consensus {
        match passed.then(|| answers.next()).flatten() {
            Some(answer) => all.extend_from_slice(answer),
            None => all.extend_from_slice(source.draw(bins)?.values()),
        }
    }
    Ok(all)
}
