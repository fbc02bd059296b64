//! AVX2: four 64-bit products from 32-bit partial ones, or eight 32-bit products.
//!
//! # Invariants
//! [`multiply_add`] runs only on processors with AVX2: whoever calls it asked [`is_available`]. Loads
//! and stores are unaligned ones, within the bounds of the vector module.

#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::product::Product;
use super::vector::{self, Lanes};
use crate::element::Element;

/// Low tiles read much: blocks fit the first-level cache, and left rows the second.
const BLOCK: usize = 256;
const LEFT_BYTES: usize = 256 << 10;

pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx2")
}

/// Adds a product whose result has adjacent columns to it.
///
/// # Safety
/// [`is_available`] is true.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn multiply_add<E: Element>(product: &mut Product<'_, E>) {
    // SAFETY: the feature is enabled here, and the number of bits picks the vectors of E's words.
    unsafe {
        match E::BITS {
            64 => vector::multiply_add::<E, Quadwords, 2>(product),
            32 => vector::multiply_add::<E, Doublewords, 2>(product),
            _ => unreachable!("elements have 32 or 64 bits"),
        }
    }
}

/// Modulo 2^64, with a = a0 + 2^32 a1 and b = b0 + 2^32 b1, ab = a0 b0 + 2^32 (a0 b1 + a1 b0): the
/// first product is wanted with all 64 bits, the others modulo 2^32. Each is summed by itself, and the
/// sums are put together at the end.
struct Quadwords;

// SAFETY: every access is of 32 bytes or one word; the sums wrap where the modulus lets them.
unsafe impl Lanes for Quadwords {
    const BYTES: usize = 32;
    const MAX_ROWS: usize = 2;
    const BLOCK: usize = BLOCK;
    const LEFT_BYTES: usize = LEFT_BYTES;
    type Left = __m256i;
    /// The words, and the words with their halves exchanged.
    type Right = (__m256i, __m256i);
    /// Sums of a0 b0, and of a0 b1 and a1 b0 in the two halves.
    type Sum = (__m256i, __m256i);

    #[inline(always)]
    unsafe fn zero() -> Self::Sum {
        unsafe { (_mm256_setzero_si256(), _mm256_setzero_si256()) }
    }

    #[inline(always)]
    unsafe fn spread(element: *const u8) -> __m256i {
        unsafe { _mm256_set1_epi64x(element.cast::<i64>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn load(elements: *const u8) -> Self::Right {
        unsafe {
            let words = _mm256_loadu_si256(elements.cast());
            (words, _mm256_shuffle_epi32::<0b10_11_00_01>(words))
        }
    }

    #[inline(always)]
    fn prefetch(address: *const u8) {
        // SAFETY: a prefetch is a hint, which does not fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    #[inline(always)]
    unsafe fn multiply_add(sum: Self::Sum, left: __m256i, right: Self::Right) -> Self::Sum {
        unsafe {
            let low = _mm256_add_epi64(sum.0, _mm256_mul_epu32(left, right.0));
            (low, _mm256_add_epi32(sum.1, _mm256_mullo_epi32(left, right.1)))
        }
    }

    #[inline(always)]
    unsafe fn add_to(target: *mut u8, sum: Self::Sum) {
        unsafe {
            let cross = _mm256_add_epi32(sum.1, _mm256_shuffle_epi32::<0b10_11_00_01>(sum.1));
            let sum = _mm256_add_epi64(sum.0, _mm256_slli_epi64::<32>(cross));
            let total = _mm256_add_epi64(_mm256_loadu_si256(target.cast()), sum);
            _mm256_storeu_si256(target.cast(), total);
        }
    }
}

struct Doublewords;

// SAFETY: VPMULLD keeps the low 32 bits of each product; every access is of 32 bytes or one word.
unsafe impl Lanes for Doublewords {
    const BYTES: usize = 32;
    const MAX_ROWS: usize = 4;
    const BLOCK: usize = BLOCK;
    const LEFT_BYTES: usize = LEFT_BYTES;
    type Left = __m256i;
    type Right = __m256i;
    type Sum = __m256i;

    #[inline(always)]
    unsafe fn zero() -> __m256i {
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    unsafe fn spread(element: *const u8) -> __m256i {
        unsafe { _mm256_set1_epi32(element.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn load(elements: *const u8) -> __m256i {
        unsafe { _mm256_loadu_si256(elements.cast()) }
    }

    #[inline(always)]
    fn prefetch(address: *const u8) {
        // SAFETY: a prefetch is a hint, which does not fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    #[inline(always)]
    unsafe fn multiply_add(sum: __m256i, left: __m256i, right: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(sum, _mm256_mullo_epi32(left, right)) }
    }

    #[inline(always)]
    unsafe fn add_to(target: *mut u8, sum: __m256i) {
        unsafe {
            let total = _mm256_add_epi32(_mm256_loadu_si256(target.cast()), sum);
            _mm256_storeu_si256(target.cast(), total);
        }
    }
}
