//! The ledger in plain maps: every rule once more, written for reading. It keeps what was posted where and
//! when, and sums it up whenever it is asked.

use std::collections::BTreeMap;

use concilium_privacy::{
    Attestation, Basis, Cap, ContentDigest, LedgerHead, NanoRho, Participant, PeerHead, RequestKey, Spending,
    Total,
};

use super::{
    super::ledger::ROW,
    operation::{Asked, Operation, Outcome},
};

/// A deliberate fault of the model, which the comparison must notice: one for each rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    PartsAreFree,
    TheRestStaysHeld,
    NoTaskCap,
    NoClientCap,
    NoCapOverAllTasks,
    OtherTasksAreForgotten,
    NoOwnerCap,
    NoWindow,
    WindowsFollowTheClockBack,
    RaisesAdd,
    RaisesAreForgotten,
    CarriedOverIsForgotten,
    CarriedOverCountsTwice,
    ClosedEpochsStayOpen,
    AttestationsAreReplaced,
    StopsAreIgnored,
    ResumptionsAreIgnored,
    PrunedResultsStay,
    HoldsSurviveRestarts,
    RepeatedCommitsAreFree,
    ReleasedRequestsRunAgain,
    ContentIsIgnored,
    DuplicatesRun,
    PeersAreForgotten,
}

impl Fault {
    pub const ALL: [Self; 24] = [
        Self::PartsAreFree,
        Self::TheRestStaysHeld,
        Self::NoTaskCap,
        Self::NoClientCap,
        Self::NoCapOverAllTasks,
        Self::OtherTasksAreForgotten,
        Self::NoOwnerCap,
        Self::NoWindow,
        Self::WindowsFollowTheClockBack,
        Self::RaisesAdd,
        Self::RaisesAreForgotten,
        Self::CarriedOverIsForgotten,
        Self::CarriedOverCountsTwice,
        Self::ClosedEpochsStayOpen,
        Self::AttestationsAreReplaced,
        Self::StopsAreIgnored,
        Self::ResumptionsAreIgnored,
        Self::PrunedResultsStay,
        Self::HoldsSurviveRestarts,
        Self::RepeatedCommitsAreFree,
        Self::ReleasedRequestsRunAgain,
        Self::ContentIsIgnored,
        Self::DuplicatesRun,
        Self::PeersAreForgotten,
    ];
}

/// What is known of a request.
#[derive(Debug, Clone)]
pub struct Known {
    pub digest: ContentDigest,
    pub released: bool,
    pub committed_ms: u64,
    pub result: Option<Vec<u8>>,
}

#[derive(Debug, Clone)]
pub struct Held {
    pub left: u64,
    asked: Asked,
}

/// Where something counts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    Epoch(String, u64),
    Client(String, u64, String),
    Owner(String, u64, String),
    AllTasks(String),
}

#[derive(Default, Clone)]
pub struct Model {
    pub fault: Option<Fault>,
    pub known: BTreeMap<RequestKey, Known>,
    pub held: BTreeMap<RequestKey, Held>,
    /// What was added where, and when.
    pub posted: BTreeMap<Place, Vec<(u64, Total)>>,
    pub attested: BTreeMap<(String, u64), (Basis, String)>,
    pub closed: BTreeMap<(String, u64), u64>,
    pub stops: BTreeMap<String, (String, u64)>,
    pub peers: BTreeMap<u8, LedgerHead>,
    pub entries: u64,
    /// Time of the last entry.
    pub last_ms: u64,
    /// The result of every request that was ever released: it must never change.
    pub final_results: BTreeMap<RequestKey, Vec<u8>>,
}

fn plus(one: Total, other: Total) -> Total {
    Total {
        rho: NanoRho::new(one.rho.units() + other.rho.units()),
        requests: one.requests + other.requests,
        rows: one.rows + other.rows,
    }
}

