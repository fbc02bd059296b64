//! What one task may release, and how much of it.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    mechanism::{MAX_MODELS_PER_OWNER, Mechanism, MechanismError, Release, Sensitivity, Threshold},
    parameter::{Delta, NanoRho},
};

mod cap;
mod epoch;

pub use self::{
    cap::{Cap, Refusal},
    epoch::{EpochBasis, EpochDeclaration},
};

/// Longest name of a task or client identity, in bytes.
pub const MAX_NAME_BYTES: usize = 512;

/// A policy that cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// The mechanism is not allowed.
    #[error("task {task}: {source}")]
    Mechanism {
        /// Task of the policy.
        task: String,
        /// What is wrong.
        source: MechanismError,
    },
    /// The task's name is empty or too long.
    #[error("the task name has {bytes} bytes; 1 to {MAX_NAME_BYTES} are allowed")]
    Name {
        /// Length of the name in bytes.
        bytes: usize,
    },
    /// A cap does not pay for one row.
    #[error(
        "task {task}: {cap} of rho {value} does not pay for one row, which costs rho {row} = \
         {arithmetic}; raise the cap or the noise"
    )]
    CapBelowOneRow {
        /// Task of the policy.
        task: String,
        /// Which cap.
        cap: Cap,
        /// Configured cap.
        value: NanoRho,
        /// Price of one row.
        row: NanoRho,
        /// How the price comes about.
        arithmetic: String,
    },
    /// A cap lies within another one and is greater, so it would bound nothing.
    #[error(
        "task {task}: {cap} of rho {value} is above {within} of rho {limit}, within which it lies; \
         lower it or leave it out"
    )]
    CapsContradict {
        /// Task of the policy.
        task: String,
        /// Which cap.
        cap: Cap,
        /// Configured cap.
        value: NanoRho,
        /// The cap that contains it.
        within: Cap,
        /// That cap's value.
        limit: NanoRho,
    },
    /// A spending window without length.
    #[error("task {task}: a spending window of no time paces nothing; give it an hour or more")]
    WindowLength {
        /// Task of the policy.
        task: String,
    },
    /// `confident_label` without a threshold, or with one of no votes.
    #[error(
        "task {task}: release confident_label has no threshold of one vote or more; give \
         confidence_votes, and confidence_sigma or confidence_scale"
    )]
    ThresholdMissing {
        /// Task of the policy.
        task: String,
    },
    /// A threshold for a release that has none.
    #[error(
        "task {task}: release {release} has no threshold; leave confidence_votes, confidence_sigma and \
         confidence_scale out, or release confident_label"
    )]
    ThresholdUnused {
        /// Task of the policy.
        task: String,
        /// The release.
        release: Release,
    },
    /// The noise of the threshold test is not allowed.
    #[error("task {task}: threshold: {source}")]
    ThresholdMechanism {
        /// Task of the policy.
        task: String,
        /// What is wrong.
        source: MechanismError,
    },
    /// Owners may share no models, or more than can be priced.
    #[error("task {task}: {models} models per owner cannot be priced; use 1 to {MAX_MODELS_PER_OWNER}")]
    ModelsPerOwner {
        /// Task of the policy.
        task: String,
        /// Configured number.
        models: u32,
    },
    /// Discrete Laplace noise for `mean_probability`.
    #[error(
        "task {task}: release mean_probability takes no discrete Laplace noise, because the time of an \
         exact draw grows with the scale, here times 2^16; give sigma instead of scale"
    )]
    LaplaceProbabilities {
        /// Task of the policy.
        task: String,
    },
    /// Delta is not strictly between zero and one.
    #[error("task {task}: delta {delta} is not between 0 and 1; use for example 1e-5")]
    Delta {
        /// Task of the policy.
        task: String,
        /// Configured delta.
        delta: Delta,
    },
    /// Nobody, or a text that is too long, answers for an epoch.
    #[error(
        "task {task}: the name of who answers for the epoch has {bytes} bytes; 1 to {MAX_NAME_BYTES} are allowed"
    )]
    AttestedBy {
        /// Task of the policy.
        task: String,
        /// Length of the name in bytes.
        bytes: usize,
    },
    /// The first possible epoch carries nothing over.
    #[error("task {task}: there is no epoch before epoch 0; leave epoch_basis out, or use a later epoch")]
    FirstEpoch {
        /// Task of the policy.
        task: String,
    },
}

