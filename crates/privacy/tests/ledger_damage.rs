//! Files that are missing, foreign, damaged or changed, and processes that die.

mod support;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
};

use concilium_privacy::{Ledger, LedgerError, RedbLedger, TaskPolicy};
use rand::RngExt;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use support::{
    ledger::{ROW, charge, key, place, policy, result},
    seeded_rng,
};

const LOG: TableDefinition<'_, u64, (&[u8; 32], &[u8])> = TableDefinition::new("log");
const HEAD: TableDefinition<'_, &str, (u64, &[u8; 32])> = TableDefinition::new("head");
const SCHEMA: TableDefinition<'_, &str, u32> = TableDefinition::new("schema");
const TASK_TOTALS: TableDefinition<'_, (&str, u64), (u64, u64, u64)> = TableDefinition::new("task_totals");
const CLIENT_TOTALS: TableDefinition<'_, (&str, u64, &str), (u64, u64, u64)> =
    TableDefinition::new("client_totals");
type RequestKeyRow = (&'static str, u64, &'static str, &'static [u8; 16]);
const REQUESTS: TableDefinition<'_, RequestKeyRow, (&[u8; 32], bool, u64, u64)> =
    TableDefinition::new("requests");
const RESULTS: TableDefinition<'_, RequestKeyRow, &[u8]> = TableDefinition::new("results");

fn task() -> TaskPolicy {
    policy("digits", 1, 1_000_000, None)
}

/// Commits request `request` of one row.
fn spend(ledger: &RedbLedger, request: u8) {
    let reservation = ledger
        .reserve(&[charge(&task(), "clinic", request, 1)])
        .pop()
        .expect("an answer")
        .expect("within the budget");
    ledger.commit(vec![(reservation, result("share"))]).expect("a commit");
}

fn used_ledger(path: &Path) {
    let ledger = RedbLedger::create(path).expect("a new ledger");
    for request in 0..5 {
        spend(&ledger, request);
    }
    ledger.mark_released(&[key(&task(), "clinic", 4)]).expect("marked");
    ledger.verify().expect("sound");
}

/// Changes a used ledger behind its back, then opens and verifies it; returns the damage reported.
fn damage(change: impl FnOnce(&redb::WriteTransaction)) -> String {
    let (_folder, path) = place();
    used_ledger(&path);
    let database = Database::open(&path).expect("the file");
    let transaction = database.begin_write().expect("a transaction");
    change(&transaction);
    transaction.commit().expect("a commit");
    drop(database);
    match RedbLedger::open(&path).and_then(|ledger| ledger.verify()) {
        Err(LedgerError::Corrupt { path: named, detail }) => {
            assert_eq!(named, path);
            detail
        }
        Err(error) => panic!("another error: {error}"),
        Ok(_) => panic!("not noticed"),
    }
}

fn log_row(transaction: &redb::WriteTransaction, number: u64) -> ([u8; 32], Vec<u8>) {
    let log = transaction.open_table(LOG).expect("the log");
    let row = log.get(number).expect("a read").expect("an entry");
    let (hash, bytes) = row.value();
    (*hash, bytes.to_vec())
}

#[test]
fn changes_are_found_by_verification() {
    // Every byte of an entry counts.
    let (_folder, path) = place();
    used_ledger(&path);
    let length = {
        let database = Database::open(&path).expect("the file");
        log_row(&database.begin_write().expect("a transaction"), 2).1.len()
    };
    for index in [0, 1, 9, 17, 25, 41, 73, 105, 106, 107, 115, 119, 123, 131, length - 1] {
        let detail = damage(|transaction| {
            let (hash, mut bytes) = log_row(transaction, 2);
            bytes[index] ^= 1;
            let mut log = transaction.open_table(LOG).expect("the log");
            log.insert(2, (&hash, bytes.as_slice())).expect("a write");
        });
        assert!(detail.contains("entry 2"), "byte {index}: {detail}");
    }
    let detail = damage(|transaction| {
        transaction.open_table(LOG).expect("the log").remove(2).expect("a removal");
    });
    assert!(detail.contains("entry 2 is missing"), "{detail}");
    // Cutting the end off is noticed already when the ledger is opened.
    let detail = damage(|transaction| {
        transaction.open_table(LOG).expect("the log").remove(4).expect("a removal");
    });
    assert!(detail.contains("last entry"), "{detail}");
    // Even when head and totals are set back to match, the requests tell.
    let detail = damage(|transaction| {
        transaction.open_table(LOG).expect("the log").remove(4).expect("a removal");
        let (hash, _) = log_row(transaction, 3);
        transaction.open_table(HEAD).expect("the head").insert("head", (4, &hash)).expect("a write");
        let row = (4 * ROW, 4, 4);
        let mut totals = transaction.open_table(TASK_TOTALS).expect("totals");
        totals.insert(("digits", 1), row).expect("a write");
        let mut totals = transaction.open_table(CLIENT_TOTALS).expect("totals");
        totals.insert(("digits", 1, "clinic"), row).expect("a write");
    });
    assert!(detail.contains("requests that the log does not name"), "{detail}");
}

#[test]
fn changed_totals_and_requests_are_found() {
    let detail = damage(|transaction| {
        let mut totals = transaction.open_table(TASK_TOTALS).expect("totals");
        totals.insert(("digits", 1), (5 * ROW - 1, 5, 5)).expect("a write");
    });
    assert!(detail.contains("total of task digits"), "{detail}");
    let detail = damage(|transaction| {
        transaction.open_table(TASK_TOTALS).expect("totals").remove(("digits", 1)).expect("a removal");
    });
    assert!(detail.contains("missing"), "{detail}");
    let detail = damage(|transaction| {
        let mut totals = transaction.open_table(CLIENT_TOTALS).expect("totals");
        totals.insert(("digits", 1, "nobody"), (0, 0, 0)).expect("a write");
    });
    assert!(detail.contains("nobody"), "{detail}");
    let id = [3; 16];
    let request = ("digits", 1, "clinic", &id);
    let detail = damage(|transaction| {
        let mut requests = transaction.open_table(REQUESTS).expect("requests");
        requests.insert(request, (&[1; 32], false, 0, 3)).expect("a write");
    });
    assert!(detail.contains("not stored as the log has it"), "{detail}");
    let detail = damage(|transaction| {
        transaction.open_table(REQUESTS).expect("requests").remove(request).expect("a removal");
    });
    assert!(detail.contains("not stored as the log has it"), "{detail}");
    let detail = damage(|transaction| {
        let mut results = transaction.open_table(RESULTS).expect("results");
        results.insert(("digits", 1, "nobody", &id), [1].as_slice()).expect("a write");
    });
    assert!(detail.contains("result of a request"), "{detail}");
    let detail = damage(|transaction| {
        transaction.delete_table(RESULTS).expect("a removal");
    });
    assert!(detail.contains("results"), "{detail}");
}

#[test]
fn a_missing_ledger_is_not_replaced_by_an_empty_one() {
    let (_folder, path) = place();
    let error = RedbLedger::open(&path).err().expect("no ledger");
    assert!(matches!(&error, LedgerError::Missing { .. }));
    assert!(error.to_string().contains(path.to_str().expect("a text path")), "{error}");
    assert!(!path.exists());

    drop(RedbLedger::open_or_create(&path).expect("a new ledger"));
    assert!(matches!(RedbLedger::create(&path).err(), Some(LedgerError::AlreadyExists { .. })));
    let ledger = RedbLedger::open_or_create(&path).expect("the ledger");
    spend(&ledger, 1);
    drop(ledger);
    let ledger = RedbLedger::open_or_create(&path).expect("the ledger");
    assert_eq!(ledger.head().expect("a head").entries, 1);
}

#[cfg(unix)]
#[test]
fn the_file_is_readable_by_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;

    let (_folder, path) = place();
    drop(RedbLedger::create(&path).expect("a new ledger"));
    let mode = |path: &Path| fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().expect("a folder")), 0o700);
}

