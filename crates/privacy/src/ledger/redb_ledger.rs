//! The ledger of one server in one file, without another service.

use std::{path::Path, sync::Arc};

use redb::{ReadTransaction, ReadableTable};

use super::{
    Charge, ContentDigest, Ledger, LedgerError, LedgerHead, Lookup, RequestKey, Reservation, ResultBytes,
    Spending, Total,
    entry::{chain, encode},
    hold::{HoldSums, HoldTable},
    store::{
        CLIENT_TOTALS, HEAD, HEAD_KEY, LOG, REQUESTS, RESULTS, Store, TASK_TOTALS, read_head, row_key,
        total_of, total_row,
    },
    verify::verify,
};
use crate::clock::{Clock, SystemClock};

/// A ledger in a `redb` file, which one process at a time may open.
pub struct RedbLedger {
    store: Store,
    holds: Arc<HoldTable>,
    clock: Box<dyn Clock>,
}

/// A request's row, by value.
struct Request {
    digest: ContentDigest,
    released: bool,
}

impl RedbLedger {
    /// Starts a new ledger at `path`, with folders that are missing. Only for a server that never
    /// answered a request: a new ledger has nothing spent.
    ///
    /// # Errors
    /// [`LedgerError::AlreadyExists`] if the file exists, [`LedgerError::Storage`] if it cannot be
    /// written.
    pub fn create(path: &Path) -> Result<Self, LedgerError> {
        Ok(Self::with_store(Store::create(path)?))
    }

    /// Opens the ledger at `path`.
    ///
    /// # Errors
    /// [`LedgerError::Missing`], [`LedgerError::InUse`], [`LedgerError::Schema`],
    /// [`LedgerError::Corrupt`] or [`LedgerError::Storage`].
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        Ok(Self::with_store(Store::open(path)?))
    }

    /// Opens the ledger at `path`, or starts one if there is no file. A lost file then goes
    /// unnoticed by this server alone; the other servers notice by the head that they remember.
    ///
    /// # Errors
    /// As [`create`](Self::create) and [`open`](Self::open).
    pub fn open_or_create(path: &Path) -> Result<Self, LedgerError> {
        match Self::open(path) {
            Err(LedgerError::Missing { .. }) => Self::create(path),
            other => other,
        }
    }

    /// The same ledger with another clock.
    #[must_use]
    pub fn with_clock(mut self, clock: impl Clock + 'static) -> Self {
        self.clock = Box::new(clock);
        self
    }

    fn with_store(store: Store) -> Self {
        Self { store, holds: Arc::default(), clock: Box::new(SystemClock) }
    }

    /// What is stored of a request.
    ///
    /// Checks the digest before anything else, so that a conflict is told whatever else holds.
    fn request(
        &self,
        view: &ReadTransaction,
        key: &RequestKey,
        digest: &ContentDigest,
    ) -> Result<Option<(Request, ResultBytes)>, LedgerError> {
        let failure = |error| self.store.failure("be read", error);
        let requests = self.store.table(view, REQUESTS)?;
        let Some(row) = requests.get(row_key(key)).map_err(failure)? else {
            return Ok(None);
        };
        let (stored, released, _, _) = row.value();
        let request = Request { digest: ContentDigest(*stored), released };
        if request.digest != *digest {
            return Err(LedgerError::Conflict { key: key.clone() });
        }
        let results = self.store.table(view, RESULTS)?;
        match results.get(row_key(key)).map_err(failure)? {
            Some(result) => Ok(Some((request, ResultBytes(result.value().to_vec())))),
            None => Err(LedgerError::ResultExpired { key: key.clone() }),
        }
    }

    /// Committed totals of the charge's task epoch, and of its client in it.
    fn totals(&self, view: &ReadTransaction, key: &RequestKey) -> Result<(Total, Total), LedgerError> {
        let failure = |error| self.store.failure("be read", error);
        let task = self
            .store
            .table(view, TASK_TOTALS)?
            .get((key.task.as_str(), key.epoch))
            .map_err(failure)?
            .map_or_else(Total::default, |row| total_of(row.value()));
        let client = self
            .store
            .table(view, CLIENT_TOTALS)?
            .get((key.task.as_str(), key.epoch, key.client.as_str()))
            .map_err(failure)?
            .map_or_else(Total::default, |row| total_of(row.value()));
        Ok((task, client))
    }

    /// Whether `charge` may be reserved, given what is committed in `view` and set aside in `held`.
    fn check(&self, view: &ReadTransaction, held: &HoldSums, charge: &Charge) -> Result<(), LedgerError> {
        let key = charge.key();
        if let Some((request, _)) = self.request(view, key, &charge.digest)?
            && request.released
        {
            return Err(LedgerError::AlreadyReleased { key: key.clone() });
        }
        let (task, client) = self.totals(view, key)?;
        let overflow = || LedgerError::Overflow { key: key.clone() };
        let task = task.rho.checked_add(held.of_task(key)).ok_or_else(overflow)?;
        let client = client.rho.checked_add(held.of_client(key)).ok_or_else(overflow)?;
        charge.check_caps(task, client)?;
        Ok(())
    }

    /// Writes the batch into `transaction`, and returns the head before and after it.
    fn append(
        &self,
        transaction: &redb::WriteTransaction,
        batch: &[(Reservation, ResultBytes)],
    ) -> Result<(LedgerHead, LedgerHead), AppendError> {
        let time_ms = self.clock.now_ms();
        let mut heads = transaction.open_table(HEAD)?;
        let before = read_head(&heads)?.ok_or(AppendError::NoHead)?;
        let mut head = before;
        let mut log = transaction.open_table(LOG)?;
        let mut task_totals = transaction.open_table(TASK_TOTALS)?;
        let mut client_totals = transaction.open_table(CLIENT_TOTALS)?;
        let mut requests = transaction.open_table(REQUESTS)?;
        let mut results = transaction.open_table(RESULTS)?;
        for (reservation, result) in batch {
            let charge = reservation.charge();
            let key = charge.key();
            let overflow = || AppendError::Overflow(key.clone());
            let bytes = encode(charge, head.entries, time_ms);
            let hash = chain(&head.hash, &bytes);
            log.insert(head.entries, (&hash, bytes.as_slice()))?;
            let added = Total::of_one(charge.cost, charge.rows);

            let task_key = (key.task.as_str(), key.epoch);
            let before = task_totals.get(task_key)?.map_or_else(Total::default, |row| total_of(row.value()));
            let after = before.checked_add(added).ok_or_else(overflow)?;
            task_totals.insert(task_key, total_row(after))?;

            // A client's part cannot exceed the task's total, which just fitted.
            let client_key = (key.task.as_str(), key.epoch, key.client.as_str());
            let before =
                client_totals.get(client_key)?.map_or_else(Total::default, |row| total_of(row.value()));
            let after = before.checked_add(added).ok_or_else(overflow)?;
            client_totals.insert(client_key, total_row(after))?;

            requests.insert(row_key(key), (&charge.digest.0, false, time_ms, head.entries))?;
            results.insert(row_key(key), result.expose())?;
            head = LedgerHead { entries: head.entries.checked_add(1).ok_or_else(overflow)?, hash };
        }
        heads.insert(HEAD_KEY, (head.entries, &head.hash))?;
        Ok((before, head))
    }
}

