//! A model in single precision, as another program understands its file.
//!
//! Import reads a file in its own way, and every other comparison rests on what it has read. This one does
//! not: tract reads the same file, and evaluates it without knowing of shares or fixed point. It gets only
//! the part of the file that import has accepted, so that no other node, and no other file, is looked at.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook},
    path::Path,
};

use concilium_network::{Ending, Extract, ImportOptions, argmax, extract_file};
use ndarray::{Array1, Array2, ArrayView2};
use tract_onnx::prelude::{
    DatumType, Framework as _, InferenceFact, InferenceModelExt as _, IntoRunnable as _, IntoTValue as _,
    Tensor, TractError, TractResult, TypedRunnableModel, tvec,
};
use tract_onnx::tract_hir::infer::Factoid as _;

/// Longest part of tract's own words that is shown.
const LONGEST_REASON: usize = 160;

/// Most numbers of a batch that a file fixes.
const MAXIMUM_BATCH_ELEMENTS: usize = 1 << 24;

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

/// The outputs of the model in `path`, as its owner has chosen them, for `rows` `[rows, features]`: `[rows, numbers of an output]`.
///
/// # Errors
/// Why tract cannot evaluate the file, in a line; that says nothing about whether it can be shared.
pub fn evaluate(
    path: &Path,
    options: &ImportOptions,
    rows: ArrayView2<'_, f64>,
) -> Result<Array2<f64>, String> {
    let extract = extract_file(path, options).map_err(|error| error.to_string())?;
    // What tract takes for impossible ends in a panic here and there, which is no news of this program's.
    let hook = take_hook();
    set_hook(Box::new(|_| {}));
    let outcome = catch_unwind(AssertUnwindSafe(|| run(&extract, rows)));
    set_hook(hook);
    match outcome {
        Ok(Ok(outputs)) => Ok(outputs),
        // The innermost reasons can hold constants of the model.
        Ok(Err(error)) => Err(shortened(&error.to_string())),
        Err(_) => Err("it gave up".to_owned()),
    }
}

fn shortened(reason: &str) -> String {
    let line = reason.lines().next().unwrap_or_default();
    line.chars().take(LONGEST_REASON).map(|char| if char.is_control() { ' ' } else { char }).collect()
}

fn run(extract: &Extract, rows: ArrayView2<'_, f64>) -> TractResult<Array2<f64>> {
    // A file whose batch is fixed takes that many rows at a time, the last of them several times.
    let batch = extract.batch.unwrap_or(1);
    if batch.saturating_mul(rows.ncols()) > MAXIMUM_BATCH_ELEMENTS {
        return Err(TractError::msg(format!("the file takes {batch} rows at a time")));
    }
    let shape: Vec<usize> = [&[batch], &extract.sample_shape[..]].concat();
    let model = tract_onnx::onnx().with_ignore_output_shapes(true);
    let model = model.model_for_read(&mut &extract.bytes[..])?;
    let kind = model.input_fact(0)?.datum_type.concretize().unwrap_or(DatumType::F32);
    let model: std::sync::Arc<TypedRunnableModel> =
        model.with_input_fact(0, InferenceFact::dt_shape(kind, &shape))?.into_optimized()?.into_runnable()?;
    let mut outputs = Vec::new();
    for first in (0..rows.nrows()).step_by(batch) {
        let taken = |row: usize| rows.row((first + row).min(rows.nrows() - 1));
        let numbers: Vec<f32> = (0..batch).flat_map(|row| taken(row).to_vec()).map(|x| x as f32).collect();
        let input = Tensor::from_shape(&shape, &numbers)?.cast_to_dt(kind)?.into_owned();
        let result = model.run(tvec!(input.into_tvalue()))?;
        let output = result[0].cast_to::<f32>()?;
        let numbers = output.to_plain_array_view::<f32>()?;
        let left = (rows.nrows() - first).min(batch);
        outputs.extend(numbers.iter().take(left * (numbers.len() / batch)).map(|&number| f64::from(number)));
    }
    let columns = outputs.len() / rows.nrows().max(1);
    Ok(Array2::from_shape_vec((rows.nrows(), columns), outputs)?)
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

    #[test]
    fn reasons_are_one_short_line() {
        let reason = shortened(&format!("first\u{7} line{}\nsecond", "x".repeat(500)));
        assert_eq!(reason.chars().count(), LONGEST_REASON);
        assert!(reason.starts_with("first  linexxx"), "{reason}");
    }
}
