//! Three-party replicated secret sharing: shares, shared randomness and protocols.
//!
//! A value x in Z_2^k is shared as x = x0 + x1 + x2. **Server i holds components i and i + 1**,
//! indices modulo 3, so component j is held by servers j and j - 1, and so is the key K_j that
//! expands to randomness which exactly those two know (pseudorandom secret sharing, PRSS).
//! Boolean shares are the same with exclusive or.
//!
//! All protocols are for semi-honest servers of which at most one is corrupted. Code here is
//! synchronous and knows neither sockets nor storage: a [`Channel`] moves the messages.
//!
//! # The dealer's look-up
//! Whatever is shared, server h ("dealer") knows u = x_h + x_{h+1} and the two others
//! ("evaluators") both know v = x_{h+2}. A function of u and of a few bits of v is therefore a
//! table which the dealer can compute and send to one evaluator under masks that the other
//! evaluator knows; both look up the entry at v without a message. Comparison, selection and the
//! conversion of bits are built from that, the first two of the messages in module `dealt`. See
//! [`comparison`].

mod bits;
pub mod boolean;
pub mod channel;
pub mod comparison;
pub mod consensus;
pub mod conversion;
pub mod cost;
mod dealt;
pub mod input;
pub mod linear;
#[cfg(feature = "local-world")]
pub mod local;
mod lookup;
pub mod opening;
pub mod party;
pub mod probability;
pub mod product;
pub mod progress;
pub mod prss;
pub mod release;
pub mod selection;
mod self_check;
pub mod shares;
pub mod truncation;
mod vectorised;
pub mod votes;
pub mod zero_test;

/// What messages are made of.
pub use bytes::Bytes;
pub use channel::{Address, Channel, ChannelError, Neighbour, Protocol, Step};
pub use party::{MpcError, Party, PartyIndex, Traffic};
pub use progress::{Progress, Stage};
pub use prss::PairwiseKeys;
pub use self_check::{SelfCheckError, self_check};
pub use shares::{BitShares, Shares};