fn lack(ours: Total, theirs: Total) -> Total {
    Total {
        rho: theirs.rho.saturating_sub(ours.rho),
        requests: theirs.requests.saturating_sub(ours.requests),
        rows: theirs.rows.saturating_sub(ours.rows),
    }
}

impl Model {
    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    pub fn sum(&self, place: &Place) -> Total {
        self.sum_until(place, u64::MAX)
    }

    fn sum_until(&self, place: &Place, time_ms: u64) -> Total {
        let posted = self.posted.get(place).into_iter().flatten();
        posted
            .filter(|(time, _)| *time <= time_ms)
            .fold(Total::default(), |sum, (_, total)| plus(sum, *total))
    }

    /// Now, as the log has it: its times never go back, even if the clock does.
    fn time(&self, now_ms: u64) -> u64 {
        self.last_ms.max(now_ms)
    }

    pub fn spent_in_window(&self, task: &str, epoch: u64, seconds: u64, now_ms: u64) -> u64 {
        let now_ms = if self.has(Fault::WindowsFollowTheClockBack) { now_ms } else { self.time(now_ms) };
        let begin = now_ms.saturating_sub(seconds * 1000);
        let place = Place::Epoch(task.to_owned(), epoch);
        self.sum_until(&place, now_ms).rho.saturating_sub(self.sum_until(&place, begin).rho).units()
    }

    fn post(&mut self, place: Place, time_ms: u64, total: Total) {
        self.posted.entry(place).or_default().push((time_ms, total));
    }

    fn entry(&mut self, now_ms: u64) -> u64 {
        self.last_ms = self.time(now_ms);
        self.entries += 1;
        self.last_ms
    }

    fn is_open(&self, key: &RequestKey) -> Result<(), Outcome> {
        if self.stops.contains_key(&key.task) && !self.has(Fault::StopsAreIgnored) {
            return Err(Outcome::Stopped);
        }
        let closed = self.closed.contains_key(&(key.task.clone(), key.epoch));
        if closed && !self.has(Fault::ClosedEpochsStayOpen) { Err(Outcome::EpochClosed) } else { Ok(()) }
    }

    /// What a restart leaves.
    pub fn restart(&mut self) {
        if !self.has(Fault::HoldsSurviveRestarts) {
            self.held.clear();
        }
    }

    pub fn run(&mut self, operation: &Operation, now_ms: u64) -> Outcome {
        let outcome = match operation {
            Operation::Reserve(batch) => {
                Ok(Outcome::Reserved(batch.iter().map(|asked| self.reserve(asked, now_ms)).collect()))
            }
            Operation::Part(key, rho) => self.part(key, *rho, now_ms),
            Operation::Commit(batch) => self.commit(batch, now_ms),
            Operation::GiveUp(key) => {
                self.held.remove(key);
                Ok(Outcome::Done)
            }
            Operation::Release(keys, peers) => self.release(keys, peers, now_ms),
            Operation::Raise(task, epoch, theirs, _) => Ok(self.raise(task, *epoch, theirs, now_ms)),
            Operation::Attest(attestation) => self.attest(attestation, now_ms),
            Operation::Stop(task, reason) => {
                if !self.stops.contains_key(task) {
                    let time_ms = self.entry(now_ms);
                    self.stops.insert(task.clone(), (reason.clone(), time_ms));
                }
                Ok(Outcome::Done)
            }
            Operation::Resume(task) => {
                if !self.has(Fault::ResumptionsAreIgnored) && self.stops.remove(task).is_some() {
                    self.entry(now_ms);
                }
                Ok(Outcome::Done)
            }
            Operation::Prune(older_than_ms) => {
                let old = |known: &&mut Known| known.committed_ms < *older_than_ms && known.result.is_some();
                let pruned: Vec<_> = self.known.values_mut().filter(old).collect();
                let deleted = pruned.len() as u64;
                if self.fault != Some(Fault::PrunedResultsStay) {
                    pruned.into_iter().for_each(|known| known.result = None);
                }
                Ok(Outcome::Deleted(deleted))
            }
        };
        outcome.unwrap_or_else(|refused| refused)
    }

