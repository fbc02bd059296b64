//! What the ledger promises, over a real database: the same tests as over a file, and what only a database
//! can do to a ledger.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "../../privacy/tests/contract/mod.rs"]
mod contract;
mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use concilium_postgres::{PostgresOptions, PostgresStore};
use concilium_privacy::{Ledger, LedgerError, LedgerHead, Lookup, Settlement, StoredLedger};
use contract::{
    Medium, contract_tests,
    ledger::{DIGEST, ROW, charge, key, policy, result},
    model::compare,
    random::seeded_rng,
};
use support::{Postgres, Wire, open_again};

/// A bound on waiting: nothing is said about speed.
const PATIENCE: Duration = Duration::from_secs(120);

/// A database of its own, on a server that may be shared.
struct Database {
    server: Arc<Postgres>,
    options: PostgresOptions,
}

impl Database {
    fn on(server: Arc<Postgres>) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = format!("ledger_{}", NUMBER.fetch_add(1, Ordering::SeqCst));
        server.query(&format!("CREATE DATABASE {name}")).unwrap();
        let options = PostgresOptions::new(&server.url(&name), None, None).unwrap();
        Self { server, options }
    }
}

impl Medium for Database {
    type Store = PostgresStore;

    fn new(test: &str) -> Option<Self> {
        Postgres::shared(test).map(Self::on)
    }

    fn store(&self) -> PostgresStore {
        open_again(&self.options)
    }

    /// The whole server goes at once, under a ledger that goes on when it is back.
    fn cut_power(&mut self, running: &StoredLedger<PostgresStore>, check: &dyn Fn(&dyn Ledger)) {
        let server = Arc::get_mut(&mut self.server).expect("a server that nobody else uses");
        server.kill();
        assert!(running.head().is_err(), "there is no database");
        server.run(&[]);
        let begin = Instant::now();
        while let Err(error) = running.head() {
            assert!(begin.elapsed() < PATIENCE, "{error}");
            thread::sleep(Duration::from_millis(20));
        }
        check(running);
    }
}

contract_tests!(Database);

#[test]
fn the_ledger_does_what_the_model_does() {
    if let Some(server) = Postgres::start("the_ledger_does_what_the_model_does") {
        eprintln!(
            "reached: {:?}",
            compare(Database::on(Arc::new(server)), 80, seeded_rng("ledger model"), None)
        );
    }
}

/// The network breaks while the database makes a charge durable, which it does all the same, when nobody is
/// there to be told. The next charge must be made on top of it.
#[test]
fn a_charge_whose_fate_is_unknown_is_decided_before_the_next_is_made() {
    let test = "a_charge_whose_fate_is_unknown_is_decided_before_the_next_is_made";
    let Some(postgres) = Postgres::start(test) else { return };
    let wire = Wire::to(postgres.socket());
    let options = PostgresOptions::new(&wire.url("postgres"), None, None).unwrap();
    let ledger = StoredLedger::create_in(PostgresStore::open(options).unwrap()).unwrap();
    let digits = policy("digits", 1, 100, None);
    let spend = |request| -> Result<LedgerHead, LedgerError> {
        let reservation = ledger.reserve(&[charge(&digits, "clinic", request, 1)]).pop().unwrap()?;
        ledger.commit(vec![Settlement::in_full(reservation, result("x"))])
    };
    spend(1).unwrap();
    let held = postgres.hold_writes();
    thread::scope(|scope| {
        let lost = scope.spawn(|| spend(2));
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted \
                       AND relation = 'concilium_ledger.ledger_rows'::regclass";
        postgres.wait_for(waiting, "1");
        wire.cut();
        let error = lost.join().unwrap().unwrap_err();
        assert!(matches!(&error, LedgerError::Storage { .. }), "{error}");

        let next = scope.spawn(|| spend(3));
        // The lost session keeps the lock that a new one asks for.
        let asking = "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'concilium ledger' \
                      AND query LIKE '%pg_try_advisory_lock%'";
        postgres.wait_for(asking, "t");
        drop(held);
        next.join().unwrap().unwrap();
    });
    for request in 1..4 {
        let found = ledger.lookup(&key(&digits, "clinic", request), &DIGEST).unwrap();
        assert!(matches!(found, Lookup::Held { .. }), "request {request}");
    }
    assert_eq!(ledger.verify().unwrap().entries, 3);
    assert_eq!(ledger.total("digits", 1).unwrap().rho.units(), 3 * ROW);
}
