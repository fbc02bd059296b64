//! Reservations: prices set aside in memory.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Charge, RequestKey};
use crate::parameter::NanoRho;

/// A price set aside for one request. Dropping it sets free what was not charged.
///
/// Losing it in a crash is safe: nothing leaves a server before a charge is on the disk.
#[must_use = "dropping a reservation gives it up"]
pub struct Reservation {
    charge: Arc<Charge>,
    table: Arc<HoldTable>,
}

impl Reservation {
    /// What was reserved.
    pub fn charge(&self) -> &Charge {
        &self.charge
    }

    /// What is still set aside: all, without the parts that were charged.
    pub fn left(&self) -> NanoRho {
        self.table.lock().left(self.charge.key())
    }

    pub(super) fn shared_charge(&self) -> Arc<Charge> {
        Arc::clone(&self.charge)
    }

    pub(super) fn belongs_to(&self, table: &Arc<HoldTable>) -> bool {
        Arc::ptr_eq(&self.table, table)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.table.lock().remove(self.charge.key());
    }
}

/// All prices set aside in one ledger.
#[derive(Default)]
pub(super) struct HoldTable(Mutex<Holds>);

#[derive(Default)]
pub(super) struct Holds {
    holds: HashMap<RequestKey, Hold>,
    sums: Sums,
    /// Log entries that the running write makes of holds.
    settling: Vec<Settling>,
}

struct Hold {
    charge: Arc<Charge>,
    left: NanoRho,
    /// What the running write takes from it.
    settling: NanoRho,
}

/// Between the moment when the disk has an entry and the moment when its price is taken out of the
/// table, the price is in both. The entry's number tells a reader that already sees the entry not to
/// count it twice.
struct Settling {
    entry: u64,
    charge: Arc<Charge>,
    rho: NanoRho,
}

impl HoldTable {
    /// Nothing panics while it holds the lock, so a poisoned lock still guards a sound table.
    pub(super) fn lock(&self) -> MutexGuard<'_, Holds> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Holds {
    pub(super) fn contains(&self, key: &RequestKey) -> bool {
        self.holds.contains_key(key)
    }

    /// Sets the price of `charge` aside in `table`, whose lock `self` is.
    pub(super) fn insert(&mut self, table: &Arc<HoldTable>, charge: &Charge) -> Reservation {
        let charge = Arc::new(charge.clone());
        self.sums.add(&charge, charge.cost());
        let hold = Hold { charge: Arc::clone(&charge), left: charge.cost(), settling: NanoRho::ZERO };
        self.holds.insert(charge.key().clone(), hold);
        Reservation { charge, table: Arc::clone(table) }
    }

    fn remove(&mut self, key: &RequestKey) {
        if let Some(hold) = self.holds.remove(key) {
            self.sums.subtract(&hold.charge, hold.left);
            if hold.settling > NanoRho::ZERO {
                self.settling.retain(|settling| settling.charge.key() != key);
            }
        }
    }

    /// What is set aside for a request, without what the running write takes from it.
    pub(super) fn left(&self, key: &RequestKey) -> NanoRho {
        self.holds.get(key).map_or(NanoRho::ZERO, |hold| hold.left.saturating_sub(hold.settling))
    }

    /// Notes that the running write makes log entry `entry` of a part of what is set aside. Returns
    /// whether so much is: parts that are written together may be more than what was left to each.
    #[must_use]
    pub(super) fn settle(&mut self, entry: u64, charge: &Arc<Charge>, rho: NanoRho) -> bool {
        let Some(hold) = self.holds.get_mut(charge.key()) else { return false };
        let Some(settling) = hold.settling.checked_add(rho).filter(|settling| *settling <= hold.left) else {
            return false;
        };
        hold.settling = settling;
        self.settling.push(Settling { entry, charge: Arc::clone(charge), rho });
        true
    }

    /// Forgets what the running write makes from entry `first` on: it does not come about.
    pub(super) fn abandon(&mut self, first: u64) {
        for Settling { charge, rho, .. } in self.settling.extract_if(.., |settling| settling.entry >= first) {
            if let Some(hold) = self.holds.get_mut(charge.key()) {
                hold.settling = hold.settling.saturating_sub(rho);
            }
        }
    }

    /// The running write is on the disk.
    pub(super) fn settled(&mut self) {
        for Settling { charge, rho, .. } in std::mem::take(&mut self.settling) {
            if let Some(hold) = self.holds.get_mut(charge.key()) {
                hold.left = hold.left.saturating_sub(rho);
                hold.settling = hold.settling.saturating_sub(rho);
                self.sums.subtract(&charge, rho);
            }
        }
    }

    /// What is set aside, for a reader who sees the log's first `entries` entries.
    pub(super) fn view(&self, entries: u64) -> HoldView<'_> {
        let mut settled = Sums::default();
        for Settling { entry, charge, rho } in &self.settling {
            if *entry < entries {
                settled.add(charge, *rho);
            }
        }
        HoldView { all: &self.sums, settled }
    }
}

/// Sums of what is set aside. 128 bits hold every sum of 64-bit prices.
#[derive(Default)]
struct Sums {
    epochs: HashMap<String, HashMap<u64, EpochSums>>,
    clients: HashMap<String, u128>,
}

