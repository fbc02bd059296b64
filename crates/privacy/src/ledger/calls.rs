//! What callers ask of a ledger in a store.

use std::collections::BTreeMap;

use super::{
    Attestation, Charge, ClientSpending, ContentDigest, EpochRecord, Fits, Ledger, LedgerEntry, LedgerError,
    LedgerHead, Lookup, PeerHead, RequestKey, Reservation, Settlement, Spending, Stop, StoredLedger, Total,
    WindowState,
    attestation::{Epoch, decode_peer},
    caps,
    draft::Draft,
    epochs,
    operation::Operation,
    rows::{after_prefix, decode_total, epoch_key, name_key, part_key, part_name, request_key},
    store::{LedgerStore, Order, RowKey, StoreView, Table},
    stored::{begin_of, capped},
    verify::verify,
};
use crate::{
    parameter::NanoRho,
    policy::{Cap, SpendingWindow},
};

impl<S: LedgerStore> Ledger for StoredLedger<S> {
    fn lookup(&self, key: &RequestKey, digest: &ContentDigest) -> Result<Lookup, LedgerError> {
        let row = request_key(key);
        let keys = [(Table::Requests, row.clone()), (Table::Results, row)];
        let mut rows = self.store.view()?.get(&keys)?.into_iter();
        let (request, result) = (rows.next().flatten(), rows.next().flatten());
        Ok(match self.request(key, &self.keyed(digest), request, result)? {
            None => Lookup::New,
            Some((request, result)) => Lookup::Held { result, released: request.released },
        })
    }

    fn reserve(&self, charges: &[Charge]) -> Vec<Result<Reservation, LedgerError>> {
        // From here on everything knows the digest as it is stored.
        let charges: Vec<Charge> =
            charges.iter().map(|charge| charge.with_digest(self.keyed(charge.digest()))).collect();
        let charges = charges.as_slice();
        let all_fail = |error: LedgerError| charges.iter().map(|_| Err(error.clone())).collect();
        let mut keys: Vec<RowKey> = Vec::new();
        for charge in charges {
            let (key, row) = (charge.key(), request_key(charge.key()));
            keys.extend([
                (Table::Requests, row.clone()),
                (Table::Results, row),
                (Table::Stops, name_key(&key.task)),
                (Table::Epochs, epoch_key(&key.task, key.epoch)),
                (Table::TaskTotals, epoch_key(&key.task, key.epoch)),
                (Table::ClientTotals, part_key(&key.task, key.epoch, &key.client)),
                (Table::AllTasks, name_key(&key.client)),
            ]);
            keys.extend(
                capped(charge).map(|owner| (Table::OwnerTotals, part_key(&key.task, key.epoch, owner))),
            );
        }
        let mut holds = self.holds.lock();
        // The view is taken under the lock: what a commit moved from the table to the disk in the
        // meantime is then seen in exactly one of the two.
        let view = match self.store.view() {
            Ok(view) => view,
            Err(error) => return all_fail(error),
        };
        let mut draft = match Draft::new(&view, self.store.place(), self.clock.now_ms(), keys) {
            Ok(draft) => draft,
            Err(error) => return all_fail(error),
        };
        let mut outcomes: Vec<Result<Reservation, LedgerError>> = Vec::with_capacity(charges.len());
        let mut paced = Vec::new();
        for charge in charges {
            let key = charge.key();
            let outcome = if holds.contains(key) {
                Err(LedgerError::InProgress { key: key.clone() })
            } else {
                self.check_request(charge, &mut draft)
                    .and_then(|()| self.spent_of(charge, &mut draft))
                    .and_then(|spent| {
                        let held = holds.view(draft.head().entries);
                        caps::check(charge, &spent, &held).map_err(|refused| {
                            let refusal = refused.refusal.clone();
                            paced.push((outcomes.len(), refused));
                            LedgerError::Refused(refusal)
                        })
                    })
            };
            outcomes.push(outcome.map(|()| holds.insert(&self.holds, charge)));
        }
        drop(holds);
        // When a window gives way is searched for without the lock, which nobody needs to wait for.
        let now_ms = draft.time_ms();
        for (index, refused) in paced {
            if let (Cap::Window, Some(window)) = (&refused.refusal.cap, charges[index].policy().window)
                && let Err(LedgerError::Refused(refusal)) = &mut outcomes[index]
            {
                // Without an answer the refusal is as right, and says less.
                refusal.retry_at_ms =
                    caps::earliest(&view, (&*refused).into(), window, now_ms).ok().flatten();
            }
        }
        outcomes
    }

