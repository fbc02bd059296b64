//! A ledger's tables in one `redb` file, without another service.

use std::{
    cell::OnceCell,
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    path::Path,
    sync::Arc,
};

use redb::{
    Builder, Database, Durability, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTableMetadata,
    StorageBackend, TableDefinition, WriteTransaction,
};

use super::{
    LedgerError,
    rows::SCHEMA,
    store::{LedgerStore, Order, Row, RowKey, StoreView, Table, Write},
};

type Bytes = &'static [u8];

const fn definition(table: Table) -> TableDefinition<'static, Bytes, Bytes> {
    TableDefinition::new(table.name())
}

/// Where files of schema 1 have their number.
const OLD_SCHEMA: TableDefinition<'_, &str, u32> = TableDefinition::new("schema");

/// An open ledger file, which one process at a time may open.
pub struct RedbStore {
    database: Database,
    place: String,
}

impl RedbStore {
    /// Creates the file, and folders above it that are missing, readable by the owner only.
    ///
    /// # Errors
    /// [`LedgerError::AlreadyExists`] if the file exists, [`LedgerError::Storage`] if it cannot be
    /// written.
    pub fn create(path: &Path) -> Result<Self, LedgerError> {
        let place = path.display().to_string();
        let failure = |action| {
            let place = place.clone();
            move |error: io::Error| match error.kind() {
                io::ErrorKind::AlreadyExists => LedgerError::AlreadyExists { place },
                _ => storage(&place, action, error),
            }
        };
        // A bare file name has the empty path as its folder.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        private_folder().create(folder).map_err(failure("create its folder"))?;
        let file = private_file().open(path).map_err(failure("create its file"))?;
        let database = Builder::new()
            .create_file(file)
            .map_err(|error| from_redb(&place, "create its tables", error))?;
        let store = Self { database, place: place.clone() };
        store.create_tables()?;
        sync_folder(folder).map_err(failure("flush its folder"))?;
        Ok(store)
    }

    /// Opens a file that [`create`](Self::create) made.
    ///
    /// # Errors
    /// [`LedgerError::Missing`], [`LedgerError::InUse`], [`LedgerError::Schema`],
    /// [`LedgerError::Corrupt`] or [`LedgerError::Storage`].
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let place = path.display().to_string();
        // Asked first, because an open that fails tells less.
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(LedgerError::Missing { place });
            }
            Err(error) => return Err(storage(&place, "be opened", error)),
            Ok(metadata) if !metadata.is_file() => {
                return Err(LedgerError::corrupt(&place, "it is not a regular file"));
            }
            Ok(metadata) if metadata.len() == 0 => {
                return Err(LedgerError::corrupt(
                    &place,
                    "it is empty; if its creation was interrupted and this server never answered \
                     a request, delete it",
                ));
            }
            Ok(_) => {}
        }
        let database = Builder::new().open(path).map_err(|error| from_redb(&place, "be opened", error))?;
        let store = Self { database, place };
        store.refuse_old_schema()?;
        Ok(store)
    }

    /// Tables on another medium than a file, such as one that fails when a test says so; `place`
    /// names it in errors. Creates what is missing.
    ///
    /// # Errors
    /// [`LedgerError::Corrupt`] or [`LedgerError::Storage`].
    pub fn with_backend(backend: impl StorageBackend, place: &str) -> Result<Self, LedgerError> {
        let database = Builder::new()
            .create_with_backend(backend)
            .map_err(|error| from_redb(place, "be opened", error))?;
        let store = Self { database, place: place.to_owned() };
        store.create_tables()?;
        Ok(store)
    }

    fn create_tables(&self) -> Result<(), LedgerError> {
        self.durably("create its tables", |transaction| {
            for table in Table::ALL {
                transaction.open_table(definition(table))?;
            }
            Ok(())
        })
    }

    fn refuse_old_schema(&self) -> Result<(), LedgerError> {
        let transaction = self.database.begin_read().map_err(|error| self.failure("be read", error))?;
        let found = match transaction.open_table(OLD_SCHEMA) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(()),
            Err(error) => return Err(self.failure("be read", error)),
            Ok(table) => table.get("schema").map_err(|error| self.failure("be read", error))?,
        };
        let found = found.map_or(0, |value| value.value());
        Err(LedgerError::Schema { place: self.place.clone(), found, supported: SCHEMA })
    }

    /// Runs `change` in a transaction that is on the disk when this returns; an error undoes all.
    fn durably(
        &self,
        action: &'static str,
        change: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), LedgerError> {
        let run = || {
            let mut transaction = self.database.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            // Against a disk that reorders writes within a flush: the new root is written, and
            // flushed, before it is made current.
            transaction.set_two_phase_commit(true);
            // A restart after a crash does not walk the whole file.
            transaction.set_quick_repair(true);
            change(&transaction)?;
            transaction.commit()?;
            Ok(())
        };
        run().map_err(|error: redb::Error| self.failure(action, error))
    }

    /// What an error of the store means to the one who runs it.
    fn failure(&self, action: &'static str, error: impl Into<redb::Error>) -> LedgerError {
        from_redb(&self.place, action, error)
    }
}

