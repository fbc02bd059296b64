//! Shared by the integration tests; each uses a part of it.
#![allow(dead_code, unreachable_pub, reason = "every test program compiles its own copy and uses a part")]

pub mod ledger;
pub mod statistics;

use std::path::PathBuf;

use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

/// Odds below which a statistical test fails: about one false alarm in 10^9 runs of a test.
pub const SIGNIFICANCE: f64 = 1e-9;

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

/// A file of the shared folder beside the repository; `None`, with a printed line, if it is absent.
pub fn shared_file(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(name);
    if path.is_file() {
        Some(path)
    } else {
        eprintln!("skipped: {name} is not in the shared folder");
        None
    }
}
