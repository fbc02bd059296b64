//! Caps of clients, owners and windows, charges in parts, peers, stops and epochs, one rule at a time.

use std::{collections::BTreeMap, sync::Arc};

use concilium_privacy::{
    Attestation, Basis, Cap, Charge, Event, Fits, Ledger, LedgerError, LedgerHead, ManualClock, NanoRho,
    Participant, PeerHead, Refusal, Reservation, Settlement, Spending, StoredLedger, TaskPolicy, Total,
    WindowState, policy::SpendingWindow,
};

use super::{
    Medium,
    ledger::{DIGEST, ROW, key, owners, policy, result},
};

struct World<M: Medium> {
    clock: Arc<ManualClock>,
    ledger: StoredLedger<M::Store>,
    /// Ends after the ledger in it.
    _medium: M,
}

impl<M: Medium> World<M> {
    fn new(medium: M) -> Self {
        let clock = Arc::new(ManualClock::new(1_000_000));
        let ledger = medium.create().with_clock(Arc::clone(&clock));
        Self { clock, ledger, _medium: medium }
    }

    fn reserve(
        &self,
        policy: &TaskPolicy,
        owners: &[Participant],
        client: &str,
        request: u8,
        rows: u32,
    ) -> Result<Reservation, LedgerError> {
        let charge =
            Charge::new(key(policy, client, request), DIGEST, rows, policy, owners).expect("a valid charge");
        self.ledger.reserve(&[charge]).pop().expect("one answer for one charge")
    }

    fn spend(&self, policy: &TaskPolicy, owners: &[Participant], client: &str, request: u8, rows: u32) {
        let reservation = self.reserve(policy, owners, client, request, rows).expect("within the budget");
        self.ledger.commit(vec![Settlement::in_full(reservation, result("x"))]).expect("a commit");
    }

    fn refusal(
        &self,
        policy: &TaskPolicy,
        owners: &[Participant],
        client: &str,
        request: u8,
        rows: u32,
    ) -> Refusal {
        match self.reserve(policy, owners, client, request, rows) {
            Err(LedgerError::Refused(refusal)) => refusal,
            Err(error) => panic!("another error: {error}"),
            Ok(_) => panic!("not refused"),
        }
    }

    fn verify(&self) {
        assert_eq!(self.ledger.verify().expect("sound"), self.ledger.head().expect("a head"));
    }
}

fn total(rows: u64) -> Total {
    Total { rho: NanoRho::new(rows * ROW), requests: rows, rows }
}

pub fn an_owners_cap_counts_what_its_models_voted_on<M: Medium>(medium: M) {
    let world = World::new(medium);
    let digits = policy("digits", 1, 100, None);
    let both = owners(&[("north", Some(3)), ("south", Some(10))]);
    let south = owners(&[("south", Some(10))]);
    world.spend(&digits, &both, "clinic", 1, 2);
    let running = world.reserve(&digits, &both, "clinic", 2, 1).expect("within the budget");
    let refusal = world.refusal(&digits, &both, "practice", 1, 1);
    assert_eq!(refusal.cap, Cap::Owner { owner: "north".to_owned() });
    assert_eq!(refusal.left, NanoRho::ZERO);
    assert!(refusal.to_string().contains("owner north"), "{refusal}");
    // Without the models of that owner the budget pays.
    world.spend(&digits, &south, "practice", 1, 4);
    drop(running);
    world.spend(&digits, &both, "clinic", 2, 1);
    // The least that is left is named: south has 3, and north nothing.
    let refusal = world.refusal(&digits, &both, "clinic", 3, 4);
    assert_eq!(refusal.cap, Cap::Owner { owner: "north".to_owned() });
    let refusal = world.refusal(&digits, &south, "clinic", 3, 4);
    assert_eq!((refusal.cap, refusal.left.units()), (Cap::Owner { owner: "south".to_owned() }, 3 * ROW));
    let spending = world.ledger.spent("digits", 1).expect("the spending");
    let rows = |owner: &str| spending.by_owner[owner].rows;
    assert_eq!((rows("north"), rows("south"), spending.total.rows), (3, 7, 7));
    world.verify();
}