    fn held_where(&self, counts: impl Fn(&Asked) -> bool) -> u64 {
        self.held.values().filter(|held| counts(&held.asked)).map(|held| held.left).sum()
    }

    fn reserve(&mut self, asked: &Asked, now_ms: u64) -> Outcome {
        let Asked { key, digest, .. } = asked;
        if self.held.contains_key(key) && !self.has(Fault::DuplicatesRun) {
            return Outcome::InProgress;
        }
        if let Some(known) = self.known.get(key) {
            if known.digest != *digest && !self.has(Fault::ContentIsIgnored) {
                return Outcome::Conflict;
            }
            if known.result.is_none() {
                return Outcome::Expired;
            }
            if known.released && !self.has(Fault::ReleasedRequestsRunAgain) {
                return Outcome::Released;
            }
        }
        if let Err(refused) = self.is_open(key) {
            return refused;
        }
        let needed = u64::from(asked.rows) * ROW;
        if let Some(refused) = self.refusal(asked, needed, now_ms) {
            return refused;
        }
        self.held.insert(key.clone(), Held { left: needed, asked: asked.clone() });
        Outcome::Done
    }

    /// The refusing cap that leaves the least; the window only if no other refuses.
    fn refusal(&self, asked: &Asked, needed: u64, now_ms: u64) -> Option<Outcome> {
        let Asked { key, owners, policy, .. } = asked;
        let (task, epoch) = (key.task.clone(), key.epoch);
        let of_epoch = |other: &Asked| other.key.task == task && other.key.epoch == epoch;
        let of_client = |other: &Asked| other.key.client == key.client;
        let spent = |place: Place| self.sum(&place).rho.units();
        let place = Place::Epoch(task.clone(), epoch);
        let held = self.held_where(of_epoch);
        let mut caps = Vec::new();
        if !self.has(Fault::NoTaskCap) {
            caps.push((Cap::TaskEpoch, policy.cap_total, spent(place.clone()) + held));
        }
        if let Some(cap) = policy.cap_per_client.filter(|_| !self.has(Fault::NoClientCap)) {
            let used = spent(Place::Client(task.clone(), epoch, key.client.clone()))
                + self.held_where(|other| of_epoch(other) && of_client(other));
            caps.push((Cap::Client, cap, used));
        }
        if let Some(cap) = policy.cap_per_client_all_tasks.filter(|_| !self.has(Fault::NoCapOverAllTasks)) {
            let used = if self.has(Fault::OtherTasksAreForgotten) {
                spent(Place::Client(task.clone(), epoch, key.client.clone()))
            } else {
                spent(Place::AllTasks(key.client.clone()))
            };
            caps.push((Cap::ClientAllTasks, cap, used + self.held_where(of_client)));
        }
        for Participant { owner, cap } in owners {
            let Some(cap) = cap.filter(|_| !self.has(Fault::NoOwnerCap)) else { continue };
            let votes = |other: &Asked| of_epoch(other) && other.owners.iter().any(|one| one.owner == *owner);
            let used = spent(Place::Owner(task.clone(), epoch, owner.clone())) + self.held_where(votes);
            caps.push((Cap::Owner { owner: owner.clone() }, cap, used));
        }
        let left = |cap: NanoRho, used: u64| cap.units().saturating_sub(used);
        let mut refusing = caps.into_iter().filter(|(_, cap, used)| needed > left(*cap, *used));
        if let Some(first) = refusing.next() {
            let (cap, allowed, used) = refusing.fold(first, |least, next| {
                if left(next.1, next.2) < left(least.1, least.2) { next } else { least }
            });
            return Some(Outcome::Refused { cap, left: left(allowed, used), retry_at_ms: None });
        }
        let window = policy.window.filter(|_| !self.has(Fault::NoWindow))?;
        let in_window = self.spent_in_window(&task, epoch, window.seconds, now_ms);
        if needed <= left(window.rho, in_window + held) {
            return None;
        }
        // Whatever was charged leaves the window one by one; what runs leaves as late as if charged now.
        let now_ms = self.time(now_ms);
        let (length, total) = (window.seconds * 1000, self.sum_until(&place, now_ms).rho.units());
        let begin = now_ms.saturating_sub(length);
        let mut times: Vec<_> =
            self.posted.get(&place).into_iter().flatten().map(|(time, _)| *time).collect();
        times.sort_unstable();
        let fits = |time: &u64| {
            total - self.sum_until(&place, *time).rho.units() + held + needed <= window.rho.units()
        };
        let retry = times.into_iter().filter(|time| *time > begin).find(fits).unwrap_or(now_ms) + length;
        let retry_at_ms = (needed <= window.rho.units()).then_some(retry);
        Some(Outcome::Refused { cap: Cap::Window, left: left(window.rho, in_window + held), retry_at_ms })
    }

