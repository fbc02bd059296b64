//! From real numbers to fixed point, with every limit checked before a network is admitted.

use std::ops::Deref;

use concilium_ring::{FixedPoint, FixedPointError};
use ndarray::{Array1, Array3};
use thiserror::Error;

use crate::{
    error_bound::logit_error_bounds,
    fixed::{FixedNetwork, FixedStep},
    input::InputDomain,
    model::{Network, label},
    precision::{Precision, Ring, RingRefusal, check_ring},
    program::{Affine, Convolution, Operation, Weights},
    range::{Analysis, analyse_steps},
};

/// Why a network cannot be brought to fixed point.
#[derive(Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum QuantiseError {
    /// The number of fractional bits is not supported.
    #[error(
        "{fractional_bits} fractional bits are not supported in a ring of {ring} bits; choose {} to {}",
        .ring.fractional_bits().start(), .ring.fractional_bits().end()
    )]
    FractionalBits {
        /// The number given.
        fractional_bits: u32,
        /// The ring.
        ring: Ring,
    },
    /// A step cannot be evaluated in the ring of 32 bits.
    #[error(
        "{}: the task's ring has 32 bits, and this step needs 64: {refusal}; share it for a task with a ring of \
         64 bits", label(*.step, .name)
    )]
    NeedsWideRing {
        /// Index of the step.
        step: usize,
        /// Its name.
        name: String,
        /// What the ring does not offer.
        refusal: RingRefusal,
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
        "{}: {part} at index {index} is too large for {fractional_bits} fractional bits \
         (limit 2^62 when scaled); use fewer fractional bits or train with weight decay", label(*.step, .name)
    )]
    WeightTooLarge {
        /// Index of the step.
        step: usize,
        /// Its name.
        name: String,
        /// "weight" or "bias".
        part: &'static str,
        /// Row-major index.
        index: usize,
        /// Number of fractional bits.
        fractional_bits: u32,
    },
    /// A step's range leaves too little room above it in the ring.
    #[error(
        "{}: values can reach 2^{bound_bits} at {} fractional bits, the limit is 2^{} in a ring of {} bits \
         (headroom {headroom_bits} bits, {} needed); use fewer fractional bits, narrower feature ranges, or \
         train with weight decay{}", label(*.step, .name), .precision.fractional_bits,
        .precision.ring.maximum_bound_bits(), .precision.ring, .precision.ring.minimum_headroom_bits(),
        wider(.precision.ring)
    )]
    Headroom {
        /// Index of the step.
        step: usize,
        /// Its name.
        name: String,
        /// `l` with |z| < 2^l.
        bound_bits: u32,
        /// k - (l + 1) in a ring of k bits.
        headroom_bits: i32,
        /// The ring and the fractional bits.
        precision: Precision,
    },
    /// Values are too wide for the comparison protocol, or for the ring of 32 bits.
    #[error(
        "{}: its values take a window of {width} bits, the limit is {} in a ring of {} bits with {} \
         fractional bits; use fewer fractional bits, narrower feature ranges, or train with weight decay{}",
        label(*.step, .name), .precision.maximum_width(), .precision.ring, .precision.fractional_bits,
        wider(.precision.ring)
    )]
    Window {
        /// Index of the step that compares, or of the last one, whose values are the logits.
        step: usize,
        /// Its name.
        name: String,
        /// Width needed.
        width: u32,
        /// The ring and the fractional bits.
        precision: Precision,
    },
    /// No number of fractional bits fits all networks of a task.
    #[error(
        "network {network} does not fit even {} fractional bits: {source}", .ring.fractional_bits().start()
    )]
    NoFractionalBits {
        /// The ring.
        ring: Ring,
        /// Index of the first network that does not fit.
        network: usize,
        /// Why it does not.
        source: Box<QuantiseError>,
    },
}

/// What else helps where a ring is too narrow.
fn wider(ring: Ring) -> &'static str {
    match ring {
        Ring::Bits64 => "",
        Ring::Bits32 => ", or share it for a task with a ring of 64 bits",
    }
}

