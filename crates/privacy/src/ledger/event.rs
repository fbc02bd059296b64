//! What the log says: events, their bytes, and the chain of hashes over them.
//!
//! Encoding, version 2, integers big-endian, texts with their length (u16) before them: version u8,
//! entry number u64, time in milliseconds u64, kind of event u8, then the event's fields in the
//! order in which they are declared. The hash of an entry is keyed BLAKE3 derivation over the hash of
//! the entry before (zero for the first) and these bytes.

use std::collections::BTreeMap;

use super::{
    Attestation, Basis, ContentDigest, LedgerHead, PeerHead, RequestId, RequestKey, Total,
    rows::{Reader, Writer},
};
use crate::{
    mechanism::{Mechanism, Release, Threshold},
    parameter::{NanoRho, NoiseScale},
    policy::{PrivacyUnit, mechanism_code, release_code},
};

const VERSION: u8 = 2;
const HASH_CONTEXT: &str = "concilium 2026-11 ledger entry v2";

/// Something that changed what a server knows about spending.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A request, or the first part of one, was charged.
    Committed(Committed),
    /// All three servers have committed these requests, and their results are final.
    Delivered {
        /// The requests.
        requests: Vec<RequestKey>,
        /// Ends of the peers' logs as they told them before the release.
        peers: Vec<PeerHead>,
    },
    /// A peer knew of more spending, and this server counts it from now on.
    Raised(Raised),
    /// A task answers nothing any more.
    Stopped {
        /// The task.
        task: String,
        /// Why.
        reason: String,
    },
    /// An operator let a stopped task go on.
    Resumed {
        /// The task.
        task: String,
        /// Who decided it.
        operator: String,
        /// Why.
        reason: String,
    },
    /// Somebody answers for a task epoch's first total.
    Attested {
        /// What was attested.
        attestation: Attestation,
        /// The total that the epoch begins with.
        carried: Total,
    },
}

/// A charge, with the noise and the policy that it was computed from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The request.
    pub key: RequestKey,
    /// Hash of what it asks for, under a key that only this ledger knows.
    pub digest: ContentDigest,
    /// Hash of the policy.
    pub policy_digest: [u8; 32],
    /// What is released.
    pub release: Release,
    /// Noise of every bin.
    pub mechanism: Mechanism,
    /// The threshold test, if the release has one.
    pub threshold: Option<Threshold>,
    /// Whom the price protects.
    pub unit: PrivacyUnit,
    /// Bins of a row.
    pub bins: u32,
    /// Rows of the request.
    pub rows: u32,
    /// Owners whose models voted: how many, and the hash of their sorted names.
    pub owners: u32,
    /// See [`owners`](Self::owners).
    pub owners_digest: [u8; 32],
    /// What was charged. Requests and rows count with the last part.
    pub charged: Total,
    /// What was set aside and is not charged.
    pub voided: NanoRho,
    /// Whether this was the last part of the request's charge, with a result.
    pub last: bool,
}

/// What was added because a peer's totals were greater.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Raised {
    /// The task.
    pub task: String,
    /// Its epoch.
    pub epoch: u64,
    /// Server that knew more.
    pub peer: u8,
    /// Added to the task epoch's total.
    pub total: Total,
    /// Added to the clients' totals.
    pub by_client: BTreeMap<String, Total>,
    /// Added to the owners' totals.
    pub by_owner: BTreeMap<String, Total>,
}

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerEntry {
    /// Its place in the log, from zero.
    pub number: u64,
    /// When it was written, in milliseconds since 1970-01-01 UTC, by this server's clock; never
    /// less than in the entry before.
    pub time_ms: u64,
    /// What happened.
    pub event: Event,
}

impl LedgerEntry {
    /// What the entry adds to which task epoch; `None` if nothing.
    pub fn charged(&self) -> Option<(&str, u64, Total)> {
        match &self.event {
            Event::Committed(Committed { key, charged, .. }) => Some((&key.task, key.epoch, *charged)),
            Event::Raised(Raised { task, epoch, total, .. }) => Some((task, *epoch, *total)),
            Event::Attested { attestation: Attestation { task, epoch, .. }, carried }
                if *carried != Total::default() =>
            {
                Some((task, *epoch, *carried))
            }
            _ => None,
        }
    }

    /// The entry's bytes, over which the log's hashes go.
    pub fn encode(&self) -> Vec<u8> {
        let writer = Writer::with_capacity(320).u8(VERSION).u64(self.number).u64(self.time_ms);
        match &self.event {
            Event::Committed(event) => event.encode(writer.u8(1)),
            Event::Delivered { requests, peers } => {
                let mut writer = writer.u8(2).u32(requests.len() as u32);
                for RequestKey { task, epoch, client, request } in requests {
                    writer = writer.text(task).u64(*epoch).text(client).bytes(&request.0);
                }
                writer = writer.u32(peers.len() as u32);
                for PeerHead { peer, head } in peers {
                    writer = writer.u8(*peer).u64(head.entries).bytes(&head.hash);
                }
                writer
            }
            Event::Raised(Raised { task, epoch, peer, total, by_client, by_owner }) => {
                let mut writer = writer.u8(3).text(task).u64(*epoch).u8(*peer).total(*total);
                for parts in [by_client, by_owner] {
                    writer = writer.u32(parts.len() as u32);
                    for (name, total) in parts {
                        writer = writer.text(name).total(*total);
                    }
                }
                writer
            }
            Event::Stopped { task, reason } => writer.u8(4).text(task).text(reason),
            Event::Resumed { task, operator, reason } => writer.u8(5).text(task).text(operator).text(reason),
            Event::Attested { attestation, carried } => {
                let Attestation { task, epoch, basis, attested_by } = attestation;
                basis.encode(writer.u8(6).text(task).u64(*epoch)).text(attested_by).total(*carried)
            }
        }
        .0
    }

