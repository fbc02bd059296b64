//! What is released, with which noise, and at which price.
//!
//! Neighbouring inputs differ in one owner's whole model. The servers compute each vote themselves,
//! so a replaced model moves one vote from one bin to another, whatever the model is.

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
}

impl Release {
    /// How far one replaced model moves the votes before noise.
    pub const fn sensitivity(self) -> Sensitivity {
        match self {
            Self::Label | Self::Histogram => Sensitivity::OF_ONE_VOTE,
        }
    }
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
    pub const OF_ONE_VOTE: Self = Self { changed_bins: 2, per_bin: 1 };

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
        let (parameter, value, floor) = match self {
            Self::DiscreteGaussian { sigma } => ("sigma", sigma, MINIMUM_SIGMA),
            Self::DiscreteLaplace { scale } => ("scale", scale, MINIMUM_SCALE),
        };
        if value < floor {
            return Err(MechanismError::TooSmall { parameter, value, floor });
        }
        if value > MAXIMUM_SCALE {
            return Err(MechanismError::TooLarge { parameter, value, ceiling: MAXIMUM_SCALE });
        }
        Ok(())
    }

    /// Price of one released row of `bins` bins, against one corrupted server that pools what it
    /// knows with clients and owners. Integer arithmetic, rounded up.
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
    /// [`MechanismError`] for a mechanism or a number of bins that is not supported.
    pub fn cost(self, release: Release, bins: usize) -> Result<NanoRho, MechanismError> {
        self.validate()?;
        if !(1..=MAX_BINS).contains(&bins) {
            return Err(MechanismError::Bins { bins });
        }
        let sensitivity = release.sensitivity();
        let atto_rho = match self {
            Self::DiscreteGaussian { sigma } => {
                half_squared_ratio(sensitivity.l2_squared(), sigma) + lattice_term(sigma, bins)
            }
            // The L2 sensitivity is exactly the square sum over the bins that move.
            Self::DiscreteLaplace { scale } => half_squared_ratio(sensitivity.l2_squared(), scale),
        };
        let nano_rho = u64::try_from(atto_rho.div_ceil(ATTO_PER_NANO))
            .expect("the floors bound a row's price to 0.25 rho for each vote that moves");
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
            mechanism.cost(Release::Label, bins).expect("allowed mechanism").units()
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
                let cost = make(&text).cost(Release::Histogram, 10).expect("allowed mechanism");
                assert!(cost <= last, "{text}");
                last = cost;
            }
        }
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
        assert!(gaussian("0").cost(Release::Label, 10).is_err());
        assert!(laplace("1.9").validate().is_err());
        assert!(laplace("1048576.000001").validate().is_err());
        for bins in [0, MAX_BINS + 1, usize::MAX] {
            assert_eq!(gaussian("2").cost(Release::Label, bins), Err(MechanismError::Bins { bins }));
        }
    }
}
