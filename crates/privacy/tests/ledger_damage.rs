//! Files that are missing, foreign, damaged or changed, and processes that die.

mod support;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
};

use concilium_privacy::{Ledger, LedgerError, RedbLedger, Settlement, TaskPolicy};
use rand::RngExt;
use redb::{Database, ReadableDatabase, ReadableTable as _, TableDefinition};
use support::{
    ledger::{ROW, charge, key, place, policy, result},
    seeded_rng,
};

type Bytes = &'static [u8];
const LOG: TableDefinition<'_, Bytes, Bytes> = TableDefinition::new("log");
const HEAD: TableDefinition<'_, Bytes, Bytes> = TableDefinition::new("head");
const TASK_TOTALS: TableDefinition<'_, Bytes, Bytes> = TableDefinition::new("task_totals");
const CLIENT_TOTALS: TableDefinition<'_, Bytes, Bytes> = TableDefinition::new("client_totals");
const REQUESTS: TableDefinition<'_, Bytes, Bytes> = TableDefinition::new("requests");
const RESULTS: TableDefinition<'_, Bytes, Bytes> = TableDefinition::new("results");

/// A key of names and numbers, as the ledger writes it.
fn row_key(task: &str, epoch: u64, name: Option<&str>) -> Vec<u8> {
    let text =
        |text: &str| [&u16::try_from(text.len()).expect("short").to_be_bytes(), text.as_bytes()].concat();
    [text(task), epoch.to_be_bytes().to_vec(), name.map(text).unwrap_or_default()].concat()
}

/// A total as the ledger writes it.
fn total(rho: u64, requests: u64, rows: u64) -> Vec<u8> {
    [rho, requests, rows].map(u64::to_be_bytes).concat()
}

fn put(
    transaction: &redb::WriteTransaction,
    table: TableDefinition<'_, Bytes, Bytes>,
    key: &[u8],
    value: &[u8],
) {
    transaction.open_table(table).expect("the table").insert(key, value).expect("a write");
}

fn remove(transaction: &redb::WriteTransaction, table: TableDefinition<'_, Bytes, Bytes>, key: &[u8]) {
    let mut table = transaction.open_table(table).expect("the table");
    let removed = table.remove(key).expect("a removal").is_some();
    assert!(removed, "there is no such row");
}

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
    ledger.commit(vec![Settlement::in_full(reservation, result("share"))]).expect("a commit");
}

fn used_ledger(path: &Path) {
    let ledger = RedbLedger::create(path).expect("a new ledger");
    for request in 0..5 {
        spend(&ledger, request);
    }
    ledger.mark_released(&[key(&task(), "clinic", 4)], &[]).expect("marked");
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
        Err(LedgerError::Corrupt { place, detail }) => {
            assert_eq!(place, path.display().to_string());
            detail
        }
        Err(error) => panic!("another error: {error}"),
        Ok(_) => panic!("not noticed"),
    }
}

/// Hash and bytes of an entry.
fn log_row(transaction: &redb::WriteTransaction, number: u64) -> Vec<u8> {
    let log = transaction.open_table(LOG).expect("the log");
    log.get(number.to_be_bytes().as_slice()).expect("a read").expect("an entry").value().to_vec()
}

