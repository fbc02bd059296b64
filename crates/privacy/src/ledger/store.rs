//! The file behind [`RedbLedger`](super::RedbLedger): tables, schema, and what errors mean.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use redb::{
    Builder, Database, Durability, ReadTransaction, ReadableDatabase, ReadableTable, StorageError,
    TableDefinition, WriteTransaction,
};

use super::{LedgerError, LedgerHead, RequestKey, Total, entry::GENESIS};
use crate::parameter::NanoRho;

/// Number of the layout below. A change of any table or of the log's encoding takes a new one.
const SCHEMA: u32 = 1;

/// Holds the schema number under its one key.
const SCHEMA_TABLE: TableDefinition<'_, &str, u32> = TableDefinition::new("schema");
const SCHEMA_KEY: &str = "schema";

/// Entries in the log, and the last hash, under one key.
pub(super) const HEAD: TableDefinition<'_, &str, (u64, &[u8; 32])> = TableDefinition::new("head");
pub(super) const HEAD_KEY: &str = "head";

/// Entry number to the hash of the entry and its bytes.
pub(super) const LOG: TableDefinition<'_, u64, (&[u8; 32], &[u8])> = TableDefinition::new("log");

/// Units of rho, charges, and rows.
pub(super) type TotalRow = (u64, u64, u64);

/// Task and epoch to what was spent on it.
pub(super) const TASK_TOTALS: TableDefinition<'_, (&str, u64), TotalRow> =
    TableDefinition::new("task_totals");

/// Task, epoch and client to what the client spent on it.
pub(super) const CLIENT_TOTALS: TableDefinition<'_, (&str, u64, &str), TotalRow> =
    TableDefinition::new("client_totals");

/// Task, epoch, client and request id.
pub(super) type RequestRowKey = (&'static str, u64, &'static str, &'static [u8; 16]);

/// Content digest, released, time of the last commit in milliseconds, and its entry number.
pub(super) type RequestRow = (&'static [u8; 32], bool, u64, u64);

/// What was committed. Rows are never deleted, so that no id is ever used for two answers.
pub(super) const REQUESTS: TableDefinition<'_, RequestRowKey, RequestRow> = TableDefinition::new("requests");

/// Result shares of committed requests, as long as they are kept.
pub(super) const RESULTS: TableDefinition<'_, RequestRowKey, &[u8]> = TableDefinition::new("results");

/// The row key of a request.
pub(super) fn row_key(key: &RequestKey) -> (&str, u64, &str, &[u8; 16]) {
    (&key.task, key.epoch, &key.client, &key.request.0)
}

pub(super) fn total_row(total: Total) -> TotalRow {
    (total.rho.units(), total.requests, total.rows)
}

pub(super) fn total_of(row: TotalRow) -> Total {
    Total { rho: NanoRho::new(row.0), requests: row.1, rows: row.2 }
}

/// An open ledger file.
pub(super) struct Store {
    database: Database,
    path: PathBuf,
}

impl Store {
    /// Creates the file, and folders above it that are missing, readable by the owner only.
    pub(super) fn create(path: &Path) -> Result<Self, LedgerError> {
        let failure = |action| {
            move |error: io::Error| match error.kind() {
                io::ErrorKind::AlreadyExists => LedgerError::AlreadyExists { path: path.into() },
                _ => storage(path, action, error),
            }
        };
        // A bare file name has the empty path as its folder.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        private_folder().create(folder).map_err(failure("create its folder"))?;
        let file = private_file().open(path).map_err(failure("create its file"))?;
        let database =
            Builder::new().create_file(file).map_err(|error| from_redb(path, "create its tables", error))?;
        let store = Self { database, path: path.into() };
        store.write("create its tables", |transaction| {
            transaction.open_table(SCHEMA_TABLE)?.insert(SCHEMA_KEY, SCHEMA)?;
            transaction.open_table(HEAD)?.insert(HEAD_KEY, (0, &GENESIS))?;
            transaction.open_table(LOG)?;
            transaction.open_table(TASK_TOTALS)?;
            transaction.open_table(CLIENT_TOTALS)?;
            transaction.open_table(REQUESTS)?;
            transaction.open_table(RESULTS)?;
            Ok(())
        })?;
        sync_folder(folder).map_err(failure("flush its folder"))?;
        Ok(store)
    }

    /// Opens a file that [`create`](Self::create) made.
    pub(super) fn open(path: &Path) -> Result<Self, LedgerError> {
        // Asked first, because an open that fails tells less.
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(LedgerError::Missing { path: path.into() });
            }
            Err(error) => return Err(storage(path, "be opened", error)),
            Ok(metadata) if !metadata.is_file() => {
                return Err(corrupt(path, "it is not a regular file"));
            }
            Ok(metadata) if metadata.len() == 0 => {
                return Err(corrupt(
                    path,
                    "it is empty; if its creation was interrupted and this server never answered \
                     a request, delete it",
                ));
            }
            Ok(_) => {}
        }
        let database = Builder::new().open(path).map_err(|error| from_redb(path, "be opened", error))?;
        let store = Self { database, path: path.into() };
        store.check_schema()?;
        Ok(store)
    }

    fn check_schema(&self) -> Result<(), LedgerError> {
        let transaction = self.read()?;
        let found = transaction
            .open_table(SCHEMA_TABLE)
            .map_err(redb::Error::from)
            .and_then(|table| Ok(table.get(SCHEMA_KEY)?.map(|value| value.value())));
        match found {
            Ok(Some(SCHEMA)) => self.check_last_entry(&transaction),
            Ok(Some(found)) => Err(LedgerError::Schema { path: self.path.clone(), found, supported: SCHEMA }),
            Ok(None) | Err(redb::Error::TableDoesNotExist(_)) => Err(corrupt(
                &self.path,
                "it has no schema number, so it is the store of another program or its creation \
                 was interrupted",
            )),
            Err(error) => Err(self.failure("be read", error)),
        }
    }

    /// A quick check that log and head belong together; the full one is `verify`.
    fn check_last_entry(&self, transaction: &ReadTransaction) -> Result<(), LedgerError> {
        let head = self.head(transaction)?;
        let last = self
            .table(transaction, LOG)?
            .last()
            .map_err(|error| self.failure("be read", error))?
            .map(|(number, row)| (number.value(), *row.value().0));
        let fits = match last {
            None => head.entries == 0 && head.hash == GENESIS,
            Some((number, hash)) => number.checked_add(1) == Some(head.entries) && hash == head.hash,
        };
        if fits {
            Ok(())
        } else {
            Err(self.corrupt("the last entry of the log is not the one that its head names"))
        }
    }

    /// A consistent view of the file.
    pub(super) fn read(&self) -> Result<ReadTransaction, LedgerError> {
        self.database.begin_read().map_err(|error| self.failure("be read", error))
    }

    /// A table for reading.
    pub(super) fn table<K: redb::Key, V: redb::Value>(
        &self,
        transaction: &ReadTransaction,
        definition: TableDefinition<'_, K, V>,
    ) -> Result<redb::ReadOnlyTable<K, V>, LedgerError> {
        transaction.open_table(definition).map_err(|error| self.failure("be read", error))
    }

    /// Starts a transaction of which the commit returns when the disk has it. At most one runs.
    pub(super) fn begin_write(&self) -> Result<WriteTransaction, redb::Error> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        // Against a disk that reorders writes within a flush: the new root is written, and flushed,
        // before it is made current.
        transaction.set_two_phase_commit(true);
        // A restart after a crash does not walk the whole file.
        transaction.set_quick_repair(true);
        Ok(transaction)
    }

    /// Runs `change` in a durable transaction; an error undoes all of it.
    pub(super) fn write<T>(
        &self,
        action: &'static str,
        change: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, LedgerError> {
        self.begin_write()
            .and_then(|transaction| {
                let value = change(&transaction)?;
                transaction.commit()?;
                Ok(value)
            })
            .map_err(|error| self.failure(action, error))
    }

    pub(super) fn head(&self, transaction: &ReadTransaction) -> Result<LedgerHead, LedgerError> {
        let table = self.table(transaction, HEAD)?;
        read_head(&table)
            .map_err(|error| self.failure("be read", error))?
            .ok_or_else(|| self.corrupt("it has no head"))
    }

    /// What an error of the store means to the one who runs it.
    pub(super) fn failure(&self, action: &'static str, error: impl Into<redb::Error>) -> LedgerError {
        from_redb(&self.path, action, error)
    }

    pub(super) fn corrupt(&self, detail: impl Into<String>) -> LedgerError {
        corrupt(&self.path, detail)
    }
}

