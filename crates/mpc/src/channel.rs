//! How protocol code reaches the two other servers.
//!
//! Protocols are written against [`Channel`] alone: the in-memory world of the tests and the gRPC
//! lanes of the servers implement the same two calls.

use std::fmt;

use bytes::Bytes;
use thiserror::Error;

use crate::progress::Progress;

/// One of the two other servers, named relative to this one: server `i` has server `i + 1` as next
/// and server `i - 1` as previous neighbour, indices modulo 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Neighbour {
    /// Server `i + 1 mod 3`, which also holds component `i + 1`.
    Next,
    /// Server `i - 1 mod 3`, which also holds component `i`.
    Previous,
}

impl fmt::Display for Neighbour {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Neighbour::Next => "next server",
            Neighbour::Previous => "previous server",
        })
    }
}

/// The protocol that a message belongs to. It travels with every message, so that servers that
/// have fallen out of step find out at once and can name both places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Protocol {
    /// Rescaling of a product, [`crate::linear`].
    LinearTruncation = 1,
    /// The dealer's masked tables of a comparison, [`crate::comparison`].
    ComparisonTables = 2,
    /// The evaluators' exchange of what they looked up, [`crate::comparison`].
    ComparisonExchange = 3,
    /// The dealer's masked coefficients of polynomials of bits, [`crate::boolean`].
    PolynomialCoefficients = 4,
    /// The dealer's masked tables of bit times value, [`crate::selection`].
    SelectionTables = 5,
    /// The evaluators' exchange of bit times value, [`crate::selection`].
    SelectionExchange = 6,
    /// The masked factor of the conversion of bits to arithmetic shares, [`crate::conversion`].
    BitConversion = 7,
    /// Injection of noise shares into an aggregate and its resharing, [`crate::release`].
    NoiseInjection = 8,
    /// Resharing of sums that are computed with before they are noised, [`crate::consensus`].
    Resharing = 9,
    /// Opening of noised decisions among the servers, [`crate::consensus`].
    DecisionOpening = 10,
    /// The dealer's masked tables of a function, [`crate::probability`].
    LookUpTables = 11,
    /// The evaluators' exchange of what they looked up, [`crate::probability`].
    LookUpExchange = 12,
    /// Product of two shared numbers, [`crate::product`].
    Product = 13,
    /// The dealer's masked wrap bits of an exact truncation, [`crate::truncation`].
    ExactTruncation = 14,
    /// Opening of whether sums that must be zero are, [`crate::zero_test`].
    ZeroTest = 15,
    /// The evaluators' exchange of the values of polynomials of bits, [`crate::boolean`].
    PolynomialExchange = 16,
}

impl Protocol {
    /// All protocols, in the order of their numbers.
    pub const ALL: [Protocol; 16] = [
        Protocol::LinearTruncation,
        Protocol::ComparisonTables,
        Protocol::ComparisonExchange,
        Protocol::PolynomialCoefficients,
        Protocol::SelectionTables,
        Protocol::SelectionExchange,
        Protocol::BitConversion,
        Protocol::NoiseInjection,
        Protocol::Resharing,
        Protocol::DecisionOpening,
        Protocol::LookUpTables,
        Protocol::LookUpExchange,
        Protocol::Product,
        Protocol::ExactTruncation,
        Protocol::ZeroTest,
        Protocol::PolynomialExchange,
    ];

    /// The number that stands for the protocol in a message.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The protocol that a message's number stands for, or `None` for an unknown number.
    pub fn from_code(code: u8) -> Option<Self> {
        Protocol::ALL.into_iter().find(|protocol| protocol.code() == code)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Protocol::LinearTruncation => "linear-truncation",
            Protocol::ComparisonTables => "comparison-tables",
            Protocol::ComparisonExchange => "comparison-exchange",
            Protocol::PolynomialCoefficients => "polynomial-coefficients",
            Protocol::SelectionTables => "selection-tables",
            Protocol::SelectionExchange => "selection-exchange",
            Protocol::BitConversion => "bit-conversion",
            Protocol::NoiseInjection => "noise-injection",
            Protocol::Resharing => "resharing",
            Protocol::DecisionOpening => "decision-opening",
            Protocol::LookUpTables => "look-up-tables",
            Protocol::LookUpExchange => "look-up-exchange",
            Protocol::Product => "product",
            Protocol::ExactTruncation => "exact-truncation",
            Protocol::ZeroTest => "zero-test",
            Protocol::PolynomialExchange => "polynomial-exchange",
        })
    }
}