/// Whom the guarantee protects: what may differ between neighbouring inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PrivacyUnit {
    /// One training record, which changes one model at most: an owner trains several models on
    /// disjoint parts of its data. A release has the sensitivity of one vote. The servers cannot see
    /// training data, so that the parts are disjoint is the owner's word. One model is covered in any
    /// case, and so is each record behind it.
    #[default]
    Record,
    /// One owner with all its models, of which it may share `models_per_owner`: so many votes.
    Owner,
}

impl fmt::Display for PrivacyUnit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Record => "record",
            Self::Owner => "owner",
        })
    }
}

/// Prices of one released row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowPrices {
    /// The threshold test of [`Release::ConfidentLabel`], paid for every row; zero for other releases.
    pub threshold: NanoRho,
    /// The answer, paid if there is one.
    pub answer: NanoRho,
}

impl RowPrices {
    /// Both together: what a row can cost, and what is set aside for it.
    pub fn total(self) -> NanoRho {
        // Policies bound both far below; a sum that could not be held must not look cheap.
        self.threshold.checked_add(self.answer).unwrap_or(NanoRho::new(u64::MAX))
    }
}

/// Most that a task epoch may spend within any `seconds` in a row. It spreads spending over time; what
/// was spent stays spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpendingWindow {
    /// Most within the window.
    pub rho: NanoRho,
    /// Length of the window.
    pub seconds: u64,
}

/// Release, noise and caps of one task epoch. All three servers hold the same policy and compare
/// its [`digest`](Self::digest) before they work together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskPolicy {
    /// Name of the task.
    pub task: String,
    /// Epoch of the task's models. One that follows an epoch with spending needs a
    /// [`declaration`](Self::declaration).
    pub epoch: u64,
    /// What is released for one query.
    pub release: Release,
    /// Noise of every bin.
    pub mechanism: Mechanism,
    /// When a [`Release::ConfidentLabel`] answers; `None` for every other release.
    pub threshold: Option<Threshold>,
    /// Whom the guarantee protects.
    pub unit: PrivacyUnit,
    /// Most models of one owner that vote.
    pub models_per_owner: u32,
    /// Bins of a row: the labels of the task.
    pub bins: usize,
    /// Most that may ever be spent on this epoch, by all clients together.
    pub cap_total: NanoRho,
    /// Most that one client may spend on this epoch.
    pub cap_per_client: Option<NanoRho>,
    /// Most that one client may spend on the current epochs of all tasks together; the same for every
    /// task.
    pub cap_per_client_all_tasks: Option<NanoRho>,
    /// Most that may be spent within a time.
    pub window: Option<SpendingWindow>,
    /// Delta at which budgets are shown.
    pub delta: Delta,
    /// What the epoch begins with and who answers for that; `None` for a task's first epoch.
    pub declaration: Option<EpochDeclaration>,
}