    /// Reads an entry; `None` if the bytes are none of this version.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let VERSION = reader.u8()? else {
            return None;
        };
        let (number, time_ms) = (reader.u64()?, reader.u64()?);
        let event = match reader.u8()? {
            1 => Event::Committed(Committed::decode(&mut reader)?),
            2 => {
                // Lists grow as they are read, so that a damaged length asks for no memory.
                let mut requests = Vec::new();
                for _ in 0..reader.u32()? {
                    requests.push(RequestKey {
                        task: reader.text()?,
                        epoch: reader.u64()?,
                        client: reader.text()?,
                        request: RequestId(reader.array()?),
                    });
                }
                let mut peers = Vec::new();
                for _ in 0..reader.u32()? {
                    let peer = reader.u8()?;
                    let head = LedgerHead { entries: reader.u64()?, hash: reader.array()? };
                    peers.push(PeerHead { peer, head });
                }
                Event::Delivered { requests, peers }
            }
            3 => {
                let mut raised = Raised {
                    task: reader.text()?,
                    epoch: reader.u64()?,
                    peer: reader.u8()?,
                    total: reader.total()?,
                    ..Raised::default()
                };
                for parts in [&mut raised.by_client, &mut raised.by_owner] {
                    for _ in 0..reader.u32()? {
                        parts.insert(reader.text()?, reader.total()?);
                    }
                }
                Event::Raised(raised)
            }
            4 => Event::Stopped { task: reader.text()?, reason: reader.text()? },
            5 => Event::Resumed { task: reader.text()?, operator: reader.text()?, reason: reader.text()? },
            6 => {
                let attestation = Attestation {
                    task: reader.text()?,
                    epoch: reader.u64()?,
                    basis: Basis::decode(&mut reader)?,
                    attested_by: reader.text()?,
                };
                Event::Attested { attestation, carried: reader.total()? }
            }
            _ => return None,
        };
        reader.end(Self { number, time_ms, event })
    }

    /// Hash of the entry with these bytes that follows the entry of hash `previous`.
    pub fn chain(previous: &[u8; 32], bytes: &[u8]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key(HASH_CONTEXT);
        hasher.update(previous);
        hasher.update(bytes);
        *hasher.finalize().as_bytes()
    }
}

impl Committed {
    fn encode(&self, writer: Writer) -> Writer {
        let RequestKey { task, epoch, client, request } = &self.key;
        let (votes, threshold) =
            self.threshold.map_or((0, (0, 0)), |threshold| (threshold.votes, noise(threshold.mechanism)));
        let mechanism = noise(self.mechanism);
        writer
            .text(task)
            .u64(*epoch)
            .text(client)
            .bytes(&request.0)
            .bytes(&self.digest.0)
            .bytes(&self.policy_digest)
            .u8(release_code(self.release))
            .u8(mechanism.0)
            .u64(mechanism.1)
            .u32(votes)
            .u8(threshold.0)
            .u64(threshold.1)
            .u8(unit_code(self.unit))
            .u32(self.bins)
            .u32(self.rows)
            .u32(self.owners)
            .bytes(&self.owners_digest)
            .total(self.charged)
            .rho(self.voided)
            .u8(self.last.into())
    }

    fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            key: RequestKey {
                task: reader.text()?,
                epoch: reader.u64()?,
                client: reader.text()?,
                request: RequestId(reader.array()?),
            },
            digest: ContentDigest(reader.array()?),
            policy_digest: reader.array()?,
            release: match reader.u8()? {
                1 => Release::Label,
                2 => Release::Histogram,
                3 => Release::ConfidentLabel,
                4 => Release::MeanProbability,
                _ => return None,
            },
            mechanism: mechanism(reader.u8()?, reader.u64()?)??,
            threshold: {
                let votes = reader.u32()?;
                let mechanism = mechanism(reader.u8()?, reader.u64()?)?;
                mechanism.map(|mechanism| Threshold { votes, mechanism })
            },
            unit: match reader.u8()? {
                1 => PrivacyUnit::Record,
                2 => PrivacyUnit::Owner,
                _ => return None,
            },
            bins: reader.u32()?,
            rows: reader.u32()?,
            owners: reader.u32()?,
            owners_digest: reader.array()?,
            charged: reader.total()?,
            voided: reader.rho()?,
            last: match reader.u8()? {
                0 => false,
                1 => true,
                _ => return None,
            },
        })
    }
}

impl Basis {
    pub(super) fn encode(self, writer: Writer) -> Writer {
        match self {
            Self::Retrained => writer.u8(1).u64(0),
            Self::CarriedOver { from_epoch } => writer.u8(2).u64(from_epoch),
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        match (reader.u8()?, reader.u64()?) {
            (1, 0) => Some(Self::Retrained),
            (2, from_epoch) => Some(Self::CarriedOver { from_epoch }),
            _ => None,
        }
    }
}

fn noise(mechanism: Mechanism) -> (u8, u64) {
    let (code, width) = mechanism_code(mechanism);
    (code, width.millionths())
}

/// The mechanism of a number and a width: none for the number zero, `None` for an unknown one.
fn mechanism(code: u8, millionths: u64) -> Option<Option<Mechanism>> {
    let width = NoiseScale::from_millionths(millionths);
    match code {
        0 => Some(None),
        1 => Some(Some(Mechanism::DiscreteGaussian { sigma: width })),
        2 => Some(Some(Mechanism::DiscreteLaplace { scale: width })),
        _ => None,
    }
}

const fn unit_code(unit: PrivacyUnit) -> u8 {
    match unit {
        PrivacyUnit::Record => 1,
        PrivacyUnit::Owner => 2,
    }
}
