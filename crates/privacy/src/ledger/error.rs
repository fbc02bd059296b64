//! What can go wrong with a ledger.

use std::{error::Error, sync::Arc};

use super::RequestKey;
use crate::policy::Refusal;

/// A request that cannot be charged, or a store that cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// The budget does not pay for the request.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The request id was used for other content.
    #[error("{key}: the id was used before with other content; use a new id for a new request")]
    Conflict {
        /// The request.
        key: RequestKey,
    },
    /// The request is being answered.
    #[error("{key} is being answered; ask again when that has ended")]
    InProgress {
        /// The request.
        key: RequestKey,
    },
    /// The request was answered, so its stored result must be sent instead of a new one.
    #[error("{key} was answered before; send the stored result")]
    AlreadyReleased {
        /// The request.
        key: RequestKey,
    },
    /// The request was answered and its result deleted.
    #[error("{key} was answered before and its result is no longer kept; use a new id to ask anew")]
    ResultExpired {
        /// The request.
        key: RequestKey,
    },
    /// The request was never committed.
    #[error("{key} is not in the ledger; commit it first")]
    UnknownRequest {
        /// The request.
        key: RequestKey,
    },
    /// The charge makes no sense.
    #[error("{key} cannot be charged: {reason}")]
    InvalidCharge {
        /// The request.
        key: RequestKey,
        /// What is wrong, and what is allowed.
        reason: String,
    },
    /// The reservation was made by another ledger.
    #[error("{key} was reserved in another ledger; commit it there")]
    ForeignReservation {
        /// The request.
        key: RequestKey,
    },
    /// The task answers nothing.
    #[error("task {task} was stopped: {reason}; an operator must look into it and resume the task")]
    Stopped {
        /// The task.
        task: String,
        /// Why.
        reason: String,
    },
    /// The spending of the epoch goes on in a later one.
    #[error(
        "task {task} epoch {epoch} is closed, because its spending was carried over to epoch {into}; \
         use that one"
    )]
    EpochClosed {
        /// The task.
        task: String,
        /// The closed epoch.
        epoch: u64,
        /// Where its spending went on.
        into: u64,
    },
    /// Something other than a charge makes no sense.
    #[error("the ledger does not take this: {reason}")]
    Invalid {
        /// What is wrong, and what is allowed.
        reason: String,
    },
    /// A sum exceeds 64 bits.
    #[error("{key}: the sum of all charges exceeds 64 bits; start a new task epoch")]
    Overflow {
        /// The request that would exceed it.
        key: RequestKey,
    },
    /// There is no ledger where one is expected.
    #[error(
        "no ledger at {place}; if this server never answered a request, create one, else restore the \
         newest copy: a fresh ledger forgets what was spent"
    )]
    Missing {
        /// Where it was expected.
        place: String,
    },
    /// There is something where a new ledger was to be created.
    #[error("{place} exists; open it, or choose another path for a new ledger")]
    AlreadyExists {
        /// Where it is.
        place: String,
    },
    /// Another process has the ledger open.
    #[error("the ledger {place} is open in another process; stop that process first")]
    InUse {
        /// Where it is.
        place: String,
    },
    /// The ledger was written by another version of this program.
    #[error(
        "the ledger {place} has schema {found}, and this program reads schema {supported}; run the \
         program version that wrote it"
    )]
    Schema {
        /// Where it is.
        place: String,
        /// Schema found.
        found: u32,
        /// Schema that this program reads.
        supported: u32,
    },
    /// The store is no ledger, or it was damaged or changed from outside.
    #[error(
        "the ledger {place} is damaged: {detail}; stop, keep it, and restore the newest copy whose \
         head the other servers confirm"
    )]
    Corrupt {
        /// Where it is.
        place: String,
        /// What does not fit.
        detail: String,
    },
    /// The file system or the store failed.
    #[error(
        "the ledger {place} could not {action}; free space and check the disk and the \
         permissions, then restart"
    )]
    Storage {
        /// Where it is.
        place: String,
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: Arc<dyn Error + Send + Sync>,
    },
}

impl LedgerError {
    /// Damage of the ledger at `place`.
    pub fn corrupt(place: &str, detail: impl Into<String>) -> Self {
        Self::Corrupt { place: place.to_owned(), detail: detail.into() }
    }
}
