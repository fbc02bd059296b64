//! Whether sums of votes add up, without opening one of them.
//!
//! A model that keeps to the ranges it states gives every row exactly one vote
//! ([one-hot argmax](crate::votes::one_hot_argmax)). The self-test of a model checks that on public rows,
//! and nothing else: all that the servers learn is a bit, and for a model that keeps to its ranges they
//! know it before.
//!
//! # Protocol
//! Let d_q be the sum of row q less the total it must have. The servers hold additive terms of d_q and
//! 1. reshare them: server i sends its term plus its term of a sharing of zero to server i - 1;
//! 2. draw a sharing of uniform r_q that no server knows, compute their additive terms of the inner
//!    product v = sum of r_q d_q, add their terms of a fresh sharing of zero, and send them to both
//!    others, who add up all three.
//!
//! # Security
//! Semi-honest, one corruption, perfect given the shared randomness. The messages of step 1 are uniform.
//! Those of step 2 are uniform but for their sum v, so a server's view can be simulated from v alone. If
//! every d_q is zero, v is zero whatever the sums were: nothing is learned about them. Otherwise let 2^t be
//! the largest power of two that divides every d_q: v is uniform among the multiples of 2^t, because each
//! server lacks a component of each r_q, and t is what is learned. Of one model every d_q is 0 or -1, and
//! then t is 0: the view shows *that* a row has no vote, not which row or how many.
//!
//! # Soundness
//! v is zero although some d_q is not with probability 2^(t - 64): 2^-64 for one model.

use concilium_ring::Element;

use crate::channel::{Channel, Neighbour, Protocol};
use crate::consensus::{OPEN_MESSAGES, RESHARE_MESSAGES};
use crate::party::{MpcError, Party, PartyIndex};
use crate::release::Aggregate;

impl<E: Element> Aggregate<E> {
    /// Whether every row of the sums adds up to `total`, opened to the three servers. The sums are given
    /// up. For the self-test of a model on public rows: of clients' rows nothing is opened without noise.
    ///
    /// Two rounds; every server sends one element for each row and two more. See the module for what is
    /// learned.
    ///
    /// # Errors
    /// [`MpcError`] when a message is lost or has the wrong length.
    pub fn rows_add_up_to<C: Channel>(self, party: &mut Party<C>, total: u64) -> Result<bool, MpcError> {
        let (rows, columns) = self.dim();
        let step = party.begin(Protocol::ZeroTest, PartyIndex::ALL[0], &RESHARE_MESSAGES);
        let mut own = party.zero_share::<E>(step, 0, rows);
        for (difference, terms) in own.iter_mut().zip(self.terms().chunks_exact(columns.max(1))) {
            terms.iter().for_each(|&term| *difference += term);
            if party.index() == PartyIndex::ALL[0] {
                *difference -= E::from_unsigned(total);
            }
        }
        party.send(Neighbour::Previous, step, &own)?;
        let next: Vec<E> = party.receive(Neighbour::Next, step, rows)?;
        let step = party.begin(Protocol::ZeroTest, PartyIndex::ALL[0], &OPEN_MESSAGES);
        let mut sum = party.zero_share::<E>(step, 0, 1)[0];
        let [random, next_random] = party.random_shares::<E>(step, 1, rows);
        for (((&d, &next_d), &r), &next_r) in own.iter().zip(&next).zip(&random).zip(&next_random) {
            sum += d * (r + next_r) + next_d * r;
        }
        party.send(Neighbour::Next, step, &[sum])?;
        party.send(Neighbour::Previous, step, &[sum])?;
        for from in [Neighbour::Previous, Neighbour::Next] {
            let term: Vec<E> = party.receive(from, step, 1)?;
            sum += term[0];
        }
        Ok(sum == E::ZERO)
    }
}
