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

use crate::channel::{Channel, Protocol};
use crate::dealt;
use crate::party::{MpcError, Party, PartyIndex};
use crate::shares::Shares;

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
    let (size, low_bits) = (1 << function.index_bits(), function.low_bits());
    dealt::elements(
        party,
        dealer,
        [Protocol::LookUpTables, Protocol::LookUpExchange],
        size * TERMS,
        x,
        |message, [own, next]| {
            let mut entries = vec![[Z64::ZERO; TERMS]; size];
            for ((masked, &own), &next) in message.chunks_exact_mut(size * TERMS).zip(own).zip(next) {
                function.entries((own + next).0, &mut entries);
                masked
                    .iter_mut()
                    .zip(entries.as_flattened())
                    .for_each(|(mask, &entry)| *mask = entry - *mask);
            }
        },
        |terms, tables, v, _| {
            let tables = tables.as_chunks::<TERMS>().0.chunks_exact(size);
            for ((term, table), v) in terms.iter_mut().zip(tables).zip(v) {
                let entry = table[(v.0 >> low_bits) as usize & (size - 1)];
                let weights = function.weights(v.0 & ((1 << low_bits) - 1));
                *term = entry.into_iter().zip(weights).map(|(entry, weight)| entry * weight).sum();
            }
        },
    )
}