impl TaskPolicy {
    /// Refuses a policy that is unsound or can never answer.
    ///
    /// # Errors
    /// [`PolicyError`] naming the field.
    pub fn validate(&self) -> Result<(), PolicyError> {
        let task = || self.task.clone();
        if !(1..=MAX_NAME_BYTES).contains(&self.task.len()) {
            return Err(PolicyError::Name { bytes: self.task.len() });
        }
        if self.delta.units() == 0 || self.delta >= Delta::ONE {
            return Err(PolicyError::Delta { task: task(), delta: self.delta });
        }
        if !(1..=MAX_MODELS_PER_OWNER).contains(&self.models_per_owner) {
            return Err(PolicyError::ModelsPerOwner { task: task(), models: self.models_per_owner });
        }
        if self.release == Release::MeanProbability
            && matches!(self.mechanism, Mechanism::DiscreteLaplace { .. })
        {
            return Err(PolicyError::LaplaceProbabilities { task: task() });
        }
        if self.window.is_some_and(|window| window.seconds == 0) {
            return Err(PolicyError::WindowLength { task: task() });
        }
        if let Some(EpochDeclaration { attested_by, .. }) = &self.declaration {
            if !(1..=MAX_NAME_BYTES).contains(&attested_by.len()) {
                return Err(PolicyError::AttestedBy { task: task(), bytes: attested_by.len() });
            }
            if self.epoch == 0 {
                return Err(PolicyError::FirstEpoch { task: task() });
            }
        }
        self.check_caps()
    }

    /// Refuses caps that pay for nothing or contradict each other.
    fn check_caps(&self) -> Result<(), PolicyError> {
        let task = || self.task.clone();
        let row = self.row_cost()?;
        let window = self.window.map(|window| window.rho);
        let caps = [
            (Cap::TaskEpoch, Some(self.cap_total)),
            (Cap::Client, self.cap_per_client),
            (Cap::ClientAllTasks, self.cap_per_client_all_tasks),
            (Cap::Window, window),
        ];
        for (cap, value) in caps {
            if let Some(value) = value.filter(|value| *value < row) {
                let arithmetic = self.price_in_words();
                return Err(PolicyError::CapBelowOneRow { task: task(), cap, value, row, arithmetic });
            }
        }
        let total = || (Cap::TaskEpoch, Some(self.cap_total));
        let nested = [
            ((Cap::Client, self.cap_per_client), total()),
            ((Cap::Window, window), total()),
            ((Cap::Client, self.cap_per_client), (Cap::ClientAllTasks, self.cap_per_client_all_tasks)),
        ];
        for ((cap, value), (within, limit)) in nested {
            if let (Some(value), Some(limit)) = (value, limit)
                && value > limit
            {
                return Err(PolicyError::CapsContradict { task: task(), cap, value, within, limit });
            }
        }
        Ok(())
    }

    /// Votes that neighbouring inputs may move: one model's, or those of all models of one owner.
    pub const fn votes_of_one_unit(&self) -> u32 {
        match self.unit {
            PrivacyUnit::Record => 1,
            PrivacyUnit::Owner => self.models_per_owner,
        }
    }

    /// How far neighbouring inputs move a row before noise, in votes.
    pub const fn sensitivity(&self) -> Sensitivity {
        Sensitivity::of_votes(self.votes_of_one_unit())
    }

    /// Prices of one released row.
    ///
    /// # Errors
    /// [`PolicyError`] when a mechanism is not allowed, or the threshold does not go with the release.
    pub fn row_prices(&self) -> Result<RowPrices, PolicyError> {
        let task = || self.task.clone();
        let threshold = match (self.release, self.threshold) {
            (Release::ConfidentLabel, Some(Threshold { votes: 1.., mechanism })) => {
                let largest = Sensitivity::of_largest_count(self.votes_of_one_unit());
                let mechanism = mechanism.cost(largest, 1);
                mechanism.map_err(|source| PolicyError::ThresholdMechanism { task: task(), source })?
            }
            (Release::ConfidentLabel, _) => return Err(PolicyError::ThresholdMissing { task: task() }),
            (_, None) => NanoRho::ZERO,
            (release, Some(_)) => return Err(PolicyError::ThresholdUnused { task: task(), release }),
        };
        let answer = self
            .mechanism
            .cost(self.sensitivity(), self.bins)
            .map_err(|source| PolicyError::Mechanism { task: task(), source })?;
        Ok(RowPrices { threshold, answer })
    }

    /// Most that one released row can cost.
    ///
    /// # Errors
    /// As [`Self::row_prices`].
    pub fn row_cost(&self) -> Result<NanoRho, PolicyError> {
        self.row_prices().map(RowPrices::total)
    }