#[test]
fn files_that_are_no_ledger_are_refused() {
    let (_folder, path) = place();
    drop(RedbLedger::create(&path).expect("a new ledger"));
    let whole = fs::read(&path).expect("the file");
    let refused = |bytes: &[u8]| {
        fs::write(&path, bytes).expect("a file");
        let error = RedbLedger::open_or_create(&path).err().expect("refused");
        assert!(matches!(&error, LedgerError::Corrupt { .. }), "{} bytes: {error}", bytes.len());
        assert!(error.to_string().contains("restore"), "{error}");
        assert_eq!(fs::read(&path).expect("the file").len(), bytes.len(), "the file was changed");
    };
    refused(&[]);
    refused(b"PK\x03\x04");
    refused(&vec![0x5a; 1 << 20]);
    for length in [1, 9, 64, 320, 4_096] {
        refused(&whole[..length]);
    }
    fs::remove_file(&path).expect("gone");
    fs::create_dir(&path).expect("a folder");
    assert!(matches!(RedbLedger::open(&path).err(), Some(LedgerError::Corrupt { .. })));
}

#[test]
fn stores_of_other_programs_and_versions_are_refused() {
    let (folder, path) = place();
    let other = folder.path().join("other.redb");
    drop(Database::create(&other).expect("a store"));
    let error = RedbLedger::open(&other).err().expect("no ledger");
    assert!(matches!(&error, LedgerError::Corrupt { detail, .. } if detail.contains("schema")), "{error}");

    used_ledger(&path);
    let database = Database::open(&path).expect("the file");
    let transaction = database.begin_write().expect("a transaction");
    transaction.open_table(SCHEMA).expect("a table").insert("schema", 2).expect("a write");
    transaction.commit().expect("a commit");
    drop(database);
    let error = RedbLedger::open(&path).err().expect("another version");
    assert!(matches!(error, LedgerError::Schema { found: 2, supported: 1, .. }), "{error}");
}

