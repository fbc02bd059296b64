//! The budget ledger: what was spent, and the answers that it bought.
//!
//! # Life of a request
//! 1. [`lookup`](Ledger::lookup): a request that was answered gets the same bytes again, free of
//!    charge; the same id with other content is refused.
//! 2. [`reserve`](Ledger::reserve): its price is set aside, so that requests that run at the same
//!    time cannot spend the same budget. Reservations live in memory.
//! 3. The servers compute the noised result.
//! 4. [`commit`](Ledger::commit): the charge and this server's share of the result are on disk when
//!    the call returns. Only then may the share leave the server.
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
//! Totals, a hash-chained log with one entry per charge, and the result shares. A result share is
//! secret: two servers' stores together hold the noised answers (never the exact ones). Shares are
//! kept so that a repeated request gets the same bytes; [`prune_results`](Ledger::prune_results)
//! ends that after a time of the operator's choice. Deleted bytes stay in free pages of the file
//! until they are written over, so keep the file on an encrypted disk; the store's page cache in
//! memory is not wiped either.

mod entry;
mod error;
mod hold;
mod redb_ledger;
mod store;
mod verify;

use std::{collections::BTreeMap, fmt};

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::{
    mechanism::{Mechanism, Release},
    parameter::NanoRho,
    policy::{Cap, MAX_NAME_BYTES, Refusal, TaskPolicy},
};

pub use self::{error::LedgerError, hold::Reservation, redb_ledger::RedbLedger};

/// Identity that a client gives to a request. The client repeats it to get the same answer again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub [u8; 16]);

impl fmt::Display for RequestId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

/// Hash of everything that a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentDigest(pub [u8; 32]);

/// What a request is stored under. Clients cannot reach each other's requests, because the client's
/// authenticated identity is part of the key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestKey {
    /// Name of the task.
    pub task: String,
    /// Epoch of the task's models.
    pub epoch: u64,
    /// Identity of the client, from its certificate.
    pub client: String,
    /// The client's id of the request.
    pub request: RequestId,
}

impl fmt::Display for RequestKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "request {} of client {} to task {} epoch {}",
            self.request, self.client, self.task, self.epoch
        )
    }
}

/// A server's share of a result, as stored. Secret: neither `Debug` nor `Clone` nor a comparison that
/// could tell by its time, and wiped when dropped.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct ResultBytes(Vec<u8>);

impl ResultBytes {
    /// The bytes to be sent to the client.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for ResultBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

/// Price of one request, with everything that the log keeps about it.
#[derive(Debug, Clone)]
pub struct Charge {
    key: RequestKey,
    digest: ContentDigest,
    policy_digest: [u8; 32],
    release: Release,
    mechanism: Mechanism,
    bins: u32,
    rows: u32,
    row_cost: NanoRho,
    cost: NanoRho,
    cap_total: NanoRho,
    cap_per_client: Option<NanoRho>,
}

impl Charge {
    /// The price of `rows` released rows under `policy`.
    ///
    /// # Errors
    /// [`LedgerError::InvalidCharge`] when the request names another task or epoch than the policy,
    /// has no rows, or a name that is empty or too long; also when the price exceeds 64 bits or the
    /// policy's mechanism is not allowed.
    pub fn new(
        key: RequestKey,
        digest: ContentDigest,
        rows: u32,
        policy: &TaskPolicy,
    ) -> Result<Self, LedgerError> {
        let invalid = |reason: String| LedgerError::InvalidCharge { key: key.clone(), reason };
        if key.task != policy.task || key.epoch != policy.epoch {
            return Err(invalid(format!(
                "the policy is that of task {} epoch {}",
                policy.task, policy.epoch
            )));
        }
        for (what, name) in [("task", &key.task), ("client", &key.client)] {
            if !(1..=MAX_NAME_BYTES).contains(&name.len()) {
                return Err(invalid(format!(
                    "the {what} name has {} bytes; 1 to {MAX_NAME_BYTES} are allowed",
                    name.len()
                )));
            }
        }
        if rows == 0 {
            return Err(invalid("it has no rows; ask for at least one".to_owned()));
        }
        let row_cost = policy.row_cost().map_err(|error| invalid(error.to_string()))?;
        let cost = row_cost
            .checked_mul(u64::from(rows))
            .ok_or_else(|| invalid("its price exceeds 64 bits; ask for fewer rows".to_owned()))?;
        let bins =
            u32::try_from(policy.bins).expect("a policy whose row has a price has at most MAX_BINS bins");
        Ok(Self {
            digest,
            policy_digest: policy.digest(),
            release: policy.release,
            mechanism: policy.mechanism,
            bins,
            rows,
            row_cost,
            cost,
            cap_total: policy.cap_total,
            cap_per_client: policy.cap_per_client,
            key,
        })
    }

