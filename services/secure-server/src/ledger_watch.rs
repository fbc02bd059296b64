//! What the three servers' ledgers say of each other: totals, of which the larger one holds, and heads,
//! which show a ledger that went back in time.
//!
//! A server whose ledger was restored from an old copy undercounts what was released. The others notice:
//! each keeps the last head that it has seen of either peer. When a link has come up, before anything is
//! planned, the servers tell each other their heads, the heads that they remember, and their totals.
//!
//! - A total that is smaller than a peer's is raised to it, durably. That heals what a crash between two
//!   servers' commits leaves, and gives a restored server back what its copy lacks.
//! - A ledger that is shorter than what another server has seen of it, or that has other entries up to
//!   there, stops every task on the servers that see it, until their operators resume it: they must know
//!   that one of the three safeguards of the budget was lost.
//!
//! Heads and totals are public among the servers and operators; nothing here is secret.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError, RwLock};

use concilium_mpc::Neighbour;
use concilium_privacy::{Ledger, LedgerError, LedgerHead, NanoRho, PeerHead, Spending, Stop, Total};
use concilium_rpc::status::RpcError;
use concilium_rpc::v1::lane_frame::Frame;
use concilium_rpc::v1::{
    LedgerPosition, LedgerProof, LedgerSummary, NamedTotal, SpendingTotal, TaskSpending,
};

use crate::context::Context;
use crate::kept::ledger_error;
use crate::link::{Failure, Link};
use crate::metrics;
use crate::progress::Step;

/// Names in one frame; a name has at most 64 bytes, so a frame stays far below the size limit.
const NAMES_IN_FRAME: usize = 8192;

/// Most frames of one summary: names of tens of millions of clients.
const MAXIMUM_FRAMES: usize = 4096;

const NEIGHBOURS: [Neighbour; 2] = [Neighbour::Next, Neighbour::Previous];

/// What a server knows of its peers' ledgers since the last link, and the tasks that are stopped.
#[derive(Default)]
pub struct LedgerWatch {
    /// The tasks that answer nothing, as the ledger has them.
    stops: RwLock<BTreeMap<String, Stop>>,
    /// The heads that the peers showed when the link came up or at the last barrier.
    heads: Mutex<BTreeMap<u8, LedgerHead>>,
}

impl LedgerWatch {
    /// Reads which of these tasks are stopped.
    ///
    /// # Errors
    /// A storage error of the ledger.
    pub fn load<'a>(ledger: &dyn Ledger, tasks: impl Iterator<Item = &'a str>) -> Result<Self, LedgerError> {
        let mut stops = BTreeMap::new();
        for task in tasks {
            if let Some(stop) = ledger.stopped(task)? {
                stops.insert(task.to_owned(), stop);
            }
        }
        Ok(LedgerWatch { stops: RwLock::new(stops), heads: Mutex::default() })
    }

    /// Refuses a task that is stopped.
    ///
    /// # Errors
    /// [`RpcError::LedgerDiverged`] with the reason.
    pub fn check(&self, task: &str) -> Result<(), RpcError> {
        match self.stops.read().unwrap_or_else(PoisonError::into_inner).get(task) {
            None => Ok(()),
            Some(stop) => {
                Err(RpcError::LedgerDiverged { task: task.to_owned(), problem: stop.reason.clone() })
            }
        }
    }

    /// Why and since when a task is stopped.
    pub fn stop_of(&self, task: &str) -> Option<Stop> {
        self.stops.read().unwrap_or_else(PoisonError::into_inner).get(task).cloned()
    }

    /// Stops these tasks, durably, unless they are stopped already.
    fn stop<'a>(
        &self,
        ledger: &dyn Ledger,
        tasks: impl Iterator<Item = &'a str>,
        reason: &str,
    ) -> Result<(), LedgerError> {
        for task in tasks {
            if self.stop_of(task).is_some() {
                continue;
            }
            ledger.stop(task, reason)?;
            if let Some(stop) = ledger.stopped(task)? {
                self.stops.write().unwrap_or_else(PoisonError::into_inner).insert(task.to_owned(), stop);
            }
        }
        Ok(())
    }

    /// Lets a task go on, with the peers' ledgers as they are now. Returns why it was stopped, or `None` if
    /// it was not.
    ///
    /// # Errors
    /// [`RpcError::PeerUnavailable`] if a peer has not shown its ledger since this server started,
    /// [`RpcError::Internal`] when the disk fails.
    pub fn resume(
        &self,
        context: &Context,
        task: &str,
        operator: &str,
        reason: &str,
    ) -> Result<Option<Stop>, RpcError> {
        let Some(stop) = self.stop_of(task) else { return Ok(None) };
        let heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut peers = Vec::new();
        for peer in [context.here.next(), context.here.previous()] {
            let head = heads.get(&(peer.number() as u8)).copied();
            let head = head.ok_or_else(|| RpcError::PeerUnavailable {
                peer: peer.to_string(),
                step: "its ledger has not been seen since this server started; connect it first".to_owned(),
            })?;
            peers.push(PeerHead { peer: peer.number() as u8, head });
        }
        context.ledger.mark_released(&[], &peers).map_err(ledger_error)?;
        context.ledger.resume(task, operator, reason).map_err(ledger_error)?;
        self.stops.write().unwrap_or_else(PoisonError::into_inner).remove(task);
        Ok(Some(stop))
    }

    /// The last head that a peer has shown since this server started.
    pub(crate) fn head_of(&self, peer: u8) -> Option<LedgerHead> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner).get(&peer).copied()
    }

    /// Notes the head that a peer has just shown.
    pub(crate) fn note_head(&self, peer: u8, head: LedgerHead) {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner).insert(peer, head);
    }
}

