//! Random operations on the ledger and on a plain model of it, on a disk in memory whose power fails.

mod contract;
#[path = "support/disk.rs"]
mod disk;

use std::{cell::RefCell, panic::catch_unwind};

use concilium_privacy::{Ledger, RedbLedger, ledger::RedbStore};
use contract::{
    Medium,
    model::{compare, plain::Fault, reaches_every_rule},
    random::seeded_rng,
};
use disk::Disk;
use rand_chacha::ChaCha20Rng;

const STEPS: usize = 2_500;

struct Memory {
    disk: Disk,
    random: RefCell<ChaCha20Rng>,
}

impl Medium for Memory {
    type Store = RedbStore;

    fn new(test: &str) -> Option<Self> {
        Some(Self { disk: Disk::default(), random: RefCell::new(seeded_rng(test)) })
    }

    fn store(&self) -> RedbStore {
        self.disk.store().expect("the disk")
    }

    fn cut_power(&mut self, _running: &RedbLedger, check: &dyn Fn(&dyn Ledger)) {
        let left = self.disk.after_power_cut(&mut self.random.borrow_mut());
        check(&left.open().expect("it opens after a loss of power"));
    }
}

fn memory() -> Memory {
    Memory::new("losses of power").expect("memory is there")
}

#[test]
fn the_ledger_does_what_the_model_does() {
    let seen = compare(memory(), STEPS, None);
    eprintln!("reached: {seen:?}");
    reaches_every_rule(&seen);
}

/// The controls: a model with one rule wrong must be told apart, whichever it is.
#[test]
fn a_model_with_one_wrong_rule_is_noticed() {
    for fault in Fault::ALL {
        let outcome = catch_unwind(|| compare(memory(), STEPS, Some(fault)));
        assert!(outcome.is_err(), "{fault:?} is not noticed");
    }
}
