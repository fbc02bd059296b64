//! Bit-slicing: from words that each hold one number to planes that each hold one bit of many
//! numbers, and dense packing of planes for the wire.

use std::borrow::Cow;

use concilium_ring::{Element, wipe};

use crate::shares::words_of;

/// Words of a plane that are computed at once: a vector of the widest kind, or several narrower ones.
pub(crate) const LANES: usize = 8;

/// As many words side by side.
pub(crate) type Lanes = [u64; LANES];

/// Some planes of [`LANES`] words each.
pub(crate) type Planes = [Lanes; 64];

/// Swaps the blocks of a bit matrix of `ROWS` rows, a power of two, for each lane: bit `c` of row `r`
/// becomes bit `r` of row `c`, in each `ROWS` adjacent columns.
///
/// Source: recursive block swap, Warren, "Hacker's Delight", section 7-3.
#[inline(always)]
fn transpose<const ROWS: usize>(rows: &mut Planes) {
    let mut width = 32;
    let mut mask = u64::MAX >> 32;
    while width != 0 {
        if width < ROWS {
            for pair in rows[..ROWS].chunks_exact_mut(2 * width) {
                let (low, high) = pair.split_at_mut(width);
                for (low, high) in low.iter_mut().zip(high) {
                    for lane in 0..LANES {
                        let swap = ((low[lane] >> width) ^ high[lane]) & mask;
                        low[lane] ^= swap << width;
                        high[lane] ^= swap;
                    }
                }
            }
        }
        width >>= 1;
        mask ^= mask << width;
    }
}

/// Planes 0 to `planes - 1` of up to `64 * LANES` numbers, the sums modulo 2^64 of `values` and `summands`
/// (which may be empty): bit `p` of number `64 w + j` becomes bit `j` of lane `w` of plane `p`. Places past the
/// last number are zero; planes that were not asked for are arbitrary.
#[inline(always)]
pub(crate) fn slice<E: Element>(values: &[E], summands: &[E], planes: usize, sliced: &mut Planes) {
    let mut numbers = [0; 64 * LANES];
    numbers.iter_mut().zip(values).for_each(|(number, value)| *number = value.to_unsigned());
    for (number, summand) in numbers.iter_mut().zip(summands) {
        *number = number.wrapping_add(summand.to_unsigned());
    }
    if planes <= 32 {
        // Two halves of 32 numbers share the words, which saves more than half of the swaps.
        for (row, lanes) in sliced[..32].iter_mut().enumerate() {
            for (lane, word) in lanes.iter_mut().enumerate() {
                let (low, high) = (numbers[64 * lane + row], numbers[64 * lane + 32 + row]);
                *word = (low & (u64::MAX >> 32)) | (high << 32);
            }
        }
        transpose::<32>(sliced);
    } else {
        for (row, lanes) in sliced.iter_mut().enumerate() {
            for (lane, word) in lanes.iter_mut().enumerate() {
                *word = numbers[64 * lane + row];
            }
        }
        transpose::<64>(sliced);
    }
}

/// Reads up to [`LANES`] words; zeros past the end.
#[inline(always)]
pub(crate) fn load(words: &[u64]) -> Lanes {
    if let Some(lanes) = words.first_chunk() {
        return *lanes;
    }
    let mut lanes = [0; LANES];
    lanes.iter_mut().zip(words).for_each(|(lane, &word)| *lane = word);
    lanes
}

/// Exclusive-ors up to [`LANES`] words into as many as there are.
#[inline(always)]
pub(crate) fn xor_into(words: &mut [u64], lanes: &Lanes) {
    if let Some(words) = words.first_chunk_mut::<LANES>() {
        words.iter_mut().zip(lanes).for_each(|(word, lane)| *word ^= lane);
    } else {
        words.iter_mut().zip(lanes).for_each(|(word, lane)| *word ^= lane);
    }
}

/// Packs planes without the gaps at their ends, for the wire: `planes * bits` bits, first plane
/// first. When `bits` is a multiple of 64 this is the input.
pub(crate) fn pack<'a>(words: impl Into<Cow<'a, [u64]>>, planes: usize, bits: usize) -> Cow<'a, [u64]> {
    let words = words.into();
    if bits.is_multiple_of(64) || planes == 1 {
        return words;
    }
    let per_plane = words_of(bits);
    let mut packed = vec![0; words_of(planes * bits)];
    for (plane, source) in words.chunks_exact(per_plane).take(planes).enumerate() {
        copy_bits(source, 0, &mut packed, plane * bits, bits);
    }
    Cow::Owned(packed)
}

