//! What is released, with which noise, and at which price.
//!
//! The servers compute each vote themselves, so a replaced model moves one vote from one bin to
//! another, whatever the model is. How many votes neighbouring inputs may move is the task's
//! [privacy unit](crate::policy::PrivacyUnit).

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::parameter::{NanoRho, NoiseScale};

/// Most bins of a released row.
pub const MAX_BINS: usize = 1 << 16;

/// Smallest sigma that policy allows, in votes.
///
/// Below it the sum of two servers' discrete Gaussians is too far from one discrete Gaussian: the
/// term `tau` of [`Mechanism::cost`] is 3e-8 at sigma 2 and 7e-2 at sigma 1.
pub const MINIMUM_SIGMA: NoiseScale = NoiseScale::from_millionths(2_000_000);

/// Smallest discrete Laplace scale that policy allows, in votes.
///
/// The sum of two servers' shares is a discrete Laplace variable exactly, at every scale, so the
/// sampler sets no floor. This one bounds the price of a row as [`MINIMUM_SIGMA`] does: rho 0.25,
/// and pure epsilon 1.
pub const MINIMUM_SCALE: NoiseScale = NoiseScale::from_millionths(2_000_000);

/// Largest sigma or scale, in votes. The noise of three servers then fits 64 bits with a margin
/// that no draw reaches (2^20 standard deviations), and the time of a draw stays bounded.
pub const MAXIMUM_SCALE: NoiseScale = NoiseScale::from_millionths((1 << 20) * 1_000_000);

/// Largest sigma on the finest lattice that is drawn, 2^-16 of a vote, in units of that lattice. The
/// margin of [`MAXIMUM_SCALE`] holds for it, too.
pub(crate) const MAXIMUM_LATTICE_SIGMA: NoiseScale =
    NoiseScale::from_millionths((1 << (20 + PROBABILITY_BITS)) * 1_000_000);

/// Fractional bits of [`Release::MeanProbability`]: a model's vector is fixed point with this many,
/// no entry is negative, and a row adds up to 2^16 at most. The servers enforce both after the last
/// truncation, so in votes the sensitivity is exactly that of a histogram.
pub const PROBABILITY_BITS: u32 = 16;

/// Most models that one owner may share for a task. It keeps the price of a row, which grows with the
/// square of the votes of one privacy unit, below rho 2.5e7.
pub const MAX_MODELS_PER_OWNER: u32 = 10_000;

/// A mechanism that policy does not allow.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MechanismError {
    /// Too little noise.
    #[error("{parameter} {value} is below the floor {floor}; use {floor} or more")]
    TooSmall {
        /// `sigma` or `scale`.
        parameter: &'static str,
        /// Configured value.
        value: NoiseScale,
        /// Smallest allowed value.
        floor: NoiseScale,
    },
    /// More noise than is supported.
    #[error("{parameter} {value} is above the ceiling {ceiling}; use {ceiling} or less")]
    TooLarge {
        /// `sigma` or `scale`.
        parameter: &'static str,
        /// Configured value.
        value: NoiseScale,
        /// Largest allowed value.
        ceiling: NoiseScale,
    },
    /// The row has no bins, or more than are supported.
    #[error("a row of {bins} bins cannot be released; 1 to {MAX_BINS} are supported")]
    Bins {
        /// Bins asked for.
        bins: usize,
    },
    /// Neighbouring inputs move no votes, or more than can be priced.
    #[error("noise for {votes} votes that move cannot be priced; 1 to {MAX_MODELS_PER_OWNER} are supported")]
    Votes {
        /// Votes of one privacy unit.
        votes: u32,
    },
}

/// What a client gets for one query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Release {
    /// The label with the most noisy votes. It is computed from the noisy histogram, so it costs
    /// what the histogram costs.
    Label,
    /// The noisy votes of every label.
    Histogram,
    /// The label with the most noisy votes if the largest count and noise of its own reach the
    /// task's [`Threshold`], and "no consensus" otherwise (Confident-GNMax, Papernot et al. 2018).
    ConfidentLabel,
    /// The noisy sum of the models' probability vectors, in units of 2^-[`PROBABILITY_BITS`] votes.
    MeanProbability,
}

