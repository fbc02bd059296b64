//! Pseudorandom secret sharing: randomness that two servers share without a message.
//!
//! Server i holds key K_i in common with server i - 1 and key K_{i+1} in common with server i + 1.
//! A session derives its own AES-128 keys from them (BLAKE3, keyed, over the session number). A
//! step's stream is AES in counter mode; the first half of the counter block holds the step's
//! sequence number, its protocol and the number of the stream within the step, and the second half
//! counts blocks. No two streams of a session can overlap before 2^64 blocks, and a session that
//! stays below 2^43 AES blocks keeps the distance of AES from a random function negligible.
//!
//! Source: Cramer, Damgard, Ishai, "Share conversion, pseudorandom secret-sharing and applications
//! to secure computation", TCC 2005; the three-party form is that of Araki et al., CCS 2016.

use aes::Aes128;
use concilium_ring::Element;
use ctr::Ctr64BE;
use ctr::cipher::{InnerIvInit, KeyInit, StreamCipher};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::channel::Step;

/// The two keys that one server has in common with its neighbours. Fresh for every link that the
/// servers establish, so that session numbers can't repeat under the same keys after a restart.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct PairwiseKeys {
    own: [u8; 32],
    next: [u8; 32],
}

impl PairwiseKeys {
    /// The keys of server i: `own` is K_i, shared with the previous server, and `next` is K_{i+1},
    /// shared with the next one.
    pub fn new(own: [u8; 32], next: [u8; 32]) -> Self {
        PairwiseKeys { own, next }
    }

    /// Joins the contributions of the two holders of K_j to one key. The result is uniform if
    /// either contribution is. `holder` is server j's contribution, `previous` that of server j - 1.
    pub fn join(holder: &[u8; 32], previous: &[u8; 32]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("concilium v1 pairwise key");
        hasher.update(holder).update(previous);
        *hasher.finalize().as_bytes()
    }
}

/// The session's two keystream generators of one server.
pub(crate) struct Prss {
    /// Streams of K_i, in common with the previous server.
    pub(crate) own: Keystream,
    /// Streams of K_{i+1}, in common with the next server.
    pub(crate) next: Keystream,
}

impl Prss {
    pub(crate) fn new(keys: &PairwiseKeys, session: u64) -> Self {
        Prss { own: Keystream::new(&keys.own, session), next: Keystream::new(&keys.next, session) }
    }
}

/// The streams of one pairwise key in one session.
pub(crate) struct Keystream {
    cipher: Aes128,
}

impl Keystream {
    fn new(key: &[u8; 32], session: u64) -> Self {
        let mut message = *b"concilium v1 session key\0\0\0\0\0\0\0\0";
        message[24..].copy_from_slice(&session.to_be_bytes());
        let mut derived: [u8; 32] = *blake3::keyed_hash(key, &message).as_bytes();
        let mut short = [0; 16];
        short.copy_from_slice(&derived[..16]);
        let cipher = Aes128::new(&short.into());
        derived.zeroize();
        short.zeroize();
        Keystream { cipher }
    }

    /// `count` uniform ring elements of stream number `stream` of a step.
    pub(crate) fn elements<E: Element>(&self, step: Step, stream: u8, count: usize) -> Vec<E> {
        self.stream(step, stream).take(count)
    }

    /// `count` uniform words of stream number `stream` of a step.
    pub(crate) fn words(&self, step: Step, stream: u8, count: usize) -> Vec<u64> {
        self.stream(step, stream).take(count)
    }

    /// Stream number `stream` of a step, from its beginning.
    pub(crate) fn stream(&self, step: Step, stream: u8) -> Stream {
        let mut start = [0; 16];
        start[..4].copy_from_slice(&step.sequence.to_be_bytes());
        start[4] = step.protocol.code();
        start[5] = stream;
        let core =
            ctr::CtrCore::<Aes128, ctr::flavors::Ctr64BE>::inner_iv_init(self.cipher.clone(), &start.into());
        Stream(ctr::cipher::StreamCipherCoreWrapper::from_core(core))
    }
}

/// A stream that is read a piece at a time, so that what it masks is still in the cache.
pub(crate) struct Stream(Ctr64BE<Aes128>);

/// Elements that are drawn from several streams before they are used together: a page of each.
pub(crate) const PIECE: usize = 512;

impl Stream {
    /// Overwrites `items` with what comes next.
    pub(crate) fn fill<T: bytemuck::Pod>(&mut self, items: &mut [T]) {
        self.0.write_keystream(bytemuck::cast_slice_mut(items));
    }

    /// The `count` items that come next. Drawn a piece at a time, so that memory is written once and not
    /// zeroed before.
    fn take<T: bytemuck::Pod>(&mut self, count: usize) -> Vec<T> {
        let mut items = Vec::with_capacity(count);
        let mut drawn = [T::zeroed(); PIECE];
        while items.len() < count {
            let drawn = &mut drawn[..PIECE.min(count - items.len())];
            self.fill(drawn);
            items.extend_from_slice(drawn);
        }
        items
    }

    /// Applies `function` to each element and what comes next.
    pub(crate) fn for_each<E: Element>(&mut self, elements: &mut [E], function: impl Fn(&mut E, E)) {
        let mut drawn = [E::ZERO; PIECE];
        for piece in elements.chunks_mut(PIECE) {
            let drawn = &mut drawn[..piece.len()];
            self.fill(drawn);
            piece.iter_mut().zip(drawn).for_each(|(element, &mut mask)| function(element, mask));
        }
    }
}

#[cfg(test)]
mod tests {
    use concilium_ring::Z64;

    use super::*;
    use crate::channel::Protocol;

    fn step(sequence: u32) -> Step {
        Step { sequence, protocol: Protocol::PolynomialExchange }
    }

    #[test]
    fn the_two_holders_of_a_key_draw_the_same() {
        let keys = [[1; 32], [2; 32], [3; 32]];
        let prss = |i: usize| Prss::new(&PairwiseKeys::new(keys[i], keys[(i + 1) % 3]), 9);
        for i in 0..3 {
            let next = prss((i + 1) % 3);
            let mine: Vec<Z64> = prss(i).next.elements(step(4), 1, 100);
            assert!(mine == next.own.elements::<Z64>(step(4), 1, 100));
            assert!(mine != next.next.elements::<Z64>(step(4), 1, 100));
        }
    }

    #[test]
    fn streams_differ_by_session_step_protocol_and_number() {
        let draw = |session, step, stream| Keystream::new(&[7; 32], session).words(step, stream, 4);
        let base = draw(1, step(0), 0);
        assert_ne!(base, draw(2, step(0), 0));
        assert_ne!(base, draw(1, step(1), 0));
        assert_ne!(base, draw(1, step(0), 1));
        assert_ne!(base, draw(1, Step { sequence: 0, protocol: Protocol::BitConversion }, 0));
        assert_eq!(base, draw(1, step(0), 0));
        // A longer draw continues the same stream.
        assert_eq!(base, draw(1, step(0), 0)[..4]);
    }
}
