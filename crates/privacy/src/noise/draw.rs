//! How a share is made of exact samplers, whichever implementation and randomness they have.

use std::num::NonZeroU64;

use dashu::{
    base::{Signed, SquareRoot},
    integer::{IBig, UBig},
    rational::RBig,
};

use super::{NoiseError, NoiseShare, check_bins};
use crate::{
    mechanism::{Mechanism, MechanismError},
    parameter::NoiseScale,
};

/// The exact samplers that a share is made of.
///
/// Intermediate big integers are not wiped; they live on the stack and heap of the thread that
/// draws, which handles no request data.
pub(crate) trait Primitives {
    /// An integer with `P(x)` proportional to `exp(-|x| / scale)`.
    fn discrete_laplace(&mut self, scale: &RBig) -> Result<IBig, NoiseError>;
    /// An integer with `P(x)` proportional to `exp(-x^2 / (2 scale^2))`.
    fn discrete_gaussian(&mut self, scale: &RBig) -> Result<IBig, NoiseError>;
    /// A uniform integer in `0..bound`.
    fn below(&mut self, bound: NonZeroU64) -> Result<u64, NoiseError>;
}

/// Distribution of one server's noise in one bin.
pub(crate) enum ShareSampler {
    /// `N_Z(0, scale^2)`.
    Gaussian { scale: RBig },
    /// `NB(1/2, q) - NB(1/2, q)` with `q = exp(-1 / scale)`.
    Laplace { scale: RBig },
}

impl ShareSampler {
    pub(crate) fn new(mechanism: Mechanism) -> Result<Self, MechanismError> {
        mechanism.validate_on_lattice()?;
        Ok(match mechanism {
            Mechanism::DiscreteGaussian { sigma } => Self::Gaussian { scale: gaussian_share_scale(sigma) },
            Mechanism::DiscreteLaplace { scale } => {
                Self::Laplace { scale: ratio(scale.millionths(), NoiseScale::UNITS_PER_ONE) }
            }
        })
    }

    pub(crate) fn draw<P: Primitives>(
        &self,
        primitives: &mut P,
        bins: usize,
    ) -> Result<NoiseShare, NoiseError> {
        check_bins(bins)?;
        // Wrapped before the first draw, so that a failure part-way wipes what was drawn; sized in
        // advance, so that growth leaves no copy behind.
        let mut share = NoiseShare(Vec::with_capacity(bins));
        for _ in 0..bins {
            share.0.push(self.draw_bin(primitives)?);
        }
        Ok(share)
    }

    fn draw_bin<P: Primitives>(&self, primitives: &mut P) -> Result<i64, NoiseError> {
        match self {
            Self::Gaussian { scale } => {
                i64::try_from(primitives.discrete_gaussian(scale)?).map_err(|_| NoiseError::OutOfRange)
            }
            Self::Laplace { scale } => {
                let positive = half_negative_binomial(primitives, scale)?;
                let negative = half_negative_binomial(primitives, scale)?;
                Ok(positive - negative)
            }
        }
    }
}

/// One server's scale `s`, with `2 s^2 >= sigma^2`: rounded up to a multiple of 2^-16, as small
/// denominators keep the exact samplers fast.
pub(crate) fn gaussian_share_scale(sigma: NoiseScale) -> RBig {
    const FRACTION_BITS: u32 = 16;
    // s = n / 2^16 with the smallest n for which 2 (n * 10^6)^2 >= (millionths * 2^16)^2. On the
    // finest lattice the right side takes 145 bits.
    let wanted = (UBig::from(sigma.millionths()) << FRACTION_BITS as usize).sqr();
    let unit = (UBig::from(NoiseScale::UNITS_PER_ONE)).sqr() * UBig::from(2_u8);
    let mut numerator = (&wanted / &unit).sqrt();
    while numerator.sqr() * &unit < wanted {
        numerator += UBig::ONE;
    }
    RBig::from_parts(IBig::from(numerator), UBig::from(1_u64 << FRACTION_BITS))
}

/// `NB(1/2, q)` with `q = exp(-1 / scale)`, from integers alone.
///
/// A geometric variable has `P(k)` proportional to `q^k`; keeping it with probability
/// `C(2k, k) / 4^k` leaves exactly the wanted distribution. That probability is the product of
/// `1 - 1 / (2j)` over `j = 1..=k`, so it is decided by `k` independent events and a rejected draw
/// ends at the first that fails, after about `sqrt(k)` of them. The expected work is linear in the
/// scale.
pub(crate) fn half_negative_binomial<P: Primitives>(
    primitives: &mut P,
    scale: &RBig,
) -> Result<i64, NoiseError> {
    loop {
        // A discrete Laplace variable that is not negative is geometric.
        let candidate = primitives.discrete_laplace(scale)?;
        if candidate.is_negative() {
            continue;
        }
        // The top bit stays free: the difference of two such values fits.
        let candidate = i64::try_from(candidate).map_err(|_| NoiseError::OutOfRange)?;
        if keep(primitives, candidate.cast_unsigned())? {
            return Ok(candidate);
        }
    }
}

