//! Interval analysis of a quantised network: how large every intermediate value can become.
//!
//! The bounds hold for every input that [`InputDomain::encode`] accepts and for every outcome of
//! truncation, because they are computed on the very integers that the servers compute with:
//! interval arithmetic with the sign of each weight, ReLU's floor at zero, and a truncation that
//! yields the floor of the quotient or one more. Interval arithmetic ignores that neurons depend on
//! each other, so deep networks get bounds that are safe but not tight.

use concilium_ring::FixedPoint;
use ndarray::{Array1, Array2};
use serde::Serialize;

use crate::{
    erase::erase,
    input::InputDomain,
    limits::{MINIMUM_WIDTH, RING_BITS},
    model::Network,
    quantise::{QuantiseError, quantise_affine},
};

/// Magnitude in bits beyond which deeper layers are not analysed: 2^47 · 2^62 · 2^16 inputs still
/// fits 128-bit sums, and no value as large as this passes the headroom check anyway.
const ANALYSIS_LIMIT_BITS: u32 = 47;

/// Range of the values of one affine layer.
///
/// `minimum` and `maximum` depend on the owner's weights; only `bound_bits` and `width` become public.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerRange {
    /// Index of the layer in [`Network::layers`].
    pub layer: usize,
    /// Smallest `l`, at least the number of fractional bits, with |z| < 2^l, where z is the integer
    /// at double scale, bias included, before truncation.
    pub bound_bits: u32,
    /// Bits of the ring left above the range, 64 - (l + 1); negative when the range does not fit.
    pub headroom_bits: i32,
    /// Comparison window `k` of the values after truncation: |x| < 2^(k - 1).
    pub width: u32,
    /// Smallest value of any output after truncation, as a real number.
    pub minimum: f64,
    /// Largest value of any output after truncation, as a real number.
    pub maximum: f64,
}

/// One affine layer in integers: weights `[inputs, outputs]` at scale f, bias at scale 2f.
pub(crate) struct QuantisedAffine {
    pub(crate) weights: Array2<i64>,
    pub(crate) bias: Array1<i64>,
}

impl Drop for QuantisedAffine {
    fn drop(&mut self) {
        erase(&mut self.weights);
        erase(&mut self.bias);
    }
}

/// Result of the analysis of all layers.
pub(crate) struct Analysis {
    /// One range for each affine layer that was reached.
    pub(crate) ranges: Vec<LayerRange>,
    /// For each affine layer that was reached, the largest magnitude of each of its inputs.
    pub(crate) input_magnitudes: Vec<Vec<i64>>,
    /// Comparison window for the difference of any two logits, or `None` when the analysis stopped
    /// at a layer whose values cannot fit the ring.
    pub(crate) final_width: Option<u32>,
}

/// Ranges of the affine layers of `network` for inputs in `domain` at `fractional_bits`.
///
/// The list ends early at a layer whose values cannot fit the ring.
///
/// # Errors
/// [`QuantiseError`] when domain and network do not fit together, the number of fractional bits is
/// outside its limits, or a weight is too large for 64-bit fixed point.
pub fn analyse(
    network: &Network,
    domain: &InputDomain,
    fractional_bits: u32,
) -> Result<Vec<LayerRange>, QuantiseError> {
    let (layers, format) = quantise_affine(network, domain, fractional_bits)?;
    Ok(analyse_layers(&layers, domain, format).ranges)
}

/// As [`analyse`], on layers that are already quantised.
pub(crate) fn analyse_layers(
    layers: &[QuantisedAffine],
    domain: &InputDomain,
    format: FixedPoint,
) -> Analysis {
    let fractional_bits = format.fractional_bits();
    let mut analysis = Analysis {
        ranges: Vec::with_capacity(layers.len()),
        input_magnitudes: Vec::with_capacity(layers.len()),
        final_width: None,
    };
    let mut bounds: Vec<(i128, i128)> = domain
        .encoded_bounds(format)
        .into_iter()
        .map(|(low, high)| (i128::from(low), i128::from(high)))
        .collect();
    for (index, layer) in layers.iter().enumerate() {
        let magnitudes = bounds.iter().map(|&(low, high)| {
            i64::try_from(low.abs().max(high.abs()))
                .expect("bounds beyond ANALYSIS_LIMIT_BITS end the analysis")
        });
        analysis.input_magnitudes.push(magnitudes.collect());

        let exact = affine_bounds(layer, &bounds);
        let bound_bits = bits(largest_magnitude(&exact)).max(fractional_bits);
        let truncated: Vec<(i128, i128)> = exact
            .into_iter()
            .map(|(low, high)| (low >> fractional_bits, (high >> fractional_bits) + 1))
            .collect();
        let magnitude_bits = bits(largest_magnitude(&truncated));
        let unit = format.unit();
        analysis.ranges.push(LayerRange {
            layer: 2 * index,
            bound_bits,
            headroom_bits: RING_BITS as i32 - (bound_bits as i32 + 1),
            width: (magnitude_bits + 1).max(MINIMUM_WIDTH),
            minimum: truncated.iter().map(|bound| bound.0).min().unwrap_or(0) as f64 * unit,
            maximum: truncated.iter().map(|bound| bound.1).max().unwrap_or(0) as f64 * unit,
        });
        if magnitude_bits > ANALYSIS_LIMIT_BITS {
            return analysis;
        }
        if index + 1 == layers.len() {
            analysis.final_width = Some(difference_width(&truncated));
        }
        bounds = truncated.into_iter().map(|(low, high)| (low.max(0), high.max(0))).collect();
    }
    analysis
}

