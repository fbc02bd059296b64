//! The rows of a ledger in a database.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::{Duration, Instant},
};

use concilium_privacy::ledger::{LedgerError, LedgerStore, Order, RowKey, StoreView, Table, Write};
use tokio::runtime::Runtime;
use tokio_postgres::Client;

use crate::{
    PostgresError, PostgresOptions,
    connect::{Session, check_settings, make_tables},
};

/// How long a statement may take before the session is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a new session waits for the lock that its lost predecessor may still hold.
const LOCK_PATIENCE: Duration = Duration::from_secs(20);

/// Pause between attempts to get the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// Name of the lock, of which a database has one.
const LOCK: &str = "hashtextextended('concilium ledger', 0)";

/// Sessions for reading that are kept open.
const IDLE_READERS: usize = 4;

/// A ledger's tables in the schema `concilium_ledger` of a PostgreSQL database. One process has it open
/// at a time; see the crate's head.
pub struct PostgresStore {
    options: Arc<PostgresOptions>,
    /// Runs the connections on a thread of its own, so that every method may be called from anywhere.
    runtime: Option<Runtime>,
    generation: i64,
    writer: Mutex<Writer>,
    readers: Mutex<Vec<Arc<Session>>>,
}

/// The session that writes.
struct Writer {
    /// It holds the lock; `None` after it was lost.
    session: Option<Arc<Session>>,
    /// When and how the last attempt to make it anew failed.
    failed: Option<(Instant, LedgerError)>,
}

impl PostgresStore {
    /// Connects, takes the lock, and makes the tables if they are missing.
    ///
    /// # Errors
    /// [`LedgerError::InUse`] while another process holds the lock: it can be tried again.
    /// [`LedgerError::Storage`] with a [`PostgresError`] as its source.
    pub fn open(options: PostgresOptions) -> Result<Self, LedgerError> {
        let place = options.place().to_owned();
        let failed = |error: PostgresError| storage(&place, "be opened", error);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("ledger-database")
            .enable_all()
            .build()
            .map_err(|error| failed(error.into()))?;
        let options = Arc::new(options);
        let mut store = Self {
            options: Arc::clone(&options),
            runtime: Some(runtime),
            generation: 0,
            writer: Mutex::new(Writer { session: None, failed: None }),
            readers: Mutex::new(Vec::new()),
        };
        let opened = store.wait(async move {
            let client = Session::connect(&options).await?;
            check_settings(&client).await?;
            if !try_lock(&client).await? {
                return Ok(None);
            }
            make_tables(&client).await?;
            let generation = client
                .query_one(
                    "UPDATE concilium_ledger.holder SET generation = generation + 1 RETURNING generation",
                    &[],
                )
                .await?
                .get(0);
            Ok(Some((Session::prepare(client).await?, generation)))
        });
        let (session, generation) =
            opened.map_err(failed)?.ok_or_else(|| LedgerError::InUse { place: place.clone() })?;
        store.generation = generation;
        store.lock_writer().session = Some(Arc::new(session));
        Ok(store)
    }

    /// Runs `work` on the connections' thread and waits for it.
    fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, PostgresError>> + Send + 'static,
    ) -> Result<T, PostgresError> {
        let (done, outcome) = mpsc::channel();
        let runtime = self.runtime.as_ref().expect("the runtime is taken when the store is dropped");
        runtime.spawn(async move {
            let timed = tokio::time::timeout(PATIENCE, work).await;
            let _ = done.send(timed.unwrap_or(Err(PostgresError::TimedOut(PATIENCE.as_secs()))));
        });
        outcome.recv().unwrap_or(Err(PostgresError::TimedOut(0)))
    }

    fn lock_writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session that holds the lock, made anew if it was lost and nobody else has held the lock since.
    fn writer(&self) -> Result<Arc<Session>, LedgerError> {
        let asked = Instant::now();
        let mut writer = self.lock_writer();
        if let Some(session) = writer.session.as_ref().filter(|session| !session.client.is_closed()) {
            return Ok(Arc::clone(session));
        }
        // An attempt that failed meanwhile was made for all who waited for it.
        if let Some((_, error)) = writer.failed.as_ref().filter(|(ended, _)| *ended > asked) {
            return Err(error.clone());
        }
        writer.session = None;
        let renewed = self.renew_writer();
        match &renewed {
            Ok(session) => writer.session = Some(Arc::clone(session)),
            Err(error) => writer.failed = Some((Instant::now(), error.clone())),
        }
        renewed
    }

    fn renew_writer(&self) -> Result<Arc<Session>, LedgerError> {
        tracing::warn!(ledger = self.options.place(), "the session with the ledger's database was lost");
        let (options, generation) = (Arc::clone(&self.options), self.generation);
        let opened = self.wait(async move {
            let client = Session::connect(&options).await?;
            check_settings(&client).await?;
            let begin = Instant::now();
            // Looked at before as well: who waits for another host's lock waits in vain.
            while holds(&client, generation).await? {
                if try_lock(&client).await? {
                    let still = holds(&client, generation).await?;
                    return if still { Session::prepare(client).await.map(Some) } else { Ok(None) };
                }
                if begin.elapsed() > LOCK_PATIENCE {
                    break;
                }
                tokio::time::sleep(LOCK_PAUSE).await;
            }
            Ok(None)
        });
        let session = opened.map_err(|error| storage(self.place(), "be written", error))?;
        // Somebody else has it, or had it: what was reserved here may have been spent there.
        let session = session.ok_or_else(|| LedgerError::InUse { place: self.place().to_owned() })?;
        tracing::info!(ledger = self.options.place(), "connected to the ledger's database again");
        Ok(Arc::new(session))
    }

    /// A session in a new transaction for reading.
    fn reader(&self) -> Result<Arc<Session>, PostgresError> {
        loop {
            let idle = self.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(session) = idle else { break };
            // One that has died while nobody used it is no reason to fail.
            if let Ok(session) = self.wait(begin(session)) {
                return Ok(session);
            }
        }
        let options = Arc::clone(&self.options);
        self.wait(async move {
            let session = Session::prepare(Session::connect(&options).await?).await?;
            begin(Arc::new(session)).await
        })
    }
}

