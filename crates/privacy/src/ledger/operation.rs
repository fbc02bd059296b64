//! What changes a ledger.

use std::sync::Arc;

use super::{
    Attestation, Basis, Charge, Event, LedgerError, LedgerHead, PeerHead, Raised, RequestKey, Settlement,
    Spending, Stop, Total,
    attestation::{Epoch, encode_peer},
    draft::Draft,
    hold::HoldTable,
    request::ResultBytes,
    rows::{Request, Writer, encode_total, epoch_key, name_key, pace_key, part_key, part_name, request_key},
    store::{Order, RowKey, StoreView, Table},
    stored::PAGE,
};
use crate::{parameter::NanoRho, policy::MAX_NAME_BYTES};

/// Longest reason that the log keeps, in bytes; the rest is cut off.
const MAX_REASON_BYTES: usize = 2048;

/// A change that one call asks for.
pub(super) enum Operation {
    /// Charges parts of requests.
    ChargeParts(Vec<(Arc<Charge>, NanoRho)>),
    /// Charges requests and keeps their results.
    Commit(Vec<Settlement>),
    /// Notes that results are final.
    Release(Vec<RequestKey>, Vec<PeerHead>),
    /// Raises totals to those of a peer.
    Raise(String, u64, Spending, u8),
    /// Stops a task for a reason.
    Stop(String, String),
    /// Resumes a task: operator and reason.
    Resume(String, String, String),
    /// Notes on whose word an epoch begins.
    Attest(Attestation),
    /// Deletes old results, one page of them.
    Prune {
        /// Key of the first.
        from: Vec<u8>,
        /// Those committed before go.
        older_than_ms: u64,
    },
}

/// What an operation has to tell.
pub(super) struct Done {
    /// End of the log after it.
    pub(super) head: LedgerHead,
    /// Results that were deleted.
    pub(super) deleted: u64,
    /// Where the next page of results begins.
    pub(super) next: Option<Vec<u8>>,
    /// Whether it changed anything.
    pub(super) changed: bool,
}

impl Operation {
    /// The rows that it will read, so that those of all operations are read in one go.
    pub(super) fn rows(&self) -> Vec<RowKey> {
        let mut rows = Vec::new();
        match self {
            Self::ChargeParts(parts) => parts.iter().for_each(|(charge, _)| charge_rows(charge, &mut rows)),
            Self::Commit(batch) => {
                batch.iter().for_each(|settlement| charge_rows(settlement.reservation.charge(), &mut rows));
            }
            Self::Release(keys, _) => rows.extend(keys.iter().map(|key| (Table::Requests, request_key(key)))),
            Self::Raise(..) | Self::Stop(..) | Self::Resume(..) | Self::Attest(_) | Self::Prune { .. } => {}
        }
        rows
    }

    /// Puts the change into `draft`.
    pub(super) fn run<V: StoreView>(
        &mut self,
        draft: &mut Draft<'_, V>,
        holds: &HoldTable,
    ) -> Result<Done, LedgerError> {
        let before = draft.head();
        let (mut deleted, mut next) = (0, None);
        match self {
            Self::ChargeParts(parts) => {
                for (part, rho) in parts {
                    charge(draft, holds, part, *rho, NanoRho::ZERO, false)?;
                }
            }
            Self::Commit(batch) => commit(draft, holds, batch)?,
            Self::Release(keys, peers) => release(draft, keys, peers)?,
            Self::Raise(task, epoch, theirs, peer) => raise(draft, task, *epoch, theirs, *peer)?,
            Self::Stop(task, reason) => stop(draft, task, reason)?,
            Self::Resume(task, operator, reason) => resume(draft, task, operator, reason)?,
            Self::Attest(attestation) => attest(draft, attestation)?,
            Self::Prune { from, older_than_ms } => (deleted, next) = prune(draft, from, *older_than_ms)?,
        }
        let head = draft.head();
        Ok(Done { head, deleted, next, changed: head != before })
    }
}

/// Rows that a charge reads when it is written.
fn charge_rows(charge: &Charge, rows: &mut Vec<RowKey>) {
    let key = charge.key();
    rows.extend([
        (Table::Stops, name_key(&key.task)),
        (Table::Epochs, epoch_key(&key.task, key.epoch)),
        (Table::TaskTotals, epoch_key(&key.task, key.epoch)),
        (Table::ClientTotals, part_key(&key.task, key.epoch, &key.client)),
        (Table::AllTasks, name_key(&key.client)),
        (Table::OwnerSets, charge.owners_digest().to_vec()),
    ]);
    let owners = charge.participants().iter();
    rows.extend(owners.map(|owner| (Table::OwnerTotals, part_key(&key.task, key.epoch, &owner.owner))));
}

