//! Proven worst-case difference between the fixed-point network and the real one.
//!
//! With `â` the computed and `a` the real activations, and `ŵ`, `w` likewise, every affine layer obeys
//! `|â·ŵ + b̂ - (a·w + b)| <= Σ |â_j| |ŵ_j - w_j| + Σ |w_j| |â_j - a_j| + |b̂ - b|`, truncation adds at
//! most one unit in the last place, and ReLU adds nothing because it never moves two values apart.

use concilium_ring::FixedPoint;

use crate::{
    input::InputDomain,
    model::{Layer, Network},
    range::QuantisedAffine,
};

/// Covers the rounding of the sums below: at most 2^17 additions of relative error 2^-53 each.
const ROUNDING_MARGIN: f64 = 1.0 + 1.0 / (1_u64 << 30) as f64;

/// For each class, a bound on |fixed logit - real logit| over all inputs in `domain`.
///
/// `input_magnitudes` are the largest encoded inputs of each affine layer, from the range analysis.
pub(crate) fn logit_error_bounds(
    network: &Network,
    domain: &InputDomain,
    quantised: &[QuantisedAffine],
    input_magnitudes: &[Vec<i64>],
    format: FixedPoint,
) -> Vec<f64> {
    let unit = format.unit();
    let mut errors = vec![unit / 2.0; network.input_features()];
    let real = network.layers().iter().filter_map(|layer| match layer {
        Layer::Affine { weights, bias } => Some((weights, bias)),
        Layer::Relu => None,
    });
    for (index, ((weights, bias), layer)) in real.zip(quantised).enumerate() {
        // The quantised first weights carry the scales of the features.
        let scales: Vec<f64> = if index == 0 {
            domain.exponents().into_iter().map(|exponent| 2_f64.powi(exponent)).collect()
        } else {
            vec![1.0; errors.len()]
        };
        let mut outputs: Vec<f64> = bias
            .iter()
            .zip(&layer.bias)
            .map(|(&exact, &rounded)| (rounded as f64 * unit * unit - exact).abs())
            .collect();
        for (input, (exact_row, rounded_row)) in
            weights.outer_iter().zip(layer.weights.outer_iter()).enumerate()
        {
            let magnitude = input_magnitudes[index][input] as f64 * unit;
            for ((output, &exact), &rounded) in outputs.iter_mut().zip(exact_row).zip(rounded_row) {
                let exact = exact * scales[input];
                *output += magnitude * (rounded as f64 * unit - exact).abs() + exact.abs() * errors[input];
            }
        }
        errors = outputs.into_iter().map(|error| error * ROUNDING_MARGIN + unit).collect();
    }
    errors
}
