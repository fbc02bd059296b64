//! The messages of the dealer's look-up: one server deals masked tables, two look up and exchange.
//!
//! # Protocol
//! The dealer h knows both components h and h + 1 of what is looked up, both evaluators component h + 2.
//! 1. The dealer sends its tables to the first evaluator, masked by a stream F_h that the second evaluator
//!    knows.
//! 2. Each evaluator looks up at component h + 2, the first in the masked tables, the second in the masks: an
//!    additive sharing of the result without a message. They exchange their terms under masks F_{h+1} and
//!    F_h, each of which the dealer knows too. The sum of both messages is component h + 2 of a replicated
//!    sharing, the masks are components h + 1 and h.
//!
//! [`bits`] is the form for bits, whose sums are exclusive ors, and [`elements`] that for ring elements.
//!
//! # Cost
//! Two rounds, of which the first can coincide with any earlier one in which the dealer sends: it receives
//! nothing, and knows its components of the result at once.
//!
//! # Security
//! Semi-honest, one corruption, perfect: every message is masked by a stream that its receiver does not know.
//! No failure.
//!
//! # Source
//! One-time truth tables (Ishai et al., TCC 2013) between two servers that know the index, for the split of
//! ABY3 (Mohassel and Rindal, CCS 2018).

use concilium_ring::Element;

use crate::bits::{pack, packed_words, unpack};
use crate::channel::{Channel, Neighbour, Protocol, Step};
use crate::party::{MpcError, Party, PartyIndex, Seat};
use crate::shares::{BitShares, Shares, words_of};

/// Who sends to whom what is dealt, as distances from the dealer.
pub(crate) const DEALER_MESSAGES: [(usize, usize); 1] = [(0, 1)];
/// Who sends to whom what is looked up, as distances from the dealer.
pub(crate) const EXCHANGE_MESSAGES: [(usize, usize); 2] = [(1, 2), (2, 1)];

/// How many bits a look-up takes and gives.
pub(crate) struct Planes {
    /// Planes of the tables.
    pub(crate) dealt: usize,
    /// Planes of the result.
    pub(crate) results: usize,
    /// Bits of a plane.
    pub(crate) bits: usize,
}

/// A look-up of bits at `x`, this server's own and next component: a replicated sharing of `planes.results`
/// planes. The dealer sends `planes.dealt * planes.bits` bits and either evaluator `planes.results *
/// planes.bits`, in whole words of 8 bytes. The two steps are of `protocols`, the dealer's and the
/// evaluators'.
///
/// `deal` exclusive-ors the tables for both components into masks, plane after plane. `look_up` exclusive-ors
/// an evaluator's terms into masks, plane after plane: of its tables, masked ones or masks, of component
/// h + 2, and of whether it is the first, which alone adds what no table holds.
///
/// # Errors
/// [`MpcError`] when a message is lost or has the wrong length.
pub(crate) fn bits<T, C: Channel>(
    party: &mut Party<C>,
    dealer: PartyIndex,
    protocols: [Protocol; 2],
    planes: &Planes,
    x: [&[T]; 2],
    deal: impl FnOnce(&mut [u64], [&[T]; 2]),
    look_up: impl FnOnce(&mut [u64], &[u64], &[T], bool),
) -> Result<BitShares, MpcError> {
    let &Planes { dealt, results, bits } = planes;
    let (dealt_words, result_words) = (dealt * words_of(bits), results * words_of(bits));
    let [tables, exchange] = begin(party, dealer, protocols);
    let (own, next) = match party.seat(dealer) {
        Seat::Dealer => {
            let mut message = party.prss.own.words(tables, 0, dealt_words);
            deal(&mut message, x);
            party.send(Neighbour::Next, tables, pack(message, dealt, bits))?;
            let own = party.prss.own.words(exchange, 0, result_words);
            (own, party.prss.next.words(exchange, 0, result_words))
        }
        Seat::FirstEvaluator => {
            let masked = party.receive(Neighbour::Previous, tables, packed_words(dealt, bits))?;
            let masked = unpack(masked, dealt, bits);
            let own = party.prss.own.words(exchange, 0, result_words);
            let mut terms = own.clone();
            look_up(&mut terms, &masked, x[1], true);
            let next = exchange_words(party, Neighbour::Next, exchange, terms, planes)?;
            (own, next)
        }
        Seat::SecondEvaluator => {
            let masks = party.prss.next.words(tables, 0, dealt_words);
            let next = party.prss.next.words(exchange, 0, result_words);
            let mut terms = next.clone();
            look_up(&mut terms, &masks, x[0], false);
            let own = exchange_words(party, Neighbour::Previous, exchange, terms, planes)?;
            (own, next)
        }
    };
    Ok(BitShares::new(results, bits, own, next))
}

