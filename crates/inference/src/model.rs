//! One owner's network as one server holds it.

use concilium_mpc::Shares;
use concilium_network::program::level::Levels;
use concilium_network::program::uses;
use concilium_network::{Architecture, ArchitectureError, FixedNetwork, Operation, Ring};
use concilium_ring::{Element, Z64};
use thiserror::Error;

use crate::affine::SharedAffine;
use crate::ring::RingElement;

/// The secret part of a step.
pub(crate) enum SharedWeights<E: Element> {
    /// Matrices and biases.
    Affine(Box<SharedAffine<E>>),
    /// One row, at scale f: the summands of a shift.
    Shift(Shares<E>),
}

/// Why a server can't use a model's share.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelError {
    /// The public part is not sound.
    #[error("the architecture is refused: {0}")]
    Architecture(#[from] ArchitectureError),
    /// The architecture is in another ring.
    #[error("the model is for a ring of {found} bits, but is evaluated in one of {expected}; share it again")]
    Ring {
        /// The ring of the evaluation.
        expected: Ring,
        /// The ring of the architecture.
        found: Ring,
    },
    /// A component has the wrong number of elements.
    #[error(
        "a component holds {received} parameters, but the architecture has {expected}; share the model again"
    )]
    WrongLength {
        /// Parameters that the architecture says.
        expected: usize,
        /// Elements received.
        received: usize,
    },
}

/// A network's weights and biases in the order in which they are shared: step by step the weights,
/// `[groups, inner, outer]` in row-major order at scale 2^f, then the biases at scale 2^2f (those of a
/// shift at scale 2^f), modulo the ring's modulus.
///
/// The elements are the owner's secret; they are meant to go straight into
/// [`concilium_mpc::input::deal`].
pub fn flatten<E: Element>(network: &FixedNetwork) -> Vec<E> {
    let mut elements = Vec::with_capacity(network.architecture().parameter_count());
    for weights in network.steps().iter().filter_map(|step| step.weights.as_ref()) {
        elements.extend(weights.matrices.iter().chain(&weights.bias).map(|&value| E::from_signed(value)));
    }
    elements
}

/// One server's share of an owner's network, prepared for evaluation.
///
/// Memory: two elements a weight, 16 bytes in the ring of 64 bits and 8 in that of 32, padded to whole panels of columns.
pub struct SharedModel<E: RingElement = Z64> {
    architecture: Architecture,
    /// The level of each step.
    levels: Vec<usize>,
    /// How often each value is used.
    uses: Vec<usize>,
    /// The weights of each step that has some.
    weights: Vec<Option<SharedWeights<E>>>,
}

impl<E: RingElement> SharedModel<E> {
    /// Prepares server i's components i (`own`) and i + 1 (`next`), in the order of [`flatten`].
    ///
    /// # Errors
    /// [`ModelError`] when the architecture is not sound or of another ring, or a component has the wrong
    /// length.
    pub fn new(architecture: Architecture, own: &[E], next: &[E]) -> Result<Self, ModelError> {
        architecture.validate()?;
        if architecture.ring != E::RING {
            return Err(ModelError::Ring { expected: E::RING, found: architecture.ring });
        }
        let expected = architecture.parameter_count();
        for component in [own, next] {
            if component.len() != expected {
                return Err(ModelError::WrongLength { expected, received: component.len() });
            }
        }
        let mut start = 0;
        let weights = architecture
            .steps
            .iter()
            .map(|step| {
                let range = start..start + step.operation.parameters();
                start = range.end;
                let (own, next) = (&own[range.clone()], &next[range]);
                match &step.operation {
                    Operation::Shift { .. } => Some(SharedWeights::Shift(row(own.to_vec(), next.to_vec()))),
                    operation => SharedAffine::new(operation, own, next)
                        .map(|affine| SharedWeights::Affine(Box::new(affine))),
                }
            })
            .collect();
        let levels = Levels::of(architecture.structure());
        let uses = uses(architecture.steps.iter().map(|step| step.inputs.as_slice()));
        Ok(SharedModel { architecture, levels, uses, weights })
    }

    /// The public part.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    pub(crate) fn levels(&self) -> &[usize] {
        &self.levels
    }

    pub(crate) fn uses(&self) -> &[usize] {
        &self.uses
    }

    /// The secret part of step `step`, if it has one.
    pub(crate) fn weights(&self, step: usize) -> Option<&SharedWeights<E>> {
        self.weights[step].as_ref()
    }

    /// Bytes of memory that the weights take on this server.
    pub fn memory_bytes(&self) -> usize {
        let bytes = |weights: &SharedWeights<E>| match weights {
            SharedWeights::Affine(affine) => affine.memory_bytes(),
            SharedWeights::Shift(summands) => 2 * summands.len() * E::BYTES,
        };
        self.weights.iter().flatten().map(bytes).sum()
    }
}

/// One row of shares.
pub(crate) fn row<E: Element>(own: Vec<E>, next: Vec<E>) -> Shares<E> {
    let array = |elements: Vec<E>| ndarray::Array1::from_vec(elements).insert_axis(ndarray::Axis(0));
    Shares::new(array(own), array(next))
}
