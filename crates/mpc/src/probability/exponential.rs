//! exp(-x) for x from 0 up to [`CLAMP`], by one look-up of 16 entries.

use concilium_ring::Z64;

use crate::lookup::Tabulated;

/// Where the exponential is cut off: exp(-15) is 3.1e-7.
pub(crate) const CLAMP: u64 = 15;

/// Fractional bits of an entry of the table, and of a weight.
const ENTRY_BITS: u32 = 17;
const WEIGHT_BITS: u32 = 13;

/// Fractional bits of the result.
pub(crate) const SCALE_BITS: u32 = ENTRY_BITS + WEIGHT_BITS;

/// Bits of the whole part of x that the table tells apart: 0 to 14, and -1 as 15.
const INDEX_BITS: u32 = 4;

/// Scale of the constants below.
const CONSTANT_BITS: u32 = 62;

/// exp(-2^-j) for j from 0 to 20, the largest number of fractional bits.
const STEPS: [u64; 21] = {
    let mut steps = [0; 21];
    let mut j = 0;
    while j < 21 {
        steps[j] = exponential_series(j as u32, true);
        j += 1;
    }
    steps
};

/// exp(-h) for the whole part h from 0 to 14, and exp(1) in place 15, which stands for -1.
const WHOLE: [u64; 1 << INDEX_BITS] = {
    let mut whole = [1 << CONSTANT_BITS; 1 << INDEX_BITS];
    let mut h = 1;
    while h < CLAMP as usize {
        whole[h] = product(whole[h - 1], STEPS[0]);
        h += 1;
    }
    whole[CLAMP as usize] = exponential_series(0, false);
    whole
};

/// The power series of exp(2^-j), or of exp(-2^-j), at [`CONSTANT_BITS`]. It is summed with 38 more
/// bits, and each of the 40 terms is too small by less than one unit of those.
const fn exponential_series(j: u32, negative: bool) -> u64 {
    const GUARD_BITS: u32 = 38;
    let one = 1i128 << (CONSTANT_BITS + GUARD_BITS);
    let (mut sum, mut term, mut n) = (one, one, 1);
    while n <= 40 {
        term = (term >> j) / n;
        sum += if negative && n % 2 == 1 { -term } else { term };
        n += 1;
    }
    (sum >> GUARD_BITS) as u64
}

/// A product at [`CONSTANT_BITS`].
const fn product(a: u64, b: u64) -> u64 {
    ((a as u128 * b as u128) >> CONSTANT_BITS) as u64
}

/// Rounds a value at [`CONSTANT_BITS`] to `bits` fractional bits.
const fn rounded(value: u64, bits: u32) -> u64 {
    (value + (1 << (CONSTANT_BITS - bits - 1))) >> (CONSTANT_BITS - bits)
}

/// The exponential of minus a number with `fractional_bits` fractional bits.
///
/// For x in 0 to [`CLAMP`] the result is exp(-x) at [`SCALE_BITS`], at most 2^-18 + 2^-14 e exp(-x)
/// off. **For every ring element it lies in 0 to 2.7183**, in real units, and larger than 1 only where
/// x modulo 16 is above 15.
///
/// The sum of the two low parts reaches into the whole part, but it is the exponent of two factors, so
/// nothing has to be carried: with x = u + v, exp(-x) = exp(-(h + u_low)) exp(-v_low) for the sum h
/// of the two whole parts modulo 16. When the carry wraps h around, x is below 1 and h stands for -1.
pub(crate) struct Exponential {
    pub(crate) fractional_bits: u32,
}

impl Exponential {
    /// exp(-low / 2^f) at [`CONSTANT_BITS`].
    fn of_fraction(&self, low: u64) -> u64 {
        (0..self.fractional_bits).fold(1 << CONSTANT_BITS, |value, bit| {
            let factor = if low >> bit & 1 == 1 {
                STEPS[(self.fractional_bits - bit) as usize]
            } else {
                1 << CONSTANT_BITS
            };
            product(value, factor)
        })
    }
}

impl Tabulated<1> for Exponential {
    fn low_bits(&self) -> u32 {
        self.fractional_bits
    }

    fn index_bits(&self) -> u32 {
        INDEX_BITS
    }

    fn entries(&self, u: u64, table: &mut [[Z64; 1]]) {
        let low = self.of_fraction(u & ((1 << self.fractional_bits) - 1));
        let whole = (u >> self.fractional_bits) as usize;
        for (v, entry) in table.iter_mut().enumerate() {
            let exponential = product(low, WHOLE[whole.wrapping_add(v) % WHOLE.len()]);
            *entry = [std::num::Wrapping(rounded(exponential, ENTRY_BITS))];
        }
    }

    fn weights(&self, low: u64) -> [Z64; 1] {
        [std::num::Wrapping(rounded(self.of_fraction(low), WEIGHT_BITS))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_exponentials() {
        let real = |value: u64| value as f64 / (1u64 << CONSTANT_BITS) as f64;
        for (j, &step) in STEPS.iter().enumerate() {
            assert!((real(step) - (-(0.5f64.powi(j as i32))).exp()).abs() < 1e-15, "exp(-2^-{j})");
        }
        for (h, &whole) in WHOLE.iter().enumerate() {
            let exponent = if h == CLAMP as usize { 1.0 } else { -(h as f64) };
            assert!((real(whole) / exponent.exp() - 1.0).abs() < 1e-12, "exp({exponent})");
        }
    }
}
