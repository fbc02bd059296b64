//! Interval analysis of a quantised network: how large every intermediate value can become.
//!
//! The bounds hold for every input that [`InputDomain::encode`] accepts and for every outcome of
//! truncation, because they are computed on the very integers that the servers compute with:
//! interval arithmetic with the sign of each weight, ReLU's floor at zero, and a truncation that
//! yields the floor of the quotient or one more. Interval arithmetic ignores that neurons depend on
//! each other, so deep networks get bounds that are safe but not tight.

use ndarray::Array2;
use serde::Serialize;

use crate::{
    input::InputDomain,
    limits::MINIMUM_WIDTH,
    model::Network,
    precision::Precision,
    program::{
        Affine, MatrixProduct, Operation, Weights,
        evaluate::{self, Linear},
    },
    quantise::{QuantiseError, Quantised},
};

/// Magnitude in bits beyond which deeper steps are not analysed: 2^47 · 2^62 · 2^16 inputs still
/// fits 128-bit sums, and no value as large as this passes the headroom check anyway.
const ANALYSIS_LIMIT_BITS: u32 = 47;

/// Range of the result of one step.
///
/// `minimum` and `maximum` depend on the owner's weights; only `bound_bits` and windows become public.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepRange {
    /// Index of the step.
    pub step: usize,
    /// What its owner calls it.
    pub name: String,
    /// What it computes.
    pub operation: &'static str,
    /// Numbers of the result.
    pub size: usize,
    /// For a step that is rescaled, the smallest `l`, at least the number of fractional bits, with
    /// |z| < 2^l, where z is the integer at double scale, bias included, before truncation.
    pub bound_bits: Option<u32>,
    /// For a step that is rescaled, the bits of the ring of k bits left above the range, k - (l + 1); negative
    /// when the range does not fit.
    pub headroom_bits: Option<i32>,
    /// Comparison window `k` of the result: |x| < 2^(k - 1).
    pub width: u32,
    /// Smallest number of the result, as a real number.
    pub minimum: f64,
    /// Largest number of the result, as a real number.
    pub maximum: f64,
}

/// Smallest and largest integer that a number of a value can be.
pub(crate) type Interval = (i64, i64);

/// Result of the analysis of all steps.
pub(crate) struct Analysis {
    /// The range of each step that was reached.
    pub(crate) ranges: Vec<StepRange>,
    /// For each step that was reached and compares, its window.
    pub(crate) windows: Vec<Option<u32>>,
    /// For each value that was reached, that of the input first, the interval of each of its numbers.
    pub(crate) values: Vec<Vec<Interval>>,
    /// Comparison window for the difference of any two logits, or `None` when the analysis stopped
    /// at a step whose values cannot fit the ring.
    pub(crate) final_width: Option<u32>,
}

/// Ranges of the steps of `network` for inputs in `domain` at `precision`.
///
/// The list ends early at a step whose values cannot fit the ring.
///
/// # Errors
/// [`QuantiseError`] when domain and network do not fit together, the number of fractional bits is
/// outside its limits, or a weight is too large for 64-bit fixed point.
pub fn analyse(
    network: &Network,
    domain: &InputDomain,
    precision: impl Into<Precision>,
) -> Result<Vec<StepRange>, QuantiseError> {
    Ok(analyse_steps(&Quantised::new(network, domain, precision.into())?, domain).ranges)
}

