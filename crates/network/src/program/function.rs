//! Smooth functions of one number, by straight pieces.
//!
//! A function that is constant to the left and straight to the right is replaced by a continuous one that is straight between
//! knots: p(x) = start + Σ_k change_k · max(x - knot_k, 0). All knots are compared in one batch, and one
//! rescaling follows. It holds for every x: before the first knot and behind the last one p is the
//! asymptote. The range of x that the analysis finds is the range that is enforced.
//!
//! Knots are multiples of 2^-6, found from left to right as far apart as [`TOLERANCE`] allows (de Boor, A
//! Practical Guide to Splines, chapter III, on the spacing of knots). Slopes are rounded to the task's
//! fractional bits, each so that the next knot is met as nearly as possible, so their errors do not add
//! up. Every server computes the pieces by itself, with functions of [`libm`] that give the same bits on
//! every machine.

use std::sync::{LazyLock, OnceLock};

use serde::{Deserialize, Serialize};

use crate::limits::{MAXIMUM_FRACTIONAL_BITS, MINIMUM_FRACTIONAL_BITS};

/// Largest distance of the pieces from the function before slopes are rounded.
pub const TOLERANCE: f64 = 1.0 / 1024.0;

/// Knots are multiples of 2^-6, exact in every format.
const KNOT_BITS: u32 = 6;

/// Beyond this on either side the functions are their asymptotes, closer than [`TOLERANCE`].
const REACH: i64 = 16 << KNOT_BITS;

/// Longest piece between knots.
const LONGEST: i64 = 4 << KNOT_BITS;

/// Bound on the second derivative of every function below but the reciprocal; the largest is that of Mish, 0.96.
const CURVATURE: f64 = 1.0;

/// Largest number whose reciprocal is taken.
pub const LARGEST_DIVISOR: usize = 256;

/// Largest distance of the pieces from the reciprocal, as a share of it, before slopes are rounded.
const RELATIVE_TOLERANCE: f64 = 1.0 / 256.0;

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Function {
    /// The hyperbolic tangent.
    Tanh,
    /// 1 / (1 + e^-x).
    Sigmoid,
    /// ln(1 + e^x).
    Softplus,
    /// The error function.
    Erf,
    /// x Φ(x), with the normal distribution Φ.
    Gelu,
    /// x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2, which some use in place of Gelu.
    GeluTanh,
    /// x sigmoid(x), also called Swish.
    Silu,
    /// x tanh(softplus(x)).
    Mish,
    /// e^min(x, 0), of which Elu, Selu, Celu and Softmax are made.
    NegativeExponential,
    /// 1 / x for x from 1 to [`LARGEST_DIVISOR`], beyond which it stays what it is there: what a Softmax divides by.
    Reciprocal,
}

/// A function by straight pieces in fixed point.
#[derive(Clone, Debug, PartialEq)]
pub struct Pieces {
    /// Where the slope changes, at scale f, rising.
    pub knots: Vec<i64>,
    /// By how much, at scale f.
    pub changes: Vec<i64>,
    /// The value before the first knot, at scale 2f.
    pub start: i64,
    /// The value at each knot, at scale 2f, and the slope behind it.
    pieces: Vec<(i64, i64)>,
    /// The steepest slope.
    pub steepest: f64,
    /// A bound on the distance from the function, for every number.
    pub error: f64,
}

impl Function {
    /// All functions.
    pub const ALL: [Self; 10] = [
        Self::Tanh,
        Self::Sigmoid,
        Self::Softplus,
        Self::Erf,
        Self::Gelu,
        Self::GeluTanh,
        Self::Silu,
        Self::Mish,
        Self::NegativeExponential,
        Self::Reciprocal,
    ];

