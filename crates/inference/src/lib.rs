//! Evaluates many owners' networks on one secret-shared batch and turns their outputs into votes
//! or probabilities.
//!
//! All owners of a task go through their programs together: one rescaling and one comparison for each
//! level, whatever the number of owners and of queries. Owners' programs may differ; the ring is the
//! task's. Votes and what follows them are always in the ring of 64 bits.

mod affine;
pub mod ensemble;
pub mod evaluate;
pub mod model;
pub mod release;
pub mod ring;
mod value;
mod windows;

pub use ensemble::{Ensemble, EnsembleError};
pub use evaluate::{histogram, logits, logits_observed, probabilities};
pub use model::{ModelError, SharedModel, flatten};
pub use ring::{PrepareError, PreparedModel, Question, RingElement};