/// Brings `network` to fixed point at `precision` for inputs in `domain`.
///
/// # Errors
/// [`QuantiseError`] when network and domain do not fit together, a weight is too large, a step needs a
/// wider ring, or the range analysis leaves less than the ring's
/// [headroom](Ring::minimum_headroom_bits) or needs a window above its
/// [widest](Precision::maximum_width).
pub fn quantise(
    network: &Network,
    domain: &InputDomain,
    precision: impl Into<Precision>,
) -> Result<FixedNetwork, QuantiseError> {
    let precision = precision.into();
    let quantised = Quantised::new(network, domain, precision)?;
    let analysis = analyse_steps(&quantised, domain);
    let final_width = enforce(&analysis, &quantised)?;
    let error_bounds = logit_error_bounds(&quantised, domain, &analysis);
    let input_features = domain.features();
    let steps = quantised.steps.into_iter().zip(&analysis.ranges).zip(&analysis.windows).map(
        |((step, range), &window)| FixedStep {
            name: step.name,
            inputs: step.inputs,
            operation: step.operation,
            weights: step.weights.map(|weights| weights.rounded),
            bound_bits: range.bound_bits,
            window,
        },
    );
    let steps = steps.collect();
    Ok(FixedNetwork { input_features, steps, precision, final_width, ranges: analysis.ranges, error_bounds })
}

/// The most fractional bits for which every one of `networks` can be quantised in `ring`.
///
/// More fractional bits mean smaller errors, so this is the best choice that all owners of a task
/// share.
///
/// # Errors
/// [`QuantiseError::InputShape`] when a network does not fit `domain`, and
/// [`QuantiseError::NoFractionalBits`] naming the first network that does not even fit
/// the ring's fewest.
pub fn choose_fractional_bits<'a>(
    ring: Ring,
    networks: impl IntoIterator<Item = &'a Network>,
    domain: &InputDomain,
) -> Result<u32, QuantiseError> {
    let networks: Vec<&Network> = networks.into_iter().collect();
    let mut refusal = None;
    for fractional_bits in ring.fractional_bits().rev() {
        let precision = Precision { ring, fractional_bits };
        refusal = networks
            .iter()
            .enumerate()
            .find_map(|(index, network)| fits(network, domain, precision).err().map(|error| (index, error)));
        match refusal {
            None => return Ok(fractional_bits),
            // Fewer bits change neither a shape nor what a ring offers.
            Some((_, error @ (QuantiseError::InputShape { .. } | QuantiseError::NeedsWideRing { .. }))) => {
                return Err(error);
            }
            Some(_) => {}
        }
    }
    let (network, source) = refusal.expect("the loop ran and did not return");
    Err(QuantiseError::NoFractionalBits { ring, network, source: Box::new(source) })
}

fn fits(network: &Network, domain: &InputDomain, precision: Precision) -> Result<(), QuantiseError> {
    let quantised = Quantised::new(network, domain, precision)?;
    enforce(&analyse_steps(&quantised, domain), &quantised).map(|_| ())
}

/// Refuses ranges beyond the limits and gives the window of the final comparison.
pub(crate) fn enforce(analysis: &Analysis, quantised: &Quantised<'_>) -> Result<u32, QuantiseError> {
    let precision = quantised.precision();
    for (range, &window) in analysis.ranges.iter().zip(&analysis.windows) {
        let within = |width: Option<u32>| match width.filter(|&width| width > precision.maximum_width()) {
            Some(width) => {
                let (step, name) = (range.step, range.name.clone());
                Err(QuantiseError::Window { step, name, width, precision })
            }
            None => Ok(()),
        };
        within(window)?;
        if let Some(bound_bits) = range.bound_bits
            && bound_bits > precision.ring.maximum_bound_bits()
        {
            return Err(QuantiseError::Headroom {
                step: range.step,
                name: range.name.clone(),
                bound_bits,
                headroom_bits: range.headroom_bits.unwrap_or(0),
                precision,
            });
        }
        // In the ring of 32 bits every value keeps to what is known of it, so that it is always one number.
        within((precision.ring == Ring::Bits32).then_some(range.width))?;
    }
    let final_width =
        analysis.final_width.expect("an analysis that stops early has a step beyond every ring's limit");
    if final_width > precision.maximum_width() {
        let (step, name) = analysis.ranges.last().map_or((0, ""), |range| (range.step, &range.name));
        let name = name.to_owned();
        return Err(QuantiseError::Window { step, name, width: final_width, precision });
    }
    Ok(final_width)
}

