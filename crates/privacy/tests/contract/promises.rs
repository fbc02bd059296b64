//! What the ledger promises, one promise at a time.

use std::{sync::Arc, thread};

use concilium_privacy::{
    Cap, Charge, ContentDigest, Event, Ledger, LedgerError, Lookup, ManualClock, NanoRho, Reservation,
    Settlement, TaskPolicy,
};

use super::{
    Medium,
    ledger::{DIGEST, ROW, charge, key, policy, result},
};

/// Reserves one charge.
fn reserve(ledger: &dyn Ledger, charge: &Charge) -> Result<Reservation, LedgerError> {
    ledger.reserve(std::slice::from_ref(charge)).pop().expect("one answer for one charge")
}

/// Reserves and commits one charge.
fn spend(ledger: &dyn Ledger, charge: &Charge, answer: &str) {
    let reservation = reserve(ledger, charge).expect("within the budget");
    ledger.commit(vec![Settlement::in_full(reservation, result(answer))]).expect("a commit");
}

fn held(ledger: &dyn Ledger, policy: &TaskPolicy, client: &str, request: u8) -> Option<(String, bool)> {
    match ledger.lookup(&key(policy, client, request), &DIGEST).expect("a lookup") {
        Lookup::New => None,
        Lookup::Held { result, released } => {
            Some((String::from_utf8(result.expose().to_vec()).expect("text"), released))
        }
    }
}

fn spent(ledger: &dyn Ledger, policy: &TaskPolicy) -> u64 {
    ledger.spent(&policy.task, policy.epoch).expect("the spending").total.rho.units()
}

/// Logs are shown to auditors, and a digest of what one server holds would confirm guesses of the rest.
pub fn a_log_tells_no_digest_that_others_could_compute<M: Medium>(medium: M) {
    let policy = policy("digits", 1, 10, None);
    let other = M::new("another").expect("it could be had before");
    let digests = [medium, other].map(|medium| {
        let ledger = medium.create();
        spend(&ledger, &charge(&policy, "clinic", 1, 1), "share");
        drop(ledger);
        // The same request is known again after a restart.
        let ledger = medium.open();
        assert_eq!(held(&ledger, &policy, "clinic", 1), Some(("share".to_owned(), false)));
        let entry = ledger.entries(0, 1).expect("the log").pop().expect("an entry");
        let Event::Committed(committed) = entry.event else { panic!("a charge") };
        committed.digest
    });
    assert!(digests[0] != DIGEST && digests[1] != DIGEST && digests[0] != digests[1]);
}

pub fn a_request_is_charged_once_and_answered_alike_afterwards<M: Medium>(medium: M) {
    let policy = policy("digits", 1, 10, None);
    let ledger = medium.create();
    let charge = charge(&policy, "clinic", 1, 2);
    assert_eq!(charge.cost(), NanoRho::new(2 * ROW));
    assert_eq!(held(&ledger, &policy, "clinic", 1), None);

    spend(&ledger, &charge, "share");
    assert_eq!(held(&ledger, &policy, "clinic", 1), Some(("share".to_owned(), false)));
    ledger.mark_released(&[key(&policy, "clinic", 1)], &[]).expect("marked");
    assert_eq!(held(&ledger, &policy, "clinic", 1), Some(("share".to_owned(), true)));
    // Another client with the same id is another request.
    assert_eq!(held(&ledger, &policy, "practice", 1), None);

    assert!(matches!(reserve(&ledger, &charge), Err(LedgerError::AlreadyReleased { .. })));
    drop(ledger);
    let ledger = medium.open();
    assert_eq!(held(&ledger, &policy, "clinic", 1), Some(("share".to_owned(), true)));
    let spending = ledger.spent("digits", 1).expect("the spending");
    assert_eq!(spending.total.rho, NanoRho::new(2 * ROW));
    assert_eq!((spending.total.requests, spending.total.rows), (1, 2));
    assert_eq!(spending.by_client.len(), 1);
    assert_eq!(spending.by_client["clinic"], spending.total);
    assert_eq!(ledger.verify().expect("sound"), ledger.head().expect("a head"));
}

