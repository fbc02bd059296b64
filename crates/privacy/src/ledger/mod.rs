//! The budget ledger: what was spent, and the answers that it bought.
//!
//! # Life of a request
//! 1. [`lookup`](Ledger::lookup): a request that was answered gets the same bytes again, free of
//!    charge; the same id with other content is refused.
//! 2. [`reserve`](Ledger::reserve): its price is set aside, so that requests that run at the same
//!    time cannot spend the same budget. Reservations live in memory.
//! 3. The servers compute the noised result.
//! 4. [`commit`](Ledger::commit): the charge and this server's share of the result are on disk when
//!    the call returns. Only then may the share leave the server. A price that is paid in parts is
//!    charged by [`charge_part`](Ledger::charge_part) before what each part pays for is opened; what
//!    the end does not charge is voided, and the log says so.
//! 5. [`mark_released`](Ledger::mark_released): after all three servers have committed. It may come
//!    after the share was sent: a repeat in between finds the same bytes.
//!
//! # Why spending is never below the truth
//! A result share leaves only after step 4, and a commit is one transaction that is flushed before
//! the call returns. A crash before it loses reservations, and nothing has left; a crash after it
//! finds the charge on disk. A charge is never taken back: when a request fails between commit and
//! release, its repetition is charged again, because another server may already have shown its
//! share of the first result. Over-charging a failure is the safe direction.
//!
//! # What is stored
//! A hash-chained log of everything that changed what is known about spending ([`Event`]), what
//! follows from it (totals of task epochs, clients and owners, and their course over time), and the
//! result shares. All rules are in [`StoredLedger`], over any [`LedgerStore`]. A result share is
//! secret: two servers' stores together hold the noised answers (never the exact ones). Shares are
//! kept so that a repeated request gets the same bytes; [`prune_results`](Ledger::prune_results)
//! ends that after a time of the operator's choice. Deleted bytes stay in free pages of the file
//! until they are written over, so keep the file on an encrypted disk; the store's page cache in
//! memory is not wiped either.

mod attestation;
mod calls;
mod caps;
mod charge;
mod draft;
mod epochs;
mod error;
mod event;
mod group;
mod hold;
mod operation;
mod redb_store;
mod request;
mod rows;
mod store;
mod stored;
mod verify;

use std::collections::BTreeMap;

use crate::{parameter::NanoRho, policy::SpendingWindow};

pub use self::{
    attestation::{Attestation, Basis, Stop},
    charge::{Charge, Participant, Settlement},
    epochs::{EpochError, EpochRecord, beginning},
    error::LedgerError,
    event::{Committed, Event, LedgerEntry, Raised},
    hold::Reservation,
    redb_store::RedbStore,
    request::{ContentDigest, Lookup, RequestId, RequestKey, ResultBytes},
    store::{LedgerStore, Order, Row, RowKey, StoreView, Table, Write},
    stored::{RedbLedger, StoredLedger},
};

/// End of the log: how many entries it has, and the hash that covers all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerHead {
    /// Entries in the log.
    pub entries: u64,
    /// Hash of the last entry and, through it, of all before; zero for an empty log.
    pub hash: [u8; 32],
}

impl LedgerHead {
    /// End of a log without entries.
    pub const EMPTY: Self = Self { entries: 0, hash: [0; 32] };
}

/// End of another server's log, as that server told it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerHead {
    /// The other server.
    pub peer: u8,
    /// End of its log.
    pub head: LedgerHead,
}

/// A sum over charges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Total {
    /// Privacy loss.
    pub rho: NanoRho,
    /// Charges that ended with a result; a request that was charged twice counts twice.
    pub requests: u64,
    /// Released rows.
    pub rows: u64,
}

impl Total {
    fn checked_add(self, other: Self) -> Option<Self> {
        Some(Self {
            rho: self.rho.checked_add(other.rho)?,
            requests: self.requests.checked_add(other.requests)?,
            rows: self.rows.checked_add(other.rows)?,
        })
    }

    /// What `self` lacks of `other`, number by number.
    fn lack(self, other: Self) -> Self {
        Self {
            rho: other.rho.saturating_sub(self.rho),
            requests: other.requests.saturating_sub(self.requests),
            rows: other.rows.saturating_sub(self.rows),
        }
    }
}

/// What was committed for one task epoch. Reservations are not in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Spending {
    /// Over all clients.
    pub total: Total,
    /// By client identity.
    pub by_client: BTreeMap<String, Total>,
    /// By owner whose models voted: each charge counts in full for each of them.
    pub by_owner: BTreeMap<String, Total>,
}

