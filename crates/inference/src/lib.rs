//! Evaluates many owners' networks on one secret-shared batch and turns their outputs into votes
//! or probabilities.
//!
//! All owners of a task go through the layers together: one rescaling for each affine layer and one
//! comparison batch for each ReLU layer, whatever the number of owners and of queries. Owners may
//! differ in the sizes and the number of their hidden layers.

pub mod ensemble;
pub mod evaluate;
pub mod model;
pub mod release;

pub use ensemble::{Ensemble, EnsembleError};
pub use evaluate::{histogram, logits, logits_observed, probabilities};
pub use model::{ModelError, SharedModel, flatten};