/// A look-up of ring elements at `x`: shares of one element for each of `x`, in its shape. The dealer sends
/// `dealt` elements for each, either evaluator one, of as many bytes as an element has. The two steps are of
/// `protocols`, the dealer's and the evaluators'.
///
/// `deal` replaces each mask by what the tables for both components hold there less the mask. `look_up`
/// replaces zeros by an evaluator's terms: of its tables, masked ones or masks, of component h + 2, and of
/// whether it is the first, which alone adds what no table holds.
///
/// # Errors
/// [`MpcError`] when a message is lost or has the wrong length.
pub(crate) fn elements<E: Element, C: Channel>(
    party: &mut Party<C>,
    dealer: PartyIndex,
    protocols: [Protocol; 2],
    dealt: usize,
    x: &Shares<E>,
    deal: impl FnOnce(&mut [E], [&[E]; 2]),
    look_up: impl FnOnce(&mut [E], &[E], &[E], bool),
) -> Result<Shares<E>, MpcError> {
    let (dealt, results) = (dealt * x.len(), x.len());
    let [tables, exchange] = begin(party, dealer, protocols);
    let (own, next) = match party.seat(dealer) {
        Seat::Dealer => {
            let mut message = party.prss.own.elements(tables, 0, dealt);
            deal(&mut message, [x.own_slice(), x.next_slice()]);
            party.send(Neighbour::Next, tables, message)?;
            (party.prss.own.elements(exchange, 0, results), party.prss.next.elements(exchange, 0, results))
        }
        Seat::FirstEvaluator => {
            let masked = party.receive(Neighbour::Previous, tables, dealt)?;
            let mut terms = vec![E::ZERO; results];
            look_up(&mut terms, &masked, x.next_slice(), true);
            let own = party.prss.own.elements(exchange, 0, results);
            let next = exchange_terms(party, Neighbour::Next, exchange, terms, &own)?;
            (own, next)
        }
        Seat::SecondEvaluator => {
            let masks = party.prss.next.elements(tables, 0, dealt);
            let mut terms = vec![E::ZERO; results];
            look_up(&mut terms, &masks, x.own_slice(), false);
            let next = party.prss.next.elements(exchange, 0, results);
            let own = exchange_terms(party, Neighbour::Previous, exchange, terms, &next)?;
            (own, next)
        }
    };
    Ok(Shares::from_vectors(x.dim(), own, next))
}

/// Opens the dealer's step and the evaluators', on all three servers alike.
fn begin<C: Channel>(
    party: &mut Party<C>,
    dealer: PartyIndex,
    [tables, exchange]: [Protocol; 2],
) -> [Step; 2] {
    let tables = party.begin(tables, dealer, &DEALER_MESSAGES);
    [tables, party.begin(exchange, dealer, &EXCHANGE_MESSAGES)]
}

/// Sends masked terms to the other evaluator and returns the exclusive or of both messages: component h + 2
/// of the result.
fn exchange_words<C: Channel>(
    party: &mut Party<C>,
    other: Neighbour,
    step: Step,
    terms: Vec<u64>,
    planes: &Planes,
) -> Result<Vec<u64>, MpcError> {
    let terms = pack(terms, planes.results, planes.bits).into_owned();
    let terms = party.send_and_keep(other, step, terms)?;
    let mut theirs = party.receive(other, step, terms.len())?;
    theirs.iter_mut().zip(&*terms).for_each(|(their, term)| *their ^= term);
    Ok(unpack(theirs, planes.results, planes.bits))
}

/// Masks the terms, exchanges them with the other evaluator and adds both up: component h + 2 of the result.
fn exchange_terms<E: Element, C: Channel>(
    party: &mut Party<C>,
    other: Neighbour,
    step: Step,
    mut terms: Vec<E>,
    masks: &[E],
) -> Result<Vec<E>, MpcError> {
    terms.iter_mut().zip(masks).for_each(|(term, &mask)| *term -= mask);
    let terms = party.send_and_keep(other, step, terms)?;
    let mut theirs = party.receive::<E>(other, step, terms.len())?;
    theirs.iter_mut().zip(&*terms).for_each(|(their, &term)| *their += term);
    Ok(theirs)
}
