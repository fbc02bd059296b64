//! In which ring a task computes, and with how many fractional bits.

use std::{fmt, ops::RangeInclusive};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    limits,
    program::{Messages, Operation},
};

/// The ring of integers modulo 2^k in which the networks of a task are evaluated.
///
/// In the ring of 32 bits weights, values and messages take half the bytes and memory, and products a third
/// of the time. There is no headroom in it, and none is needed: see
/// [`limits`] for what is proven instead, and [`check_ring`] for what it cannot evaluate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub enum Ring {
    /// Modulo 2^64.
    #[default]
    Bits64,
    /// Modulo 2^32.
    Bits32,
}

/// A width that no ring has.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a ring of {bits} bits is not supported; choose 64, or 32 for networks that fit it")]
pub struct RingError {
    /// The width given.
    pub bits: u32,
}

impl TryFrom<u32> for Ring {
    type Error = RingError;

    fn try_from(bits: u32) -> Result<Self, RingError> {
        [Self::Bits64, Self::Bits32].into_iter().find(|ring| ring.bits() == bits).ok_or(RingError { bits })
    }
}

impl From<Ring> for u32 {
    fn from(ring: Ring) -> Self {
        ring.bits()
    }
}

impl fmt::Display for Ring {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.bits())
    }
}

impl Ring {
    /// The width k in bits.
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::Bits64 => 64,
            Self::Bits32 => 32,
        }
    }

    /// Bytes of an element in memory, on the wire and at rest.
    #[must_use]
    pub const fn element_bytes(self) -> usize {
        self.bits() as usize / 8
    }

    /// The fractional bits that a task in this ring may have.
    #[must_use]
    pub const fn fractional_bits(self) -> RangeInclusive<u32> {
        match self {
            Self::Bits64 => limits::MINIMUM_FRACTIONAL_BITS..=limits::MAXIMUM_FRACTIONAL_BITS,
            Self::Bits32 => limits::MINIMUM_FRACTIONAL_BITS_32..=limits::MAXIMUM_FRACTIONAL_BITS_32,
        }
    }

    /// Fewest bits of the ring that must be free above the range of a number before it is rescaled.
    #[must_use]
    pub const fn minimum_headroom_bits(self) -> u32 {
        match self {
            Self::Bits64 => limits::MINIMUM_HEADROOM_BITS,
            Self::Bits32 => limits::MINIMUM_HEADROOM_BITS_32,
        }
    }

    /// Largest `l` with |z| < 2^l for a number z before it is rescaled.
    #[must_use]
    pub const fn maximum_bound_bits(self) -> u32 {
        self.bits() - 1 - self.minimum_headroom_bits()
    }

    /// Whether this is the ring of 64 bits, which descriptions leave out.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A ring and a number of fractional bits: what all networks and inputs of a task have alike.
///
/// A number of fractional bits alone means the ring of 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Precision {
    /// The ring.
    pub ring: Ring,
    /// Fractional bits f of inputs, weights and activations.
    pub fractional_bits: u32,
}

impl From<u32> for Precision {
    fn from(fractional_bits: u32) -> Self {
        Self { ring: Ring::default(), fractional_bits }
    }
}

impl Precision {
    /// Bits of a rescaled number that are right whatever the masks are: its number is known modulo 2 to this.
    /// In the ring of 64 bits those are all of them, by the headroom.
    #[must_use]
    pub const fn known_bits(self) -> u32 {
        match self.ring {
            Ring::Bits64 => 64,
            Ring::Bits32 => 32 - self.fractional_bits,
        }
    }

    /// Widest comparison window.
    #[must_use]
    pub const fn maximum_width(self) -> u32 {
        match self.ring {
            Ring::Bits64 => limits::MAXIMUM_WIDTH,
            Ring::Bits32 => self.known_bits(),
        }
    }
}

/// Why a step cannot be evaluated in the ring of 32 bits.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RingRefusal {
    /// A smooth function by straight pieces.
    #[error("it is {operation}, a smooth function, whose pieces take more bits than the ring has")]
    Function {
        /// The operation.
        operation: &'static str,
    },
    /// A product takes what a product has given, without a comparison in between.
    #[error(
        "it is {operation} and multiplies what step {product} has rescaled, of which the ring keeps the lower \
         bits only until a comparison (such as ReLU) follows"
    )]
    Product {
        /// The operation.
        operation: &'static str,
        /// The product before it.
        product: usize,
    },
}

