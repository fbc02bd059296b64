//! What one task may release, and how much of it.

use std::fmt;

use thiserror::Error;

use crate::{
    mechanism::{Mechanism, MechanismError, Release},
    parameter::{Delta, NanoRho},
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
        "task {task}: {cap} of rho {value} does not pay for one row, which costs rho {row}; raise \
         the cap or the noise"
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
    },
    /// Delta is not strictly between zero and one.
    #[error("task {task}: delta {delta} is not between 0 and 1; use for example 1e-5")]
    Delta {
        /// Task of the policy.
        task: String,
        /// Configured delta.
        delta: Delta,
    },
}

/// Scope of a cap on spending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cap {
    /// Everything that is ever released about the models of one task epoch. This one is the privacy
    /// guarantee, because clients may pool their answers.
    TaskEpoch,
    /// One client's part of a task epoch. It shares the budget out fairly and guarantees nothing
    /// to owners.
    Client,
}

impl fmt::Display for Cap {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::TaskEpoch => "the cap of the task epoch",
            Self::Client => "the cap per client",
        })
    }
}

/// A request that the budget does not pay for. It depends on public numbers only, never on models,
/// inputs or answers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// The cap that leaves the least.
    pub cap: Cap,
    /// Task asked for.
    pub task: String,
    /// Epoch of its models.
    pub epoch: u64,
    /// Client that asked.
    pub client: String,
    /// Price of the request.
    pub needed: NanoRho,
    /// What the cap leaves, with running requests counted as spent.
    pub left: NanoRho,
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cap, task, epoch, client, needed, left } = self;
        write!(
            formatter,
            "task {task} epoch {epoch}: {cap} leaves rho {left} to client {client}, and the request \
             needs rho {needed}; "
        )?;
        match cap {
            _ if *left > NanoRho::ZERO => {
                formatter.write_str("ask for fewer rows, or ask again when running requests end")
            }
            Cap::TaskEpoch => {
                formatter.write_str("wait for the next epoch, which starts when owners share new models")
            }
            Cap::Client => formatter.write_str("ask the operators for a greater cap per client"),
        }
    }
}

impl std::error::Error for Refusal {}

/// Release, noise and caps of one task epoch. All three servers hold the same policy and compare
/// its [`digest`](Self::digest) before they work together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskPolicy {
    /// Name of the task.
    pub task: String,
    /// Epoch of the task's models. A new one starts with a fresh budget, so it must start only
    /// when the models were trained anew on data that counts anew.
    pub epoch: u64,
    /// What is released for one query.
    pub release: Release,
    /// Noise of every bin.
    pub mechanism: Mechanism,
    /// Bins of a row: the labels of the task.
    pub bins: usize,
    /// Most that may ever be spent on this epoch, by all clients together.
    pub cap_total: NanoRho,
    /// Most that one client may spend on this epoch.
    pub cap_per_client: Option<NanoRho>,
    /// Delta at which budgets are shown.
    pub delta: Delta,
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
        let row = self.row_cost()?;
        let caps = [(Cap::TaskEpoch, Some(self.cap_total)), (Cap::Client, self.cap_per_client)];
        for (cap, value) in caps {
            if let Some(value) = value.filter(|value| *value < row) {
                return Err(PolicyError::CapBelowOneRow { task: task(), cap, value, row });
            }
        }
        Ok(())
    }

    /// Price of one released row.
    ///
    /// # Errors
    /// [`PolicyError::Mechanism`] when the mechanism is not allowed.
    pub fn row_cost(&self) -> Result<NanoRho, PolicyError> {
        self.mechanism
            .cost(self.release, self.bins)
            .map_err(|source| PolicyError::Mechanism { task: self.task.clone(), source })
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
        let mut hasher = blake3::Hasher::new_derive_key("concilium 2026-11 task policy v1");
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
        // The flag keeps "no cap" apart from every cap.
        number(u64::from(self.cap_per_client.is_some()));
        number(self.cap_per_client.unwrap_or_default().units());
        number(self.delta.units());
        // All fields before the name have a fixed width, so no two policies share an encoding.
        hasher.update(self.task.as_bytes());
        *hasher.finalize().as_bytes()
    }
}

/// Number of a release in stored and hashed bytes. Never reuse one.
pub(crate) const fn release_code(release: Release) -> u8 {
    match release {
        Release::Label => 1,
        Release::Histogram => 2,
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
mod tests {
    use super::*;

    fn policy() -> TaskPolicy {
        TaskPolicy {
            task: "digits".to_owned(),
            epoch: 1,
            release: Release::Histogram,
            mechanism: Mechanism::DiscreteGaussian { sigma: "5".parse().expect("a number") },
            bins: 10,
            cap_total: "1".parse().expect("a number"),
            cap_per_client: Some("0.5".parse().expect("a number")),
            delta: "1e-5".parse().expect("a number"),
        }
    }

    #[test]
    fn every_field_counts_in_the_digest() {
        let base = policy();
        let mut seen = vec![base.digest()];
        let changes: [fn(&mut TaskPolicy); 10] = [
            |policy| policy.task.push('2'),
            |policy| policy.epoch = 2,
            |policy| policy.release = Release::Label,
            |policy| {
                policy.mechanism =
                    Mechanism::DiscreteGaussian { sigma: "5.000001".parse().expect("a number") }
            },
            |policy| policy.mechanism = Mechanism::DiscreteLaplace { scale: "5".parse().expect("a number") },
            |policy| policy.bins = 11,
            |policy| policy.cap_total = "2".parse().expect("a number"),
            |policy| policy.cap_per_client = None,
            |policy| policy.cap_per_client = Some(NanoRho::ZERO),
            |policy| policy.delta = "1e-6".parse().expect("a number"),
        ];
        for change in changes {
            let mut other = base.clone();
            change(&mut other);
            assert!(!seen.contains(&other.digest()), "{other:?}");
            seen.push(other.digest());
        }
        assert_eq!(base.digest(), policy().digest());
    }

    #[test]
    fn unusable_policies_are_refused() {
        assert_eq!(policy().validate(), Ok(()));
        let with = |change: fn(&mut TaskPolicy)| {
            let mut policy = policy();
            change(&mut policy);
            policy.validate().expect_err("an unusable policy")
        };
        assert!(matches!(with(|policy| policy.task.clear()), PolicyError::Name { bytes: 0 }));
        assert!(matches!(
            with(|policy| policy.cap_per_client = Some(NanoRho::new(40_000_000))),
            PolicyError::CapBelowOneRow { cap: Cap::Client, .. }
        ));
        assert!(matches!(
            with(|policy| policy.cap_total = NanoRho::ZERO),
            PolicyError::CapBelowOneRow { cap: Cap::TaskEpoch, .. }
        ));
        assert!(matches!(
            with(|policy| policy.delta = "0".parse().expect("a number")),
            PolicyError::Delta { .. }
        ));
        assert!(matches!(
            with(|policy| policy.delta = "1".parse().expect("a number")),
            PolicyError::Delta { .. }
        ));
        assert!(matches!(with(|policy| policy.bins = 0), PolicyError::Mechanism { .. }));
    }

    #[test]
    fn rows_left_counts_down_to_zero() {
        let policy = policy();
        assert_eq!(policy.rows_left(NanoRho::ZERO), Ok(24));
        assert_eq!(policy.rows_left(NanoRho::new(960_000_000)), Ok(0));
        assert_eq!(policy.rows_left(NanoRho::new(u64::MAX)), Ok(0));
    }
}
