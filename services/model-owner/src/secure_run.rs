//! A model under the three-party computation, all three parties in this process.
//!
//! The owner sees before sharing that the servers will compute what its model computes: the model is
//! dealt as it will be, evaluated as the servers evaluate it, and every step is opened and compared
//! with plaintext. Nothing leaves the process.

use std::{sync::Arc, time::Duration, time::Instant};

use concilium_inference::{
    Ensemble, EnsembleError, ModelError, SharedModel, flatten, histogram, logits_observed,
};
use concilium_mpc::{
    MpcError, PartyIndex, Shares,
    input::{DealtShare, InputError as SharingError, deal},
    local::{reconstruct, run},
};
use concilium_network::{FixedNetwork, InputDomain, InputError, Network, Rounding, StepError, model::argmax};
use concilium_ring::{Element as _, Z64};
use ndarray::Array2;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use thiserror::Error;
use zeroize::Zeroize as _;

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
    Model(#[from] ModelError),
    /// The model does not fit the task.
    #[error(transparent)]
    Ensemble(#[from] EnsembleError),
    /// The parties lost each other.
    #[error("the run of three parties failed: {0}")]
    Protocol(#[from] MpcError),
    /// A value is none that the protocol may give. Truncation fails with a probability of at most 2^-24
    /// for each value, so once in a very long while this is no fault.
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
    /// For each step its name and the largest difference to the fixed-point plaintext, in units of the
    /// last place.
    pub steps: Vec<(String, i64)>,
    /// Largest difference of a logit to the network in double precision.
    pub logit_difference: f64,
    /// The proven bound of that difference.
    pub error_bound: f64,
    /// Logits of the secure run, `[rows, classes]`.
    pub logits: Array2<f64>,
    /// Logits of the network in double precision, `[rows, classes]`.
    pub exact_logits: Array2<f64>,
    /// Rows whose vote is that of the network in double precision.
    pub votes_agree: usize,
    /// Rounds from the shared input to the shared and noised histogram.
    pub rounds: u32,
    /// Protocol bytes that servers 0, 1, 2 send for all rows.
    pub bytes_sent: [u64; 3],
    /// Bytes of memory that the model takes on each server.
    pub memory_bytes: [usize; 3],
    /// Time of the run to the histogram, with all three parties on this machine.
    pub elapsed: Duration,
}

/// Rows drawn uniformly from `domain`, `[rows, features]`.
pub fn draw_rows(domain: &InputDomain, rows: usize, seed: u64) -> Array2<f64> {
    let mut random = StdRng::seed_from_u64(seed);
    Array2::from_shape_fn((rows, domain.features()), |(_, feature)| {
        let (low, high) = (domain.minimum()[feature], domain.maximum()[feature]);
        low + (high - low) * random.random::<f64>()
    })
}

/// Evaluates `network`, and `fixed` that was made of it, on `drawn` rows `[rows, features]`. `seed` is for what
/// the three parties draw among themselves.
///
/// # Errors
/// [`SecureRunError`] if the secure evaluation fails or gives a value that it must not give.
pub fn secure_run(
    network: &Network,
    fixed: &FixedNetwork,
    domain: &InputDomain,
    drawn: &Array2<f64>,
    seed: u64,
) -> Result<SecureRun, SecureRunError> {
    let rows = drawn.nrows();
    let encoded = domain.encode(drawn.view(), fixed.fractional_bits())?;
    let ensembles = ensembles(fixed)?;
    let input = deal_rows(&encoded)?;

    let parts = run(seed, |party| {
        let place = party.index().number();
        let mut seen = Vec::new();
        logits_observed(party, &ensembles[place], &input[place], |step, _, values| {
            seen.push((step, Shares::new(values.own().to_owned(), values.next().to_owned())));
        })
        .map(|_| seen)
    });
    let [first, second, third] = parts;
    let mut opened: Vec<Option<Array2<i64>>> = vec![None; fixed.steps().len() + 1];
    opened[0] = Some(encoded.clone());
    for (((step, own), (_, next)), (_, other)) in first?.into_iter().zip(second?).zip(third?) {
        opened[step + 1] = Some(reconstruct(&[own, next, other]).mapv(|value| value.to_signed()));
    }
    let opened: Vec<Array2<i64>> =
        opened.into_iter().map(|value| value.expect("every step of a model is evaluated")).collect();
    let plain = fixed.trace(encoded.view(), Rounding::Nearest);
    let mut steps = Vec::with_capacity(plain.len());
    for (index, (step, plain)) in fixed.steps().iter().zip(&plain).enumerate() {
        let inputs: Vec<_> = step.inputs.iter().map(|&value| opened[value].view()).collect();
        let result = &opened[index + 1];
        fixed.check_step(index, &inputs, result.view())?;
        let differences = result.iter().zip(plain).map(|(secure, plain)| (secure - plain).abs());
        steps.push((step.name.clone(), differences.max().unwrap_or(0)));
    }
    let values = opened.last().expect("there is the input at least");

    let unit = (-f64::from(fixed.fractional_bits())).exp2();
    let exact = network.evaluate(drawn.view());
    let logit_difference = values
        .iter()
        .zip(&exact)
        .map(|(&secure, exact)| (secure as f64 * unit - exact).abs())
        .fold(0.0, f64::max);
    if logit_difference > fixed.error_bound() {
        return Err(SecureRunError::Bound { difference: logit_difference, bound: fixed.error_bound() });
    }
    let votes = argmax(values.view());
    let votes_agree = votes.iter().zip(&network.votes(drawn.view())).filter(|(a, b)| a == b).count();

    let begin = Instant::now();
    let traffic = run(seed ^ 1, |party| {
        let place = party.index().number();
        let counts = histogram(party, &ensembles[place], &input[place])?;
        let (rows, classes) = counts.dim();
        counts.inject(party, &vec![0; rows * classes])?;
        Ok::<_, MpcError>(party.traffic().clone())
    });
    let elapsed = begin.elapsed();
    let [first, second, third] = traffic;
    let traffic = [first?, second?, third?];
    Ok(SecureRun {
        rows,
        steps,
        logits: values.mapv(|value| value as f64 * unit),
        exact_logits: exact,
        logit_difference,
        error_bound: fixed.error_bound(),
        votes_agree,
        rounds: traffic.iter().map(|party| party.rounds).max().unwrap_or(0),
        bytes_sent: traffic.map(|party| party.bytes_sent),
        memory_bytes: [0, 1, 2].map(|server: usize| ensembles[server].models()[0].memory_bytes()),
        elapsed,
    })
}

/// The model as each server would hold it after sharing.
fn ensembles(fixed: &FixedNetwork) -> Result<[Ensemble; 3], SecureRunError> {
    let architecture = fixed.architecture();
    let count = architecture.parameter_count();
    let shares = deal_and_wipe(flatten(fixed))?;
    let ensemble = |share: &DealtShare| {
        let (own, next) = (share.own.expand(count)?, share.next.expand(count)?);
        let model = SharedModel::new(architecture.clone(), &own, &next)?;
        let (features, classes) = (architecture.input_features, architecture.classes);
        Ok::<_, SecureRunError>(Ensemble::new(
            vec![Arc::new(model)],
            features,
            classes,
            architecture.fractional_bits,
        )?)
    };
    let [first, second, third] = &shares;
    Ok([ensemble(first)?, ensemble(second)?, ensemble(third)?])
}

/// Encoded rows as the three servers hold them.
fn deal_rows(encoded: &Array2<i64>) -> Result<[Shares<Z64>; 3], SecureRunError> {
    let dealt = deal_and_wipe(encoded.iter().map(|&value| Z64::from_signed(value)).collect())?;
    let matrix = |elements: Vec<Z64>| {
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

fn deal_and_wipe(mut elements: Vec<Z64>) -> Result<[DealtShare; 3], SharingError> {
    let dealt = deal(&elements, &mut rand::rngs::SysRng);
    elements.iter_mut().for_each(|element| element.0.zeroize());
    dealt
}

#[cfg(test)]
mod tests {
    use concilium_network::{choose_fractional_bits, quantise};
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
        let bits = choose_fractional_bits([&network], &domain).unwrap();
        let fixed = quantise(&network, &domain, bits).unwrap();
        let rows = draw_rows(&domain, 5, seed);
        let shown = secure_run(&network, &fixed, &domain, &rows, seed).unwrap();
        assert_eq!((shown.rows, shown.steps.len()), (5, 3));
        assert!(shown.logit_difference <= shown.error_bound && shown.error_bound > 0.0, "{shown:?}");
        assert!(shown.rounds > 3 && shown.bytes_sent.iter().all(|&bytes| bytes > 0), "{shown:?}");
        assert!(shown.memory_bytes.iter().all(|&bytes| bytes >= 16 * (6 * 9 + 9 * 4)), "{shown:?}");
        assert!(shown.votes_agree >= 4, "{shown:?}");
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
