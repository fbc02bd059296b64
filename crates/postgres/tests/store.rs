//! The store on a real database server that the tests start: what it promises to the ledger, also when
//! the server is killed and when two processes want the same ledger.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use concilium_postgres::PostgresStore;
use concilium_privacy::ledger::{LedgerError, LedgerStore as _, Order, RowKey, StoreView as _, Table, Write};
use support::Postgres;
use zeroize::Zeroizing;

/// A bound on waiting: nothing is said about speed.
const PATIENCE: Duration = Duration::from_secs(120);

fn write(table: Table, key: &[u8], value: Option<&[u8]>) -> Write {
    Write { table, key: key.to_vec(), value: value.map(|value| Zeroizing::new(value.to_vec())) }
}

/// Numbers that look random, of a fixed seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        // Steele, Lea and Flood 2014, SplitMix.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    /// A key of few letters, all bytes among them, so that keys meet again and their order is tested.
    fn key(&mut self) -> Vec<u8> {
        (0..self.below(4)).map(|_| [0, 1, 0x7f, 0x80, 0xff][self.below(5) as usize]).collect()
    }
}

#[test]
fn rows_are_those_of_a_sorted_map() {
    let Some(postgres) = Postgres::start("rows_are_those_of_a_sorted_map") else { return };
    let store = postgres.open().unwrap();
    let mut map: BTreeMap<RowKey, Vec<u8>> = BTreeMap::new();
    let mut numbers = Numbers(1);
    for round in 0..200_u64 {
        let mut writes = BTreeMap::new();
        for _ in 0..numbers.below(8) {
            let table = Table::ALL[numbers.below(2) as usize];
            let value = (numbers.below(3) > 0).then(|| vec![round as u8; numbers.below(40) as usize]);
            writes.insert((table, numbers.key()), value);
        }
        // A view shows what was there when it began.
        let before = store.view().unwrap();
        let wanted: Vec<_> = writes.keys().cloned().chain([(Table::Log, numbers.key())]).collect();
        let expected: Vec<_> = wanted.iter().map(|key| map.get(key).cloned()).collect();
        assert_eq!(before.get(&wanted).unwrap(), expected, "round {round}");
        let list: Vec<_> =
            writes.iter().map(|((table, key), value)| write(*table, key, value.as_deref())).collect();
        store.apply(&list).unwrap();
        assert_eq!(before.get(&wanted).unwrap(), expected, "round {round}: the view moved");
        for (key, value) in writes {
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
        let after = store.view().unwrap();
        let expected: Vec<_> = wanted.iter().map(|key| map.get(key).cloned()).collect();
        assert_eq!(after.get(&wanted).unwrap(), expected, "round {round}");

        let (table, from) = (Table::ALL[numbers.below(2) as usize], numbers.key());
        let until = (numbers.below(2) == 0).then(|| numbers.key());
        let at_most = numbers.below(5) as usize;
        let rows = map.iter().filter(|((of, key), _)| {
            *of == table && *key >= from && until.as_ref().is_none_or(|until| key < until)
        });
        let rows = rows.map(|((_, key), value)| (key.clone(), value.clone()));
        for order in [Order::Ascending, Order::Descending] {
            let expected: Vec<_> = match order {
                Order::Ascending => rows.clone().take(at_most).collect(),
                Order::Descending => rows.clone().rev().take(at_most).collect(),
            };
            assert_eq!(after.scan(table, &from, until.as_deref(), order, at_most).unwrap(), expected);
        }
        let count = map.keys().filter(|(of, _)| *of == table).count() as u64;
        assert_eq!(after.count(table).unwrap(), count);
    }
    assert!(map.len() > 20, "the test made {} rows", map.len());
    // All of it is there for the next process.
    drop(store);
    let store = postgres.open_again();
    let keys: Vec<_> = map.keys().cloned().collect();
    let values: Vec<_> = map.into_values().map(Some).collect();
    assert_eq!(store.view().unwrap().get(&keys).unwrap(), values);
}

/// Threads write numbered rows while the server is killed, again and again. What a write has returned
/// for must be there for ever, and a write is there as a whole or not at all.
#[test]
fn what_was_written_survives_the_servers_death() {
    let Some(mut postgres) = Postgres::start("what_was_written_survives_the_servers_death") else { return };
    let store = postgres.open().unwrap();
    let (done, ending) = (AtomicU64::new(0), AtomicBool::new(false));
    let failures = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let (mut number, mut failures) = (0_u64, 0);
            while !ending.load(Ordering::SeqCst) {
                let key = number.to_be_bytes();
                let rows = [write(Table::Head, b"last", Some(&key)), write(Table::Log, &key, Some(b"x"))];
                match store.apply(&rows) {
                    Ok(()) => {
                        number += 1;
                        done.store(number, Ordering::SeqCst);
                    }
                    // The same again: the store cannot know whether it was written.
                    Err(LedgerError::Storage { .. }) => {
                        failures += 1;
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            failures
        });
        for _ in 0..4 {
            let (begin, before) = (Instant::now(), done.load(Ordering::SeqCst));
            while done.load(Ordering::SeqCst) < before + 50 {
                assert!(begin.elapsed() < PATIENCE && !writer.is_finished(), "nothing is written");
                std::thread::yield_now();
            }
            postgres.kill();
            let written = done.load(Ordering::SeqCst);
            postgres.run(&[]);
            let found: u64 = postgres
                .query("SELECT count(*) FROM concilium_ledger.ledger_rows WHERE name = 'log'")
                .and_then(|count| count.parse().ok())
                .unwrap();
            assert!(found >= written, "{written} writes returned, {found} are there");
        }
        ending.store(true, Ordering::SeqCst);
        writer.join().unwrap()
    });
    assert!(failures >= 4, "the server was killed four times, and {failures} writes failed");
    let last = done.into_inner();
    let view = store.view().unwrap();
    assert_eq!(view.count(Table::Log).unwrap(), last);
    let key = (last - 1).to_be_bytes().to_vec();
    assert_eq!(view.get(&[(Table::Head, b"last".to_vec())]).unwrap(), [Some(key)]);
}