    fn charge_part(&self, parts: &[(&Reservation, NanoRho)]) -> Result<LedgerHead, LedgerError> {
        if parts.is_empty() {
            return self.head();
        }
        for (reservation, rho) in parts {
            self.check_settlement(reservation, *rho)?;
        }
        let parts = parts.iter().map(|(reservation, rho)| (reservation.shared_charge(), *rho)).collect();
        self.write(Operation::ChargeParts(parts)).map(|done| done.head)
    }

    fn commit(&self, batch: Vec<Settlement>) -> Result<LedgerHead, LedgerError> {
        if batch.is_empty() {
            return self.head();
        }
        for settlement in &batch {
            self.check_settlement(&settlement.reservation, settlement.charge)?;
        }
        self.write(Operation::Commit(batch)).map(|done| done.head)
    }

    fn mark_released(&self, keys: &[RequestKey], peers: &[PeerHead]) -> Result<(), LedgerError> {
        if keys.is_empty() && peers.is_empty() {
            return Ok(());
        }
        self.write(Operation::Release(keys.to_vec(), peers.to_vec())).map(drop)
    }

    fn spent(&self, task: &str, epoch: u64) -> Result<Spending, LedgerError> {
        let view = self.store.view()?;
        let prefix = epoch_key(task, epoch);
        let until = after_prefix(&prefix);
        let row = view.get(&[(Table::TaskTotals, prefix.clone())])?.pop().flatten();
        let unreadable = || self.corrupt("a total cannot be read");
        let total = decode_total(row.as_deref()).ok_or_else(unreadable)?;
        let parts = |table| -> Result<BTreeMap<String, Total>, LedgerError> {
            let rows = view.scan(table, &prefix, until.as_deref(), Order::Ascending, usize::MAX)?;
            rows.into_iter()
                .map(|(key, row)| Some((part_name(&key)?, decode_total(Some(&row))?)))
                .map(|part| part.ok_or_else(unreadable))
                .collect()
        };
        Ok(Spending { total, by_client: parts(Table::ClientTotals)?, by_owner: parts(Table::OwnerTotals)? })
    }

    fn total(&self, task: &str, epoch: u64) -> Result<Total, LedgerError> {
        let row = self.row(Table::TaskTotals, epoch_key(task, epoch))?;
        decode_total(row.as_deref()).ok_or_else(|| self.corrupt("a total cannot be read"))
    }

    fn spent_by_client(&self, task: &str, epoch: u64, client: &str) -> Result<ClientSpending, LedgerError> {
        let keys =
            [(Table::ClientTotals, part_key(task, epoch, client)), (Table::AllTasks, name_key(client))];
        let mut rows = self.store.view()?.get(&keys)?.into_iter();
        let mut total = || {
            let row = rows.next().flatten();
            decode_total(row.as_deref()).ok_or_else(|| self.corrupt("a total cannot be read"))
        };
        Ok(ClientSpending { task_epoch: total()?, all_tasks: total()? })
    }

    fn spent_in_window(&self, task: &str, epoch: u64, seconds: u64) -> Result<NanoRho, LedgerError> {
        let view = self.store.view()?;
        let now_ms = self.time_of(&view)?;
        let before = caps::spent_at(&view, task, epoch, begin_of(seconds, now_ms))?;
        Ok(caps::spent_at(&view, task, epoch, now_ms)?.saturating_sub(before))
    }

    fn window(
        &self,
        task: &str,
        epoch: u64,
        window: SpendingWindow,
        needed: NanoRho,
    ) -> Result<WindowState, LedgerError> {
        let holds = self.holds.lock();
        // Under the lock, as in `reserve`.
        let view = self.store.view()?;
        let head = self.head_of(&view)?;
        let held = holds.view(head.head.entries).of_epoch(task, epoch);
        drop(holds);
        let now_ms = head.time_ms.max(self.clock.now_ms());
        let before = caps::spent_at(&view, task, epoch, begin_of(window.seconds, now_ms))?;
        let spent = caps::spent_at(&view, task, epoch, now_ms)?.saturating_sub(before);
        let in_window = u128::from(spent.units()) + held;
        let fits = if in_window + u128::from(needed.units()) <= u128::from(window.rho.units()) {
            Fits::Now
        } else {
            let waiting = caps::Waiting { task, epoch, needed, in_window };
            caps::earliest(&view, waiting, window, now_ms)?.map_or(Fits::Never, Fits::At)
        };
        Ok(WindowState { spent, fits })
    }

