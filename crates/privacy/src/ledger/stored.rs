//! The rules of the ledger, over any store.

use std::{path::Path, sync::Arc};

use rand::{TryRng as _, rngs::SysRng};
use zeroize::Zeroizing;

use super::{
    Charge, ContentDigest, LedgerError, LedgerHead, RequestKey, Reservation, ResultBytes,
    caps::{self, Spent},
    draft::Draft,
    group::GroupCommit,
    hold::HoldTable,
    operation::{Done, Operation, check_open},
    redb_store::RedbStore,
    rows::{
        DIGEST_KEY, HEAD_KEY, Head, Reader, Request, SCHEMA, SCHEMA_KEY, Writer, epoch_key, name_key,
        part_key, request_key,
    },
    store::{LedgerStore, Order, StoreView, Table, Write},
};
use crate::{
    clock::{Clock, SystemClock},
    parameter::NanoRho,
};

/// Rows that are read from the store at a time.
pub(super) const PAGE: usize = 1024;

/// A ledger whose rows are in the store `S`.
pub struct StoredLedger<S> {
    pub(super) store: S,
    digest_key: Zeroizing<[u8; 32]>,
    pub(super) holds: Arc<HoldTable>,
    pub(super) clock: Box<dyn Clock>,
    writes: GroupCommit<Operation, Result<Done, LedgerError>>,
}

/// A ledger in a `redb` file, which one process at a time may open.
pub type RedbLedger = StoredLedger<RedbStore>;

impl RedbLedger {
    /// Starts a new ledger at `path`, with folders that are missing. Only for a server that never
    /// answered a request: a new ledger has nothing spent.
    ///
    /// # Errors
    /// [`LedgerError::AlreadyExists`] if the file exists, [`LedgerError::Storage`] if it cannot be
    /// written.
    pub fn create(path: &Path) -> Result<Self, LedgerError> {
        Self::create_in(RedbStore::create(path)?)
    }

    /// Opens the ledger at `path`.
    ///
    /// # Errors
    /// [`LedgerError::Missing`], [`LedgerError::InUse`], [`LedgerError::Schema`],
    /// [`LedgerError::Corrupt`] or [`LedgerError::Storage`].
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        Self::open_in(RedbStore::open(path)?)
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
}

impl<S: LedgerStore> StoredLedger<S> {
    /// Starts a new ledger in a store that has empty tables.
    ///
    /// # Errors
    /// [`LedgerError::AlreadyExists`] if there is a ledger in the store, or a storage error.
    pub fn create_in(store: S) -> Result<Self, LedgerError> {
        let schema = store.view()?.get(&[(Table::Head, SCHEMA_KEY.to_vec())])?.pop().flatten();
        if schema.is_some() {
            return Err(LedgerError::AlreadyExists { place: store.place().to_owned() });
        }
        let row = |key: &[u8], value| Write {
            table: Table::Head,
            key: key.to_vec(),
            value: Some(Zeroizing::new(value)),
        };
        let head = Head { head: LedgerHead::EMPTY, time_ms: 0 };
        let mut digest_key = Zeroizing::new([0; 32]);
        SysRng.try_fill_bytes(digest_key.as_mut_slice()).map_err(|error| LedgerError::Storage {
            place: store.place().to_owned(),
            action: "draw a key",
            source: Arc::new(error),
        })?;
        store.apply(&[
            row(DIGEST_KEY, digest_key.to_vec()),
            row(HEAD_KEY, head.encode()),
            row(SCHEMA_KEY, Writer::default().u32(SCHEMA).0),
        ])?;
        Ok(Self::over(store, digest_key))
    }