/// One communication step of a session. The number counts the steps of the session from 0, so no
/// step is ever used twice; the same number keys the shared randomness of the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Step {
    /// How many steps the session took before this one.
    pub sequence: u32,
    /// What the step does.
    pub protocol: Protocol,
}

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "step {} ({})", self.sequence, self.protocol)
    }
}

/// Where a message belongs: session, step of the session, record of the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// The session: one evaluation of one batch. Never reused under the same pairwise keys.
    pub session: u64,
    /// The step within the session.
    pub step: Step,
    /// The record within the step: a step whose payload is cut into several messages counts them
    /// from 0.
    pub record: u32,
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "session {:016x} {} record {}", self.session, self.step, self.record)
    }
}

/// Why a message could not be sent or received. All of them end the session; none says anything
/// about a share.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// The other server is gone or the link broke.
    #[error("lost the {neighbour} at {address}: {reason}")]
    Disconnected {
        /// Which of the two other servers.
        neighbour: Neighbour,
        /// The message that was being sent or waited for.
        address: Address,
        /// What the transport reported.
        reason: String,
    },
    /// Nothing arrived in time.
    #[error("the {neighbour} sent nothing for {address} within {waited_ms} ms")]
    TimedOut {
        /// Which of the two other servers.
        neighbour: Neighbour,
        /// The message waited for.
        address: Address,
        /// How long this server waited, in milliseconds.
        waited_ms: u64,
    },
    /// A message for another place arrived: the servers are out of step.
    #[error("expected {expected} from the {neighbour}, but it sent {received}")]
    OutOfStep {
        /// Which of the two other servers.
        neighbour: Neighbour,
        /// The message waited for.
        expected: Address,
        /// What arrived instead, in words.
        received: String,
    },
}

/// A pair of ordered, reliable, private links to the two other servers.
///
/// `send` hands the payload over and does not wait for the other side; `receive` blocks until the
/// message with exactly this address is there. Both sides use the same addresses in the same order.
///
/// A payload is shared and not copied. The memory of one that is sent is given back when the transport
/// has let go of it; like the transport's own buffers it is not wiped.
pub trait Channel {
    /// Sends `payload`, at most [`MAXIMUM_RECORD_BYTES`](crate::party::MAXIMUM_RECORD_BYTES), to a
    /// neighbour.
    ///
    /// # Errors
    /// [`ChannelError`] when the link is down.
    fn send(&mut self, to: Neighbour, address: Address, payload: Bytes) -> Result<(), ChannelError>;

    /// Waits for the payload that a neighbour sends under `address`.
    ///
    /// # Errors
    /// [`ChannelError`] when the link is down, the message is late, or another one arrives.
    fn receive(&mut self, from: Neighbour, address: Address) -> Result<Bytes, ChannelError>;

    /// Is told how far the session has come, whenever a stage or a step begins. A channel that times
    /// or reports what its messages belong to overrides this; nothing travels because of it.
    fn note_progress(&mut self, _progress: Progress) {}
}

impl<C: Channel + ?Sized> Channel for &mut C {
    fn send(&mut self, to: Neighbour, address: Address, payload: Bytes) -> Result<(), ChannelError> {
        (**self).send(to, address, payload)
    }

    fn receive(&mut self, from: Neighbour, address: Address) -> Result<Bytes, ChannelError> {
        (**self).receive(from, address)
    }

    fn note_progress(&mut self, progress: Progress) {
        (**self).note_progress(progress);
    }
}
