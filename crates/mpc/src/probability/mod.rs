//! From numbers to probabilities: the softmax of every row, in fixed point, with a bound that no row
//! can break.
//!
//! # What holds whatever the scores are
//! **Each row's result has no negative entry and adds up to 2^16 at most**, 2^16 being one. The scores
//! are whatever an owner's weights make of them: an owner may choose weights that overflow the ring
//! and leave every window. The bound is what the privacy of the answer rests on, so it comes from how
//! the numbers are made and not from a check that could be passed by luck:
//! 1. an exponential is looked up in a table that holds nothing but 0 to 2.7183 (`exponential`);
//! 2. the reciprocal of their sum is looked up twice, each time from below (`reciprocal`), so the
//!    exact products add up to at most one, less C units of 2^-16 for C classes;
//! 3. up to there nothing is truncated at all: factors are narrow enough that their products fit the
//!    ring. The one [truncation](crate::truncation) at the end cannot fail and rounds each entry up by
//!    at most one unit, for which the C units were left.
//!
//! So the sum over owners has exactly the sensitivity of a vote: a replaced model moves 2^16 units
//! from some bins to others, never more, and no slack for truncation is added to the noise.
//!
//! # Protocol
//! With w the [one-hot argmax](crate::votes::one_hot_argmax) of a row x: m = sum of w_c x_c by
//! [selection](crate::selection::select_unless); d_c = m - x_c; e_c = exp(-d_c) by look-up, set to
//! zero where [d_c >= 15](crate::comparison::sign) by selection; S their sum; y by look-up of S; g_c =
//! e_c y by [products](crate::product::multiply_rows); T their sum; z by look-up of T; p_c = g_c z by
//! products, truncated to 16 fractional bits and added up over owners in one message.
//!
//! # Error
//! For scores whose differences lie inside the window, each entry is at most
//! [`maximum_error`] from the softmax of the fixed-point scores: 2^-10 up to 16 classes, 2^-9 up to 64.
//! It is made of: 1.0 2^-11 for the reciprocal (tangent, steps and rounding), C 2^-16 for the room, C 2^-18 +
//! 2^-18 and 2^-13.5 for table entries and weights, C e^-15 for what is cut off, 2^-16 for the last
//! rounding. All but the last two shrink with the entry itself.
//!
//! # Cost
//! [`crate::cost::probabilities`]. All look-ups and selections have one dealer, which receives nothing
//! in them and so sends each table in the round in which the evaluators exchange the result before.

mod exponential;
mod reciprocal;

use concilium_ring::{Element, Z64};
use ndarray::ArrayView2;

use self::exponential::{CLAMP, Exponential};
use self::reciprocal::{Coarse, Fine};
use crate::bits;
use crate::channel::Channel;
use crate::lookup::{Tabulated, look_up};
use crate::party::{MpcError, Party, PartyIndex};
use crate::product::{multiply_rows, sum_of_rows};
use crate::release::Aggregate;
use crate::shares::{BitShares, Shares};
use crate::truncation::sum_truncated;
use crate::{comparison, selection, votes};

/// Fractional bits of a released probability.
pub const FRACTION_BITS: u32 = 16;

/// Fractional bits of scores that the exponential takes.
pub const SCORE_BITS: std::ops::RangeInclusive<u32> = 1..=20;

/// Most classes; with them the products take 59 bits.
pub const MAXIMUM_CLASSES: usize = 64;

/// The largest distance of a probability from the softmax, as a fraction of one.
pub const fn maximum_error(classes: usize) -> f64 {
    if classes <= 16 { 1.0 / 1024.0 } else { 1.0 / 512.0 }
}