pub fn one_id_is_never_used_for_two_contents<M: Medium>(medium: M) {
    let policy = policy("digits", 1, 10, None);
    let ledger = medium.create();
    spend(&ledger, &charge(&policy, "clinic", 1, 1), "share");
    let other = ContentDigest([8; 32]);
    let request = key(&policy, "clinic", 1);
    assert!(matches!(ledger.lookup(&request, &other), Err(LedgerError::Conflict { .. })));
    let charge = Charge::new(request.clone(), other, 1, &policy, &[]).expect("a valid charge");
    assert!(matches!(reserve(&ledger, &charge), Err(LedgerError::Conflict { .. })));
    ledger.mark_released(&[request], &[]).expect("marked");
    assert!(matches!(reserve(&ledger, &charge), Err(LedgerError::Conflict { .. })));
    assert_eq!(spent(&ledger, &policy), ROW);
}

pub fn a_request_that_runs_cannot_run_again<M: Medium>(medium: M) {
    let policy = policy("digits", 1, 10, None);
    let ledger = medium.create();
    let charge = charge(&policy, "clinic", 1, 1);
    // Also twice in one batch.
    let mut answers = ledger.reserve(&[charge.clone(), charge.clone()]);
    assert!(matches!(answers.pop(), Some(Err(LedgerError::InProgress { .. }))));
    let running = answers.pop().expect("an answer").expect("a reservation");
    assert!(matches!(reserve(&ledger, &charge), Err(LedgerError::InProgress { .. })));
    drop(running);
    assert!(reserve(&ledger, &charge).is_ok());
}

pub fn a_request_that_was_committed_and_not_released_is_charged_again<M: Medium>(medium: M) {
    let policy = policy("digits", 1, 10, None);
    let ledger = medium.create();
    let charge = charge(&policy, "clinic", 1, 3);
    spend(&ledger, &charge, "first");
    spend(&ledger, &charge, "second");
    assert_eq!(held(&ledger, &policy, "clinic", 1), Some(("second".to_owned(), false)));
    let spending = ledger.spent("digits", 1).expect("the spending");
    assert_eq!(spending.total.rho.units(), 6 * ROW);
    assert_eq!(spending.total.requests, 2);
    assert_eq!(ledger.verify().expect("sound").entries, 2);
}

pub fn the_tightest_cap_wins<M: Medium>(medium: M) {
    let policy = policy("digits", 1, 5, Some(3));
    let ledger = medium.create();
    let refusal = |client, request, rows| match reserve(&ledger, &charge(&policy, client, request, rows)) {
        Err(LedgerError::Refused(refusal)) => refusal,
        Err(error) => panic!("another error: {error}"),
        Ok(_) => panic!("not refused"),
    };
    let first = refusal("clinic", 1, 4);
    assert_eq!(
        (first.cap.clone(), first.left.units(), first.needed.units()),
        (Cap::Client, 3 * ROW, 4 * ROW)
    );
    spend(&ledger, &charge(&policy, "clinic", 1, 3), "a");
    let second = refusal("clinic", 2, 1);
    assert_eq!((second.cap.clone(), second.left), (Cap::Client, NanoRho::ZERO));
    assert!(second.to_string().contains("cap per client"), "{second}");

    // A reservation counts like spending, and stops counting when it is given up.
    let running = reserve(&ledger, &charge(&policy, "practice", 1, 2)).expect("within the budget");
    let third = refusal("surgery", 1, 1);
    assert_eq!((third.cap.clone(), third.left), (Cap::TaskEpoch, NanoRho::ZERO));
    assert!(third.to_string().contains("next epoch"), "{third}");
    drop(running);
    let fourth = refusal("surgery", 1, 3);
    assert_eq!((fourth.cap.clone(), fourth.left.units()), (Cap::TaskEpoch, 2 * ROW));
    assert_eq!(spent(&ledger, &policy), 3 * ROW);

    // Budgets of other epochs and tasks are their own.
    for other in
        [super::ledger::policy("digits", 2, 5, Some(3)), super::ledger::policy("scans", 1, 5, Some(3))]
    {
        spend(&ledger, &charge(&other, "clinic", 1, 3), "b");
        assert_eq!(spent(&ledger, &other), 3 * ROW);
    }
    assert_eq!(ledger.spent("never", 1).expect("the spending"), concilium_privacy::Spending::default());
}