/// What one client has committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClientSpending {
    /// In the task epoch asked for.
    pub task_epoch: Total,
    /// In all epochs of all tasks.
    pub all_tasks: Total,
}

/// When a charge fits into a spending window, if nothing else is charged meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fits {
    /// At once.
    Now,
    /// At this time, in milliseconds since 1970-01-01 UTC.
    At(u64),
    /// It is more than the whole window.
    Never,
}

/// What a spending window holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowState {
    /// Committed within it.
    pub spent: NanoRho,
    /// When the charge that was asked about fits. Counts running requests as spent.
    pub fits: Fits,
}

/// A server's own, durable record of spending.
///
/// Every method may wait for the disk: call from a thread that may block. Changes of threads that
/// wait at the same time share one flush.
pub trait Ledger: Send + Sync {
    /// What is known about the request, of which `digest` covers the content.
    ///
    /// # Errors
    /// [`LedgerError::Conflict`] when the id was used for other content,
    /// [`LedgerError::ResultExpired`] when its result was pruned, or a storage error.
    fn lookup(&self, key: &RequestKey, digest: &ContentDigest) -> Result<Lookup, LedgerError>;

    /// Sets the price of each charge aside, in order; one result per charge.
    ///
    /// All caps are checked together and count what is committed and what is set aside. A request
    /// that is already reserved, or was released, is refused; one that was committed and not
    /// released may be reserved again.
    ///
    /// # Errors
    /// Per charge: [`LedgerError::Refused`], [`LedgerError::InProgress`],
    /// [`LedgerError::AlreadyReleased`], [`LedgerError::Conflict`],
    /// [`LedgerError::ResultExpired`], [`LedgerError::Stopped`], [`LedgerError::EpochClosed`], or a
    /// storage error.
    fn reserve(&self, charges: &[Charge]) -> Vec<Result<Reservation, LedgerError>>;

    /// Charges a part of each reservation, durably, before something is opened that the part pays
    /// for; the rest stays set aside.
    ///
    /// # Errors
    /// [`LedgerError::InvalidCharge`] when a part is greater than what is left of its reservation,
    /// and else as [`commit`](Self::commit). After an error nothing of the batch is known to be
    /// charged, and nothing may be opened.
    fn charge_part(&self, parts: &[(&Reservation, NanoRho)]) -> Result<LedgerHead, LedgerError>;

    /// Ends reservations with their results, all in one durable transaction: charges, voids what is
    /// left, and keeps the result share of each.
    ///
    /// Committing a request again replaces its stored result and charges again. After an error
    /// nothing may leave the server; whether the charge counts then depends on what the disk got.
    ///
    /// # Errors
    /// [`LedgerError::ForeignReservation`] for a reservation of another ledger,
    /// [`LedgerError::InvalidCharge`] for a charge above what is left,
    /// [`LedgerError::Stopped`] when the task was stopped meanwhile, [`LedgerError::EpochClosed`],
    /// [`LedgerError::Overflow`] when a total exceeds 64 bits, or a storage error.
    fn commit(&self, batch: Vec<Settlement>) -> Result<LedgerHead, LedgerError>;

    /// Notes, durably, that the stored results of `keys` are final, because all servers have
    /// committed, and the ends of the peers' logs as they were told before the release.
    ///
    /// # Errors
    /// [`LedgerError::UnknownRequest`] when one was never committed (none is marked then), or a
    /// storage error.
    fn mark_released(&self, keys: &[RequestKey], peers: &[PeerHead]) -> Result<(), LedgerError>;

    /// What was committed for a task epoch; zero for one that was never charged.
    ///
    /// # Errors
    /// A storage error.
    fn spent(&self, task: &str, epoch: u64) -> Result<Spending, LedgerError>;

    /// The total alone, without a walk over clients and owners.
    ///
    /// # Errors
    /// A storage error.
    fn total(&self, task: &str, epoch: u64) -> Result<Total, LedgerError>;

    /// What one client has spent, on a task epoch and on everything.
    ///
    /// # Errors
    /// A storage error.
    fn spent_by_client(&self, task: &str, epoch: u64, client: &str) -> Result<ClientSpending, LedgerError>;

    /// What a task epoch has spent in the last `seconds` seconds.
    ///
    /// # Errors
    /// A storage error.
    fn spent_in_window(&self, task: &str, epoch: u64, seconds: u64) -> Result<NanoRho, LedgerError>;