    fn entries(&self, first: u64, at_most: usize) -> Result<Vec<LedgerEntry>, LedgerError> {
        let view = self.store.view()?;
        let rows = view.scan(Table::Log, &first.to_be_bytes(), None, Order::Ascending, at_most)?;
        (first..)
            .zip(rows)
            .map(|(number, (key, row))| {
                let bytes = (key == number.to_be_bytes()).then(|| row.get(32..)).flatten();
                let entry = bytes.and_then(LedgerEntry::decode).filter(|entry| entry.number == number);
                entry.ok_or_else(|| self.corrupt(format!("log entry {number} cannot be read")))
            })
            .collect()
    }

    fn head(&self) -> Result<LedgerHead, LedgerError> {
        Ok(self.head_of(&self.store.view()?)?.head)
    }

    fn hash_at(&self, entries: u64) -> Result<Option<[u8; 32]>, LedgerError> {
        let Some(last) = entries.checked_sub(1) else {
            return Ok(Some(LedgerHead::EMPTY.hash));
        };
        let Some(row) = self.row(Table::Log, last.to_be_bytes().to_vec())? else {
            return Ok(None);
        };
        let hash = row.first_chunk().copied();
        hash.map(Some).ok_or_else(|| self.corrupt(format!("log entry {last} cannot be read")))
    }

    fn peer_head(&self, peer: u8) -> Result<Option<LedgerHead>, LedgerError> {
        let row = self.row(Table::Peers, vec![peer])?;
        let unreadable = || self.corrupt("the end of a peer's log cannot be read");
        row.map(|row| decode_peer(&row).ok_or_else(unreadable)).transpose()
    }

    fn raise(&self, task: &str, epoch: u64, theirs: &Spending, peer: u8) -> Result<bool, LedgerError> {
        let raise = Operation::Raise(task.to_owned(), epoch, theirs.clone(), peer);
        self.write(raise).map(|done| done.changed)
    }

    fn stop(&self, task: &str, reason: &str) -> Result<(), LedgerError> {
        self.write(Operation::Stop(task.to_owned(), reason.to_owned())).map(drop)
    }

    fn stopped(&self, task: &str) -> Result<Option<Stop>, LedgerError> {
        let row = self.row(Table::Stops, name_key(task))?;
        let unreadable = || self.corrupt("a stop cannot be read");
        row.map(|row| Stop::decode(&row).ok_or_else(unreadable)).transpose()
    }

    fn resume(&self, task: &str, operator: &str, reason: &str) -> Result<(), LedgerError> {
        let resume = Operation::Resume(task.to_owned(), operator.to_owned(), reason.to_owned());
        self.write(resume).map(drop)
    }

    fn attest(&self, attestation: Attestation) -> Result<(), LedgerError> {
        self.write(Operation::Attest(attestation)).map(drop)
    }

    fn epochs(&self, task: &str) -> Result<BTreeMap<u64, EpochRecord>, LedgerError> {
        epochs::read(&self.store.view()?, self.store.place(), task)
    }

    fn attestation(&self, task: &str, epoch: u64) -> Result<Option<Attestation>, LedgerError> {
        let row = self.row(Table::Epochs, epoch_key(task, epoch))?;
        let row =
            Epoch::decode(row.as_deref()).ok_or_else(|| self.corrupt("an attestation cannot be read"))?;
        Ok(row.attested.map(|(basis, attested_by)| Attestation {
            task: task.to_owned(),
            epoch,
            basis,
            attested_by,
        }))
    }

    fn verify(&self) -> Result<LedgerHead, LedgerError> {
        verify(&self.store.view()?, self.store.place())
    }

    fn prune_results(&self, older_than_ms: u64) -> Result<u64, LedgerError> {
        let mut deleted = 0;
        let mut from = Some(Vec::new());
        while let Some(next) = from {
            let done = self.write(Operation::Prune { from: next, older_than_ms })?;
            deleted += done.deleted;
            from = done.next;
        }
        Ok(deleted)
    }
}
