//! The production source: samplers and randomness of the `opendp` library.

use std::num::NonZeroU64;

use dashu::{integer::IBig, rational::RBig};
use opendp::traits::samplers::{
    sample_discrete_gaussian, sample_discrete_laplace, sample_uniform_uint_below,
};

use super::{NoiseError, NoiseShare, NoiseSource, Primitives, ShareSampler};
use crate::mechanism::{Mechanism, MechanismError};

/// Draws shares with the samplers of `opendp`, which are exact, carry proofs and cannot be seeded.
///
/// Randomness comes from a ChaCha generator per thread, seeded and reseeded by the operating
/// system. With the feature `openssl-randomness` it comes from OpenSSL's `RAND_priv_bytes`, which
/// some operators are required to use; it is not the default because it builds OpenSSL from source.
pub struct OpenDpNoise {
    sampler: ShareSampler,
}

impl OpenDpNoise {
    /// A source of one server's shares for `mechanism`.
    ///
    /// # Errors
    /// [`MechanismError`] when policy does not allow the mechanism.
    pub fn new(mechanism: Mechanism) -> Result<Self, MechanismError> {
        Ok(Self { sampler: ShareSampler::new(mechanism)? })
    }
}

impl NoiseSource for OpenDpNoise {
    fn draw(&mut self, bins: usize) -> Result<NoiseShare, NoiseError> {
        self.sampler.draw(&mut OpenDp, bins)
    }
}

struct OpenDp;

impl Primitives for OpenDp {
    fn discrete_laplace(&mut self, scale: &RBig) -> Result<IBig, NoiseError> {
        sample_discrete_laplace(scale.clone()).map_err(randomness)
    }

    fn discrete_gaussian(&mut self, scale: &RBig) -> Result<IBig, NoiseError> {
        sample_discrete_gaussian(scale.clone()).map_err(randomness)
    }

    fn below(&mut self, bound: NonZeroU64) -> Result<u64, NoiseError> {
        sample_uniform_uint_below(bound.get()).map_err(randomness)
    }
}

/// The samplers fail for no other reason than their source of randomness.
fn randomness(error: opendp::error::Error) -> NoiseError {
    NoiseError::Randomness { detail: error.to_string() }
}
