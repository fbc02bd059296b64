//! One entry of the hash-chained log.
//!
//! Encoding, version 1, integers little-endian: version u8, entry number u64, time in milliseconds
//! u64, epoch u64, request id 16 bytes, content digest 32, policy digest 32, release u8, mechanism
//! u8, mechanism parameter in millionths u64, bins u32, rows u32, price of a row u64, price u64, task
//! name (u16 length and bytes), client identity (the same). The hash of an entry is keyed BLAKE3
//! derivation over the hash of the entry before (zero for the first) and these bytes.

use super::{Charge, RequestId, RequestKey, Total};
use crate::{
    parameter::NanoRho,
    policy::{mechanism_code, release_code},
};

const VERSION: u8 = 1;
const HASH_CONTEXT: &str = "concilium 2026-11 ledger entry v1";

/// Hash before the first entry.
pub(super) const GENESIS: [u8; 32] = [0; 32];

/// Hash of the entry `encoded` that follows the entry of hash `previous`.
pub(super) fn chain(previous: &[u8; 32], encoded: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(HASH_CONTEXT);
    hasher.update(previous);
    hasher.update(encoded);
    *hasher.finalize().as_bytes()
}

/// The entry's bytes.
pub(super) fn encode(charge: &Charge, number: u64, time_ms: u64) -> Vec<u8> {
    let Charge {
        key,
        digest,
        policy_digest,
        release,
        mechanism,
        bins,
        rows,
        row_cost,
        cost,
        cap_total: _,
        cap_per_client: _,
    } = charge;
    let (mechanism, parameter) = mechanism_code(*mechanism);
    let mut bytes = Vec::with_capacity(160 + key.task.len() + key.client.len());
    bytes.push(VERSION);
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes.extend_from_slice(&time_ms.to_le_bytes());
    bytes.extend_from_slice(&key.epoch.to_le_bytes());
    bytes.extend_from_slice(&key.request.0);
    bytes.extend_from_slice(&digest.0);
    bytes.extend_from_slice(policy_digest);
    bytes.push(release_code(*release));
    bytes.push(mechanism);
    bytes.extend_from_slice(&parameter.millionths().to_le_bytes());
    bytes.extend_from_slice(&bins.to_le_bytes());
    bytes.extend_from_slice(&rows.to_le_bytes());
    bytes.extend_from_slice(&row_cost.units().to_le_bytes());
    bytes.extend_from_slice(&cost.units().to_le_bytes());
    for name in [&key.task, &key.client] {
        let length = u16::try_from(name.len()).expect("the charge's constructor limits names to 512 bytes");
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(name.as_bytes());
    }
    bytes
}

/// What checking the totals needs of an entry.
pub(super) struct Entry {
    pub(super) number: u64,
    pub(super) time_ms: u64,
    pub(super) key: RequestKey,
    pub(super) digest: [u8; 32],
    pub(super) total: Total,
}

/// Reads an entry; `None` if the bytes are no entry of this version, or its price is not that of its
/// rows.
pub(super) fn decode(bytes: &[u8]) -> Option<Entry> {
    let mut reader = Reader(bytes);
    let [VERSION] = reader.array()? else {
        return None;
    };
    let number = u64::from_le_bytes(reader.array()?);
    let time_ms = u64::from_le_bytes(reader.array()?);
    let epoch = u64::from_le_bytes(reader.array()?);
    let request = RequestId(reader.array()?);
    let digest = reader.array()?;
    let _policy_digest: [u8; 32] = reader.array()?;
    let _release: [u8; 1] = reader.array()?;
    let _mechanism: [u8; 1] = reader.array()?;
    let _parameter: [u8; 8] = reader.array()?;
    let _bins: [u8; 4] = reader.array()?;
    let rows = u32::from_le_bytes(reader.array()?);
    let row_cost = NanoRho::new(u64::from_le_bytes(reader.array()?));
    let cost = NanoRho::new(u64::from_le_bytes(reader.array()?));
    let task = reader.name()?;
    let client = reader.name()?;
    if !reader.0.is_empty() || row_cost.checked_mul(u64::from(rows)) != Some(cost) {
        return None;
    }
    Some(Entry {
        number,
        time_ms,
        key: RequestKey { task, epoch, client, request },
        digest,
        total: Total::of_one(cost, rows),
    })
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    fn name(&mut self) -> Option<String> {
        let length = usize::from(u16::from_le_bytes(self.array()?));
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        String::from_utf8(head.to_vec()).ok()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{
        ledger::ContentDigest,
        mechanism::{Mechanism, Release},
        policy::TaskPolicy,
    };

    pub(in crate::ledger) fn charge() -> Charge {
        let policy = TaskPolicy {
            task: "digits".to_owned(),
            epoch: 7,
            release: Release::Label,
            mechanism: Mechanism::DiscreteGaussian { sigma: "5".parse().expect("a number") },
            bins: 10,
            cap_total: "1".parse().expect("a number"),
            cap_per_client: None,
            delta: "1e-5".parse().expect("a number"),
        };
        let key = RequestKey {
            task: "digits".to_owned(),
            epoch: 7,
            client: "clinic".to_owned(),
            request: RequestId([9; 16]),
        };
        Charge::new(key, ContentDigest([3; 32]), 4, &policy).expect("a valid charge")
    }

    #[test]
    fn entries_round_trip() {
        let charge = charge();
        let bytes = encode(&charge, 12, 34);
        let entry = decode(&bytes).expect("a written entry");
        assert_eq!(entry.number, 12);
        assert_eq!(entry.time_ms, 34);
        assert_eq!(entry.key, charge.key);
        assert_eq!(entry.digest, charge.digest.0);
        assert_eq!(entry.total, Total::of_one(charge.cost, 4));
    }

    #[test]
    fn damaged_entries_are_refused_or_hash_differently() {
        let bytes = encode(&charge(), 12, 34);
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_none(), "cut to {length}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(decode(&longer).is_none());
        let hash = chain(&GENESIS, &bytes);
        for index in 0..bytes.len() {
            let mut other = bytes.clone();
            other[index] ^= 1;
            // Must not panic, and must not go unnoticed.
            let _ = decode(&other);
            assert_ne!(chain(&GENESIS, &other), hash, "byte {index}");
        }
        assert_ne!(chain(&[1; 32], &bytes), hash);
    }
}