    /// The function itself.
    #[must_use]
    pub fn exact(self, x: f64) -> f64 {
        match self {
            Self::Tanh => libm::tanh(x),
            Self::Sigmoid => sigmoid(x),
            Self::Softplus => softplus(x),
            Self::Erf => libm::erf(x),
            Self::Gelu => x * 0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2),
            // 1 + tanh(y) is 2 sigmoid(2y), without cancellation far to the left.
            Self::GeluTanh => x * sigmoid((8.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)),
            Self::Silu => x * sigmoid(x),
            Self::Mish => x * libm::tanh(softplus(x)),
            Self::NegativeExponential => libm::exp(x.min(0.0)),
            Self::Reciprocal => 1.0 / x.clamp(1.0, LARGEST_DIVISOR as f64),
        }
    }

    /// Beyond this on either side, in units of 2^-[`KNOT_BITS`], it is its asymptotes, closer than the tolerance.
    fn reach(self) -> i64 {
        if self == Self::Reciprocal { (LARGEST_DIVISOR as i64) << KNOT_BITS } else { REACH }
    }

    /// Largest distance of the pieces at a point, before slopes are rounded.
    fn tolerance(self, grid: i64) -> f64 {
        match self {
            Self::Reciprocal => TOLERANCE.min(RELATIVE_TOLERANCE * self.at(grid)),
            _ => TOLERANCE,
        }
    }

    /// Longest piece between knots. A slope is rounded once for a whole piece, which matters most where it is small.
    fn longest(self) -> i64 {
        if self == Self::Reciprocal { 8 << KNOT_BITS } else { LONGEST }
    }

    /// A bound on the second derivative between knots.
    fn curvature(self) -> f64 {
        if self == Self::Reciprocal { 2.0 } else { CURVATURE }
    }

    /// The value far to the left, where all of them are constant, and the slope far to the right.
    fn asymptotes(self) -> (f64, i64) {
        match self {
            Self::Tanh | Self::Erf => (-1.0, 0),
            Self::Sigmoid | Self::NegativeExponential => (0.0, 0),
            Self::Reciprocal => (1.0, 0),
            Self::Softplus | Self::Gelu | Self::GeluTanh | Self::Silu | Self::Mish => (0.0, 1),
        }
    }

    /// How many numbers are compared for one.
    #[must_use]
    pub fn comparisons(self) -> usize {
        self.grid().len()
    }

    /// The knots, in units of 2^-[`KNOT_BITS`].
    fn grid(self) -> &'static [i64] {
        static GRIDS: LazyLock<[Vec<i64>; Function::ALL.len()]> =
            LazyLock::new(|| Function::ALL.map(Function::place_knots));
        &GRIDS[self as usize]
    }

    fn at(self, grid: i64) -> f64 {
        self.exact(on_grid(grid))
    }

    fn place_knots(self) -> Vec<i64> {
        let (left, slope) = self.asymptotes();
        let reach = self.reach();
        let right = |grid: i64| if slope == 0 { self.at(reach) } else { on_grid(grid) };
        let near = |grid: i64, asymptote: f64| (self.at(grid) - asymptote).abs() <= self.tolerance(grid);
        let first = (-reach..reach).find(|&grid| !near(grid + 1, left)).unwrap_or(reach);
        let last = (-reach..reach).rev().find(|&grid| !near(grid - 1, right(grid - 1))).unwrap_or(reach);
        let mut knots = vec![first];
        let mut from = first;
        while from < last {
            let longest = (last - from).min(self.longest());
            // The first piece that is too long ends the search: pieces need not be the longest.
            let length = (2..=longest)
                .find(|&length| !self.is_straight(from, length))
                .map_or(longest, |length| length - 1);
            from += length;
            knots.push(from);
        }
        knots
    }

    /// True when the chord over `length` steps of the grid is within the tolerance on the grid.
    fn is_straight(self, from: i64, length: i64) -> bool {
        if self == Self::Reciprocal {
            // The chord of 1/x is furthest off at the geometric mean, in proportion at the arithmetic one.
            let [start, end] = [from, from + length].map(on_grid);
            let furthest = (start.sqrt().recip() - end.sqrt().recip()).powi(2);
            let share = (end - start).powi(2) / (4.0 * start * end);
            return furthest <= TOLERANCE && share <= RELATIVE_TOLERANCE;
        }
        let (start, end) = (self.at(from), self.at(from + length));
        (1..length).all(|step| {
            let chord = start + (end - start) * step as f64 / length as f64;
            (self.at(from + step) - chord).abs() <= TOLERANCE
        })
    }

    /// The pieces for `fractional_bits` f of 8 to 20, which are computed once for each format.
    ///
    /// # Panics
    /// For other numbers of fractional bits.
    #[must_use]
    pub fn pieces(self, fractional_bits: u32) -> &'static Pieces {
        const FORMATS: usize = (MAXIMUM_FRACTIONAL_BITS - MINIMUM_FRACTIONAL_BITS + 1) as usize;
        static PIECES: [[OnceLock<Pieces>; FORMATS]; Function::ALL.len()] =
            [const { [const { OnceLock::new() }; FORMATS] }; Function::ALL.len()];
        let format = fractional_bits.checked_sub(MINIMUM_FRACTIONAL_BITS).expect("formats have limits");
        PIECES[self as usize][format as usize].get_or_init(|| self.compute_pieces(fractional_bits))
    }

    fn compute_pieces(self, fractional_bits: u32) -> Pieces {
        let grid = self.grid();
        let scale = (1_i64 << fractional_bits) as f64;
        let knots: Vec<i64> = grid.iter().map(|&knot| knot << (fractional_bits - KNOT_BITS)).collect();
        let (left, right) = self.asymptotes();
        let start = libm::round(left * scale * scale) as i64;
        let mut value = start;
        let mut slopes = vec![0];
        let mut values = vec![start];
        let mut steepest: f64 = 0.0;
        for (ends, &knot) in grid.windows(2).zip(&knots) {
            let length = (ends[1] - ends[0]) << (fractional_bits - KNOT_BITS);
            let target = libm::round(self.at(ends[1]) * scale * scale) as i64;
            let slope = rounded_quotient(target - value, length);
            debug_assert_eq!(knot, ends[0] << (fractional_bits - KNOT_BITS));
            value += slope * length;
            slopes.push(slope);
            values.push(value);
            steepest = steepest.max((slope as f64 / scale).abs());
        }
        slopes.push(right << fractional_bits);
        steepest = steepest.max(right as f64);
        let changes = slopes.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let straight = values.into_iter().zip(slopes.into_iter().skip(1)).collect();
        let mut pieces = Pieces { knots, changes, start, pieces: straight, steepest, error: 0.0 };
        pieces.error = self.distance(&pieces, fractional_bits);
        pieces
    }

    /// A bound on the distance of `pieces` from the function. Between points of the grid, where it is
    /// computed, it is larger by at most the curvature's share; outside of the grid both are as near to the
    /// asymptote as at its ends, because the functions approach it from there on without turning back.
    fn distance(self, pieces: &Pieces, fractional_bits: u32) -> f64 {
        let scale = (1_i64 << fractional_bits) as f64;
        let step = on_grid(1);
        let largest = (-self.reach()..=self.reach())
            .map(|grid| {
                let computed = pieces.at(grid << (fractional_bits - KNOT_BITS)) as f64 / (scale * scale);
                (computed - self.at(grid)).abs()
            })
            .fold(0.0, f64::max);
        largest + self.curvature() * step * step / 8.0
    }
}

