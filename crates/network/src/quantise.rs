//! From real numbers to fixed point, with every limit checked before a network is admitted.

use concilium_ring::{FixedPoint, FixedPointError};
use ndarray::{Array1, Array2};
use thiserror::Error;

use crate::{
    error_bound::logit_error_bounds,
    fixed::{FixedLayer, FixedNetwork},
    input::InputDomain,
    limits::{
        MAXIMUM_BOUND_BITS, MAXIMUM_FRACTIONAL_BITS, MAXIMUM_WIDTH, MINIMUM_FRACTIONAL_BITS,
        MINIMUM_HEADROOM_BITS,
    },
    model::{Layer, Network},
    range::{Analysis, QuantisedAffine, analyse_layers},
};

/// Why a network cannot be brought to fixed point.
#[derive(Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum QuantiseError {
    /// The number of fractional bits is not supported.
    #[error(
        "{fractional_bits} fractional bits are not supported; choose \
         {MINIMUM_FRACTIONAL_BITS} to {MAXIMUM_FRACTIONAL_BITS}"
    )]
    FractionalBits {
        /// The number given.
        fractional_bits: u32,
    },
    /// Network and domain describe different inputs.
    #[error(
        "network takes samples of shape {network:?}, but the task's are {domain:?}; export the \
         model for the shape of the task"
    )]
    InputShape {
        /// Input shape of the network.
        network: Vec<usize>,
        /// Sample shape of the domain.
        domain: Vec<usize>,
    },
    /// A weight is too large for 64-bit fixed point.
    #[error(
        "layer {layer}: {part} at index {index} is too large for {fractional_bits} fractional bits \
         (limit 2^62 when scaled); use fewer fractional bits or train with weight decay"
    )]
    WeightTooLarge {
        /// Index of the layer in [`Network::layers`].
        layer: usize,
        /// "weight" or "bias".
        part: &'static str,
        /// Row-major index.
        index: usize,
        /// Number of fractional bits.
        fractional_bits: u32,
    },
    /// A layer's range leaves too little room above it in the ring.
    #[error(
        "layer {layer}: values can reach 2^{bound_bits} at {fractional_bits} fractional bits, the \
         limit is 2^{MAXIMUM_BOUND_BITS} (headroom {headroom_bits} bits, \
         {MINIMUM_HEADROOM_BITS} needed); use fewer fractional bits, narrower feature ranges, or \
         train with weight decay"
    )]
    Headroom {
        /// Index of the layer in [`Network::layers`].
        layer: usize,
        /// `l` with |z| < 2^l.
        bound_bits: u32,
        /// 64 - (l + 1).
        headroom_bits: i32,
        /// Number of fractional bits.
        fractional_bits: u32,
    },
    /// Values are too wide for the comparison protocol.
    #[error(
        "layer {layer}: comparing its values takes a window of {width} bits, the limit is \
         {MAXIMUM_WIDTH}; use fewer fractional bits, narrower feature ranges, or train with weight \
         decay"
    )]
    Window {
        /// Index of the affine layer in [`Network::layers`] whose values are compared.
        layer: usize,
        /// Width needed.
        width: u32,
    },
    /// No number of fractional bits fits all networks of a task.
    #[error("network {network} does not fit even {MINIMUM_FRACTIONAL_BITS} fractional bits: {source}")]
    NoFractionalBits {
        /// Index of the first network that does not fit.
        network: usize,
        /// Why it does not.
        source: Box<QuantiseError>,
    },
}

/// Brings `network` to fixed point with `fractional_bits` for inputs in `domain`.
///
/// # Errors
/// [`QuantiseError`] when network and domain do not fit together, a weight is too large, or the range
/// analysis leaves less than [`MINIMUM_HEADROOM_BITS`] or needs a window above [`MAXIMUM_WIDTH`].
pub fn quantise(
    network: &Network,
    domain: &InputDomain,
    fractional_bits: u32,
) -> Result<FixedNetwork, QuantiseError> {
    let (mut quantised, format) = quantise_affine(network, domain, fractional_bits)?;
    let analysis = analyse_layers(&quantised, domain, format);
    let final_width = enforce(&analysis, quantised.len(), fractional_bits)?;
    let error_bounds = logit_error_bounds(network, domain, &quantised, &analysis.input_magnitudes, format);
    let mut layers = Vec::with_capacity(2 * quantised.len());
    for (affine, range) in quantised.iter_mut().zip(&analysis.ranges) {
        layers.push(FixedLayer::Affine {
            weights: std::mem::take(&mut affine.weights),
            bias: std::mem::take(&mut affine.bias),
            bound_bits: range.bound_bits,
        });
        layers.push(FixedLayer::Relu { width: range.width });
    }
    // The last affine layer gives the logits; nothing follows it.
    layers.pop();
    Ok(FixedNetwork { layers, fractional_bits, final_width, ranges: analysis.ranges, error_bounds })
}

