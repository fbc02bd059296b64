//! A full check of a ledger file.

use std::collections::BTreeMap;

use redb::ReadableTable;

use super::{
    LedgerError, LedgerHead, Total,
    entry::{GENESIS, chain, decode},
    store::{CLIENT_TOTALS, LOG, REQUESTS, RESULTS, Store, TASK_TOTALS, total_of},
};

/// Checks that the log's numbers and hashes are unbroken up to the head, that its charges add up to
/// the totals, and that stored requests are those that the log names last.
pub(super) fn verify(store: &Store) -> Result<LedgerHead, LedgerError> {
    let failure = |error| store.failure("be read", error);
    let view = store.read()?;
    let head = store.head(&view)?;

    let mut found = LedgerHead { entries: 0, hash: GENESIS };
    let mut tasks: BTreeMap<(String, u64), Total> = BTreeMap::new();
    let mut clients: BTreeMap<(String, u64, String), Total> = BTreeMap::new();
    let mut requests = BTreeMap::new();
    for row in store.table(&view, LOG)?.iter().map_err(failure)? {
        let (number, row) = row.map_err(failure)?;
        let (hash, bytes) = row.value();
        let number = number.value();
        if number != found.entries {
            return Err(store.corrupt(format!("log entry {} is missing", found.entries)));
        }
        if chain(&found.hash, bytes) != *hash {
            return Err(store.corrupt(format!("log entry {number} does not have its hash")));
        }
        let entry = decode(bytes)
            .filter(|entry| entry.number == number)
            .ok_or_else(|| store.corrupt(format!("log entry {number} cannot be read")))?;
        let overflow = || store.corrupt(format!("the sum up to log entry {number} overflows"));
        let key = &entry.key;
        let task = tasks.entry((key.task.clone(), key.epoch)).or_default();
        *task = task.checked_add(entry.total).ok_or_else(overflow)?;
        let client = clients.entry((key.task.clone(), key.epoch, key.client.clone())).or_default();
        *client = client.checked_add(entry.total).ok_or_else(overflow)?;
        requests.insert(entry.key, (entry.digest, entry.time_ms, number));
        found = LedgerHead { entries: number + 1, hash: *hash };
    }
    if found != head {
        return Err(store.corrupt(format!(
            "its head names {} entries, and the log has {} or ends with another hash",
            head.entries, found.entries
        )));
    }

    for row in store.table(&view, TASK_TOTALS)?.iter().map_err(failure)? {
        let (key, row) = row.map_err(failure)?;
        let (task, epoch) = key.value();
        if tasks.remove(&(task.to_owned(), epoch)) != Some(total_of(row.value())) {
            return Err(
                store.corrupt(format!("the total of task {task} epoch {epoch} is not the sum of the log"))
            );
        }
    }
    for row in store.table(&view, CLIENT_TOTALS)?.iter().map_err(failure)? {
        let (key, row) = row.map_err(failure)?;
        let (task, epoch, client) = key.value();
        let key = (task.to_owned(), epoch, client.to_owned());
        if clients.remove(&key) != Some(total_of(row.value())) {
            return Err(store.corrupt(format!(
                "the total of client {client} in task {task} epoch {epoch} is not the sum of the log"
            )));
        }
    }
    if let Some((task, epoch)) = tasks.keys().next() {
        return Err(store.corrupt(format!("the total of task {task} epoch {epoch} is missing")));
    }
    if let Some((task, epoch, client)) = clients.keys().next() {
        return Err(
            store.corrupt(format!("the total of client {client} in task {task} epoch {epoch} is missing"))
        );
    }

    let stored = store.table(&view, REQUESTS)?;
    for (key, (digest, time_ms, number)) in &requests {
        let row = stored.get(super::store::row_key(key)).map_err(failure)?.map(|row| {
            let (digest, _, time_ms, number) = row.value();
            (*digest, time_ms, number)
        });
        if row != Some((*digest, *time_ms, *number)) {
            return Err(store.corrupt(format!("{key} is not stored as the log has it")));
        }
    }
    let count = |rows: u64| usize::try_from(rows).ok();
    let rows = redb::ReadableTableMetadata::len(&stored).map_err(failure)?;
    if count(rows) != Some(requests.len()) {
        return Err(store.corrupt("it holds requests that the log does not name"));
    }
    for row in store.table(&view, RESULTS)?.iter().map_err(failure)? {
        let (key, _) = row.map_err(failure)?;
        if stored.get(key.value()).map_err(failure)?.is_none() {
            return Err(store.corrupt("it holds the result of a request that the log does not name"));
        }
    }
    Ok(found)
}