/// Fails if the task is stopped, or the epoch's spending went on elsewhere.
pub(super) fn check_open<V: StoreView>(
    draft: &mut Draft<'_, V>,
    key: &RequestKey,
) -> Result<(), LedgerError> {
    if let Some(row) = draft.get(Table::Stops, &name_key(&key.task))? {
        let stop = Stop::decode(row).ok_or_else(|| draft.corrupt("a stop cannot be read"))?;
        return Err(LedgerError::Stopped { task: key.task.clone(), reason: stop.reason });
    }
    match epoch_row(draft, &key.task, key.epoch)?.carried_into {
        None => Ok(()),
        Some(into) => Err(LedgerError::EpochClosed { task: key.task.clone(), epoch: key.epoch, into }),
    }
}

fn epoch_row<V: StoreView>(draft: &mut Draft<'_, V>, task: &str, epoch: u64) -> Result<Epoch, LedgerError> {
    let row = Epoch::decode(draft.get(Table::Epochs, &epoch_key(task, epoch))?);
    row.ok_or_else(|| draft.corrupt(format!("the attestation of task {task} epoch {epoch} cannot be read")))
}

/// Charges `rho`, and gives `voided` up. Returns the number of the log's entry.
fn charge<V: StoreView>(
    draft: &mut Draft<'_, V>,
    holds: &HoldTable,
    charge: &Arc<Charge>,
    rho: NanoRho,
    voided: NanoRho,
    last: bool,
) -> Result<u64, LedgerError> {
    let key = charge.key();
    check_open(draft, key)?;
    let event = charge.committed(rho, voided, last);
    let Event::Committed(committed) = &event else { unreachable!("a charge is committed") };
    let added = committed.charged;
    let overflow = || LedgerError::Overflow { key: key.clone() };
    let epoch = epoch_key(&key.task, key.epoch);
    let total = draft.add(Table::TaskTotals, epoch, added)?.ok_or_else(overflow)?;
    pace(draft, &key.task, key.epoch, total.rho);
    let client = part_key(&key.task, key.epoch, &key.client);
    draft.add(Table::ClientTotals, client, added)?.ok_or_else(overflow)?;
    draft.add(Table::AllTasks, name_key(&key.client), added)?.ok_or_else(overflow)?;
    for participant in charge.participants() {
        let owner = part_key(&key.task, key.epoch, &participant.owner);
        draft.add(Table::OwnerTotals, owner, added)?.ok_or_else(overflow)?;
    }
    if draft.get(Table::OwnerSets, charge.owners_digest())?.is_none() {
        let owners = charge.participants().iter();
        let names = owners.fold(Writer::default(), |names, participant| names.text(&participant.owner));
        draft.put(Table::OwnerSets, charge.owners_digest().to_vec(), Some(names.0));
    }
    let entry = draft.append(event);
    let taken = rho.checked_add(voided).ok_or_else(overflow)?;
    if !holds.lock().settle(entry, charge, taken) {
        return Err(LedgerError::InvalidCharge {
            key: key.clone(),
            reason: format!("rho {taken} is to be charged, and other parts leave less of what was set aside"),
        });
    }
    Ok(entry)
}

/// Notes what the task epoch has spent by now.
fn pace<V: StoreView>(draft: &mut Draft<'_, V>, task: &str, epoch: u64, spent: NanoRho) {
    let key = pace_key(task, epoch, draft.time_ms());
    draft.put(Table::Pace, key, Some(spent.units().to_be_bytes().to_vec()));
}

fn commit<V: StoreView>(
    draft: &mut Draft<'_, V>,
    holds: &HoldTable,
    batch: &mut [Settlement],
) -> Result<(), LedgerError> {
    for Settlement { reservation, charge: rho, result } in batch {
        let shared = reservation.shared_charge();
        let voided = reservation.left().saturating_sub(*rho);
        let entry = charge(draft, holds, &shared, *rho, voided, true)?;
        let key = shared.key();
        let request = Request { digest: *shared.digest(), released: false, time_ms: draft.time_ms(), entry };
        draft.put(Table::Requests, request_key(key), Some(request.encode()));
        draft.put(Table::Results, request_key(key), Some(result.take()));
    }
    Ok(())
}