#[test]
fn only_one_process_opens_a_ledger() {
    let (_folder, path) = place();
    let _first = RedbLedger::create(&path).expect("a new ledger");
    let error = RedbLedger::open(&path).err().expect("in use");
    assert!(matches!(&error, LedgerError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("another process"), "{error}");
}

/// What the file holds can be read by an old copy of the file alone: result shares are not logged
/// anywhere else, and entries name no result.
#[test]
fn the_log_holds_no_results() {
    let (_folder, path) = place();
    used_ledger(&path);
    let database = Database::open(&path).expect("the file");
    let log = database.begin_read().expect("a view").open_table(LOG).expect("the log");
    for row in log.iter().expect("rows") {
        let (_, row) = row.expect("a row");
        assert!(!row.value().1.windows(5).any(|bytes| bytes == b"share"));
    }
}

const CHILD_PATH: &str = "CONCILIUM_TEST_LEDGER_CHILD";

/// Run by the next test in a process of its own: commits for ever and tells after each commit.
fn commit_until_killed(path: &Path) -> ! {
    let ledger = RedbLedger::open(path).expect("the ledger");
    let mut request = 0_u8;
    loop {
        spend(&ledger, request);
        // Each id is repeated without a release, so each commit replaces a result and charges.
        request = request.wrapping_add(1);
        let mut output = std::io::stderr().lock();
        writeln!(output, "committed").expect("the parent listens");
    }
}

/// A killed process has lost no charge that it told of, and has charged at most one that it did not.
#[test]
fn killed_processes_lose_no_charge() {
    if let Some(path) = std::env::var_os(CHILD_PATH) {
        // This process is one of those that are killed.
        commit_until_killed(Path::new(&path));
    }
    let mut random = seeded_rng("killed processes");
    let (_folder, path) = place();
    drop(RedbLedger::create(&path).expect("a new ledger"));
    let mut told_in_total = 0;
    let mut rounds = 0;
    for _ in 0..12 {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "--nocapture", "--test-threads=1", "killed_processes_lose_no_charge"])
            .env(CHILD_PATH, &path)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a child process");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        for _ in 0..random.random_range(1..20) {
            assert_eq!(lines.next().expect("a line").expect("text"), "committed");
            told_in_total += 1;
        }
        // Some part of a commit later, wherever the process then is.
        for _ in 0..random.random_range(0..200_000_u32) {
            std::hint::spin_loop();
        }
        child.kill().expect("the child is killed");
        told_in_total += lines.count();
        child.wait().expect("the child has ended");
        rounds += 1;

        let ledger = RedbLedger::open(&path).expect("the ledger opens after the kill");
        let head = ledger.verify().expect("sound");
        let charged = usize::try_from(head.entries).expect("a small count");
        assert!(charged >= told_in_total, "{charged} charged, {told_in_total} told");
        assert!(charged <= told_in_total + rounds, "{charged} charged, {told_in_total} told");
    }
    eprintln!("{rounds} kills, {told_in_total} charges told of");
}
