//! One server's side of one session: its place, its randomness, its links, and what it sent.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use concilium_ring::Element;
use thiserror::Error;

use crate::channel::{Address, Channel, ChannelError, Neighbour, Protocol, Step};
use crate::progress::{Progress, Stage};
use crate::prss::{PairwiseKeys, Prss};

/// Messages are cut so that no record is longer than this: what has left is on its way while the rest is
/// being sent, and it bounds what a peer can make this server store for one record. A multiple of the size
/// of every ring element, so that no element is cut.
pub const MAXIMUM_RECORD_BYTES: usize = 256 << 10;

/// Why a session failed. None of the variants carries a share.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MpcError {
    /// A message could not be exchanged.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// A message has another length than the protocol says.
    #[error(
        "the {neighbour} sent {received} bytes for {address}, where {expected} were due; do all three servers run the same version?"
    )]
    WrongLength {
        /// The sender.
        neighbour: Neighbour,
        /// Which message.
        address: Address,
        /// Length due, in bytes.
        expected: usize,
        /// Length received, in bytes.
        received: usize,
    },
    /// Two servers sent different copies of one component.
    #[error(
        "the two other servers sent different copies of the same component in {step}: one of the three is faulty"
    )]
    Inconsistent {
        /// Where.
        step: Step,
    },
}

/// The place of a server among the three: 0, 1 or 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartyIndex(u8);

impl PartyIndex {
    /// All three places in order.
    pub const ALL: [PartyIndex; 3] = [PartyIndex(0), PartyIndex(1), PartyIndex(2)];

    /// The place with this number, or `None` above 2.
    pub fn new(number: u8) -> Option<Self> {
        (number < 3).then_some(PartyIndex(number))
    }

    /// The place of a counter, modulo 3: who deals in the counter's turn.
    pub fn in_turn(counter: usize) -> Self {
        PartyIndex((counter % 3) as u8)
    }

    /// 0, 1 or 2.
    pub fn number(self) -> usize {
        usize::from(self.0)
    }

    /// The next server's place.
    pub fn next(self) -> Self {
        PartyIndex((self.0 + 1) % 3)
    }

    /// The previous server's place.
    pub fn previous(self) -> Self {
        PartyIndex((self.0 + 2) % 3)
    }
}

impl std::fmt::Display for PartyIndex {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "server {}", self.0)
    }
}

/// A server's part in a protocol with a dealer h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seat {
    /// Server h: knows components h and h + 1 of every sharing.
    Dealer,
    /// Server h + 1: knows component h + 2. The dealer is its previous neighbour.
    FirstEvaluator,
    /// Server h + 2: knows component h + 2. The dealer is its next neighbour.
    SecondEvaluator,
}

/// What one server sent in a session, and how many rounds the session took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// The longest chain of messages of which each depends on the one before.
    pub rounds: u32,
    /// Payload bytes sent to both neighbours.
    pub bytes_sent: u64,
    /// Messages sent to both neighbours.
    pub messages_sent: u64,
    /// Payload bytes sent, by protocol in the order of [`Protocol::ALL`].
    pub bytes_by_protocol: [u64; Protocol::ALL.len()],
}

/// One server in one session.
pub struct Party<C> {
    index: PartyIndex,
    session: u64,
    sequence: u32,
    stage: Stage,
    pub(crate) prss: Prss,
    channel: C,
    traffic: Traffic,
    /// For each server the length of the longest chain of messages that its state depends on.
    /// Steps are public, so every server can count for all three.
    depths: [u32; 3],
}

impl<C: Channel> Party<C> {
    /// Opens a session. `session` must never have been used under the same keys.
    pub fn new(index: PartyIndex, session: u64, keys: &PairwiseKeys, channel: C) -> Self {
        Party {
            index,
            session,
            sequence: 0,
            stage: Stage::Opening,
            prss: Prss::new(keys, session),
            channel,
            traffic: Traffic::default(),
            depths: [0; 3],
        }
    }

    /// This server's place.
    pub fn index(&self) -> PartyIndex {
        self.index
    }