    /// How the price of a row comes about, as `1^2 / 5^2`: squared votes of one privacy unit over the
    /// squared noise. The term for the lattice of two Gaussian shares, which is below 1e-6 rho for ten
    /// classes, and the rounding are left out.
    pub fn price_in_words(&self) -> String {
        let votes = self.votes_of_one_unit();
        let width = |mechanism: Mechanism| mechanism_code(mechanism).1;
        let answer = format!("{votes}^2 / {}^2", width(self.mechanism));
        match self.threshold {
            Some(threshold) => format!("{votes}^2 / (2 * {}^2) + {answer}", width(threshold.mechanism)),
            None => answer,
        }
    }

    /// Rows that the task's cap still pays for after `spent`.
    ///
    /// # Errors
    /// [`PolicyError::Mechanism`] when the mechanism is not allowed.
    pub fn rows_left(&self, spent: NanoRho) -> Result<u64, PolicyError> {
        let left = self.cap_total.saturating_sub(spent);
        Ok(left.units() / self.row_cost()?.units())
    }

    /// Hash of everything in the policy, equal on servers that may work together.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("concilium 2026-11 task policy v3");
        let mut number = |value: u64| {
            hasher.update(&value.to_le_bytes());
        };
        let (mechanism, width) = mechanism_code(self.mechanism);
        number(self.epoch);
        number(u64::from(release_code(self.release)));
        number(u64::from(mechanism));
        number(width.millionths());
        number(self.bins as u64);
        number(self.cap_total.units());
        number(match self.unit {
            PrivacyUnit::Record => 1,
            PrivacyUnit::Owner => 2,
        });
        number(u64::from(self.models_per_owner));
        let threshold =
            self.threshold.map(|Threshold { votes, mechanism }| (votes, mechanism_code(mechanism)));
        let (votes, (mechanism, width)) = threshold.unwrap_or_default();
        let window = self.window.map(|window| (window.rho, window.seconds));
        let (window_rho, window_seconds) = window.unwrap_or_default();
        // The flags keep what is left out apart from every value.
        number(u64::from(threshold.is_some()));
        number(u64::from(votes));
        number(u64::from(mechanism));
        number(width.millionths());
        number(u64::from(self.cap_per_client.is_some()));
        number(self.cap_per_client.unwrap_or_default().units());
        number(u64::from(self.cap_per_client_all_tasks.is_some()));
        number(self.cap_per_client_all_tasks.unwrap_or_default().units());
        number(u64::from(window.is_some()));
        number(window_rho.units());
        number(window_seconds);
        number(self.delta.units());
        let (basis, attested_by) = match &self.declaration {
            None => (0, ""),
            Some(EpochDeclaration { basis: EpochBasis::Retrained, attested_by }) => (1, attested_by.as_str()),
            Some(EpochDeclaration { basis: EpochBasis::CarriedOver, attested_by }) => {
                (2, attested_by.as_str())
            }
        };
        number(basis);
        number(attested_by.len() as u64);
        // All fields before the names have a fixed width, and the last one's length is among them, so no
        // two policies share an encoding.
        hasher.update(self.task.as_bytes());
        hasher.update(attested_by.as_bytes());
        *hasher.finalize().as_bytes()
    }
}

/// Number of a release in stored and hashed bytes. Never reuse one.
pub(crate) const fn release_code(release: Release) -> u8 {
    match release {
        Release::Label => 1,
        Release::Histogram => 2,
        Release::ConfidentLabel => 3,
        Release::MeanProbability => 4,
    }
}

/// Number of a mechanism in stored and hashed bytes, and its parameter. Never reuse a number.
pub(crate) const fn mechanism_code(mechanism: Mechanism) -> (u8, crate::parameter::NoiseScale) {
    match mechanism {
        Mechanism::DiscreteGaussian { sigma } => (1, sigma),
        Mechanism::DiscreteLaplace { scale } => (2, scale),
    }
}

#[cfg(test)]
mod tests;