/// As [`analyse`], on weights that are already quantised.
pub(crate) fn analyse_steps(quantised: &Quantised<'_>, domain: &InputDomain) -> Analysis {
    let format = quantised.format;
    let (fractional_bits, unit) = (format.fractional_bits(), format.unit());
    let mut analysis = Analysis {
        ranges: Vec::with_capacity(quantised.steps.len()),
        windows: Vec::with_capacity(quantised.steps.len()),
        values: vec![domain.encoded_bounds(format)],
        final_width: None,
    };
    for (index, step) in quantised.steps.iter().enumerate() {
        let arriving: Vec<&[Interval]> =
            step.inputs.iter().map(|&value| analysis.values[value].as_slice()).collect();
        let rounded = step.weights.as_ref().map(|weights| &weights.rounded);
        let (exact, window) = match clipped(quantised, index) {
            Some(spans) => (spans, None),
            None => bounds(&step.operation, rounded, &arriving, fractional_bits),
        };
        let rescaled = step.operation.messages().rescale();
        let bound_bits = rescaled.then(|| bits(largest_magnitude(&exact)).max(fractional_bits));
        let result: Vec<Span> = if rescaled {
            exact
                .into_iter()
                .map(|span| Span(span.0 >> fractional_bits, (span.1 >> fractional_bits) + 1))
                .collect()
        } else {
            exact
        };
        let magnitude_bits = bits(largest_magnitude(&result));
        analysis.ranges.push(StepRange {
            step: index,
            name: step.name.clone(),
            operation: step.operation.name(),
            size: result.len(),
            bound_bits,
            headroom_bits: bound_bits.map(|bits| quantised.ring.bits() as i32 - (bits as i32 + 1)),
            width: (magnitude_bits + 1).max(MINIMUM_WIDTH),
            minimum: result.iter().map(|bound| bound.0).min().unwrap_or(0) as f64 * unit,
            maximum: result.iter().map(|bound| bound.1).max().unwrap_or(0) as f64 * unit,
        });
        analysis.windows.push(window);
        if magnitude_bits > ANALYSIS_LIMIT_BITS {
            return analysis;
        }
        let narrow =
            |bound: i128| i64::try_from(bound).expect("bounds beyond ANALYSIS_LIMIT_BITS end the analysis");
        analysis.values.push(result.into_iter().map(|span| (narrow(span.0), narrow(span.1))).collect());
    }
    analysis.final_width = analysis.values.last().map(|logits| difference_width(logits));
    analysis
}

/// An interval before it is known to fit 64 bits.
#[derive(Clone, Copy)]
struct Span(i128, i128);

impl Linear for Span {
    const ZERO: Self = Span(0, 0);

    fn plus(self, other: Self) -> Self {
        Span(self.0 + other.0, self.1 + other.1)
    }

    fn times_integer(self, factor: i64) -> Self {
        let factor = i128::from(factor);
        let (first, second) = (self.0 * factor, self.1 * factor);
        Span(first.min(second), first.max(second))
    }
}

impl From<Interval> for Span {
    fn from((low, high): Interval) -> Self {
        Span(low.into(), high.into())
    }
}

/// Exact bounds of the result of an operation before truncation, and its window if it compares.
fn bounds(
    operation: &Operation,
    weights: Option<&Weights<i64>>,
    values: &[&[Interval]],
    fractional_bits: u32,
) -> (Vec<Span>, Option<u32>) {
    let rows: Vec<Array2<Span>> = values
        .iter()
        .map(|value| Array2::from_shape_fn((1, value.len()), |(_, place)| value[place].into()))
        .collect();
    let views: Vec<_> = rows.iter().map(|row| row.view()).collect();
    if let Some(result) = evaluate::linear(operation, &views) {
        return (result.into_iter().collect(), None);
    }
    let pairs = || values[0].iter().zip(values[1]);
    match operation {
        Operation::Relu => {
            let positive = values[0].iter().map(|&(low, high)| Span(low.max(0).into(), high.max(0).into()));
            (positive.collect(), Some(comparison_width(values[0])))
        }
        Operation::Maximum => {
            let differences: Vec<Interval> =
                pairs().map(|(left, right)| (left.0 - right.1, left.1 - right.0)).collect();
            let larger = pairs().map(|(left, right)| (left.0.max(right.0), left.1.max(right.1)).into());
            (larger.collect(), Some(comparison_width(&differences)))
        }
        Operation::Step => {
            let one = |reached: bool| i128::from(reached) << fractional_bits;
            let answers = values[0].iter().map(|&(low, high)| Span(one(low >= 0), one(high >= 0)));
            (answers.collect(), Some(comparison_width(values[0])))
        }
        Operation::Function(function) => {
            let pieces = function.pieces(fractional_bits);
            let (first, last) = (pieces.knots[0], pieces.knots[pieces.knots.len() - 1]);
            let differences: Vec<Interval> =
                values[0].iter().map(|&(low, high)| (low - last, high - first)).collect();
            let results = values[0].iter().map(|&(low, high)| {
                let (least, most) = pieces.range(low, high);
                Span(least, most)
            });
            (results.collect(), Some(comparison_width(&differences)))
        }
        Operation::Multiply => (pairs().map(|(&left, &right)| times(left, right)).collect(), None),
        Operation::MatrixProduct(product) => (matrix_bounds(product, values[0], values[1]), None),
        Operation::Shift { positions, .. } => {
            let bias = &weights.expect("weights were quantised").bias;
            let summands: Vec<Span> = bias.iter().map(|&bias| (bias, bias).into()).collect();
            (evaluate::shift(views[0], &summands, *positions).into_iter().collect(), None)
        }
        operation => {
            let affine = operation.affine().expect("the others are affine");
            (affine_bounds(&affine, weights.expect("weights were quantised"), values[0]), None)
        }
    }
}