pub fn a_clients_cap_over_all_tasks_counts_every_task_and_epoch<M: Medium>(medium: M) {
    let world = World::new(medium);
    let with_cap = |task, epoch| {
        let mut policy = policy(task, epoch, 100, Some(50));
        policy.cap_per_client_all_tasks = Some(NanoRho::new(6 * ROW));
        policy
    };
    let (digits, scans, later) = (with_cap("digits", 1), with_cap("scans", 1), with_cap("digits", 2));
    world.spend(&digits, &[], "clinic", 1, 2);
    world.spend(&scans, &[], "clinic", 1, 1);
    world.spend(&later, &[], "clinic", 1, 1);
    let _running = world.reserve(&scans, &[], "clinic", 2, 1).expect("within the budget");
    let refusal = world.refusal(&digits, &[], "clinic", 3, 2);
    assert_eq!((refusal.cap, refusal.left.units()), (Cap::ClientAllTasks, ROW));
    world.spend(&digits, &[], "practice", 1, 6);
    let spending = world.ledger.spent_by_client("digits", 1, "clinic").expect("the spending");
    assert_eq!((spending.task_epoch.rows, spending.all_tasks.rows), (2, 4));
    world.verify();
}

pub fn a_window_paces_to_the_millisecond_and_gives_nothing_back<M: Medium>(medium: M) {
    let world = World::new(medium);
    let mut digits = policy("digits", 1, 9, None);
    digits.window = Some(SpendingWindow { rho: NanoRho::new(4 * ROW), seconds: 10 });
    world.spend(&digits, &[], "clinic", 1, 1);
    world.clock.advance_ms(2_000);
    world.spend(&digits, &[], "clinic", 2, 2);
    world.clock.advance_ms(3_000);

    // One row fits at once, two when the first row leaves, four when all have left, five never.
    for (rows, retry) in [(2, Some(1_010_000)), (3, Some(1_012_000)), (4, Some(1_012_000)), (5, None)] {
        let refusal = world.refusal(&digits, &[], "clinic", 3, rows);
        assert_eq!((refusal.cap, refusal.left.units()), (Cap::Window, ROW));
        assert_eq!(refusal.retry_at_ms, retry, "{rows} rows");
    }
    for (time, fits) in [(1_009_999, false), (1_010_000, true)] {
        world.clock.set_ms(time);
        assert_eq!(world.reserve(&digits, &[], "clinic", 3, 2).is_ok(), fits, "at {time}");
    }
    let spent = |ledger: &dyn Ledger| ledger.spent_in_window("digits", 1, 10).expect("the spending");
    let window = digits.window.expect("a window");
    let state = |rows: u64| {
        world.ledger.window("digits", 1, window, NanoRho::new(rows * ROW)).expect("the window's state")
    };
    assert_eq!(state(2), WindowState { spent: NanoRho::new(2 * ROW), fits: Fits::Now });
    assert_eq!((state(3).fits, state(5).fits), (Fits::At(1_012_000), Fits::Never));
    assert_eq!(spent(&world.ledger).units(), 2 * ROW);

    // Running requests count, and leave the window last.
    let running = world.reserve(&digits, &[], "clinic", 4, 2).expect("within the window");
    assert_eq!(world.refusal(&digits, &[], "clinic", 5, 4).retry_at_ms, Some(1_020_000));
    assert_eq!(state(1), WindowState { spent: NanoRho::new(2 * ROW), fits: Fits::At(1_012_000) });
    assert_eq!(state(4).fits, Fits::At(1_020_000));
    world.ledger.commit(vec![Settlement::in_full(running, result("x"))]).expect("a commit");

    // A clock that goes back opens no window early, and times in the log never go back.
    world.clock.set_ms(5);
    assert_eq!(world.refusal(&digits, &[], "clinic", 5, 1).retry_at_ms, Some(1_012_000));
    world.clock.set_ms(1_012_000);
    world.spend(&digits, &[], "clinic", 5, 2);
    world.clock.set_ms(7);
    let mut other = policy("scans", 1, 5, None);
    world.spend(&other, &[], "clinic", 1, 1);
    let times: Vec<_> =
        world.ledger.entries(0, 99).expect("the log").iter().map(|entry| entry.time_ms).collect();
    assert_eq!(times, [1_000_000, 1_002_000, 1_010_000, 1_012_000, 1_012_000]);

    // What was spent stays spent: the epoch's cap refuses, whatever the window says.
    world.clock.set_ms(9_000_000);
    assert_eq!(spent(&world.ledger), NanoRho::ZERO);
    let refusal = world.refusal(&digits, &[], "clinic", 6, 3);
    assert_eq!((refusal.cap, refusal.left.units()), (Cap::TaskEpoch, 2 * ROW));

    // The window is not named when waiting for it would be in vain.
    other.window = Some(SpendingWindow { rho: NanoRho::new(ROW), seconds: 10 });
    let refusal = world.refusal(&other, &[], "clinic", 2, 5);
    assert_eq!((refusal.cap, refusal.retry_at_ms), (Cap::TaskEpoch, None));
    world.verify();
}

