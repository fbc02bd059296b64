//! The real ledger: how it is called, and how it differs from the model.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use concilium_privacy::{
    Charge, Ledger, Lookup, NanoRho, RequestKey, Reservation, ResultBytes, Settlement, TaskPolicy,
};

use super::{
    CLIENTS, TASKS, WINDOW_SECONDS,
    operation::{Operation, Outcome},
    plain::{Model, Place},
};

/// Reservations by request.
pub type Running = Mutex<BTreeMap<RequestKey, Arc<Reservation>>>;

/// Makes the call.
pub fn perform(ledger: &dyn Ledger, running: &Running, operation: &Operation) -> Outcome {
    let lock = || running.lock().expect("no panic");
    let take = |key: &RequestKey| {
        let reservation = lock().remove(key).expect("it runs");
        Arc::into_inner(reservation).expect("nobody else uses it")
    };
    let done = match operation {
        Operation::Reserve(batch) => {
            let charges: Vec<_> = batch
                .iter()
                .map(|asked| {
                    let (key, owners) = (asked.key.clone(), &asked.owners);
                    Charge::new(key, asked.digest, asked.rows, &asked.policy, owners).expect("a valid charge")
                })
                .collect();
            let outcomes = ledger.reserve(&charges).into_iter().zip(batch).map(|(outcome, asked)| {
                outcome.map_or_else(Outcome::from, |reservation| {
                    lock().insert(asked.key.clone(), Arc::new(reservation));
                    Outcome::Done
                })
            });
            Ok(Outcome::Reserved(outcomes.collect()))
        }
        Operation::Part(key, rho) => {
            let reservation = Arc::clone(&lock()[key]);
            ledger.charge_part(&[(&reservation, NanoRho::new(*rho))]).map(|_| Outcome::Done)
        }
        Operation::Commit(batch) => {
            let settlement = |(key, rho, result): &(RequestKey, u64, Vec<u8>)| Settlement {
                reservation: take(key),
                charge: NanoRho::new(*rho),
                result: ResultBytes::from(result.clone()),
            };
            ledger.commit(batch.iter().map(settlement).collect()).map(|_| Outcome::Done)
        }
        Operation::GiveUp(key) => {
            drop(take(key));
            Ok(Outcome::Done)
        }
        Operation::Release(keys, peers) => ledger.mark_released(keys, peers).map(|()| Outcome::Done),
        Operation::Raise(task, epoch, theirs, peer) => {
            ledger.raise(task, *epoch, theirs, *peer).map(Outcome::Changed)
        }
        Operation::Attest(attestation) => ledger.attest(attestation.clone()).map(|()| Outcome::Done),
        Operation::Stop(task, reason) => ledger.stop(task, reason).map(|()| Outcome::Done),
        Operation::Resume(task) => ledger.resume(task, "Ann", "looked into").map(|()| Outcome::Done),
        Operation::Prune(older_than_ms) => ledger.prune_results(*older_than_ms).map(Outcome::Deleted),
    };
    done.unwrap_or_else(Outcome::from)
}

/// How much is compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// All but single requests, what depends on the time of day, and the log's hashes.
    Quick,
    /// Everything but what depends on the time of day.
    AtWhatIsStored,
    /// Everything, with the time that the ledger's clock shows.
    Everywhere,
}

/// The first thing that the ledger tells otherwise than the model. Panics if the ledger fails.
pub fn differences(
    ledger: &dyn Ledger,
    model: &Model,
    policies: &[TaskPolicy],
    now_ms: u64,
    look: Look,
) -> Option<String> {
    let differ = |what: &dyn std::fmt::Display, found: String, expected: String| {
        (found != expected).then(|| format!("{what}: the ledger has {found}, and the model {expected}"))
    };
    macro_rules! same {
        ($what:expr, $found:expr, $expected:expr) => {
            let difference = differ(&$what, format!("{:?}", $found), format!("{:?}", $expected));
            if difference.is_some() {
                return difference;
            }
        };
    }
    for TaskPolicy { task, epoch, .. } in policies {
        let mut expected = concilium_privacy::Spending::default();
        for (place, total) in model.parts(task, *epoch) {
            match place {
                Place::Client(_, _, client) => drop(expected.by_client.insert(client, total)),
                Place::Owner(_, _, owner) => drop(expected.by_owner.insert(owner, total)),
                _ => expected.total = total,
            }
        }
        same!(format!("{task} {epoch}"), ledger.spent(task, *epoch).expect("the spending"), expected);
        let attestation = ledger.attestation(task, *epoch).expect("the attestation");
        let attestation = attestation.map(|attestation| (attestation.basis, attestation.attested_by));
        same!(
            format!("attestation of {task} {epoch}"),
            attestation,
            model.attested.get(&(task.clone(), *epoch)).cloned()
        );
        if look == Look::Everywhere {
            let in_window =
                ledger.spent_in_window(task, *epoch, WINDOW_SECONDS).expect("the spending").units();
            let expected = model.spent_in_window(task, *epoch, WINDOW_SECONDS, now_ms);
            same!(format!("window of {task} {epoch}"), in_window, expected);
        }
    }
    same!("entries", ledger.head().expect("a head").entries, model.entries);
    for client in CLIENTS {
        let spent = ledger.spent_by_client("digits", 1, client).expect("the spending");
        same!(
            format!("all tasks of {client}"),
            spent.all_tasks,
            model.sum(&Place::AllTasks(client.to_owned()))
        );
    }
    for (task, _) in TASKS {
        let stop = ledger.stopped(task).expect("a look").map(|stop| (stop.reason, stop.since_ms));
        same!(format!("stop of {task}"), stop, model.stops.get(task).cloned());
    }
    for peer in [0, 2] {
        same!(
            format!("peer {peer}"),
            ledger.peer_head(peer).expect("a look"),
            model.peers.get(&peer).copied()
        );
    }
    if look == Look::Quick {
        return None;
    }
    for (key, known) in &model.known {
        let (found, released) = match ledger.lookup(key, &known.digest) {
            Ok(Lookup::Held { result, released }) => (Some(result.expose().to_vec()), released),
            Ok(Lookup::New) => return Some(format!("the ledger does not know {key}")),
            Err(error) => match Outcome::from(error) {
                Outcome::Expired => (None, known.released),
                other => return Some(format!("{key}: {other:?}")),
            },
        };
        same!(key, (&found, released), (&known.result, known.released));
        if let (Some(found), Some(first)) = (&found, model.final_results.get(key)) {
            same!(format!("the released result of {key}"), found, first);
        }
    }
    same!("checked entries", ledger.verify().expect("sound").entries, model.entries);
    None
}