/// Exact bounds of the product of two numbers.
fn times(left: Interval, right: Interval) -> Span {
    let corners = [left.0, left.1].map(|a| [right.0, right.1].map(|b| i128::from(a) * i128::from(b)));
    let corners = corners.as_flattened();
    let ends = (corners.iter().min(), corners.iter().max());
    Span(ends.0.copied().unwrap_or(0), ends.1.copied().unwrap_or(0))
}

/// Exact bounds of the products of the matrices of two values.
fn matrix_bounds(product: &MatrixProduct, left: &[Interval], right: &[Interval]) -> Vec<Span> {
    let mut bounds = Vec::with_capacity(product.sizes()[2]);
    for group in 0..product.groups {
        let [(left_start, [rows, inner]), (right_start, [_, columns]), _] = product.matrices(group);
        for row in 0..rows {
            for column in 0..columns {
                let terms = (0..inner).map(|place| {
                    let left = left[left_start + row * inner + place];
                    times(left, right[right_start + place * columns + column])
                });
                bounds.push(terms.fold(Span::ZERO, Span::plus));
            }
        }
    }
    bounds
}

/// Bounds of max(x + a, 0) - max(x + b, 0), which is how values are clipped: never outside of 0 and
/// a - b. Bounds of the two terms alone would not know that x is the same.
fn clipped(quantised: &Quantised<'_>, index: usize) -> Option<Vec<Span>> {
    let step = &quantised.steps[index];
    if !matches!(&step.operation, Operation::Combine { coefficients } if coefficients == &[1, -1]) {
        return None;
    }
    let made_by = |value: usize| value.checked_sub(1).map(|step| &quantised.steps[step]);
    let shifted = |value: usize| {
        let rectified = made_by(value).filter(|step| step.operation == Operation::Relu)?;
        let shifted = made_by(rectified.inputs[0])?;
        match (&shifted.operation, &shifted.weights) {
            (Operation::Shift { channels, positions }, Some(weights)) => {
                Some((shifted.inputs[0], channels * positions, *positions, &weights.rounded.bias))
            }
            _ => None,
        }
    };
    let (first, second) = (shifted(step.inputs[0])?, shifted(step.inputs[1])?);
    if first.0 != second.0 {
        return None;
    }
    let difference = |place: usize| {
        let difference = i128::from(first.3[place / first.2]) - i128::from(second.3[place / second.2]);
        Span(difference.min(0), difference.max(0))
    };
    Some((0..first.1).map(difference).collect())
}

/// Exact bounds of the windows of `values` times the matrices, plus the biases.
fn affine_bounds(affine: &Affine, weights: &Weights<i64>, values: &[Interval]) -> Vec<Span> {
    let mut outputs: Vec<Span> = (0..affine.outputs())
        .map(|output| {
            let bias = i128::from(weights.bias[affine.channel(output)]);
            Span(bias, bias)
        })
        .collect();
    let mut sums = vec![(0_i128, 0_i128); affine.outer];
    for group in 0..affine.groups {
        let matrix = weights.matrices.index_axis(ndarray::Axis(0), group);
        for position in 0..affine.positions {
            sums.fill((0, 0));
            for (row, place) in matrix.outer_iter().zip(affine.window(group, position)) {
                let Some(place) = place else { continue };
                let (low, high) = (i128::from(values[place].0), i128::from(values[place].1));
                for (sum, &weight) in sums.iter_mut().zip(row) {
                    let weight = i128::from(weight);
                    let (least, most) = if weight >= 0 {
                        (weight * low, weight * high)
                    } else {
                        (weight * high, weight * low)
                    };
                    sum.0 += least;
                    sum.1 += most;
                }
            }
            for (outer, sum) in sums.iter().enumerate() {
                let output = &mut outputs[affine.output(group, outer, position)];
                output.0 += sum.0;
                output.1 += sum.1;
            }
        }
    }
    outputs
}