pub fn a_charge_in_parts_keeps_what_was_charged_and_voids_the_rest<M: Medium>(medium: M) {
    let world = World::new(medium);
    let digits = policy("digits", 1, 10, None);
    let north = owners(&[("north", None)]);
    let rho = |ledger: &dyn Ledger| ledger.total("digits", 1).expect("the total").rho.units();
    let charge_part =
        |reservation: &Reservation, units| world.ledger.charge_part(&[(reservation, NanoRho::new(units))]);

    let reservation = world.reserve(&digits, &north, "clinic", 1, 6).expect("within the budget");
    charge_part(&reservation, 2 * ROW).expect("a part");
    assert_eq!(rho(&world.ledger), 2 * ROW);
    assert_eq!(reservation.left().units(), 4 * ROW);
    // Charged and set aside together are what was reserved.
    assert_eq!(world.refusal(&digits, &north, "practice", 1, 5).left.units(), 4 * ROW);
    let error = charge_part(&reservation, 4 * ROW + 1).expect_err("more than is left");
    assert!(matches!(&error, LedgerError::InvalidCharge { .. }), "{error}");
    let settlement = Settlement { reservation, charge: NanoRho::new(ROW), result: result("no consensus") };
    world.ledger.commit(vec![settlement]).expect("a commit");
    assert_eq!(rho(&world.ledger), 3 * ROW);

    // A part of a request that is given up stays charged.
    let reservation = world.reserve(&digits, &north, "clinic", 2, 6).expect("within the budget");
    charge_part(&reservation, ROW).expect("a part");
    drop(reservation);
    assert_eq!(rho(&world.ledger), 4 * ROW);
    let spending = world.ledger.spent("digits", 1).expect("the spending");
    assert_eq!(spending.by_owner["north"], spending.total);
    assert_eq!((spending.total.requests, spending.total.rows), (1, 6));
    // All of the rest can be reserved again, and no more.
    assert_eq!(world.refusal(&digits, &north, "clinic", 3, 7).left.units(), 6 * ROW);
    drop(world.reserve(&digits, &north, "clinic", 3, 6).expect("within the budget"));

    let events: Vec<_> = world
        .ledger
        .entries(0, 9)
        .expect("the log")
        .into_iter()
        .map(|entry| match entry.event {
            Event::Committed(event) => (event.charged.rho.units(), event.voided.units(), event.last),
            other => panic!("another event: {other:?}"),
        })
        .collect();
    assert_eq!(events, [(2 * ROW, 0, false), (ROW, 3 * ROW, true), (ROW, 0, false)]);
    world.verify();
}

/// Each part alone fits, and both together do not, in one call or in two that run at the same time.
pub fn more_than_what_is_set_aside_is_never_charged<M: Medium>(medium: M) {
    let world = World::new(medium);
    let digits = policy("digits", 1, 10, None);
    let reservation = world.reserve(&digits, &[], "clinic", 1, 4).expect("within the budget");
    let part = (&reservation, NanoRho::new(3 * ROW));
    let error = world.ledger.charge_part(&[part, part]).expect_err("six of four rows");
    assert!(matches!(&error, LedgerError::InvalidCharge { .. }), "{error}");
    assert_eq!(world.ledger.total("digits", 1).expect("the total"), Total::default(), "nothing is charged");
    assert_eq!(reservation.left().units(), 4 * ROW);
    let charged = std::thread::scope(|scope| {
        let threads = [(); 4].map(|()| scope.spawn(|| world.ledger.charge_part(&[part])));
        threads.map(|thread| thread.join().expect("no panic")).into_iter().filter(Result::is_ok).count()
    });
    assert_eq!(charged, 1);
    assert_eq!(world.ledger.total("digits", 1).expect("the total").rho.units(), 3 * ROW);
    assert_eq!(reservation.left().units(), ROW);
    world.verify();
}

