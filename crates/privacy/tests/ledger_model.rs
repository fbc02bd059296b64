//! Random operations on the ledger and on a plain model of it, with restarts and crashes between.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Arc,
};

use concilium_privacy::{
    Cap, Charge, ContentDigest, Ledger, LedgerError, Lookup, ManualClock, RedbLedger, RequestId, RequestKey,
    Reservation, ResultBytes, TaskPolicy,
};
use rand::{Rng, RngExt};
use support::{
    ledger::{ROW, place, policy},
    seeded_rng,
};

const STEPS: usize = 1_500;

/// What the ledger should know of a request.
#[derive(Clone)]
struct Known {
    digest: ContentDigest,
    released: bool,
    committed_ms: u64,
    result: Option<Vec<u8>>,
}

/// The ledger in plain maps.
#[derive(Default, Clone)]
struct Model {
    known: BTreeMap<RequestKey, Known>,
    held: BTreeMap<RequestKey, u64>,
    /// Rows by task, epoch and client.
    spent: BTreeMap<(String, u64, String), u64>,
    entries: u64,
    /// Every result that was ever marked as released: it must never change.
    final_results: BTreeMap<RequestKey, Vec<u8>>,
}

#[derive(Debug, PartialEq)]
enum Answer {
    Granted,
    InProgress,
    Conflict,
    Expired,
    Released,
    Refused { cap: Cap, rows_left: u64 },
}

impl Model {
    fn rows(&self, key: &RequestKey, client: Option<&str>) -> u64 {
        let matches = |task: &str, epoch, name: &str| {
            task == key.task && epoch == key.epoch && client.is_none_or(|client| client == name)
        };
        let spent: u64 = self
            .spent
            .iter()
            .filter(|((task, epoch, name), _)| matches(task, *epoch, name))
            .map(|(_, rows)| rows)
            .sum();
        let held: u64 = self
            .held
            .iter()
            .filter(|(other, _)| matches(&other.task, other.epoch, &other.client))
            .map(|(_, rows)| rows)
            .sum();
        spent + held
    }

    fn reserve(&mut self, charge: &Charge, digest: &ContentDigest, policy: &TaskPolicy) -> Answer {
        let key = charge.key();
        let rows = u64::from(charge.rows());
        if self.held.contains_key(key) {
            return Answer::InProgress;
        }
        if let Some(known) = self.known.get(key) {
            if known.digest != *digest {
                return Answer::Conflict;
            }
            if known.result.is_none() {
                return Answer::Expired;
            }
            if known.released {
                return Answer::Released;
            }
        }
        let left = |cap: u64, used: u64| (cap / ROW).saturating_sub(used);
        let mut tightest = (Cap::TaskEpoch, left(policy.cap_total.units(), self.rows(key, None)));
        if let Some(cap) = policy.cap_per_client {
            let client = left(cap.units(), self.rows(key, Some(&key.client)));
            if client < tightest.1 {
                tightest = (Cap::Client, client);
            }
        }
        if rows > tightest.1 {
            return Answer::Refused { cap: tightest.0, rows_left: tightest.1 };
        }
        self.held.insert(key.clone(), rows);
        Answer::Granted
    }

    fn commit(&mut self, charge: &Charge, digest: ContentDigest, now_ms: u64, result: &[u8]) {
        let key = charge.key();
        let rows = self.held.remove(key).expect("reserved");
        *self.spent.entry((key.task.clone(), key.epoch, key.client.clone())).or_default() += rows;
        let result = Some(result.to_vec());
        self.known.insert(key.clone(), Known { digest, released: false, committed_ms: now_ms, result });
        self.entries += 1;
    }
}

fn answer(outcome: &Result<Reservation, LedgerError>) -> Answer {
    match outcome {
        Ok(_) => Answer::Granted,
        Err(LedgerError::InProgress { .. }) => Answer::InProgress,
        Err(LedgerError::Conflict { .. }) => Answer::Conflict,
        Err(LedgerError::ResultExpired { .. }) => Answer::Expired,
        Err(LedgerError::AlreadyReleased { .. }) => Answer::Released,
        Err(LedgerError::Refused(refusal)) => {
            assert_eq!(refusal.left.units() % ROW, 0);
            Answer::Refused { cap: refusal.cap, rows_left: refusal.left.units() / ROW }
        }
        Err(error) => panic!("unexpected: {error}"),
    }
}

/// Everything that the ledger on disk tells must be what the model knows.
fn compare(ledger: &dyn Ledger, model: &Model, policies: &[TaskPolicy]) {
    for policy in policies {
        let spending = ledger.spent(&policy.task, policy.epoch).expect("the spending");
        let mut expected = BTreeMap::new();
        for ((task, epoch, client), rows) in &model.spent {
            if *task == policy.task && *epoch == policy.epoch {
                expected.insert(client.clone(), *rows);
            }
        }
        let found: BTreeMap<_, _> =
            spending.by_client.iter().map(|(client, total)| (client.clone(), total.rows)).collect();
        assert_eq!(found, expected);
        assert_eq!(spending.total.rows, expected.values().sum::<u64>());
        assert_eq!(spending.total.rho.units(), spending.total.rows * ROW);
        assert!(spending.total.rho <= policy.cap_total, "overspent");
    }
    for (key, known) in &model.known {
        match (ledger.lookup(key, &known.digest), &known.result) {
            (Ok(Lookup::Held { result, released }), Some(expected)) => {
                assert!(result.expose() == expected.as_slice(), "{key}: another result");
                assert_eq!(released, known.released, "{key}");
            }
            (Err(LedgerError::ResultExpired { .. }), None) => {}
            _ => panic!("{key}: not as the model has it"),
        }
    }
    for (key, expected) in &model.final_results {
        if let Ok(Lookup::Held { result, .. }) = ledger.lookup(key, &model.known[key].digest) {
            assert!(result.expose() == expected.as_slice(), "{key}: two answers for one id");
        }
    }
    assert_eq!(ledger.verify().expect("sound").entries, model.entries);
}

