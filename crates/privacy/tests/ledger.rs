//! What the ledger promises, over a file.

mod contract;

use std::{fs, path::PathBuf};

use concilium_privacy::{Charge, Ledger, LedgerError, RedbLedger, ledger::RedbStore};
use contract::{
    Medium, contract_tests,
    ledger::{DIGEST, key, place, policy},
    model::compare,
    random::seeded_rng,
};
use tempfile::TempDir;

/// A file in a folder of its own.
struct File {
    _folder: TempDir,
    path: PathBuf,
}

impl Medium for File {
    type Store = RedbStore;

    fn new(_test: &str) -> Option<Self> {
        let (folder, path) = place();
        Some(Self { _folder: folder, path })
    }

    fn store(&self) -> RedbStore {
        let store =
            if self.path.exists() { RedbStore::open(&self.path) } else { RedbStore::create(&self.path) };
        store.expect("the file")
    }

    /// A copy of the file as it is now is what a loss of power would leave.
    fn cut_power(&mut self, _running: &RedbLedger, check: &dyn Fn(&dyn Ledger)) {
        let copy = self.path.with_extension("copy");
        fs::copy(&self.path, &copy).expect("a copy");
        check(&RedbLedger::open(&copy).expect("the copy opens"));
        fs::remove_file(copy).expect("the copy goes");
    }
}

contract_tests!(File);

#[test]
fn the_ledger_does_what_the_model_does() {
    let file = File::new("the model").expect("a folder");
    eprintln!("reached: {:?}", compare(file, 500, seeded_rng("ledger model"), None));
}

#[test]
fn charges_that_make_no_sense_are_refused() {
    let policy = policy("digits", 1, 5, None);
    let wrong = |change: &dyn Fn(&mut concilium_privacy::RequestKey), rows| {
        let mut request = key(&policy, "clinic", 1);
        change(&mut request);
        match Charge::new(request, DIGEST, rows, &policy, &[]) {
            Err(LedgerError::InvalidCharge { reason, .. }) => reason,
            Err(error) => panic!("another error: {error}"),
            Ok(_) => panic!("not refused"),
        }
    };
    assert!(wrong(&|request| request.task.push('2'), 1).contains("digits"));
    assert!(wrong(&|request| request.epoch = 2, 1).contains("epoch 1"));
    assert!(wrong(&|request| request.client.clear(), 1).contains("client name"));
    assert!(wrong(&|request| request.client = "c".repeat(513), 1).contains("513"));
    assert!(wrong(&|_| {}, 0).contains("no rows"));
    let mut weak = policy.clone();
    weak.mechanism = concilium_privacy::Mechanism::DiscreteGaussian { sigma: "1".parse().expect("a number") };
    assert!(Charge::new(key(&weak, "clinic", 1), DIGEST, 1, &weak, &[]).is_err());
    // The largest number of rows has a price.
    assert!(Charge::new(key(&policy, "clinic", 1), DIGEST, u32::MAX, &policy, &[]).is_ok());
}
