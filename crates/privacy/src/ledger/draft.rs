//! A change of a ledger while it is put together: what the store has, and above it what will be
//! written.

use std::collections::{HashMap, hash_map::Entry};

use zeroize::Zeroizing;

use super::{
    Event, LedgerEntry, LedgerError, LedgerHead, Total,
    rows::{HEAD_KEY, Head, after_prefix, decode_total, encode_total, log_row},
    store::{Order, RowKey, StoreView, Table, Write},
};

/// A row as it will be.
struct Row {
    value: Option<Zeroizing<Vec<u8>>>,
    changed: bool,
}

/// Rows that were read or changed. Several operations share one draft and one write to the disk;
/// an operation that fails takes back its own changes only.
pub(super) struct Draft<'v, V> {
    view: &'v V,
    place: &'v str,
    rows: HashMap<RowKey, Row>,
    head: Head,
    /// Rows as they were before the running operation, latest change last.
    before: Vec<(RowKey, Option<Row>)>,
}

impl<'v, V: StoreView> Draft<'v, V> {
    /// Reads the head and `wanted` in one go. Entries get the time `now_ms`, or that of the last
    /// entry if it is later: times in the log never go back, even if the clock does.
    pub(super) fn new(
        view: &'v V,
        place: &'v str,
        now_ms: u64,
        wanted: Vec<RowKey>,
    ) -> Result<Self, LedgerError> {
        let head = Head { head: LedgerHead::EMPTY, time_ms: now_ms };
        let mut draft = Self { view, place, rows: HashMap::new(), head, before: Vec::new() };
        let mut keys = vec![(Table::Head, HEAD_KEY.to_vec())];
        keys.extend(wanted);
        draft.read(keys)?;
        let head = draft
            .get(Table::Head, HEAD_KEY)?
            .and_then(Head::decode)
            .ok_or_else(|| draft.corrupt("it has no head"))?;
        draft.head = Head { time_ms: now_ms.max(head.time_ms), ..head };
        Ok(draft)
    }

    /// Runs one operation; an error undoes what it changed.
    pub(super) fn attempt<T>(
        &mut self,
        operation: impl FnOnce(&mut Self) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        let head = self.head;
        self.before.clear();
        let outcome = operation(self);
        if outcome.is_err() {
            self.head = head;
            while let Some((key, row)) = self.before.pop() {
                match row {
                    Some(row) => self.rows.insert(key, row),
                    None => self.rows.remove(&key),
                };
            }
        }
        outcome
    }

    /// Everything that changed, sorted; empty if nothing did.
    pub(super) fn into_writes(self) -> Vec<Write> {
        let mut writes: Vec<_> = self
            .rows
            .into_iter()
            .filter(|(_, row)| row.changed)
            .map(|((table, key), row)| Write { table, key, value: row.value })
            .collect();
        writes.sort_unstable_by(|one, other| (one.table, &one.key).cmp(&(other.table, &other.key)));
        writes
    }

    /// End of the log with the entries that were appended.
    pub(super) fn head(&self) -> LedgerHead {
        self.head.head
    }

    /// Time of new entries.
    pub(super) fn time_ms(&self) -> u64 {
        self.head.time_ms
    }

    pub(super) fn corrupt(&self, detail: impl Into<String>) -> LedgerError {
        LedgerError::corrupt(self.place, detail)
    }

    /// Reads those of `keys` that are not here yet.
    pub(super) fn read(&mut self, mut keys: Vec<RowKey>) -> Result<(), LedgerError> {
        keys.retain(|key| !self.rows.contains_key(key));
        keys.sort_unstable();
        keys.dedup();
        let values = self.view.get(&keys)?;
        for (key, value) in keys.into_iter().zip(values) {
            self.rows.insert(key, Row { value: value.map(Zeroizing::new), changed: false });
        }
        Ok(())
    }

    pub(super) fn get(&mut self, table: Table, key: &[u8]) -> Result<Option<&[u8]>, LedgerError> {
        let row = match self.rows.entry((table, key.to_vec())) {
            Entry::Occupied(row) => row.into_mut(),
            Entry::Vacant(place) => {
                let value = self.view.get(std::slice::from_ref(place.key()))?.pop().flatten();
                place.insert(Row { value: value.map(Zeroizing::new), changed: false })
            }
        };
        Ok(row.value.as_ref().map(|value| value.as_slice()))
    }

    /// Writes a row, or deletes it.
    pub(super) fn put(&mut self, table: Table, key: Vec<u8>, value: Option<Vec<u8>>) {
        let row = Row { value: value.map(Zeroizing::new), changed: true };
        let key = (table, key);
        let before = self.rows.insert(key.clone(), row);
        self.before.push((key, before));
    }

    /// The store, without the changes of this draft.
    pub(super) fn view(&self) -> &'v V {
        self.view
    }

    pub(super) fn total(&mut self, table: Table, key: &[u8]) -> Result<Total, LedgerError> {
        let total = decode_total(self.get(table, key)?);
        total.ok_or_else(|| self.corrupt(format!("a row of {} cannot be read", table.name())))
    }

    /// Adds to a total; `None` beyond 64 bits.
    pub(super) fn add(
        &mut self,
        table: Table,
        key: Vec<u8>,
        added: Total,
    ) -> Result<Option<Total>, LedgerError> {
        let sum = self.total(table, &key)?.checked_add(added);
        if let Some(sum) = sum {
            self.put(table, key, Some(encode_total(sum)));
        }
        Ok(sum)
    }

    /// All totals whose keys begin with `prefix`, with the changes of this draft.
    pub(super) fn totals(
        &mut self,
        table: Table,
        prefix: &[u8],
    ) -> Result<Vec<(Vec<u8>, Total)>, LedgerError> {
        let until = after_prefix(prefix);
        let stored = self.view.scan(table, prefix, until.as_deref(), Order::Ascending, usize::MAX)?;
        let drafted = self
            .rows
            .iter()
            .filter(|((other, key), row)| *other == table && key.starts_with(prefix) && row.value.is_some());
        let mut keys: Vec<_> = stored.into_iter().map(|(key, _)| key).collect();
        keys.extend(drafted.map(|((_, key), _)| key.clone()));
        keys.sort_unstable();
        keys.dedup();
        self.read(keys.iter().map(|key| (table, key.clone())).collect())?;
        keys.into_iter().map(|key| Ok((key.clone(), self.total(table, &key)?))).collect()
    }

    /// Appends an entry to the log, and returns its number.
    pub(super) fn append(&mut self, event: Event) -> u64 {
        let Head { head: LedgerHead { entries: number, hash }, time_ms } = self.head;
        let entry = LedgerEntry { number, time_ms, event }.encode();
        let hash = LedgerEntry::chain(&hash, &entry);
        self.put(Table::Log, number.to_be_bytes().to_vec(), Some(log_row(&hash, &entry)));
        // 2^64 entries are beyond any disk.
        self.head.head = LedgerHead { entries: number + 1, hash };
        self.put(Table::Head, HEAD_KEY.to_vec(), Some(self.head.encode()));
        number
    }
}