#[derive(Default)]
struct EpochSums {
    total: u128,
    clients: HashMap<String, u128>,
    owners: HashMap<String, u128>,
}

impl Sums {
    fn add(&mut self, charge: &Charge, rho: NanoRho) {
        let rho = u128::from(rho.units());
        let key = charge.key();
        let epoch = entry(&mut self.epochs, &key.task).entry(key.epoch).or_default();
        epoch.total += rho;
        *entry(&mut epoch.clients, &key.client) += rho;
        for participant in charge.participants() {
            *entry(&mut epoch.owners, &participant.owner) += rho;
        }
        *entry(&mut self.clients, &key.client) += rho;
    }

    /// Takes off what was added before.
    fn subtract(&mut self, charge: &Charge, rho: NanoRho) {
        let rho = u128::from(rho.units());
        let key = charge.key();
        take(&mut self.clients, &key.client, rho);
        let Some(epochs) = self.epochs.get_mut(&key.task) else { return };
        let Some(epoch) = epochs.get_mut(&key.epoch) else { return };
        epoch.total -= rho;
        take(&mut epoch.clients, &key.client, rho);
        for participant in charge.participants() {
            take(&mut epoch.owners, &participant.owner, rho);
        }
        // Names that nothing is set aside for take no memory.
        if epoch.total == 0 {
            epochs.remove(&key.epoch);
            if epochs.is_empty() {
                self.epochs.remove(&key.task);
            }
        }
    }

    fn epoch(&self, task: &str, epoch: u64) -> Option<&EpochSums> {
        self.epochs.get(task)?.get(&epoch)
    }
}

/// The value of a name, without a copy of a name that is there.
fn entry<'a, T: Default>(map: &'a mut HashMap<String, T>, name: &str) -> &'a mut T {
    if !map.contains_key(name) {
        map.insert(name.to_owned(), T::default());
    }
    map.get_mut(name).expect("it was just looked for or put there")
}

fn take(map: &mut HashMap<String, u128>, name: &str, rho: u128) {
    if let Some(sum) = map.get_mut(name) {
        *sum -= rho;
        if *sum == 0 {
            map.remove(name);
        }
    }
}

/// See [`Holds::view`].
pub(super) struct HoldView<'a> {
    all: &'a Sums,
    settled: Sums,
}

impl HoldView<'_> {
    fn of(&self, sum: impl Fn(&Sums) -> u128) -> u128 {
        sum(self.all) - sum(&self.settled)
    }

    pub(super) fn of_epoch(&self, task: &str, epoch: u64) -> u128 {
        self.of(|sums| sums.epoch(task, epoch).map_or(0, |epoch| epoch.total))
    }

    pub(super) fn of_client(&self, key: &RequestKey) -> u128 {
        let of = |sums: &Sums| sums.epoch(&key.task, key.epoch)?.clients.get(&key.client).copied();
        self.of(|sums| of(sums).unwrap_or(0))
    }

    pub(super) fn of_owner(&self, key: &RequestKey, owner: &str) -> u128 {
        let of = |sums: &Sums| sums.epoch(&key.task, key.epoch)?.owners.get(owner).copied();
        self.of(|sums| of(sums).unwrap_or(0))
    }

    pub(super) fn of_client_in_all_tasks(&self, client: &str) -> u128 {
        self.of(|sums| sums.clients.get(client).copied().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::tests::charge;

    /// While a write and the end of its reservation overlap, a price counts exactly once, whichever
    /// state of the disk a reader has.
    #[test]
    fn a_price_that_is_being_committed_counts_once() {
        let table = Arc::new(HoldTable::default());
        let charge = charge();
        let key = charge.key();
        let cost = u128::from(charge.cost().units());
        let held = |entries| {
            let holds = table.lock();
            let view = holds.view(entries);
            let owner = view.of_owner(key, "north");
            assert_eq!(view.of_client(key), owner);
            assert_eq!(view.of_client_in_all_tasks(&key.client), owner);
            assert_eq!(view.of_epoch(&key.task, key.epoch), owner);
            owner
        };
        let reservation = table.lock().insert(&table, &charge);
        assert_eq!(held(5), cost);

        // A part.
        assert!(table.lock().settle(5, &reservation.shared_charge(), NanoRho::new(7)));
        assert_eq!(held(5), cost, "the disk has entries 0 to 4");
        assert_eq!(held(6), cost - 7, "the disk has entry 5");
        assert_eq!(u128::from(reservation.left().units()), cost - 7);
        table.lock().abandon(5);
        assert_eq!(held(6), cost, "the write failed");
        assert!(table.lock().settle(5, &reservation.shared_charge(), NanoRho::new(7)));
        assert!(!table.lock().settle(6, &reservation.shared_charge(), charge.cost()), "a part is settling");
        table.lock().settled();
        assert_eq!(held(6), cost - 7);

        // The rest.
        let left = reservation.left();
        assert!(table.lock().settle(6, &reservation.shared_charge(), left));
        assert_eq!(held(6), cost - 7);
        assert_eq!(held(7), 0);
        drop(reservation);
        assert_eq!(held(7), 0);
        table.lock().settled();
        assert_eq!(held(7), 0);
        assert!(table.lock().sums.epochs.is_empty() && table.lock().sums.clients.is_empty());
    }
}
