//! Randomness of tests, which a seed repeats.

use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

/// A generator seeded by `CONCILIUM_TEST_SEED`, or by a constant. The seed is printed, and shown
/// when the test fails.
pub fn seeded_rng(label: &str) -> ChaCha20Rng {
    let seed = match std::env::var("CONCILIUM_TEST_SEED") {
        Ok(text) => text.parse().expect("CONCILIUM_TEST_SEED is an unsigned number"),
        Err(_) => 20_261_121,
    };
    eprintln!("{label}: CONCILIUM_TEST_SEED={seed}");
    ChaCha20Rng::seed_from_u64(seed)
}