impl Release {
    /// Its name in configuration files and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Label => "label",
            Self::Histogram => "histogram",
            Self::ConfidentLabel => "confident_label",
            Self::MeanProbability => "mean_probability",
        }
    }
}

impl Release {
    /// Fractional bits of the released numbers: one unit of them is `2^-fraction_bits` votes.
    pub const fn fraction_bits(self) -> u32 {
        match self {
            Self::MeanProbability => PROBABILITY_BITS,
            _ => 0,
        }
    }
}

impl fmt::Display for Release {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// When [`Release::ConfidentLabel`] answers: the largest count with noise added is at least `votes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Threshold {
    /// Noisy votes that the most frequent label needs.
    pub votes: u32,
    /// Noise of the test, drawn apart from the noise of the answer.
    pub mechanism: Mechanism,
}

/// How far neighbouring inputs can be apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sensitivity {
    /// Most bins that differ.
    pub changed_bins: u32,
    /// Largest difference of one bin, in votes.
    pub per_bin: u32,
}

impl Sensitivity {
    /// One vote moves from one bin to another.
    pub const OF_ONE_VOTE: Self = Self::of_votes(1);

    /// `models` votes may move, all of them from one bin to another: the L1 norm is `2 models`, the
    /// square of the L2 norm `2 models^2`. Moves that are spread over more bins are shorter in both.
    pub const fn of_votes(models: u32) -> Self {
        Self { changed_bins: 2, per_bin: models }
    }

    /// The largest count, when `models` votes may move: it changes by `models` at most.
    pub const fn of_largest_count(models: u32) -> Self {
        Self { changed_bins: 1, per_bin: models }
    }

    /// L1 norm of the largest difference, in votes.
    pub const fn l1(self) -> u64 {
        self.changed_bins as u64 * self.per_bin as u64
    }

    /// Square of the L2 norm of the largest difference, in votes squared.
    pub const fn l2_squared(self) -> u64 {
        self.changed_bins as u64 * self.per_bin as u64 * self.per_bin as u64
    }
}

/// Noise that is added to every bin. Its parameter is the strength that is *guaranteed*: what any
/// two of the three servers add together. All three together add 1.5 times that variance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Mechanism {
    /// Discrete Gaussian (Canonne, Kamath and Steinke, 2020): the least noise for a given rho.
    DiscreteGaussian {
        /// Standard deviation of two servers' noise, in votes.
        sigma: NoiseScale,
    },
    /// Discrete Laplace: pure epsilon, at about twice the price in rho for the same variance.
    DiscreteLaplace {
        /// Scale `b` of two servers' noise, in votes: `P(x)` is proportional to `exp(-|x| / b)`.
        scale: NoiseScale,
    },
}

impl Mechanism {
    /// Refuses noise that is too weak to be sound or too strong to be drawn.
    ///
    /// # Errors
    /// [`MechanismError::TooSmall`] or [`MechanismError::TooLarge`].
    pub fn validate(self) -> Result<(), MechanismError> {
        self.validate_up_to(MAXIMUM_SCALE)
    }

    /// As [`Self::validate`], for noise in units of a lattice that may be finer than one vote. Only
    /// the Gaussian has a higher ceiling there: the work of a Laplace draw grows with its scale.
    pub(crate) fn validate_on_lattice(self) -> Result<(), MechanismError> {
        self.validate_up_to(match self {
            Self::DiscreteGaussian { .. } => MAXIMUM_LATTICE_SIGMA,
            Self::DiscreteLaplace { .. } => MAXIMUM_SCALE,
        })
    }

    fn validate_up_to(self, ceiling: NoiseScale) -> Result<(), MechanismError> {
        let (parameter, value, floor) = match self {
            Self::DiscreteGaussian { sigma } => ("sigma", sigma, MINIMUM_SIGMA),
            Self::DiscreteLaplace { scale } => ("scale", scale, MINIMUM_SCALE),
        };
        if value < floor {
            return Err(MechanismError::TooSmall { parameter, value, floor });
        }
        if value > ceiling {
            return Err(MechanismError::TooLarge { parameter, value, ceiling });
        }
        Ok(())
    }

