//! Reservations: prices set aside in memory.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Charge, RequestKey};
use crate::parameter::NanoRho;

/// A price set aside for one request. Dropping it sets the price free again, unless it was committed.
///
/// Losing it in a crash is safe: nothing leaves a server before the commit.
#[must_use = "dropping a reservation gives it up"]
pub struct Reservation {
    charge: Charge,
    table: Arc<HoldTable>,
}

impl Reservation {
    /// What is set aside.
    pub fn charge(&self) -> &Charge {
        &self.charge
    }

    pub(super) fn belongs_to(&self, table: &Arc<HoldTable>) -> bool {
        Arc::ptr_eq(&self.table, table)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.table.lock().holds.remove(&self.charge.key);
    }
}

/// All prices set aside in one ledger.
#[derive(Default)]
pub(super) struct HoldTable(Mutex<Holds>);

#[derive(Default)]
pub(super) struct Holds {
    holds: HashMap<RequestKey, Hold>,
}

struct Hold {
    cost: NanoRho,
    /// Number of the log entry that a running commit writes for it.
    entry: Option<u64>,
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

    /// Sets `charge` aside in `table`, whose lock `self` is.
    pub(super) fn insert(&mut self, table: &Arc<HoldTable>, charge: &Charge) -> Reservation {
        self.holds.insert(charge.key.clone(), Hold { cost: charge.cost, entry: None });
        Reservation { charge: charge.clone(), table: Arc::clone(table) }
    }

    /// Notes that a commit is about to write `key` as log entry `entry`. Between that commit and
    /// the drop of its reservation, the price is on disk and in this table; the number tells a
    /// reader that already sees the entry not to count it twice.
    pub(super) fn note_entry(&mut self, key: &RequestKey, entry: u64) {
        if let Some(hold) = self.holds.get_mut(key) {
            hold.entry = Some(entry);
        }
    }

    /// Everything set aside that is not among the first `entries` log entries.
    pub(super) fn sums(&self, entries: u64) -> HoldSums {
        let mut sums = HoldSums::default();
        for (key, hold) in &self.holds {
            if hold.entry.is_none_or(|entry| entry >= entries) {
                sums.add(key, hold.cost);
            }
        }
        sums
    }
}

/// Sums of prices by task epoch, and by client within it.
#[derive(Default)]
pub(super) struct HoldSums {
    tasks: HashMap<(String, u64), NanoRho>,
    clients: HashMap<(String, u64, String), NanoRho>,
}

impl HoldSums {
    pub(super) fn of_task(&self, key: &RequestKey) -> NanoRho {
        let task = (key.task.clone(), key.epoch);
        self.tasks.get(&task).copied().unwrap_or_default()
    }

    pub(super) fn of_client(&self, key: &RequestKey) -> NanoRho {
        let client = (key.task.clone(), key.epoch, key.client.clone());
        self.clients.get(&client).copied().unwrap_or_default()
    }

    pub(super) fn add(&mut self, key: &RequestKey, cost: NanoRho) {
        // Saturation counts too much, never too little.
        let add = |sum: &mut NanoRho| {
            *sum = sum.checked_add(cost).unwrap_or(NanoRho::new(u64::MAX));
        };
        add(self.tasks.entry((key.task.clone(), key.epoch)).or_default());
        add(self.clients.entry((key.task.clone(), key.epoch, key.client.clone())).or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::entry::tests::charge;

    /// While a commit and the drop of its reservation overlap, a price counts exactly once, whichever
    /// state of the disk a reader has.
    #[test]
    fn a_price_that_is_being_committed_counts_once() {
        let table = Arc::new(HoldTable::default());
        let charge = charge();
        let key = charge.key();
        let held = |entries| table.lock().sums(entries).of_task(key);

        let reservation = table.lock().insert(&table, &charge);
        assert_eq!(held(5), charge.cost());
        table.lock().note_entry(key, 5);
        assert_eq!(held(5), charge.cost(), "the disk has entries 0 to 4");
        assert_eq!(held(6), NanoRho::ZERO, "the disk has entry 5");
        assert_eq!(table.lock().sums(5).of_client(key), charge.cost());
        drop(reservation);
        assert_eq!(held(5), NanoRho::ZERO);
    }

    #[test]
    fn sums_never_wrap() {
        let mut sums = HoldSums::default();
        let charge = charge();
        sums.add(charge.key(), NanoRho::new(u64::MAX));
        sums.add(charge.key(), charge.cost());
        assert_eq!(sums.of_task(charge.key()), NanoRho::new(u64::MAX));
    }
}
