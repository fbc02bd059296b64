//! What may be released: aggregates after every server has injected its noise share, and nothing
//! else.
//!
//! The types carry the rule. An [`Aggregate`] is a sum of votes; it becomes a [`Noised`] value by
//! [`Aggregate::inject`], or is computed with as [`Counts`](crate::consensus::Counts), which lead
//! back to aggregates. Only `Noised` has components that leave the server. Anything computed from a
//! `Noised` value is post-processing and stays `Noised`.

use concilium_ring::Element;

use crate::channel::{Channel, Neighbour, Protocol};
use crate::comparison::WINDOW_BITS;
use crate::party::{MpcError, Party, PartyIndex};
use crate::shares::{AdditiveShare, BitShares, Shares};
use crate::votes;

pub(crate) const INJECT_MESSAGES: [(usize, usize); 3] = [(0, 2), (1, 0), (2, 1)];

/// A server's term of a sum over owners, without noise. It can't be opened, printed or copied.
///
/// A noised value has components that leave the server:
/// ```
/// use concilium_mpc::{Shares, release::{Noised, ReleasedComponents}};
/// fn open(noised: Noised<Shares<concilium_ring::Z64>>) -> ReleasedComponents {
///     noised.components()
/// }
/// ```
/// An aggregate has none:
/// ```compile_fail,E0599
/// use concilium_mpc::{Shares, release::{Aggregate, ReleasedComponents}};
/// fn open(aggregate: Aggregate<concilium_ring::Z64>) -> ReleasedComponents {
///     aggregate.components()
/// }
/// ```
/// And its term can't be reached to be opened by hand:
/// ```compile_fail,E0616
/// use concilium_mpc::release::Aggregate;
/// fn open(aggregate: Aggregate<concilium_ring::Z64>) {
///     let _ = aggregate.terms;
/// }
/// ```
pub struct Aggregate<E: Element> {
    terms: AdditiveShare<E>,
    largest: u64,
}

impl<E: Element> Aggregate<E> {
    /// Sums of which the way they were made guarantees that they lie from 0 to `largest`, whatever
    /// the owners put in.
    pub(crate) fn new(terms: AdditiveShare<E>, largest: u64) -> Self {
        Aggregate { terms, largest }
    }

    /// The largest value that an element can have.
    pub(crate) fn largest(&self) -> u64 {
        self.largest
    }

    /// This server's terms, row-major.
    pub(crate) fn terms(&self) -> &[E] {
        self.terms.0.as_slice().expect("additive shares are kept in standard layout")
    }

    /// Rows and columns.
    pub fn dim(&self) -> (usize, usize) {
        self.terms.dim()
    }

    /// Adds this server's noise share, `noise[r * columns + c]` for element (r, c), and reshares.
    ///
    /// Server i sends z_i + e_i + (its term of zero) to server i - 1, which is component i of the
    /// noised sum: noise enters in the same message as the resharing. The receivers see uniform
    /// elements, hence a corrupted server's noise is independent of the honest ones'. That also
    /// holds where a neighbour knows this server's term, as with
    /// [`Counts`](crate::consensus::Counts): the term of zero hides the noise from it.
    ///
    /// One round, one element from every server for each sum. Semi-honest, one corruption, perfect.
    ///
    /// # Errors
    /// [`MpcError`] when a message is lost or has the wrong length.
    ///
    /// # Panics
    /// If there is not one noise value for each element.
    pub fn inject<C: Channel>(
        self,
        party: &mut Party<C>,
        noise: &[i64],
    ) -> Result<Noised<Shares<E>>, MpcError> {
        let shape = self.terms.dim();
        assert_eq!(noise.len(), shape.0 * shape.1, "one noise value is needed for each element");
        let step = party.begin(Protocol::NoiseInjection, PartyIndex::ALL[0], &INJECT_MESSAGES);
        let mut own = party.zero_share::<E>(step, 0, noise.len());
        for ((value, &term), &noise) in own.iter_mut().zip(self.terms()).zip(noise) {
            *value += term + E::from_signed(noise);
        }
        party.send(Neighbour::Previous, step, &own)?;
        let next = party.receive(Neighbour::Next, step, noise.len())?;
        Ok(Noised(Shares::from_vectors(shape, own, next)))
    }
}

/// A sharing that every server's noise share is part of: the only kind of value that is released.
pub struct Noised<T>(pub(crate) T);

impl<E: Element> Noised<Shares<E>> {
    /// Rows and columns.
    pub fn dim(&self) -> (usize, usize) {
        self.0.dim()
    }