    /// The same noise in units of `2^-fraction_bits` votes. What it guarantees for a sensitivity in
    /// votes is the same; the term for the lattice is smaller, so the price in votes covers it.
    ///
    /// A width that does not fit becomes the largest that can be written, which no sampler takes.
    #[must_use]
    pub const fn on_lattice(self, fraction_bits: u32) -> Self {
        const fn widened(scale: NoiseScale, fraction_bits: u32) -> NoiseScale {
            let wide = (scale.millionths() as u128).checked_shl(fraction_bits);
            match wide {
                Some(wide) if fraction_bits < 64 && wide <= u64::MAX as u128 => {
                    NoiseScale::from_millionths(wide as u64)
                }
                _ => NoiseScale::from_millionths(u64::MAX),
            }
        }
        match self {
            Self::DiscreteGaussian { sigma } => {
                Self::DiscreteGaussian { sigma: widened(sigma, fraction_bits) }
            }
            Self::DiscreteLaplace { scale } => Self::DiscreteLaplace { scale: widened(scale, fraction_bits) },
        }
    }

    /// Price of one released row of `bins` bins that neighbouring inputs move by `sensitivity` at
    /// most, against one corrupted server that pools what it knows with clients and owners. Integer
    /// arithmetic, rounded up.
    ///
    /// * Discrete Gaussian: `D2^2 / (2 sigma^2) + tau bins / 4` with
    ///   `tau = 10 exp(-pi^2 sigma^2 / 2)`. The unknown noise is the sum of two discrete Gaussians
    ///   of variance parameter `sigma^2 / 2`, which is not quite one of `sigma^2`; `tau` pays for
    ///   the difference (Kairouz, Liu and Steinke, 2021, theorem 1 with two parties).
    /// * Discrete Laplace: the unknown noise is a discrete Laplace variable of scale `b` exactly. A
    ///   bin that moves by `d` costs pure epsilon `d / b`, hence rho `(d / b)^2 / 2` (Bun and
    ///   Steinke, 2016, proposition 1.4), and the bins' noise is independent, so the losses of
    ///   the bins that move add up: `1 / b^2` for one vote. Converting the whole row's pure epsilon
    ///   `2 / b` instead would give twice as much.
    ///
    /// # Errors
    /// [`MechanismError`] for a mechanism, a number of bins or a number of votes that is not
    /// supported.
    pub fn cost(self, sensitivity: Sensitivity, bins: usize) -> Result<NanoRho, MechanismError> {
        self.validate()?;
        if !(1..=MAX_BINS).contains(&bins) {
            return Err(MechanismError::Bins { bins });
        }
        if !(1..=MAX_MODELS_PER_OWNER).contains(&sensitivity.per_bin) || sensitivity.changed_bins > 2 {
            return Err(MechanismError::Votes { votes: sensitivity.per_bin });
        }
        let atto_rho = match self {
            Self::DiscreteGaussian { sigma } => {
                half_squared_ratio(sensitivity.l2_squared(), sigma) + lattice_term(sigma, bins)
            }
            // The L2 sensitivity is exactly the square sum over the bins that move.
            Self::DiscreteLaplace { scale } => half_squared_ratio(sensitivity.l2_squared(), scale),
        };
        let nano_rho = u64::try_from(atto_rho.div_ceil(ATTO_PER_NANO))
            .expect("the floors and the most votes bound a row's price to rho 2.5e7");
        Ok(NanoRho::new(nano_rho))
    }
}

/// 1e-18, the unit of intermediate results.
const ATTO: u128 = 1_000_000_000_000_000_000;
const ATTO_PER_NANO: u128 = 1_000_000_000;
/// Square of the units of a noise scale.
const SCALE_UNITS_SQUARED: u128 = (NoiseScale::UNITS_PER_ONE as u128) * (NoiseScale::UNITS_PER_ONE as u128);