/// A network whose weights are rounded to integers, the scales of the features folded into the steps
/// that take the input, beside the real weights that they stand for.
pub(crate) struct Quantised<'a> {
    pub(crate) steps: Vec<QuantisedStep<'a>>,
    /// The ring that the integers are to fit.
    pub(crate) ring: Ring,
    /// Format of inputs, weights and values.
    pub(crate) format: FixedPoint,
}

/// One step of a [`Quantised`] network.
pub(crate) struct QuantisedStep<'a> {
    pub(crate) name: String,
    pub(crate) inputs: Vec<usize>,
    pub(crate) operation: Operation,
    pub(crate) weights: Option<QuantisedWeights<'a>>,
}

/// Rounded weights and the real ones.
pub(crate) struct QuantisedWeights<'a> {
    /// Weights at scale f and biases at scale 2f, those of a shift at scale f.
    pub(crate) rounded: Weights<i64>,
    pub(crate) real: Real<'a>,
    /// Factors of the rows of the real matrices, `[groups * inner]`.
    pub(crate) scales: Vec<f64>,
}

/// Weights of the network, or of a step that quantisation has added to it.
pub(crate) enum Real<'a> {
    Given(&'a Weights<f64>),
    Added(Weights<f64>),
}

impl Deref for Real<'_> {
    type Target = Weights<f64>;

    fn deref(&self) -> &Weights<f64> {
        match self {
            Self::Given(weights) => weights,
            Self::Added(weights) => weights,
        }
    }
}

impl<'a> Quantised<'a> {
    /// Rounds the weights of `network`.
    ///
    /// Where a step on the input cannot take up the scales of the features, because it is no product
    /// or its windows see features of different scales through one weight, a step is added before all
    /// others that multiplies each feature by its scale.
    pub(crate) fn new(
        network: &'a Network,
        domain: &InputDomain,
        precision: Precision,
    ) -> Result<Self, QuantiseError> {
        let Precision { ring, fractional_bits } = precision;
        let unsupported = |_: FixedPointError| QuantiseError::FractionalBits { fractional_bits, ring };
        if !ring.fractional_bits().contains(&fractional_bits) {
            return Err(QuantiseError::FractionalBits { fractional_bits, ring });
        }
        let formats =
            [fractional_bits, 2 * fractional_bits].map(|bits| FixedPoint::new(bits).map_err(unsupported));
        let [single, double] = formats;
        let formats = [single?, double?];
        if !domain.accepts_shape(network.input_shape()) {
            return Err(QuantiseError::InputShape {
                network: network.input_shape().to_vec(),
                domain: domain.shape().to_vec(),
            });
        }
        let exponents = domain.exponents();
        let foldable = exponents.iter().all(|&exponent| exponent == 0)
            || network.steps().iter().filter(|step| step.inputs.contains(&0)).all(|step| {
                step.operation.affine().is_some_and(|affine| row_scales(&affine, &exponents).is_some())
            });
        let mut steps = Vec::with_capacity(network.steps().len() + 1);
        if !foldable {
            let features = exponents.len();
            let scales = exponents.iter().map(|&exponent| 2_f64.powi(exponent)).collect();
            let matrices =
                Array3::from_shape_vec((features, 1, 1), scales).expect("one scale for each feature");
            let real = Real::Added(Weights { matrices, bias: Array1::zeros(features) });
            let operation = Operation::Convolution(Convolution::per_channel(features, 1));
            let name = "scales of the features";
            let weights = Some(round(0, name, real, vec![1.0; features], formats)?);
            steps.push(QuantisedStep { name: name.to_owned(), inputs: vec![0], operation, weights });
        }
        let added = steps.len();
        for step in network.steps() {
            let (index, name) = (steps.len(), &step.name);
            let weights = match (&step.weights, step.operation.affine()) {
                (Some(real), Some(affine)) => {
                    let on_input = foldable && step.inputs == [0];
                    let scales = on_input.then(|| row_scales(&affine, &exponents)).flatten();
                    let scales = scales.unwrap_or_else(|| vec![1.0; affine.groups * affine.inner]);
                    Some(round(index, name, Real::Given(real), scales, formats)?)
                }
                // A summand has the scale of what it is added to.
                (Some(real), None) => {
                    Some(round(index, name, Real::Given(real), Vec::new(), [formats[0]; 2])?)
                }
                (None, _) => None,
            };
            steps.push(QuantisedStep {
                name: step.name.clone(),
                inputs: step.inputs.iter().map(|value| value + added).collect(),
                operation: step.operation.clone(),
                weights,
            });
        }
        let structure = steps.iter().map(|step| (step.inputs.as_slice(), &step.operation));
        check_ring(ring, structure).map_err(|(step, refusal)| {
            let name = steps[step].name.clone();
            QuantiseError::NeedsWideRing { step, name, refusal }
        })?;
        Ok(Self { steps, ring, format: formats[0] })
    }