pub fn a_batch_is_granted_in_order_as_far_as_the_budget_goes<M: Medium>(medium: M) {
    let policy = policy("digits", 1, 5, None);
    let ledger = medium.create();
    let charges = [(1, 2), (2, 4), (3, 3)].map(|(request, rows)| charge(&policy, "clinic", request, rows));
    let answers = ledger.reserve(&charges);
    assert_eq!(answers.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
    let granted = answers
        .into_iter()
        .flatten()
        .map(|reservation| Settlement::in_full(reservation, result("x")))
        .collect();
    let head = ledger.commit(granted).expect("a commit");
    assert_eq!(head.entries, 2);
    assert_eq!(spent(&ledger, &policy), 5 * ROW);
    assert_eq!(ledger.commit(Vec::new()).expect("nothing to do"), head);
}

/// Exactly as many rows as the cap pays for, whatever the order of threads, and none refused while
/// budget is left unspent and unreserved.
pub fn threads_cannot_overspend<M: Medium>(medium: M) {
    const ROWS: u64 = 37;
    let policy = policy("digits", 1, ROWS, None);
    let ledger: Arc<dyn Ledger> = Arc::new(medium.create());
    let granted: usize = thread::scope(|scope| {
        let workers: Vec<_> = (0..6)
            .map(|worker: u8| {
                let (ledger, policy) = (&ledger, &policy);
                scope.spawn(move || {
                    (0..12_u8)
                        .filter(|request| {
                            let client = format!("client {worker}");
                            match reserve(ledger.as_ref(), &charge(policy, &client, *request, 1)) {
                                Ok(reservation) => {
                                    ledger
                                        .commit(vec![Settlement::in_full(reservation, result("x"))])
                                        .expect("a commit");
                                    true
                                }
                                Err(LedgerError::Refused(_)) => false,
                                Err(error) => panic!("{error}"),
                            }
                        })
                        .count()
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("the worker ends")).sum()
    });
    assert_eq!(granted as u64, ROWS);
    assert_eq!(spent(ledger.as_ref(), &policy), ROWS * ROW);
    ledger.verify().expect("sound");
}

pub fn reservations_of_another_ledger_are_refused<M: Medium>(medium: M) {
    let policy = policy("digits", 1, 5, None);
    let ledger = medium.create();
    let elsewhere = M::new("another").expect("it could be had before");
    let other = elsewhere.create();
    let reservation = reserve(&other, &charge(&policy, "clinic", 1, 1)).expect("within the budget");
    let error = ledger.commit(vec![Settlement::in_full(reservation, result("x"))]).expect_err("foreign");
    assert!(matches!(error, LedgerError::ForeignReservation { .. }));
    assert_eq!(spent(&ledger, &policy), 0);
    // The failed commit gave the reservation up.
    assert!(reserve(&other, &charge(&policy, "clinic", 1, 1)).is_ok());
}

pub fn only_committed_requests_can_be_marked<M: Medium>(medium: M) {
    let policy = policy("digits", 1, 5, None);
    let ledger = medium.create();
    spend(&ledger, &charge(&policy, "clinic", 1, 1), "x");
    let keys = [key(&policy, "clinic", 1), key(&policy, "clinic", 2)];
    let error = ledger.mark_released(&keys, &[]).expect_err("one is unknown");
    assert!(matches!(error, LedgerError::UnknownRequest { key } if key == keys[1]));
    assert_eq!(held(&ledger, &policy, "clinic", 1), Some(("x".to_owned(), false)), "none is marked");
    ledger.mark_released(&[], &[]).expect("nothing to do");
    // Marking twice is harmless.
    for _ in 0..2 {
        ledger.mark_released(&keys[..1], &[]).expect("marked");
    }
}

pub fn pruned_results_expire_and_their_charges_stay<M: Medium>(medium: M) {
    let policy = policy("digits", 1, 5, None);
    let clock = Arc::new(ManualClock::new(1_000));
    let ledger = medium.create().with_clock(Arc::clone(&clock));
    spend(&ledger, &charge(&policy, "clinic", 1, 1), "old");
    clock.advance_ms(1_000);
    spend(&ledger, &charge(&policy, "clinic", 2, 1), "new");
    assert_eq!(ledger.prune_results(1_000).expect("pruned"), 0);
    assert_eq!(ledger.prune_results(2_000).expect("pruned"), 1);
    assert_eq!(ledger.prune_results(2_000).expect("pruned"), 0);

    let expired = ledger.lookup(&key(&policy, "clinic", 1), &DIGEST).err();
    assert!(matches!(expired, Some(LedgerError::ResultExpired { .. })));
    let again = reserve(&ledger, &charge(&policy, "clinic", 1, 1));
    assert!(matches!(again, Err(LedgerError::ResultExpired { .. })));
    assert_eq!(held(&ledger, &policy, "clinic", 2), Some(("new".to_owned(), false)));
    assert_eq!(spent(&ledger, &policy), 2 * ROW);
    ledger.verify().expect("sound");
}