/// What a peer shows of its ledger.
#[derive(Clone)]
struct Shown {
    head: LedgerHead,
    /// The last head of this server's ledger that the peer remembers.
    remembered: Option<LedgerHead>,
    spending: Vec<TaskSpending>,
}

/// Compares the ledgers on links that have just come up.
pub(crate) fn compare(link: &mut Link<'_>, context: &Context) -> Result<(), Failure> {
    let ledger = context.ledger.as_ref();
    let head = ledger.head().map_err(unreadable)?;
    let mut spending = Vec::new();
    for task in context.tasks.all() {
        let spent = ledger.spent(task.name(), task.policy.epoch).map_err(unreadable)?;
        spending.push(to_wire(task.name(), task.policy.epoch, &spent));
    }
    let mut noted = Vec::new();
    for neighbour in NEIGHBOURS {
        let remembered = ledger.peer_head(link.lane.index_of(neighbour)).map_err(unreadable)?;
        noted.push(remembered);
        for summary in summaries(head, remembered, &spending) {
            link.send(neighbour, Frame::LedgerSummary(summary))?;
        }
    }
    link.flush()?;
    let shown = [receive(link, Neighbour::Next)?, receive(link, Neighbour::Previous)?];
    for (neighbour, shown) in NEIGHBOURS.into_iter().zip(&shown) {
        let hash = hash_at(ledger, shown.remembered)?.map(|hash| hash.to_vec().into());
        link.send(neighbour, Frame::LedgerProof(LedgerProof { hash }))?;
    }
    link.flush()?;
    let mut problems = Vec::new();
    let mut heads = Vec::new();
    for ((neighbour, shown), noted) in NEIGHBOURS.into_iter().zip(&shown).zip(noted) {
        let proof = link.receive(neighbour, Step::Ledgers, |frame| match frame {
            Frame::LedgerProof(proof) => Some(proof),
            _ => None,
        })?;
        let proof = proof.hash.and_then(|hash| <[u8; 32]>::try_from(&hash[..]).ok());
        let peer = link.lane.index_of(neighbour);
        raise(context, peer, &shown.spending).map_err(unwritable)?;
        let here = context.here.number() as u8;
        problems.extend(went_back(peer, shown.head, proof, noted, "this server"));
        let own = hash_at(ledger, shown.remembered)?;
        problems.extend(went_back(here, head, own, shown.remembered, &format!("server {peer}")));
        context.watch.note_head(peer, shown.head);
        heads.push((PeerHead { peer, head: shown.head }, noted));
    }
    if let Some(problem) = problems.first() {
        tracing::error!(server = %context.here, problem, "the ledgers do not belong together: every task is stopped");
        let tasks = context.tasks.all().map(|task| task.name());
        return context.watch.stop(ledger, tasks, problem).map_err(unwritable);
    }
    let new: Vec<_> =
        heads.into_iter().filter(|(peer, noted)| Some(peer.head) != *noted).map(|(peer, _)| peer).collect();
    if new.is_empty() { Ok(()) } else { ledger.mark_released(&[], &new).map_err(unwritable) }
}

