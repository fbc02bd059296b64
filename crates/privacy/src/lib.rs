//! Differential privacy: mechanisms, noise shares, zCDP accounting and the durable budget ledger.
//!
//! A released row is a vector of votes, one bin per label. Every server adds its own noise share, so
//! that the noise of any two servers gives the full guarantee ([`noise`]). Before a server's part of
//! a result leaves, the server writes the price of the release to its own ledger and waits until the
//! disk has it ([`ledger`]). Prices are integers in units of `1e-9` rho and always rounded up
//! ([`mechanism`]); epsilon and delta are shown to people and decide nothing ([`convert`]).

pub mod burn_down;
pub mod clock;
pub mod convert;
mod decimal;
pub mod ledger;
pub mod mechanism;
pub mod noise;
pub mod parameter;
pub mod policy;
pub mod twin;

pub use self::{
    burn_down::{BurnDown, Forecast, SpendingCurve},
    clock::{Clock, ManualClock, SystemClock},
    convert::{explain, utility},
    ledger::{
        Attestation, Basis, Charge, ClientSpending, ContentDigest, EpochError, EpochRecord, Event, Fits,
        Ledger, LedgerEntry, LedgerError, LedgerHead, LedgerStore, Lookup, Participant, PeerHead, RedbLedger,
        RequestId, RequestKey, Reservation, ResultBytes, Settlement, Spending, Stop, StoredLedger, Total,
        WindowState, beginning,
    },
    mechanism::{
        MAX_MODELS_PER_OWNER, Mechanism, MechanismError, PROBABILITY_BITS, Release, Sensitivity, Threshold,
    },
    noise::{NoiseError, NoisePool, NoiseShare, NoiseSource, OpenDpNoise},
    parameter::{Delta, NanoRho, NoiseScale, ParameterError},
    policy::{
        Cap, EpochBasis, EpochDeclaration, PolicyError, PrivacyUnit, Refusal, RowPrices, SpendingWindow,
        TaskPolicy,
    },
};