impl Pieces {
    /// The approximation of a number at scale f, at scale 2f.
    #[must_use]
    pub fn at(&self, x: i64) -> i64 {
        match self.piece(x) {
            None => self.start,
            Some((knot, value, slope)) => value.wrapping_add(slope.wrapping_mul(x.wrapping_sub(knot))),
        }
    }

    /// The last knot up to `x`, the value there, and the slope behind it.
    fn piece(&self, x: i64) -> Option<(i64, i64, i64)> {
        let place = self.knots.partition_point(|&knot| knot <= x).checked_sub(1)?;
        let (value, slope) = self.pieces[place];
        Some((self.knots[place], value, slope))
    }

    /// The least and the most, at scale 2f, for all numbers from `low` to `high`.
    #[must_use]
    pub fn range(&self, low: i64, high: i64) -> (i128, i128) {
        let exact = |x: i64| match self.piece(x) {
            None => i128::from(self.start),
            Some((knot, value, slope)) => {
                i128::from(value) + i128::from(slope) * (i128::from(x) - i128::from(knot))
            }
        };
        // Straight between knots, so the extremes are at knots or ends.
        let inside = self.knots.iter().copied().filter(|knot| (low..=high).contains(knot));
        let (first, last) = (exact(low), exact(high));
        inside.map(exact).fold((first.min(last), first.max(last)), |(least, most), value| {
            (least.min(value), most.max(value))
        })
    }
}

