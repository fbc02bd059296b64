//! Whether the largest count of a row, with noise, reaches a public threshold.
//!
//! A client that wants an answer only where the models agree pays for a cheap test first: noise on
//! the largest count, compared with the threshold, one bit opened. Only rows that pass get a second
//! release, with fresh noise on all counts. Source: Confident-GNMax, Papernot et al., "Scalable
//! private learning with PATE", ICLR 2018, section 4.1; here no server sees the votes.
//!
//! # Steps
//! 1. [`Aggregate::reshare`] makes [`Counts`], a replicated sharing of the sums.
//! 2. [`Counts::maximum`] gives the largest count of every row, an [`Aggregate`] again: noise is the
//!    only way on.
//! 3. [`Aggregate::inject`] and [`Noised::at_least`] compare it with the threshold.
//! 4. [`Noised::open_among_servers`] opens the bits to the servers, who must know them: they decide
//!    what is charged. The bits are an output with noise, paid for before this step.
//! 5. [`Counts::into_rows`] keeps the counts of the rows that passed, to be noised and released.
//!
//! # Security
//! Semi-honest, one corruption, perfect. The counts lie between zero and the number of models
//! whatever the models are, see [one-hot argmax](crate::votes::one_hot_argmax), so no comparison of
//! two counts can leave its window, the maximum is exact, and one vote moves it by at most one.

use concilium_ring::Element;
use ndarray::{Array2, Axis};

use crate::bits;
use crate::channel::{Channel, Neighbour, Protocol};
use crate::comparison::{self, WINDOW_BITS};
use crate::party::{MpcError, Party, PartyIndex};
use crate::release::{Aggregate, Noised};
use crate::selection;
use crate::shares::{AdditiveShare, BitShares, Shares};
use crate::votes;

pub(crate) const RESHARE_MESSAGES: [(usize, usize); 3] = [(0, 2), (1, 0), (2, 1)];
pub(crate) const OPEN_MESSAGES: [(usize, usize); 6] = [(0, 1), (1, 2), (2, 0), (0, 2), (1, 0), (2, 1)];

/// Replicated shares of sums over owners, without noise. They can be computed with and turned back
/// into an [`Aggregate`], but not opened, printed or copied:
/// ```compile_fail,E0599
/// use concilium_mpc::{consensus::Counts, release::ReleasedComponents};
/// fn open(counts: Counts<concilium_ring::Z64>) -> ReleasedComponents {
///     counts.components()
/// }
/// ```
/// ```compile_fail,E0616
/// use concilium_mpc::consensus::Counts;
/// fn open(counts: Counts<concilium_ring::Z64>) {
///     let _ = counts.shares;
/// }
/// ```
/// Their maximum has no opening either, before it has noise:
/// ```compile_fail,E0599
/// use concilium_mpc::{Channel, MpcError, Party, PartyIndex, consensus::Counts};
/// fn open<C: Channel>(counts: Counts<concilium_ring::Z64>, party: &mut Party<C>) -> Result<Vec<bool>, MpcError> {
///     counts.maximum(party, PartyIndex::ALL[0])?.at_least(party, PartyIndex::ALL[0], 3, 32)?.open_among_servers(party)
/// }
/// ```
/// With noise it has:
/// ```
/// use concilium_mpc::{Channel, MpcError, Party, PartyIndex, consensus::Counts};
/// fn open<C: Channel>(counts: Counts<concilium_ring::Z64>, party: &mut Party<C>) -> Result<Vec<bool>, MpcError> {
///     let noised = counts.maximum(party, PartyIndex::ALL[0])?.inject(party, &[0])?;
///     noised.at_least(party, PartyIndex::ALL[0], 3, 32)?.open_among_servers(party)
/// }
/// ```
pub struct Counts<E: Element> {
    shares: Shares<E>,
    largest: u64,
}

impl<E: Element> Aggregate<E> {
    /// Makes a replicated sharing of the sums, to compute with them.
    ///
    /// Server i sends its term plus its term of a sharing of zero to server i - 1: a uniform element.
    ///
    /// One round, one element from every server for each sum. Semi-honest, one corruption, perfect.
    ///
    /// # Errors
    /// [`MpcError`] when a message is lost or has the wrong length.
    pub fn reshare<C: Channel>(self, party: &mut Party<C>) -> Result<Counts<E>, MpcError> {
        let (shape, largest) = (self.dim(), self.largest());
        let step = party.begin(Protocol::Resharing, PartyIndex::ALL[0], &RESHARE_MESSAGES);
        let mut own = party.zero_share::<E>(step, 0, shape.0 * shape.1);
        own.iter_mut().zip(self.terms()).for_each(|(value, &term)| *value += term);
        party.send(Neighbour::Previous, step, &own)?;
        let next = party.receive(Neighbour::Next, step, own.len())?;
        Ok(Counts { shares: Shares::from_vectors(shape, own, next), largest })
    }
}

impl<E: Element> Counts<E> {
    /// Rows and columns.
    pub fn dim(&self) -> (usize, usize) {
        self.shares.dim()
    }