#[test]
fn changes_are_found_by_verification() {
    // Every byte of an entry, and of its hash, counts.
    let (_folder, path) = place();
    used_ledger(&path);
    let length = {
        let database = Database::open(&path).expect("the file");
        log_row(&database.begin_write().expect("a transaction"), 2).len()
    };
    for index in (0..length).step_by(11).chain([length - 1]) {
        let detail = damage(|transaction| {
            let mut row = log_row(transaction, 2);
            row[index] ^= 1;
            put(transaction, LOG, &2_u64.to_be_bytes(), &row);
        });
        assert!(detail.contains("entry 2"), "byte {index}: {detail}");
    }
    let detail = damage(|transaction| remove(transaction, LOG, &2_u64.to_be_bytes()));
    assert!(detail.contains("entry 2 is missing"), "{detail}");
    // Cutting the end off is noticed already when the ledger is opened.
    let detail = damage(|transaction| remove(transaction, LOG, &5_u64.to_be_bytes()));
    assert!(detail.contains("last entry"), "{detail}");
    // Even when head and totals are set back to match, the requests tell.
    let detail = damage(|transaction| {
        for entry in 4..6_u64 {
            remove(transaction, LOG, &entry.to_be_bytes());
        }
        let row = log_row(transaction, 3);
        // Version and number come before the time.
        let (hash, time) = (&row[..32], &row[41..49]);
        let head = [&4_u64.to_be_bytes(), hash, time].concat();
        put(transaction, HEAD, b"head", &head);
        let sum = total(4 * ROW, 4, 4);
        put(transaction, TASK_TOTALS, &row_key("digits", 1, None), &sum);
        put(transaction, CLIENT_TOTALS, &row_key("digits", 1, Some("clinic")), &sum);
    });
    assert!(detail.contains("is not in the log") || detail.contains("is not as the log has it"), "{detail}");
}

#[test]
fn changed_totals_and_requests_are_found() {
    let digits = row_key("digits", 1, None);
    let detail = damage(|transaction| put(transaction, TASK_TOTALS, &digits, &total(5 * ROW - 1, 5, 5)));
    assert!(detail.contains("task_totals for digits"), "{detail}");
    let detail = damage(|transaction| remove(transaction, TASK_TOTALS, &digits));
    assert!(detail.contains("missing"), "{detail}");
    let nobody = row_key("digits", 1, Some("nobody"));
    let detail = damage(|transaction| put(transaction, CLIENT_TOTALS, &nobody, &total(0, 0, 0)));
    assert!(detail.contains("nobody"), "{detail}");

    let request = [row_key("digits", 1, Some("clinic")), vec![3; 16]].concat();
    let detail = damage(|transaction| {
        let mut row = transaction
            .open_table(REQUESTS)
            .expect("requests")
            .get(request.as_slice())
            .expect("a read")
            .expect("a request")
            .value()
            .to_vec();
        row[0] ^= 1;
        put(transaction, REQUESTS, &request, &row);
    });
    assert!(detail.contains("not as the log has it"), "{detail}");
    let detail = damage(|transaction| remove(transaction, REQUESTS, &request));
    assert!(detail.contains("row of requests"), "{detail}");
    let detail = damage(|transaction| {
        put(transaction, RESULTS, &[nobody.clone(), vec![3; 16]].concat(), &[1]);
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
    assert!(
        matches!(&error, LedgerError::Corrupt { detail, .. } if detail.contains("another program")),
        "{error}"
    );

    used_ledger(&path);
    let database = Database::open(&path).expect("the file");
    let transaction = database.begin_write().expect("a transaction");
    put(&transaction, HEAD, b"schema", &4_u32.to_be_bytes());
    transaction.commit().expect("a commit");
    drop(database);
    let error = RedbLedger::open(&path).err().expect("another version");
    assert!(matches!(error, LedgerError::Schema { found: 4, supported: 3, .. }), "{error}");

    // The first schema had its number elsewhere.
    let old = folder.path().join("old.redb");
    let database = Database::create(&old).expect("a store");
    let transaction = database.begin_write().expect("a transaction");
    let schema: TableDefinition<'_, &str, u32> = TableDefinition::new("schema");
    transaction.open_table(schema).expect("a table").insert("schema", 1).expect("a write");
    transaction.commit().expect("a commit");
    drop(database);
    let error = RedbLedger::open(&old).err().expect("an old version");
    assert!(matches!(error, LedgerError::Schema { found: 1, supported: 3, .. }), "{error}");
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
        assert!(!row.value().windows(5).any(|bytes| bytes == b"share"));
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