    fn charge(&mut self, asked: &Asked, rho: u64, last: bool, now_ms: u64) -> u64 {
        let time_ms = self.entry(now_ms);
        let counts = u64::from(last);
        let total = Total { rho: NanoRho::new(rho), requests: counts, rows: counts * u64::from(asked.rows) };
        let RequestKey { task, epoch, client, .. } = asked.key.clone();
        for Participant { owner, .. } in &asked.owners {
            self.post(Place::Owner(task.clone(), epoch, owner.clone()), time_ms, total);
        }
        self.post(Place::Epoch(task.clone(), epoch), time_ms, total);
        self.post(Place::Client(task, epoch, client.clone()), time_ms, total);
        self.post(Place::AllTasks(client), time_ms, total);
        time_ms
    }

    fn part(&mut self, key: &RequestKey, rho: u64, now_ms: u64) -> Result<Outcome, Outcome> {
        let held = &self.held[key];
        if rho > held.left {
            return Err(Outcome::TooMuch);
        }
        self.is_open(key)?;
        let asked = held.asked.clone();
        self.held.get_mut(key).expect("held").left -= rho;
        let rho = if self.has(Fault::PartsAreFree) { 0 } else { rho };
        self.charge(&asked, rho, false, now_ms);
        Ok(Outcome::Done)
    }

    fn commit(&mut self, batch: &[(RequestKey, u64, Vec<u8>)], now_ms: u64) -> Result<Outcome, Outcome> {
        let held: Vec<_> = batch.iter().map(|(key, ..)| self.held.remove(key).expect("held")).collect();
        let ends = || batch.iter().zip(&held);
        if ends().any(|((_, rho, _), held)| *rho > held.left) {
            return Err(Outcome::TooMuch);
        }
        batch.iter().try_for_each(|(key, ..)| self.is_open(key))?;
        for ((key, rho, result), held) in ends() {
            let again = self.known.contains_key(key) && self.has(Fault::RepeatedCommitsAreFree);
            let charged = if again { 0 } else { *rho };
            let committed_ms = self.charge(&held.asked, charged, true, now_ms);
            let (digest, result) = (held.asked.digest, Some(result.clone()));
            self.known.insert(key.clone(), Known { digest, released: false, committed_ms, result });
            if self.has(Fault::TheRestStaysHeld) && *rho < held.left {
                let rest = Held { left: held.left - rho, asked: held.asked.clone() };
                self.held.insert(key.clone(), rest);
            }
        }
        Ok(Outcome::Done)
    }