fn unreadable(error: LedgerError) -> Failure {
    Failure::fault(format!("the ledger cannot be read: {error}"))
}

fn unwritable(error: LedgerError) -> Failure {
    Failure::fault(format!("the ledger cannot be written: {error}"))
}

/// The hash after as many entries as `position` has; `None` without one, or if the log is shorter.
fn hash_at(ledger: &dyn Ledger, position: Option<LedgerHead>) -> Result<Option<[u8; 32]>, Failure> {
    position.map_or(Ok(None), |position| ledger.hash_at(position.entries).map_err(unreadable))
}

/// Says how the ledger of server `whose`, which ends in `head`, contradicts what `witness` has `seen` of
/// it. `proof` is its hash after as many entries.
fn went_back(
    whose: u8,
    head: LedgerHead,
    proof: Option<[u8; 32]>,
    seen: Option<LedgerHead>,
    witness: &str,
) -> Option<String> {
    let seen = seen?;
    if head.entries < seen.entries {
        return Some(format!(
            "the ledger of server {whose} has {} entries, and {witness} has seen {} of it: it was restored from an \
             old copy, or lost",
            head.entries, seen.entries
        ));
    }
    (proof != Some(seen.hash)).then(|| {
        format!(
            "the first {} entries in the ledger of server {whose} are not those that {witness} has seen: it was \
             restored from an old copy, and has gone on since",
            seen.entries
        )
    })
}

/// Raises this server's totals to those of a peer where they are smaller.
pub(crate) fn raise(context: &Context, peer: u8, spending: &[TaskSpending]) -> Result<(), LedgerError> {
    for task in context.tasks.all() {
        // Another epoch there is another policy, and nothing runs.
        let parts =
            spending.iter().filter(|theirs| theirs.task == task.name() && theirs.epoch == task.policy.epoch);
        let theirs = together(parts);
        if context.ledger.raise(task.name(), task.policy.epoch, &theirs, peer)? {
            metrics::count_ledger_raise(task.name());
            tracing::warn!(
                server = %context.here, peer, task = task.name(), epoch = task.policy.epoch,
                "another server has charged more, and the totals here were raised to its: a batch failed between two \
                 commits, or this ledger was restored from a copy"
            );
        }
    }
    Ok(())
}

/// What the parts of one task's spending say together.
fn together<'a>(parts: impl Iterator<Item = &'a TaskSpending>) -> Spending {
    parts.map(from_wire).fold(Spending::default(), |mut sum, part| {
        sum.total = part.total;
        sum.by_client.extend(part.by_client);
        sum.by_owner.extend(part.by_owner);
        sum
    })
}

fn position(head: LedgerHead) -> LedgerPosition {
    LedgerPosition { entries: head.entries, hash: head.hash.to_vec().into() }
}

fn head_of(position: &LedgerPosition) -> Option<LedgerHead> {
    Some(LedgerHead { entries: position.entries, hash: <[u8; 32]>::try_from(&position.hash[..]).ok()? })
}

/// The frames that show a ledger, all of them with at most [`NAMES_IN_FRAME`] names.
fn summaries(
    head: LedgerHead,
    remembered: Option<LedgerHead>,
    spending: &[TaskSpending],
) -> Vec<LedgerSummary> {
    let mut frames = Vec::new();
    for task in spending {
        let part = |clients: &[NamedTotal], owners: &[NamedTotal]| TaskSpending {
            clients: clients.to_vec(),
            owners: owners.to_vec(),
            task: task.task.clone(),
            epoch: task.epoch,
            total: task.total,
        };
        frames.push(part(&[], &[]));
        frames.extend(task.clients.chunks(NAMES_IN_FRAME).map(|clients| part(clients, &[])));
        frames.extend(task.owners.chunks(NAMES_IN_FRAME).map(|owners| part(&[], owners)));
    }
    let mut frames: Vec<_> = frames.into_iter().map(|task| vec![task]).collect();
    // A server without tasks shows its head, too.
    frames.push(Vec::new());
    let last = frames.len() - 1;
    let summary = |(index, tasks)| LedgerSummary {
        head: Some(position(head)),
        remembered: remembered.map(position),
        tasks,
        more: index < last,
    };
    frames.into_iter().enumerate().map(summary).collect()
}

