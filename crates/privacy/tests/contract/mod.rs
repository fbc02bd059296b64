//! What a ledger promises, whatever store it is in. [`contract_tests`] makes the tests for one store.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    unused_macros,
    reason = "every test program compiles its own copy and uses a part"
)]

#[path = "../support/ledger.rs"]
pub mod ledger;
pub mod model;
pub mod promises;
#[path = "../support/random.rs"]
pub mod random;
pub mod rules;

use concilium_privacy::{Ledger, StoredLedger, ledger::LedgerStore};

/// What a test's ledger is kept on.
pub trait Medium: Sized {
    /// The store on it.
    type Store: LedgerStore;

    /// A new one; `None`, after a line that says so, where it cannot be had.
    fn new(test: &str) -> Option<Self>;

    /// Its store, which is new at the first call. One is open at a time.
    fn store(&self) -> Self::Store;

    /// Cuts the power under a ledger that runs, and shows `check` what is there then.
    fn cut_power(&mut self, running: &StoredLedger<Self::Store>, check: &dyn Fn(&dyn Ledger));

    /// Starts a ledger.
    fn create(&self) -> StoredLedger<Self::Store> {
        StoredLedger::create_in(self.store()).expect("a new ledger")
    }

    /// Opens the ledger.
    fn open(&self) -> StoredLedger<Self::Store> {
        StoredLedger::open_in(self.store()).expect("the ledger")
    }
}

/// One test for each promise, over the store of a [`Medium`].
macro_rules! contract_tests {
    ($medium:ty) => {
        contract_tests! {
            $medium;
            promises::a_log_tells_no_digest_that_others_could_compute,
            promises::a_request_is_charged_once_and_answered_alike_afterwards,
            promises::one_id_is_never_used_for_two_contents,
            promises::a_request_that_runs_cannot_run_again,
            promises::a_request_that_was_committed_and_not_released_is_charged_again,
            promises::the_tightest_cap_wins,
            promises::a_batch_is_granted_in_order_as_far_as_the_budget_goes,
            promises::threads_cannot_overspend,
            promises::reservations_of_another_ledger_are_refused,
            promises::only_committed_requests_can_be_marked,
            promises::pruned_results_expire_and_their_charges_stay,
            rules::an_owners_cap_counts_what_its_models_voted_on,
            rules::a_clients_cap_over_all_tasks_counts_every_task_and_epoch,
            rules::a_window_paces_to_the_millisecond_and_gives_nothing_back,
            rules::a_charge_in_parts_keeps_what_was_charged_and_voids_the_rest,
            rules::more_than_what_is_set_aside_is_never_charged,
            rules::the_larger_total_wins,
            rules::a_stopped_task_charges_nothing_until_an_operator_resumes_it,
            rules::an_epoch_begins_with_what_is_attested,
            rules::heads_of_the_past_and_of_peers_are_kept,
        }
    };
    ($medium:ty; $($module:ident::$test:ident,)+) => {
        $(
            #[test]
            fn $test() {
                if let Some(medium) = <$medium as contract::Medium>::new(stringify!($test)) {
                    contract::$module::$test(medium);
                }
            }
        )+
    };
}
pub(crate) use contract_tests;