#[test]
fn one_process_at_a_time_has_the_ledger() {
    let Some(postgres) = Postgres::start("one_process_at_a_time_has_the_ledger") else { return };
    let put = |store: &PostgresStore, value: &[u8]| store.apply(&[write(Table::Head, b"who", Some(value))]);
    let end_writers = || {
        let query = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'";
        assert_eq!(postgres.query(query).as_deref(), Some("t"));
    };
    let first = postgres.open().unwrap();
    put(&first, b"first").unwrap();
    let error = postgres.open().err().unwrap();
    assert!(matches!(error, LedgerError::InUse { .. }), "{error}");

    // A lost session is made again as long as nobody else has come.
    end_writers();
    assert!(matches!(put(&first, b"lost"), Err(LedgerError::Storage { .. }) | Ok(())));
    put(&first, b"first again").unwrap();
    assert!(matches!(postgres.open(), Err(LedgerError::InUse { .. })));

    // Once somebody else had it, the first never writes again, also after the second has ended.
    end_writers();
    let second = postgres.open_again();
    put(&second, b"second").unwrap();
    drop(second);
    let begin = Instant::now();
    while postgres.query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").unwrap() != "0" {
        assert!(begin.elapsed() < PATIENCE, "the lock stays");
    }
    for _ in 0..2 {
        let error = put(&first, b"ghost").unwrap_err();
        assert!(matches!(error, LedgerError::InUse { .. } | LedgerError::Storage { .. }), "{error}");
    }
    assert!(matches!(put(&first, b"ghost"), Err(LedgerError::InUse { .. })));
    // Nor does it read: what it would charge next must not rest on what is there no longer.
    assert!(matches!(first.view().err(), Some(LedgerError::InUse { .. })));
    drop(first);
    let third = postgres.open_again();
    let value = third.view().unwrap().get(&[(Table::Head, b"who".to_vec())]).unwrap();
    assert_eq!(value, [Some(b"second".to_vec())]);
}

#[test]
fn a_database_that_loses_charges_or_logs_results_is_refused() {
    let test = "a_database_that_loses_charges_or_logs_results_is_refused";
    let Some(mut postgres) = Postgres::start(test) else { return };
    for (settings, needle) in [
        (&["fsync=off"][..], "fsync = off"),
        (&["full_page_writes=off"], "full_page_writes = off"),
        (&["log_statement=all"], "log_statement = all"),
        (&["log_statement=mod"], "log_statement = mod"),
    ] {
        postgres.kill();
        postgres.run(settings);
        let error = postgres.open().err().unwrap();
        let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
        assert!(text.contains(needle), "{needle}: {text}");
    }
    postgres.kill();
    postgres.run(&["log_statement=all", "log_parameter_max_length=0", "synchronous_commit=off"]);
    // The session's own setting counts, whatever the server's is.
    drop(postgres.open().unwrap());
    postgres.query("UPDATE concilium_ledger.holder SET layout = 99").unwrap();
    let error = postgres.open().err().unwrap();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("layout 99"), "{source}");
}

/// Methods are called from asynchronous code as well, where a runtime of its own must not get in the way.
#[test]
fn the_store_works_within_a_runtime() {
    let Some(postgres) = Postgres::start("the_store_works_within_a_runtime") else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let store = postgres.open().unwrap();
        store.apply(&[write(Table::Head, b"a", Some(b"b"))]).unwrap();
        assert_eq!(store.view().unwrap().count(Table::Head).unwrap(), 1);
    });
}