/// Window for the comparison of every number with zero.
fn comparison_width(bounds: &[Interval]) -> u32 {
    let largest = bounds.iter().map(|(low, high)| low.unsigned_abs().max(high.unsigned_abs())).max();
    (bits(largest.unwrap_or(0).into()) + 1).max(MINIMUM_WIDTH)
}

/// Window for the difference of any two different outputs.
fn difference_width(bounds: &[Interval]) -> u32 {
    let mut largest = 0;
    for (first, &(low, _)) in bounds.iter().enumerate() {
        for (second, &(_, high)) in bounds.iter().enumerate() {
            if first != second {
                largest = largest.max((high - low).unsigned_abs());
            }
        }
    }
    (bits(largest.into()) + 1).max(MINIMUM_WIDTH)
}

fn largest_magnitude(bounds: &[Span]) -> u128 {
    bounds.iter().map(|Span(low, high)| low.unsigned_abs().max(high.unsigned_abs())).max().unwrap_or(0)
}

/// Smallest `l` with `magnitude < 2^l`.
fn bits(magnitude: u128) -> u32 {
    u128::BITS - magnitude.leading_zeros()
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array};

    use super::*;
    use crate::quantise::enforce;

    fn perceptron(layers: Vec<(Array2<f64>, ndarray::Array1<f64>)>, features: usize) -> Network {
        Network::perceptron(vec![features], layers).unwrap()
    }

    #[test]
    fn bounds_by_hand() {
        let network = perceptron(
            vec![
                (array![[1.0, -2.0], [-1.0, 0.0]], array![1.0, 0.0]),
                (array![[1.0, 1.0], [2.0, -1.0]], array![0.0, 0.0]),
            ],
            2,
        );
        // Scale 256. Inputs [0, 1] and [-1, 1]: first layer 1 + x0 - x1 in [0, 3], -2 x0 in [-2, 0].
        let domain = InputDomain::new(vec![2], vec![0.0, -1.0], vec![1.0]).unwrap();
        let quantised = Quantised::new(&network, &domain, 8.into()).unwrap();
        let analysis = analyse_steps(&quantised, &domain);
        let ulp = 1.0 / 256.0;
        let [first, relu, second] = &analysis.ranges[..] else { panic!("three steps") };
        assert_eq!((first.minimum, first.maximum), (-2.0, 3.0 + ulp));
        // 3 · 2^16 < 2^18, and 3 + ulp is 769 < 2^10.
        assert_eq!((first.bound_bits, first.headroom_bits, first.width), (Some(18), Some(45), 11));
        // After ReLU: [0, 3 + ulp] and [0, ulp].
        assert_eq!((relu.minimum, relu.maximum, relu.bound_bits), (0.0, 3.0 + ulp, None));
        assert_eq!((second.minimum, second.maximum), (-ulp, 3.0 + 4.0 * ulp));
        assert_eq!((second.step, second.operation, second.size), (2, "dense", 2));
        assert_eq!(analysis.values[2], [(0, 769), (0, 1)]);
        assert_eq!(analysis.windows, [None, Some(11), None]);
        // Differences stay below 3 + 5 ulp, 773 of 2^10.
        assert_eq!(analysis.final_width, Some(11));
        assert_eq!(enforce(&analysis, &quantised), Ok(11));
    }

    #[test]
    fn stops_before_sums_could_overflow() {
        let huge = (1_i64 << 50) as f64;
        let layer = || (array![[huge, huge], [-huge, huge]], array![0.0, 0.0]);
        let network = perceptron(vec![layer(), layer(), layer()], 2);
        let domain = InputDomain::new(vec![2], vec![-1.0], vec![1.0]).unwrap();
        let analysis = analyse_steps(&Quantised::new(&network, &domain, 8.into()).unwrap(), &domain);
        assert_eq!(analysis.ranges.len(), 1);
        assert!(analysis.ranges[0].headroom_bits < Some(0));
        assert_eq!(analysis.final_width, None);
    }

    #[test]
    fn bound_is_never_below_the_scale() {
        let network = perceptron(vec![(array![[0.0, 0.0]], array![0.0, 0.0])], 1);
        let domain = InputDomain::new(vec![1], vec![-1.0], vec![1.0]).unwrap();
        let analysis = analyse_steps(&Quantised::new(&network, &domain, 8.into()).unwrap(), &domain);
        assert_eq!(analysis.ranges[0].bound_bits, Some(8));
        assert_eq!(analysis.final_width, Some(2));
    }
}