/// Exact bounds of `x · weights + bias` for `x` within `bounds`.
fn affine_bounds(layer: &QuantisedAffine, bounds: &[(i128, i128)]) -> Vec<(i128, i128)> {
    let mut outputs: Vec<(i128, i128)> =
        layer.bias.iter().map(|&bias| (i128::from(bias), i128::from(bias))).collect();
    for (row, &(low, high)) in layer.weights.outer_iter().zip(bounds) {
        for (output, &weight) in outputs.iter_mut().zip(row) {
            let weight = i128::from(weight);
            let (least, most) =
                if weight >= 0 { (weight * low, weight * high) } else { (weight * high, weight * low) };
            output.0 += least;
            output.1 += most;
        }
    }
    outputs
}

/// Window for the difference of any two different outputs.
fn difference_width(bounds: &[(i128, i128)]) -> u32 {
    let mut largest = 0;
    for (first, &(low, _)) in bounds.iter().enumerate() {
        for (second, &(_, high)) in bounds.iter().enumerate() {
            if first != second {
                largest = largest.max((high - low).abs());
            }
        }
    }
    (bits(largest.unsigned_abs()) + 1).max(MINIMUM_WIDTH)
}

fn largest_magnitude(bounds: &[(i128, i128)]) -> u128 {
    bounds.iter().map(|(low, high)| low.unsigned_abs().max(high.unsigned_abs())).max().unwrap_or(0)
}

/// Smallest `l` with `magnitude < 2^l`.
fn bits(magnitude: u128) -> u32 {
    u128::BITS - magnitude.leading_zeros()
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    fn eight() -> FixedPoint {
        FixedPoint::new(8).unwrap()
    }

    #[test]
    fn bounds_by_hand() {
        let layers = [
            QuantisedAffine { weights: array![[256, -512], [-256, 0]], bias: array![65_536, 0] },
            QuantisedAffine { weights: array![[256, 256], [512, -256]], bias: array![0, 0] },
        ];
        // Scale 256. Inputs [0, 1] and [-1, 1]: first layer 1 + x0 - x1 in [0, 3], -2 x0 in [-2, 0].
        let domain = InputDomain::new(vec![2], vec![0.0, -1.0], vec![1.0]).unwrap();
        let analysis = analyse_layers(&layers, &domain, eight());
        let ulp = 1.0 / 256.0;
        let first = &analysis.ranges[0];
        assert_eq!((first.minimum, first.maximum), (-2.0, 3.0 + ulp));
        // 3 · 2^16 < 2^18, and 3 + ulp is 769 < 2^10.
        assert_eq!((first.bound_bits, first.headroom_bits, first.width), (18, 45, 11));
        // After ReLU: [0, 3 + ulp] and [0, ulp].
        let second = &analysis.ranges[1];
        assert_eq!((second.minimum, second.maximum), (-ulp, 3.0 + 4.0 * ulp));
        assert_eq!(second.layer, 2);
        assert_eq!(analysis.input_magnitudes, vec![vec![256, 256], vec![769, 1]]);
        // Differences stay below 3 + 5 ulp, 773 of 2^10.
        assert_eq!(analysis.final_width, Some(11));
    }

    #[test]
    fn stops_before_sums_could_overflow() {
        let huge = 1_i64 << 62;
        let layer = || QuantisedAffine { weights: array![[huge, huge], [-huge, huge]], bias: array![0, 0] };
        let domain = InputDomain::new(vec![2], vec![-1.0], vec![1.0]).unwrap();
        let analysis = analyse_layers(&[layer(), layer(), layer()], &domain, eight());
        assert_eq!(analysis.ranges.len(), 1);
        assert!(analysis.ranges[0].headroom_bits < 0);
        assert_eq!(analysis.final_width, None);
    }

    #[test]
    fn bound_is_never_below_the_scale() {
        let layer = QuantisedAffine { weights: array![[0, 0]], bias: array![0, 0] };
        let domain = InputDomain::new(vec![1], vec![-1.0], vec![1.0]).unwrap();
        let analysis = analyse_layers(&[layer], &domain, eight());
        assert_eq!(analysis.ranges[0].bound_bits, 8);
        assert_eq!(analysis.final_width, Some(2));
    }
}