    /// The largest count of every row, one column.
    ///
    /// The [one-hot winner](votes::one_hot_argmax) of every row selects its count. The window of the
    /// comparisons is the narrowest that holds the difference of any two counts.
    ///
    /// # Cost
    /// Rounds and bytes of the one-hot argmax in that window, and one round and five elements for
    /// each count for the [selection](selection::select_unless), which the same server deals. A tournament would compare
    /// `classes - 1` pairs instead of all, in `ceil(log2(classes))` times the rounds.
    ///
    /// # Errors
    /// [`MpcError`] when a message is lost or has the wrong length.
    pub fn maximum<C: Channel>(
        &self,
        party: &mut Party<C>,
        dealer: PartyIndex,
    ) -> Result<Aggregate<E>, MpcError> {
        let (rows, classes) = self.dim();
        if classes == 1 {
            return Ok(Aggregate::new(own_terms(&self.shares), self.largest));
        }
        let mut losers = votes::one_hot_argmax(party, dealer, &self.shares, window_of(self.largest))?;
        losers.flip_planes(party.index(), 0..classes);
        let selected =
            selection::select_unless(party, dealer, &as_one_plane(&losers), &transposed(&self.shares))?;
        let mut sums = AdditiveShare::zeros(rows, 1);
        for class in selected.own().rows() {
            sums.terms_mut().column_mut(0).zip_mut_with(&class, |sum, &count| *sum += count);
        }
        Ok(Aggregate::new(sums, self.largest))
    }

    /// The counts of the chosen rows alone, in the order given, to be noised. Local.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn into_rows(self, rows: &[usize]) -> Aggregate<E> {
        Aggregate::new(AdditiveShare(self.shares.own().select(Axis(0), rows)), self.largest)
    }
}

/// Bits of the narrowest window that holds every difference of two numbers from 0 to `largest`.
///
/// # Panics
/// If no window does; sums over owners stay far below.
pub(crate) fn window_of(largest: u64) -> u32 {
    let window = (u64::BITS - largest.leading_zeros() + 1).max(*WINDOW_BITS.start());
    assert!(WINDOW_BITS.contains(&window), "counts up to {largest} fit no comparison window");
    window
}

/// Component i as server i's additive term: the three components add up to the value.
fn own_terms<E: Element>(shares: &Shares<E>) -> AdditiveShare<E> {
    AdditiveShare(shares.own().to_owned())
}

/// Columns as rows.
fn transposed<E: Element>(shares: &Shares<E>) -> Shares<E> {
    let (rows, columns) = shares.dim();
    let turn = |all: ndarray::ArrayView2<'_, E>| {
        Array2::from_shape_fn((columns, rows), |(column, row)| all[(row, column)])
    };
    Shares::new(turn(shares.own()), turn(shares.next()))
}

/// All planes one after the other in one.
fn as_one_plane(shares: &BitShares) -> BitShares {
    let (planes, count) = (shares.planes(), shares.bits());
    let joined = |component: &[u64]| bits::pack(component, planes, count).into_owned();
    BitShares::new(1, planes * count, joined(shares.own()), joined(shares.next()))
}

/// Boolean shares of one bit for each row: whether the row's noised maximum reaches the threshold.
pub struct Decisions(BitShares);

impl<E: Element> Noised<Shares<E>> {
    /// Whether each element of the one column is at least `threshold`. Post-processing of a noised
    /// value.
    ///
    /// `window` bits must hold the difference of any element and the threshold, see
    /// [`comparison`].
    ///
    /// # Errors
    /// [`MpcError`] when a message is lost or has the wrong length.
    ///
    /// # Panics
    /// If there is not one column.
    pub fn at_least<C: Channel>(
        self,
        party: &mut Party<C>,
        dealer: PartyIndex,
        threshold: u32,
        window: u32,
    ) -> Result<Noised<Decisions>, MpcError> {
        assert_eq!(self.dim().1, 1, "one maximum is compared in each row");
        let mut difference = self.0;
        difference.add_public(party.index(), -E::from_unsigned(threshold.into()));
        let mut decisions = comparison::sign(party, dealer, &difference, window)?;
        decisions.flip_planes(party.index(), 0..1);
        Ok(Noised(Decisions(decisions)))
    }
}

impl Noised<Decisions> {
    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.0.0.bits()
    }

    /// Opens the bits to all three servers. To be called only when every server has made the charge
    /// for them durable: there is no way back.
    ///
    /// Each server receives the component that it lacks from both servers that hold it, and compares
    /// the two copies: servers that hold different bits would release different rows.
    ///
    /// One round, two bits from every server for each row.
    ///
    /// # Errors
    /// [`MpcError::Inconsistent`] when the copies differ, and others when a message is lost.
    pub fn open_among_servers<C: Channel>(self, party: &mut Party<C>) -> Result<Vec<bool>, MpcError> {
        let Decisions(shares) = self.0;
        let rows = shares.bits();
        let step = party.begin(Protocol::DecisionOpening, PartyIndex::ALL[0], &OPEN_MESSAGES);
        // Only the bits that are released: what lies past the last row is arbitrary.
        let released = |component: &[u64]| {
            let mut words = vec![0; component.len()];
            bits::copy_bits(component, 0, &mut words, 0, rows);
            words
        };
        let (own, next) = (released(shares.own()), released(shares.next()));
        party.send(Neighbour::Next, step, &own)?;
        party.send(Neighbour::Previous, step, &next)?;
        let missing: Vec<u64> = party.receive(Neighbour::Previous, step, own.len())?;
        let copy: Vec<u64> = party.receive(Neighbour::Next, step, own.len())?;
        if missing != copy {
            return Err(MpcError::Inconsistent { step });
        }
        let bit = |row: usize| (own[row / 64] ^ next[row / 64] ^ missing[row / 64]) >> (row % 64) & 1 == 1;
        Ok((0..rows).map(bit).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_hold_every_difference_and_are_the_narrowest() {
        for largest in (1..300).chain([1 << 20, (1 << 62) - 1]) {
            let window = window_of(largest);
            assert!(largest < 1 << (window - 1), "{largest}");
            assert!(window == 2 || largest >= 1 << (window - 2), "{largest}");
        }
    }
}
