//! A model under the three-party computation, all three parties in this process.
//!
//! The owner sees before sharing that the servers will compute what its model computes: the model is
//! dealt as it will be, evaluated as the servers evaluate it, and every step is opened and compared
//! with plaintext. Nothing leaves the process.

use std::{time::Duration, time::Instant};

use concilium_inference::{
    Ensemble, EnsembleError, PrepareError, PreparedModel, RingElement, flatten, histogram, logits_observed,
};
use concilium_mpc::{
    MpcError, PartyIndex, Shares,
    input::{DealtShare, InputError as SharingError, deal},
    local::{reconstruct, run},
};
use concilium_network::{
    FixedNetwork, FixedStep, InputDomain, InputError, Network, Operation, Ring, Rounding, StepError,
};
use concilium_ring::{Z32, Z64, wipe};
use ndarray::{Array2, s};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use thiserror::Error;

/// Why the run says nothing, or says that the model must not be shared.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SecureRunError {
    /// The drawn inputs cannot be encoded.
    #[error("the drawn inputs cannot be encoded: {0}")]
    Input(#[from] InputError),
    /// The system gives no randomness.
    #[error(transparent)]
    Sharing(#[from] SharingError),
    /// The shares do not make a model.
    #[error(transparent)]
    Model(#[from] PrepareError),
    /// The model does not fit the task.
    #[error(transparent)]
    Ensemble(#[from] EnsembleError),
    /// The parties lost each other.
    #[error("the run of three parties failed: {0}")]
    Protocol(#[from] MpcError),
    /// A value is none that the protocol may give. In the ring of 64 bits truncation fails with a probability
    /// of at most 2^-24 for each value, so once in a very long while this is no fault.
    #[error("the secure evaluation is wrong: {0}; run again with another --seed, and if it stays, report it")]
    Step(#[from] StepError),
    /// A logit is further off than was proven.
    #[error(
        "the secure logits differ from the plaintext by {difference:.3e}, above the proven bound \
         {bound:.3e}; run again with another --seed, and if it stays, report it"
    )]
    Bound {
        /// The largest difference.
        difference: f64,
        /// The bound.
        bound: f64,
    },
}

/// What a run has shown.
#[derive(Clone, Debug, PartialEq)]
pub struct SecureRun {
    /// Rows evaluated.
    pub rows: usize,
    /// For each step what the rows have shown.
    pub steps: Vec<StepRun>,
    /// Largest difference of a logit to the network in double precision.
    pub logit_difference: f64,
    /// The proven bound of that difference.
    pub error_bound: f64,
    /// Logits of the secure run, `[rows, classes]`.
    pub logits: Array2<f64>,
    /// Logits in fixed point in plaintext, `[rows, classes]`.
    pub fixed_logits: Array2<f64>,
    /// Logits of the network in double precision, `[rows, classes]`.
    pub exact_logits: Array2<f64>,
    /// Bytes of memory that the model takes on each server.
    pub memory_bytes: [usize; 3],
    /// The cost of one row.
    pub one: Cost,
    /// The cost of several rows together.
    pub many: Cost,
}

/// What rows cost that are asked together, from the shared input to the shared and noised histogram.
#[derive(Clone, Debug, PartialEq)]
pub struct Cost {
    /// Rows asked together.
    pub rows: usize,
    /// Rounds, which do not depend on the rows.
    pub rounds: u32,
    /// Protocol bytes that servers 0, 1, 2 send for all of them.
    pub bytes_sent: [u64; 3],
    /// Time with all three parties on this machine and no network between them.
    pub elapsed: Duration,
}

impl Cost {
    /// An estimate of the time over a network where a message takes `one_way` and each server sends
    /// `bits_per_second`.
    #[must_use]
    pub fn over(&self, one_way: Duration, bits_per_second: f64) -> Duration {
        let most = self.bytes_sent.iter().max().copied().unwrap_or(0);
        self.elapsed + self.rounds * one_way + Duration::from_secs_f64(8.0 * most as f64 / bits_per_second)
    }
}

/// What the rows of a run have shown of one step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepRun {
    /// What its owner calls it.
    pub name: String,
    /// Whether it is a smooth function, which is computed by straight pieces.
    pub by_pieces: bool,
    /// Largest difference of the secure run to fixed-point plaintext, in units of the last place.
    pub last_places: i64,
    /// Largest difference of the secure run to the network in double precision.
    pub difference: f64,
    /// Largest magnitude of a number in double precision.
    pub largest: f64,
}

impl StepRun {
    fn new(step: &FixedStep) -> Self {
        let by_pieces = matches!(step.operation, Operation::Function(_));
        Self { name: step.name.clone(), by_pieces, last_places: 0, difference: 0.0, largest: 0.0 }
    }

    /// Adds the results of some rows: of the secure run and in plaintext in units of the last place, and in
    /// double precision.
    fn add(&mut self, secure: &Array2<i64>, plain: &Array2<i64>, exact: &Array2<f64>, unit: f64) {
        for ((&secure, plain), exact) in secure.iter().zip(plain).zip(exact) {
            self.last_places = self.last_places.max((secure - plain).abs());
            self.difference = self.difference.max((secure as f64 * unit - exact).abs());
            self.largest = self.largest.max(exact.abs());
        }
    }
}

/// Rows drawn uniformly from `domain`, `[rows, features]`.
pub fn draw_rows(domain: &InputDomain, rows: usize, seed: u64) -> Array2<f64> {
    let mut random = StdRng::seed_from_u64(seed);
    Array2::from_shape_fn((rows, domain.features()), |(_, feature)| {
        let (low, high) = (domain.minimum()[feature], domain.maximum()[feature]);
        low + (high - low) * random.random::<f64>()
    })
}

/// Numbers of all steps that are held at a time, over the rows that are compared together.
const ELEMENTS_AT_A_TIME: usize = 1 << 22;

/// Evaluates `network`, and `fixed` that was made of it, in its ring, on `drawn` rows `[rows, features]`, some at a time;
/// `progress` is told how many rows are done. `seed` is for what the three parties draw among themselves.
///
/// # Errors
/// [`SecureRunError`] if the secure evaluation fails or gives a value that it must not give.
pub fn secure_run(
    network: &Network,
    fixed: &FixedNetwork,
    domain: &InputDomain,
    drawn: &Array2<f64>,
    seed: u64,
    progress: impl Fn(usize),
) -> Result<SecureRun, SecureRunError> {
    match fixed.precision().ring {
        Ring::Bits64 => in_ring::<Z64>(network, fixed, domain, drawn, seed, progress),
        Ring::Bits32 => in_ring::<Z32>(network, fixed, domain, drawn, seed, progress),
    }
}

fn in_ring<E: RingElement>(
    network: &Network,
    fixed: &FixedNetwork,
    domain: &InputDomain,
    drawn: &Array2<f64>,
    seed: u64,
    progress: impl Fn(usize),
) -> Result<SecureRun, SecureRunError> {
    let rows = drawn.nrows();
    let encoded = domain.encode(drawn.view(), fixed.fractional_bits())?;
    let ensembles = ensembles::<E>(fixed)?;
    let elements: usize = fixed.ranges().iter().map(|range| range.size).sum();
    let together = (ELEMENTS_AT_A_TIME / elements.max(1)).clamp(1, rows.max(1));
    let shape = (rows, fixed.architecture().classes);
    let mut run = SecureRun {
        rows,
        steps: fixed.steps().iter().map(StepRun::new).collect(),
        logit_difference: 0.0,
        error_bound: fixed.error_bound(),
        logits: Array2::zeros(shape),
        fixed_logits: Array2::zeros(shape),
        exact_logits: Array2::zeros(shape),
        memory_bytes: [0, 1, 2].map(|server: usize| ensembles[server].models()[0].memory_bytes()),
        one: cost(&ensembles, &encoded.slice(s![..1, ..]).to_owned(), seed ^ 1)?,
        many: cost(&ensembles, &encoded.slice(s![..together, ..]).to_owned(), seed ^ 2)?,
    };
    for first in (0..rows).step_by(together) {
        let taken = s![first..rows.min(first + together), ..];
        let batch = (drawn.slice(taken).to_owned(), encoded.slice(taken).to_owned());
        let logits = compare(network, fixed, &ensembles, &batch, seed ^ first as u64, &mut run.steps)?;
        run.logits.slice_mut(taken).assign(&logits.secure);
        run.fixed_logits.slice_mut(taken).assign(&logits.fixed);
        run.exact_logits.slice_mut(taken).assign(&logits.exact);
        progress(batch.0.nrows());
    }
    let differences = run.logits.iter().zip(&run.exact_logits).map(|(secure, exact)| (secure - exact).abs());
    run.logit_difference = differences.fold(0.0, f64::max);
    if run.logit_difference > run.error_bound {
        return Err(SecureRunError::Bound { difference: run.logit_difference, bound: run.error_bound });
    }
    Ok(run)
}

/// Logits of some rows, `[rows, classes]`.
struct Logits {
    secure: Array2<f64>,
    fixed: Array2<f64>,
    exact: Array2<f64>,
}

/// Evaluates rows, real and encoded, in three ways, and adds what they show to `steps`.
fn compare<E: RingElement>(
    network: &Network,
    fixed: &FixedNetwork,
    ensembles: &[Ensemble<E>; 3],
    (drawn, encoded): &(Array2<f64>, Array2<i64>),
    seed: u64,
    steps: &mut [StepRun],
) -> Result<Logits, SecureRunError> {
    let input = deal_rows(encoded)?;
    let parts = run(seed, |party| {
        let place = party.index().number();
        let mut seen = Vec::new();
        logits_observed(party, &ensembles[place], &input[place], |step, _, values| {
            seen.push((step, Shares::new(values.own().to_owned(), values.next().to_owned())));
        })
        .map(|_| seen)
    });
    let [first, second, third] = parts;
    let known_bits = fixed.precision().known_bits();
    let mut opened: Vec<Option<Array2<i64>>> = vec![None; fixed.steps().len() + 1];
    opened[0] = Some(encoded.clone());
    for (((step, own), (_, next)), (_, other)) in first?.into_iter().zip(second?).zip(third?) {
        let values = reconstruct(&[own, next, other]);
        opened[step + 1] = Some(values.mapv(|value| value.to_signed_modulo(known_bits)));
    }
    let opened: Vec<Array2<i64>> =
        opened.into_iter().map(|value| value.expect("every step of a model is evaluated")).collect();
    let unit = (-f64::from(fixed.fractional_bits())).exp2();
    let real = |values: &Array2<i64>| values.mapv(|value| value as f64 * unit);
    let plain = fixed.trace(encoded.view(), Rounding::Nearest);
    let mut exact = network.trace(drawn.view());
    // Quantisation may have put a step before all others that scales the features.
    if exact.len() < plain.len() {
        exact.insert(0, drawn.clone());
    }
    for (index, (step, (plain, exact))) in fixed.steps().iter().zip(plain.iter().zip(&exact)).enumerate() {
        let inputs: Vec<_> = step.inputs.iter().map(|&value| opened[value].view()).collect();
        let result = &opened[index + 1];
        fixed.check_step(index, &inputs, result.view())?;
        steps[index].add(result, plain, exact, unit);
    }
    let last = "a network has steps";
    Ok(Logits {
        secure: real(opened.last().expect(last)),
        fixed: real(plain.last().expect(last)),
        exact: exact.pop().expect(last),
    })
}

/// What encoded rows cost from their shares to the noised histogram.
fn cost<E: RingElement>(
    ensembles: &[Ensemble<E>; 3],
    encoded: &Array2<i64>,
    seed: u64,
) -> Result<Cost, SecureRunError> {
    let input = deal_rows(encoded)?;
    let begin = Instant::now();
    let traffic = run(seed, |party| {
        let place = party.index().number();
        let counts = histogram(party, &ensembles[place], &input[place])?;
        let (rows, classes) = counts.dim();
        counts.inject(party, &vec![0; rows * classes])?;
        Ok::<_, MpcError>(party.traffic().clone())
    });
    let elapsed = begin.elapsed();
    let [first, second, third] = traffic;
    let traffic = [first?, second?, third?];
    Ok(Cost {
        rows: encoded.nrows(),
        rounds: traffic.iter().map(|party| party.rounds).max().unwrap_or(0),
        bytes_sent: traffic.map(|party| party.bytes_sent),
        elapsed,
    })
}

/// The model as each server would hold it after sharing.
fn ensembles<E: RingElement>(fixed: &FixedNetwork) -> Result<[Ensemble<E>; 3], SecureRunError> {
    let architecture = fixed.architecture();
    let shares = deal_and_wipe(flatten::<E>(fixed))?;
    let ensemble = |share: &DealtShare| {
        let model = PreparedModel::new(architecture.clone(), &share.own, &share.next)?;
        let (features, classes) = (architecture.input_features, architecture.classes);
        let ensemble = Ensemble::of_prepared([&model], features, classes, architecture.fractional_bits)?;
        Ok::<_, SecureRunError>(ensemble)
    };
    let [first, second, third] = &shares;
    Ok([ensemble(first)?, ensemble(second)?, ensemble(third)?])
}

/// Encoded rows as the three servers hold them.
fn deal_rows<E: RingElement>(encoded: &Array2<i64>) -> Result<[Shares<E>; 3], SecureRunError> {
    let dealt = deal_and_wipe(encoded.iter().map(|&value| E::from_signed(value)).collect())?;
    let matrix = |elements: Vec<E>| {
        Array2::from_shape_vec(encoded.dim(), elements).expect("a component has an element for each value")
    };
    let shares = |server: PartyIndex| {
        let share = &dealt[server.number()];
        let (own, next) = (share.own.expand(encoded.len())?, share.next.expand(encoded.len())?);
        Ok::<_, SecureRunError>(Shares::new(matrix(own), matrix(next)))
    };
    let [first, second, third] = PartyIndex::ALL;
    Ok([shares(first)?, shares(second)?, shares(third)?])
}

fn deal_and_wipe<E: RingElement>(mut elements: Vec<E>) -> Result<[DealtShare; 3], SharingError> {
    let dealt = deal(&elements, &mut rand::rngs::SysRng);
    wipe(&mut elements);
    dealt
}

#[cfg(test)]
mod tests {
    use concilium_network::{Ring, argmax, choose_fractional_bits, quantise};
    use ndarray::Array1;

    use super::*;

    #[test]
    fn a_network_is_run_and_compared() {
        let seed = std::env::var("CONCILIUM_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(11);
        eprintln!("CONCILIUM_TEST_SEED={seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let mut layer = |inputs, outputs| {
            let weights = Array2::from_shape_fn((inputs, outputs), |_| random.random::<f64>() - 0.5);
            (weights, Array1::from_shape_fn(outputs, |_| random.random::<f64>() - 0.5))
        };
        let layers = vec![layer(6, 9), layer(9, 4)];
        let network = Network::perceptron(vec![2, 3], layers).unwrap();
        let domain =
            InputDomain::new(vec![2, 3], vec![0.0, -100.0, 0.001, 0.0, -1.0, 0.0], vec![4000.0]).unwrap();
        let bits = choose_fractional_bits(Ring::Bits64, [&network], &domain).unwrap();
        let fixed = quantise(&network, &domain, bits).unwrap();
        let rows = draw_rows(&domain, 5, seed);
        let shown = secure_run(&network, &fixed, &domain, &rows, seed, |_| {}).unwrap();
        assert_eq!((shown.rows, shown.steps.len()), (5, 3));
        assert!(shown.logit_difference <= shown.error_bound && shown.error_bound > 0.0, "{shown:?}");
        assert!(shown.one.rounds > 3 && shown.one.bytes_sent.iter().all(|&bytes| bytes > 0), "{shown:?}");
        assert_eq!((shown.one.rows, shown.many.rows, shown.many.rounds), (1, 5, shown.one.rounds));
        assert!(shown.steps.iter().all(|step| step.difference <= shown.error_bound && step.largest > 0.0));
        assert!(shown.memory_bytes.iter().all(|&bytes| bytes >= 16 * (6 * 9 + 9 * 4)), "{shown:?}");
        let (votes, exact) = (argmax(shown.logits.view()), argmax(shown.exact_logits.view()));
        let votes_agree = votes.iter().zip(&exact).filter(|(a, b)| a == b).count();
        assert!(votes_agree >= 4, "{shown:?}");
    }

    #[test]
    fn drawn_rows_lie_in_the_domain() {
        let domain = InputDomain::new(vec![3], vec![-5.0, 0.0, 7.0], vec![-4.0, 1e9, 7.0]).unwrap();
        let rows = draw_rows(&domain, 50, 3);
        assert!(domain.encode(rows.view(), 12).is_ok());
        assert_eq!(rows, draw_rows(&domain, 50, 3));
        assert_ne!(rows, draw_rows(&domain, 50, 4));
    }
}