    /// Components i and i + 1 of server i as little-endian elements, row-major, to be sent to the
    /// client whose query this answers.
    pub fn components(&self) -> ReleasedComponents {
        let bytes = |slice: &[E]| {
            let mut bytes = Vec::with_capacity(size_of_val(slice));
            concilium_ring::element::write_elements(slice, &mut bytes);
            bytes
        };
        ReleasedComponents { own: bytes(self.0.own_slice()), next: bytes(self.0.next_slice()) }
    }

    /// The index of the largest element of every row, as boolean shares of its binary digits. Ties
    /// go to the lower index. Post-processing: the result is as private as the histogram, and only
    /// the index is released.
    ///
    /// `window` bits must hold the difference of any two elements, see
    /// [`comparison`](crate::comparison).
    ///
    /// # Errors
    /// [`MpcError`] when a message is lost or has the wrong length.
    pub fn argmax<C: Channel>(
        self,
        party: &mut Party<C>,
        dealer: PartyIndex,
        window: u32,
    ) -> Result<Noised<LabelShares>, MpcError> {
        debug_assert!(WINDOW_BITS.contains(&window));
        let winners = votes::one_hot_argmax(party, dealer, &self.0, window)?;
        Ok(Noised(LabelShares::from_one_hot(&winners)))
    }
}

/// Stands for a row without consensus in the place of a label. A task has fewer classes.
pub const NO_CONSENSUS: u16 = u16::MAX;

/// Boolean shares of one class index for each row.
pub struct LabelShares {
    own: Vec<u16>,
    next: Vec<u16>,
}

impl LabelShares {
    /// Digit t of the index is the exclusive or of the one-hot bits of all classes that have digit
    /// t, so this is local.
    fn from_one_hot(winners: &BitShares) -> Self {
        let index = |component: &[u64]| -> Vec<u16> {
            let mut labels = vec![0; winners.bits()];
            for class in 1..winners.planes() {
                let plane = &component[winners.range(class)];
                for (row, label) in labels.iter_mut().enumerate() {
                    // All ones where this component's bit is set.
                    let set = ((plane[row / 64] >> (row % 64) & 1) as u16).wrapping_neg();
                    *label ^= class as u16 & set;
                }
            }
            labels
        };
        LabelShares { own: index(winners.own()), next: index(winners.next()) }
    }
}

impl Noised<LabelShares> {
    /// Puts labels in the places of the rows that `passed`, and the public [`NO_CONSENSUS`] in those
    /// of the others. `None` where no row passed. Local.
    ///
    /// # Panics
    /// If there is not one label for each row that passed.
    pub fn spread(labels: Option<Self>, holder: PartyIndex, passed: &[bool]) -> Self {
        let found = labels.as_ref().map_or(0, Self::rows);
        assert_eq!(found, passed.iter().filter(|&&passed| passed).count(), "one label is due for each row");
        // Component 0 is the marker, the others are zero.
        let [own, next] = match holder.number() {
            0 => [NO_CONSENSUS, 0],
            1 => [0, 0],
            _ => [0, NO_CONSENSUS],
        };
        let mut spread = LabelShares { own: vec![own; passed.len()], next: vec![next; passed.len()] };
        let rows = passed.iter().enumerate().filter_map(|(row, &passed)| passed.then_some(row));
        if let Some(Noised(labels)) = &labels {
            for (place, row) in rows.enumerate() {
                (spread.own[row], spread.next[row]) = (labels.own[place], labels.next[place]);
            }
        }
        Noised(spread)
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.0.own.len()
    }

    /// Components i and i + 1 of server i, two bytes little-endian for each row, to be sent to the
    /// client whose query this answers.
    pub fn components(&self) -> ReleasedComponents {
        let bytes = |labels: &[u16]| labels.iter().flat_map(|label| label.to_le_bytes()).collect();
        ReleasedComponents { own: bytes(&self.0.own), next: bytes(&self.0.next) }
    }
}

impl Drop for LabelShares {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.own);
        zeroize::Zeroize::zeroize(&mut self.next);
    }
}

/// The two components that one server sends to the client.
#[derive(Clone, zeroize::Zeroize, zeroize::ZeroizeOnDrop)]
pub struct ReleasedComponents {
    /// Component i of server i.
    pub own: Vec<u8>,
    /// Component i + 1 of server i.
    pub next: Vec<u8>,
}

impl ReleasedComponents {
    /// Digests of the two components, with which neighbours compare before anything is released:
    /// `own` is held by the previous server too, `next` by the next one.
    pub fn digests(&self, session: u64) -> [[u8; 32]; 2] {
        [&self.own, &self.next].map(|component| {
            let mut hasher = blake3::Hasher::new_derive_key("concilium v1 released component");
            hasher.update(&session.to_be_bytes()).update(component);
            *hasher.finalize().as_bytes()
        })
    }
}
