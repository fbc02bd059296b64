//! What a file's outputs are of the logits.
//!
//! Import drops a function after the last layer that does not change the order of the classes. An owner
//! that compares with the outputs of its file needs it again, in plaintext.

use ndarray::{Array2, ArrayView2, Axis};

/// The function from the logits `[rows, classes]` to a file's outputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// The outputs are the logits.
    #[default]
    Logits,
    /// The softmax of each row.
    Softmax,
    /// The logarithm of the softmax of each row.
    LogSoftmax,
    /// The sigmoid of each logit.
    Sigmoid,
    /// One column: the probability of the second of two classes.
    SecondOfTwo,
    /// Something of the same order that is not written down, as behind a classical model's Normalizer.
    Unknown,
}

impl Ending {
    /// What the outputs are called in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Logits | Self::Unknown => "logits",
            Self::Softmax => "softmax of the logits",
            Self::LogSoftmax => "log-softmax of the logits",
            Self::Sigmoid => "sigmoid of the logits",
            Self::SecondOfTwo => "probability of the second class",
        }
    }

    /// The outputs that belong to `logits` `[rows, classes]`; the logits themselves where they are not
    /// known.
    #[must_use]
    pub fn of(self, logits: ArrayView2<'_, f64>) -> Array2<f64> {
        let mut outputs = logits.to_owned();
        match self {
            Self::Logits | Self::Unknown => {}
            Self::Softmax | Self::LogSoftmax => {
                for mut row in outputs.rows_mut() {
                    let largest = row.fold(f64::NEG_INFINITY, |largest, &logit| largest.max(logit));
                    row.mapv_inplace(|logit| logit - largest);
                    let sum = row.fold(0.0, |sum, &logit| sum + logit.exp());
                    match self {
                        Self::Softmax => row.mapv_inplace(|logit| logit.exp() / sum),
                        _ => row.mapv_inplace(|logit| logit - sum.ln()),
                    }
                }
            }
            Self::Sigmoid => outputs.mapv_inplace(sigmoid),
            Self::SecondOfTwo => {
                return logits.map_axis(Axis(1), |row| sigmoid(row[1] - row[0])).insert_axis(Axis(1));
            }
        }
        outputs
    }
}

fn sigmoid(value: f64) -> f64 {
    1.0 / (1.0 + (-value).exp())
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn endings_by_hand() {
        let logits = array![[0.0, 3f64.ln()], [1000.0, 1000.0]];
        let close = |ending: Ending, expected: Array2<f64>| {
            let outputs = ending.of(logits.view());
            assert_eq!(outputs.dim(), expected.dim());
            let off = outputs.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(off < 1e-12, "{ending:?}: {outputs}");
        };
        close(Ending::Softmax, array![[0.25, 0.75], [0.5, 0.5]]);
        close(Ending::LogSoftmax, array![[0.25f64.ln(), 0.75f64.ln()], [0.5f64.ln(), 0.5f64.ln()]]);
        close(Ending::Sigmoid, array![[0.5, 0.75], [1.0, 1.0]]);
        close(Ending::SecondOfTwo, array![[0.75], [0.5]]);
        close(Ending::Logits, logits.clone());
        close(Ending::Unknown, logits.clone());
    }
}
