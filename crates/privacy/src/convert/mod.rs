//! Numbers that people read, write and plan with. Binary floating point is only in this module and those
//! below it, which a test checks: none of it decides whether a request is answered.

mod exact;
pub mod explain;
pub mod utility;

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{self, Unexpected, Visitor},
};
use thiserror::Error;

use crate::{
    decimal::{self, Decimal},
    mechanism::Mechanism,
    parameter::{Delta, NanoRho, NoiseScale},
};

pub(crate) use self::exact::upper_tail;
pub use self::exact::{gaussian_epsilon, laplace_epsilon};

/// How far from its middle an epsilon is searched, in logarithms of t.
const SEARCHED: f64 = 12.0;

/// Narrowings of the searched range by a third: to 1e-8 of it, where epsilon is flat.
const NARROWINGS: usize = 48;

/// A budget that cannot be shown as (epsilon, delta).
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// No epsilon belongs to this delta.
    #[error("delta {delta} is not between 0 and 1; use for example 1e-5")]
    Delta {
        /// Delta asked for.
        delta: Delta,
    },
}

/// A budget in the terms that people read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guarantee {
    /// Loss under zero-concentrated differential privacy.
    pub rho: f64,
    /// Epsilon at `delta`, an upper bound.
    pub epsilon: f64,
    /// Delta of the statement.
    pub delta: f64,
}

impl Guarantee {
    /// What a loss of `rho` means at `delta`.
    ///
    /// # Errors
    /// As [`epsilon`].
    pub fn new(loss: NanoRho, delta: Delta) -> Result<Self, ConvertError> {
        Ok(Self { rho: rho(loss), epsilon: epsilon(loss, delta)?, delta: delta_value(delta) })
    }
}

/// An epsilon such that every mechanism of loss `rho` is (epsilon, `delta`)-differentially private,
/// rounded upwards: the conversion of Canonne, Kamath and Steinke (2020, corollary 13), which is the
/// smallest that rho alone allows.
///
/// With alpha = 1 + t, every t above zero gives such an epsilon,
/// `(1 + t) rho - (ln delta + ln(1 + t)) / t - ln(1 + 1 / t)`, so that a search for the smallest cannot
/// go wrong: where it stops early, the epsilon is larger than need be. It takes microseconds, and is
/// tested against opendp's, which takes milliseconds: too long for every receipt of a busy server.
///
/// # Errors
/// [`ConvertError::Delta`] when `delta` is not strictly between zero and one.
pub fn epsilon(rho: NanoRho, delta: Delta) -> Result<f64, ConvertError> {
    if delta.units() == 0 || delta >= Delta::ONE {
        return Err(ConvertError::Delta { delta });
    }
    if rho == NanoRho::ZERO {
        return Ok(0.0);
    }
    // Steps away from zero and towards zero cover the rounding of the divisions.
    let (rho, ln_delta) = (self::rho(rho).next_up(), delta_value(delta).next_down().ln());
    let epsilon = |t: f64| {
        let terms = [(1.0 + t) * rho, -ln_delta / t, -t.ln_1p() / t, -t.recip().ln_1p()];
        // The terms are exact to a few units of the last place each; the sum may cancel.
        terms.iter().sum::<f64>() + 16.0 * f64::EPSILON * terms.iter().map(|term| term.abs()).sum::<f64>()
    };
    // The smallest is near this one, where rho t and -ln delta / t are equal.
    let middle = (-ln_delta / rho).sqrt().ln();
    let (mut low, mut high) = (middle - SEARCHED, middle + SEARCHED);
    for _ in 0..NARROWINGS {
        let third = (high - low) / 3.0;
        if epsilon((low + third).exp()) <= epsilon((high - third).exp()) {
            high -= third;
        } else {
            low += third;
        }
    }
    Ok(epsilon(((low + high) / 2.0).exp()).max(0.0))
}

/// The loss as a number.
pub fn rho(loss: NanoRho) -> f64 {
    fraction(loss)
}

/// Delta as a number.
pub fn delta_value(delta: Delta) -> f64 {
    fraction(delta)
}

/// A noise scale as a number of votes.
pub fn votes(scale: NoiseScale) -> f64 {
    fraction(scale)
}

/// Standard deviation, in votes per bin, of the noise that is sure to be unknown to one corrupted
/// server: the sum of the two others' shares. The privacy guarantee rests on this.
pub fn guaranteed_standard_deviation(mechanism: Mechanism) -> f64 {
    match mechanism {
        Mechanism::DiscreteGaussian { sigma } => votes(sigma),
        Mechanism::DiscreteLaplace { scale } => {
            let ratio = (-1.0 / votes(scale)).exp();
            (2.0 * ratio).sqrt() / (1.0 - ratio)
        }
    }
}

/// Standard deviation, in votes per bin, of the noise that a client meets: the sum of all three
/// servers' shares, `sqrt(3/2) = 1.2247` times the guaranteed one.
pub fn actual_standard_deviation(mechanism: Mechanism) -> f64 {
    1.5_f64.sqrt() * guaranteed_standard_deviation(mechanism)
}

/// Pure epsilon of `rows` released rows, for a mechanism that has one: `2 rows / scale` for the
/// discrete Laplace, as one replaced model moves two bins by one vote. Information only, the
/// ledger counts rho.
pub fn pure_epsilon(mechanism: Mechanism, rows: u32) -> Option<f64> {
    match mechanism {
        Mechanism::DiscreteGaussian { .. } => None,
        Mechanism::DiscreteLaplace { scale } => Some(2.0 * f64::from(rows) / votes(scale)),
    }
}

fn fraction<T: Decimal>(value: T) -> f64 {
    // Powers of ten up to 10^22 are exact in f64, so this rounds at most twice.
    value.into_units() as f64 / 10_f64.powi(T::PLACES as i32)
}

/// Takes a number or its text. A floating-point number is read by its shortest decimal text, which
/// is what was written as long as it had at most fifteen significant digits.
struct DecimalVisitor<T>(PhantomData<T>);

impl<T: Decimal> Visitor<'_> for DecimalVisitor<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} as an unsigned decimal number with at most {} decimal places",
            T::NAME,
            T::PLACES
        )
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        decimal::parse(text).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        decimal::parse(&number.to_string()).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        let number =
            u64::try_from(number).map_err(|_| E::invalid_value(Unexpected::Signed(number), &self))?;
        self.visit_u64(number)
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<T, E> {
        if !number.is_finite() {
            return Err(E::invalid_value(Unexpected::Float(number), &self));
        }
        decimal::parse(&number.to_string()).map_err(E::custom)
    }
}

macro_rules! deserialize_decimal {
    ($($type:ty),+) => {$(
        /// From a number or its text, exactly.
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(DecimalVisitor(PhantomData))
            }
        }
    )+};
}

deserialize_decimal!(NoiseScale, NanoRho, Delta);
