//! Exact samplers with a randomness argument: the seeded twin of the production source.
//!
//! `opendp` cannot be seeded, so tests on it are statistical and a run cannot be repeated. These are
//! independent implementations of the same distributions (Canonne, Kamath and Steinke, 2020,
//! algorithms 1 to 3) on rational numbers, for tests that replay and for simulations in the clear.
//! **Not for a server:** a seed that is known gives the noise away.

use std::num::NonZeroU64;

use dashu::{
    base::{BitTest, Signed, UnsignedAbs},
    integer::{IBig, UBig},
    rational::RBig,
};
use rand::Rng;

use crate::{
    mechanism::{Mechanism, MechanismError},
    noise::{self, NoiseError, NoiseShare, NoiseSource, Primitives, ShareSampler},
    parameter::NoiseScale,
};

/// Draws shares of the production distributions from a generator that the caller seeds.
pub struct SeededNoise<R> {
    sampler: ShareSampler,
    randomness: Seeded<R>,
}

impl<R: Rng> SeededNoise<R> {
    /// A source of one server's shares for `mechanism`.
    ///
    /// # Errors
    /// [`MechanismError`] when policy does not allow the mechanism.
    pub fn new(mechanism: Mechanism, randomness: R) -> Result<Self, MechanismError> {
        Ok(Self { sampler: ShareSampler::new(mechanism)?, randomness: Seeded(randomness) })
    }
}

impl<R: Rng + Send> NoiseSource for SeededNoise<R> {
    fn draw(&mut self, bins: usize) -> Result<NoiseShare, NoiseError> {
        self.sampler.draw(&mut self.randomness, bins)
    }
}

/// An integer with `P(x)` proportional to `exp(-x^2 / (2 sigma^2))`; always zero for sigma zero.
///
/// # Errors
/// [`NoiseError::OutOfRange`] when the value does not fit, which only a scale near 2^63 makes
/// likely.
pub fn discrete_gaussian<R: Rng>(sigma: NoiseScale, randomness: R) -> Result<i64, NoiseError> {
    let value = Seeded(randomness).discrete_gaussian(&rational(sigma))?;
    i64::try_from(value).map_err(|_| NoiseError::OutOfRange)
}

/// An integer with `P(x)` proportional to `exp(-|x| / scale)`; always zero for scale zero.
///
/// # Errors
/// [`NoiseError::OutOfRange`] when the value does not fit, which only a scale near 2^63 makes
/// likely.
pub fn discrete_laplace<R: Rng>(scale: NoiseScale, randomness: R) -> Result<i64, NoiseError> {
    let value = Seeded(randomness).discrete_laplace(&rational(scale))?;
    i64::try_from(value).map_err(|_| NoiseError::OutOfRange)
}

/// An integer with `P(k) = C(k - 1/2, k) q^k (1 - q)^(1/2)` for `k >= 0` and `q = exp(-1 / scale)`: the
/// negative binomial NB(1/2, q), of which a share of discrete Laplace noise is the difference of two.
///
/// # Errors
/// [`NoiseError::OutOfRange`] when the value does not fit, which only a scale near 2^63 makes
/// likely.
pub fn half_negative_binomial<R: Rng>(scale: NoiseScale, randomness: R) -> Result<i64, NoiseError> {
    noise::half_negative_binomial(&mut Seeded(randomness), &rational(scale))
}

fn rational(scale: NoiseScale) -> RBig {
    RBig::from_parts(IBig::from(scale.millionths()), UBig::from(NoiseScale::UNITS_PER_ONE))
}

struct Seeded<R>(R);

impl<R: Rng> Primitives for Seeded<R> {
    /// Algorithm 2: a sign and a geometric magnitude; minus zero is drawn again, or zero would be
    /// twice as likely as it should be.
    fn discrete_laplace(&mut self, scale: &RBig) -> Result<IBig, NoiseError> {
        let Some((numerator, denominator)) = positive_parts(scale) else {
            return Ok(IBig::ZERO);
        };
        loop {
            let magnitude = IBig::from(self.geometric(&denominator, &numerator));
            if self.0.next_u64() & 1 == 0 {
                return Ok(magnitude);
            }
            if magnitude != IBig::ZERO {
                return Ok(-magnitude);
            }
        }
    }

