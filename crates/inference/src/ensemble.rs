//! The owners' networks that answer a task together.

use std::sync::Arc;

use concilium_ring::Z64;
use thiserror::Error;

use crate::model::SharedModel;
use crate::ring::{PreparedModel, RingElement};

/// Why models can't answer together.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum EnsembleError {
    /// There is no model.
    #[error("no model takes part; owners must share and activate theirs first")]
    Empty,
    /// A model differs from the task.
    #[error("model {model} has {found} {what}, but the task has {expected}; share it again for this task")]
    Differs {
        /// Position of the model.
        model: usize,
        /// What differs.
        what: &'static str,
        /// The task's number.
        expected: usize,
        /// The model's number.
        found: usize,
    },
}

/// The models of one task in the order in which all three servers evaluate them.
#[derive(Clone)]
pub struct Ensemble<E: RingElement = Z64> {
    models: Vec<Arc<SharedModel<E>>>,
}

impl<E: RingElement> Ensemble<E> {
    /// Joins models for a task with the given numbers of input features, classes and fractional
    /// bits.
    ///
    /// # Errors
    /// [`EnsembleError`] when there is none or one does not fit.
    pub fn new(
        models: Vec<Arc<SharedModel<E>>>,
        features: usize,
        classes: usize,
        fractional_bits: u32,
    ) -> Result<Self, EnsembleError> {
        if models.is_empty() {
            return Err(EnsembleError::Empty);
        }
        for (model, shared) in models.iter().enumerate() {
            let architecture = shared.architecture();
            let pairs = [
                ("input features", features, architecture.input_features),
                ("classes", classes, architecture.classes),
                ("fractional bits", fractional_bits as usize, architecture.fractional_bits as usize),
            ];
            for (what, expected, found) in pairs {
                if expected != found {
                    return Err(EnsembleError::Differs { model, what, expected, found });
                }
            }
        }
        Ok(Ensemble { models })
    }

    /// Joins models that were prepared in this ring, as [`Self::new`].
    ///
    /// # Errors
    /// [`EnsembleError`] when there is none, or one is in another ring or does not fit.
    pub fn of_prepared<'a>(
        prepared: impl IntoIterator<Item = &'a PreparedModel>,
        features: usize,
        classes: usize,
        fractional_bits: u32,
    ) -> Result<Self, EnsembleError> {
        let in_ring = |(model, prepared): (usize, &PreparedModel)| {
            E::model(prepared).cloned().ok_or_else(|| EnsembleError::Differs {
                model,
                what: "bits in its ring",
                expected: E::RING.bits() as usize,
                found: prepared.architecture().ring.bits() as usize,
            })
        };
        let models = prepared.into_iter().enumerate().map(in_ring).collect::<Result<_, _>>()?;
        Self::new(models, features, classes, fractional_bits)
    }

    /// The models.
    pub fn models(&self) -> &[Arc<SharedModel<E>>] {
        &self.models
    }

    /// The number of models, each of which has one vote.
    pub fn len(&self) -> usize {
        self.models.len()
    }

    /// Whether there is no model, which [`Self::new`] excludes.
    pub fn is_empty(&self) -> bool {
        self.models.is_empty()
    }

    /// Input features of every model.
    pub fn features(&self) -> usize {
        self.models[0].architecture().input_features
    }

    /// Classes of every model.
    pub fn classes(&self) -> usize {
        self.models[0].architecture().classes
    }

    /// Fractional bits of every model.
    pub fn fractional_bits(&self) -> u32 {
        self.models[0].architecture().fractional_bits
    }

    /// The comparison window that holds the difference of any two logits of any model.
    pub fn final_width(&self) -> u32 {
        self.models.iter().map(|model| model.architecture().final_width).max().unwrap_or(2)
    }
}