/// Whether the ring can evaluate the steps, which are a program; gives the first step that it cannot.
///
/// In the ring of 32 bits the result of a rescaling, and what sums make of it, is right modulo
/// 2^(32 - f) only. That is enough for a comparison, whose selection gives all bits back, but a product
/// would carry the wrong ones into the right. The larger of two numbers, y + max(x - y, 0), has as many right
/// bits as y.
///
/// # Errors
/// The index of the step, and [`RingRefusal`].
pub fn check_ring<'a>(
    ring: Ring,
    steps: impl Iterator<Item = (&'a [usize], &'a Operation)>,
) -> Result<(), (usize, RingRefusal)> {
    if ring == Ring::Bits64 {
        return Ok(());
    }
    // For each value, the product whose rescaling has left its lower bits only.
    let mut partial: Vec<Option<usize>> = vec![None];
    for (index, (inputs, operation)) in steps.enumerate() {
        let arriving = inputs.iter().find_map(|&value| partial[value]);
        let name = operation.name();
        let left = match operation.messages() {
            Messages::None => arriving,
            Messages::Rescaling => match arriving {
                Some(product) => return Err((index, RingRefusal::Product { operation: name, product })),
                None => Some(index),
            },
            Messages::Comparison if *operation == Operation::Maximum => partial[inputs[1]],
            Messages::Comparison => None,
            Messages::ComparisonAndRescaling => {
                return Err((index, RingRefusal::Function { operation: name }));
            }
        };
        partial.push(left);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Function;

    fn check(steps: &[(&[usize], Operation)]) -> Result<(), (usize, RingRefusal)> {
        let all = |ring| check_ring(ring, steps.iter().map(|(inputs, operation)| (*inputs, operation)));
        assert_eq!(all(Ring::Bits64), Ok(()));
        all(Ring::Bits32)
    }

    fn dense() -> Operation {
        Operation::Dense { inputs: 1, outputs: 1 }
    }

    fn sum() -> Operation {
        Operation::Combine { coefficients: vec![1, 1] }
    }

    #[test]
    fn products_take_what_was_compared() {
        let residual: [(&[usize], Operation); 6] = [
            (&[0], dense()),
            (&[1, 0], sum()),
            (&[2], Operation::Relu),
            (&[3], dense()),
            (&[3, 4], Operation::Maximum),
            (&[5, 4], Operation::Maximum),
        ];
        assert_eq!(check(&residual), Ok(()));
        let twice: [(&[usize], Operation); 3] = [(&[0], dense()), (&[0, 1], sum()), (&[2], dense())];
        let refusal = check(&twice).expect_err("a product of a product");
        assert_eq!(refusal, (2, RingRefusal::Product { operation: "dense", product: 0 }));
        let first: [(&[usize], Operation); 3] =
            [(&[0], dense()), (&[1, 0], Operation::Maximum), (&[2], dense())];
        assert_eq!(check(&first), Ok(()), "the second number is whole");
        let second: [(&[usize], Operation); 3] =
            [(&[0], dense()), (&[0, 1], Operation::Maximum), (&[2, 0], Operation::Multiply)];
        let refusal = check(&second).expect_err("the second number is not whole");
        assert_eq!(refusal, (2, RingRefusal::Product { operation: "multiply", product: 0 }));
        let smooth: [(&[usize], Operation); 1] = [(&[0], Operation::Function(Function::Tanh))];
        assert_eq!(check(&smooth), Err((0, RingRefusal::Function { operation: "tanh" })));
    }

    #[test]
    fn widths_are_numbers() {
        assert_eq!(serde_json::to_string(&Ring::Bits32).unwrap(), "32");
        assert_eq!(serde_json::from_str::<Ring>("64").unwrap(), Ring::Bits64);
        let refusal = serde_json::from_str::<Ring>("48").unwrap_err().to_string();
        assert!(refusal.contains("a ring of 48 bits is not supported; choose 64, or 32"), "{refusal}");
        assert_eq!((Ring::Bits64.maximum_bound_bits(), Ring::Bits32.maximum_bound_bits()), (39, 30));
        let narrow = Precision { ring: Ring::Bits32, fractional_bits: 10 };
        assert_eq!((narrow.maximum_width(), Precision::from(10).maximum_width()), (22, 40));
    }
}
