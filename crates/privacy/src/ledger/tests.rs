//! Entries of the log, byte by byte.

use std::collections::BTreeMap;

use super::*;
use crate::{
    mechanism::{Mechanism, Release, Threshold},
    policy::{PrivacyUnit, TaskPolicy},
};

/// A charge of every field.
pub(super) fn charge() -> Charge {
    let gaussian = |sigma: &str| Mechanism::DiscreteGaussian { sigma: sigma.parse().expect("a number") };
    let policy = TaskPolicy {
        task: "digits".to_owned(),
        epoch: 7,
        release: Release::ConfidentLabel,
        mechanism: gaussian("5"),
        threshold: Some(Threshold { votes: 6, mechanism: gaussian("9") }),
        unit: PrivacyUnit::Record,
        models_per_owner: 3,
        bins: 10,
        cap_total: "1".parse().expect("a number"),
        cap_per_client: None,
        cap_per_client_all_tasks: None,
        window: None,
        delta: "1e-5".parse().expect("a number"),
        declaration: None,
    };
    let key = RequestKey {
        task: "digits".to_owned(),
        epoch: 7,
        client: "clinic".to_owned(),
        request: RequestId([9; 16]),
    };
    let participants = ["north", "south"].map(|owner| Participant { owner: owner.to_owned(), cap: None });
    Charge::new(key, ContentDigest([3; 32]), 4, &policy, &participants).expect("a valid charge")
}

fn entries() -> Vec<LedgerEntry> {
    let total = |rho| Total { rho: NanoRho::new(rho), requests: 2, rows: 3 };
    let head = LedgerHead { entries: 5, hash: [6; 32] };
    let attest = |basis| Event::Attested {
        attestation: Attestation { task: "digits".into(), epoch: 8, basis, attested_by: "Ann".into() },
        carried: total(9),
    };
    let charge = charge();
    [
        charge.committed(NanoRho::new(12), NanoRho::new(3), true),
        charge.committed(NanoRho::new(12), NanoRho::ZERO, false),
        Event::Delivered {
            requests: vec![charge.key().clone(), charge.key().clone()],
            peers: vec![PeerHead { peer: 0, head }, PeerHead { peer: 2, head: LedgerHead::EMPTY }],
        },
        Event::Raised(Raised {
            task: "digits".into(),
            epoch: 7,
            peer: 2,
            total: total(4),
            by_client: BTreeMap::from([("clinic".into(), total(1)), ("practice".into(), total(2))]),
            by_owner: BTreeMap::from([("north".into(), total(3))]),
        }),
        Event::Stopped { task: "digits".into(), reason: "server 2 forgot".into() },
        Event::Resumed { task: "digits".into(), operator: "Ann".into(), reason: "restored".into() },
        attest(Basis::Retrained),
        attest(Basis::CarriedOver { from_epoch: 7 }),
    ]
    .into_iter()
    .zip(12..)
    .map(|(event, number)| LedgerEntry { number, time_ms: 34, event })
    .collect()
}

#[test]
fn entries_round_trip() {
    for entry in entries() {
        assert_eq!(LedgerEntry::decode(&entry.encode()).as_ref(), Some(&entry));
    }
}

#[test]
fn damaged_entries_are_refused_or_hash_differently() {
    for entry in entries() {
        let bytes = entry.encode();
        for length in 0..bytes.len() {
            assert!(LedgerEntry::decode(&bytes[..length]).is_none(), "{entry:?} cut to {length}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(LedgerEntry::decode(&longer).is_none());
        let hash = LedgerEntry::chain(&[0; 32], &bytes);
        for index in 0..bytes.len() {
            let mut other = bytes.clone();
            other[index] ^= 1;
            // What can still be read says something else, and nothing panics.
            assert_ne!(LedgerEntry::decode(&other).as_ref(), Some(&entry), "byte {index}");
            assert_ne!(LedgerEntry::chain(&[0; 32], &other), hash, "byte {index}");
        }
        assert_ne!(LedgerEntry::chain(&[1; 32], &bytes), hash);
    }
}