fn release<V: StoreView>(
    draft: &mut Draft<'_, V>,
    keys: &[RequestKey],
    peers: &[PeerHead],
) -> Result<(), LedgerError> {
    for key in keys {
        let row = request_key(key);
        let unknown = || LedgerError::UnknownRequest { key: key.clone() };
        let request = Request::decode(draft.get(Table::Requests, &row)?.ok_or_else(unknown)?)
            .ok_or_else(|| draft.corrupt(format!("{key} cannot be read")))?;
        let request = Request { released: true, ..request };
        draft.put(Table::Requests, row, Some(request.encode()));
    }
    for PeerHead { peer, head } in peers {
        draft.put(Table::Peers, vec![*peer], Some(encode_peer(*head)));
    }
    draft.append(Event::Delivered { requests: keys.to_vec(), peers: peers.to_vec() });
    Ok(())
}

fn raise<V: StoreView>(
    draft: &mut Draft<'_, V>,
    task: &str,
    epoch: u64,
    theirs: &Spending,
    peer: u8,
) -> Result<(), LedgerError> {
    check_names(
        [("task", task)]
            .into_iter()
            .chain(theirs.by_client.keys().map(|client| ("client", client.as_str())))
            .chain(theirs.by_owner.keys().map(|owner| ("owner", owner.as_str()))),
    )?;
    let overflow = || LedgerError::Invalid {
        reason: format!("the totals that server {peer} tells of task {task} epoch {epoch} exceed 64 bits"),
    };
    let mut raised = Raised { task: task.to_owned(), epoch, peer, ..Raised::default() };
    let key = epoch_key(task, epoch);
    raised.total = draft.total(Table::TaskTotals, &key)?.lack(theirs.total);
    if raised.total != Total::default() {
        let total = draft.add(Table::TaskTotals, key, raised.total)?.ok_or_else(overflow)?;
        pace(draft, task, epoch, total.rho);
    }
    for (table, theirs, raised) in [
        (Table::ClientTotals, &theirs.by_client, &mut raised.by_client),
        (Table::OwnerTotals, &theirs.by_owner, &mut raised.by_owner),
    ] {
        for (name, theirs) in theirs {
            let key = part_key(task, epoch, name);
            let lack = draft.total(table, &key)?.lack(*theirs);
            if lack == Total::default() {
                continue;
            }
            draft.add(table, key, lack)?.ok_or_else(overflow)?;
            if table == Table::ClientTotals {
                draft.add(Table::AllTasks, name_key(name), lack)?.ok_or_else(overflow)?;
            }
            raised.insert(name.clone(), lack);
        }
    }
    let nothing = Raised { task: task.to_owned(), epoch, peer, ..Raised::default() };
    if raised != nothing {
        draft.append(Event::Raised(raised));
    }
    Ok(())
}

fn stop<V: StoreView>(draft: &mut Draft<'_, V>, task: &str, reason: &str) -> Result<(), LedgerError> {
    check_names([("task", task)])?;
    let key = name_key(task);
    if draft.get(Table::Stops, &key)?.is_some() {
        return Ok(());
    }
    let reason = cut(reason);
    let stop = Stop { reason: reason.clone(), since_ms: draft.time_ms() };
    draft.put(Table::Stops, key, Some(stop.encode()));
    draft.append(Event::Stopped { task: task.to_owned(), reason });
    Ok(())
}

fn resume<V: StoreView>(
    draft: &mut Draft<'_, V>,
    task: &str,
    operator: &str,
    reason: &str,
) -> Result<(), LedgerError> {
    check_names([("task", task), ("operator", operator)])?;
    if reason.trim().is_empty() {
        let reason = "a resumption needs a reason, which the log keeps; say what was found".to_owned();
        return Err(LedgerError::Invalid { reason });
    }
    let key = name_key(task);
    if draft.get(Table::Stops, &key)?.is_some() {
        draft.put(Table::Stops, key, None);
        let (task, operator) = (task.to_owned(), operator.to_owned());
        draft.append(Event::Resumed { task, operator, reason: cut(reason) });
    }
    Ok(())
}

