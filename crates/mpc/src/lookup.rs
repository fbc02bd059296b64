//! Functions of a shared number by the dealer's look-up, with the low bits left to the evaluators.
//!
//! # Protocol
//! The dealer h knows u = x_h + x_{h+1}, both evaluators know v = x_{h+2}. The function is given in
//! the form g(u + v) = sum over t of entry_t(u, i) weight_t(w), where v = i 2^l + w: the lowest l
//! bits of v choose weights, and the next b bits choose an entry. (Bits of v above are ignored, so g
//! has the period 2^(l+b).) That covers exponentials, whose low bits are a factor, and whatever is
//! nearly linear between two neighbouring entries.
//! 1. The dealer sends the 2^b entries to the first evaluator, masked by a stream that the second
//!    evaluator knows.
//! 2. Each evaluator takes the entry at i, one the masked entry, the other the mask, multiplies by
//!    the weights, which both know, and adds up: an additive sharing of g without a message. They
//!    exchange their terms under masks that the dealer knows.
//!
//! # What holds whatever x is
//! The result is one of the values that the dealer can have put into the table times one of the
//! weights, exactly: no rounding, no failure, and no ring element leads outside. This is how a value
//! that an owner controls is brought into a range.
//!
//! # Cost
//! Two rounds; T 2^b elements from the dealer for T terms, one element from each evaluator. The dealer
//! receives nothing and knows its components of the result at once.
//!
//! # Security
//! Semi-honest, one corruption, perfect: every message is masked by a stream that its receiver does
//! not know.
//!
//! # Source
//! As for [comparison](crate::comparison): one-time truth tables (Ishai et al., TCC 2013) between two
//! servers that know the index.

use concilium_ring::{Element, Z64};

use crate::channel::{Channel, Neighbour, Protocol};
use crate::party::{MpcError, Party, PartyIndex, Seat};
use crate::selection::exchange_terms;
use crate::shares::Shares;

pub(crate) const TABLE_MESSAGES: [(usize, usize); 1] = [(0, 1)];
pub(crate) const EXCHANGE_MESSAGES: [(usize, usize); 2] = [(1, 2), (2, 1)];

/// A function in the form that [`look_up`] takes, with `TERMS` terms.
pub(crate) trait Tabulated<const TERMS: usize> {
    /// Bits of v that choose the weights.
    fn low_bits(&self) -> u32;

    /// Bits of v above those, which choose the entry.
    fn index_bits(&self) -> u32;

    /// The terms of every entry for the dealer's `u`, in the order of the index.
    fn entries(&self, u: u64, table: &mut [[Z64; TERMS]]);

    /// The weights for the low bits `low` of v.
    fn weights(&self, low: u64) -> [Z64; TERMS];
}

/// Shares of `function(x)` for every element of `x`. See the module for the protocol.
///
/// # Errors
/// [`MpcError`] when a message is lost or has the wrong length.
pub(crate) fn look_up<const TERMS: usize, F: Tabulated<TERMS>, C: Channel>(
    party: &mut Party<C>,
    dealer: PartyIndex,
    x: &Shares<Z64>,
    function: &F,
) -> Result<Shares<Z64>, MpcError> {
    let tables = party.begin(Protocol::LookUpTables, dealer, &TABLE_MESSAGES);
    let exchange = party.begin(Protocol::LookUpExchange, dealer, &EXCHANGE_MESSAGES);
    let (count, size) = (x.len(), 1 << function.index_bits());
    let elements = count * size * TERMS;
    let terms = |table: &[Z64], v: &[Z64]| -> Vec<Z64> {
        let (low_bits, index) = (function.low_bits(), size as u64 - 1);
        v.iter()
            .enumerate()
            .map(|(i, v)| {
                let place = (i * size + (v.0 >> low_bits & index) as usize) * TERMS;
                let weights = function.weights(v.0 & ((1 << low_bits) - 1));
                table[place..place + TERMS].iter().zip(weights).map(|(&entry, weight)| entry * weight).sum()
            })
            .collect()
    };
    let (own, next) = match party.seat(dealer) {
        Seat::Dealer => {
            let mut message = party.prss.own.elements::<Z64>(tables, 0, elements);
            let mut entries = vec![[Z64::ZERO; TERMS]; size];
            let sums = x.own_slice().iter().zip(x.next_slice()).map(|(&a, &b)| (a + b).0);
            for (masked, u) in message.chunks_exact_mut(size * TERMS).zip(sums) {
                function.entries(u, &mut entries);
                masked
                    .iter_mut()
                    .zip(entries.as_flattened())
                    .for_each(|(mask, &entry)| *mask = entry - *mask);
            }
            party.send(Neighbour::Next, tables, message)?;
            (party.prss.own.elements(exchange, 0, count), party.prss.next.elements(exchange, 0, count))
        }
        Seat::FirstEvaluator => {
            let masked = party.receive::<Z64>(Neighbour::Previous, tables, elements)?;
            let own = party.prss.own.elements::<Z64>(exchange, 0, count);
            let mine = terms(&masked, x.next_slice());
            let next = exchange_terms(party, Neighbour::Next, exchange, mine, &own)?;
            (own, next)
        }
        Seat::SecondEvaluator => {
            let masks = party.prss.next.elements::<Z64>(tables, 0, elements);
            let next = party.prss.next.elements::<Z64>(exchange, 0, count);
            let mine = terms(&masks, x.own_slice());
            let own = exchange_terms(party, Neighbour::Previous, exchange, mine, &next)?;
            (own, next)
        }
    };
    Ok(Shares::from_vectors(x.dim(), own, next))
}
