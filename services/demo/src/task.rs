//! The task of a demonstration: its policy, and the file in which the three servers read it.

use concilium_network::{InputDomain, Precision, Ring};
use concilium_privacy::{
    Delta, Mechanism, MechanismError, NanoRho, NoiseScale, PolicyError, PrivacyUnit, Release, Sensitivity,
    TaskPolicy,
};
use serde::Serialize;
use std::collections::BTreeMap;
use thiserror::Error;

use crate::data::Data;

/// Delta at which budgets are shown, in units of 1e-18: 1e-5.
const DELTA: &str = "1e-5";
/// The epoch of models that live as long as this process.
const EPOCH: u64 = 1;

/// Why a demonstration's task can't be configured.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TaskError {
    /// Policy does not allow the noise.
    #[error(transparent)]
    Mechanism(#[from] MechanismError),
    /// The policy is not sound.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The queries cost more than can be counted.
    #[error("{queries} queries at rho {row} each cost more than a ledger can count; ask for fewer")]
    Budget {
        /// Queries asked for.
        queries: usize,
        /// Price of one.
        row: NanoRho,
    },
    /// The file can't be written as TOML.
    #[error("the task cannot be written as TOML: {0}")]
    Text(#[from] toml::ser::Error),
}

/// A task whose budget pays for the demonstration's queries and for nothing more.
pub struct TaskPlan {
    /// Release, noise and caps.
    pub policy: TaskPolicy,
    /// Shape and ranges of an input.
    pub domain: InputDomain,
    /// The ring and the fractional bits of inputs and models.
    pub precision: Precision,
    /// Most rows of one request.
    pub request_rows: usize,
}

impl TaskPlan {
    /// Plans the task for these models and queries.
    ///
    /// # Errors
    /// [`TaskError`] for noise that policy does not allow.
    pub fn new(
        data: &Data,
        release: Release,
        mechanism: Mechanism,
        precision: impl Into<Precision>,
        request_rows: usize,
    ) -> Result<Self, TaskError> {
        let (domain, queries) = (data.domain.clone(), data.inputs.nrows());
        let noise = (release, mechanism);
        Self::paying_for(queries, &data.task, data.classes, domain, noise, precision, request_rows)
    }

    /// Plans the task `task` with a budget that pays for `queries` rows of this release and noise.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn paying_for(
        queries: usize,
        task: &str,
        classes: usize,
        domain: InputDomain,
        (release, mechanism): (Release, Mechanism),
        precision: impl Into<Precision>,
        request_rows: usize,
    ) -> Result<Self, TaskError> {
        let row = mechanism.cost(Sensitivity::OF_ONE_VOTE, classes)?;
        let cap_total = row.checked_mul(queries as u64).ok_or(TaskError::Budget { queries, row })?;
        let policy = TaskPolicy {
            task: task.to_owned(),
            epoch: EPOCH,
            release,
            mechanism,
            threshold: None,
            unit: PrivacyUnit::Record,
            models_per_owner: 1,
            bins: classes,
            cap_total,
            cap_per_client: None,
            cap_per_client_all_tasks: None,
            window: None,
            delta: DELTA.parse::<Delta>().expect("1e-5 is a decimal number of 18 places"),
            declaration: None,
        };
        policy.validate()?;
        Ok(TaskPlan { policy, domain, precision: precision.into(), request_rows })
    }

    /// The text of the servers' task file.
    ///
    /// # Errors
    /// [`TaskError::Text`].
    pub fn file(&self) -> Result<String, TaskError> {
        let (sigma, scale) = match self.policy.mechanism {
            Mechanism::DiscreteGaussian { sigma } => (Some(sigma), None),
            Mechanism::DiscreteLaplace { scale } => (None, Some(scale)),
            // Mechanisms to come: the servers' check says that the noise is missing.
            _ => (None, None),
        };
        let section = Section {
            epoch: self.policy.epoch,
            input_shape: self.domain.shape(),
            input_minimum: Bound::new(self.domain.minimum()),
            input_maximum: Bound::new(self.domain.maximum()),
            ring_bits: self.precision.ring,
            fractional_bits: self.precision.fractional_bits,
            classes: self.policy.bins,
            release: self.policy.release.name(),
            sigma,
            scale,
            budget_rho: self.policy.cap_total,
            delta: self.policy.delta,
            request_rows: self.request_rows,
        };
        Ok(toml::to_string(&File { tasks: BTreeMap::from([(self.policy.task.as_str(), section)]) })?)
    }
}

