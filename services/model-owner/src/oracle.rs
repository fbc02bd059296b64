//! A model in single precision, as another program understands its file.
//!
//! Import reads a file in its own way, and every other comparison rests on what it has read. This one does
//! not: tract reads the same file, and evaluates it without knowing of shares or fixed point. It gets only
//! the part of the file that import has accepted, so that no other node, and no other file, is looked at.

#[cfg(feature = "oracle")]
mod tract;

use std::path::Path;

use concilium_network::{Ending, ImportOptions, argmax};
use ndarray::{Array1, Array2, ArrayView2};

/// A difference between import and tract, as a part of the largest output, above which rounding to single
/// precision does not explain it.
const ROUNDING: f64 = 1e-3;

/// The outputs of a secure run beside those of the other evaluations.
pub struct Outputs {
    /// What the outputs are of the logits.
    pub ending: Ending,
    /// By the secure run, `[rows, numbers of an output]`.
    pub secure: Array2<f64>,
    /// In fixed point in plaintext.
    pub fixed: Array2<f64>,
    /// By the oracle: tract, or the imported network in double precision.
    pub oracle: Array2<f64>,
    /// Who the oracle is, or why it is not tract.
    pub by: String,
    /// Largest difference of the secure run to the oracle.
    pub largest_difference: f64,
    /// Rows that get the label which the oracle gives them.
    pub labels_agree: usize,
    /// How far tract is from the imported network in double precision, if rounding does not explain it.
    pub misread: Option<f64>,
}

/// Compares logits, `[rows, classes]`: of the secure run, in fixed point, in double precision; with what
/// tract says of the file.
#[must_use]
pub fn compare(logits: [&Array2<f64>; 3], ending: Ending, tract: Result<Array2<f64>, String>) -> Outputs {
    let [secure, fixed, exact] = logits.map(|logits| ending.of(logits.view()));
    let labels = argmax(logits[0].view());
    let (oracle, oracle_labels, by, misread) = match tract {
        Ok(outputs) if ending != Ending::Unknown && outputs.dim() == exact.dim() => {
            let largest = outputs.iter().fold(1.0, |largest: f64, output| largest.max(output.abs()));
            let off = largest_difference(&outputs, &exact);
            let labels = labels_of(ending, &outputs);
            (
                outputs,
                labels,
                "tract, in single precision".to_owned(),
                Some(off).filter(|off| *off > ROUNDING * largest),
            )
        }
        Ok(outputs) if outputs.dim() == exact.dim() => {
            let by = "the imported network, in double precision; labels by tract".to_owned();
            (exact, argmax(outputs.view()), by, None)
        }
        other => {
            let reason = other.map_or_else(|reason| reason, |outputs| format!("{} outputs", outputs.ncols()));
            let by = format!("the imported network, in double precision (tract cannot be asked: {reason})");
            (exact, argmax(logits[2].view()), by, None)
        }
    };
    Outputs {
        ending,
        largest_difference: largest_difference(&secure, &oracle),
        labels_agree: labels.iter().zip(&oracle_labels).filter(|(ours, theirs)| ours == theirs).count(),
        secure,
        fixed,
        oracle,
        by,
        misread,
    }
}

fn labels_of(ending: Ending, outputs: &Array2<f64>) -> Array1<usize> {
    match ending {
        Ending::SecondOfTwo => outputs.column(0).mapv(|second| usize::from(second > 0.5)),
        _ => argmax(outputs.view()),
    }
}

fn largest_difference(left: &Array2<f64>, right: &Array2<f64>) -> f64 {
    left.iter().zip(right).map(|(left, right)| (left - right).abs()).fold(0.0, f64::max)
}

/// The outputs of the model in `path`, as its owner has chosen them, for `rows` `[rows, features]`:
/// `[rows, numbers of an output]`.
///
/// # Errors
/// Why tract cannot evaluate the file, in a line; that says nothing about whether it can be shared.
#[cfg(feature = "oracle")]
pub fn evaluate(
    path: &Path,
    options: &ImportOptions,
    rows: ArrayView2<'_, f64>,
) -> Result<Array2<f64>, String> {
    tract::evaluate(path, options, rows)
}

/// Builds without tract have nobody else to ask.
///
/// # Errors
/// Always: that the program is built without the feature `oracle`.
#[cfg(not(feature = "oracle"))]
pub fn evaluate(_: &Path, _: &ImportOptions, _: ArrayView2<'_, f64>) -> Result<Array2<f64>, String> {
    Err("this program is built without the feature `oracle`".to_owned())
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn labels_and_outputs_are_those_of_the_oracle() {
        let (secure, exact) = (array![[0.0, 1.01], [0.0, -1.0]], array![[0.0, 1.0], [0.0, 1.0]]);
        let probabilities = Ending::SecondOfTwo.of(exact.view());
        let shown = compare([&secure, &exact, &exact], Ending::SecondOfTwo, Ok(probabilities.clone()));
        assert_eq!((shown.labels_agree, shown.oracle, shown.misread), (1, probabilities, None));
        assert!(shown.largest_difference > 0.4);
        // Import reads something else than tract.
        let other = array![[0.9], [0.1]];
        let shown = compare([&exact, &exact, &exact], Ending::SecondOfTwo, Ok(other));
        assert!(shown.misread.is_some_and(|off| off > 0.1));
        assert_eq!(shown.labels_agree, 1);
    }

    #[test]
    fn without_tract_the_imported_network_is_the_oracle() {
        let logits = array![[0.5, 0.25]];
        for answer in [Err("no such operator".to_owned()), Ok(array![[1.0, 2.0, 3.0]])] {
            let shown = compare([&logits, &logits, &logits], Ending::Logits, answer);
            assert_eq!((shown.oracle, shown.labels_agree), (logits.clone(), 1));
            assert!(shown.by.contains("cannot be asked"), "{}", shown.by);
        }
        // Outputs that are no function of the logits that is known: the labels are compared all the same.
        let shown = compare([&logits, &logits, &logits], Ending::Unknown, Ok(array![[0.2, 0.8]]));
        assert_eq!((shown.oracle, shown.labels_agree, shown.misread), (logits, 0, None));
    }
}