impl Ledger for RedbLedger {
    fn lookup(&self, key: &RequestKey, digest: &ContentDigest) -> Result<Lookup, LedgerError> {
        let view = self.store.read()?;
        Ok(match self.request(&view, key, digest)? {
            None => Lookup::New,
            Some((request, result)) => Lookup::Held { result, released: request.released },
        })
    }

    fn reserve(&self, charges: &[Charge]) -> Vec<Result<Reservation, LedgerError>> {
        let mut holds = self.holds.lock();
        // The view is taken under the lock: what a commit moved from the table to the disk in the
        // meantime is then seen in exactly one of the two.
        let opened = self.store.read().and_then(|view| Ok((self.store.head(&view)?, view)));
        let (head, view) = match opened {
            Ok(opened) => opened,
            Err(error) => return charges.iter().map(|_| Err(error.clone())).collect(),
        };
        let mut held = holds.sums(head.entries);
        charges
            .iter()
            .map(|charge| {
                let key = charge.key();
                if holds.contains(key) {
                    return Err(LedgerError::InProgress { key: key.clone() });
                }
                self.check(&view, &held, charge)?;
                held.add(key, charge.cost);
                Ok(holds.insert(&self.holds, charge))
            })
            .collect()
    }

    fn commit(&self, batch: Vec<(Reservation, ResultBytes)>) -> Result<LedgerHead, LedgerError> {
        if batch.is_empty() {
            return self.head();
        }
        for (reservation, _) in &batch {
            if !reservation.belongs_to(&self.holds) {
                return Err(LedgerError::ForeignReservation { key: reservation.charge().key().clone() });
            }
        }
        let failure = |error: redb::Error| self.store.failure("write charges", error);
        let transaction = self.store.begin_write().map_err(failure)?;
        let (before, after) = self.append(&transaction, &batch).map_err(|error| match error {
            AppendError::Store(error) => failure(error),
            AppendError::NoHead => self.store.corrupt("it has no head"),
            AppendError::Overflow(key) => LedgerError::Overflow { key },
        })?;
        {
            let mut holds = self.holds.lock();
            for (entry, (reservation, _)) in (before.entries..).zip(&batch) {
                holds.note_entry(reservation.charge().key(), entry);
            }
        }
        transaction.commit().map_err(|error| failure(error.into()))?;
        // Here `batch` ends, and with it the reservations and the results in memory.
        Ok(after)
    }

