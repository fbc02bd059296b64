//! Random calls of a ledger and of a plain model of it, alone and from threads, with duplicates, late
//! repeats, restarts and losses of power between.

pub mod operation;
pub mod plain;
mod real;

use std::{collections::BTreeSet, ops::Range, sync::Arc, thread};

use concilium_privacy::{
    Attestation, Basis, Clock as _, ContentDigest, LedgerHead, ManualClock, NanoRho, PeerHead, RequestId,
    RequestKey, Spending, StoredLedger, TaskPolicy, Total, policy::SpendingWindow,
};
use rand::{Rng, RngExt};
use rand_chacha::ChaCha20Rng;

use self::{
    operation::{Asked, Operation, Outcome},
    plain::{Fault, Model, Place},
    real::{Look, Running, differences, perform},
};
use super::{
    Medium,
    ledger::{ROW, owners, policy},
};

/// Tasks and how many epochs they have.
const TASKS: [(&str, u64); 2] = [("digits", 6), ("scans", 2)];
const CLIENTS: [&str; 3] = ["clinic", "practice", "surgery"];
const OWNERS: [&str; 3] = ["east", "north", "south"];
const WINDOW_SECONDS: u64 = 1;

/// Kinds of outcomes that a long run must reach, so that no rule is left out by chance.
const KINDS: [&str; 18] = [
    "Changed",
    "Client",
    "ClientAllTasks",
    "Conflict",
    "Deleted",
    "Done",
    "EpochClosed",
    "Expired",
    "InProgress",
    "Invalid",
    "Owner",
    "Released",
    "Stopped",
    "TaskEpoch",
    "TooMuch",
    "Unknown",
    "Window",
    "restart",
];

/// Lets a ledger and a model of it do the same `steps` times, and panics where they differ. Returns what was
/// reached.
pub fn compare<M: Medium>(
    medium: M,
    steps: usize,
    random: ChaCha20Rng,
    fault: Option<Fault>,
) -> BTreeSet<String> {
    let clock = Arc::new(ManualClock::new(10_000));
    let ledger = medium.create().with_clock(Arc::clone(&clock));
    let model = Model { fault, ..Model::default() };
    let mut run = Run {
        ledger: Some(ledger),
        medium,
        random,
        clock,
        running: Running::default(),
        model,
        policies: Vec::new(),
        latest: 1,
        earlier: Vec::new(),
        seen: BTreeSet::new(),
    };
    run.renew_policies();
    for step in 0..steps {
        run.latest = 1 + (step * 5 / steps) as u64;
        run.step(step);
    }
    run.restart();
    let expected = run.model.clone();
    run.medium.cut_power(run.ledger.as_ref().expect("open"), &|found| {
        assert_eq!(
            differences(found, &expected, &run.policies, 0, Look::AtWhatIsStored),
            None,
            "after a loss of power"
        );
    });
    run.seen
}

/// That a run which found no difference has reached every rule.
pub fn reaches_every_rule(seen: &BTreeSet<String>) {
    let missing: Vec<_> = KINDS.into_iter().filter(|kind| !seen.contains(*kind)).collect();
    assert!(missing.is_empty(), "never reached: {missing:?}");
}

struct Run<M: Medium> {
    ledger: Option<StoredLedger<M::Store>>,
    medium: M,
    random: ChaCha20Rng,
    clock: Arc<ManualClock>,
    running: Running,
    model: Model,
    policies: Vec<TaskPolicy>,
    /// The last epoch that requests are about. The one after it may begin with what was carried over.
    latest: u64,
    /// Calls that may be repeated at any time.
    earlier: Vec<Operation>,
    seen: BTreeSet<String>,
}