    /// The request that is charged.
    pub fn key(&self) -> &RequestKey {
        &self.key
    }

    /// The request's price.
    pub fn cost(&self) -> NanoRho {
        self.cost
    }

    /// Rows that the price pays for.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// Refuses the charge if it does not fit under every cap; names the cap that leaves the least.
    fn check_caps(&self, spent_total: NanoRho, spent_by_client: NanoRho) -> Result<(), Refusal> {
        let total = (Cap::TaskEpoch, self.cap_total.saturating_sub(spent_total));
        let client = self.cap_per_client.map(|cap| (Cap::Client, cap.saturating_sub(spent_by_client)));
        let (cap, left) = match client {
            Some(client) if client.1 < total.1 => client,
            _ => total,
        };
        if self.cost <= left {
            return Ok(());
        }
        Err(Refusal {
            cap,
            task: self.key.task.clone(),
            epoch: self.key.epoch,
            client: self.key.client.clone(),
            needed: self.cost,
            left,
        })
    }
}

/// What the ledger knows about a request.
pub enum Lookup {
    /// Nothing: it may be reserved.
    New,
    /// It was charged, and this server's share of its result is kept.
    Held {
        /// The bytes that were, or would have been, sent.
        result: ResultBytes,
        /// Whether [`Ledger::mark_released`] was called. If it was not, here or on another server,
        /// the servers agree whether to send the kept bytes (every server holds them) or to reserve
        /// again and pay again.
        released: bool,
    },
}

/// End of the log: how many entries it has, and the hash that covers all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerHead {
    /// Entries in the log.
    pub entries: u64,
    /// Hash of the last entry and, through it, of all before; zero for an empty log.
    pub hash: [u8; 32],
}

/// A sum over charges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Total {
    /// Privacy loss.
    pub rho: NanoRho,
    /// Charges; a request that was charged twice counts twice.
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

    fn of_one(rho: NanoRho, rows: u32) -> Self {
        Self { rho, requests: 1, rows: u64::from(rows) }
    }
}

/// What was committed for one task epoch. Reservations are not in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Spending {
    /// Over all clients.
    pub total: Total,
    /// By client identity.
    pub by_client: BTreeMap<String, Total>,
}

/// A server's own, durable record of spending.
///
/// Every method may wait for the disk: call from a thread that may block.
pub trait Ledger: Send + Sync {
    /// What is known about the request, of which `digest` covers the content.
    ///
    /// # Errors
    /// [`LedgerError::Conflict`] when the id was used for other content,
    /// [`LedgerError::ResultExpired`] when its result was pruned, or a storage error.
    fn lookup(&self, key: &RequestKey, digest: &ContentDigest) -> Result<Lookup, LedgerError>;

    /// Sets the price of each charge aside, in order; one result per charge.
    ///
    /// Caps count what is committed and what is set aside. A request that is already reserved, or
    /// was released, is refused; one that was committed and not released may be reserved again.
    ///
    /// # Errors
    /// Per charge: [`LedgerError::Refused`], [`LedgerError::InProgress`],
    /// [`LedgerError::AlreadyReleased`], [`LedgerError::Conflict`],
    /// [`LedgerError::ResultExpired`], or a storage error.
    fn reserve(&self, charges: &[Charge]) -> Vec<Result<Reservation, LedgerError>>;

    /// Spends reservations and stores the result share of each, all in one durable transaction.
    ///
    /// Committing a request again replaces its stored result and charges again. After an error
    /// nothing may leave the server; whether the charge counts then depends on what the disk got.
    ///
    /// # Errors
    /// [`LedgerError::ForeignReservation`] for a reservation of another ledger,
    /// [`LedgerError::Overflow`] when a total exceeds 64 bits, or a storage error.
    fn commit(&self, batch: Vec<(Reservation, ResultBytes)>) -> Result<LedgerHead, LedgerError>;

    /// Notes, durably, that the stored results of `keys` are final: all servers have committed.
    ///
    /// # Errors
    /// [`LedgerError::UnknownRequest`] when one was never committed (none is marked then), or a
    /// storage error.
    fn mark_released(&self, keys: &[RequestKey]) -> Result<(), LedgerError>;

    /// What was committed for a task epoch; zero for one that was never charged.
    ///
    /// # Errors
    /// A storage error.
    fn spent(&self, task: &str, epoch: u64) -> Result<Spending, LedgerError>;

    /// End of the log. Servers exchange heads so that a store restored from a backup is noticed.
    ///
    /// # Errors
    /// A storage error.
    fn head(&self) -> Result<LedgerHead, LedgerError>;

    /// Reads the whole log, recomputes its hashes and all totals, and compares.
    ///
    /// The hashes are not keyed: someone who can write the file can also make a consistent one, and
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
