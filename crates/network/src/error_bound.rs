//! Proven worst-case difference between the fixed-point network and the real one.
//!
//! With `â` the computed and `a` the real values, and `ŵ`, `w` likewise, every affine step obeys
//! `|â·ŵ + b̂ - (a·w + b)| <= Σ |â_j| |ŵ_j - w_j| + Σ |w_j| |â_j - a_j| + |b̂ - b|`, truncation adds at
//! most one unit in the last place, and ReLU adds nothing because it never moves two values apart.

use ndarray::{Array2, Axis};

use crate::{
    input::InputDomain,
    program::{
        Affine, Operation,
        evaluate::{self, Linear},
    },
    quantise::{Quantised, QuantisedWeights},
    range::{Analysis, Interval},
};

/// Covers the rounding of the sums below: at most 2^17 additions of relative error 2^-53 each.
const ROUNDING_MARGIN: f64 = 1.0 + 1.0 / (1_u64 << 30) as f64;

/// For each class, a bound on |fixed logit - real logit| over all inputs in `domain`.
pub(crate) fn logit_error_bounds(
    quantised: &Quantised<'_>,
    domain: &InputDomain,
    analysis: &Analysis,
) -> Vec<f64> {
    let unit = quantised.format.unit();
    let mut errors: Vec<Vec<f64>> = vec![vec![unit / 2.0; domain.features()]];
    for step in &quantised.steps {
        let arriving: Vec<&[f64]> = step.inputs.iter().map(|&value| errors[value].as_slice()).collect();
        let intervals: Vec<&[Interval]> =
            step.inputs.iter().map(|&value| analysis.values[value].as_slice()).collect();
        let mut result = step_errors(&step.operation, step.weights.as_ref(), &arriving, &intervals, unit);
        if step.operation.messages().rescale() {
            result.iter_mut().for_each(|error| *error = *error * ROUNDING_MARGIN + unit);
        }
        errors.push(result);
    }
    errors.pop().unwrap_or_default()
}

/// A bound on the error of a number.
#[derive(Clone, Copy)]
struct Radius(f64);

impl Linear for Radius {
    const ZERO: Self = Radius(0.0);

    fn plus(self, other: Self) -> Self {
        Radius(self.0 + other.0)
    }

    fn times_integer(self, factor: i64) -> Self {
        Radius(self.0 * factor.unsigned_abs() as f64)
    }
}

/// Errors of a step before truncation, from those of its values.
fn step_errors(
    operation: &Operation,
    weights: Option<&QuantisedWeights<'_>>,
    errors: &[&[f64]],
    intervals: &[&[Interval]],
    unit: f64,
) -> Vec<f64> {
    let rows: Vec<Array2<Radius>> = errors
        .iter()
        .map(|value| Array2::from_shape_fn((1, value.len()), |(_, place)| Radius(value[place])))
        .collect();
    let views: Vec<_> = rows.iter().map(|row| row.view()).collect();
    if let Some(result) = evaluate::linear(operation, &views) {
        return result.into_iter().map(|Radius(error)| error * ROUNDING_MARGIN).collect();
    }
    let weights = || weights.expect("weights were quantised");
    match operation {
        Operation::Relu => errors[0].to_vec(),
        // The maximum moves no further than the one of its terms that moves furthest.
        Operation::Maximum => errors[0].iter().zip(errors[1]).map(|(left, right)| left.max(*right)).collect(),
        // An answer is the other one, or right for certain.
        Operation::Step => (0..errors[0].len())
            .map(|place| {
                let (low, high) = intervals[0][place];
                let certain =
                    low as f64 * unit > errors[0][place] || (high as f64) * unit < -errors[0][place];
                f64::from(!certain)
            })
            .collect(),
        // The pieces are no steeper than their steepest, and that far from the function.
        Operation::Function(function) => {
            let pieces = function.pieces(unit.log2().abs() as u32);
            errors[0].iter().map(|error| error * pieces.steepest + pieces.error).collect()
        }
        Operation::Multiply => {
            (0..errors[0].len()).map(|place| product_error(errors, intervals, [place, place], unit)).collect()
        }
        Operation::MatrixProduct(product) => {
            let mut results = Vec::with_capacity(product.sizes()[2]);
            for group in 0..product.groups {
                let [(left, [rows, inner]), (right, [_, columns]), _] = product.matrices(group);
                for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))) {
                    let terms = (0..inner).map(|place| {
                        let places = [left + row * inner + place, right + place * columns + column];
                        product_error(errors, intervals, places, unit)
                    });
                    results.push(terms.sum());
                }
            }
            results
        }
        Operation::Shift { positions, .. } => {
            let (rounded, real) = (&weights().rounded.bias, &weights().real.bias);
            let off = |channel: usize| (rounded[channel] as f64 * unit - real[channel]).abs();
            errors[0].iter().enumerate().map(|(place, error)| error + off(place / positions)).collect()
        }
        operation => {
            let affine = operation.affine().expect("the others are affine");
            affine_errors(&affine, weights(), errors[0], intervals[0], unit)
        }
    }
}

/// |â b̂ - a b| <= |â| |b̂ - b| + |b| |â - a|, and |b| <= |b̂| + |b̂ - b|, for a number of each of two values.
fn product_error(errors: &[&[f64]], intervals: &[&[Interval]], places: [usize; 2], unit: f64) -> f64 {
    let [left, right] = [0, 1].map(|value| magnitude(intervals[value][places[value]], unit));
    let [left_error, right_error] = [0, 1].map(|value| errors[value][places[value]]);
    left * right_error + (right + right_error) * left_error
}

/// The largest magnitude of a number in an interval, as a real number.
fn magnitude((low, high): Interval, unit: f64) -> f64 {
    low.unsigned_abs().max(high.unsigned_abs()) as f64 * unit
}

/// Errors of an affine step before truncation.
fn affine_errors(
    affine: &Affine,
    weights: &QuantisedWeights<'_>,
    errors: &[f64],
    intervals: &[Interval],
    unit: f64,
) -> Vec<f64> {
    let (rounded, real) = (&weights.rounded, &*weights.real);
    let magnitudes: Vec<f64> = intervals.iter().map(|&interval| magnitude(interval, unit)).collect();
    let bias = |channel: usize| (rounded.bias[channel] as f64 * unit * unit - real.bias[channel]).abs();
    let mut outputs: Vec<f64> = (0..affine.outputs()).map(|output| bias(affine.channel(output))).collect();
    let mut sums = vec![0.0; affine.outer];
    for group in 0..affine.groups {
        let exact_rows = real.matrices.index_axis(Axis(0), group);
        let rounded_rows = rounded.matrices.index_axis(Axis(0), group);
        for position in 0..affine.positions {
            sums.fill(0.0);
            let rows = exact_rows.outer_iter().zip(rounded_rows.outer_iter());
            for (row, ((exact_row, rounded_row), place)) in
                rows.zip(affine.window(group, position)).enumerate()
            {
                let Some(place) = place else { continue };
                let scale = weights.scales[group * affine.inner + row];
                for ((sum, &exact), &rounded) in sums.iter_mut().zip(exact_row).zip(rounded_row) {
                    let exact = exact * scale;
                    *sum += magnitudes[place] * (rounded as f64 * unit - exact).abs()
                        + exact.abs() * errors[place];
                }
            }
            for (outer, sum) in sums.iter().enumerate() {
                outputs[affine.output(group, outer, position)] += sum;
            }
        }
    }
    outputs
}