/// Opens a copy of the file as it is now, as a restart after a power cut would.
fn compare_after_crash(path: &Path, model: &Model, policies: &[TaskPolicy]) {
    let copy = path.with_extension("copy");
    fs::copy(path, &copy).expect("a copy");
    let ledger = RedbLedger::open(&copy).expect("the copy opens");
    compare(&ledger, model, policies);
    drop(ledger);
    fs::remove_file(copy).expect("the copy goes");
}

#[test]
fn the_ledger_does_what_the_model_does() {
    let mut random = seeded_rng("ledger model");
    let (_folder, path) = place();
    let clock = Arc::new(ManualClock::new(1));
    let policies = [
        policy("digits", 1, 60, Some(25)),
        policy("digits", 2, 40, None),
        policy("scans", 1, 300, Some(200)),
    ];
    let clients = ["clinic", "practice", "surgery"];
    let mut model = Model::default();
    let mut ledger = RedbLedger::create(&path).expect("a new ledger").with_clock(Arc::clone(&clock));
    let mut running: Vec<(Reservation, ContentDigest)> = Vec::new();
    let mut seen = BTreeSet::new();

    for step in 0..STEPS {
        clock.advance_ms(random.random_range(0..3));
        let now_ms = concilium_privacy::Clock::now_ms(clock.as_ref());
        match random.random_range(0..100) {
            0..45 => {
                let batch: Vec<_> = (0..random.random_range(1..5))
                    .map(|_| {
                        // One time in ten a request that may still run.
                        let again = (!running.is_empty() && random.random_range(0..10) == 0)
                            .then(|| running[random.random_range(0..running.len())].0.charge().key().clone());
                        let key = again.unwrap_or_else(|| {
                            let policy = &policies[random.random_range(0..policies.len())];
                            RequestKey {
                                task: policy.task.clone(),
                                epoch: policy.epoch,
                                client: clients[random.random_range(0..clients.len())].to_owned(),
                                request: RequestId([random.random_range(0..100); 16]),
                            }
                        });
                        let policy = policies
                            .iter()
                            .find(|policy| (&policy.task, policy.epoch) == (&key.task, key.epoch))
                            .expect("a known task");
                        // One time in eight other content under what may be a used id.
                        let digest = ContentDigest([u8::from(random.random_range(0..8) == 0); 32]);
                        let rows = random.random_range(1..4);
                        (Charge::new(key, digest, rows, policy).expect("a valid charge"), digest, policy)
                    })
                    .collect();
                let charges: Vec<_> = batch.iter().map(|(charge, ..)| charge.clone()).collect();
                let outcomes = ledger.reserve(&charges);
                for ((charge, digest, policy), outcome) in batch.iter().zip(outcomes) {
                    let expected = model.reserve(charge, digest, policy);
                    assert_eq!(answer(&outcome), expected, "step {step}: {}", charge.key());
                    seen.insert(format!("{expected:?}").split(' ').next().unwrap_or_default().to_owned());
                    running.extend(outcome.ok().map(|reservation| (reservation, *digest)));
                }
            }
            45..70 => {
                let count = random.random_range(0..=running.len().min(4));
                let mut batch = Vec::new();
                for _ in 0..count {
                    let (reservation, digest) = running.swap_remove(random.random_range(0..running.len()));
                    let bytes = random.next_u64().to_le_bytes();
                    model.commit(reservation.charge(), digest, now_ms, &bytes);
                    batch.push((reservation, ResultBytes::from(bytes.to_vec())));
                }
                let head = ledger.commit(batch).expect("a commit");
                assert_eq!(head.entries, model.entries);
            }
            70..78 if !running.is_empty() => {
                let (reservation, _) = running.swap_remove(random.random_range(0..running.len()));
                model.held.remove(reservation.charge().key());
                drop(reservation);
            }
            78..88 if !model.known.is_empty() => {
                let index = random.random_range(0..model.known.len());
                let key = model.known.keys().nth(index).expect("in range").clone();
                // A server marks what it just answered; a request that runs again is not marked.
                if !model.held.contains_key(&key) {
                    ledger.mark_released(std::slice::from_ref(&key)).expect("marked");
                    let known = model.known.get_mut(&key).expect("known");
                    known.released = true;
                    if let Some(result) = known.result.clone() {
                        model.final_results.entry(key).or_insert(result);
                    }
                }
            }
            88..90 => {
                let limit = now_ms.saturating_sub(200);
                let deleted = ledger.prune_results(limit).expect("pruned");
                let mut expected = 0;
                for known in model.known.values_mut() {
                    if known.committed_ms < limit && known.result.take().is_some() {
                        expected += 1;
                    }
                }
                assert_eq!(deleted, expected, "step {step}");
            }
            90..94 => compare(&ledger, &model, &policies),
            94..97 => compare_after_crash(&path, &model, &policies),
            97.. => {
                // A restart: what was only reserved is forgotten.
                running.clear();
                model.held.clear();
                drop(ledger);
                ledger = RedbLedger::open(&path).expect("the ledger").with_clock(Arc::clone(&clock));
                compare(&ledger, &model, &policies);
            }
            _ => {}
        }
    }
    compare(&ledger, &model, &policies);
    eprintln!("answers seen: {seen:?}");
    assert_eq!(seen.len(), 6, "the operations do not reach every answer: {seen:?}");
}