pub fn the_larger_total_wins<M: Medium>(medium: M) {
    let world = World::new(medium);
    let digits = policy("digits", 1, 10, Some(9));
    let north = owners(&[("north", Some(8))]);
    world.spend(&digits, &north, "clinic", 1, 2);
    world.spend(&digits, &north, "practice", 1, 1);
    let theirs = Spending {
        total: total(6),
        by_client: BTreeMap::from([
            ("clinic".into(), total(1)),
            ("practice".into(), total(4)),
            ("surgery".into(), total(1)),
        ]),
        by_owner: BTreeMap::from([("north".into(), total(6)), ("south".into(), total(2))]),
    };
    assert!(world.ledger.raise("digits", 1, &theirs, 2).expect("raised"));
    let head = world.ledger.head().expect("a head");
    assert!(!world.ledger.raise("digits", 1, &theirs, 2).expect("nothing to raise"));
    assert_eq!(world.ledger.head().expect("a head"), head, "nothing is logged when nothing changes");

    let spending = world.ledger.spent("digits", 1).expect("the spending");
    assert_eq!(spending.total.rho.units(), 6 * ROW);
    let clients: Vec<_> = spending.by_client.values().map(|total| total.rho.units() / ROW).collect();
    assert_eq!(clients, [2, 4, 1]);
    assert_eq!(spending.by_owner["south"], total(2));
    assert_eq!(world.refusal(&digits, &north, "clinic", 2, 5).left.units(), 2 * ROW);
    assert_eq!(
        world.ledger.spent_by_client("digits", 1, "practice").expect("the spending").all_tasks.rho.units(),
        4 * ROW
    );
    let last = world.ledger.entries(2, 9).expect("the log").pop().expect("an entry");
    let Event::Raised(raised) = last.event else { panic!("another event: {last:?}") };
    assert_eq!((raised.peer, raised.total.rho.units(), raised.by_client.len()), (2, 3 * ROW, 2));
    // What a peer adds counts as spent now.
    assert_eq!(world.ledger.spent_in_window("digits", 1, 1).expect("the spending").units(), 6 * ROW);

    let nameless = Spending { by_owner: BTreeMap::from([(String::new(), total(1))]), ..Spending::default() };
    assert!(matches!(world.ledger.raise("digits", 1, &nameless, 2), Err(LedgerError::Invalid { .. })));
    world.verify();
}

pub fn a_stopped_task_charges_nothing_until_an_operator_resumes_it<M: Medium>(medium: M) {
    let world = World::new(medium);
    let digits = policy("digits", 1, 10, None);
    let running = world.reserve(&digits, &[], "clinic", 1, 2).expect("within the budget");
    world.ledger.charge_part(&[(&running, NanoRho::new(ROW))]).expect("a part");
    world.ledger.stop("digits", "server 2 forgot what it had told").expect("stopped");
    world.clock.advance_ms(9);
    world.ledger.stop("digits", "another reason").expect("stopped already");
    let stop = world.ledger.stopped("digits").expect("a look").expect("a stop");
    assert_eq!((stop.reason.as_str(), stop.since_ms), ("server 2 forgot what it had told", 1_000_000));

    let refused = |outcome: Result<_, LedgerError>| {
        let error = outcome.expect_err("the task is stopped");
        assert!(matches!(&error, LedgerError::Stopped { .. }), "{error}");
        assert!(error.to_string().contains("server 2 forgot"), "{error}");
    };
    refused(world.ledger.charge_part(&[(&running, NanoRho::new(1))]).map(drop));
    refused(world.ledger.commit(vec![Settlement::in_full(running, result("x"))]).map(drop));
    refused(world.reserve(&digits, &[], "clinic", 1, 1).map(drop));
    assert_eq!(world.ledger.total("digits", 1).expect("the total").rho.units(), ROW, "the part stays");
    // Other tasks go on.
    world.spend(&policy("scans", 1, 10, None), &[], "clinic", 1, 1);

    for (operator, reason) in [("", "found"), ("Ann", " ")] {
        assert!(matches!(world.ledger.resume("digits", operator, reason), Err(LedgerError::Invalid { .. })));
    }
    world.ledger.resume("digits", "Ann", "server 2 was raised to what we know").expect("resumed");
    world.ledger.resume("digits", "Ann", "again").expect("nothing to do");
    assert_eq!(world.ledger.stopped("digits").expect("a look"), None);
    world.spend(&digits, &[], "clinic", 1, 1);
    // A reason of any length stops.
    world.ledger.stop("digits", &"\u{e4}".repeat(99_999)).expect("stopped");
    world.verify();
}

