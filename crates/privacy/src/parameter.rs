//! Exact decimal numbers: noise scales, budgets and failure probabilities.
//!
//! Every number that decides about privacy is an integer count of a decimal unit, so that three
//! servers that read the same configuration hold the same bits, and no rounding of a binary
//! fraction can lower a price. A TOML or JSON number is read by its shortest decimal text; `2.5`,
//! `"2.5"` and `"25e-1"` are the same value.

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer};
use thiserror::Error;

use crate::decimal::{self, Decimal};

/// A decimal text that cannot be held exactly.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ParameterError {
    /// The text is not an unsigned decimal number.
    #[error("{name} {text:?} is not an unsigned decimal number; write digits such as 2.5 or 1e-5")]
    NotANumber {
        /// What the number stands for.
        name: &'static str,
        /// The text, shortened when long.
        text: String,
    },
    /// The number has more decimal places than the type holds.
    #[error("{name} {text:?} has more than {places} decimal places; round it to {places}")]
    TooPrecise {
        /// What the number stands for.
        name: &'static str,
        /// The text, shortened when long.
        text: String,
        /// Decimal places held.
        places: u32,
    },
    /// The number is greater than the type holds.
    #[error("{name} {text:?} is greater than the largest value {limit}; use a smaller one")]
    TooLarge {
        /// What the number stands for.
        name: &'static str,
        /// The text, shortened when long.
        text: String,
        /// Largest value held.
        limit: String,
    },
}

macro_rules! decimal_type {
    ($type:ident, $name:literal, $places:literal) => {
        impl Decimal for $type {
            const NAME: &'static str = $name;
            const PLACES: u32 = $places;

            fn from_units(units: u64) -> Self {
                Self(units)
            }

            fn into_units(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.pad(&decimal::format(self.0, Self::PLACES))
            }
        }

        impl FromStr for $type {
            type Err = ParameterError;

            fn from_str(text: &str) -> Result<Self, ParameterError> {
                decimal::parse(text)
            }
        }

        impl TryFrom<&str> for $type {
            type Error = ParameterError;

            fn try_from(text: &str) -> Result<Self, ParameterError> {
                decimal::parse(text)
            }
        }

        /// As decimal text, which loses nothing.
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

/// Width of a noise distribution in votes, exact to one millionth: sigma of a discrete Gaussian or
/// scale of a discrete Laplace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NoiseScale(u64);

decimal_type!(NoiseScale, "noise scale", 6);

impl NoiseScale {
    /// Millionths in one.
    pub const UNITS_PER_ONE: u64 = 1_000_000;

    /// A width of `millionths` millionths of a vote.
    pub const fn from_millionths(millionths: u64) -> Self {
        Self(millionths)
    }

    /// A width of `votes` whole votes; `None` beyond what the type holds.
    pub const fn from_votes(votes: u64) -> Option<Self> {
        match votes.checked_mul(Self::UNITS_PER_ONE) {
            Some(millionths) => Some(Self(millionths)),
            None => None,
        }
    }

    /// The width in millionths of a vote.
    pub const fn millionths(self) -> u64 {
        self.0
    }
}

/// Privacy loss under zero-concentrated differential privacy (Bun and Steinke, 2016) in units of
/// `1e-9` rho. The ledger adds these and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NanoRho(u64);

decimal_type!(NanoRho, "rho", 9);

impl NanoRho {
    /// No loss.
    pub const ZERO: Self = Self(0);

    /// A loss of `units` nano-rho.
    pub const fn new(units: u64) -> Self {
        Self(units)
    }

    /// The loss in nano-rho.
    pub const fn units(self) -> u64 {
        self.0
    }

    /// Sum of both losses; `None` on overflow.
    #[must_use]
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// Loss of `times` releases of this price; `None` on overflow.
    #[must_use]
    pub const fn checked_mul(self, times: u64) -> Option<Self> {
        match self.0.checked_mul(times) {
            Some(product) => Some(Self(product)),
            None => None,
        }
    }

    /// What is left of `self` after `spent`, zero when more was spent.
    #[must_use]
    pub const fn saturating_sub(self, spent: Self) -> Self {
        Self(self.0.saturating_sub(spent.0))
    }
}

/// The delta of an (epsilon, delta) statement, exact to `1e-18`. It shows a budget to people and
/// takes no part in enforcing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Delta(u64);

decimal_type!(Delta, "delta", 18);

impl Delta {
    /// One, which no delta may reach.
    pub(crate) const ONE: Self = Self(1_000_000_000_000_000_000);

    /// Delta in units of `1e-18`.
    pub const fn units(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimal_texts_are_read_exactly() {
        for (text, millionths) in [
            ("2", 2_000_000),
            ("2.5", 2_500_000),
            ("2.", 2_000_000),
            (".5", 500_000),
            ("0.000001", 1),
            ("000002.5000000000", 2_500_000),
            ("25e-1", 2_500_000),
            ("0.00025E4", 2_500_000),
            ("1e3", 1_000_000_000),
            ("0e99", 0),
            ("0", 0),
            ("18446744073709.551615", u64::MAX),
        ] {
            assert_eq!(text.parse::<NoiseScale>(), Ok(NoiseScale(millionths)), "{text}");
        }
    }

    #[test]
    fn texts_that_cannot_be_held_are_refused() {
        for text in [
            "", ".", "-1", "+1", " 1", "1 ", "1.2.3", "1e", "1e1.5", "0x10", "inf", "NaN", "1e9999", "1_000",
            "\u{661}",
        ] {
            assert!(matches!(text.parse::<NoiseScale>(), Err(ParameterError::NotANumber { .. })), "{text}");
        }
        assert!(matches!(
            "0.0000001".parse::<NoiseScale>(),
            Err(ParameterError::TooPrecise { places: 6, .. })
        ));
        for text in ["18446744073709.551616", "1e30", "1e999"] {
            assert!(matches!(text.parse::<NoiseScale>(), Err(ParameterError::TooLarge { .. })), "{text}");
        }
        let long = "9".repeat(1_000_000);
        let error = long.parse::<NoiseScale>().expect_err("beyond the range");
        assert!(error.to_string().len() < 200);
    }

    #[test]
    fn text_round_trips() {
        for units in [0, 1, 10, 999_999, 1_000_000, 2_500_000, u64::MAX] {
            let value = NoiseScale(units);
            assert_eq!(value.to_string().parse(), Ok(value));
            let value = NanoRho(units);
            assert_eq!(value.to_string().parse(), Ok(value));
            let value = Delta(units);
            assert_eq!(value.to_string().parse(), Ok(value));
        }
        assert_eq!(NanoRho(250_000_067).to_string(), "0.250000067");
        assert_eq!("1e-5".parse(), Ok(Delta(10_000_000_000_000)));
    }
}