fn keep<P: Primitives>(primitives: &mut P, candidate: u64) -> Result<bool, NoiseError> {
    for j in 1..=candidate {
        let bound = j.checked_mul(2).and_then(NonZeroU64::new).ok_or(NoiseError::OutOfRange)?;
        if primitives.below(bound)? == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

pub(crate) fn ratio(numerator: u64, denominator: u64) -> RBig {
    RBig::from_parts(IBig::from(numerator), UBig::from(denominator))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fixed answers, until the randomness runs out.
    struct Failing {
        answers: u32,
    }

    impl Failing {
        fn answer<T>(&mut self, value: T) -> Result<T, NoiseError> {
            self.answers = self
                .answers
                .checked_sub(1)
                .ok_or_else(|| NoiseError::Randomness { detail: "injected".to_owned() })?;
            Ok(value)
        }
    }

    impl Primitives for Failing {
        fn discrete_laplace(&mut self, _scale: &RBig) -> Result<IBig, NoiseError> {
            self.answer(IBig::from(3))
        }

        fn discrete_gaussian(&mut self, _scale: &RBig) -> Result<IBig, NoiseError> {
            self.answer(IBig::from(-4))
        }

        fn below(&mut self, bound: NonZeroU64) -> Result<u64, NoiseError> {
            self.answer(bound.get() - 1)
        }
    }

    /// A share is whole or absent: never a row with bins that lack noise.
    #[test]
    fn a_failure_at_any_point_leaves_no_share() {
        let width = NoiseScale::from_millionths(5_000_000);
        for (mechanism, answers_of_a_row, value) in [
            (Mechanism::DiscreteGaussian { sigma: width }, 4, -4),
            // Two values per bin, each a candidate of 3 and as many events that keep it.
            (Mechanism::DiscreteLaplace { scale: width }, 4 * 2 * 4, 0),
        ] {
            let sampler = ShareSampler::new(mechanism).expect("allowed");
            for answers in 0..answers_of_a_row {
                let drawn = sampler.draw(&mut Failing { answers }, 4);
                assert!(matches!(drawn.err(), Some(NoiseError::Randomness { .. })), "{answers} answers");
            }
            let share = sampler.draw(&mut Failing { answers: answers_of_a_row }, 4).expect("noise");
            assert_eq!(share.values(), [value; 4]);
        }
    }

    /// Values beyond 64 bits are an error and never wrapped.
    #[test]
    fn values_beyond_64_bits_are_refused() {
        struct Huge;
        impl Primitives for Huge {
            fn discrete_laplace(&mut self, _scale: &RBig) -> Result<IBig, NoiseError> {
                Ok(IBig::from(1_u128 << 63))
            }
            fn discrete_gaussian(&mut self, _scale: &RBig) -> Result<IBig, NoiseError> {
                Ok(-IBig::from((1_u128 << 63) + 1))
            }
            fn below(&mut self, _bound: NonZeroU64) -> Result<u64, NoiseError> {
                Ok(1)
            }
        }
        let width = NoiseScale::from_millionths(5_000_000);
        for mechanism in
            [Mechanism::DiscreteGaussian { sigma: width }, Mechanism::DiscreteLaplace { scale: width }]
        {
            let sampler = ShareSampler::new(mechanism).expect("allowed");
            assert_eq!(sampler.draw(&mut Huge, 1).err(), Some(NoiseError::OutOfRange));
        }
    }

    #[test]
    fn share_scale_is_rounded_up_by_less_than_one_step() {
        for millionths in [
            2_000_000,
            2_000_001,
            2_828_427,
            5_000_000,
            20_000_000,
            123_456_789,
            1_048_576_000_000,
            1_048_576_000_000 << 16,
        ] {
            let sigma = NoiseScale::from_millionths(millionths);
            let scale = gaussian_share_scale(sigma);
            let twice_squared = |scale: RBig| scale.clone() * scale * RBig::from(2);
            let wanted = ratio(millionths, NoiseScale::UNITS_PER_ONE);
            let wanted = wanted.clone() * wanted;
            assert!(twice_squared(scale.clone()) >= wanted, "sigma {sigma}");
            let step = ratio(1, 1 << 16);
            assert!(twice_squared(scale - step) < wanted, "sigma {sigma}");
        }
    }
}
