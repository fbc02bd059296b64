//! Identities of requests, and the secret results that are kept for them.

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop};

/// Identity that a client gives to a request. The client repeats it to get the same answer again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub [u8; 16]);

impl fmt::Display for RequestId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

/// Hash of everything that a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentDigest(pub [u8; 32]);

/// What a request is stored under. Clients cannot reach each other's requests, because the client's
/// authenticated identity is part of the key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestKey {
    /// Name of the task.
    pub task: String,
    /// Epoch of the task's models.
    pub epoch: u64,
    /// Identity of the client, from its certificate.
    pub client: String,
    /// The client's id of the request.
    pub request: RequestId,
}

impl fmt::Display for RequestKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "request {} of client {} to task {} epoch {}",
            self.request, self.client, self.task, self.epoch
        )
    }
}

/// A server's share of a result, as stored. Secret: neither `Debug` nor `Clone` nor a comparison that
/// could tell by its time, and wiped when dropped.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct ResultBytes(Vec<u8>);

impl ResultBytes {
    /// The bytes to be sent to the client.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Moves the bytes out, and leaves none.
    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

impl From<Vec<u8>> for ResultBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

/// What the ledger knows about a request.
pub enum Lookup {
    /// Nothing: it may be reserved.
    New,
    /// It was charged, and this server's share of its result is kept.
    Held {
        /// The bytes that were, or would have been, sent.
        result: ResultBytes,
        /// Whether [`Ledger::mark_released`](super::Ledger::mark_released) was called. If it was not,
        /// here or on another server, the servers agree whether to send the kept bytes (every server
        /// holds them) or to reserve again and pay again.
        released: bool,
    },
}
