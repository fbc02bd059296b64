//! AVX-512: eight 64-bit or sixteen 32-bit products in an instruction or a few.
//!
//! # Invariants
//! [`multiply_add`] runs only on processors with AVX-512F and AVX-512DQ: whoever calls it asked
//! [`is_available`]. Loads and stores are unaligned ones, within the bounds of the vector module.

#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::product::Product;
use super::vector::{self, Lanes};
use crate::element::Element;

/// Tall tiles ask so little of the caches that a panel may lie in the second level and left rows beyond it:
/// with as many as this, the result is passed over seldom.
const BLOCK: usize = 2048;
const LEFT_BYTES: usize = 2 << 20;

pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq")
}

/// Adds a product whose result has adjacent columns to it.
///
/// # Safety
/// [`is_available`] is true.
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) unsafe fn multiply_add<E: Element>(product: &mut Product<'_, E>) {
    // SAFETY: the features are enabled here, and the number of bits picks the vectors of E's words.
    unsafe {
        match E::BITS {
            64 => vector::multiply_add::<E, Quadwords, 2>(product),
            32 => vector::multiply_add::<E, Doublewords, 2>(product),
            _ => unreachable!("elements have 32 or 64 bits"),
        }
    }
}

struct Quadwords;

// SAFETY: VPMULLQ keeps the low 64 bits of each product; every access is of 64 bytes or one word.
unsafe impl Lanes for Quadwords {
    const BYTES: usize = 64;
    const MAX_ROWS: usize = 8;
    const BLOCK: usize = BLOCK;
    const LEFT_BYTES: usize = LEFT_BYTES;
    type Left = __m512i;
    type Right = __m512i;
    type Sum = __m512i;

    #[inline(always)]
    unsafe fn zero() -> __m512i {
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn spread(element: *const u8) -> __m512i {
        unsafe { _mm512_set1_epi64(element.cast::<i64>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn load(elements: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(elements.cast()) }
    }

    #[inline(always)]
    fn prefetch(address: *const u8) {
        // SAFETY: a prefetch is a hint, which does not fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    #[inline(always)]
    unsafe fn multiply_add(sum: __m512i, left: __m512i, right: __m512i) -> __m512i {
        unsafe { _mm512_add_epi64(sum, _mm512_mullo_epi64(left, right)) }
    }

    #[inline(always)]
    unsafe fn add_to(target: *mut u8, sum: __m512i) {
        unsafe {
            _mm512_storeu_si512(target.cast(), _mm512_add_epi64(_mm512_loadu_si512(target.cast()), sum))
        }
    }
}

struct Doublewords;

// SAFETY: VPMULLD keeps the low 32 bits of each product; every access is of 64 bytes or one word.
unsafe impl Lanes for Doublewords {
    const BYTES: usize = 64;
    const MAX_ROWS: usize = 8;
    const BLOCK: usize = BLOCK;
    const LEFT_BYTES: usize = LEFT_BYTES;
    type Left = __m512i;
    type Right = __m512i;
    type Sum = __m512i;

    #[inline(always)]
    unsafe fn zero() -> __m512i {
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn spread(element: *const u8) -> __m512i {
        unsafe { _mm512_set1_epi32(element.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn load(elements: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(elements.cast()) }
    }

    #[inline(always)]
    fn prefetch(address: *const u8) {
        // SAFETY: a prefetch is a hint, which does not fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    #[inline(always)]
    unsafe fn multiply_add(sum: __m512i, left: __m512i, right: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(sum, _mm512_mullo_epi32(left, right)) }
    }

    #[inline(always)]
    unsafe fn add_to(target: *mut u8, sum: __m512i) {
        unsafe {
            _mm512_storeu_si512(target.cast(), _mm512_add_epi32(_mm512_loadu_si512(target.cast()), sum))
        }
    }
}