    /// Opens the ledger in `store`.
    ///
    /// # Errors
    /// [`LedgerError::Missing`] when there is none in it, [`LedgerError::Schema`],
    /// [`LedgerError::Corrupt`] or a storage error.
    pub fn open_in(store: S) -> Result<Self, LedgerError> {
        let place = || store.place().to_owned();
        let digest_key = {
            let view = store.view()?;
            let row = |key: &[u8]| (Table::Head, key.to_vec());
            let mut rows = view.get(&[row(SCHEMA_KEY), row(HEAD_KEY), row(DIGEST_KEY)])?.into_iter();
            let Some(schema) = rows.next().flatten() else {
                return Err(LedgerError::Missing { place: place() });
            };
            let mut reader = Reader(&schema);
            match reader.u32().and_then(|schema| reader.end(schema)) {
                Some(SCHEMA) => {}
                Some(found) => return Err(LedgerError::Schema { place: place(), found, supported: SCHEMA }),
                None => return Err(LedgerError::corrupt(store.place(), "its schema number cannot be read")),
            }
            // A quick check that log and head belong together; the full one is `verify`.
            let head = rows.next().flatten().and_then(|row| Head::decode(&row)).map(|head| head.head);
            let last = view.scan(Table::Log, &[], None, Order::Descending, 1)?.pop();
            let end = match &last {
                None => Some(LedgerHead::EMPTY),
                Some((number, row)) => end_of(number, row),
            };
            if head.is_none() || head != end {
                return Err(LedgerError::corrupt(
                    store.place(),
                    "the last entry of the log is not the one that its head names",
                ));
            }
            let digest_key = rows.next().flatten().map(Zeroizing::new);
            digest_key.and_then(|key| <[u8; 32]>::try_from(key.as_slice()).ok()).map(Zeroizing::new)
        };
        match digest_key {
            Some(digest_key) => Ok(Self::over(store, digest_key)),
            None => Err(LedgerError::corrupt(store.place(), "it has no key of digests")),
        }
    }

    /// Opens the ledger in `store`, or starts one if there is none; see
    /// [`RedbLedger::open_or_create`].
    ///
    /// # Errors
    /// As [`create_in`](Self::create_in) and [`open_in`](Self::open_in).
    pub fn open_or_create_in(store: S) -> Result<Self, LedgerError> {
        let schema = store.view()?.get(&[(Table::Head, SCHEMA_KEY.to_vec())])?.pop().flatten();
        if schema.is_some() { Self::open_in(store) } else { Self::create_in(store) }
    }

    fn over(store: S, digest_key: Zeroizing<[u8; 32]>) -> Self {
        let (holds, writes) = (Arc::default(), GroupCommit::default());
        Self { store, digest_key, holds, clock: Box::new(SystemClock), writes }
    }

    /// What is stored of a content digest, and told to auditors. The digest covers the two components of the
    /// input that this server holds. Somebody who has the third, and a guess of the input, could confirm the
    /// guess by it; without the key the log says no more than whether two contents are equal.
    pub(super) fn keyed(&self, digest: &ContentDigest) -> ContentDigest {
        ContentDigest(*blake3::keyed_hash(&self.digest_key, &digest.0).as_bytes())
    }

    /// The same ledger with another clock.
    #[must_use]
    pub fn with_clock(mut self, clock: impl Clock + 'static) -> Self {
        self.clock = Box::new(clock);
        self
    }

    pub(super) fn corrupt(&self, detail: impl Into<String>) -> LedgerError {
        LedgerError::corrupt(self.store.place(), detail)
    }

    /// What is stored of a request, from its two rows.
    ///
    /// Checks the digest before anything else, so that a conflict is told whatever else holds.
    pub(super) fn request(
        &self,
        key: &RequestKey,
        digest: &ContentDigest,
        request: Option<Vec<u8>>,
        result: Option<Vec<u8>>,
    ) -> Result<Option<(Request, ResultBytes)>, LedgerError> {
        let result = result.map(ResultBytes::from);
        let Some(request) = request else {
            return Ok(None);
        };
        let request =
            Request::decode(&request).ok_or_else(|| self.corrupt(format!("{key} cannot be read")))?;
        if request.digest != *digest {
            return Err(LedgerError::Conflict { key: key.clone() });
        }
        match result {
            Some(result) => Ok(Some((request, result))),
            None => Err(LedgerError::ResultExpired { key: key.clone() }),
        }
    }

    /// Whether nothing but the caps can speak against reserving `charge`.
    pub(super) fn check_request(
        &self,
        charge: &Charge,
        draft: &mut Draft<'_, S::View<'_>>,
    ) -> Result<(), LedgerError> {
        let key = charge.key();
        let row = request_key(key);
        let request = draft.get(Table::Requests, &row)?.map(<[u8]>::to_vec);
        let result = draft.get(Table::Results, &row)?.map(<[u8]>::to_vec);
        if let Some((request, _)) = self.request(key, charge.digest(), request, result)?
            && request.released
        {
            return Err(LedgerError::AlreadyReleased { key: key.clone() });
        }
        check_open(draft, key)
    }

