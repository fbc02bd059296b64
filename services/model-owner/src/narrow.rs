//! Whether a model would fit a task in the ring of 32 bits, beside what it takes in that of 64.

use concilium_network::{
    Check, FixedNetwork, InputDomain, Network, Precision, QuantiseError, Ring, argmax, quantise,
};
use ndarray::Array2;

use crate::{
    oracle,
    secure_run::{SecureRun, SecureRunError, secure_run},
};

/// What the ring of 32 bits would give.
pub enum Narrow {
    /// The model does not fit it, for this reason.
    Refused(String),
    /// It fits.
    Fits(Box<NarrowRun>),
}

/// A secure run in the ring of 32 bits on the rows of that in 64.
pub struct NarrowRun {
    /// Fractional bits: the most that fit.
    pub fractional_bits: u32,
    /// The least headroom of all steps.
    pub headroom_bits: Option<i32>,
    /// What the run has shown.
    pub run: SecureRun,
    /// Rows that get the label which the oracle gives them.
    pub labels_agree: usize,
    /// Rows that get the label of the run in 64 bits.
    pub labels_kept: usize,
}

/// What an owner is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recommendation {
    /// The ring of 32 bits: no label of the given rows is lost.
    Narrow,
    /// To look again with rows of its own.
    TryRows,
    /// The ring of 64 bits: labels are lost in that of 32.
    LabelsLost,
    /// The ring of 64 bits: the model does not fit that of 32.
    DoesNotFit,
}

impl Narrow {
    /// Runs the model on `rows` in the ring of 32 bits, and compares with `wide`, the run in 64, and with what
    /// tract says of the file.
    ///
    /// # Errors
    /// [`SecureRunError`] if the run gives what it must not give.
    pub fn of(
        network: &Network,
        domain: &InputDomain,
        rows: &Array2<f64>,
        seed: u64,
        wide: &SecureRun,
        tract: Result<Array2<f64>, String>,
        progress: impl Fn(usize),
    ) -> Result<Self, SecureRunError> {
        let (fixed, headroom_bits) = match fit(network, domain) {
            Ok(fitting) => fitting,
            Err(refusal) => return Ok(Self::Refused(refusal)),
        };
        let run = secure_run(network, &fixed, domain, rows, seed, progress)?;
        let ending = network.origin().map(|origin| origin.ending).unwrap_or_default();
        let logits = [&run.logits, &run.fixed_logits, &run.exact_logits];
        let labels_agree = oracle::compare(logits, ending, tract).labels_agree;
        let labels = argmax(run.logits.view());
        let labels_kept = labels.iter().zip(argmax(wide.logits.view())).filter(|(a, b)| **a == *b).count();
        let fractional_bits = fixed.fractional_bits();
        Ok(Self::Fits(Box::new(NarrowRun { fractional_bits, headroom_bits, run, labels_agree, labels_kept })))
    }

    /// What to do, where `labels_agree` rows get the oracle's label in 64 bits, and `given` rows are the
    /// owner's own.
    #[must_use]
    pub fn recommendation(&self, labels_agree: usize, given: bool) -> Recommendation {
        match self {
            Self::Refused(_) => Recommendation::DoesNotFit,
            Self::Fits(narrow) if narrow.labels_agree < labels_agree => Recommendation::LabelsLost,
            Self::Fits(_) if given => Recommendation::Narrow,
            Self::Fits(_) => Recommendation::TryRows,
        }
    }
}

/// The network in the ring of 32 bits with the most fractional bits that fit, and its least headroom, or why
/// there is none.
fn fit(network: &Network, domain: &InputDomain) -> Result<(FixedNetwork, Option<i32>), String> {
    let text = |error: QuantiseError| error.to_string();
    let check = Check::new(network, domain, Ring::Bits32, None).map_err(text)?;
    if let Some(refusal) = check.refusal {
        return Err(refusal);
    }
    let headroom = check.steps.iter().filter_map(|step| step.headroom_bits).min();
    let precision = Precision { ring: Ring::Bits32, fractional_bits: check.fractional_bits };
    Ok((quantise(network, domain, precision).map_err(text)?, headroom))
}

#[cfg(test)]
mod tests {
    use concilium_network::choose_fractional_bits;
    use ndarray::{Array1, array};

    use super::*;
    use crate::secure_run::draw_rows;

    fn wide(network: &Network, domain: &InputDomain, rows: &Array2<f64>) -> SecureRun {
        let bits = choose_fractional_bits(Ring::Bits64, [network], domain).unwrap();
        let fixed = quantise(network, domain, bits).unwrap();
        secure_run(network, &fixed, domain, rows, 5, |_| {}).unwrap()
    }

    fn narrow(network: &Network, domain: &InputDomain, rows: &Array2<f64>, wide: &SecureRun) -> Narrow {
        // There is no file, so the imported network is the oracle.
        Narrow::of(network, domain, rows, 6, wide, Err("no file".to_owned()), |_| {}).unwrap()
    }

    #[test]
    fn what_fits_is_run_and_compared() {
        let weights = |inputs: usize, outputs: usize| {
            let weight = |(row, column)| ((7 * row + 3 * column) % 11) as f64 / 5.0 - 1.0;
            (Array2::from_shape_fn((inputs, outputs), weight), Array1::from_elem(outputs, 0.25))
        };
        let network = Network::perceptron(vec![6], vec![weights(6, 9), weights(9, 4)]).unwrap();
        let domain = InputDomain::new(vec![6], vec![0.0], vec![1.0]).unwrap();
        let rows = draw_rows(&domain, 20, 7);
        let wide = wide(&network, &domain, &rows);
        let Narrow::Fits(found) = narrow(&network, &domain, &rows, &wide) else { panic!("it fits") };
        assert_eq!((found.labels_agree, found.labels_kept), (20, 20));
        assert!(found.run.one.rounds <= wide.one.rounds);
        assert!((10..=14).contains(&found.fractional_bits) && found.headroom_bits >= Some(1));
        for (narrow, wide) in found.run.memory_bytes.iter().zip(wide.memory_bytes) {
            // Small matrices are mostly padding.
            assert!(*narrow < wide, "{narrow} bytes against {wide}");
        }
        let sums = [&found.run, &wide].map(|run| run.one.bytes_sent.iter().sum::<u64>());
        assert!(sums[0] < sums[1], "{sums:?}");
        let found = Narrow::Fits(found);
        assert_eq!(found.recommendation(20, true), Recommendation::Narrow);
        assert_eq!(found.recommendation(20, false), Recommendation::TryRows);
        assert_eq!(found.recommendation(21, true), Recommendation::LabelsLost);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_step() {
        let network = Network::perceptron(vec![1], vec![(array![[1e6, 1.0]], array![0.0, 0.0])]).unwrap();
        let domain = InputDomain::new(vec![1], vec![-1.0], vec![1.0]).unwrap();
        let rows = array![[0.5]];
        let wide = wide(&network, &domain, &rows);
        let found = narrow(&network, &domain, &rows, &wide);
        let Narrow::Refused(refusal) = &found else { panic!("it does not fit") };
        assert!(refusal.contains("step 0") && refusal.contains("2^30 in a ring of 32 bits"), "{refusal}");
        assert_eq!(found.recommendation(1, true), Recommendation::DoesNotFit);
    }
}
