//! One owner's network as one server holds it.

use concilium_mpc::linear::SharedMatrix;
use concilium_network::{Architecture, ArchitectureError, FixedLayer, FixedNetwork, LayerShape};
use concilium_ring::{Element, Z64};
use ndarray::{Array1, ArrayView2};
use thiserror::Error;

/// Why a server can't use a model's share.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelError {
    /// The public part is not sound.
    #[error("the architecture is refused: {0}")]
    Architecture(#[from] ArchitectureError),
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

/// A network's weights and biases in the order in which they are shared: layer by layer the
/// weights, row-major `[inputs, outputs]` at scale 2^f, then the biases at scale 2^2f.
///
/// The elements are the owner's secret; they are meant to go straight into
/// [`concilium_mpc::input::deal`].
pub fn flatten(network: &FixedNetwork) -> Vec<Z64> {
    let mut elements = Vec::with_capacity(network.architecture().parameter_count());
    for layer in network.layers() {
        if let FixedLayer::Affine { weights, bias, .. } = layer {
            elements.extend(weights.iter().chain(bias).map(|&value| Z64::from_signed(value)));
        }
    }
    elements
}

/// One layer of a [`SharedModel`].
pub(crate) enum SharedLayer {
    /// Product, bias and rescaling.
    Affine {
        /// The share of the weights, prepared for products.
        weights: SharedMatrix<Z64>,
        /// Component i of the bias: this server's additive term of it.
        bias: Array1<Z64>,
        /// `l` with |z| < 2^l before rescaling.
        bound_bits: u32,
    },
    /// Negative values become zero.
    Relu {
        /// Comparison window.
        width: u32,
    },
}

/// One server's share of an owner's network, prepared for evaluation.
///
/// Memory: 16 bytes a weight (two elements), padded to whole panels of columns.
pub struct SharedModel {
    architecture: Architecture,
    layers: Vec<SharedLayer>,
}

impl SharedModel {
    /// Prepares server i's components i (`own`) and i + 1 (`next`), in the order of [`flatten`].
    ///
    /// # Errors
    /// [`ModelError`] when the architecture is not sound or a component has the wrong length.
    pub fn new(architecture: Architecture, own: &[Z64], next: &[Z64]) -> Result<Self, ModelError> {
        architecture.validate()?;
        let expected = architecture.parameter_count();
        for component in [own, next] {
            if component.len() != expected {
                return Err(ModelError::WrongLength { expected, received: component.len() });
            }
        }
        let mut start = 0;
        let layers = architecture
            .layers
            .iter()
            .map(|shape| match *shape {
                LayerShape::Affine { inputs, outputs, bound_bits } => {
                    let middle = start + inputs * outputs;
                    let matrix = |component| matrix(component, start..middle, (inputs, outputs));
                    let weights = SharedMatrix::new(matrix(own), matrix(next));
                    let bias = Array1::from_vec(own[middle..middle + outputs].to_vec());
                    start = middle + outputs;
                    SharedLayer::Affine { weights, bias, bound_bits }
                }
                LayerShape::Relu { width, .. } => SharedLayer::Relu { width },
            })
            .collect();
        Ok(SharedModel { architecture, layers })
    }

    /// The public part.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    pub(crate) fn layers(&self) -> &[SharedLayer] {
        &self.layers
    }

    /// Bytes of memory that the weights take on this server.
    pub fn memory_bytes(&self) -> usize {
        let bytes = |layer: &SharedLayer| match layer {
            SharedLayer::Affine { weights, bias, .. } => weights.memory_bytes() + bias.len() * Z64::BYTES,
            SharedLayer::Relu { .. } => 0,
        };
        self.layers.iter().map(bytes).sum()
    }
}

fn matrix(component: &[Z64], range: std::ops::Range<usize>, shape: (usize, usize)) -> ArrayView2<'_, Z64> {
    ArrayView2::from_shape(shape, &component[range]).expect("the architecture's lengths were checked")
}