fn attest<V: StoreView>(draft: &mut Draft<'_, V>, attestation: &Attestation) -> Result<(), LedgerError> {
    let Attestation { task, epoch, basis, attested_by } = attestation;
    check_names([("task", task.as_str()), ("attesting person's", attested_by.as_str())])?;
    let invalid =
        |reason: String| LedgerError::Invalid { reason: format!("task {task} epoch {epoch} {reason}") };
    let mut row = epoch_row(draft, task, *epoch)?;
    match &row.attested {
        Some((before, by)) if before == basis && by == attested_by => return Ok(()),
        Some((before, by)) => {
            return Err(invalid(format!(
                "was attested by {by} before, as {before:?}; an attestation stays, so begin another epoch"
            )));
        }
        None => {}
    }
    let mut carried = Total::default();
    if let Basis::CarriedOver { from_epoch } = basis {
        if from_epoch >= epoch {
            return Err(invalid(format!("cannot carry over from epoch {from_epoch}, which is not older")));
        }
        let to = epoch_key(task, *epoch);
        let mut charged = draft.total(Table::TaskTotals, &to)? != Total::default();
        for table in [Table::ClientTotals, Table::OwnerTotals] {
            charged |= !draft.totals(table, &to)?.is_empty();
        }
        if charged {
            return Err(invalid("was charged already, so what it begins with is settled".to_owned()));
        }
        let mut old = epoch_row(draft, task, *from_epoch)?;
        if let Some(into) = old.carried_into {
            return Err(invalid(format!(
                "cannot carry over from epoch {from_epoch}, which went on in epoch {into}"
            )));
        }
        old.carried_into = Some(*epoch);
        let from = epoch_key(task, *from_epoch);
        draft.put(Table::Epochs, from.clone(), Some(old.encode()));
        carried = draft.total(Table::TaskTotals, &from)?;
        draft.put(Table::TaskTotals, to, Some(encode_total(carried)));
        // Before all time, so that no window counts it.
        draft.put(Table::Pace, pace_key(task, *epoch, 0), Some(carried.rho.units().to_be_bytes().to_vec()));
        for table in [Table::ClientTotals, Table::OwnerTotals] {
            for (key, total) in draft.totals(table, &from)? {
                let name = part_name(&key).ok_or_else(|| draft.corrupt("a name cannot be read"))?;
                draft.put(table, part_key(task, *epoch, &name), Some(encode_total(total)));
            }
        }
    }
    row.attested = Some((*basis, attested_by.clone()));
    draft.put(Table::Epochs, epoch_key(task, *epoch), Some(row.encode()));
    draft.append(Event::Attested { attestation: attestation.clone(), carried });
    Ok(())
}

/// Deletes old results of one page; returns how many, and where the next page begins.
fn prune<V: StoreView>(
    draft: &mut Draft<'_, V>,
    from: &[u8],
    older_than_ms: u64,
) -> Result<(u64, Option<Vec<u8>>), LedgerError> {
    let keys: Vec<_> = draft
        .view()
        .scan(Table::Results, from, None, Order::Ascending, PAGE)?
        .into_iter()
        .map(|(key, result)| {
            drop(ResultBytes::from(result));
            key
        })
        .collect();
    for table in [Table::Requests, Table::Results] {
        draft.read(keys.iter().map(|key| (table, key.clone())).collect())?;
    }
    let mut deleted = 0;
    for key in &keys {
        // An operation before this one may just have deleted or replaced the result: the draft knows.
        if draft.get(Table::Results, key)?.is_none() {
            continue;
        }
        let committed_ms = match draft.get(Table::Requests, key)? {
            Some(row) => {
                let row = Request::decode(row);
                row.ok_or_else(|| draft.corrupt("a request cannot be read"))?.time_ms
            }
            // A result that belongs to no request serves no one.
            None => 0,
        };
        if committed_ms < older_than_ms {
            draft.put(Table::Results, key.clone(), None);
            deleted += 1;
        }
    }
    let next = keys.last().filter(|_| keys.len() == PAGE).map(|key| {
        let mut next = key.clone();
        next.push(0);
        next
    });
    Ok((deleted, next))
}

fn check_names<'a>(names: impl IntoIterator<Item = (&'static str, &'a str)>) -> Result<(), LedgerError> {
    match names.into_iter().find(|(_, name)| !(1..=MAX_NAME_BYTES).contains(&name.len())) {
        None => Ok(()),
        Some((what, name)) => Err(LedgerError::Invalid {
            reason: format!("the {what} name has {} bytes; 1 to {MAX_NAME_BYTES} are allowed", name.len()),
        }),
    }
}

/// The beginning of a text, as long as the log keeps it.
fn cut(text: &str) -> String {
    let mut end = text.len().min(MAX_REASON_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
