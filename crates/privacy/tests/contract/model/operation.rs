//! Calls of a ledger, and what they answer.

use concilium_privacy::{
    Attestation, Cap, ContentDigest, LedgerError, Participant, PeerHead, RequestKey, Spending, TaskPolicy,
};

/// One request in a call of `reserve`.
#[derive(Debug, Clone)]
pub struct Asked {
    pub key: RequestKey,
    pub digest: ContentDigest,
    pub rows: u32,
    pub owners: Vec<Participant>,
    pub policy: TaskPolicy,
}

/// A call of the ledger that may change it. Amounts are in billionths of rho.
#[derive(Debug, Clone)]
pub enum Operation {
    Reserve(Vec<Asked>),
    Part(RequestKey, u64),
    Commit(Vec<(RequestKey, u64, Vec<u8>)>),
    GiveUp(RequestKey),
    Release(Vec<RequestKey>, Vec<PeerHead>),
    Raise(String, u64, Spending, u8),
    Attest(Attestation),
    Stop(String, String),
    Resume(String),
    Prune(u64),
}

/// What a call answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Reserved(Vec<Outcome>),
    Done,
    Changed(bool),
    Deleted(u64),
    InProgress,
    Conflict,
    Expired,
    Released,
    Stopped,
    EpochClosed,
    Refused { cap: Cap, left: u64, retry_at_ms: Option<u64> },
    TooMuch,
    Unknown,
    Invalid,
}

impl Outcome {
    /// What kind it is, without its numbers.
    pub fn kind(&self) -> String {
        let text = match self {
            Self::Refused { cap, .. } => format!("{cap:?}"),
            other => format!("{other:?}"),
        };
        text.split([' ', '(', '{']).next().unwrap_or_default().to_owned()
    }
}

impl From<LedgerError> for Outcome {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::InProgress { .. } => Self::InProgress,
            LedgerError::Conflict { .. } => Self::Conflict,
            LedgerError::ResultExpired { .. } => Self::Expired,
            LedgerError::AlreadyReleased { .. } => Self::Released,
            LedgerError::Stopped { .. } => Self::Stopped,
            LedgerError::EpochClosed { .. } => Self::EpochClosed,
            LedgerError::InvalidCharge { .. } => Self::TooMuch,
            LedgerError::UnknownRequest { .. } => Self::Unknown,
            LedgerError::Invalid { .. } => Self::Invalid,
            LedgerError::Refused(refusal) => Self::Refused {
                cap: refusal.cap,
                left: refusal.left.units(),
                retry_at_ms: refusal.retry_at_ms,
            },
            error => panic!("unexpected: {error}"),
        }
    }
}
