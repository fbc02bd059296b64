//! Shared by the integration tests; each uses a part of it.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "every test program compiles its own copy and uses a part"
)]

pub mod disk;
pub mod ledger;
pub mod random;
pub mod statistics;

pub use random::seeded_rng;

/// Odds below which a statistical test fails: about one false alarm in 10^9 runs of a test.
pub const SIGNIFICANCE: f64 = 1e-9;
