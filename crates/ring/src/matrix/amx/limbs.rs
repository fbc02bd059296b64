//! Cutting words into limbs, and joining sums of products of limbs.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{ColumnTile, DEPTH, PAIR_BYTES, SUM_BYTES, TILE, TILE_BYTES};
use crate::element::Element;
use crate::matrix::panels::Panels;
use crate::matrix::vector::Part;

/// Limb `i` of a block of left rows is a tile: the bytes of 64 words in each of 16 rows. Tiles
/// follow one another by pairs of tiles of rows, limbs, and blocks of the inner dimension.
///
/// # Safety
/// The parts are valid for reads at all of `rows` and their inner indices, which together cover
/// `inner`; all tiles fit into the memory at `target`; the caller has the vector instructions enabled.
#[inline(always)]
pub(super) unsafe fn cut_left<E: Element, const LIMBS: usize>(
    parts: &[Part; 2],
    rows: Range<usize>,
    inner: Range<usize>,
    target: *mut u8,
) {
    let blocks = inner.len().div_ceil(DEPTH);
    for (index, row) in rows.enumerate() {
        let (pair, tile, line) = (index / (2 * TILE), index / TILE % 2, index % TILE);
        for block in 0..blocks {
            let start = inner.start + block * DEPTH;
            let end = inner.end.min(start + DEPTH);
            let mut gathered = [E::ZERO; DEPTH];
            // SAFETY: `start .. end` lies within `inner`; a part that holds all of a full block of adjacent
            // words is read where it lies.
            unsafe {
                let mut in_place = None;
                let mut first = 0;
                for part in parts {
                    let range = start.clamp(first, first + part.inner)..end.clamp(first, first + part.inner);
                    let source = part.at(row, range.start - first);
                    if range.len() == DEPTH && part.stride == E::BYTES as isize {
                        in_place = Some(source);
                    } else {
                        for (offset, k) in range.enumerate() {
                            gathered[k - start] =
                                source.offset(offset as isize * part.stride).cast::<E>().read();
                        }
                    }
                    first += part.inner;
                }
                let words = in_place.unwrap_or_else(|| gathered.as_ptr().cast());
                let quarter = DEPTH / 4 * LIMBS;
                let limbs = cut::<LIMBS>([0, 1, 2, 3].map(|index| words.add(index * quarter)));
                for (limb, &bytes) in limbs[..LIMBS].iter().enumerate() {
                    let offset = ((pair * LIMBS + limb) * blocks + block) * PAIR_BYTES + tile * TILE_BYTES;
                    _mm512_storeu_si512(target.add(offset + line * DEPTH).cast(), bytes);
                }
            }
        }
    }
}

/// Limb `i` of a block of sixteen columns is a tile with a row for each four inner indices: the
/// four bytes of the first column, those of the second, and so on. Tiles follow one another by limbs,
/// the greatest first, and blocks, each a pair with the tile of the next sixteen columns.
///
/// # Safety
/// The tile lies within the right operand and `inner` within its rows; all tiles fit into the memory at
/// `target`; the caller has the vector instructions enabled.
#[inline(always)]
pub(super) unsafe fn cut_right<E: Element, const LIMBS: usize>(
    right: &Panels<E>,
    tile: ColumnTile,
    inner: Range<usize>,
    target: *mut u8,
) {
    let elements = right.elements();
    let blocks = inner.len().div_ceil(DEPTH);
    // SAFETY: vector instructions are enabled; stores go to row `group % 16` of tiles within `target`.
    unsafe {
        let by_column = by_column();
        for (group, k) in inner.clone().step_by(4).enumerate() {
            let rows = (inner.end - k).min(4);
            // Indices beyond the inner dimension meet left limbs of zero.
            let mut gathered = [E::ZERO; 4 * TILE];
            let quarters = if rows == 4 && tile.readable == TILE {
                let start = tile.start + k * tile.stride;
                // The indices are checked once, at the last of the words that are read.
                let words = elements[start..start + 3 * tile.stride + TILE].as_ptr().cast::<u8>();
                [0, 1, 2, 3].map(|row| words.add(row * tile.stride * LIMBS))
            } else {
                for row in 0..rows {
                    let start = tile.start + (k + row) * tile.stride;
                    let words = &elements[start..start + tile.readable];
                    gathered[row * TILE..][..tile.readable].copy_from_slice(words);
                }
                let words = gathered.as_ptr().cast::<u8>();
                [0, 1, 2, 3].map(|row| words.add(row * TILE * LIMBS))
            };
            let limbs = cut::<LIMBS>(quarters);
            for (limb, &bytes) in limbs[..LIMBS].iter().enumerate() {
                let offset = ((LIMBS - 1 - limb) * blocks + group / TILE) * PAIR_BYTES + group % TILE * DEPTH;
                let bytes = _mm512_permutexvar_epi8(by_column, bytes);
                _mm512_storeu_si512(target.add(offset).cast(), bytes);
            }
        }
    }
}

/// Where the bytes of four rows of sixteen come from, when they are put in order of columns.
#[inline(always)]
unsafe fn by_column() -> __m512i {
    const INDICES: [u8; 64] = indices(4, 16);
    unsafe { _mm512_loadu_si512(INDICES.as_ptr().cast()) }
}