fn receive(link: &mut Link<'_>, from: Neighbour) -> Result<Shown, Failure> {
    let peer = link.lane.index_of(from);
    let malformed = || Failure::fault(format!("server {peer} does not show its ledger as it should"));
    let mut shown: Option<Shown> = None;
    for _ in 0..MAXIMUM_FRAMES {
        let summary = link.receive(from, Step::Ledgers, |frame| match frame {
            Frame::LedgerSummary(summary) => Some(summary),
            _ => None,
        })?;
        let head = summary.head.as_ref().and_then(head_of).ok_or_else(malformed)?;
        let remembered = match &summary.remembered {
            Some(remembered) => Some(head_of(remembered).ok_or_else(malformed)?),
            None => None,
        };
        let shown = shown.get_or_insert(Shown { head, remembered, spending: Vec::new() });
        shown.spending.extend(summary.tasks);
        if !summary.more {
            return Ok(shown.clone());
        }
    }
    Err(malformed())
}

fn to_wire(task: &str, epoch: u64, spending: &Spending) -> TaskSpending {
    let names = |totals: &BTreeMap<String, Total>| {
        totals
            .iter()
            .map(|(name, total)| NamedTotal { name: name.clone(), total: Some(total_to_wire(total)) })
            .collect()
    };
    TaskSpending {
        task: task.to_owned(),
        epoch,
        total: Some(total_to_wire(&spending.total)),
        clients: names(&spending.by_client),
        owners: names(&spending.by_owner),
    }
}

fn total_to_wire(total: &Total) -> SpendingTotal {
    SpendingTotal { nano_rho: total.rho.units(), requests: total.requests, rows: total.rows }
}

fn total_from_wire(total: Option<&SpendingTotal>) -> Total {
    total.map_or_else(Total::default, |total| Total {
        rho: NanoRho::new(total.nano_rho),
        requests: total.requests,
        rows: total.rows,
    })
}

fn from_wire(spending: &TaskSpending) -> Spending {
    let names = |totals: &[NamedTotal]| {
        totals.iter().map(|named| (named.name.clone(), total_from_wire(named.total.as_ref()))).collect()
    };
    Spending {
        total: total_from_wire(spending.total.as_ref()),
        by_client: names(&spending.clients),
        by_owner: names(&spending.owners),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(entries: u64, byte: u8) -> LedgerHead {
        LedgerHead { entries, hash: [byte; 32] }
    }

    #[test]
    fn a_ledger_that_went_back_is_told_from_one_that_went_on() {
        let seen = Some(head(9, 9));
        // Went on, or stayed.
        assert_eq!(went_back(1, head(12, 12), Some([9; 32]), seen, "this server"), None);
        assert_eq!(went_back(1, head(9, 9), Some([9; 32]), seen, "this server"), None);
        // Was never seen.
        assert_eq!(went_back(1, head(3, 3), None, None, "this server"), None);
        let shorter = went_back(1, head(8, 8), None, seen, "server 2").expect("it is shorter");
        assert!(shorter.contains("server 1 has 8") && shorter.contains("server 2 has seen 9"), "{shorter}");
        // As long, or longer, with other entries; or without a word about them.
        for (end, proof) in [(head(9, 8), Some([8; 32])), (head(12, 12), Some([8; 32])), (head(12, 12), None)]
        {
            let other = went_back(1, end, proof, seen, "this server").expect("its entries differ");
            assert!(other.contains("first 9 entries in the ledger of server 1"), "{other}");
        }
    }

    #[test]
    fn summaries_carry_every_name_in_frames_of_bounded_size() {
        let total = |rho| Total { rho: NanoRho::new(rho), requests: 1, rows: 2 };
        let spending = Spending {
            total: total(7),
            by_client: (0..NAMES_IN_FRAME as u64 + 3).map(|i| (format!("client-{i}"), total(i))).collect(),
            by_owner: [("ward".to_owned(), total(5))].into(),
        };
        let wire = to_wire("digits", 3, &spending);
        let frames = summaries(head(4, 4), Some(head(2, 2)), std::slice::from_ref(&wire));
        assert!(frames.iter().rev().skip(1).all(|frame| frame.more) && !frames[frames.len() - 1].more);
        let parts = || frames.iter().flat_map(|frame| &frame.tasks);
        assert!(parts().all(|task| task.clients.len() + task.owners.len() <= NAMES_IN_FRAME));
        assert_eq!(together(parts()), spending);
        // A server without tasks shows its head, too.
        assert_eq!(summaries(head(0, 0), None, &[]).len(), 1);
    }
}
