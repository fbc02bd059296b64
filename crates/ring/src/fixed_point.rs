//! Real numbers as ring elements: x is represented by the integer nearest to x * 2^f.

use thiserror::Error;

use crate::element::Element;

/// Why a real number has no fixed-point representation. The number itself may be secret, so it is
/// not part of the error.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum FixedPointError {
    /// The scale leaves no room for integers in the ring.
    #[error("{fractional_bits} fractional bits do not fit a {ring_bits}-bit ring; use at most {maximum}")]
    TooManyFractionalBits {
        /// The fractional bits asked for.
        fractional_bits: u32,
        /// The width of the ring.
        ring_bits: u32,
        /// The most that this ring takes.
        maximum: u32,
    },
    /// NaN or an infinity.
    #[error("the number is not finite; replace NaN and infinite values before encoding")]
    NotFinite,
    /// The magnitude is too large.
    #[error(
        "the number's magnitude reaches the limit {limit} of {fractional_bits} fractional bits; rescale it"
    )]
    OutOfRange {
        /// Magnitudes must stay below this.
        limit: f64,
        /// The fractional bits of the encoding.
        fractional_bits: u32,
    },
}

/// A fixed-point encoding with `f` fractional bits.
///
/// Encoding rounds to nearest, ties away from zero: the error is at most 2^-(f+1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedPoint {
    fractional_bits: u32,
}

impl FixedPoint {
    /// An encoding with `fractional_bits` in `0..=48`.
    ///
    /// # Errors
    /// [`FixedPointError::TooManyFractionalBits`] above 48: a double holds 53 significant bits, so
    /// more would not encode what the number says.
    pub fn new(fractional_bits: u32) -> Result<Self, FixedPointError> {
        const MAXIMUM: u32 = 48;
        if fractional_bits > MAXIMUM {
            return Err(FixedPointError::TooManyFractionalBits {
                fractional_bits,
                ring_bits: 64,
                maximum: MAXIMUM,
            });
        }
        Ok(FixedPoint { fractional_bits })
    }

    /// The number of fractional bits f.
    pub fn fractional_bits(self) -> u32 {
        self.fractional_bits
    }

    /// The real number that one unit in the last place stands for, 2^-f.
    pub fn unit(self) -> f64 {
        power_of_two(self.fractional_bits).recip()
    }

    /// The integer nearest to `number * 2^f`.
    ///
    /// # Errors
    /// [`FixedPointError`] for numbers that are not finite or whose integer has 62 bits or more.
    #[inline]
    pub fn encode_integer(self, number: f64) -> Result<i64, FixedPointError> {
        self.encode_within(number, 62)
    }

    /// The ring element for `number`.
    ///
    /// # Errors
    /// [`FixedPointError`] for numbers that are not finite or that leave no spare bit in the ring:
    /// the integer must lie within `(-2^(k-2), 2^(k-2))`, so that a sum of two does not wrap.
    pub fn encode<E: Element>(self, number: f64) -> Result<E, FixedPointError> {
        self.encode_within(number, E::BITS - 2).map(E::from_signed)
    }

    /// The real number that a ring element stands for.
    pub fn decode<E: Element>(self, element: E) -> f64 {
        element.to_signed() as f64 * self.unit()
    }

    fn encode_within(self, number: f64, bits: u32) -> Result<i64, FixedPointError> {
        if !number.is_finite() {
            return Err(FixedPointError::NotFinite);
        }
        let scaled = (number * power_of_two(self.fractional_bits)).round();
        let limit = power_of_two(bits);
        if scaled.abs() >= limit {
            return Err(FixedPointError::OutOfRange {
                limit: limit * self.unit(),
                fractional_bits: self.fractional_bits,
            });
        }
        Ok(scaled as i64)
    }
}

/// 2^exponent for exponents below 64, without a call for each of a batch's numbers.
fn power_of_two(exponent: u32) -> f64 {
    (1_u64 << exponent) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::element::{Z32, Z64};

    proptest! {
        #[test]
        fn decoding_is_within_half_a_unit(number in -1e6f64..1e6, bits in 0u32..=40) {
            let fixed = FixedPoint::new(bits).unwrap();
            let element: Z64 = fixed.encode(number).unwrap();
            // A double of this magnitude has its own rounding, far below half a unit at 40 bits.
            prop_assert!((fixed.decode(element) - number).abs() <= 0.5 * fixed.unit() + 1e-10);
        }

        #[test]
        fn sums_of_two_encodings_do_not_wrap(a in -1e5f64..1e5, b in -1e5f64..1e5) {
            let fixed = FixedPoint::new(12).unwrap();
            let sum = fixed.encode::<Z32>(a).unwrap() + fixed.encode::<Z32>(b).unwrap();
            prop_assert!((fixed.decode(sum) - (a + b)).abs() <= fixed.unit() + 1e-9);
        }
    }

    #[test]
    fn limits_are_refused() {
        let fixed = FixedPoint::new(16).unwrap();
        assert_eq!(fixed.encode::<Z64>(f64::NAN), Err(FixedPointError::NotFinite));
        assert_eq!(fixed.encode::<Z64>(f64::NEG_INFINITY), Err(FixedPointError::NotFinite));
        let limit = 2f64.powi(62 - 16);
        let refusal = FixedPointError::OutOfRange { limit, fractional_bits: 16 };
        assert_eq!(fixed.encode::<Z64>(-limit), Err(refusal.clone()));
        assert_eq!(fixed.encode_integer(limit), Err(refusal));
        assert!(fixed.encode::<Z64>(limit * 0.999).is_ok());
        assert!(fixed.encode::<Z32>(16384.0).is_err());
        assert!(fixed.encode::<Z32>(16383.9).is_ok());
        assert!(FixedPoint::new(49).is_err());
    }
}