    /// Algorithm 3: a discrete Laplace candidate of scale `t = floor(scale) + 1`, kept with
    /// probability `exp(-(|x| - scale^2 / t)^2 / (2 scale^2))`.
    fn discrete_gaussian(&mut self, scale: &RBig) -> Result<IBig, NoiseError> {
        if positive_parts(scale).is_none() {
            return Ok(IBig::ZERO);
        }
        let variance = scale.clone() * scale;
        let envelope = RBig::from(scale.floor() + IBig::ONE);
        let centre = variance.clone() / &envelope;
        let twice_variance = variance * IBig::from(2);
        loop {
            let candidate = self.discrete_laplace(&envelope)?;
            let magnitude = IBig::from(candidate.clone().unsigned_abs());
            let distance = RBig::from(magnitude) - &centre;
            let exponent = distance.clone() * distance / &twice_variance;
            if self.exponential_event(&exponent) {
                return Ok(candidate);
            }
        }
    }

    fn below(&mut self, bound: NonZeroU64) -> Result<u64, NoiseError> {
        // The smallest mask that covers the bound: at least half of the draws are kept.
        let mask = u64::MAX >> ((bound.get() - 1) | 1).leading_zeros();
        loop {
            let candidate = self.0.next_u64() & mask;
            if candidate < bound.get() {
                return Ok(candidate);
            }
        }
    }
}

impl<R: Rng> Seeded<R> {
    /// Uniform in `0..bound`, for a bound above zero.
    fn uniform(&mut self, bound: &UBig) -> UBig {
        let bits = bound.bit_len();
        let bytes = bits.div_ceil(8);
        let mut buffer = vec![0; bytes];
        loop {
            self.0.fill_bytes(&mut buffer);
            // Little-endian: the last byte is the highest.
            if let Some(high) = buffer.last_mut() {
                *high &= u8::MAX >> (bytes * 8 - bits);
            }
            let candidate = UBig::from_le_bytes(&buffer);
            if candidate < *bound {
                return candidate;
            }
        }
    }

    /// True with probability `numerator / denominator`.
    fn event(&mut self, numerator: &UBig, denominator: &UBig) -> bool {
        self.uniform(denominator) < *numerator
    }

    /// True with probability `exp(-exponent)`, for an exponent that is not negative (algorithm 1).
    fn exponential_event(&mut self, exponent: &RBig) -> bool {
        let (numerator, denominator) = exponent.clone().into_parts();
        let mut numerator = numerator.unsigned_abs();
        while numerator > denominator {
            if !self.small_exponential_event(&UBig::ONE, &UBig::ONE) {
                return false;
            }
            numerator -= &denominator;
        }
        self.small_exponential_event(&numerator, &denominator)
    }

    /// True with probability `exp(-numerator / denominator)`, for a ratio of at most one: the
    /// length of the run of events of probability `ratio / 1, ratio / 2, ...` is even.
    fn small_exponential_event(&mut self, numerator: &UBig, denominator: &UBig) -> bool {
        let mut run = 1_u64;
        let mut scaled = denominator.clone();
        while self.event(numerator, &scaled) {
            run += 1;
            scaled += denominator;
        }
        run % 2 == 1
    }

    /// `P(k)` proportional to `exp(-k numerator / denominator)`, for `k >= 0` and a positive
    /// ratio: the low part of `k numerator` by rejection, the high part in steps of probability
    /// `exp(-1)`.
    fn geometric(&mut self, numerator: &UBig, denominator: &UBig) -> UBig {
        let low = loop {
            let low = self.uniform(denominator);
            if self.small_exponential_event(&low, denominator) {
                break low;
            }
        };
        let mut high = UBig::ZERO;
        while self.small_exponential_event(&UBig::ONE, &UBig::ONE) {
            high += UBig::ONE;
        }
        (high * denominator + low) / numerator
    }
}

/// Numerator and denominator of a positive number. Zero counts as positive in `Signed`.
fn positive_parts(number: &RBig) -> Option<(UBig, UBig)> {
    if number.is_zero() || number.is_negative() {
        return None;
    }
    let (numerator, denominator) = number.clone().into_parts();
    Some((numerator.unsigned_abs(), denominator))
}
