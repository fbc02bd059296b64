//! Noise shares: what each server adds so that any two servers' noise is full strength.
//!
//! A corrupted server knows its own share, so privacy must come from the other two. With the
//! mechanism's guaranteed strength written as sigma or `b`, every server draws, per bin and
//! independently,
//!
//! * discrete Gaussian: `N_Z(0, sigma^2 / 2)`. Two shares add up to `N_Z(0, sigma^2)` but for a
//!   distance that [`Mechanism::cost`](crate::Mechanism::cost) pays for;
//! * discrete Laplace: `NB(1/2, q) - NB(1/2, q)` with `q = exp(-1 / b)` and `NB(r, q)` the negative
//!   binomial with `P(k) = C(k + r - 1, k) q^k (1 - q)^r`. Two shares add up to a difference of two
//!   geometric variables, which is the discrete Laplace of scale `b` exactly.
//!
//! Three shares add up to 1.5 times the variance of two; the third only adds to what is released,
//! so it costs accuracy and no privacy.
//!
//! **Timing.** The samplers reject, and how long they take depends on what they draw. Never draw
//! while a request waits: take from a [`NoisePool`].

mod draw;
mod opendp;
mod pool;

use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop};

pub(crate) use self::draw::{Primitives, ShareSampler, half_negative_binomial};
pub use self::{opendp::OpenDpNoise, pool::NoisePool};
use crate::mechanism::{MAX_BINS, MechanismError};

/// Noise could not be drawn. Nothing may be released then.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NoiseError {
    /// The mechanism or the number of bins is not supported.
    #[error(transparent)]
    Mechanism(#[from] MechanismError),
    /// The source of randomness failed.
    #[error("the source of randomness failed: {detail}; no answer was released, try again")]
    Randomness {
        /// What the source said.
        detail: String,
    },
    /// A drawn value is beyond 64 bits, which happens less than once in the age of the universe
    /// unless the source of randomness is broken.
    #[error("a noise value is beyond 64 bits; the source of randomness is broken")]
    OutOfRange,
    /// The system refused a thread for a pool.
    #[error("the thread that draws noise ahead could not start: {detail}; free some threads")]
    Thread {
        /// What the system said.
        detail: String,
    },
    /// The thread of a pool ended unexpectedly.
    #[error("the thread that draws noise ahead has ended; restart the server")]
    PoolStopped,
}

/// One server's noise for one released row, one value per bin, in votes.
///
/// Secret: whoever learns it can subtract it. Neither `Debug` nor `Clone`, and wiped when dropped.
/// A share is consumed by one release and never used for another.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct NoiseShare(Vec<i64>);

impl NoiseShare {
    /// A share of known values, for sources other than this crate's.
    pub fn new(values: Vec<i64>) -> Self {
        Self(values)
    }

    /// How many bins the row has.
    pub fn bins(&self) -> usize {
        self.0.len()
    }

    /// The noise per bin, in votes.
    pub fn values(&self) -> &[i64] {
        &self.0
    }

    /// The noise per bin as elements of the integers modulo 2^64.
    pub fn words(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        self.0.iter().map(|value| value.cast_unsigned())
    }
}

/// Something that draws noise shares.
pub trait NoiseSource: Send {
    /// Draws fresh, independent noise for one row of `bins` bins.
    ///
    /// # Errors
    /// [`NoiseError`] when randomness fails or `bins` is not between 1 and
    /// [`MAX_BINS`].
    fn draw(&mut self, bins: usize) -> Result<NoiseShare, NoiseError>;
}

impl<S: NoiseSource + ?Sized> NoiseSource for Box<S> {
    fn draw(&mut self, bins: usize) -> Result<NoiseShare, NoiseError> {
        (**self).draw(bins)
    }
}

fn check_bins(bins: usize) -> Result<(), MechanismError> {
    if (1..=MAX_BINS).contains(&bins) { Ok(()) } else { Err(MechanismError::Bins { bins }) }
}
