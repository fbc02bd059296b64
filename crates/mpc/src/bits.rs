//! Bit-slicing: from words that each hold one number to planes that each hold one bit of many
//! numbers, and dense packing of planes for the wire.

use crate::shares::words_of;

/// Transposes a 64 x 64 bit matrix in place: bit `c` of word `r` becomes bit `r` of word `c`.
///
/// Source: recursive block swap, Warren, "Hacker's Delight", section 7-3.
fn transpose_block(block: &mut [u64; 64]) {
    let mut width = 32;
    let mut mask = u64::MAX >> 32;
    while width != 0 {
        let mut row = 0;
        while row < 64 {
            let swap = ((block[row] >> width) ^ block[row + width]) & mask;
            block[row] ^= swap << width;
            block[row + width] ^= swap;
            row = (row + width + 1) & !width;
        }
        width >>= 1;
        mask ^= mask << width;
    }
}

/// The lowest `planes <= 64` bits of every value as planes: word `w` of plane `p` holds bit `p` of
/// values `64 w ..`, value `64 w + j` at bit `j`. Places past the last value are zero.
pub(crate) fn slice(values: impl ExactSizeIterator<Item = u64>, planes: usize) -> Vec<u64> {
    let words = words_of(values.len());
    let mut sliced = vec![0; planes * words];
    let mut values = values.fuse();
    for word in 0..words {
        let mut block = [0; 64];
        for (place, value) in block.iter_mut().zip(&mut values) {
            *place = value;
        }
        transpose_block(&mut block);
        for (plane, &bits) in block.iter().enumerate().take(planes) {
            sliced[plane * words + word] = bits;
        }
    }
    sliced
}

/// Packs planes without the gaps at their ends, for the wire: `planes * bits` bits, first plane
/// first. When `bits` is a multiple of 64 this is the input.
pub(crate) fn pack(words: Vec<u64>, planes: usize, bits: usize) -> Vec<u64> {
    if bits.is_multiple_of(64) || planes == 1 {
        return words;
    }
    let per_plane = words_of(bits);
    let mut packed = vec![0; words_of(planes * bits)];
    for (plane, source) in words.chunks_exact(per_plane).take(planes).enumerate() {
        copy_bits(source, 0, &mut packed, plane * bits, bits);
    }
    packed
}

/// The inverse of [`pack`].
pub(crate) fn unpack(words: Vec<u64>, planes: usize, bits: usize) -> Vec<u64> {
    if bits.is_multiple_of(64) || planes == 1 {
        return words;
    }
    let per_plane = words_of(bits);
    let mut planar = vec![0; planes * per_plane];
    for (plane, target) in planar.chunks_exact_mut(per_plane).enumerate() {
        copy_bits(&words, plane * bits, target, 0, bits);
    }
    planar
}

/// Number of words that [`pack`] gives.
pub(crate) fn packed_words(planes: usize, bits: usize) -> usize {
    words_of(planes * bits)
}

/// Copies `count` bits from bit `from` of `source` onto the zero bits from `to` of `target`.
pub(crate) fn copy_bits(source: &[u64], from: usize, target: &mut [u64], to: usize, count: usize) {
    let mut done = 0;
    while done < count {
        let (read, write) = (from + done, to + done);
        let length = (64 - read % 64).min(64 - write % 64).min(count - done);
        let chunk = (source[read / 64] >> (read % 64)) & (u64::MAX >> (64 - length));
        target[write / 64] |= chunk << (write % 64);
        done += length;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn slices_hold_the_bits(values in prop::collection::vec(any::<u64>(), 0..300), planes in 1usize..=64) {
            let sliced = slice(values.iter().copied(), planes);
            let words = words_of(values.len());
            prop_assert_eq!(sliced.len(), planes * words);
            for plane in 0..planes {
                for (i, value) in values.iter().enumerate() {
                    let bit = sliced[plane * words + i / 64] >> (i % 64) & 1;
                    prop_assert_eq!(bit, value >> plane & 1, "plane {} value {}", plane, i);
                }
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
            let packed = pack(words.clone(), planes, bits);
            prop_assert_eq!(packed.len(), packed_words(planes, bits));
            prop_assert_eq!(unpack(packed, planes, bits), words);
        }
    }
}
