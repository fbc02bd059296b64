//! The reciprocal of a sum of exponentials, from below, by two look-ups.
//!
//! With S = sum of e_c the probabilities are e_c / S. A coarse reciprocal y of S brings T = S y into
//! 0.6 to 1; a finer one of T ends it. **Both err downwards only**, whatever S is, so T < 1 and
//! T / T <= 1: the sum of the results is bounded by construction, in exact integers.

use std::num::Wrapping;

use concilium_ring::Z64;

use super::FRACTION_BITS;
use super::exponential::SCALE_BITS;
use crate::lookup::Tabulated;

/// The sum of `classes` exponentials is below 2^`sum_bits` in real units, whatever they are of: each
/// is at most 2.7183.
fn sum_bits(classes: usize) -> u32 {
    (classes * 11).div_ceil(4).next_power_of_two().trailing_zeros()
}

/// y = 2^fraction_bits / S rounded down, S taken from the upper end of an interval of one half.
pub(crate) struct Coarse {
    sum_bits: u32,
    fraction_bits: u32,
}

impl Coarse {
    /// Bits below the whole part that belong to an interval.
    const INTERVAL_BITS: u32 = 1;

    pub(crate) fn new(classes: usize) -> Self {
        // Eight times the classes: rounding y down then costs an eighth of it at most.
        let fraction_bits = classes.next_power_of_two().trailing_zeros() + 3;
        Coarse { sum_bits: sum_bits(classes), fraction_bits }
    }

    /// Fractional bits of T = S y.
    pub(crate) fn product_bits(&self) -> u32 {
        SCALE_BITS + self.fraction_bits
    }
}

impl Tabulated<1> for Coarse {
    fn low_bits(&self) -> u32 {
        SCALE_BITS - Self::INTERVAL_BITS
    }

    fn index_bits(&self) -> u32 {
        self.sum_bits + Self::INTERVAL_BITS
    }

    /// The entry's interval begins at `start`, and S lies in it: start <= S < start + 1/2. When the
    /// interval goes round the end of the table, S can also be below 1/2, and so below the interval's
    /// end as well. Either way S y < 2^product_bits.
    fn entries(&self, u: u64, table: &mut [[Z64; 1]]) {
        let (interval, end) = (1u64 << self.low_bits(), (1u64 << (SCALE_BITS + self.sum_bits)) - 1);
        let mut start = u & end;
        for entry in table {
            *entry = [Wrapping((1 << self.product_bits()) / (start + interval))];
            start = (start + interval) & end;
        }
    }

    fn weights(&self, _low: u64) -> [Z64; 1] {
        [Wrapping(1)]
    }
}

/// (1 - classes / 2^16) / T for T below 1, by tangents, which lie below the reciprocal everywhere.
///
/// The factor leaves room for the last truncation to round every class up.
pub(crate) struct Fine {
    product_bits: u32,
    numerator: u128,
}

impl Fine {
    /// Fractional bits of the result.
    pub(crate) const RESULT_BITS: u32 = 20;
    /// 64 tangents over 0 to 1.
    const INDEX_BITS: u32 = 6;
    /// Steps along a tangent, as bits.
    const STEP_BITS: u32 = 7;

    pub(crate) fn new(classes: usize, coarse: &Coarse) -> Self {
        let numerator = ((1 << FRACTION_BITS) - classes as u128) << (Self::RESULT_BITS - FRACTION_BITS);
        Fine { product_bits: coarse.product_bits(), numerator }
    }
}

impl Tabulated<2> for Fine {
    fn low_bits(&self) -> u32 {
        self.product_bits - Self::INDEX_BITS
    }

    fn index_bits(&self) -> u32 {
        Self::INDEX_BITS
    }

    /// Value and slope of the tangent that touches 1 / T in the middle of the entry's interval, the
    /// value rounded down, the slope up. Below 0.59, where no honest T is, one tangent serves all.
    /// Where an interval goes round the end, T can be near 0; the tangent's value for T near 1
    /// is below the reciprocal there, too.
    fn entries(&self, u: u64, table: &mut [[Z64; 2]]) {
        let one = 1u128 << self.product_bits;
        let interval = 1u128 << self.low_bits();
        let mut start = u128::from(u) & (one - 1);
        let lowest = one * 59 / 100;
        for entry in table {
            let middle = (start + interval / 2).max(lowest);
            // 1/x >= 2/m - x/m^2 with x = start + steps * step.
            let value = self.numerator * (2 * middle - start) * one / (middle * middle);
            let slope = (self.numerator * (interval >> Self::STEP_BITS) * one).div_ceil(middle * middle);
            *entry = [Wrapping(value as u64), Wrapping(slope as u64)];
            start = (start + interval) & (one - 1);
        }
    }

    /// Steps are rounded up, so that the reciprocal is taken of T or a little more.
    fn weights(&self, low: u64) -> [Z64; 2] {
        let steps = low.div_ceil(1 << (self.low_bits() - Self::STEP_BITS));
        [Wrapping(1), -Wrapping(steps)]
    }
}