    /// The ring and the fractional bits.
    pub(crate) fn precision(&self) -> Precision {
        Precision { ring: self.ring, fractional_bits: self.format.fractional_bits() }
    }
}

/// The scale of the features that each row of the matrices is multiplied with, `[groups * inner]`, or
/// `None` when a row meets features of different scales.
fn row_scales(affine: &Affine, exponents: &[i32]) -> Option<Vec<f64>> {
    let mut found: Vec<Option<i32>> = vec![None; affine.groups * affine.inner];
    for group in 0..affine.groups {
        for position in 0..affine.positions {
            let rows = &mut found[group * affine.inner..][..affine.inner];
            for (row, place) in rows.iter_mut().zip(affine.window(group, position)) {
                let Some(place) = place else { continue };
                match *row {
                    None => *row = Some(exponents[place]),
                    Some(exponent) if exponent == exponents[place] => {}
                    Some(_) => return None,
                }
            }
        }
    }
    Some(found.into_iter().map(|exponent| 2_f64.powi(exponent.unwrap_or(0))).collect())
}

/// Rounds weights, scaled row by row, and biases.
fn round<'a>(
    step: usize,
    name: &str,
    real: Real<'a>,
    scales: Vec<f64>,
    [single, double]: [FixedPoint; 2],
) -> Result<QuantisedWeights<'a>, QuantiseError> {
    let too_large = |part, index| QuantiseError::WeightTooLarge {
        step,
        name: name.to_owned(),
        part,
        index,
        fractional_bits: single.fractional_bits(),
    };
    // Filled in place: a value that is dropped on an error erases what it holds.
    let mut rounded =
        Weights { matrices: Array3::zeros(real.matrices.dim()), bias: Array1::zeros(real.bias.dim()) };
    let outer = real.matrices.dim().2.max(1);
    for (index, (rounded, &exact)) in rounded.matrices.iter_mut().zip(&real.matrices).enumerate() {
        let scaled = exact * scales[index / outer];
        *rounded = single.encode_integer(scaled).map_err(|_| too_large("weight", index))?;
    }
    for (index, (rounded, &exact)) in rounded.bias.iter_mut().zip(&real.bias).enumerate() {
        *rounded = double.encode_integer(exact).map_err(|_| too_large("bias", index))?;
    }
    Ok(QuantisedWeights { rounded, real, scales })
}