pub fn an_epoch_begins_with_what_is_attested<M: Medium>(medium: M) {
    let world = World::new(medium);
    let epochs: Vec<_> = (1..5).map(|epoch| policy("digits", epoch, 10, Some(6))).collect();
    let north = owners(&[("north", Some(5))]);
    world.spend(&epochs[0], &north, "clinic", 1, 4);
    let attest = |epoch, basis, by: &str| {
        world.ledger.attest(Attestation { task: "digits".into(), epoch, basis, attested_by: by.into() })
    };
    let running = world.reserve(&epochs[0], &north, "clinic", 2, 1).expect("within the budget");
    let carried = Basis::CarriedOver { from_epoch: 1 };
    attest(2, carried, "Ann").expect("attested");
    let head = world.ledger.head().expect("a head");
    attest(2, carried, "Ann").expect("the same again");
    assert_eq!(world.ledger.head().expect("a head"), head);
    let found = world.ledger.attestation("digits", 2).expect("a look").expect("an attestation");
    assert_eq!((found.basis, found.attested_by.as_str()), (carried, "Ann"));
    assert_eq!(world.ledger.attestation("digits", 3).expect("a look"), None);

    // Totals, clients and owners go on; windows and the clients' sums over all tasks are not doubled.
    assert_eq!(world.ledger.spent("digits", 2).expect("new"), world.ledger.spent("digits", 1).expect("old"));
    assert_eq!(world.ledger.spent_in_window("digits", 2, 99).expect("the spending"), NanoRho::ZERO);
    assert_eq!(world.ledger.spent_by_client("digits", 2, "clinic").expect("spent").all_tasks.rows, 4);
    assert_eq!(world.refusal(&epochs[1], &north, "clinic", 1, 2).left.units(), ROW);
    world.spend(&epochs[1], &north, "practice", 1, 1);
    // The old epoch is closed, also for what runs.
    for outcome in [
        world.ledger.commit(vec![Settlement::in_full(running, result("x"))]).map(drop),
        world.reserve(&epochs[0], &north, "clinic", 2, 1).map(drop),
    ] {
        assert!(matches!(outcome, Err(LedgerError::EpochClosed { epoch: 1, into: 2, .. })));
    }

    world.spend(&epochs[3], &north, "clinic", 1, 1);
    for (epoch, basis, by, why) in [
        (2, Basis::Retrained, "Ann", "by Ann before"),
        (2, carried, "Ben", "by Ann before"),
        (3, carried, "Ann", "went on in epoch 2"),
        (3, Basis::CarriedOver { from_epoch: 3 }, "Ann", "not older"),
        (3, Basis::Retrained, "", "0 bytes"),
        (4, Basis::CarriedOver { from_epoch: 2 }, "Ann", "charged already"),
    ] {
        let error = attest(epoch, basis, by).expect_err(why);
        assert!(matches!(&error, LedgerError::Invalid { .. }) && error.to_string().contains(why), "{error}");
    }
    let epochs = world.ledger.epochs("digits").expect("the epochs");
    let of = |epoch: &u64| (epochs[epoch].total.rows, epochs[epoch].carried_into);
    assert_eq!(
        epochs.keys().map(|epoch| (*epoch, of(epoch))).collect::<Vec<_>>(),
        [(1, (4, Some(2))), (2, (5, None)), (4, (1, None))]
    );
    assert_eq!(epochs[&2].attestation, Some(found));
    // A task whose name begins alike has epochs of its own.
    assert_eq!(world.ledger.epochs("digit").expect("the epochs").len(), 0);
    attest(3, Basis::Retrained, "Ann").expect("attested");
    attest(4, Basis::Retrained, "Ann").expect("an epoch that runs may be attested later");
    assert_eq!(world.ledger.spent("digits", 3).expect("the spending"), Spending::default());
    world.verify();
}

pub fn heads_of_the_past_and_of_peers_are_kept<M: Medium>(medium: M) {
    let world = World::new(medium);
    let digits = policy("digits", 1, 10, None);
    let mut heads = vec![LedgerHead::EMPTY];
    for request in 0..4 {
        world.spend(&digits, &[], "clinic", request, 1);
        heads.push(world.ledger.head().expect("a head"));
    }
    for head in &heads {
        assert_eq!(world.ledger.hash_at(head.entries).expect("a look"), Some(head.hash));
    }
    assert_eq!(world.ledger.hash_at(5).expect("a look"), None);
    assert_eq!(world.ledger.hash_at(u64::MAX).expect("a look"), None);

    let peers = [PeerHead { peer: 0, head: heads[1] }, PeerHead { peer: 2, head: heads[3] }];
    world.ledger.mark_released(&[key(&digits, "clinic", 0)], &peers).expect("marked");
    let newer = PeerHead { peer: 2, head: heads[4] };
    world.ledger.mark_released(&[], &[newer]).expect("marked");
    let peer = |peer| world.ledger.peer_head(peer).expect("a look");
    assert_eq!((peer(0), peer(1), peer(2)), (Some(heads[1]), None, Some(heads[4])));
    world.verify();
}
