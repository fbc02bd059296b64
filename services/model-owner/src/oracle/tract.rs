//! A file as tract reads it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook},
    path::Path,
};

use concilium_network::{Extract, ImportOptions, extract_file};
use ndarray::{Array2, ArrayView2};
use tract_onnx::prelude::{
    DatumType, Framework as _, InferenceFact, InferenceModelExt as _, IntoRunnable as _, IntoTValue as _,
    Tensor, TractError, TractResult, TypedRunnableModel, tvec,
};
use tract_onnx::tract_hir::infer::Factoid as _;

/// Longest part of tract's own words that is shown.
const LONGEST_REASON: usize = 160;

/// Most numbers of a batch that a file fixes.
const MAXIMUM_BATCH_ELEMENTS: usize = 1 << 24;

/// The outputs of the model in `path`, as its owner has chosen them, for `rows` `[rows, features]`: `[rows, numbers of an output]`.
///
/// # Errors
/// Why tract cannot evaluate the file, in a line; that says nothing about whether it can be shared.
pub(super) fn evaluate(
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
    use super::*;

    #[test]
    fn reasons_are_one_short_line() {
        let reason = shortened(&format!("first\u{7} line{}\nsecond", "x".repeat(500)));
        assert_eq!(reason.chars().count(), LONGEST_REASON);
        assert!(reason.starts_with("first  linexxx"), "{reason}");
    }
}