/// The head in a table for reading or writing.
pub(super) fn read_head(
    table: &impl ReadableTable<&'static str, (u64, &'static [u8; 32])>,
) -> Result<Option<LedgerHead>, StorageError> {
    Ok(table.get(HEAD_KEY)?.map(|row| {
        let (entries, hash) = row.value();
        LedgerHead { entries, hash: *hash }
    }))
}

fn corrupt(path: &Path, detail: impl Into<String>) -> LedgerError {
    LedgerError::Corrupt { path: path.into(), detail: detail.into() }
}

fn storage(
    path: &Path,
    action: &'static str,
    error: impl std::error::Error + Send + Sync + 'static,
) -> LedgerError {
    LedgerError::Storage { path: path.into(), action, source: Arc::new(error) }
}

fn from_redb(path: &Path, action: &'static str, error: impl Into<redb::Error>) -> LedgerError {
    use redb::Error as Redb;

    match error.into() {
        Redb::DatabaseAlreadyOpen => LedgerError::InUse { path: path.into() },
        Redb::Io(error)
            if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
        {
            corrupt(path, format!("it is no ledger file, or cut off ({error})"))
        }
        error @ (Redb::Corrupted(_)
        | Redb::UpgradeRequired(_)
        | Redb::RepairAborted
        | Redb::TableDoesNotExist(_)
        | Redb::TableTypeMismatch { .. }
        | Redb::TypeDefinitionChanged { .. }
        | Redb::TableIsMultimap(_)
        | Redb::TableIsNotMultimap(_)) => corrupt(path, error.to_string()),
        error => storage(path, action, error),
    }
}

#[cfg(unix)]
fn private_folder() -> DirBuilder {
    use std::os::unix::fs::DirBuilderExt;

    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder
}

#[cfg(not(unix))]
fn private_folder() -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    builder
}

fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Makes the new file's name durable; without this a crash could lose the file with its charges.
#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(not(unix))]
fn sync_folder(_folder: &Path) -> io::Result<()> {
    Ok(())
}