    /// What is committed where `charge` counts.
    pub(super) fn spent_of(
        &self,
        charge: &Charge,
        draft: &mut Draft<'_, S::View<'_>>,
    ) -> Result<Spent, LedgerError> {
        let key = charge.key();
        let mut rho = |table, row: Vec<u8>| draft.total(table, &row).map(|total| total.rho);
        Ok(Spent {
            epoch: rho(Table::TaskTotals, epoch_key(&key.task, key.epoch))?,
            client: rho(Table::ClientTotals, part_key(&key.task, key.epoch, &key.client))?,
            all_tasks: rho(Table::AllTasks, name_key(&key.client))?,
            owners: capped(charge)
                .map(|owner| rho(Table::OwnerTotals, part_key(&key.task, key.epoch, owner)))
                .collect::<Result<_, _>>()?,
            before_window: match charge.policy().window {
                None => NanoRho::ZERO,
                Some(window) => {
                    let begin = begin_of(window.seconds, draft.time_ms());
                    caps::spent_at(draft.view(), &key.task, key.epoch, begin)?
                }
            },
        })
    }

    /// One row, read by itself.
    pub(super) fn row(&self, table: Table, key: Vec<u8>) -> Result<Option<Vec<u8>>, LedgerError> {
        Ok(self.store.view()?.get(&[(table, key)])?.pop().flatten())
    }

    pub(super) fn head_of(&self, view: &S::View<'_>) -> Result<Head, LedgerError> {
        let row = view.get(&[(Table::Head, HEAD_KEY.to_vec())])?.pop().flatten();
        row.and_then(|row| Head::decode(&row)).ok_or_else(|| self.corrupt("it has no head"))
    }

    /// Now, or the time of the last entry if that is later.
    pub(super) fn time_of(&self, view: &S::View<'_>) -> Result<u64, LedgerError> {
        Ok(self.head_of(view)?.time_ms.max(self.clock.now_ms()))
    }

    /// Refuses what was not reserved here, or exceeds what is left of it.
    pub(super) fn check_settlement(
        &self,
        reservation: &Reservation,
        rho: NanoRho,
    ) -> Result<(), LedgerError> {
        let key = reservation.charge().key();
        if !reservation.belongs_to(&self.holds) {
            return Err(LedgerError::ForeignReservation { key: key.clone() });
        }
        let left = reservation.left();
        if rho <= left {
            return Ok(());
        }
        Err(LedgerError::InvalidCharge {
            key: key.clone(),
            reason: format!("rho {rho} is to be charged, and rho {left} is left of what was set aside"),
        })
    }

    /// Runs an operation, maybe together with those of other threads.
    pub(super) fn write(&self, operation: Operation) -> Result<Done, LedgerError> {
        self.writes.run(operation, |operations| self.write_all(operations))
    }

    /// Runs operations, and returns when the disk has what they changed.
    fn write_all(&self, mut operations: Vec<Operation>) -> Vec<Result<Done, LedgerError>> {
        let all_fail = |error: &LedgerError| operations.iter().map(|_| Err(error.clone())).collect();
        let view = match self.store.view() {
            Ok(view) => view,
            Err(error) => return all_fail(&error),
        };
        let wanted = operations.iter().flat_map(Operation::rows).collect();
        let mut draft = match Draft::new(&view, self.store.place(), self.clock.now_ms(), wanted) {
            Ok(draft) => draft,
            Err(error) => return all_fail(&error),
        };
        let mut outcomes: Vec<_> = operations
            .iter_mut()
            .map(|operation| {
                let first = draft.head().entries;
                let outcome = draft.attempt(|draft| operation.run(draft, &self.holds));
                if outcome.is_err() {
                    self.holds.lock().abandon(first);
                }
                outcome
            })
            .collect();
        let writes = draft.into_writes();
        let written = if writes.is_empty() { Ok(()) } else { self.store.apply(&writes) };
        match written {
            Ok(()) => self.holds.lock().settled(),
            Err(error) => {
                self.holds.lock().abandon(0);
                for outcome in outcomes.iter_mut().filter(|outcome| outcome.is_ok()) {
                    *outcome = Err(error.clone());
                }
            }
        }
        // Here `operations` end, and with them the reservations and the results in memory.
        outcomes
    }
}

/// The owners of a charge that have caps.
pub(super) fn capped(charge: &Charge) -> impl Iterator<Item = &str> {
    let participants = charge.participants().iter();
    participants.filter(|participant| participant.cap.is_some()).map(|participant| participant.owner.as_str())
}

/// When a window that ends at `now_ms` began; what was charged then is outside.
pub(super) fn begin_of(seconds: u64, now_ms: u64) -> u64 {
    now_ms.saturating_sub(seconds.saturating_mul(1000))
}

/// The head whose last entry is this row of the log.
fn end_of(number: &[u8], row: &[u8]) -> Option<LedgerHead> {
    let number = u64::from_be_bytes(number.try_into().ok()?);
    Some(LedgerHead { entries: number.checked_add(1)?, hash: *row.first_chunk()? })
}