    /// What the spending window of a task epoch holds, and when a charge of `needed` fits into it.
    ///
    /// # Errors
    /// A storage error.
    fn window(
        &self,
        task: &str,
        epoch: u64,
        window: SpendingWindow,
        needed: NanoRho,
    ) -> Result<WindowState, LedgerError>;

    /// The log from entry `first` on, oldest first, and at most `at_most` of them; empty at its end.
    /// For those who follow spending over time: they ask again from the last entry that they saw.
    ///
    /// # Errors
    /// [`LedgerError::Corrupt`] for an entry that cannot be read, or a storage error.
    fn entries(&self, first: u64, at_most: usize) -> Result<Vec<LedgerEntry>, LedgerError>;

    /// End of the log. Servers exchange heads so that a store restored from a backup is noticed.
    ///
    /// # Errors
    /// A storage error.
    fn head(&self) -> Result<LedgerHead, LedgerError>;

    /// Hash of the log's first `entries` entries; `None` if it has fewer. A peer that remembers a
    /// head of this log asks for it: another hash, or none, means that the log went back in time.
    ///
    /// # Errors
    /// A storage error.
    fn hash_at(&self, entries: u64) -> Result<Option<[u8; 32]>, LedgerError>;

    /// The last end of a peer's log that [`mark_released`](Self::mark_released) noted.
    ///
    /// # Errors
    /// A storage error.
    fn peer_head(&self, peer: u8) -> Result<Option<LedgerHead>, LedgerError>;

    /// "The larger total wins": raises every total of a task epoch that is smaller than in `theirs`,
    /// which `peer` told, and logs by how much. What is added counts as spent now in spending windows.
    /// Returns whether there was something to raise.
    ///
    /// # Errors
    /// [`LedgerError::Invalid`] for names that are empty or too long or sums beyond 64 bits, or a
    /// storage error.
    fn raise(&self, task: &str, epoch: u64, theirs: &Spending, peer: u8) -> Result<bool, LedgerError>;

    /// Stops a task, durably: nothing of it is reserved or charged until it is resumed. A task that
    /// is stopped keeps its first reason.
    ///
    /// # Errors
    /// [`LedgerError::Invalid`] for a name that is empty or too long, or a storage error.
    fn stop(&self, task: &str, reason: &str) -> Result<(), LedgerError>;

    /// Why and since when a task is stopped; `None` if it is not.
    ///
    /// # Errors
    /// A storage error.
    fn stopped(&self, task: &str) -> Result<Option<Stop>, LedgerError>;

    /// Lets a stopped task go on. Nothing happens if it is not stopped.
    ///
    /// # Errors
    /// [`LedgerError::Invalid`] without an operator's name or a reason, or a storage error.
    fn resume(&self, task: &str, operator: &str, reason: &str) -> Result<(), LedgerError>;

    /// Notes who answers for the first total of a task epoch. [`Basis::CarriedOver`] starts the epoch
    /// with the totals of an older one and closes that one. The same attestation again changes
    /// nothing.
    ///
    /// # Errors
    /// [`LedgerError::Invalid`] when the epoch has another attestation or was charged already, when
    /// the older epoch is not older or was carried over before, or for an empty or too long name; or
    /// a storage error.
    fn attest(&self, attestation: Attestation) -> Result<(), LedgerError>;

    /// All epochs of a task that were charged or attested.
    ///
    /// # Errors
    /// A storage error.
    fn epochs(&self, task: &str) -> Result<BTreeMap<u64, EpochRecord>, LedgerError>;

    /// The attestation of a task epoch.
    ///
    /// # Errors
    /// A storage error.
    fn attestation(&self, task: &str, epoch: u64) -> Result<Option<Attestation>, LedgerError>;

    /// Reads the whole log, recomputes its hashes and all totals, and compares.
    ///
    /// The hashes are not keyed: someone who can write the store can also make a consistent one, and
    /// is noticed by the heads that the other servers remember.
    ///
    /// # Errors
    /// [`LedgerError::Corrupt`] naming the first thing that does not fit, or a storage error.
    fn verify(&self) -> Result<LedgerHead, LedgerError>;

    /// Deletes the results of requests committed before `older_than_ms` (milliseconds since
    /// 1970-01-01 UTC) and returns how many. Charges and ids stay: an id whose result was deleted
    /// cannot be used again.
    ///
    /// # Errors
    /// A storage error.
    fn prune_results(&self, older_than_ms: u64) -> Result<u64, LedgerError>;
}

#[cfg(test)]
mod tests;