impl<M: Medium> Run<M> {
    fn ledger(&self) -> &StoredLedger<M::Store> {
        self.ledger.as_ref().expect("open")
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.random.random_range(0..of.len())]
    }

    fn one_in(&mut self, number: u32) -> bool {
        self.random.random_range(0..number) == 0
    }

    fn step(&mut self, step: usize) {
        self.clock.advance_ms(self.random.random_range(0..40));
        // The clock jumps both ways at times.
        if self.one_in(50) {
            let jump = self.random.random_range(0..3_000);
            self.clock.set_ms(self.clock.now_ms().saturating_sub(1_500) + jump);
        }
        if step.is_multiple_of(60) {
            self.renew_policies();
        }
        match self.random.random_range(0..100) {
            0..72 => {
                if let Some(operation) = self.operation(&BTreeSet::new()) {
                    self.alone(step, operation);
                }
            }
            72..88 => self.together(step),
            88..93 => self.check(step, Look::Quick),
            93..95 => self.check(step, Look::Everywhere),
            95..97 => {
                let (model, policies, now_ms) =
                    (self.model.clone(), self.policies.clone(), self.clock.now_ms());
                let ledger = self.ledger.as_ref().expect("open");
                self.medium.cut_power(ledger, &|found| {
                    // What opens the copy has a clock of its own.
                    let differences = differences(found, &model, &policies, now_ms, Look::AtWhatIsStored);
                    assert_eq!(differences, None, "step {step}, after a loss of power");
                });
            }
            _ => {
                self.restart();
                self.check(step, Look::Everywhere);
            }
        }
    }

    /// A restart forgets what was only reserved.
    fn restart(&mut self) {
        self.running.lock().expect("no panic").clear();
        self.model.restart();
        self.ledger = None;
        self.ledger = Some(self.medium.open().with_clock(Arc::clone(&self.clock)));
        self.seen.insert("restart".to_owned());
    }

    fn check(&self, step: usize, look: Look) {
        let now_ms = self.clock.now_ms();
        let found = differences(self.ledger(), &self.model, &self.policies, now_ms, look);
        assert_eq!(found, None, "step {step}");
    }

    /// Caps a little above what is spent, so that each of them refuses at times.
    fn renew_policies(&mut self) {
        let mut renewed = Vec::new();
        let mut slack = |spent: Total, rows: Range<u64>| {
            NanoRho::new(spent.rho.units() + ROW * self.random.random_range(rows))
        };
        let sum = |place: Place| self.model.sum(&place);
        for (task, epochs) in TASKS {
            for epoch in 1..=epochs {
                let mut policy = policy(task, epoch, 0, None);
                policy.cap_total = slack(sum(Place::Epoch(task.into(), epoch)), 4..40);
                let client = CLIENTS.map(|client| sum(Place::Client(task.into(), epoch, client.into())));
                policy.cap_per_client = (epoch != 2).then(|| slack(most(client), 3..20));
                let all = CLIENTS.map(|client| sum(Place::AllTasks(client.into())));
                policy.cap_per_client_all_tasks = (epoch != 3).then(|| slack(most(all), 4..24));
                policy.window = (epoch % 2 == 1)
                    .then(|| SpendingWindow { rho: slack(Total::default(), 5..11), seconds: WINDOW_SECONDS });
                renewed.push(policy);
            }
        }
        self.policies = renewed;
    }

    fn alone(&mut self, step: usize, operation: Operation) {
        let now_ms = self.clock.now_ms();
        let found = perform(self.ledger(), &self.running, &operation);
        let expected = self.model.run(&operation, now_ms);
        assert_eq!(found, expected, "step {step}: {operation:?}");
        self.note(&expected);
    }

    fn note(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Reserved(outcomes) => outcomes.iter().for_each(|outcome| self.note(outcome)),
            outcome => drop(self.seen.insert(outcome.kind())),
        }
    }

    /// Calls from threads at the same time must be as if they came one after the other, in some order.
    fn together(&mut self, step: usize) {
        let mut operations = Vec::new();
        let mut keys = BTreeSet::new();
        for _ in 0..3 {
            if let Some(operation) = self.operation(&keys) {
                keys.extend(touched(&operation).cloned());
                operations.push(operation);
            }
        }
        let (ledger, running) = (self.ledger(), &self.running);
        let found: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = operations
                .iter()
                .map(|operation| scope.spawn(move || perform(ledger, running, operation)))
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        let now_ms = self.clock.now_ms();
        let mut nearest = None;
        for (place, order) in orders(operations.len()).into_iter().enumerate() {
            let mut model = self.model.clone();
            let mut expected = found.clone();
            for &index in &order {
                expected[index] = model.run(&operations[index], now_ms);
            }
            if expected != found {
                continue;
            }
            match differences(self.ledger(), &model, &self.policies, now_ms, Look::Quick) {
                None => {
                    if place > 0 {
                        self.seen.insert("another order".to_owned());
                    }
                    self.model = model;
                    return found.iter().for_each(|outcome| self.note(outcome));
                }
                difference => nearest = difference,
            }
        }
        panic!("step {step}: no order of these gives {found:?} (nearest: {nearest:?}): {operations:#?}");
    }

    /// A call that touches none of these requests; `None` if there is nothing to call.
    fn operation(&mut self, not: &BTreeSet<RequestKey>) -> Option<Operation> {
        let running: Vec<_> = self.model.held.keys().filter(|key| !not.contains(*key)).cloned().collect();
        let choice = self.random.random_range(0..100);
        let operation = match choice {
            0..45 => {
                let count = self.random.random_range(1..4);
                let batch: Vec<_> = (0..count).map(|_| self.asked(&running)).collect();
                if batch.iter().any(|asked| not.contains(&asked.key)) {
                    return None;
                }
                Operation::Reserve(batch)
            }
            45..54 => {
                let key = running.get(self.random.random_range(0..running.len().max(1)))?.clone();
                let rho = self.up_to(self.model.held[&key].left);
                Operation::Part(key, rho)
            }
            54..70 => {
                let mut running = running;
                let count = self.random.random_range(0..=running.len().min(4));
                let batch = (0..count).map(|_| {
                    let key = running.swap_remove(self.random.random_range(0..running.len()));
                    let rho = self.up_to(self.model.held[&key].left);
                    (key, rho, self.random.next_u64().to_le_bytes().to_vec())
                });
                Operation::Commit(batch.collect())
            }
            70..74 => {
                Operation::GiveUp(running.get(self.random.random_range(0..running.len().max(1)))?.clone())
            }
            74..84 => {
                let known: Vec<_> = self.model.known.keys().cloned().collect();
                let mut keys = Vec::new();
                for _ in 0..self.random.random_range(0..3) {
                    let key = known.get(self.random.random_range(0..known.len().max(1)))?.clone();
                    // A server marks what it just answered; a request that runs again is not marked.
                    if !self.model.held.contains_key(&key) && !not.contains(&key) {
                        keys.push(key);
                    }
                }
                if self.one_in(8) {
                    keys.push(self.key());
                    keys.retain(|key| !self.model.held.contains_key(key) && !not.contains(key));
                }
                let entries = self.random.random_range(0..9);
                let head = LedgerHead { entries, hash: [entries as u8; 32] };
                let peers =
                    if self.one_in(3) { vec![PeerHead { peer: self.pick(&[0, 2]), head }] } else { vec![] };
                Operation::Release(keys, peers)
            }
            84..87 if !self.earlier.is_empty() => {
                self.earlier[self.random.random_range(0..self.earlier.len())].clone()
            }
            84..90 => {
                let (task, epoch) = self.epoch();
                let theirs = self.theirs(&task, epoch);
                Operation::Raise(task, epoch, theirs, self.pick(&[0, 2]))
            }
            90..95 => {
                let (task, latest) = self.epoch();
                // Mostly the spending of the latest epoch goes on in the next.
                let epoch = if self.one_in(3) { latest } else { latest + 1 };
                let from_epoch =
                    if self.one_in(3) { self.random.random_range(1..=latest + 1) } else { latest };
                let carried = Basis::CarriedOver { from_epoch };
                let basis = self.pick(&[carried, carried, carried, Basis::Retrained]);
                Operation::Attest(Attestation {
                    task,
                    epoch,
                    basis,
                    attested_by: self.pick(&["Ann", "Ben"]).into(),
                })
            }
            95..98 => {
                let (task, _) = self.epoch();
                if self.model.stops.contains_key(&task) {
                    Operation::Resume(task)
                } else if self.one_in(3) {
                    Operation::Stop(task, format!("reason {choice}"))
                } else {
                    return None;
                }
            }
            _ => Operation::Prune(self.clock.now_ms().saturating_sub(self.random.random_range(0..3_000))),
        };
        if !matches!(
            operation,
            Operation::Reserve(_) | Operation::Part(..) | Operation::Commit(_) | Operation::GiveUp(_)
        ) {
            self.earlier.push(operation.clone());
            if self.earlier.len() > 20 {
                self.earlier.remove(0);
            }
        }
        // A late repeat may name a request that runs by now.
        let busy = |key: &RequestKey| not.contains(key) || self.model.held.contains_key(key);
        match &operation {
            Operation::Release(keys, _) if keys.iter().any(busy) => None,
            _ => Some(operation),
        }
    }

    /// An amount that is mostly allowed, and often all of it.
    fn up_to(&mut self, left: u64) -> u64 {
        match self.random.random_range(0..20) {
            0 => left + 1,
            1..6 => left,
            _ => self.random.random_range(0..=left / ROW) * ROW,
        }
    }

    fn epoch(&mut self) -> (String, u64) {
        let (task, epochs) = self.pick(&TASKS);
        (task.to_owned(), self.random.random_range(1..=epochs.min(self.latest)))
    }

    fn key(&mut self) -> RequestKey {
        let (task, epoch) = self.epoch();
        let client = self.pick(&CLIENTS).to_owned();
        RequestKey { task, epoch, client, request: RequestId([self.random.random_range(0..40); 16]) }
    }

    fn asked(&mut self, running: &[RequestKey]) -> Asked {
        // One time in ten a request that runs.
        let again = !running.is_empty() && self.one_in(10);
        let key =
            if again { running[self.random.random_range(0..running.len())].clone() } else { self.key() };
        let policy =
            self.policies.iter().find(|policy| (&policy.task, policy.epoch) == (&key.task, key.epoch));
        let policy = policy.expect("a known task").clone();
        // One time in eight other content under what may be a used id.
        let digest = ContentDigest([u8::from(self.one_in(8)); 32]);
        let mut voters = Vec::new();
        for owner in OWNERS {
            let spent = self.model.sum(&Place::Owner(key.task.clone(), key.epoch, owner.to_owned()));
            let rows = spent.rho.units() / ROW + self.random.random_range(0..24);
            match self.random.random_range(0..4) {
                0 => {}
                1 => voters.push((owner, None)),
                _ => voters.push((owner, Some(rows))),
            }
        }
        Asked { key, digest, rows: self.random.random_range(1..4), owners: owners(&voters), policy }
    }

    /// What another server may tell: a little less here, a little more there.
    fn theirs(&mut self, task: &str, epoch: u64) -> Spending {
        let mut vary = |total: Total| Total {
            rho: NanoRho::new(
                (total.rho.units() + ROW * self.random.random_range(0..4)).saturating_sub(2 * ROW),
            ),
            requests: (total.requests + self.random.random_range(0..3)).saturating_sub(1),
            rows: (total.rows + self.random.random_range(0..3)).saturating_sub(1),
        };
        let mut theirs = Spending::default();
        for (place, total) in self.model.parts(task, epoch) {
            match place {
                Place::Client(_, _, client) => drop(theirs.by_client.insert(client, vary(total))),
                Place::Owner(_, _, owner) => drop(theirs.by_owner.insert(owner, vary(total))),
                _ => theirs.total = vary(total),
            }
        }
        theirs
    }
}

fn most(totals: [Total; 3]) -> Total {
    totals.into_iter().max_by_key(|total| total.rho).unwrap_or_default()
}

/// The requests that a call is about.
fn touched(operation: &Operation) -> impl Iterator<Item = &RequestKey> {
    let keys: Vec<_> = match operation {
        Operation::Reserve(batch) => batch.iter().map(|asked| &asked.key).collect(),
        Operation::Part(key, _) | Operation::GiveUp(key) => vec![key],
        Operation::Commit(batch) => batch.iter().map(|(key, ..)| key).collect(),
        Operation::Release(keys, _) => keys.iter().collect(),
        _ => Vec::new(),
    };
    keys.into_iter()
}

/// All orders of so many things, of which there are at most three.
fn orders(count: usize) -> Vec<Vec<usize>> {
    let all = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let kept = all.map(|order| order.into_iter().filter(|index| *index < count).collect::<Vec<_>>());
    kept.into_iter().collect::<BTreeSet<_>>().into_iter().collect()
}
