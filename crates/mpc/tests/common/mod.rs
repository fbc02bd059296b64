//! What the protocol tests share; not every test uses all of it.

#![allow(dead_code, unreachable_pub, clippy::print_stdout)]

use concilium_ring::Element;
use ndarray::Array2;

/// The seed of this run: printed, and settable to replay a failure.
pub fn seed() -> u64 {
    let seed =
        std::env::var("CONCILIUM_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_261_121);
    println!("CONCILIUM_TEST_SEED={seed}");
    seed
}

/// SplitMix64: small, seedable, and good enough to choose test inputs.
pub struct Random(pub u64);

impl Random {
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A signed integer of magnitude below 2^bits, small ones as likely as large ones.
    pub fn signed(&mut self, bits: u32) -> i64 {
        let width = self.word() % u64::from(bits) + 1;
        let magnitude = (self.word() & ((1 << width) - 1)) as i64;
        if self.word() & 1 == 1 { -magnitude } else { magnitude }
    }
}

/// A matrix of given signed integers.
pub fn matrix<E: Element>(rows: usize, columns: usize, mut value: impl FnMut() -> i64) -> Array2<E> {
    Array2::from_shape_simple_fn((rows, columns), || E::from_signed(value()))
}