#[derive(Serialize)]
struct File<'a> {
    tasks: BTreeMap<&'a str, Section<'a>>,
}

/// The keys of `[tasks.NAME]`; decimal numbers are text, which is exact.
#[derive(Serialize)]
struct Section<'a> {
    epoch: u64,
    input_shape: &'a [usize],
    input_minimum: Bound<'a>,
    input_maximum: Bound<'a>,
    ring_bits: Ring,
    fractional_bits: u32,
    classes: usize,
    release: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sigma: Option<NoiseScale>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scale: Option<NoiseScale>,
    budget_rho: NanoRho,
    delta: Delta,
    request_rows: usize,
}

/// One number for all features when they have the same, else one for each.
#[derive(Serialize)]
#[serde(untagged)]
enum Bound<'a> {
    One(f64),
    Each(&'a [f64]),
}

impl<'a> Bound<'a> {
    fn new(values: &'a [f64]) -> Self {
        match values {
            [first, others @ ..] if others.iter().all(|other| other.to_bits() == first.to_bits()) => {
                Bound::One(*first)
            }
            _ => Bound::Each(values),
        }
    }
}

#[cfg(test)]
mod tests {
    use concilium_server::config::{Bound as ServerBound, TaskFile};

    use super::*;
    use crate::data::Selection;

    fn data(queries: usize) -> Data {
        let selection = Selection { owners: Some(1), queries: Some(queries), ..Selection::default() };
        Data::load(&selection).unwrap()
    }

    #[test]
    fn the_servers_read_what_was_planned() {
        let mut data = data(7);
        // Numbers that are awkward in decimal.
        let minimum: Vec<f64> = (0..64).map(|feature| -1.0 / (3.0 + f64::from(feature))).collect();
        data.domain = InputDomain::new(vec![1, 8, 8], minimum.clone(), vec![1e-300]).unwrap();
        let mechanism = Mechanism::DiscreteLaplace { scale: "2.5".parse().unwrap() };
        let plan = TaskPlan::new(&data, Release::Histogram, mechanism, 14, 3).unwrap();
        let file = TaskFile::parse(&plan.file().unwrap(), "tasks.toml".as_ref()).unwrap();
        let section = &file.tasks["digits"];
        assert_eq!(section.input_shape, [1, 8, 8]);
        assert!(matches!(section.input_maximum, ServerBound::One(1e-300)));
        assert_eq!(section.input_minimum.values(), minimum);
        assert_eq!((section.sigma, section.scale), (None, Some("2.5".parse().unwrap())));
        assert_eq!((section.classes, section.fractional_bits, section.request_rows), (10, 14, 3));
        assert_eq!(section.release, Release::Histogram);
        // Seven rows of 1 / 2.5^2 each.
        assert_eq!(section.budget_rho, "1.12".parse().unwrap());
        assert_eq!(section.budget_per_client_rho, None);
        assert_eq!(section.delta, "0.00001".parse().unwrap());
    }

    #[test]
    fn weak_noise_is_refused_with_the_floor() {
        let mechanism = Mechanism::DiscreteGaussian { sigma: "1.5".parse().unwrap() };
        let error = TaskPlan::new(&data(1), Release::Label, mechanism, 14, 3).err().unwrap();
        assert!(error.to_string().contains("sigma 1.5 is below the floor 2"), "{error}");
    }
}
