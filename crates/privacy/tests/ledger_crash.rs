//! Power cuts at every flush, full disks, and copies from before: what was charged stays charged.

mod support;

use concilium_privacy::{
    Charge, Ledger, LedgerError, LedgerHead, Lookup, NanoRho, Participant, RedbLedger, RequestKey,
    Settlement, TaskPolicy,
};
use rand::{Rng, RngExt};
use rand_chacha::ChaCha20Rng;
use support::{
    disk::Disk,
    ledger::{DIGEST, ROW, key, owners, policy, result},
    seeded_rng,
};

fn task() -> TaskPolicy {
    policy("digits", 1, 1_000_000, None)
}

fn voters() -> Vec<Participant> {
    owners(&[("north", None), ("south", Some(900_000))])
}

/// What a run was told before the power failed.
#[derive(Default, Clone)]
struct Told {
    rho: u64,
    /// What the operation that failed would have added.
    unsure: u64,
    results: Vec<(RequestKey, Vec<u8>)>,
    head: Option<LedgerHead>,
}

/// A script of charges, parts, results, releases and deletions, until the first error.
fn run(ledger: &RedbLedger, random: &mut ChaCha20Rng, steps: u8, told: &mut Told) -> Result<(), LedgerError> {
    let task = task();
    for step in 0..steps {
        let rows = random.random_range(1..4);
        let charge = Charge::new(key(&task, "clinic", step), DIGEST, rows, &task, &voters()).expect("valid");
        let reservation = ledger.reserve(&[charge]).pop().expect("an answer")?;
        if random.random() {
            told.unsure = ROW / 2;
            ledger.charge_part(&[(&reservation, NanoRho::new(ROW / 2))])?;
            told.rho += ROW / 2;
        }
        let (key, bytes) = (reservation.charge().key().clone(), random.next_u64().to_le_bytes().to_vec());
        let mut settlement = Settlement::in_full(reservation, bytes.clone().into());
        if random.random() {
            settlement.charge = NanoRho::new(settlement.charge.units() / 2);
        }
        told.unsure = settlement.charge.units();
        let rho = settlement.charge.units();
        told.head = Some(ledger.commit(vec![settlement])?);
        told.rho += rho;
        told.unsure = 0;
        told.results.push((key.clone(), bytes));
        if random.random() {
            ledger.mark_released(&[key], &[])?;
        }
    }
    Ok(())
}

/// What a ledger must still know. A result that was told is there to the byte; of spending nothing is
/// missing, and at most the operation that failed is counted beyond it.
fn check(ledger: &RedbLedger, told: &Told) -> Result<(), String> {
    ledger.verify().map_err(|error| error.to_string())?;
    let spent = ledger.total("digits", 1).map_err(|error| error.to_string())?.rho.units();
    if !(told.rho..=told.rho + told.unsure).contains(&spent) {
        return Err(format!("{spent} spent, {} told and {} unsure", told.rho, told.unsure));
    }
    for (key, bytes) in &told.results {
        match ledger.lookup(key, &DIGEST) {
            Ok(Lookup::Held { result, .. }) if result.expose() == bytes.as_slice() => {}
            _ => return Err(format!("{key}: the result is gone or another one")),
        }
    }
    match told.head {
        Some(head) if ledger.hash_at(head.entries).map_err(|error| error.to_string())? != Some(head.hash) => {
            Err("a head that was told is not in the log".to_owned())
        }
        _ => Ok(()),
    }
}

/// The power fails at every flush of a script in turn, three times each with other losses. The same
/// disk that keeps nothing of a flush must be noticed.
#[test]
fn a_power_cut_at_any_flush_loses_no_charge() {
    const STEPS: u8 = 5;
    let mut random = seeded_rng("power cuts");
    let script = random.random::<[u8; 32]>();
    let replay = || <ChaCha20Rng as rand_chacha::rand_core::SeedableRng>::from_seed(script);

    let disk = Disk::default();
    let ledger = disk.open().expect("a new ledger");
    let first = disk.lock().flushes;
    let mut told = Told::default();
    run(&ledger, &mut replay(), STEPS, &mut told).expect("no fault yet");
    check(&ledger, &told).expect("sound");
    drop(ledger);
    let flushes = disk.lock().flushes;
    let (mut cuts, mut unsure_counted) = (0, 0);
    for cut in first + 1..=flushes {
        for _ in 0..3 {
            let disk = Disk::default();
            let ledger = disk.open().expect("a new ledger");
            disk.lock().cut_at = Some(cut);
            let mut told = Told::default();
            // The last flushes belong to the end of the program, which tells nothing any more.
            let outcome = run(&ledger, &mut replay(), STEPS, &mut told);
            let after = disk.after_power_cut(&mut random);
            drop(ledger);
            let ledger = after.open().expect("the ledger opens after a power cut");
            if let Err(problem) = check(&ledger, &told) {
                panic!("cut at flush {cut}: {problem}");
            }
            let spent = ledger.total("digits", 1).expect("the total").rho.units();
            unsure_counted += usize::from(spent > told.rho);
            cuts += usize::from(outcome.is_err());
            // Life goes on.
            let late =
                Charge::new(key(&task(), "practice", 1), DIGEST, 1, &task(), &voters()).expect("valid");
            let reservation = ledger.reserve(&[late]).pop().expect("an answer").expect("within the budget");
            ledger.commit(vec![Settlement::in_full(reservation, result("late"))]).expect("a commit");
            ledger.verify().expect("sound");
        }
    }
    eprintln!("{cuts} power cuts at {} flushes, {unsure_counted} times counted what failed", flushes - first);
    assert!(cuts > 20, "{cuts} cuts are no test");

    // The control: a disk whose flushes do nothing loses what was told, and the check must say so.
    let disk = Disk::default();
    let ledger = disk.open().expect("a new ledger");
    let lying = disk.copy();
    let mut told = Told::default();
    run(&ledger, &mut replay(), STEPS, &mut told).expect("no fault");
    let problem = check(&lying.open().expect("an old state"), &told).expect_err("it forgot everything");
    assert!(problem.contains("told"), "{problem}");
}