/// `squared / (2 scale^2)` in units of 1e-18, rounded up.
fn half_squared_ratio(squared: u64, scale: NoiseScale) -> u128 {
    let millionths = u128::from(scale.millionths());
    (u128::from(squared) * ATTO * SCALE_UNITS_SQUARED).div_ceil(2 * millionths * millionths)
}

/// `tau bins / 4` in units of 1e-18, rounded up.
fn lattice_term(sigma: NoiseScale, bins: usize) -> u128 {
    // Below pi^2 / 2 = 4.93480220054467..., so that the exponential is never too small.
    const HALF_PI_SQUARED: u128 = 4_934_802_200_544;
    const HALF_PI_SQUARED_UNITS: u128 = 1_000_000_000_000;
    // At most 2^43 * 2^80.
    let millionths = u128::from(sigma.millionths());
    let exponent = HALF_PI_SQUARED * millionths * millionths;
    let units = HALF_PI_SQUARED_UNITS * SCALE_UNITS_SQUARED;
    let whole = exponent / units;
    // Both halves of the exponent are rounded down, which rounds the exponential up.
    let fraction = exponent % units / (units / ATTO);
    (10 * bins as u128 * exponential_of_minus(whole, fraction)).div_ceil(4)
}

/// An upper bound of `exp(-(whole + fraction / 1e18))` in units of 1e-18; never below one unit.
fn exponential_of_minus(whole: u128, fraction: u128) -> u128 {
    // Above exp(-1) = 0.36787944117144232159...
    const EXP_MINUS_ONE: u128 = 367_879_441_171_442_322;
    // exp(-42) is below one unit.
    const BELOW_ONE_UNIT: u128 = 42;
    if whole >= BELOW_ONE_UNIT {
        return 1;
    }
    // For x in [0, 1) the partial sums of 1 - x + x^2/2 - ... that end with an added term lie above
    // exp(-x); added terms are rounded up, subtracted ones down.
    const TERMS: u128 = 18;
    let (mut upper, mut lower_power, mut upper_power) = (ATTO, ATTO, ATTO);
    for term in 1..=TERMS {
        upper_power = (upper_power * fraction).div_ceil(ATTO * term);
        lower_power = lower_power * fraction / (ATTO * term);
        if term % 2 == 0 {
            upper += upper_power;
        } else {
            upper -= lower_power;
        }
    }
    for _ in 0..whole {
        upper = (upper * EXP_MINUS_ONE).div_ceil(ATTO);
    }
    upper.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gaussian(text: &str) -> Mechanism {
        Mechanism::DiscreteGaussian { sigma: text.parse().expect("a decimal number") }
    }

    fn laplace(text: &str) -> Mechanism {
        Mechanism::DiscreteLaplace { scale: text.parse().expect("a decimal number") }
    }

    #[test]
    fn exponential_bounds_from_above_and_closely() {
        // exp(-x) to 18 places, rounded down.
        for (whole, fraction, exact) in [
            (0, 0, 1_000_000_000_000_000_000),
            (0, 500_000_000_000_000_000, 606_530_659_712_633_423),
            (0, 999_999_999_999_999_999, 367_879_441_171_442_321),
            (1, 0, 367_879_441_171_442_321),
            (5, 250_000_000_000_000_000, 5_247_518_399_181_384),
            (19, 739_208_802_178_716_000, 2_675_287_991),
            (41, 0, 1),
            (42, 0, 0),
            (1 << 90, 0, 0),
        ] {
            let bound = exponential_of_minus(whole, fraction);
            assert!(bound >= exact, "{whole} {fraction}: {bound} < {exact}");
            assert!(bound <= exact + 64, "{whole} {fraction}: {bound} > {exact}");
        }
    }

    #[test]
    fn known_prices() {
        let price = |mechanism: Mechanism, bins| {
            mechanism.cost(Sensitivity::OF_ONE_VOTE, bins).expect("allowed mechanism").units()
        };
        // tau = 2.6753e-8, times 10 / 4 = 66.9 nano-rho.
        assert_eq!(price(gaussian("2"), 10), 250_000_067);
        assert_eq!(price(gaussian("2"), 1), 250_000_007);
        // From sigma 3 on the term is below one unit, yet never rounded away.
        assert_eq!(price(gaussian("3"), 10), 111_111_112);
        assert_eq!(price(gaussian("5"), 10), 40_000_001);
        assert_eq!(price(gaussian("20"), 10), 2_500_001);
        assert_eq!(price(gaussian("1048576"), MAX_BINS), 1);
        assert_eq!(price(laplace("2"), 10), 250_000_000);
        assert_eq!(price(laplace("3"), 10), 111_111_112);
        assert_eq!(price(laplace("20"), 10), 2_500_000);
        assert_eq!(price(laplace("1048576"), 10), 1);
    }

    #[test]
    fn more_noise_is_never_dearer() {
        for make in [gaussian, laplace] {
            let mut last = NanoRho::new(u64::MAX);
            for tenths in 20..2_000_u64 {
                let text = format!("{}.{}", tenths / 10, tenths % 10);
                let cost = make(&text).cost(Sensitivity::OF_ONE_VOTE, 10).expect("allowed mechanism");
                assert!(cost <= last, "{text}");
                last = cost;
            }
        }
    }

    /// The price of `k` votes is that of one vote times `k^2`, but for the lattice term, which does not
    /// depend on the votes, and the rounding.
    #[test]
    fn votes_of_one_unit_count_squared() {
        for k in [1_u64, 2, 10, 100, 10_000] {
            let votes = u32::try_from(k).expect("few");
            let price =
                |mechanism: Mechanism, sensitivity| mechanism.cost(sensitivity, 10).expect("allowed").units();
            let row = price(gaussian("2"), Sensitivity::of_votes(votes));
            assert_eq!(row, k * k * 250_000_000 + 67);
            assert_eq!(price(laplace("2"), Sensitivity::of_votes(votes)), k * k * 250_000_000);
            // One count: half the square, and the lattice term is paid for all bins that are drawn.
            let largest = gaussian("2").cost(Sensitivity::of_largest_count(votes), 1).expect("allowed");
            assert_eq!(largest.units(), k * k * 125_000_000 + 7);
        }
        for votes in [0, MAX_MODELS_PER_OWNER + 1, u32::MAX] {
            let refused = gaussian("2").cost(Sensitivity::of_votes(votes), 10);
            assert_eq!(refused, Err(MechanismError::Votes { votes }));
        }
    }

    #[test]
    fn a_lattice_scales_the_noise_and_never_wraps() {
        assert_eq!(gaussian("2.5").on_lattice(PROBABILITY_BITS), gaussian("163840"));
        assert_eq!(laplace("3").on_lattice(2), laplace("12"));
        let widest = gaussian("1048576").on_lattice(PROBABILITY_BITS);
        assert_eq!(widest, Mechanism::DiscreteGaussian { sigma: MAXIMUM_LATTICE_SIGMA });
        assert!(widest.validate_on_lattice().is_ok() && widest.validate().is_err());
        for bits in [17, 63, 64, 128, u32::MAX] {
            assert!(gaussian("1048576").on_lattice(bits).validate_on_lattice().is_err(), "{bits} bits");
        }
        assert!(laplace("3").on_lattice(30).validate_on_lattice().is_err());
    }

    #[test]
    fn limits_are_enforced() {
        assert_eq!(
            gaussian("1.999999").validate(),
            Err(MechanismError::TooSmall {
                parameter: "sigma",
                value: NoiseScale::from_millionths(1_999_999),
                floor: MINIMUM_SIGMA,
            })
        );
        assert!(gaussian("0").cost(Sensitivity::OF_ONE_VOTE, 10).is_err());
        assert!(laplace("1.9").validate().is_err());
        assert!(laplace("1048576.000001").validate().is_err());
        for bins in [0, MAX_BINS + 1, usize::MAX] {
            assert_eq!(
                gaussian("2").cost(Sensitivity::OF_ONE_VOTE, bins),
                Err(MechanismError::Bins { bins })
            );
        }
    }
}