/// The transposition of a matrix of bytes: byte `c * rows + r` of the result is byte `r * columns + c`.
const fn indices(rows: usize, columns: usize) -> [u8; 64] {
    let mut indices = [0; 64];
    let mut i = 0;
    while i < 64 {
        indices[i] = (i % rows * columns + i / rows) as u8;
        i += 1;
    }
    indices
}

/// The limbs of 64 words, of which each pointer has sixteen: byte `w` of vector `i` is limb `i` of word
/// `w`.
///
/// # Safety
/// `16 * LIMBS` bytes can be read at each pointer; the caller has the vector instructions enabled.
#[inline(always)]
unsafe fn cut<const LIMBS: usize>(quarters: [*const u8; 4]) -> [__m512i; 8] {
    // SAFETY: see the function.
    unsafe {
        let zero = _mm512_setzero_si512();
        let mut limbs = [zero; 8];
        if LIMBS == 8 {
            const INDICES: [u8; 64] = indices(8, 8);
            let by_limb = _mm512_loadu_si512(INDICES.as_ptr().cast());
            // In a vector of eight words, limb i becomes quadword i.
            let mut words = [zero; 8];
            for (i, vector) in words.iter_mut().enumerate() {
                let loaded = _mm512_loadu_si512(quarters[i / 2].add(i % 2 * 64).cast());
                *vector = _mm512_permutexvar_epi8(by_limb, loaded);
            }
            // Then the eight by eight quadwords are transposed: those of even limbs, those of odd ones.
            let (mut even, mut odd) = ([zero; 4], [zero; 4]);
            for i in 0..4 {
                even[i] = _mm512_unpacklo_epi64(words[2 * i], words[2 * i + 1]);
                odd[i] = _mm512_unpackhi_epi64(words[2 * i], words[2 * i + 1]);
            }
            let (even, odd) = (transpose(even), transpose(odd));
            for i in 0..4 {
                limbs[2 * i] = even[i];
                limbs[2 * i + 1] = odd[i];
            }
        } else {
            const INDICES: [u8; 64] = indices(16, 4);
            let by_limb = _mm512_loadu_si512(INDICES.as_ptr().cast());
            // In a vector of sixteen words, limb i becomes the 128-bit lane i.
            let mut words = [zero; 4];
            for (vector, quarter) in words.iter_mut().zip(quarters) {
                *vector = _mm512_permutexvar_epi8(by_limb, _mm512_loadu_si512(quarter.cast()));
            }
            limbs[..4].copy_from_slice(&transpose(words));
        }
        limbs
    }
}

/// Transposes four by four lanes of 128 bits.
#[inline(always)]
unsafe fn transpose(lanes: [__m512i; 4]) -> [__m512i; 4] {
    let [a, b, c, d] = lanes;
    // SAFETY: the caller has the vector instructions enabled.
    unsafe {
        let (low, high) = (_mm512_shuffle_i64x2::<0x44>(a, b), _mm512_shuffle_i64x2::<0xee>(a, b));
        let (low2, high2) = (_mm512_shuffle_i64x2::<0x44>(c, d), _mm512_shuffle_i64x2::<0xee>(c, d));
        [
            _mm512_shuffle_i64x2::<0x88>(low, low2),
            _mm512_shuffle_i64x2::<0xdd>(low, low2),
            _mm512_shuffle_i64x2::<0x88>(high, high2),
            _mm512_shuffle_i64x2::<0xdd>(high, high2),
        ]
    }
}

/// The sum over s of 2^(8s) times the sum for s, for sixteen columns of a row.
///
/// # Safety
/// A row of 32-bit sums can be read at `sums` and at every `SUM_BYTES` after it, `LIMBS` in all; the
/// caller has the vector instructions enabled.
#[inline(always)]
pub(super) unsafe fn join<E: Element, const LIMBS: usize>(sums: *const u8) -> [E; TILE] {
    let mut line = [E::ZERO; TILE];
    // SAFETY: see the function; sixteen elements are 64 bytes for each four limbs.
    unsafe {
        let zero = _mm512_setzero_si512();
        let mut total = [zero; 2];
        for s in 0..LIMBS {
            let shift = _mm_cvtsi32_si128(8 * s as i32);
            let row = sums.add(s * SUM_BYTES);
            if LIMBS == 8 {
                for (half, total) in total.iter_mut().enumerate() {
                    let words = _mm512_cvtepu32_epi64(_mm256_loadu_si256(row.add(32 * half).cast()));
                    *total = _mm512_add_epi64(*total, _mm512_sll_epi64(words, shift));
                }
            } else {
                let words = _mm512_sll_epi32(_mm512_loadu_si512(row.cast()), shift);
                total[0] = _mm512_add_epi32(total[0], words);
            }
        }
        let target = line.as_mut_ptr().cast::<u8>();
        _mm512_storeu_si512(target.cast(), total[0]);
        if LIMBS == 8 {
            _mm512_storeu_si512(target.add(64).cast(), total[1]);
        }
    }
    line
}