impl LedgerStore for RedbStore {
    type View<'a> = RedbView<'a>;

    fn place(&self) -> &str {
        &self.place
    }

    fn view(&self) -> Result<RedbView<'_>, LedgerError> {
        let transaction = self.database.begin_read().map_err(|error| self.failure("be read", error))?;
        Ok(RedbView { store: self, transaction, tables: Default::default() })
    }

    fn apply(&self, writes: &[Write]) -> Result<(), LedgerError> {
        self.durably("be written", |transaction| {
            for writes in writes.chunk_by(|one, next| one.table == next.table) {
                let mut table = transaction.open_table(definition(writes[0].table))?;
                for Write { key, value, .. } in writes {
                    match value {
                        Some(value) => drop(table.insert(key.as_slice(), value.as_slice())?),
                        None => drop(table.remove(key.as_slice())?),
                    }
                }
            }
            Ok(())
        })
    }
}

/// A read transaction with the tables that were asked for so far.
pub struct RedbView<'a> {
    store: &'a RedbStore,
    transaction: ReadTransaction,
    tables: [OnceCell<ReadOnlyTable<Bytes, Bytes>>; Table::ALL.len()],
}

impl RedbView<'_> {
    fn table(&self, table: Table) -> Result<&ReadOnlyTable<Bytes, Bytes>, LedgerError> {
        let cell = &self.tables[table as usize];
        if let Some(open) = cell.get() {
            return Ok(open);
        }
        let open = self
            .transaction
            .open_table(definition(table))
            .map_err(|error| self.store.failure("be read", error))?;
        Ok(cell.get_or_init(|| open))
    }
}

impl StoreView for RedbView<'_> {
    fn get(&self, keys: &[RowKey]) -> Result<Vec<Option<Vec<u8>>>, LedgerError> {
        keys.iter()
            .map(|(table, key)| {
                let value = self.table(*table)?.get(key.as_slice());
                let value = value.map_err(|error| self.store.failure("be read", error))?;
                Ok(value.map(|value| value.value().to_vec()))
            })
            .collect()
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        until: Option<&[u8]>,
        order: Order,
        at_most: usize,
    ) -> Result<Vec<Row>, LedgerError> {
        let failure = |error| self.store.failure("be read", error);
        let table = self.table(table)?;
        if until.is_some_and(|until| until <= from) {
            return Ok(Vec::new());
        }
        let mut range = match until {
            Some(until) => table.range(from..until),
            None => table.range(from..),
        }
        .map_err(failure)?;
        let mut rows = Vec::new();
        while rows.len() < at_most {
            let row = match order {
                Order::Ascending => range.next(),
                Order::Descending => range.next_back(),
            };
            let Some(row) = row else { break };
            let (key, value) = row.map_err(failure)?;
            rows.push((key.value().to_vec(), value.value().to_vec()));
        }
        Ok(rows)
    }

    fn count(&self, table: Table) -> Result<u64, LedgerError> {
        self.table(table)?.len().map_err(|error| self.store.failure("be read", error))
    }
}

fn storage(
    place: &str,
    action: &'static str,
    error: impl std::error::Error + Send + Sync + 'static,
) -> LedgerError {
    LedgerError::Storage { place: place.to_owned(), action, source: Arc::new(error) }
}

fn from_redb(place: &str, action: &'static str, error: impl Into<redb::Error>) -> LedgerError {
    use redb::Error as Redb;

    match error.into() {
        Redb::DatabaseAlreadyOpen => LedgerError::InUse { place: place.to_owned() },
        Redb::Io(error)
            if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
        {
            LedgerError::corrupt(place, format!("it is no ledger file, or cut off ({error})"))
        }
        Redb::TableDoesNotExist(table) => LedgerError::corrupt(
            place,
            format!(
                "it has no table {table}, so it is the store of another program or its creation was interrupted"
            ),
        ),
        error @ (Redb::Corrupted(_)
        | Redb::UpgradeRequired(_)
        | Redb::RepairAborted
        | Redb::TableTypeMismatch { .. }
        | Redb::TypeDefinitionChanged { .. }
        | Redb::TableIsMultimap(_)
        | Redb::TableIsNotMultimap(_)) => LedgerError::corrupt(place, error.to_string()),
        error => storage(place, action, error),
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
