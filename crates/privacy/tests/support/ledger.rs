//! Policies, charges and results for ledger tests.

use std::path::PathBuf;

use concilium_privacy::{
    Charge, ContentDigest, Mechanism, NanoRho, Participant, PrivacyUnit, Release, RequestId, RequestKey,
    ResultBytes, TaskPolicy,
};
use tempfile::TempDir;

/// A price of 0.04 per row, rounded up.
pub const ROW: u64 = 40_000_001;

pub fn policy(task: &str, epoch: u64, rows: u64, rows_per_client: Option<u64>) -> TaskPolicy {
    TaskPolicy {
        task: task.to_owned(),
        epoch,
        release: Release::Histogram,
        mechanism: Mechanism::DiscreteGaussian { sigma: "5".parse().expect("a number") },
        threshold: None,
        unit: PrivacyUnit::Record,
        models_per_owner: 1,
        bins: 10,
        cap_total: NanoRho::new(rows * ROW),
        cap_per_client: rows_per_client.map(|rows| NanoRho::new(rows * ROW)),
        cap_per_client_all_tasks: None,
        window: None,
        delta: "1e-5".parse().expect("a number"),
        declaration: None,
    }
}

pub fn key(policy: &TaskPolicy, client: &str, request: u8) -> RequestKey {
    RequestKey {
        task: policy.task.clone(),
        epoch: policy.epoch,
        client: client.to_owned(),
        request: RequestId([request; 16]),
    }
}

pub const DIGEST: ContentDigest = ContentDigest([7; 32]);

pub fn charge(policy: &TaskPolicy, client: &str, request: u8, rows: u32) -> Charge {
    Charge::new(key(policy, client, request), DIGEST, rows, policy, &[]).expect("a valid charge")
}

pub fn result(text: &str) -> ResultBytes {
    ResultBytes::from(text.as_bytes().to_vec())
}

/// A folder that goes when it is dropped, and a ledger path in a folder inside it that is missing.
pub fn place() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("data/server/ledger.redb");
    (folder, path)
}

/// Participants without and with caps, in rows of [`ROW`].
pub fn owners(caps: &[(&str, Option<u64>)]) -> Vec<Participant> {
    let owner = |(owner, cap): &(&str, Option<u64>)| Participant {
        owner: (*owner).to_owned(),
        cap: cap.map(|rows| NanoRho::new(rows * ROW)),
    };
    caps.iter().map(owner).collect()
}