    fn release(&mut self, keys: &[RequestKey], peers: &[PeerHead], now_ms: u64) -> Result<Outcome, Outcome> {
        if keys.iter().any(|key| !self.known.contains_key(key)) {
            return Err(Outcome::Unknown);
        }
        if keys.is_empty() && peers.is_empty() {
            return Ok(Outcome::Done);
        }
        self.entry(now_ms);
        for key in keys {
            let known = self.known.get_mut(key).expect("it was looked for");
            known.released = true;
            if let Some(result) = &known.result {
                self.final_results.entry(key.clone()).or_insert_with(|| result.clone());
            }
        }
        if !self.has(Fault::PeersAreForgotten) {
            self.peers.extend(peers.iter().map(|peer| (peer.peer, peer.head)));
        }
        Ok(Outcome::Done)
    }

    fn raise(&mut self, task: &str, epoch: u64, theirs: &Spending, now_ms: u64) -> Outcome {
        let clients = theirs.by_client.iter().map(|(client, total)| {
            (
                Place::Client(task.to_owned(), epoch, client.clone()),
                Some(Place::AllTasks(client.clone())),
                *total,
            )
        });
        let owners = theirs
            .by_owner
            .iter()
            .map(|(owner, total)| (Place::Owner(task.to_owned(), epoch, owner.clone()), None, *total));
        let whole = [(Place::Epoch(task.to_owned(), epoch), None, theirs.total)];
        let time_ms = self.time(now_ms);
        let mut changed = false;
        for (place, also, total) in whole.into_iter().chain(clients).chain(owners) {
            let mut added = lack(self.sum(&place), total);
            if added == Total::default() {
                continue;
            }
            changed = true;
            if self.has(Fault::RaisesAdd) {
                added = total;
            }
            if !self.has(Fault::RaisesAreForgotten) {
                also.into_iter().chain([place]).for_each(|place| self.post(place, time_ms, added));
            }
        }
        if changed {
            self.entry(now_ms);
        }
        Outcome::Changed(changed)
    }

    /// What counts for a task epoch, place by place.
    pub fn parts(&self, task: &str, epoch: u64) -> Vec<(Place, Total)> {
        let of_epoch = |place: &&Place| match place {
            Place::Epoch(one, number) | Place::Client(one, number, _) | Place::Owner(one, number, _) => {
                one == task && *number == epoch
            }
            Place::AllTasks(_) => false,
        };
        self.posted.keys().filter(of_epoch).map(|place| (place.clone(), self.sum(place))).collect()
    }

    fn attest(&mut self, attestation: &Attestation, now_ms: u64) -> Result<Outcome, Outcome> {
        let Attestation { task, epoch, basis, attested_by } = attestation.clone();
        let here = (task.clone(), epoch);
        if let Some(before) = self.attested.get(&here)
            && !self.has(Fault::AttestationsAreReplaced)
        {
            return if *before == (basis, attested_by) { Ok(Outcome::Done) } else { Err(Outcome::Invalid) };
        }
        if let Basis::CarriedOver { from_epoch } = basis {
            let from = (task.clone(), from_epoch);
            let charged = self
                .parts(&task, epoch)
                .into_iter()
                .any(|(place, total)| total != Total::default() || !matches!(place, Place::Epoch(..)));
            if from_epoch >= epoch || charged || self.closed.contains_key(&from) {
                return Err(Outcome::Invalid);
            }
            self.closed.insert(from, epoch);
            if !self.has(Fault::CarriedOverIsForgotten) {
                for (place, total) in self.parts(&task, from_epoch) {
                    let to = match place {
                        Place::Client(task, _, client) => {
                            if self.has(Fault::CarriedOverCountsTwice) {
                                self.post(Place::AllTasks(client.clone()), 0, total);
                            }
                            Place::Client(task, epoch, client)
                        }
                        Place::Owner(task, _, owner) => Place::Owner(task, epoch, owner),
                        Place::Epoch(..) | Place::AllTasks(_) => Place::Epoch(task.clone(), epoch),
                    };
                    // Before all time, so that no window counts it.
                    self.post(to, 0, total);
                }
            }
        }
        self.entry(now_ms);
        self.attested.insert(here, (basis, attested_by));
        Ok(Outcome::Done)
    }
}