/// The most fractional bits for which every one of `networks` can be quantised.
///
/// More fractional bits mean smaller errors, so this is the best choice that all owners of a task
/// share.
///
/// # Errors
/// [`QuantiseError::InputShape`] when a network does not fit `domain`, and
/// [`QuantiseError::NoFractionalBits`] naming the first network that does not even fit
/// [`MINIMUM_FRACTIONAL_BITS`].
pub fn choose_fractional_bits<'a>(
    networks: impl IntoIterator<Item = &'a Network>,
    domain: &InputDomain,
) -> Result<u32, QuantiseError> {
    let networks: Vec<&Network> = networks.into_iter().collect();
    let mut refusal = None;
    for fractional_bits in (MINIMUM_FRACTIONAL_BITS..=MAXIMUM_FRACTIONAL_BITS).rev() {
        refusal = networks.iter().enumerate().find_map(|(index, network)| {
            fits(network, domain, fractional_bits).err().map(|error| (index, error))
        });
        match refusal {
            None => return Ok(fractional_bits),
            // Fewer bits do not change a shape.
            Some((_, error @ QuantiseError::InputShape { .. })) => return Err(error),
            Some(_) => {}
        }
    }
    let (network, source) = refusal.expect("the loop ran and did not return");
    Err(QuantiseError::NoFractionalBits { network, source: Box::new(source) })
}

fn fits(network: &Network, domain: &InputDomain, fractional_bits: u32) -> Result<(), QuantiseError> {
    let (quantised, format) = quantise_affine(network, domain, fractional_bits)?;
    let analysis = analyse_layers(&quantised, domain, format);
    enforce(&analysis, quantised.len(), fractional_bits).map(|_| ())
}

/// Refuses ranges beyond the limits and gives the window of the final comparison.
pub(crate) fn enforce(
    analysis: &Analysis,
    affine_layers: usize,
    fractional_bits: u32,
) -> Result<u32, QuantiseError> {
    for (index, range) in analysis.ranges.iter().enumerate() {
        if range.bound_bits > MAXIMUM_BOUND_BITS {
            return Err(QuantiseError::Headroom {
                layer: range.layer,
                bound_bits: range.bound_bits,
                headroom_bits: range.headroom_bits,
                fractional_bits,
            });
        }
        // The logits themselves are not compared with zero, only with each other.
        let compared = index + 1 < affine_layers;
        if compared && range.width > MAXIMUM_WIDTH {
            return Err(QuantiseError::Window { layer: range.layer, width: range.width });
        }
    }
    let final_width =
        analysis.final_width.expect("an analysis that stops early has a layer beyond MAXIMUM_BOUND_BITS");
    if final_width > MAXIMUM_WIDTH {
        let layer = analysis.ranges.last().map_or(0, |range| range.layer);
        return Err(QuantiseError::Window { layer, width: final_width });
    }
    Ok(final_width)
}

/// Rounds weights and biases to integers, the scales of the features folded into the first layer.
///
/// Also gives the format of inputs, weights and activations.
pub(crate) fn quantise_affine(
    network: &Network,
    domain: &InputDomain,
    fractional_bits: u32,
) -> Result<(Vec<QuantisedAffine>, FixedPoint), QuantiseError> {
    let unsupported = |_: FixedPointError| QuantiseError::FractionalBits { fractional_bits };
    if !(MINIMUM_FRACTIONAL_BITS..=MAXIMUM_FRACTIONAL_BITS).contains(&fractional_bits) {
        return Err(QuantiseError::FractionalBits { fractional_bits });
    }
    let single = FixedPoint::new(fractional_bits).map_err(unsupported)?;
    let double = FixedPoint::new(2 * fractional_bits).map_err(unsupported)?;
    if !domain.accepts_shape(network.input_shape()) {
        return Err(QuantiseError::InputShape {
            network: network.input_shape().to_vec(),
            domain: domain.shape().to_vec(),
        });
    }
    let mut quantised = Vec::with_capacity(network.layers().len() / 2 + 1);
    for (layer, content) in network.layers().iter().enumerate() {
        let Layer::Affine { weights, bias } = content else { continue };
        let too_large = |part, index| QuantiseError::WeightTooLarge { layer, part, index, fractional_bits };
        let exponents = if layer == 0 { domain.exponents() } else { vec![0; weights.nrows()] };
        let (inputs, outputs) = weights.dim();
        // Filled in place: a value that is dropped on an error erases what it holds.
        let mut affine =
            QuantisedAffine { weights: Array2::zeros((inputs, outputs)), bias: Array1::zeros(outputs) };
        for (input, (mut row, exact)) in affine.weights.outer_iter_mut().zip(weights.outer_iter()).enumerate()
        {
            let scale = 2_f64.powi(exponents[input]);
            for (output, (rounded, &exact)) in row.iter_mut().zip(exact).enumerate() {
                *rounded = single
                    .encode_integer(exact * scale)
                    .map_err(|_| too_large("weight", input * outputs + output))?;
            }
        }
        for (output, (rounded, &exact)) in affine.bias.iter_mut().zip(bias).enumerate() {
            *rounded = double.encode_integer(exact).map_err(|_| too_large("bias", output))?;
        }
        quantised.push(affine);
    }
    Ok((quantised, single))
}