/// A full disk refuses charges, and forgets none; with room again the service goes on after a restart.
#[test]
fn a_full_disk_refuses_and_forgets_nothing() {
    let mut random = seeded_rng("full disk");
    let disk = Disk::default();
    let ledger = disk.open().expect("a new ledger");
    let mut told = Told::default();
    run(&ledger, &mut random, 3, &mut told).expect("there is room");
    let length = disk.lock().seen.len();
    disk.lock().room = Some(length);
    let task = task();
    let mut refused = None;
    for request in 100..=u8::MAX {
        let charge = Charge::new(key(&task, "clinic", request), DIGEST, 1, &task, &voters()).expect("valid");
        let reservation = ledger.reserve(&[charge]).pop().expect("an answer").expect("within the budget");
        let bytes = vec![request; 40_000];
        let settlement = Settlement::in_full(reservation, bytes.clone().into());
        match ledger.commit(vec![settlement]) {
            Ok(_) => {
                told.rho += ROW;
                told.results.push((key(&task, "clinic", request), bytes));
            }
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    let error = refused.expect("the disk is full");
    assert!(matches!(&error, LedgerError::Storage { .. }), "{error}");
    assert!(error.to_string().contains("free space"), "{error}");
    drop(ledger);
    disk.lock().room = None;
    told.unsure = ROW;
    let ledger = disk.open().expect("the ledger opens with room again");
    check(&ledger, &told).expect("nothing is lost");
}

/// One server is put back to a copy from before. Its log no longer has the head that the others
/// remember, and their totals make up for what it forgot.
#[test]
fn a_ledger_restored_from_a_copy_is_noticed_and_raised() {
    let mut random = seeded_rng("restored copy");
    let (disk, peer) = (Disk::default(), Disk::default());
    let (ledger, peer) = (disk.open().expect("a new ledger"), peer.open().expect("a new ledger"));
    let script = random.random::<[u8; 32]>();
    let replay = || <ChaCha20Rng as rand_chacha::rand_core::SeedableRng>::from_seed(script);
    run(&ledger, &mut replay(), 3, &mut Told::default()).expect("no fault");
    drop(ledger);
    let copy = disk.copy();
    let ledger = disk.open().expect("the ledger");
    let mut told = Told::default();
    run(&peer, &mut replay(), 3, &mut told).expect("no fault");
    let task = task();
    for ledger in [&ledger, &peer] {
        let charge = Charge::new(key(&task, "practice", 9), DIGEST, 7, &task, &voters()).expect("valid");
        let reservation = ledger.reserve(&[charge]).pop().expect("an answer").expect("within the budget");
        ledger.commit(vec![Settlement::in_full(reservation, result("x"))]).expect("a commit");
    }
    let remembered = ledger.head().expect("a head");
    let spent = |ledger: &RedbLedger| ledger.spent("digits", 1).expect("the spending");
    let truth = spent(&ledger);
    assert_eq!(truth, spent(&peer));

    let restored = copy.open().expect("the copy opens");
    restored.verify().expect("a copy is sound in itself");
    assert!(spent(&restored).total.rho < truth.total.rho);
    assert_ne!(restored.hash_at(remembered.entries).expect("a look"), Some(remembered.hash));
    assert!(restored.raise("digits", 1, &spent(&peer), 2).expect("raised"));
    assert_eq!(spent(&restored), truth);
    assert!(!peer.raise("digits", 1, &spent(&restored), 1).expect("nothing to raise"));
    restored.verify().expect("sound");
}
