//! What the ledger needs of a store: tables of byte strings, consistent views, and changes that are
//! on disk, all or none, when the call returns.
//!
//! All rules are above it, in [`StoredLedger`](super::StoredLedger). A store neither knows what a
//! row means nor decides anything.

use zeroize::Zeroizing;

use super::LedgerError;

/// A table. Rows are sorted by the bytes of their keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Schema number, and end of the log.
    Head,
    /// Hash and bytes of every entry by its number.
    Log,
    /// Spending by task and epoch.
    TaskTotals,
    /// Spending by task, epoch and client.
    ClientTotals,
    /// Spending by task, epoch and owner whose models voted.
    OwnerTotals,
    /// Spending by client in all tasks.
    AllTasks,
    /// Spending of a task epoch as it was at points in time.
    Pace,
    /// Requests that were committed.
    Requests,
    /// Shares of results, as long as they are kept.
    Results,
    /// Names of the owners that entries of the log name by a hash.
    OwnerSets,
    /// Ends of the peers' logs.
    Peers,
    /// Tasks that are stopped.
    Stops,
    /// Attestations of task epochs, and where their spending went on.
    Epochs,
}

impl Table {
    /// All tables.
    pub const ALL: [Self; 13] = [
        Self::Head,
        Self::Log,
        Self::TaskTotals,
        Self::ClientTotals,
        Self::OwnerTotals,
        Self::AllTasks,
        Self::Pace,
        Self::Requests,
        Self::Results,
        Self::OwnerSets,
        Self::Peers,
        Self::Stops,
        Self::Epochs,
    ];

    /// The table's name in a store: lower case letters and underscores.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Log => "log",
            Self::TaskTotals => "task_totals",
            Self::ClientTotals => "client_totals",
            Self::OwnerTotals => "owner_totals",
            Self::AllTasks => "all_tasks",
            Self::Pace => "pace",
            Self::Requests => "requests",
            Self::Results => "results",
            Self::OwnerSets => "owner_sets",
            Self::Peers => "peers",
            Self::Stops => "stops",
            Self::Epochs => "epochs",
        }
    }
}

/// A table and a key in it.
pub type RowKey = (Table, Vec<u8>);

/// A row's key and its value.
pub type Row = (Vec<u8>, Vec<u8>);

/// A change of one row.
pub struct Write {
    /// Table of the row.
    pub table: Table,
    /// The row's key.
    pub key: Vec<u8>,
    /// The new value, which may be secret; `None` deletes the row.
    pub value: Option<Zeroizing<Vec<u8>>>,
}

/// Which end of a range is read first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Smallest key first.
    Ascending,
    /// Greatest key first.
    Descending,
}

/// The store as it was at one moment, whatever is written meanwhile.
pub trait StoreView {
    /// The values of `keys`, in their order; `None` for those that are not there. One call is one
    /// round trip to a store elsewhere, so callers ask for everything that they need at once.
    ///
    /// # Errors
    /// A storage error.
    fn get(&self, keys: &[RowKey]) -> Result<Vec<Option<Vec<u8>>>, LedgerError>;

    /// At most `at_most` rows whose keys are at least `from` and less than `until` (`None`: to the
    /// end of the table).
    ///
    /// # Errors
    /// A storage error.
    fn scan(
        &self,
        table: Table,
        from: &[u8],
        until: Option<&[u8]>,
        order: Order,
        at_most: usize,
    ) -> Result<Vec<Row>, LedgerError>;

    /// Number of rows of a table.
    ///
    /// # Errors
    /// A storage error.
    fn count(&self, table: Table) -> Result<u64, LedgerError>;
}

/// Where a ledger is kept.
///
/// A store is open in one process at a time. Another process that opens it meanwhile gets
/// [`LedgerError::InUse`]; if it took the store over after all, [`apply`](Self::apply) must fail
/// here: reservations are in memory, so two processes on one store could spend a budget twice.
pub trait LedgerStore: Send + Sync + 'static {
    /// A view of this store.
    type View<'a>: StoreView
    where
        Self: 'a;

    /// Where the store is, as people are told in errors. No password may be in it.
    fn place(&self) -> &str;

    /// The store as of now: everything whose [`apply`](Self::apply) has returned is in it.
    ///
    /// # Errors
    /// A storage error.
    fn view(&self) -> Result<Self::View<'_>, LedgerError>;

    /// Makes all of `writes`, or none. When it returns without an error they are on the disk, and
    /// survive a loss of power. After an error they may be there or not. The keys are sorted and
    /// different; calls never overlap.
    ///
    /// # Errors
    /// A storage error.
    fn apply(&self, writes: &[Write]) -> Result<(), LedgerError>;
}