fn on_grid(grid: i64) -> f64 {
    grid as f64 / (1_i64 << KNOT_BITS) as f64
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-x))
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + libm::log1p(libm::exp(-x.abs()))
}

/// The integer nearest to `numerator / denominator`, for a positive denominator.
fn rounded_quotient(numerator: i64, denominator: i64) -> i64 {
    (2 * numerator + denominator).div_euclid(2 * denominator)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMATS: [u32; 4] = [8, 12, 16, 20];

    #[test]
    fn pieces_are_near_everywhere_and_few() {
        for function in Function::ALL {
            for bits in FORMATS {
                let pieces = function.pieces(bits);
                let scale = (1_i64 << bits) as f64;
                let limit = TOLERANCE * 1.1 + if bits == 8 { 0.016 } else { 0.001 };
                assert!(pieces.error < limit, "{function:?} with {bits} bits: {}", pieces.error);
                assert!(pieces.knots.len() <= 65, "{function:?}: {} knots", pieces.knots.len());
                // A grid of odd numbers, so that it meets points that the bound was not computed at.
                let mut largest: f64 = 0.0;
                for x in (-(40 << bits)..=40_i64 << bits).step_by((1 << (bits - 8)) + 1) {
                    let found = pieces.at(x) as f64 / (scale * scale);
                    largest = largest.max((found - function.exact(x as f64 / scale)).abs());
                }
                assert!(largest <= pieces.error, "{function:?}: {largest} beyond {}", pieces.error);
                if bits == 16 {
                    eprintln!("{function:?}: {} knots, error {largest:.6}", pieces.knots.len());
                }
            }
        }
    }

    /// What servers compute from knots and changes is what the oracle reads off one piece.
    #[test]
    fn a_sum_over_all_knots_is_the_piece() {
        for function in Function::ALL {
            let pieces = function.pieces(10);
            for x in (-20_000..20_000).step_by(7) {
                let terms = pieces.knots.iter().zip(&pieces.changes);
                let sum: i64 = terms.map(|(knot, change)| change * (x - knot).max(0)).sum();
                assert_eq!(pieces.at(x), pieces.start + sum, "{function:?} at {x}");
            }
        }
    }

    #[test]
    fn far_away_pieces_are_the_asymptotes() {
        for function in Function::ALL {
            let pieces = function.pieces(12);
            let one = 1_i64 << 12;
            let (left, slope) = function.asymptotes();
            assert_eq!(pieces.at(-1000 * one) as f64, left * (one * one) as f64);
            assert_eq!(pieces.at(1000 * one) - pieces.at(999 * one), slope * one * one);
            assert!(
                (pieces.at(1000 * one) as f64 / (one * one) as f64 - function.exact(1000.0)).abs() < 0.01
            );
        }
    }

    #[test]
    fn ranges_hold_all_values_and_are_reached() {
        for function in Function::ALL {
            let pieces = function.pieces(8);
            for (low, high) in [(-1000, 900), (-300, -200), (0, 0), (100, 2000), (-77, 13)] {
                let values: Vec<i64> = (low..=high).map(|x| pieces.at(x)).collect();
                let (least, most) = pieces.range(low, high);
                assert_eq!(least, i128::from(*values.iter().min().expect("not empty")), "{function:?}");
                assert_eq!(most, i128::from(*values.iter().max().expect("not empty")), "{function:?}");
            }
        }
    }

    #[test]
    fn the_curvature_is_bounded() {
        for function in Function::ALL {
            let step = 1.0 / 512.0;
            for place in -8192..8192 {
                let x = f64::from(place) * step;
                // The kinks are knots.
                let kink = match function {
                    Function::NegativeExponential => 0.0,
                    Function::Reciprocal => 1.0,
                    _ => f64::INFINITY,
                };
                if (x - kink).abs() < 2.0 * step {
                    continue;
                }
                let second = function.exact(x + step) + function.exact(x - step) - 2.0 * function.exact(x);
                assert!((second / (step * step)).abs() <= function.curvature() + 1e-6, "{function:?} at {x}");
            }
            assert!(function.grid().contains(&0) || function != Function::NegativeExponential);
            assert!(function.grid().contains(&(1 << KNOT_BITS)) || function != Function::Reciprocal);
        }
    }
}