/// The inverse of [`pack`]. What was packed is overwritten or returned.
pub(crate) fn unpack(mut words: Vec<u64>, planes: usize, bits: usize) -> Vec<u64> {
    if bits.is_multiple_of(64) || planes == 1 {
        return words;
    }
    let per_plane = words_of(bits);
    let mut planar = vec![0; planes * per_plane];
    for (plane, target) in planar.chunks_exact_mut(per_plane).enumerate() {
        copy_bits(&words, plane * bits, target, 0, bits);
    }
    wipe(&mut words);
    planar
}

/// Number of words that [`pack`] gives.
pub(crate) fn packed_words(planes: usize, bits: usize) -> usize {
    words_of(planes * bits)
}

/// Copies `count` bits from bit `from` of `source` onto the zero bits from `to` of `target`.
pub(crate) fn copy_bits(source: &[u64], from: usize, target: &mut [u64], to: usize, count: usize) {
    let read = |from: usize, length: usize| {
        let (word, shift) = (from / 64, from % 64);
        let low = source[word] >> shift;
        let all = if shift + length > 64 { low | source[word + 1] << (64 - shift) } else { low };
        all & (u64::MAX >> (64 - length))
    };
    if count == 0 {
        return;
    }
    // Up to the first whole word of the target, the whole ones, and the rest.
    let head = if to.is_multiple_of(64) { 0 } else { (64 - to % 64).min(count) };
    if head > 0 {
        target[to / 64] |= read(from, head) << (to % 64);
    }
    let (whole, rest) = ((count - head) / 64, (count - head) % 64);
    let (from, to) = (from + head, (to + head) / 64);
    let (first, shift) = (from / 64, from % 64);
    let words = &mut target[to..to + whole];
    if shift == 0 {
        words.copy_from_slice(&source[first..first + whole]);
    } else if whole > 0 {
        let next = &source[first + 1..=first + whole];
        for ((word, &low), &high) in words.iter_mut().zip(&source[first..]).zip(next) {
            *word = low >> shift | high << (64 - shift);
        }
    }
    if rest > 0 {
        target[to + whole] |= read(from + 64 * whole, rest);
    }
}

#[cfg(test)]
mod tests {
    use std::num::Wrapping;

    use concilium_ring::Z64;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn slices_hold_the_bits(
            values in prop::collection::vec(any::<u64>(), 0..600),
            summand in any::<Option<u64>>(),
            planes in 1usize..=64,
        ) {
            let values: Vec<Z64> = values.into_iter().take(64 * LANES).map(Wrapping).collect();
            let summands = vec![Wrapping(summand.unwrap_or(0)); summand.map_or(0, |_| values.len())];
            let mut sliced = [[0; LANES]; 64];
            slice(&values, &summands, planes, &mut sliced);
            for (plane, lanes) in sliced.iter().enumerate().take(planes) {
                for place in 0..64 * LANES {
                    let value = values.get(place).map_or(0, |v| v.0.wrapping_add(summand.unwrap_or(0)));
                    let bit = lanes[place / 64] >> (place % 64) & 1;
                    prop_assert_eq!(bit, value >> plane & 1, "plane {} value {}", plane, place);
                }
            }
        }

        #[test]
        fn bits_are_copied_from_anywhere_to_anywhere(
            source in prop::collection::vec(any::<u64>(), 1..9),
            from in 0usize..500,
            to in 0usize..200,
            count in 0usize..500,
        ) {
            let count = count.min((64 * source.len()).saturating_sub(from));
            let bit = |words: &[u64], i: usize| words[i / 64] >> (i % 64) & 1;
            let mut target = vec![0; words_of(to + count) + 1];
            copy_bits(&source, from, &mut target, to, count);
            for i in 0..64 * target.len() {
                let expected = if (to..to + count).contains(&i) { bit(&source, from + i - to) } else { 0 };
                prop_assert_eq!(bit(&target, i), expected, "bit {}", i);
            }
        }

        #[test]
        fn packing_is_reversible_and_dense(planes in 1usize..9, bits in 1usize..200, seed: u64) {
            let word = |i: usize| seed.rotate_left(i as u32).wrapping_mul(2 * i as u64 + 1);
            let mut words: Vec<u64> = (0..planes * words_of(bits)).map(word).collect();
            if !bits.is_multiple_of(64) {
                for plane in words.chunks_exact_mut(words_of(bits)) {
                    *plane.last_mut().unwrap() &= u64::MAX >> (64 - bits % 64);
                }
            }
            let packed = pack(&words, planes, bits).into_owned();
            prop_assert_eq!(packed.len(), packed_words(planes, bits));
            prop_assert_eq!(unpack(packed, planes, bits), words);
        }
    }
}
