//! What people answer for: epochs that begin, and tasks that stop.

use super::{
    LedgerHead,
    rows::{Reader, Writer},
};

/// Why a task epoch may begin with the total that it begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// All models were trained anew on records that do not count in earlier epochs: it begins with
    /// nothing spent.
    Retrained,
    /// The same records are behind it as behind an older epoch: it begins with what was spent there.
    CarriedOver {
        /// The older epoch.
        from_epoch: u64,
    },
}

/// A person's word about the models of a task epoch. The servers cannot see training data, so they
/// keep who said what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attestation {
    /// The task.
    pub task: String,
    /// The epoch that begins.
    pub epoch: u64,
    /// What it begins with.
    pub basis: Basis,
    /// Who answers for it.
    pub attested_by: String,
}

/// A task that answers nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// Why.
    pub reason: String,
    /// Since when, in milliseconds since 1970-01-01 UTC.
    pub since_ms: u64,
}

impl Stop {
    pub(super) fn encode(&self) -> Vec<u8> {
        Writer::default().u64(self.since_ms).text(&self.reason).0
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let stop = Self { since_ms: reader.u64()?, reason: reader.text()? };
        reader.end(stop)
    }
}

/// What is stored of a task epoch beside its totals.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Epoch {
    /// Basis, and who answers for it.
    pub(super) attested: Option<(Basis, String)>,
    /// Where its spending went on.
    pub(super) carried_into: Option<u64>,
}

impl Epoch {
    pub(super) fn encode(&self) -> Vec<u8> {
        let writer = match &self.attested {
            None => Writer::default().u8(0),
            Some((basis, attested_by)) => basis.encode(Writer::default().u8(1)).text(attested_by),
        };
        match self.carried_into {
            None => writer.u8(0),
            Some(epoch) => writer.u8(1).u64(epoch),
        }
        .0
    }

    /// Reads a row; one that is not there has nothing.
    pub(super) fn decode(bytes: Option<&[u8]>) -> Option<Self> {
        let Some(bytes) = bytes else {
            return Some(Self::default());
        };
        let mut reader = Reader(bytes);
        let attested = match reader.u8()? {
            0 => None,
            1 => Some((Basis::decode(&mut reader)?, reader.text()?)),
            _ => return None,
        };
        let carried_into = match reader.u8()? {
            0 => None,
            1 => Some(reader.u64()?),
            _ => return None,
        };
        reader.end(Self { attested, carried_into })
    }
}

/// Encodes the end of a peer's log.
pub(super) fn encode_peer(head: LedgerHead) -> Vec<u8> {
    Writer::default().u64(head.entries).bytes(&head.hash).0
}

/// Reads the end of a peer's log.
pub(super) fn decode_peer(bytes: &[u8]) -> Option<LedgerHead> {
    let mut reader = Reader(bytes);
    let head = LedgerHead { entries: reader.u64()?, hash: reader.array()? };
    reader.end(head)
}
