//! Ring elements: integers modulo a power of two.

use std::num::Wrapping;
use std::ops::{Add, AddAssign, Mul, MulAssign, Neg, Sub, SubAssign};

use bytemuck::Pod;

/// An integer modulo 2^64.
pub type Z64 = Wrapping<u64>;

/// An integer modulo 2^32.
pub type Z32 = Wrapping<u32>;

mod sealed {
    /// Kernels read elements as the words that they wrap, so no other type may become one.
    pub trait Sealed {}
}

/// An element of Z_2^k for a machine word of k bits: [`Z64`] or [`Z32`].
///
/// Signed integers in `[-2^(k-1), 2^(k-1))` are represented in two's complement.
pub trait Element:
    sealed::Sealed
    + Copy
    + Default
    + Eq
    + Pod
    + Send
    + Sync
    + 'static
    + Add<Output = Self>
    + AddAssign
    + Mul<Output = Self>
    + MulAssign
    + Neg<Output = Self>
    + Sub<Output = Self>
    + SubAssign
{
    /// The number of bits k of the modulus 2^k.
    const BITS: u32;
    /// Bytes of one element in memory and on the wire.
    const BYTES: usize;
    /// The neutral element of addition.
    const ZERO: Self;
    /// The neutral element of multiplication.
    const ONE: Self;

    /// Reduces an unsigned integer modulo 2^k.
    fn from_unsigned(value: u64) -> Self;

    /// Reduces a signed integer modulo 2^k.
    fn from_signed(value: i64) -> Self {
        Self::from_unsigned(value as u64)
    }

    /// The representative in `[0, 2^k)`.
    fn to_unsigned(self) -> u64;

    /// The representative in `[-2^(k-1), 2^(k-1))`.
    fn to_signed(self) -> i64;

    /// The representative in `[-2^(bits-1), 2^(bits-1))` of what is left of it modulo 2^`bits`, for `bits` from
    /// 1 to k.
    fn to_signed_modulo(self, bits: u32) -> i64 {
        let above = u64::BITS - bits;
        (self.to_unsigned() << above) as i64 >> above
    }

    /// 2^exponent, which is 0 for exponents of k and more.
    fn power_of_two(exponent: u32) -> Self {
        if exponent >= Self::BITS { Self::ZERO } else { Self::from_unsigned(1 << exponent) }
    }

    /// The representative in `[0, 2^k)` shifted right by `bits < k`, zeros entering at the top.
    fn shift_right(self, bits: u32) -> Self;
}

macro_rules! implement_element {
    ($word:ty, $signed:ty) => {
        impl sealed::Sealed for Wrapping<$word> {}

        impl Element for Wrapping<$word> {
            const BITS: u32 = <$word>::BITS;
            const BYTES: usize = size_of::<$word>();
            const ZERO: Self = Wrapping(0);
            const ONE: Self = Wrapping(1);

            #[inline(always)]
            fn from_unsigned(value: u64) -> Self {
                Wrapping(value as $word)
            }

            #[inline(always)]
            fn to_unsigned(self) -> u64 {
                u64::from(self.0)
            }

            #[inline(always)]
            fn to_signed(self) -> i64 {
                i64::from(self.0 as $signed)
            }

            #[inline(always)]
            fn shift_right(self, bits: u32) -> Self {
                Wrapping(self.0 >> bits)
            }
        }
    };
}

implement_element!(u64, i64);
implement_element!(u32, i32);

/// Appends elements to a message, little-endian.
pub fn write_elements<E: Element>(elements: &[E], bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(bytemuck::cast_slice(elements));
}

/// Reads little-endian elements from a message, or `None` when its length is no multiple of an
/// element's.
pub fn read_elements<E: Element>(bytes: &[u8]) -> Option<Vec<E>> {
    if !bytes.len().is_multiple_of(E::BYTES) {
        return None;
    }
    Some(bytemuck::pod_collect_to_vec(bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn signed_representatives_survive(value: i64, narrow: i32) {
            prop_assert_eq!(Z64::from_signed(value).to_signed(), value);
            prop_assert_eq!(Z32::from_signed(i64::from(narrow)).to_signed(), i64::from(narrow));
            prop_assert_eq!(Z32::from_signed(value).to_unsigned(), value as u64 & 0xffff_ffff);
            prop_assert_eq!(Z32::from_signed(i64::from(narrow) >> 8).to_signed_modulo(24), i64::from(narrow) >> 8);
            prop_assert_eq!(Z64::from_signed(value).to_signed_modulo(64), value);
            prop_assert_eq!(Z64::from_signed(value).to_signed_modulo(1), -(value & 1));
        }

        #[test]
        fn arithmetic_is_modular(a: u64, b: u64) {
            let (x, y) = (Z32::from_unsigned(a), Z32::from_unsigned(b));
            prop_assert_eq!((x * y).to_unsigned(), a.wrapping_mul(b) & 0xffff_ffff);
            prop_assert_eq!((x - y + y).to_unsigned(), x.to_unsigned());
            prop_assert_eq!(-x + x, Z32::ZERO);
        }

        #[test]
        fn bytes_survive(words: Vec<u64>) {
            let elements: Vec<Z64> = words.iter().map(|&word| Wrapping(word)).collect();
            let mut bytes = Vec::new();
            write_elements(&elements, &mut bytes);
            prop_assert_eq!(&bytes, &words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>());
            prop_assert_eq!(read_elements::<Z64>(&bytes), Some(elements));
            bytes.push(0);
            prop_assert_eq!(read_elements::<Z64>(&bytes), None);
        }
    }

    #[test]
    fn powers_of_two_vanish_at_the_modulus() {
        assert_eq!(Z64::power_of_two(63).to_signed(), i64::MIN);
        assert_eq!(Z64::power_of_two(64), Z64::ZERO);
        assert_eq!(Z32::power_of_two(40), Z32::ZERO);
    }
}