async fn begin(session: Arc<Session>) -> Result<Arc<Session>, PostgresError> {
    session.client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    Ok(session)
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        // Ends the sessions, and with the writer's the lock, without waiting: a drop may happen within
        // another runtime, which must not be blocked.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl LedgerStore for PostgresStore {
    type View<'a> = PostgresView<'a>;

    fn place(&self) -> &str {
        self.options.place()
    }

    fn view(&self) -> Result<PostgresView<'_>, LedgerError> {
        // A write that failed may still be under way: the database does not notice at once that its
        // session is lost, and may make the change after all. It keeps the lock until then. A state
        // that was read before would lack the change, and what is made of it would undo the change.
        self.writer()?;
        let session = self.reader().map_err(|error| storage(self.place(), "be read", error))?;
        Ok(PostgresView { store: self, session })
    }

    fn apply(&self, writes: &[Write]) -> Result<(), LedgerError> {
        let session = self.writer()?;
        let (mut gone, mut put) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new(), Vec::new()));
        for Write { table, key, value } in writes {
            match value {
                Some(value) => {
                    put.0.push(table.name());
                    put.1.push(key.clone());
                    put.2.push(value.clone());
                }
                None => {
                    gone.0.push(table.name());
                    gone.1.push(key.clone());
                }
            }
        }
        let used = Arc::clone(&session);
        let written = self.wait(async move {
            let values: Vec<&[u8]> = put.2.iter().map(|value| value.as_slice()).collect();
            used.client.execute(&used.put, &[&gone.0, &gone.1, &put.0, &put.1, &values]).await?;
            Ok(())
        });
        written.map_err(|error| {
            // Whether it was written is not known, and a session that failed is not used again.
            self.lock_writer().session = None;
            storage(self.place(), "be written", error)
        })
    }
}

/// A transaction that reads one state of the database.
pub struct PostgresView<'a> {
    store: &'a PostgresStore,
    session: Arc<Session>,
}

impl PostgresView<'_> {
    fn read<T: Send + 'static, F>(&self, work: impl FnOnce(Arc<Session>) -> F) -> Result<T, LedgerError>
    where
        F: Future<Output = Result<T, PostgresError>> + Send + 'static,
    {
        let read = self.store.wait(work(Arc::clone(&self.session)));
        read.map_err(|error| storage(self.store.place(), "be read", error))
    }
}

impl StoreView for PostgresView<'_> {
    fn get(&self, keys: &[RowKey]) -> Result<Vec<Option<Vec<u8>>>, LedgerError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let names: Vec<_> = keys.iter().map(|(table, _)| table.name()).collect();
        let wanted: Vec<_> = keys.iter().map(|(_, key)| key.clone()).collect();
        let rows =
            self.read(
                |session| async move { Ok(session.client.query(&session.get, &[&names, &wanted]).await?) },
            )?;
        let mut values = vec![None; keys.len()];
        for row in rows {
            let number: i64 = row.get(0);
            // Numbers of `WITH ORDINALITY` begin at one.
            let place = usize::try_from(number - 1).ok().and_then(|place| values.get_mut(place));
            *place.expect("the database numbers the keys that it was given") = Some(row.get(1));
        }
        Ok(values)
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        until: Option<&[u8]>,
        order: Order,
        at_most: usize,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, LedgerError> {
        let (from, until) = (from.to_vec(), until.map(<[u8]>::to_vec));
        let at_most = i64::try_from(at_most).unwrap_or(i64::MAX);
        let rows = self.read(|session| async move {
            let statement = match order {
                Order::Ascending => &session.ascending,
                Order::Descending => &session.descending,
            };
            Ok(session.client.query(statement, &[&table.name(), &from, &until, &at_most]).await?)
        })?;
        Ok(rows.into_iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    fn count(&self, table: Table) -> Result<u64, LedgerError> {
        let count: i64 = self.read(|session| async move {
            Ok(session.client.query_one(&session.count, &[&table.name()]).await?.get(0))
        })?;
        Ok(u64::try_from(count).unwrap_or_default())
    }
}

impl Drop for PostgresView<'_> {
    fn drop(&mut self) {
        let used = Arc::clone(&self.session);
        let ended = self.store.wait(async move { Ok(used.client.batch_execute("ROLLBACK").await?) });
        let mut readers = self.store.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.is_ok() && readers.len() < IDLE_READERS {
            readers.push(Arc::clone(&self.session));
        }
    }
}

/// Whether nobody has held the lock since the holder of this generation.
async fn holds(client: &Client, generation: i64) -> Result<bool, PostgresError> {
    let found = client.query_one("SELECT generation FROM concilium_ledger.holder", &[]).await?;
    Ok(found.get::<_, i64>(0) == generation)
}

async fn try_lock(client: &Client) -> Result<bool, PostgresError> {
    Ok(client.query_one(&format!("SELECT pg_try_advisory_lock({LOCK})"), &[]).await?.get(0))
}

fn storage(place: &str, action: &'static str, error: PostgresError) -> LedgerError {
    LedgerError::Storage { place: place.to_owned(), action, source: Arc::new(error) }
}
