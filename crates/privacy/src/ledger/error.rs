//! What can go wrong with a ledger.

use std::{error::Error, path::PathBuf, sync::Arc};

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
    /// A sum exceeds 64 bits.
    #[error("{key}: the sum of all charges exceeds 64 bits; start a new task epoch")]
    Overflow {
        /// The request that would exceed it.
        key: RequestKey,
    },
    /// There is no ledger where one is expected.
    #[error(
        "no ledger at {}; if this server never answered a request, create one, else restore the \
         newest copy: a fresh ledger forgets what was spent", path.display()
    )]
    Missing {
        /// Expected file.
        path: PathBuf,
    },
    /// There is a file where a new ledger was to be created.
    #[error("{} exists; open it, or choose another path for a new ledger", path.display())]
    AlreadyExists {
        /// The file.
        path: PathBuf,
    },
    /// Another process has the ledger open.
    #[error("the ledger {} is open in another process; stop that process first", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The ledger was written by another version of this program.
    #[error(
        "the ledger {} has schema {found}, and this program reads schema {supported}; run the \
         program version that wrote it", path.display()
    )]
    Schema {
        /// The file.
        path: PathBuf,
        /// Schema in the file.
        found: u32,
        /// Schema that this program reads.
        supported: u32,
    },
    /// The file is no ledger, or it was damaged or changed from outside.
    #[error(
        "the ledger {} is damaged: {detail}; stop, keep the file, and restore the newest copy whose \
         head the other servers confirm", path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        detail: String,
    },
    /// The file system or the store failed.
    #[error(
        "the ledger {} could not {action}; free space and check the disk and the file's \
         permissions, then restart", path.display()
    )]
    Storage {
        /// The file.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: Arc<dyn Error + Send + Sync>,
    },
}