/// The sum over groups of the softmax of each row of `scores`, `[groups * rows, classes]`, with
/// [`FRACTION_BITS`]: element (r, c) of the result is the sum over all groups of the probability of
/// class c in row r of the group. With owners as groups and queries as rows this is the number of
/// models times the mean probability. See the module for the protocol and for what holds.
///
/// Scores have `score_bits` fractional bits, and `window` bits hold the difference of any two scores
/// of a row, as for [`votes::one_hot_argmax`].
///
/// # Errors
/// [`MpcError`] when a message is lost or has the wrong length.
///
/// # Panics
/// If the rows do not divide into the groups, or classes, window or score bits are not supported.
pub fn sum_of_probabilities<C: Channel>(
    party: &mut Party<C>,
    dealer: PartyIndex,
    scores: &Shares<Z64>,
    window: u32,
    score_bits: u32,
    groups: usize,
    rows: usize,
) -> Result<Aggregate<Z64>, MpcError> {
    let classes = scores.dim().1;
    assert!(classes <= MAXIMUM_CLASSES, "too many classes");
    assert!(SCORE_BITS.contains(&score_bits), "scores with too many fractional bits, or none");
    let tables = dealer.next();
    let deficits = deficits(party, [dealer, tables], scores, window)?;
    let exponentials = exponentials(party, tables, &deficits, window, score_bits)?;
    let coarse = Coarse::new(classes);
    let fine = Fine::new(classes, &coarse);
    let reciprocal = look_up(party, tables, &sum_of_rows(&exponentials), &coarse)?;
    let scaled = multiply_rows(party, &exponentials, &reciprocal)?;
    let reciprocal = look_up(party, tables, &sum_of_rows(&scaled), &fine)?;
    let probabilities = multiply_rows(party, &scaled, &reciprocal)?;
    let bits = coarse.product_bits() + Fine::RESULT_BITS - FRACTION_BITS;
    sum_truncated(party, tables, &probabilities, bits, 1 << FRACTION_BITS, groups, rows)
}

/// How far each score is below the largest of its row, `[classes, n]`.
fn deficits<C: Channel>(
    party: &mut Party<C>,
    [dealer, tables]: [PartyIndex; 2],
    scores: &Shares<Z64>,
    window: u32,
) -> Result<Shares<Z64>, MpcError> {
    let (rows, classes) = scores.dim();
    let mut losers = votes::one_hot_argmax(party, dealer, scores, window)?;
    losers.flip_planes(party.index(), 0..classes);
    let joined = |component: &[u64]| bits::pack(component, classes, rows).into_owned();
    let losers = BitShares::new(1, classes * rows, joined(losers.own()), joined(losers.next()));
    let columns = scores.linear(|all| all.t().as_standard_layout().into_owned());
    let winners = selection::select_unless(party, tables, &losers, &columns)?;
    let largest = sum_of_rows(&winners);
    Ok(difference(&largest, &columns))
}

/// The one row of `minuend` minus every row of `subtrahend`.
fn difference(minuend: &Shares<Z64>, subtrahend: &Shares<Z64>) -> Shares<Z64> {
    let part = |minuend: ArrayView2<'_, Z64>, subtrahend: ArrayView2<'_, Z64>| {
        let mut result = subtrahend.map(|&value| -value);
        result += &minuend;
        result
    };
    Shares::new(part(minuend.own(), subtrahend.own()), part(minuend.next(), subtrahend.next()))
}

/// exp(-d), and 0 where d >= [`CLAMP`].
fn exponentials<C: Channel>(
    party: &mut Party<C>,
    tables: PartyIndex,
    deficits: &Shares<Z64>,
    window: u32,
    score_bits: u32,
) -> Result<Shares<Z64>, MpcError> {
    let exponential = Exponential { fractional_bits: score_bits };
    let exponentials = look_up(party, tables, deficits, &exponential)?;
    let mut below = deficits.linear(|all| all.to_owned());
    below.add_public(party.index(), -Z64::from_unsigned(CLAMP << score_bits));
    let mut small = comparison::sign(party, tables, &below, clamp_window(window, score_bits))?;
    small.flip_planes(party.index(), 0..1);
    selection::select_unless(party, tables, &small, &exponentials)
}

/// Bits that hold d - [`CLAMP`] for every d of the window that is not negative.
pub(crate) fn clamp_window(window: u32, score_bits: u32) -> u32 {
    window.max(score_bits + 5)
}

/// Elements that the dealer sends for one value of each look-up: exponential, coarse and fine
/// reciprocal.
pub(crate) fn table_elements(classes: usize) -> [usize; 3] {
    let coarse = Coarse::new(classes);
    let fine = Fine::new(classes, &coarse);
    [1 << Exponential { fractional_bits: 1 }.index_bits(), 1 << coarse.index_bits(), 2 << fine.index_bits()]
}