    fn mark_released(&self, keys: &[RequestKey]) -> Result<(), LedgerError> {
        if keys.is_empty() {
            return Ok(());
        }
        let mut unknown = None;
        let failure = |error: redb::Error| self.store.failure("mark results as released", error);
        let transaction = self.store.begin_write().map_err(failure)?;
        mark(&transaction, keys, &mut unknown).map_err(failure)?;
        if let Some(key) = unknown {
            return Err(LedgerError::UnknownRequest { key });
        }
        transaction.commit().map_err(|error| failure(error.into()))
    }

    fn spent(&self, task: &str, epoch: u64) -> Result<Spending, LedgerError> {
        let failure = |error| self.store.failure("be read", error);
        let view = self.store.read()?;
        let total = self
            .store
            .table(&view, TASK_TOTALS)?
            .get((task, epoch))
            .map_err(failure)?
            .map_or_else(Total::default, |row| total_of(row.value()));
        let mut spending = Spending { total, ..Spending::default() };
        let clients = self.store.table(&view, CLIENT_TOTALS)?;
        // Rows are sorted by task, epoch and client, and the empty name sorts first.
        for row in clients.range((task, epoch, "")..).map_err(failure)? {
            let (key, row) = row.map_err(failure)?;
            let (row_task, row_epoch, client) = key.value();
            if (row_task, row_epoch) != (task, epoch) {
                break;
            }
            spending.by_client.insert(client.to_owned(), total_of(row.value()));
        }
        Ok(spending)
    }

    fn head(&self) -> Result<LedgerHead, LedgerError> {
        let view = self.store.read()?;
        self.store.head(&view)
    }

    fn verify(&self) -> Result<LedgerHead, LedgerError> {
        verify(&self.store)
    }

    fn prune_results(&self, older_than_ms: u64) -> Result<u64, LedgerError> {
        self.store.write("delete old results", |transaction| {
            let requests = transaction.open_table(REQUESTS)?;
            let mut results = transaction.open_table(RESULTS)?;
            let mut deleted = 0;
            let mut failed = None;
            results.retain(|key, _| {
                let committed_ms = match requests.get(key) {
                    Ok(Some(row)) => row.value().2,
                    // A result that belongs to no request serves no one.
                    Ok(None) => 0,
                    Err(error) => {
                        failed = Some(error);
                        return true;
                    }
                };
                let keep = committed_ms >= older_than_ms;
                deleted += u64::from(!keep);
                keep
            })?;
            match failed {
                Some(error) => Err(error.into()),
                None => Ok(deleted),
            }
        })
    }
}

/// Why a batch could not be written.
enum AppendError {
    Store(redb::Error),
    NoHead,
    Overflow(RequestKey),
}

impl<E: Into<redb::Error>> From<E> for AppendError {
    fn from(error: E) -> Self {
        Self::Store(error.into())
    }
}

/// Marks `keys`, or names the first that is not there.
fn mark(
    transaction: &redb::WriteTransaction,
    keys: &[RequestKey],
    unknown: &mut Option<RequestKey>,
) -> Result<(), redb::Error> {
    let mut requests = transaction.open_table(REQUESTS)?;
    for key in keys {
        let row = requests.get(row_key(key))?.map(|row| {
            let (digest, _, time_ms, entry) = row.value();
            (*digest, time_ms, entry)
        });
        let Some((digest, time_ms, entry)) = row else {
            *unknown = Some(key.clone());
            return Ok(());
        };
        requests.insert(row_key(key), (&digest, true, time_ms, entry))?;
    }
    Ok(())
}