    /// What was sent so far.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Says which part of the evaluation comes next, for those who watch: see
    /// [`Channel::note_progress`].
    pub fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.note_progress();
    }

    fn note_progress(&mut self) {
        self.channel.note_progress(Progress { stage: self.stage, round: self.traffic.rounds });
    }

    /// Ends the session and gives the channel back.
    pub fn into_channel(self) -> C {
        self.channel
    }

    /// Interrupts the session and gives the channel back: the servers have something else to agree
    /// on over the same links before they go on.
    pub fn pause(self) -> (Paused, C) {
        let Party { index, session, sequence, stage, prss, channel, traffic, depths } = self;
        (Paused(Party { index, session, sequence, stage, prss, channel: (), traffic, depths }), channel)
    }

    pub(crate) fn seat(&self, dealer: PartyIndex) -> Seat {
        if self.index == dealer {
            Seat::Dealer
        } else if self.index == dealer.next() {
            Seat::FirstEvaluator
        } else {
            Seat::SecondEvaluator
        }
    }

    /// Opens the next step. `messages` lists who sends to whom, as distances from `dealer`.
    pub(crate) fn begin(
        &mut self,
        protocol: Protocol,
        dealer: PartyIndex,
        messages: &[(usize, usize)],
    ) -> Step {
        let before = self.depths;
        for &(from, to) in messages {
            let (from, to) = ((dealer.number() + from) % 3, (dealer.number() + to) % 3);
            self.depths[to] = self.depths[to].max(before[from] + 1);
        }
        self.traffic.rounds = self.depths.into_iter().max().unwrap_or(0);
        let step = Step { sequence: self.sequence, protocol };
        self.sequence += 1;
        self.note_progress();
        step
    }

    /// Sends items. A vector is not copied, a slice is once.
    pub(crate) fn send<'a, T: bytemuck::Pod + Send + Sync>(
        &mut self,
        to: Neighbour,
        step: Step,
        items: impl Into<Cow<'a, [T]>>,
    ) -> Result<(), MpcError> {
        let payload = match items.into() {
            Cow::Borrowed(items) => Bytes::copy_from_slice(bytemuck::cast_slice(items)),
            Cow::Owned(items) => Bytes::from_owner(Sent(Arc::new(items))),
        };
        self.send_bytes(to, step, payload)
    }

    /// Sends items that are still read here, without a copy.
    pub(crate) fn send_and_keep<T: bytemuck::Pod + Send + Sync>(
        &mut self,
        to: Neighbour,
        step: Step,
        items: Vec<T>,
    ) -> Result<Arc<Vec<T>>, MpcError> {
        let items = Arc::new(items);
        self.send_bytes(to, step, Bytes::from_owner(Sent(Arc::clone(&items))))?;
        Ok(items)
    }

    fn send_bytes(&mut self, to: Neighbour, step: Step, mut rest: Bytes) -> Result<(), MpcError> {
        for record in 0.. {
            if rest.is_empty() {
                break;
            }
            let payload = rest.split_to(rest.len().min(MAXIMUM_RECORD_BYTES));
            let address = Address { session: self.session, step, record };
            let bytes = payload.len() as u64;
            self.channel.send(to, address, payload)?;
            self.traffic.messages_sent += 1;
            self.traffic.bytes_sent += bytes;
            self.traffic.bytes_by_protocol[usize::from(step.protocol.code()) - 1] += bytes;
        }
        Ok(())
    }

    pub(crate) fn receive<T: bytemuck::Pod>(
        &mut self,
        from: Neighbour,
        step: Step,
        count: usize,
    ) -> Result<Vec<T>, MpcError> {
        let mut items = Vec::with_capacity(count);
        let total = count * size_of::<T>();
        for (record, start) in (0..total).step_by(MAXIMUM_RECORD_BYTES).enumerate() {
            let address = Address { session: self.session, step, record: record as u32 };
            let payload = self.channel.receive(from, address)?;
            let expected = MAXIMUM_RECORD_BYTES.min(total - start);
            if payload.len() != expected {
                return Err(MpcError::WrongLength {
                    neighbour: from,
                    address,
                    expected,
                    received: payload.len(),
                });
            }
            // A transport may hand over bytes from anywhere in its buffer.
            items.extend(payload.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned::<T>));
        }
        Ok(items)
    }

    /// This server's two components of a sharing of uniform elements that no server knows: F(K_i) and
    /// F(K_{i+1}).
    pub(crate) fn random_shares<E: Element>(&self, step: Step, stream: u8, count: usize) -> [Vec<E>; 2] {
        [&self.prss.own, &self.prss.next].map(|stream_of| stream_of.elements::<E>(step, stream, count))
    }

    /// This server's term of a sharing of zero, fresh and uniform: F(K_i) - F(K_{i+1}).
    pub(crate) fn zero_share<E: Element>(&self, step: Step, stream: u8, count: usize) -> Vec<E> {
        let mut share = self.prss.own.elements::<E>(step, stream, count);
        let mut next = self.prss.next.stream(step, stream);
        next.for_each(&mut share, |mine, other| *mine -= other);
        share
    }
}

/// Items that are sent as the bytes that they are in memory.
struct Sent<T>(Arc<Vec<T>>);

impl<T: bytemuck::Pod> AsRef<[u8]> for Sent<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// A session that was interrupted. It goes on where it was, so that no step repeats.
pub struct Paused(Party<()>);

impl Paused {
    /// Goes on over `channel`, which leads to the same two servers.
    pub fn resume<C: Channel>(self, channel: C) -> Party<C> {
        let Party { index, session, sequence, stage, prss, channel: (), traffic, depths } = self.0;
        Party { index, session, sequence, stage, prss, channel, traffic, depths }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_go_round() {
        for place in PartyIndex::ALL {
            assert_eq!(place.next().previous(), place);
            assert_eq!(place.next().next(), place.previous());
        }
        assert_eq!(PartyIndex::new(3), None);
        assert_eq!(PartyIndex::in_turn(5).number(), 2);
    }
}
